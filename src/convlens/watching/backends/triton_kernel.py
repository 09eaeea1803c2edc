"""Device code of `cuda`: one pass over a tensor, written in Triton.

The values are read as a table whose rows or columns are channels, in tiles that the programs of a
grid share. Each program keeps a histogram and sums; all counts follow from the histogram, which has
one more bucket on each side than the layout (for eps), and infinity and NaN as the outermost ones.
`tl.histogram` counts in shared memory: since Triton 3.7 by an atomic increment for each value
(ATOMS.POPC.INC), which the hardware joins within a warp where addresses are equal.

At its end a program adds to global memory: counts by atomic additions, whose order changes nothing;
moments, whose order would, through a list that the last program joins in a fixed order. So the same
tensor gives the same sketch, bit for bit.
"""

# Values have no types in Triton's language.
# pyright: basic, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false
# The loop is one function, because only inlined code stays in registers.
# ruff: noqa: ANN001, ANN201, ANN202, D417, PLR0912, PLR0915

from __future__ import annotations

import triton
import triton.language as tl

BINS = tl.constexpr(1024)  # at least 2·(middle + 3) + 1


@triton.jit
def _rank(magnitude, low, middle: tl.constexpr, infinity: tl.constexpr):
    """How far a value's bucket is from the zeros': infinity is middle + 1, NaN middle + 2."""
    if magnitude.dtype == tl.int64:
        raw = (magnitude >> 49).to(tl.int32) - ((1023 - 127) << 3)
    else:
        raw = magnitude >> 20
    not_zero = tl.minimum(magnitude, 1).to(tl.int32)
    rank = tl.minimum(tl.maximum(raw - (low - 2), not_zero), middle)
    # Minimum and maximum instead of comparisons: two instructions less for each.
    special = tl.minimum(tl.maximum(magnitude - (infinity - 1), 0), 2).to(tl.int32)
    return rank + special


@triton.jit
def _flag(seen, channel, there, found):
    """Join the flags of some channels; nearly always they are known already and nothing is sent.

    Args:
        seen: pointer to (C,) int32.
        channel: which channels.
        there: whether there is such a channel.
        found: how many values of each were positive, and 65,536 times how many not near zero.
    """
    flags = ((found & 0xFFFF) != 0).to(tl.int32) | (((found >> 16) != 0).to(tl.int32) << 1)
    known = tl.load(seen + channel, mask=there, other=3, cache_modifier=".cg")
    tl.atomic_or(seen + channel, flags, mask=(flags & ~known) != 0, sem="relaxed")


@triton.jit
def _flag_columns(seen, first, cols, positive, active, width: tl.constexpr):
    """Join the flags of the columns of a tile, of which the first is channel ``first``."""
    c = first + tl.arange(0, width)
    _flag(seen, c, c < cols, tl.sum(positive + (active << 16), axis=0))


@triton.jit
def _add_counts(histogram, padding, eps_rank, counts, exact, middle: tl.constexpr):
    """Add a program's histogram to the counts of a row; ``padding`` values were not there.

    Returns:
        Its number of finite values.
    """
    k = tl.arange(0, BINS)
    signed = k - (middle + 3)
    distance = tl.abs(signed)
    rank = distance - (distance > eps_rank).to(tl.int32)
    count = histogram.to(tl.int64)
    bucket = middle + tl.where(signed < 0, -rank, rank)
    finite = rank <= middle
    tl.atomic_add(counts + bucket, count, mask=finite & (histogram > 0), sem="relaxed")
    infinite = rank == middle + 1
    nan = tl.sum(tl.where(rank == middle + 2, count, 0)) - padding
    near = tl.sum(tl.where(distance <= eps_rank, count, 0))
    below = tl.sum(tl.where((signed <= eps_rank) & (rank < middle + 2), count, 0))
    tl.atomic_add(exact + 1, nan, mask=nan != 0, sem="relaxed")
    neg_inf = tl.sum(tl.where(infinite & (signed < 0), count, 0))
    pos_inf = tl.sum(tl.where(infinite & (signed > 0), count, 0))
    tl.atomic_add(exact + 2, neg_inf, mask=neg_inf != 0, sem="relaxed")
    tl.atomic_add(exact + 3, pos_inf, mask=pos_inf != 0, sem="relaxed")
    tl.atomic_add(exact + 4, near, mask=near != 0, sem="relaxed")
    tl.atomic_add(exact + 5, below, mask=below != 0, sem="relaxed")
    return tl.sum(tl.where(finite, count, 0))


@triton.jit
def _join_moments(partials, moments, programs, most: tl.constexpr):
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
        if before > 0:
            apart = own_mean - mean_before
            share = total / (before + total)
            own_m2 += tl.load(moments + 2) + apart * apart * before * share
            own_mean = mean_before + apart * share
        tl.store(moments, before + total)
        tl.store(moments + 1, own_mean)
        tl.store(moments + 2, own_m2)


@triton.jit
def _join_flags(seen, flags, channels, width: tl.constexpr):
    """Join the channel flags to those of the row, and clear them for the next launch."""
    for first in range(0, channels, width):
        c = first + tl.arange(0, width)
        there = c < channels
        found = tl.load(seen + c, mask=there, other=0, cache_modifier=".cg")
        before = tl.load(flags + c, mask=there, other=0)
        tl.store(flags + c, before | found.to(tl.uint8), mask=there)
        tl.store(seen + c, tl.zeros((width,), tl.int32), mask=there)


