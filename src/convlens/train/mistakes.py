"""What a classifier gets wrong in a validation, gathered batch by batch.

Nothing here waits for a device before the validation has ended, and memory is bounded: of each
batch those images are kept that may still be among the worst of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from convlens.core.snapshots import Confusion, Mistakes
from convlens.train import budget


@dataclass(frozen=True)
class Judged:
    """B images that a model has classified. All (B,), but for x, the images (B, C, H, W)."""

    loss: Tensor
    true: Tensor
    predicted: Tensor
    probability: Tensor
    item: Tensor
    x: Tensor


def judge(output: Tensor, y: Tensor, x: Tensor, first: int) -> Judged:
    """What a batch of a validation has come to.

    Args:
        output: (B, K), before the softmax, of any floating type.
        y: (B,) true classes; one that is none, such as the -100 that a loss ignores, is no mistake.
        x: (B, C, H, W).
        first: how many images of the validation came before.
    """
    output = output.detach()
    if output.dtype in (torch.float16, torch.bfloat16):
        output = output.float()
    losses = F.cross_entropy(output, y, reduction="none")
    probability, predicted = output.softmax(dim=1).max(dim=1)
    item = torch.arange(first, first + len(y), device=y.device)
    return Judged(losses, y, predicted, probability, item, x.detach())


class Worst:
    """The images of the largest loss so far.

    Args:
        size: how many.
        shrink: makes images smaller before they are kept.
        per_pair: of each true and predicted class that differ only the worst.
    """

    def __init__(
        self,
        size: int,
        shrink: Callable[[Tensor], Tensor] = lambda x: x,
        *,
        per_pair: bool = False,
    ) -> None:
        self._size, self._shrink, self._per_pair = size, shrink, per_pair
        self._held: Judged | None = None
        self._score = torch.empty(0)

    def add(self, new: Judged, n_classes: int) -> None:
        """Take in a batch."""
        held = self._held
        every = new if held is None else _joined(held, new)
        score = self._scores(every, n_classes)
        top = score.topk(min(self._size, len(score))).indices
        n_held = 0 if held is None else len(held.loss)
        x = self._shrink(new.x[(top - n_held).clamp(min=0)])
        if held is not None:
            old = held.x[top.clamp(max=n_held - 1)]
            x = torch.where((top < n_held)[:, None, None, None], old, x)
        self._held = Judged(**{n: v[top] for n, v in _vectors(every).items()}, x=x)
        self._score = score[top]

    def result(self, most: int | None = None) -> Judged | None:
        """The worst, the greatest loss first; None if there were none. This waits for a device."""
        if self._held is None:
            return None
        kept = torch.nonzero(~(self._score < 0))[:most, 0]  # a loss that is NaN is kept
        if not len(kept):
            return None
        parts = {f.name: getattr(self._held, f.name)[kept] for f in fields(Judged)}
        return Judged(**parts)

    def _scores(self, every: Judged, n_classes: int) -> Tensor:
        """The loss, below zero where an image is not to be kept.

        That is where it has no class, and per pair where its confusion has a larger one.
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


class Confusions:
    """How often each class was taken for which, counted on the device.

    Args:
        n_classes: K.
        device: where the outputs are.
    """

    def __init__(self, n_classes: int, device: torch.device) -> None:
        self._n = n_classes
        self._counts = torch.zeros(n_classes * n_classes + 1, dtype=torch.int64, device=device)

    def add(self, batch: Judged) -> None:
        """Count a batch; a label that is no class is not counted."""
        known = (batch.true >= 0) & (batch.true < self._n)
        cell = torch.where(known, batch.true * self._n + batch.predicted, self._n * self._n)
        self._counts.index_add_(0, cell, torch.ones_like(cell))

    def result(self) -> NDArray[np.int64]:
        """(K, K), rows the true class. This waits for the device."""
        return self._counts[:-1].view(self._n, self._n).cpu().numpy().copy()


