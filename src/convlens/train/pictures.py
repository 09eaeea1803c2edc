"""`Pictures`: what a run keeps beside its numbers, for people to look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from convlens.core.records import Picture
from convlens.core.snapshots import BEFORE, Probes, S, Snapshot
from convlens.errors import ArgumentError
from convlens.plots import ValidationPlots
from convlens.train import budget
from convlens.train.callbacks import Callback
from convlens.train.following import Follower
from convlens.train.mistakes import Validation
from convlens.train.probes import choose_probes, pick_probes

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class Pictures(Callback, ValidationPlots):
    """Records images, and what the network makes of them, within a fixed budget.

    A batch of training images as the network gets them. After every validation of a classifier
    its worst predictions (the largest cross-entropy), the confusion of classes, and of each
    confusion the worst. And a few probe images of the validation, the same through the whole
    training: before it and after at most ``n_epochs`` epochs, on a logarithmic scale with the last
    always among them, each layer's feature maps for them, the convolutions' kernels, and effective
    receptive fields of the layers' centre units; the receptive field of every unit once.

    A model is run on the probes in evaluation and left as it was, so that training is the same to
    the last bit as without. What cannot be followed is left out, and the run's meta says so under
    ``"pictures"``. How much is kept is a function of the sizes, see `convlens.train.budget`: before
    compression at most 4 MiB of feature maps and 1 MiB of kernels at a kept epoch, 8 MiB of
    effective fields and 16 MiB of mistakes in all (or 1.2 MiB at a kept epoch), besides the images.

    ``pictures`` holds the newest `Picture` of each name, ``snapshots`` the newest snapshot of each
    kind and layer (see `convlens.core.snapshots`).

    Args:
        n_batch: how many training images, at least 1.
        n_worst: how many of the worst predictions at their full size, at least 1.
        n_probes: how many probe images, of as many classes as can be; 0 follows none.
        n_epochs: at how many epochs they are looked at, at least 1.
        n_layers: how many layers are followed, at least 1.
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
        for name, value in (("n_batch", n_batch), ("n_worst", n_worst)):
            if value < 1:
                raise ArgumentError(f"{name}={value} is not a number of images; give at least 1.")
        if n_probes < 0:
            raise ArgumentError(
                f"n_probes={n_probes} is not a number of images; give at least 1, or 0 for none."
            )
        for name, value in (("n_epochs", n_epochs), ("n_layers", n_layers)):
            if value < 1:
                what = name.removeprefix("n_")
                raise ArgumentError(f"{name}={value} is not a number of {what}; give at least 1.")
        self.n_batch, self.n_worst = n_batch, n_worst
        self.n_probes, self.n_epochs, self.n_layers = n_probes, n_epochs, n_layers
        self._forget()

    def _forget(self) -> None:
        self.pictures: dict[str, Picture] = {}
        self.snapshots: dict[tuple[str, str], Snapshot] = {}
        self._validation: Validation | None = None
        self._follower: Follower | None = None
        self._waiting = False  # for the first training batch, to choose probes from
        self._notes: list[str] = []
        self._kept: tuple[int, ...] = ()
        self._looked_at = BEFORE

    def snapshot(self, kind: type[S], layer: str = "", epoch: int | None = None) -> S | None:
        """The newest snapshot of a kind, None if there is none or it is of a later epoch.

        Those of earlier epochs are in the run.
        """
        kept = self.snapshots.get((kind.KIND, layer))
        is_later = kept is not None and epoch is not None and kept.epoch > epoch
        return kept if isinstance(kept, kind) and not is_later else None

    def before_fit(self, learn: Learner) -> None:
        """Forget the last fit, choose probes and look at them before anything is trained."""
        self._forget()
        self._kept = budget.kept_epochs(learn.n_epochs, self.n_epochs)
        if not self.n_probes:
            return
        try:
            probes = choose_probes(learn.dls, self.n_probes)
        except Exception as error:  # of a data set, which may be any
            self._notes.append(f"No probe images: {type(error).__name__}: {error}")
        else:
            self._waiting = probes is None
            if probes is not None:
                self._follow(learn, *probes)
        self._write_facts(learn)

    def before_batch(self, learn: Learner) -> None:
        """Choose probes from the first training batch where there was nothing else."""
        if self._waiting and learn.training:
            self._waiting = False
            self._follow(learn, *pick_probes(learn.x, learn.y, self.n_probes))
            self._write_facts(learn)

    def before_loss(self, learn: Learner) -> None:
        """Keep images of the first batch, after everything that changes them."""
        if learn.training and "batch" not in self.pictures:
            x, y = learn.x[: self.n_batch], learn.y[: self.n_batch]
            self._keep_picture(
                learn, Picture("batch", -1, learn.dls.to_uint8(x), learn.dls.captions(y))
            )

    def before_validation(self, learn: Learner) -> None:  # noqa: ARG002
        """Begin anew."""
        self._validation = Validation(self.n_worst)

    def after_loss(self, learn: Learner) -> None:
        """Of each validation batch keep as many as could be among the worst of all."""
        if self._validation is not None and _is_classification(learn):
            self._validation.add(learn.output, learn.y, learn.x)

    def after_validation(self, learn: Learner) -> None:
        """Record the worst of all batches, and the confusion of classes."""
        validation, self._validation = self._validation, None
        if validation is None or not validation.n_classes:
            return
        self._keep_worst(learn, validation)
        classes = tuple(learn.dls.label(k) for k in range(validation.n_classes))
        if self._keeps_confusion(learn, validation.n_classes):
            self._keep(learn, [validation.confusion(learn.epoch, classes)])
        if self._keeps_mistakes(learn):
            self._keep(learn, [validation.mistakes(learn.epoch, classes, learn.dls.to_uint8)])

    def after_epoch(self, learn: Learner) -> None:
        """Look at the probes if this is an epoch to keep."""
        if learn.epoch in self._kept:
            self._look(learn, learn.epoch)
        if learn.sink is not None:
            learn.sink.flush()

    def after_fit(self, learn: Learner) -> None:
        """Look at the probes once more if training was ended early, inside an epoch or after it."""
        self._validation = None
        if learn.error is None and learn.step and learn.epoch > self._looked_at:
            self._look(learn, learn.epoch)

    # ---- what is kept ---------------------------------------------------------------------------

    def _follow(self, learn: Learner, x: Tensor, y: Tensor) -> None:
        """From now on look at these images; the first look is before training."""
        if x.ndim != 4:
            self._notes.append(f"No probe images: they are {tuple(x.shape)}, not (N, C, H, W).")
            return
        x = x.to(learn.device)
        inputs = x.detach().float().cpu().numpy().copy()
        captions = tuple(learn.dls.captions(y))
        self._keep(learn, [Probes(BEFORE, "", learn.dls.to_uint8(x), inputs, captions)])
        self._follower = Follower(learn.model, x.detach().clone(), self.n_layers, self._kept)
        self._look(learn, BEFORE)

    def _look(self, learn: Learner, epoch: int) -> None:
        if self._follower is None:
            return
        known = len(self._follower.notes)
        self._keep(learn, self._follower.look(epoch))
        self._looked_at = epoch
        if len(self._follower.notes) > known:
            self._write_facts(learn)

    def _keeps_confusion(self, learn: Learner, n_classes: int) -> bool:
        small = n_classes <= budget.CONFUSION_CLASSES and learn.n_epochs <= budget.CONFUSION_EPOCHS
        return small or learn.epoch in self._kept

    def _keeps_mistakes(self, learn: Learner) -> bool:
        shape = self.pictures["worst"].images.shape[1:] if "worst" in self.pictures else (0,)
        n_bytes = (budget.N_WORST + budget.N_PAIRS) * int(np.prod(np.minimum(shape, budget.SIDE)))
        return learn.n_epochs * n_bytes <= budget.MISTAKE_BYTES or learn.epoch in self._kept

    def _keep_worst(self, learn: Learner, validation: Validation) -> None:
        found = validation.worst()
        if found is None:
            return
        rows = zip(
            found.true.tolist(),
            found.predicted.tolist(),
            found.probability.tolist(),
            found.loss.tolist(),
            strict=True,
        )
        captions = [
            f"{learn.dls.label(true)}, predicted {learn.dls.label(said)} ({share:.1%}), "
            f"loss {loss:.2f}"
            for true, said, share, loss in rows
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
        """Say in the run's meta what is kept, and what cannot be."""
        if learn.sink is None:
            return
        facts = {} if self._follower is None else self._follower.facts()
        notes = [*self._notes, *([] if self._follower is None else self._follower.notes)]
        learn.sink.write_meta(
            {"pictures": {**facts, "kept_epochs": list(self._kept), "notes": notes}}
        )


def _is_classification(learn: Learner) -> bool:
    return learn.output.ndim == 2 and learn.y.ndim == 1 and not learn.y.is_floating_point()