@triton.jit(
    do_not_specialize=["steps", "rows", "tiles", "tiles_across", "channels", "eps", "low"],
)
def sketch_kernel(
    x, cursor, counts, exact, moments, flags, partials, seen, done,
    steps, n, rows, cols, tiles, tiles_across, channels, eps, low,
    size: tl.constexpr, by_row: tl.constexpr, by_column: tl.constexpr, steady: tl.constexpr,
    wide: tl.constexpr, height: tl.constexpr, width: tl.constexpr, most: tl.constexpr,
):  # fmt: skip
    """Add the values to one row of a layer's buffers.

    Args:
        x: (n,) values as they lie in memory, read as a table of ``rows`` and ``cols``.
        cursor: (1,) int64, which row of the buffers; outside 0 to ``steps`` − 1 nothing is done.
        counts, exact, moments, flags: the buffers; (K, B) and (K, 6) int64, (K, 3) float64,
            (K, C) uint8.
        partials, seen, done: see `convlens.watching.backends.cuda.Scratch`.
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
        steady: and a program's tiles are all of the same columns, so that their flags wait.
        wide: offsets within a tile, or the arithmetic of channels, need 64 bits.
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
    real: tl.constexpr = tl.float64 if double else tl.float32
    infinity: tl.constexpr = 0x7FF0000000000000 if double else 0x7F800000
    digits: tl.constexpr = 0x7FFFFFFFFFFFFFFF if double else 0x7FFFFFFF
    middle: tl.constexpr = size // 2
    index: tl.constexpr = tl.int64 if wide else tl.int32

    down = tl.arange(0, height).to(index)[:, None]
    across = tl.arange(0, width).to(index)[None, :]
    offset = down * cols + across
    histogram = tl.zeros((BINS,), tl.int32)
    s1 = tl.zeros((height, width), tl.float64)
    s2 = tl.zeros((height, width), tl.float64)
    flags_found = tl.zeros((height, width), tl.int32)
    shift = tl.zeros((), real)
    started = tl.zeros((), tl.int32)
    padding = tl.zeros((), tl.int64)
    for tile in range(program, tiles, programs):
        tile_row = tile // tiles_across
        first_row = tile_row.to(tl.int64) * height
        first_col = (tile - tile_row * tiles_across).to(tl.int64) * width
        first = first_row * cols + first_col
        here_down = tl.minimum(rows - first_row, height).to(tl.int32)
        here_across = tl.minimum(cols - first_col, width).to(tl.int32)
        valid = (down < here_down) & (across < here_across)
        here = here_down * here_across
        if not (by_row or by_column):  # then the last row may end early
            here = tl.minimum(n - first, height * width).to(tl.int32)
            valid = offset < here
        padding += height * width - here
        value = tl.load(x + first + offset, mask=valid, other=float("nan"))
        if value.dtype == tl.bfloat16:  # the upper half of a float32
            upper = value.to(tl.int16, bitcast=True).to(tl.int32) << 16
            value = upper.to(tl.float32, bitcast=True)
        else:
            value = value.to(real)
        bits = value.to(integer, bitcast=True)
        magnitude = bits & digits

        # Comparing the patterns is exact for every type, and NaN is larger than all.
        far = tl.minimum(tl.maximum(magnitude - eps, 0), 1).to(tl.int32)
        distance = _rank(magnitude, low, middle, infinity) + far
        place = (middle + 3) + tl.where(bits < 0, -distance, distance)
        histogram += tl.histogram(tl.reshape(place, (height * width,), can_reorder=True), BINS)

        finite = magnitude < infinity
        if started == 0:
            # A member of the set as shift: the error of M2 is then at most n·2⁻⁵² of itself.
            started = tl.max(finite.to(tl.int32))
            shift = tl.max(tl.where(finite, value, float("-inf")))
            shift = tl.where(started > 0, shift, 0.0)
        deviation = tl.where(finite, value, shift).to(tl.float64) - shift.to(tl.float64)
        s1 += deviation
        s2 += deviation * deviation

        if by_row or by_column:
            positive = (value > 0).to(tl.int32)
            active = tl.where(valid, far, 0)
            if steady:
                flags_found |= positive + active * 2
            elif by_column:
                _flag_columns(seen, first_col, cols, positive, active, width)
            else:
                if wide:
                    channel = first_row % channels
                else:
                    channel = ((tile_row % channels) * (height % channels)) % channels
                r = tl.arange(0, height)
                found = tl.sum(positive + (active << 16), axis=1)
                _flag(seen, (channel + r) % channels, r < here_down, found)

    if steady:
        first_col = (program % tiles_across).to(tl.int64) * width
        _flag_columns(seen, first_col, cols, flags_found & 1, flags_found >> 1, width)
    eps_rank = _rank(tl.full((), eps, integer), low, middle, infinity)
    members = _add_counts(
        histogram, padding, eps_rank, counts + row * size, exact + row * 6, middle
    ).to(tl.float64)
    sum1, sum2 = tl.sum(s1), tl.sum(s2)
    mean = sum1 / tl.maximum(members, 1.0)
    tl.store(partials + program, members)
    tl.store(partials + most + program, shift.to(tl.float64) + mean)
    tl.store(partials + 2 * most + program, tl.maximum(sum2 - sum1 * mean, 0.0))
    # Every thread's stores come before the ticket, and the ticket before what the last one reads.
    tl.debug_barrier()
    if tl.atomic_add(done, 1, sem="acq_rel") == programs - 1:
        tl.store(done, 0)
        tl.store(exact + row * 6, tl.load(exact + row * 6) + 1)
        _join_moments(partials, moments + row * 3, programs, most)
        if by_row or by_column:
            _join_flags(seen, flags + row * channels, channels, BINS)
