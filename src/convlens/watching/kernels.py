"""Which kernel sketches a tensor, and the buffers that it adds to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import torch
from numba.core import config
from torch import Tensor

from convlens.sketch import BucketLayout, Columns, Ints
from convlens.watching import cpu, plain
from convlens.watching.cpu import Array

N_EXACT = 6  # calls, NaN, −∞, +∞, near zero, at most eps
N_MOMENTS = 3  # number of finite values, mean, M2
PARALLEL_VALUES = 32_768  # below this, waking a second thread costs more than it saves


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


def numba_threads() -> int:
    """How many threads Numba may use safely: 1 unless an omp or tbb layer is there."""
    settings = vars(config)
    wanted = settings["THREADING_LAYER"]
    pools = {"omp": "omppool", "tbb": "tbbpool"}
    names = [wanted] if wanted in pools else list(pools) if wanted != "workqueue" else []
    ready = any(find_spec(f"numba.np.ufunc.{pools[name]}") for name in names)
    return int(settings["NUMBA_NUM_THREADS"]) if ready else 1


@dataclass
class Sketcher:
    """Adds tensors to buffers with the fastest kernel for their device.

    Numba's threads are used only on a layer that two Python threads may enter (omp or tbb), and
    only in the process that first used them: a fork does not take them along, and the child of a
    process that used GNU OpenMP is killed as soon as it tries.
    """

    layout: BucketLayout
    eps: float
    threads: int = field(default_factory=numba_threads)
    pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        self._low = (127 + self.layout.min_exponent) << self.layout.mantissa_bits
        self._eps = {np.dtype(t): np.dtype(t).type(self.eps) for t in ("float32", "float64")}

    def __call__(self, x: Tensor, channel_axis: int | None, buffers: Buffers, row: int) -> None:
        """Add the values of ``x`` to one row.

        Args:
            x: values of any shape, any floating dtype, any memory format.
            channel_axis: the axis of the channels, None if there is none.
            buffers: on the device of ``x``; channels are told apart only if their number agrees.
            row: which row.
        """
        channels = buffers.flags.shape[1]
        if channel_axis is not None and x.shape[channel_axis] != channels:
            channel_axis = None
        if not buffers.rows:
            plain.sketch(x, channel_axis, self.eps, self._low, buffers, row)
            return
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        flat, inner = flatten(x.detach(), channel_axis)
        if flat.numel() == 0:
            buffers.rows[row][1][0] += 1
            return
        values = flat.numpy()
        bits, eps = cpu.patterns(values), self._eps[values.dtype]
        counts, exact, moments, flags = buffers.rows[row]
        target = counts, exact, moments, flags[: 0 if channel_axis is None else channels]
        parts = min(self.threads, torch.get_num_threads())
        if parts > 1 and values.size >= PARALLEL_VALUES and os.getpid() == self.pid:
            cpu.sketch_parallel(values, bits, inner, self._low, eps, *target, parts)
        else:
            cpu.sketch_serial(values, bits, inner, self._low, eps, *target)


def flatten(x: Tensor, channel_axis: int | None) -> tuple[Tensor, int]:
    """The values in the order of memory, and how many of one channel lie side by side.

    Both memory formats are read in place; a tensor with gaps or in another order is copied.
    """
    if x.is_contiguous():
        inner = 1
        if channel_axis is not None:
            for size in x.shape[channel_axis % x.ndim + 1 :]:
                inner *= size
        return x.view(-1), inner
    if channel_axis == 1 and x.ndim > 2:
        last = x.movedim(1, -1)
        if last.is_contiguous():
            return last.view(-1), 1
    return flatten(x.contiguous(), channel_axis)
