"""The sketch of a tensor in CUDA memory: one fused pass, written in Triton.

The values are read once, as a table whose rows or columns are channels, in tiles that a grid of
programs shares out. Buckets, NaN and infinities are counted by one `tl.histogram` in shared memory:
since Triton 3.7 that is an atomic increment for each value, which the hardware joins within a warp
where the addresses are equal, and neighbouring activations are often in the same bucket. Only what
a program has counted in the end goes to global memory: integers by atomic additions, whose order
changes nothing; moments, whose order would, through a list of partial results that the program
which is done last joins in a fixed order. So the same tensor gives the same sketch, bit for bit.

Which row is added to is read from device memory, so that a captured CUDA graph can be replayed for
any row. Nothing here waits for the device. This module imports Triton: check that it is there.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Final, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from convlens.sketch import BucketLayout

TILE: Final = 4096  # values in a tile, 16 for each thread
WARPS: Final = 8
WIDTHS: Final = (4, 16, 64)  # columns of a tile: few, since the kernel is compiled for each
PROGRAMS_PER_SM: Final = 4
MAX_PROGRAMS: Final = 1024
DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BINS = tl.constexpr(1024)  # the layout's buckets, NaN, −∞, +∞, and one for what lies outside


class Target(Protocol):
    """What a sketch is added to: `convlens.watching.buffers.Buffers` on a CUDA device."""

    counts: Tensor  # (K, B) int64
    exact: Tensor  # (K, 6) int64
    moments: Tensor  # (K, 3) float64
    flags: Tensor  # (K, C) uint8


class Scratch:
    """What the programs of one launch tell each other; each `Target` needs one of its own.

    Every launch leaves it as it found it, so it is allocated once.

    Attributes:
        partials: (3, 1024) float64: number of finite values, mean, M2 of each program.
        seen: (C,) int32: the channel flags found so far.
        done: (1,) int32: how many programs are done.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.partials = torch.zeros((3, MAX_PROGRAMS), dtype=torch.float64, device=device)
        self.seen = torch.zeros(channels, dtype=torch.int32, device=device)
        self.done = torch.zeros(1, dtype=torch.int32, device=device)


@triton.jit
def _bucket(
    bits: tl.tensor,
    magnitude: tl.tensor,
    infinity: tl.constexpr,
    low: tl.tensor,
    middle: tl.constexpr,
) -> tl.tensor:
    """The bucket of each value; NaN, −∞ and +∞ come after the layout's 2·middle + 1."""
    if bits.dtype == tl.int64:
        raw = ((magnitude >> 49) - ((1023 - 127) << 3)).to(tl.int32)
    else:
        raw = magnitude >> 20
    inside = tl.minimum(tl.maximum(raw - (low - 2), 1), middle)
    inside = tl.where(magnitude == 0, 0, inside)
    bucket = middle + tl.where(bits < 0, -inside, inside)
    special = tl.where(magnitude > infinity, 1, tl.where(bits < 0, 2, 3))
    return tl.where(magnitude >= infinity, 2 * middle + special, bucket)


@triton.jit
def _flag(seen: tl.tensor, channel: tl.tensor, inside: tl.tensor, found: tl.tensor) -> None:
    """Join the flags of some channels; almost always they are known already and nothing is sent.

    Args:
        seen: pointer to (C,) int32.
        channel: which channels.
        inside: whether there is such a channel.
        found: how many values of each were positive, and 65,536 times how many not near zero.
    """
    flags = ((found & 0xFFFF) != 0).to(tl.int32) | (((found >> 16) != 0).to(tl.int32) << 1)
    known = tl.load(seen + channel, mask=inside, other=3, cache_modifier=".cg")
    tl.atomic_or(seen + channel, flags, mask=(flags & ~known) != 0, sem="relaxed")


@triton.jit
def _join_moments(
    partials: tl.tensor, moments: tl.tensor, programs: tl.tensor, most: tl.constexpr
) -> None:
    """Join the programs' moments in a fixed order, and them to (n, mean, M2), by Chan's rule."""
    k = tl.arange(0, most)
    there = k < programs
    n = tl.load(partials + k, mask=there, other=0.0, cache_modifier=".cg")
    mean = tl.load(partials + most + k, mask=there, other=0.0, cache_modifier=".cg")
    m2 = tl.load(partials + 2 * most + k, mask=there, other=0.0, cache_modifier=".cg")
    total = tl.sum(n)
    if total > 0:
        # One of the means as shift: equal means then have no deviation at all.
        shift = tl.max(tl.where(n > 0, mean, float("-inf")))
        delta = tl.where(n > 0, mean - shift, 0.0)
        offset = tl.sum(delta * (n / total))
        own_mean = shift + offset
        own_m2 = tl.sum(m2) + tl.maximum(tl.sum(n * delta * delta) - total * offset * offset, 0.0)
        before = tl.load(moments)
        mean_before = tl.load(moments + 1)
        m2_before = tl.load(moments + 2)
        if before > 0:
            apart = own_mean - mean_before
            share = total / (before + total)
            own_m2 += m2_before + apart * apart * before * share
            own_mean = mean_before + apart * share
        tl.store(moments, before + total)
        tl.store(moments + 1, own_mean)
        tl.store(moments + 2, own_m2)


