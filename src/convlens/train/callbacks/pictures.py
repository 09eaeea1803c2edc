"""`Pictures`: records images, feature maps, kernels, fields, mistakes and their Grad-CAM."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from convlens.core.records import Picture
from convlens.core.snapshots import BEFORE, N_WORST, Probes, S, Snapshot
from convlens.errors import ArgumentError, ConvlensError
from convlens.plots import ValidationPlots
from convlens.train.callbacks import snapshot_limits as limits
from convlens.train.callbacks.base import Callback
from convlens.train.callbacks.class_maps import class_maps
from convlens.train.callbacks.layer_snapshots import LayerSnapshots
from convlens.train.callbacks.misclassified import Classified, Misclassified
from convlens.train.callbacks.probe_images import choose_probes, pick_probes

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class Pictures(Callback, ValidationPlots):
    """Records images, and what the network makes of them, within a fixed budget.

    One batch of training images as the network gets them. After every validation of a classifier
    its worst predictions (the largest cross-entropy), the confusion matrix, the calibration of the
    probabilities, and the worst image of each confusion. And for a few probe images of the
    validation, the same through the whole training: each layer's feature maps, the convolutions'
    kernels, and effective receptive fields of the layers' centre units, before training and after
    at most ``n_epochs`` epochs, on a logarithmic scale that includes the last; the receptive field
    of every unit once. After these epochs also Grad-CAM of the worst 24 images and of the probes:
    which places speak for the predicted class, and the rank correlation with maps of random
    weights.

    The model runs on the probe images in evaluation mode and is left as it was, so that training
    is the same to the last bit. What cannot be recorded is left out; the run's metadata says why
    under ``"pictures"``. The budget before compression (see `snapshot_limits`) is 4 MiB of feature
    maps and 1 MiB of kernels at a kept epoch, 8 MiB of effective fields and 16 MiB of mistakes in
    all (or 1.2 MiB at a kept epoch), besides the images.

        >>> cl.Pictures(n_probes=4)
        Pictures(n_batch=32, n_worst=10, n_probes=4, n_epochs=20, n_layers=64)

    Args:
        n_batch: training images to keep, at least 1.
        n_worst: worst predictions to keep at their full size, at least 1.
        n_probes: probe images, of as many classes as possible; 0 for none.
        n_epochs: epochs after which snapshots are taken, at least 1.
        n_layers: layers to take them of, at least 1.

    Attributes:
        pictures: the newest `Picture` of each name.
        snapshots: the newest snapshot of each kind and layer; see `convlens.core.snapshots`.
    """

    order = 10

    def __init__(
        self,
        n_batch: int = 32,
        n_worst: int = 10,
        *,
        n_probes: int = 8,
        n_epochs: int = 20,
        n_layers: int = 64,
    ) -> None:
        self._counts = {
            "n_batch": n_batch, "n_worst": n_worst, "n_probes": n_probes, "n_epochs": n_epochs,
            "n_layers": n_layers,
        }  # fmt: skip
        for name, value in self._counts.items():
            least = 0 if name == "n_probes" else 1
            if value < least:
                raise ArgumentError(f"{name} must be at least {least}, got {value}.")
        self.n_batch, self.n_worst = n_batch, n_worst
        self.n_probes, self.n_epochs, self.n_layers = n_probes, n_epochs, n_layers
        self._forget()

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={value}" for name, value in self._counts.items())
        return f"Pictures({counts})"

    def _forget(self) -> None:
        self.pictures: dict[str, Picture] = {}
        self.snapshots: dict[tuple[str, str], Snapshot] = {}
        self._mistakes: Misclassified | None = None
        self._worst: Classified | None = None  # of the last validation
        self._probes: Tensor | None = None
        self._explains = True  # until it fails
        self._layers: LayerSnapshots | None = None
        self._needs_probes = False  # from the first training batch
        self._notes: list[str] = []
        self._kept: tuple[int, ...] = ()
        self._last_taken = BEFORE

    def snapshot(self, kind: type[S], layer: str = "", epoch: int | None = None) -> S | None:
        """The newest snapshot of a kind; None if there is none or it is of a later epoch.

        Those of earlier epochs are in the run.
        """
        kept = self.snapshots.get((kind.KIND, layer))
        is_later = kept is not None and epoch is not None and kept.epoch > epoch
        return kept if isinstance(kept, kind) and not is_later else None

    def before_fit(self, learn: Learner) -> None:
        """Forget the last fit, choose probes and take snapshots before anything is trained."""
        self._forget()
        self._kept = limits.kept_epochs(learn.n_epochs, self.n_epochs)
        if not self.n_probes:
            return
        try:
            probes = choose_probes(learn.dls, self.n_probes)
        except Exception as error:  # a data set's own
            self._notes.append(f"No probe images: {type(error).__name__}: {error}")
        else:
            self._needs_probes = probes is None
            if probes is not None:
                self._begin_snapshots(learn, *probes)
        self._write_facts(learn)

    def before_batch(self, learn: Learner) -> None:
        """Choose probes from the first training batch where there was nothing else."""
        if self._needs_probes and learn.training:
            self._needs_probes = False
            self._begin_snapshots(learn, *pick_probes(learn.x, learn.y, self.n_probes))
            self._write_facts(learn)

    def before_loss(self, learn: Learner) -> None:
        """Keep images of the first batch, after everything that changes them."""
        if learn.training and "batch" not in self.pictures:
            x, y = learn.x[: self.n_batch], learn.y[: self.n_batch]
            self._keep_picture(
                learn, Picture("batch", -1, learn.dls.to_uint8(x), learn.dls.captions(y))
            )

    def before_epoch(self, learn: Learner) -> None:  # noqa: ARG002
        """Forget the worst images of the last validation: its weights are going to change."""
        self._worst = None

    def before_validation(self, learn: Learner) -> None:
        """Start over."""
        calibrate = learn.epoch in self._kept or learn.n_epochs <= limits.CONFUSION_EPOCHS
        n_worst = max(self.n_worst, limits.N_EXPLAINED)
        self._mistakes = Misclassified(n_worst, calibrate=calibrate)

    def after_loss(self, learn: Learner) -> None:
        """Keep those images of a validation batch that may be among the worst."""
        output, y = learn.output, learn.y
        if self._mistakes is None or not isinstance(output, Tensor):
            return
        if output.ndim == 2 and y.ndim == 1 and not y.is_floating_point():  # a classifier
            self._mistakes.add(output, y, learn.x)

    def after_validation(self, learn: Learner) -> None:
        """Record the worst predictions, the confusion matrix, the calibration and Grad-CAM."""
        mistakes, self._mistakes, self._worst = self._mistakes, None, None
        if mistakes is None or not mistakes.n_classes:
            return
        self._keep_worst(learn, mistakes)
        n_classes, kept = mistakes.n_classes, learn.epoch in self._kept
        classes = tuple(learn.dls.label(k) for k in range(n_classes))
        small = n_classes <= limits.CONFUSION_CLASSES and learn.n_epochs <= limits.CONFUSION_EPOCHS
        if small or kept:
            self._keep(learn, [mistakes.confusion(learn.epoch, classes)])
        self._keep(learn, [mistakes.calibration(learn.epoch)])
        shape = self.pictures["worst"].images.shape[1:] if "worst" in self.pictures else (0,)
        n_bytes = (N_WORST + limits.N_PAIRS) * int(np.prod(np.minimum(shape, limits.SIDE)))
        if learn.n_epochs * n_bytes <= limits.MISTAKE_BYTES or kept:
            dls = learn.dls
            found = mistakes.mistakes(learn.epoch, classes, dls.to_uint8, dls.valid_files)
            self._keep(learn, [found])
        self._worst = mistakes.worst(limits.N_EXPLAINED)
        if kept:
            self._explain(learn)

    def after_epoch(self, learn: Learner) -> None:
        """Take snapshots after an epoch that is kept."""
        if learn.epoch in self._kept:
            self._take(learn, learn.epoch)
        if learn.sink is not None:
            learn.sink.flush()

    def after_fit(self, learn: Learner) -> None:
        """Take snapshots once more if a callback ended the fit early."""
        self._mistakes = None
        if learn.error is None and learn.step and learn.epoch > self._last_taken:
            self._take(learn, learn.epoch)
            self._explain(learn)
        self._worst = None

    def _begin_snapshots(self, learn: Learner, x: Tensor, y: Tensor) -> None:
        """Follow these images; the first snapshots are those before training."""
        if x.ndim != 4:
            self._notes.append(f"No probe images: they are {tuple(x.shape)}, not (N, C, H, W).")
            return
        x = x.to(learn.device)
        inputs = x.detach().float().cpu().numpy().copy()
        captions, self._probes = tuple(learn.dls.captions(y)), x.detach().clone()
        self._keep(learn, [Probes(BEFORE, "", learn.dls.to_uint8(x), inputs, captions)])
        self._layers = LayerSnapshots(learn.model, self._probes, self.n_layers, self._kept)
        self._take(learn, BEFORE)

    def _take(self, learn: Learner, epoch: int) -> None:
        if self._layers is None:
            return
        n_notes = len(self._layers.notes)
        self._keep(learn, self._layers.take(epoch))
        self._last_taken = epoch
        if len(self._layers.notes) > n_notes:
            self._write_facts(learn)

    def _explain(self, learn: Learner) -> None:
        """Take Grad-CAM of the last validation's worst images; what fails becomes a note."""
        worst, self._worst = self._worst, None
        if worst is None or not self._explains:
            return
        try:
            self._keep(learn, [class_maps(learn.model, learn.epoch, worst, self._probes)])
        except Exception as error:  # whatever a model raises
            self._explains = False
            kind = "" if isinstance(error, ConvlensError) else f"{type(error).__name__}: "
            self._notes.append(f"No class activation maps: {kind}{error}")
            self._write_facts(learn)

    def _keep_worst(self, learn: Learner, mistakes: Misclassified) -> None:
        found = mistakes.worst(self.n_worst)
        if found is None:
            return
        columns = (found.true, found.predicted, found.probability, found.loss)
        captions = [
            f"{learn.dls.label(true)}, predicted {learn.dls.label(predicted)} ({share:.1%}), "
            f"loss {loss:.2f}"
            for true, predicted, share, loss in zip(*(c.tolist() for c in columns), strict=True)
        ]
        images = learn.dls.to_uint8(found.x)
        self._keep_picture(learn, Picture("worst", learn.epoch, images, captions))

    def _keep_picture(self, learn: Learner, picture: Picture) -> None:
        self.pictures[picture.name] = picture
        if learn.sink is not None:
            learn.sink.write_picture(picture)

    def _keep(self, learn: Learner, snapshots: Iterable[Snapshot | None]) -> None:
        for snapshot in snapshots:
            if snapshot is not None:
                self.snapshots[snapshot.KIND, snapshot.layer] = snapshot
                if learn.sink is not None:
                    learn.sink.write_snapshot(snapshot)

    def _write_facts(self, learn: Learner) -> None:
        """Say in the run's metadata what is kept, and what cannot be."""
        if learn.sink is None:
            return
        facts = {} if self._layers is None else self._layers.facts()
        notes = [*self._notes, *([] if self._layers is None else self._layers.notes)]
        learn.sink.write_meta(
            {"pictures": {**facts, "kept_epochs": list(self._kept), "notes": notes}}
        )
