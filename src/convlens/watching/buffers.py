"""The memory that kernels add sketches to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from convlens.sketch import BucketLayout, Columns, Ints
from convlens.watching.cpu import Array

N_EXACT = 6  # calls, NaN, −∞, +∞, near zero, at most eps
N_MOMENTS = 3  # number of finite values, mean, M2


class Buffers:
    """Sketches of one layer in the memory of its device: one row for each of K steps.

    Attributes:
        counts: (K, B) int64.
        exact: (K, 6) int64: calls, NaN, −∞, +∞, near zero, at most eps.
        moments: (K, 3) float64: number of finite values, mean, M2.
        flags: (K, C) uint8: bit 0, a value was positive; bit 1, a value was not near zero.
    """

    def __init__(
        self, rows: int, layout: BucketLayout, channels: int, device: torch.device
    ) -> None:
        self.layout = layout
        self.counts = torch.zeros((rows, layout.size), dtype=torch.int64, device=device)
        self.exact = torch.zeros((rows, N_EXACT), dtype=torch.int64, device=device)
        self.moments = torch.zeros((rows, N_MOMENTS), dtype=torch.float64, device=device)
        self.flags = torch.zeros((rows, channels), dtype=torch.uint8, device=device)
        self.rows: list[tuple[Array, Array, Array, Array]] = []
        if device.type == "cpu":
            counts, exact, moments, flags = (t.numpy() for t in self._tensors())
            # Views made once: making four for every call would cost more than a small sketch.
            self.rows = list(zip(counts, exact, moments, flags, strict=True))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.counts, self.exact, self.moments, self.flags

    def take(self, first_step: Ints, last_step: Ints) -> Columns:
        """The first rows as columns, without those in which the layer was not called."""
        k = len(first_step)
        counts, exact, moments, flags = (t[:k].cpu().numpy() for t in self._tensors())
        called = np.flatnonzero(exact[:, 0])
        some = moments[:, 0] > 0
        columns = Columns(
            first_step=first_step,
            last_step=last_step,
            calls=exact[:, 0],
            counts=counts,
            nan=exact[:, 1],
            neg_inf=exact[:, 2],
            pos_inf=exact[:, 3],
            near_zero=exact[:, 4],
            at_most_eps=exact[:, 5],
            mean=np.where(some, moments[:, 1], np.nan),
            m2=moments[:, 2],
            positive=(flags & 1).astype(np.bool_),
            active=(flags & 2).astype(np.bool_),
        )
        return columns[called]

    def clear(self) -> None:
        """Empty every row."""
        for tensor in self._tensors():
            tensor.zero_()
