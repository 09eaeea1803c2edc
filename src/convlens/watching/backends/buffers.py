"""The memory that kernels add sketches to."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.core.buckets import BucketLayout, Floats, Ints
from convlens.core.columns import Columns, narrow
from convlens.watching.notes import CannotSketchError

if TYPE_CHECKING:
    from convlens.watching.backends.cuda import Scratch

N_EXACT = 6  # calls, NaN, −∞, +∞, near zero, at most eps


def buffer_device(device: torch.device) -> torch.device:
    """Where the buffers for values on this device lie: on it, if it has float64.

    Apple's MPS has not: its values are copied to the host and sketched there.

    Raises:
        CannotSketchError: for the meta device.
    """
    if device.type == "meta":
        raise CannotSketchError("it is on the meta device and has no values")
    return torch.device("cpu") if device.type == "mps" else device


class Buffers:
    """Sketches of one series: one row for each of K columns, on one device.

    Attributes:
        device: where they lie.
        counts: (K, B) int64.
        exact: (K, 6) int64: calls, NaN, −∞, +∞, near zero, at most eps.
        moments: (K, 3) float64: number of finite values, mean, M2.
        flags: (K, C) uint8: bit 0, a value was positive; bit 1, a value was not near zero.
        batch_norm: (K, 4) float64 for batch normalization, else (K, 0); see `Columns`.
        error: (K, 5) float64 if only a sample of the images is sketched, else (K, 0).
        rows: on the CPU, the rows of the first four as NumPy arrays, else empty.
        cursor: (1,) int64 on the device, the row to add to; None if the row is given as a number.
        scratch: what Triton's kernel needs, on a CUDA device.
    """

    def __init__(
        self,
        rows: int,
        layout: BucketLayout,
        channels: int,
        device: torch.device,
        *,
        batch_norm: bool = False,
        sampled: bool = False,
        cursor: Tensor | None = None,
    ) -> None:
        self.device, self.layout, self.cursor = device, layout, cursor
        self.scratch = _scratch(channels, device)

        def zeros(width: int, dtype: torch.dtype) -> Tensor:
            if device.type != "cpu":
                return torch.zeros((rows, width), dtype=dtype, device=device)
            # torch.zeros may start torch's threads, which a process that is forked later lacks.
            like = torch.empty(0, dtype=dtype).numpy().dtype
            return torch.from_numpy(np.zeros((rows, width), like))

        self.counts = zeros(layout.size, torch.int64)
        self.exact = zeros(N_EXACT, torch.int64)
        self.moments = zeros(3, torch.float64)
        self.flags = zeros(channels, torch.uint8)
        self.batch_norm = zeros(4 if batch_norm else 0, torch.float64)
        self.error = zeros(5 if sampled else 0, torch.float64)
        self.rows = self._rows()

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order above."""
        return (*self.sketched(), self.batch_norm, self.error)

    def sketched(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Those that the kernels add to."""
        return self.counts, self.exact, self.moments, self.flags

    def like(self, tensors: Sequence[Tensor]) -> Buffers:
        """The same with other tensors for the kernels to add to."""
        other = copy(self)
        other.counts, other.exact, other.moments, other.flags = tensors
        other.rows = other._rows()
        return other

    def _rows(self) -> list[tuple[NDArray[Any], ...]]:
        """Views made once: making four for every call would cost more than a small sketch."""
        if self.device.type != "cpu":
            return []
        return list(zip(*(tensor.numpy() for tensor in self.sketched()), strict=True))

    def take(self, first_step: Ints, last_step: Ints, offset: int = 0) -> Columns:
        """A copy of the rows from ``offset`` on as columns; see `columns_of`."""
        rows = slice(offset, offset + len(first_step))
        return columns_of([t[rows] for t in self.tensors()], first_step, last_step)

    def clear(self) -> None:
        """Empty every row."""
        for tensor in self.tensors():
            if self.device.type == "cpu":
                tensor.numpy().fill(0)  # torch would wake its threads for it
            else:
                tensor.zero_()


def columns_of(rows: Sequence[Tensor], first_step: Ints, last_step: Ints) -> Columns:
    """Rows of each of `Buffers.tensors` as columns, without the rows that hold no call.

    Returns:
        Copies, with counts in as few bits as the number of values needs.
    """
    arrays = [tensor.numpy(force=True) for tensor in rows]
    used = (arrays[1][:, 0] > 0) & (first_step >= 0)
    called = slice(None) if used.all() else np.flatnonzero(used)
    exact, moments, flags, batch_norm, error = (array[called].copy() for array in arrays[1:])
    # A training step waits for this: the counts, nearly all there is, are copied once.
    counts = narrow(arrays[0][called], peak=int(moments[:, 0].max(initial=0)))
    reals: dict[str, Floats] = {
        "mean": np.where(moments[:, 0] > 0, moments[:, 1], np.nan),
        "m2": moments[:, 2],
        "batch_norm": batch_norm,
        "error": error,
    }
    return Columns(
        first_step=first_step[called].copy(),
        last_step=last_step[called].copy(),
        calls=exact[:, 0],
        counts=counts,
        nan=exact[:, 1],
        neg_inf=exact[:, 2],
        pos_inf=exact[:, 3],
        near_zero=exact[:, 4],
        at_most_eps=exact[:, 5],
        positive=(flags & 1).astype(np.bool_),
        active=(flags & 2).astype(np.bool_),
        **reals,
    )


def _scratch(channels: int, device: torch.device) -> Scratch | None:
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from convlens.watching.backends.cuda import Scratch

    return Scratch(channels, device)