@triton.jit
def _join_flags(
    seen: tl.tensor, flags: tl.tensor, channels: tl.tensor, width: tl.constexpr
) -> None:
    """Join the channel flags to those of the row, and clear them for the next launch."""
    for first in range(0, channels, width):
        c = first + tl.arange(0, width)
        there = c < channels
        found = tl.load(seen + c, mask=there, other=0, cache_modifier=".cg")
        before = tl.load(flags + c, mask=there, other=0)
        tl.store(flags + c, before | found.to(tl.uint8), mask=there)
        tl.store(seen + c, tl.zeros((width,), tl.int32), mask=there)


@triton.jit(
    do_not_specialize=["rows", "tiles", "tiles_across", "channels", "eps", "low", "steps"],
    do_not_specialize_on_alignment=["channels"],
)
def sketch_kernel(
    x: tl.tensor, cursor: tl.tensor, counts: tl.tensor, exact: tl.tensor, moments: tl.tensor, flags: tl.tensor,
    partials: tl.tensor, seen: tl.tensor, done: tl.tensor, steps: tl.tensor, n: tl.tensor, rows: tl.tensor, cols: tl.tensor,
    tiles: tl.tensor, tiles_across: tl.tensor, channels: tl.tensor, eps: tl.tensor, low: tl.tensor,
    size: tl.constexpr, by_row: tl.constexpr, by_column: tl.constexpr, wide: tl.constexpr,
    height: tl.constexpr, width: tl.constexpr, most: tl.constexpr,
) -> None:  # fmt: skip
    """Add the values to one row of a layer's buffers.

    Args:
        x: (n,) values as they lie in memory, read as a table of ``rows`` and ``cols``.
        cursor: (1,) int64, which row of the buffers; outside 0 to ``steps`` − 1 nothing is done.
        counts: (K, B) int64; exact: (K, 6) int64; moments: (K, 3) float64; flags: (K, C) uint8.
        partials: see `Scratch`, as ``seen`` and ``done``.
        steps: K.
        n: number of values.
        rows: of the table; row r is channel r % C if ``by_row``.
        cols: of the table; a column is a channel if ``by_column``.
        tiles: number of tiles, each of ``height`` rows and ``width`` columns.
        tiles_across: how many of them lie side by side.
        channels: C.
        eps: the bits of the bound of near zero, as a number of the widened type.
        low: raw bucket where the layout's octaves begin.
        size: B.
        by_row: the channels are rows.
        by_column: the channels are columns.
        wide: the arithmetic of channels needs 64 bits.
        height: rows of a tile.
        width: columns of a tile.
        most: programs that ``partials`` has room for.
    """
    row = tl.load(cursor)
    if row < 0:
        return
    if row >= steps:
        return
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    double: tl.constexpr = x.dtype.element_ty == tl.float64
    integer: tl.constexpr = tl.int64 if double else tl.int32
    infinity: tl.constexpr = 0x7FF0000000000000 if double else 0x7F800000
    digits: tl.constexpr = 0x7FFFFFFFFFFFFFFF if double else 0x7FFFFFFF
    real: tl.constexpr = tl.float64 if double else tl.float32

    histogram = tl.zeros((BINS,), tl.int32)
    near = tl.zeros((), tl.int64)
    below = tl.zeros((), tl.int64)
    s1 = tl.zeros((), tl.float64)
    s2 = tl.zeros((), tl.float64)
    shift = tl.zeros((), tl.float64)
    started = tl.zeros((), tl.int32)
    for tile in range(program, tiles, programs):
        down = tile // tiles_across
        r = down.to(tl.int64) * height + tl.arange(0, height)
        c = (tile - down * tiles_across).to(tl.int64) * width + tl.arange(0, width)
        where = r[:, None] * cols + c[None, :]
        valid = (r[:, None] < rows) & (c[None, :] < cols)
        if not (by_row or by_column):
            valid = valid & (where < n)
        value = tl.load(x + where, mask=valid, other=float("nan")).to(real)
        bits = value.to(integer, bitcast=True)
        magnitude = bits & digits

        bucket = tl.where(valid, _bucket(bits, magnitude, infinity, low, size // 2), BINS - 1)
        histogram += tl.histogram(tl.reshape(bucket, (height * width,), can_reorder=True), BINS)

        # Comparing the patterns is exact for every type, and false for NaN.
        is_near = magnitude <= eps
        is_below = is_near | ((bits < 0) & (magnitude <= infinity))
        found = tl.sum(is_near.to(tl.int32) + (is_below.to(tl.int32) << 16))
        near += found & 0xFFFF
        below += found >> 16

        finite = magnitude < infinity
        real64 = tl.where(finite, value.to(tl.float64), 0.0)
        if started == 0:
            # A member of the set as shift: the error of M2 is then at most n·2⁻⁵² of itself.
            started = tl.max(finite.to(tl.int32))
            shift = tl.max(tl.where(finite, real64, float("-inf")))
            shift = tl.where(started > 0, shift, 0.0)
        deviation = tl.where(finite, real64 - shift, 0.0)
        s1 += tl.sum(deviation)
        s2 += tl.sum(deviation * deviation)

        if by_row or by_column:
            active = (magnitude > eps) & valid
            positive = (bits > 0) & (magnitude <= infinity)
            both = positive.to(tl.int32) + (active.to(tl.int32) << 16)
            if by_column:
                _flag(seen, c, c < cols, tl.sum(both, axis=0))
            else:
                if wide:
                    first = (down.to(tl.int64) * height) % channels
                else:
                    first = ((down % channels) * (height % channels)) % channels
                channel = (first + tl.arange(0, height)) % channels
                _flag(seen, channel, r < rows, tl.sum(both, axis=1))

    k = tl.arange(0, BINS)
    some = histogram > 0
    count = histogram.to(tl.int64)
    tl.atomic_add(counts + row * size + k, count, mask=some & (k < size), sem="relaxed")
    special = exact + row * 6 + 1 + (k - size)
    tl.atomic_add(special, count, mask=some & (k >= size) & (k < size + 3), sem="relaxed")
    tl.atomic_add(exact + row * 6 + 4, near, sem="relaxed")
    tl.atomic_add(exact + row * 6 + 5, below, sem="relaxed")
    members = tl.sum(tl.where(k < size, histogram, 0)).to(tl.float64)
    mean = s1 / tl.maximum(members, 1.0)
    tl.store(partials + program, members)
    tl.store(partials + most + program, shift + mean)
    tl.store(partials + 2 * most + program, tl.maximum(s2 - s1 * mean, 0.0))
    # Every thread's stores come before the ticket, and the ticket before what the last one reads.
    tl.debug_barrier()
    if tl.atomic_add(done, 1, sem="acq_rel") == programs - 1:
        tl.store(done, 0)
        tl.store(exact + row * 6, tl.load(exact + row * 6) + 1)
        _join_moments(partials, moments + row * 3, programs, most)
        if by_row or by_column:
            _join_flags(seen, flags + row * channels, channels, BINS)


@cache
def _programs_at_once(device: torch.device) -> int:
    """Programs that keep the whole device busy."""
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
    layout: BucketLayout,
    target: Target,
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
        layout: the buckets, of three mantissa bits.
        target: on the device of the values, with rows of C flags.
        cursor: one int64 on that device; a number that is no row (−1) means that nothing is added.
        scratch: the target's own.
    """
    n = values.numel()
    flagged = channels > 0 and n > 0
    by_column = flagged and inner == 1
    cols = (channels if by_column else inner) if flagged else WIDTHS[-1]
    rows = n // cols if flagged else triton.cdiv(n, cols)
    width = next((w for w in WIDTHS if cols <= w), WIDTHS[-1])
    height = TILE // width
    across = triton.cdiv(cols, width)
    tiles = triton.cdiv(rows, height) * across
    programs = max(1, min(tiles, _programs_at_once(values.device)))
    arguments = (
        values, cursor, target.counts, target.exact, target.moments, target.flags,
        scratch.partials, scratch.seen, scratch.done, target.counts.shape[0], n, rows, cols,
        tiles, across, max(channels, 1), eps_pattern(eps, values.dtype),
        (127 + layout.min_exponent) << layout.mantissa_bits, layout.size,
        flagged and not by_column, by_column, channels * height >= 2**31,
        height, width, MAX_PROGRAMS,
    )  # fmt: skip
    if values.is_cuda and values.device.index != torch.cuda.current_device():
        with torch.cuda.device(values.device):  # Triton launches on the current one
            sketch_kernel[(programs,)](*arguments, num_warps=WARPS)
    else:
        sketch_kernel[(programs,)](*arguments, num_warps=WARPS)
