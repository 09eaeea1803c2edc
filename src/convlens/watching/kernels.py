"""Which kernel sketches a tensor."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numba.core import config
from numpy.typing import NDArray
from torch import Tensor

from convlens.core.buckets import BucketLayout
from convlens.watching import cpu, plain
from convlens.watching.buffers import Buffers

SIZES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""What the fast kernels take; anything narrower is widened first."""

PARALLEL_VALUES = 32_768  # below this, waking a second thread costs more than it saves


@cache
def first_process() -> int:
    """The process that watched first; a forked child inherits the answer."""
    return os.getpid()


def numba_threads() -> int:
    """How many threads Numba may use safely: 1 unless it will take an omp or tbb layer."""
    settings = vars(config)
    wanted = str(settings["THREADING_LAYER"]).lower()
    named: dict[str, list[str]] = {
        "default": list(settings["THREADING_LAYER_PRIORITY"]),
        "threadsafe": ["tbb", "omp"],
        "forksafe": ["tbb"],  # and workqueue
        "safe": ["tbb"],
    }
    for layer in named.get(wanted, [wanted]):
        if layer == "workqueue":
            break  # Numba would take it, though a layer that comes after it were there
        if _loads(layer):
            return int(settings["NUMBA_NUM_THREADS"])
    return 1


def _loads(layer: str) -> bool:
    """Whether a threading layer is there, and the library that it needs as well."""
    try:
        import_module(f"numba.np.ufunc.{layer}pool")
    except ImportError:
        return False
    return True


@dataclass
class Sketcher:
    """Adds tensors to buffers with the fastest kernel for their device.

    Numba's threads are used only on a layer that two Python threads may enter (omp or tbb), and
    only in the process that first watched: a fork does not take them along, and the child of a
    process that used GNU OpenMP, as torch does, is killed or hangs as soon as it tries.
    """

    layout: BucketLayout
    eps: float
    threads: int = field(default_factory=numba_threads)

    def __post_init__(self) -> None:
        first_process()
        self._low = (127 + self.layout.min_exponent) << self.layout.mantissa_bits
        # Near zero is what it is in the values' own precision; halves are widened.
        self._eps: dict[torch.dtype, np.float32 | np.float64] = {
            dtype: np.float32(self.eps) for dtype in SIZES
        }
        self._eps[torch.float64] = np.float64(self.eps)

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
            buffers: on the device of ``x``; channels are told apart only if their number agrees.
            row: which row.
            cursor: (1,) int64 on the device that holds the row instead, -1 for none.
        """
        channels = buffers.flags.shape[1]
        if channel_axis is not None and x.shape[channel_axis] != channels:
            channel_axis = None
        if channel_axis is None and channels:
            plain.cannot_tell_channels(buffers, row if cursor is None else cursor)
        if buffers.scratch is not None and x.dtype in SIZES:
            self._by_triton(x, channel_axis, buffers, buffers.cursor if cursor is None else cursor)
            return
        if not buffers.rows:
            where = row if cursor is None else cursor
            plain.sketch(x, channel_axis, self.eps, self._low, buffers, where)
            return
        row = row if cursor is None else int(cursor)
        if row < 0:
            return
        if x.dtype not in SIZES:
            x = x.float()
        flat, inner = flatten(x.detach(), channel_axis)
        if flat.numel() == 0:
            buffers.rows[row][1][0] += 1
            return
        values = as_array(flat)
        eps = self._eps[x.dtype]
        counts, exact, moments, flags = buffers.rows[row]
        target = counts, exact, moments, flags[: 0 if channel_axis is None else channels]
        parts = min(self.threads, torch.get_num_threads())
        if parts > 1 and values.size >= PARALLEL_VALUES and os.getpid() == first_process():
            cpu.sketch_parallel(values, inner, self._low - 1, eps, *target, parts)
        else:
            cpu.sketch_serial(values, inner, self._low - 1, eps, *target)

    def _by_triton(
        self, x: Tensor, channel_axis: int | None, buffers: Buffers, cursor: Tensor | None
    ) -> None:
        from convlens.watching import gpu

        assert buffers.scratch is not None
        assert cursor is not None
        flat, inner = flatten(x.detach(), channel_axis)
        channels = 0 if channel_axis is None else buffers.flags.shape[1]
        gpu.sketch(flat, inner, channels, self.eps, self.layout, buffers, cursor, buffers.scratch)


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


def as_array(flat: Tensor) -> NDArray[Any]:
    """The same memory for NumPy, which knows no bfloat16 (here uint16) and is slow with float16.

    Args:
        flat: (n,) contiguous values.

    Returns:
        (n,) float32 or float64 values, uint16 patterns of bfloat16, int16 patterns of float16.
    """
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.uint16).numpy()
    if flat.dtype == torch.float16:
        return flat.view(torch.int16).numpy()
    return flat.numpy()
