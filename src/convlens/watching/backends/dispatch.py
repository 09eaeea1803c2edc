"""Which kernel sketches a tensor."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

import numpy as np
import torch
from numba.core import config
from torch import Tensor

from convlens.core.buckets import BucketLayout
from convlens.watching.backends import numba_kernel, plain_torch
from convlens.watching.backends.buffers import Buffers

TRITON_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""What Triton's kernel takes. On the CPU, and of other types, values become float32 before."""

PARALLEL_VALUES = 32_768  # below this, waking a second thread costs more than it saves


@cache
def first_process() -> int:
    """The process that watched first; a forked child inherits the answer."""
    return os.getpid()


def numba_threads() -> int:
    """How many threads Numba may use: 1 unless it takes a layer that is safe to enter twice.

    Those are omp and tbb. A workqueue that comes before them is what Numba takes.
    """
    settings = vars(config)
    wanted = str(settings["THREADING_LAYER"]).lower()
    layers = settings["THREADING_LAYER_PRIORITY"] if wanted == "default" else [wanted]
    for layer in layers:
        if layer not in ("omp", "tbb"):
            break
        if _loads(layer):
            return int(settings["NUMBA_NUM_THREADS"])
    return 1


def _loads(layer: str) -> bool:
    """Whether a threading layer and the library that it needs are installed."""
    try:
        import_module(f"numba.np.ufunc.{layer}pool")
    except ImportError:
        return False
    return True


@dataclass
class Sketcher:
    """Adds tensors to buffers with the fastest kernel for their device.

    Numba's threads are used only on a layer that two Python threads may enter, and only in the
    process that watched first: a fork lacks them, and the child of a process that used GNU OpenMP
    (torch does) is killed or hangs when it tries to.
    """

    layout: BucketLayout
    eps: float
    threads: int = field(default_factory=numba_threads)

    def __post_init__(self) -> None:
        first_process()
        self._low = (127 + self.layout.min_exponent) << self.layout.mantissa_bits

    def __call__(
        self,
        x: Tensor,
        channel_axis: int | None,
        buffers: Buffers,
        row: int,
        cursor: Tensor | None = None,
    ) -> None:
        """Add the values of ``x`` to one row.

        Args:
            x: values of any shape, any floating dtype, any memory format.
            channel_axis: the axis of the channels, None if there is none.
            buffers: channels are told apart only if their number agrees.
            row: which row, unless there is a cursor.
            cursor: (1,) int64 on the buffers' device that holds the row instead, -1 for none.
        """
        x = x.detach()
        if x.device != buffers.device:
            x = x.to(buffers.device)
        channels = buffers.flags.shape[1]
        if channel_axis is not None and x.shape[channel_axis] != channels:
            channel_axis = None
        if buffers.rows:
            row = row if cursor is None else int(cursor)
            if row >= 0:
                self._on_cpu(x, channel_axis, buffers, row)
            return
        if cursor is None:
            cursor = buffers.cursor
        if cursor is None:
            cursor = torch.tensor([row], device=buffers.device)
        if channel_axis is None and channels:  # say of no channel that it is dead or silent
            kept = buffers.flags.index_select(0, cursor.clamp(min=0))
            all_set = torch.where(cursor[:, None] < 0, kept, 3)
            buffers.flags.index_copy_(0, cursor.clamp(min=0), all_set)
        if buffers.scratch is not None and x.dtype in TRITON_DTYPES:
            from convlens.watching.backends import cuda

            flat, inner = flatten(x, channel_axis)
            cuda.sketch(
                flat, inner, 0 if channel_axis is None else channels, self.eps, buffers, cursor,
                buffers.scratch,
            )  # fmt: skip
        else:
            plain_torch.sketch(x, channel_axis, self.eps, self._low, buffers, cursor)

    def _on_cpu(self, x: Tensor, channel_axis: int | None, buffers: Buffers, row: int) -> None:
        counts, exact, moments, flags = buffers.rows[row]
        if channel_axis is None:
            flags.fill(3)
            flags = flags[:0]
        double = x.dtype == torch.float64
        if x.dtype != torch.float32 and not double:
            x = x.float()
        flat, inner = flatten(x, channel_axis)
        if flat.numel() == 0:
            exact[0] += 1
            return
        values = flat.numpy()
        eps = np.float64(self.eps) if double else np.float32(self.eps)
        target = self._low - 1, eps, counts, exact, moments, flags
        parts = min(self.threads, torch.get_num_threads())
        if parts > 1 and values.size >= PARALLEL_VALUES and os.getpid() == first_process():
            numba_kernel.sketch_parallel(values, inner, *target, parts)
        else:
            numba_kernel.sketch_serial(values, inner, *target)


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
