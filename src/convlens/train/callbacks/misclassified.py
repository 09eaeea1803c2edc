"""Collects what a classifier gets wrong in a validation, and how sure it was, batch by batch.

Nothing waits for the device before the validation has ended, and memory is bounded: of each batch
only those images are kept that may still be among the worst of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from convlens.core.snapshots import N_WORST, Calibration, Confusion, Mistakes
from convlens.core.terminal import printable
from convlens.train.callbacks import snapshot_limits as limits
from convlens.train.callbacks.calibrating import Calibrating


@dataclass(frozen=True)
class Classified:
    """B classified images. All fields are (B,), but for x, the images (B, C, H, W)."""

    loss: Tensor
    true: Tensor
    predicted: Tensor
    probability: Tensor
    item: Tensor
    x: Tensor


def classify(output: Tensor, y: Tensor, x: Tensor, first: int) -> Classified:
    """The predictions for one batch: output (B, K) before the softmax, y (B,), x (B, C, H, W).

    ``first`` is the number of validation images before it. Labels may be no class, such as -100.
    """
    output = output.detach()
    if output.dtype in (torch.float16, torch.bfloat16):
        output = output.float()
    losses = F.cross_entropy(output, y, reduction="none")
    probability, predicted = output.softmax(dim=1).max(dim=1)
    item = torch.arange(first, first + len(y), device=y.device)
    return Classified(losses, y, predicted, probability, item, x.detach())


class Worst:
    """The ``size`` images of the largest loss so far, made smaller by ``shrink``.

    With ``per_pair`` only the worst of each pair of true and predicted class that differ.
    """

    def __init__(
        self,
        size: int,
        shrink: Callable[[Tensor], Tensor] = lambda x: x,
        *,
        per_pair: bool = False,
    ) -> None:
        self._size, self._shrink, self._per_pair = size, shrink, per_pair
        self._held: Classified | None = None
        self._score = torch.empty(0)

    def add(self, new: Classified, n_classes: int) -> None:
        """Add a batch."""
        held = self._held
        every = new if held is None else _joined(held, new)
        score = self._scores(every, n_classes)
        top = score.topk(min(self._size, len(score))).indices
        n_held = 0 if held is None else len(held.loss)
        x = self._shrink(new.x[(top - n_held).clamp(min=0)])
        if held is not None:
            old = held.x[top.clamp(max=n_held - 1)]
            x = torch.where((top < n_held)[:, None, None, None], old, x)
        self._held = Classified(**{n: v[top] for n, v in _vectors(every).items()}, x=x)
        self._score = score[top]

    def result(self, most: int | None = None) -> Classified | None:
        """The worst, by descending loss; None if there are none. This waits for the device."""
        if self._held is None:
            return None
        kept = torch.nonzero(~(self._score < 0))[:most, 0]  # a loss that is NaN is kept
        if not len(kept):
            return None
        return Classified(**{n: v[kept] for n, v in vars(self._held).items()})

    def _scores(self, every: Classified, n_classes: int) -> Tensor:
        """The loss, or -1 where an image is not kept.

        Those have no class, or per pair: are right, or not the worst of their pair.
        """
        known = (every.true >= 0) & (every.true < n_classes)
        if not self._per_pair:
            return torch.where(known, every.loss, -1.0)
        wrong = known & (every.true != every.predicted)
        pair = torch.where(wrong, every.true * n_classes + every.predicted, 0)
        score = torch.where(wrong, every.loss, -1.0)
        best = score.new_full((n_classes * n_classes,), -1.0)
        best.scatter_reduce_(0, pair, score, "amax")
        return torch.where(score == best[pair], score, -1.0)


class Misclassified:
    """The mistakes, the confusion matrix and the calibration of one validation.

    Args:
        n_worst: images to keep at their full size.
        side: pixels along the longer side of the others at most.
        calibrate: whether to collect the calibration.
    """

    def __init__(self, n_worst: int, side: int = limits.SIDE, *, calibrate: bool = True) -> None:
        self.n_classes = 0  # 0 before the first batch
        self._n_seen, self._n_worst, self._side = 0, n_worst, side
        self._calibrating = Calibrating() if calibrate else None
        self._top = Worst(max(n_worst, N_WORST), self._shrink)
        self._pairs = Worst(limits.N_PAIRS, self._shrink, per_pair=True)
        self._full: Worst | None = None  # of images that are shrunk for the others
        self._counts: Tensor | None = None  # (K·K + 1,): the last is for labels that are no class
        self._shape: tuple[int, int] | None = None

    def add(self, output: Tensor, y: Tensor, x: Tensor) -> None:
        """Add a batch; see `classify`."""
        batch = classify(output, y, x, self._n_seen)
        self._n_seen += len(y)
        self.n_classes = n = output.shape[1]
        if n <= limits.MOST_CLASSES:
            if self._counts is None:
                self._counts = torch.zeros(n * n + 1, dtype=torch.int64, device=output.device)
            known = (batch.true >= 0) & (batch.true < n)
            cell = torch.where(known, batch.true * n + batch.predicted, n * n)
            self._counts.index_add_(0, cell, torch.ones_like(cell))
        if self._calibrating is not None:
            self._calibrating.add(output, y)
        if x.ndim == 4:
            self._add_images(batch)

    def _add_images(self, batch: Classified) -> None:
        if self._shape is None:
            height, width = batch.x.shape[2:]
            self._shape = small_size(height, width, self._side)
            self._full = None if self._shape == (height, width) else Worst(self._n_worst)
        self._top.add(batch, self.n_classes)
        if self._full is not None:
            self._full.add(batch, self.n_classes)
        if self._counts is not None:
            self._pairs.add(batch, self.n_classes)

    def worst(self, most: int | None = None) -> Classified | None:
        """The images of the largest loss at their full size; None without images.

        ``most`` of them, at most ``n_worst``.
        """
        return (self._full or self._top).result(min(most or self._n_worst, self._n_worst))

    def calibration(self, epoch: int) -> Calibration | None:
        """The calibration; None without images. This waits for the device."""
        return None if self._calibrating is None else self._calibrating.result(epoch)

    def confusion(self, epoch: int, classes: tuple[str, ...]) -> Confusion | None:
        """The confusion matrix, rows the true class; None without batches or with too many classes.

        This waits for the device.
        """
        if self._counts is None:
            return None
        n = self.n_classes
        return Confusion(epoch, "", self._counts[:-1].view(n, n).cpu().numpy().copy(), classes)

    def mistakes(
        self,
        epoch: int,
        classes: tuple[str, ...],
        to_uint8: Callable[[Tensor], NDArray[np.uint8]],
        files: Sequence[str] = (),
    ) -> Mistakes | None:
        """The worst of all, and the worst of each confused pair; None without images.

        ``files`` are those of all validation images, in their order, if they are known.
        """
        found = [self._top.result(N_WORST), self._pairs.result()]
        found = [part for part in found if part is not None]
        if not found:
            return None
        every = _joined(*found)
        values = {name: v.cpu().numpy() for name, v in _vectors(every).items()}
        _, once = np.unique(values["item"], return_index=True)
        kept = once[np.argsort(-values["loss"][once], kind="stable")]
        items = values["item"][kept].astype(np.int64)
        known = len(files) > items.max()
        x = torch.cat([part.x for part in found])[torch.from_numpy(kept).to(every.loss.device)]
        return Mistakes(
            epoch,
            "",
            images=to_uint8(x),
            true=values["true"][kept].astype(np.int64),
            predicted=values["predicted"][kept].astype(np.int64),
            probability=values["probability"][kept].astype(np.float32),
            loss=values["loss"][kept].astype(np.float32),
            item=items,
            classes=classes,
            files=tuple(printable(files[int(i)]) for i in items) if known else (),
        )

    def _shrink(self, x: Tensor) -> Tensor:
        """Images of at most ``side`` pixels, in the size of the validation's first image."""
        assert self._shape is not None
        return x if x.shape[2:] == self._shape else F.adaptive_avg_pool2d(x.float(), self._shape)


def small_size(height: int, width: int, side: int = limits.SIDE) -> tuple[int, int]:
    """The size of an image scaled down so that its longer side has at most ``side`` pixels."""
    longer = max(height, width, side)
    return max(1, round(height * side / longer)), max(1, round(width * side / longer))


def _vectors(classified: Classified) -> dict[str, Tensor]:
    return {f.name: getattr(classified, f.name) for f in fields(Classified) if f.name != "x"}


def _joined(*parts: Classified) -> Classified:
    """All of them, without their images."""
    every = [_vectors(part) for part in parts]
    joined = {name: torch.cat([vectors[name] for vectors in every]) for name in every[0]}
    return Classified(**joined, x=torch.empty(0))
