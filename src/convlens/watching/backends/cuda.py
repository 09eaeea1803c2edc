"""The sketch of a tensor in CUDA memory: how the kernel is launched.

The kernel reads the row that it adds to from device memory, so that a captured CUDA graph can be
replayed for any row. Nothing here waits for the device or allocates. The module imports Triton:
import it only where Triton is installed.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from convlens.watching.backends.triton_kernel import sketch_kernel

if TYPE_CHECKING:
    from convlens.watching.backends.buffers import Buffers

TILE: Final = 2048  # values in a tile
WARPS: Final = 8
REGISTERS: Final = 80  # of a thread: with more, only two programs fit a multiprocessor
WIDTHS: Final = (4, 16, 64)  # columns of a tile: few, since the kernel is compiled for each
PROGRAMS_PER_SM: Final = 3
MAX_PROGRAMS: Final = 1024


class Scratch:
    """Memory that the programs of one launch share; every `Buffers` has its own.

    Every launch leaves it as it found it.

    Attributes:
        partials: (3, 1024) float64: number of finite values, mean, M2 of each program.
        seen: (C,) int32: the channel flags found so far.
        done: (1,) int32: how many programs are done.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.partials = torch.zeros((3, MAX_PROGRAMS), dtype=torch.float64, device=device)
        self.seen = torch.zeros(channels, dtype=torch.int32, device=device)
        self.done = torch.zeros(1, dtype=torch.int32, device=device)


@cache
def _programs_at_once(device: torch.device) -> int:
    """How many programs keep the whole device busy."""
    if device.type != "cuda":  # Triton's interpreter: few, but several
        return 4
    properties = torch.cuda.get_device_properties(device)
    return min(MAX_PROGRAMS, PROGRAMS_PER_SM * properties.multi_processor_count)


def eps_pattern(eps: float, dtype: torch.dtype) -> int:
    """The bits of ``eps`` rounded to the type that values of ``dtype`` are widened to."""
    if dtype == torch.float64:
        return int(struct.unpack("<q", struct.pack("<d", eps))[0])
    return int(torch.tensor(eps, dtype=torch.float32).view(torch.int32))


def sketch(
    values: Tensor,
    inner: int,
    channels: int,
    eps: float,
    target: Buffers,
    cursor: Tensor,
    scratch: Scratch,
) -> None:
    """Add values to the row that ``cursor`` names, without waiting for the device.

    Args:
        values: (n,) contiguous, in any order in which value i has channel ``i // inner % C``;
            float16, bfloat16, float32 or float64.
        inner: values of one channel that lie side by side; n is a multiple of C·inner.
        channels: C, 0 if channels are not told apart.
        eps: bound of near zero.
        target: on the device of the values, with rows of C flags and three mantissa bits.
        cursor: (1,) int64 on that device; nothing is added if it is no row (−1).
        scratch: the target's own.
    """
    n, layout = values.numel(), target.layout
    flagged = channels > 0 and n > 0
    by_column = flagged and inner == 1
    cols = (channels if by_column else inner) if flagged else WIDTHS[-1]
    rows = n // cols if flagged else -(-n // cols)
    width = next((w for w in WIDTHS if cols <= w), WIDTHS[-1])
    height = TILE // width
    across = -(-cols // width)
    tiles = -(-rows // height) * across
    programs = max(1, min(tiles, _programs_at_once(values.device)))
    if by_column and across <= programs:
        programs -= programs % across  # then each stays with its columns
    arguments = (
        values, cursor, target.counts, target.exact, target.moments, target.flags,
        scratch.partials, scratch.seen, scratch.done, target.counts.shape[0], n, rows, cols,
        tiles, across, max(channels, 1), eps_pattern(eps, values.dtype),
        (127 + layout.min_exponent) << layout.mantissa_bits, layout.size,
        flagged and not by_column, by_column, by_column and programs % across == 0,
        max(channels, cols) * height >= 2**31,
        height, width, MAX_PROGRAMS,
    )  # fmt: skip
    launch: Any = sketch_kernel[(programs,)]
    if values.is_cuda and values.device.index != torch.cuda.current_device():
        with torch.cuda.device(values.device):  # Triton launches on the current one
            launch(*arguments, num_warps=WARPS, maxnreg=REGISTERS)
    else:
        launch(*arguments, num_warps=WARPS, maxnreg=REGISTERS)