class Validation:
    """One validation of a classifier.

    Args:
        n_worst: how many images to keep at their full size.
    """

    def __init__(self, n_worst: int) -> None:
        self._n_seen, self._n_classes, self._n_worst = 0, 0, n_worst
        self._top = Worst(max(n_worst, budget.N_WORST), self._shrink)
        self._pairs = Worst(budget.N_PAIRS, self._shrink, per_pair=True)
        self._full: Worst | None = None  # of images that are made smaller for the others
        self._confusions: Confusions | None = None
        self._shape: tuple[int, int] | None = None

    def add(self, output: Tensor, y: Tensor, x: Tensor) -> None:
        """Take in a batch; see `judge`."""
        batch = judge(output, y, x, self._n_seen)
        self._n_seen += len(y)
        self._n_classes = output.shape[1]
        if self._n_classes <= budget.MOST_CLASSES:
            self._confusions = self._confusions or Confusions(self._n_classes, output.device)
            self._confusions.add(batch)
        if x.ndim == 4:
            self._add_images(batch)

    def _add_images(self, batch: Judged) -> None:
        if self._shape is None:
            height, width = batch.x.shape[2:]
            self._shape = small_size(height, width)
            self._full = None if self._shape == (height, width) else Worst(self._n_worst)
        self._top.add(batch, self._n_classes)
        if self._full is not None:
            self._full.add(batch, self._n_classes)
        if self._confusions is not None:
            self._pairs.add(batch, self._n_classes)

    def worst(self) -> Judged | None:
        """The worst of all at their full size, the greatest loss first; None without images."""
        return (self._full or self._top).result(self._n_worst)

    @property
    def n_classes(self) -> int:
        """Numbers in an output, 0 before the first batch."""
        return self._n_classes

    def confusion(self, epoch: int, classes: tuple[str, ...]) -> Confusion | None:
        """The table of all batches; None without batches, or with too many classes."""
        if self._confusions is None:
            return None
        return Confusion(epoch, "", self._confusions.result(), classes)

    def mistakes(
        self,
        epoch: int,
        classes: tuple[str, ...],
        to_uint8: Callable[[Tensor], NDArray[np.uint8]],
    ) -> Mistakes | None:
        """The worst of all, and of each confusion its worst; None without images.

        Args:
            epoch: the epoch of the validation.
            classes: the classes' names.
            to_uint8: makes pictures of images as the network gets them.
        """
        found = [self._top.result(budget.N_WORST), self._pairs.result()]
        found = [part for part in found if part is not None]
        if not found:
            return None
        every = _joined(*found)
        values = {name: v.cpu().numpy() for name, v in _vectors(every).items()}
        _, once = np.unique(values["item"], return_index=True)
        kept = once[np.argsort(-values["loss"][once], kind="stable")]
        x = torch.cat([part.x for part in found])[torch.from_numpy(kept).to(every.loss.device)]
        return Mistakes(
            epoch,
            "",
            images=to_uint8(x),
            true=values["true"][kept].astype(np.int64),
            predicted=values["predicted"][kept].astype(np.int64),
            probability=values["probability"][kept].astype(np.float32),
            loss=values["loss"][kept].astype(np.float32),
            item=values["item"][kept].astype(np.int64),
            classes=classes,
        )

    def _shrink(self, x: Tensor) -> Tensor:
        """Images of at most 64 pixels a side; all of one validation have the first one's size."""
        assert self._shape is not None
        return x if x.shape[2:] == self._shape else F.adaptive_avg_pool2d(x.float(), self._shape)


def small_size(height: int, width: int) -> tuple[int, int]:
    """The size of an image whose longer side has at most 64 pixels."""
    longer = max(height, width, budget.SIDE)
    return (
        max(1, round(height * budget.SIDE / longer)),
        max(1, round(width * budget.SIDE / longer)),
    )


def _vectors(judged: Judged) -> dict[str, Tensor]:
    return {f.name: getattr(judged, f.name) for f in fields(Judged) if f.name != "x"}


def _joined(*parts: Judged) -> Judged:
    """All of them, without their images."""
    every = [_vectors(part) for part in parts]
    joined = {name: torch.cat([vectors[name] for vectors in every]) for name in every[0]}
    return Judged(**joined, x=torch.empty(0))
