"""The sketch of a tensor in CPU memory: one pass, written in Numba.

A value's sign, exponent and top three mantissa bits are the upper twelve bits of its float32
pattern, so one shift and a clamp name its bucket. The values are read in blocks that fit the
first-level cache, and each block is read by several short loops, which LLVM vectorizes.

Rare cases cost nothing where they do not occur: non-finite values are counted only in a block whose
sum is not finite, zeros only where the bucket that they share with the smallest numbers has grown,
and a channel's flags only until both are set.

The kernels number a bucket by magnitude: 0 for zeros and values below the layout's octaves, then
the octaves' buckets, then one for values above them; negative values have 512 more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from convlens.watching.backends.numba_jit import njit

Scalar = float | np.floating[Any]
Array = NDArray[Any]  # Numba compiles each kernel for the types that it meets

BLOCK = 4096  # values in a block: 16 KiB of float32, half of a small first-level cache
MINUS = 512  # added to a bucket's number for negative values
ROW = 2 * MINUS + 16  # of a table; with a power of two, stores to neighbouring rows would alias
TABLES = 8  # neighbouring values are often equal; in one table their increments would serialize
PLANE = 32  # shorter planes are joined, since a loop over a few values is mostly overhead
BOTH = 3  # a channel's flags when both are set

N_FOUND = 7  # at most eps, below −eps, zeros, of these −0, NaN, −∞, +∞

# Reassociation lets sums be vectorized; NaN and infinity keep their meaning.
FAST = {"reassoc", "nsz", "contract"}


# ---- values and their buckets -------------------------------------------------------------------


@njit(nogil=True)
def _buckets32(values: Array, low: int, high: int, buckets: Array) -> None:
    """Buckets of float32 values; infinities and NaN fall into the highest.

    ``low`` and ``high`` are exponent and three mantissa bits where the octaves begin, less one, and
    end.
    """
    bits = values.view(np.uint32)
    for i in range(bits.size):
        buckets[i] = np.uint16(bits[i] >> np.uint32(20))
    # The casts keep Numba at 16 bits, of which most fit into a vector.
    least, most, minus = np.uint16(low), np.uint16(high), np.uint16(MINUS)
    for i in range(bits.size):
        magnitude = np.uint16(max(np.uint16(buckets[i] & np.uint16(0x7FF)), least))
        magnitude = np.uint16(min(magnitude, most))
        sign = np.uint16(np.uint16(buckets[i] >> np.uint16(2)) & minus)
        buckets[i] = np.uint16(np.uint16(magnitude - least) | sign)


@njit(nogil=True)
def _buckets64(values: Array, low: int, high: int, buckets: Array) -> None:
    """Buckets of float64 values; as float32 some would be rounded into the next bucket."""
    bits = values.view(np.uint64)
    least, most = np.int64(low + ((1023 - 127) << 3)), np.int64(high + ((1023 - 127) << 3))
    for i in range(bits.size):
        magnitude = np.int64((bits[i] >> np.uint64(49)) & np.uint64(0x3FFF))
        magnitude = min(max(magnitude, least), most) - least
        buckets[i] = np.uint16(magnitude | np.int64(bits[i] >> np.uint64(63)) * MINUS)


@njit(nogil=True)
def _write_buckets(x: Array, low: int, high: int, buckets: Array) -> None:
    """The buckets of float32 or float64 values; Numba compiles the branch away."""
    if x.itemsize == 8:
        _buckets64(x, low, high, buckets)
    else:
        _buckets32(x, low, high, buckets)


# ---- the loops over a block ---------------------------------------------------------------------


def _fetch(context: Any, array: Any, index: Any) -> Any:  # noqa: ANN401, ARG001
    """Prefetch the cache line of an element; an index past the end is allowed."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        flag = ir.IntType(32)
        address = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [address, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


_prefetch: Any = intrinsic(_fetch)  # as Numba code: (array, index)


@njit(nogil=True)
def _scatter(buckets: Array, size: int, table: Array, x: Array, ahead: int) -> None:
    """Count each bucket; neighbours go to different rows of the table.

    Four numbers are loaded as one word. This loop waits least for memory, so it prefetches the next
    block, which begins at ``x[ahead]``.
    """
    last = table.shape[0] - 1
    a, b, c, d = table[0], table[1 & last], table[2 & last], table[3 & last]
    e, f, g, h = table[4 & last], table[5 & last], table[6 & last], table[7 & last]
    words, mask, one = buckets.view(np.uint64), np.uint64(0xFFFF), np.uint32(1)
    for i in range(0, (size >> 3) * 2, 2):
        left, right = words[i], words[i + 1]
        _prefetch(x, ahead + (i << 2))
        a[left & mask] += one
        b[(left >> np.uint64(16)) & mask] += one
        c[(left >> np.uint64(32)) & mask] += one
        d[left >> np.uint64(48)] += one
        e[right & mask] += one
        f[(right >> np.uint64(16)) & mask] += one
        g[(right >> np.uint64(32)) & mask] += one
        h[right >> np.uint64(48)] += one
    for i in range(size & ~7, size):
        a[buckets[i]] += one


@njit(nogil=True, fastmath=FAST)
def _sums(x: Array, shift: float) -> tuple[float, float]:
    """The first two moments about ``shift``."""
    s1, s2 = 0.0, 0.0
    for i in range(x.size):
        d = np.float64(x[i]) - shift
        s1 += d
        s2 += d * d
    return s1, s2


@njit(nogil=True, fastmath=FAST)
def _finite_sums(x: Array, shift: float) -> tuple[float, float]:
    """The same over the finite values only."""
    s1, s2 = 0.0, 0.0
    for i in range(x.size):
        d = np.float64(x[i]) - shift if abs(x[i]) < np.inf else 0.0
        s1 += d
        s2 += d * d
    return s1, s2


@njit(nogil=True)
def _take_out_specials(x: Array, buckets: Array, table: Array, found: Array) -> int:
    """Count NaN, −∞ and +∞, and take them out of the table again; returns their number."""
    n = 0
    for i in range(x.size):
        if not abs(x[i]) < np.inf:
            found[4 if x[i] != x[i] else 5 if x[i] < 0 else 6] += 1
            row = i % table.shape[0] if i < x.size & ~7 else 0
            table[row, buckets[i]] -= np.uint32(1)
            n += 1
    return n


@njit(nogil=True, fastmath=FAST)
def _around_eps(x: Array, eps: Scalar, minus_eps: Scalar) -> tuple[int, int]:
    """How many values are at most eps, and how many below −eps; the difference is near zero.

    float32 counts a block exactly and is half as wide as Numba's integers: 68 instead of 148 ps a
    value.
    """
    at_most, below = np.float32(0), np.float32(0)
    one, none = np.float32(1), np.float32(0)
    for i in range(x.size):
        at_most += one if x[i] <= eps else none
        below += one if x[i] < minus_eps else none
    return int(at_most), int(below)


@njit(nogil=True, fastmath=FAST)
def _zeros(x: Array) -> int:
    """How many values are exactly zero, of either sign."""
    zeros, one, none = np.float32(0), np.float32(1), np.float32(0)
    for i in range(x.size):
        zeros += one if x[i] == 0 else none
    return int(zeros)


@njit(nogil=True)
def _minus_zeros(x: Array, buckets: Array) -> int:
    """How many values are −0."""
    zeros = 0
    for i in range(x.size):
        zeros += (x[i] == 0) & (buckets[i] == MINUS)
    return zeros


@njit(nogil=True, fastmath=FAST)
def _plane_flags(plane: Array, eps: Scalar) -> np.uint8:
    """Bit 0: some value is positive; bit 1: some value is not near zero."""
    flags = np.uint8(0)
    for i in range(plane.size):
        flags |= np.uint8(plane[i] > 0) | (np.uint8(not abs(plane[i]) <= eps) << np.uint8(1))
    return flags


@njit(nogil=True, fastmath=FAST)
def _row_flags(row: Array, eps: Scalar, seen: Array) -> None:
    """The same for each position of a row, joined to what was seen before."""
    for i in range(row.size):
        seen[i] |= np.uint8(row[i] > 0) | (np.uint8(not abs(row[i]) <= eps) << np.uint8(1))


@njit(nogil=True)
def _open(flags: Array) -> int:
    """How many are not both set yet."""
    n = 0
    for i in range(flags.size):
        n += flags[i] != BOTH
    return n


@njit(nogil=True)
def _flag_planes(x: Array, start: int, inner: int, eps: Scalar, flags: Array) -> None:
    """Join the flags of one block, which begins at value ``start`` of the tensor."""
    low = 0
    while low < x.size:
        plane, offset = divmod(start + low, inner)
        high = min(low + inner - offset, x.size)
        channel = plane % flags.size
        if flags[channel] != BOTH:
            flags[channel] |= _plane_flags(x[low:high], eps)
        low = high


@njit(nogil=True)
def _flag_rows(x: Array, start: int, eps: Scalar, seen: Array) -> None:
    """The same where planes are short: rows of all channels, each position by itself.

    Short rows are taken several at a time, so ``seen`` may hold more than one.
    """
    low = 0
    while low < x.size and _open(seen):
        offset = (start + low) % seen.size
        high = min(low + seen.size - offset, x.size)
        _row_flags(x[low:high], eps, seen[offset : offset + high - low])
        low = high


# ---- a range of values, and the result ----------------------------------------------------------


@njit(nogil=True)
def _column_sum(table: Array, bucket: int) -> int:
    """How many values one bucket holds so far."""
    n = 0
    for row in range(table.shape[0]):
        n += table[row, bucket]
    return n


@njit(nogil=True)
def _sketch_block(
    x: Array, buckets: Array, shift: float, eps: Scalar, table: Array, found: Array, sums: Array,
    whole: Array, ahead: int,
) -> None:  # fmt: skip
    """Everything but the channel flags of one block; the next begins at ``whole[ahead]``."""
    plus, minus = _column_sum(table, 0), _column_sum(table, MINUS)
    _scatter(buckets, x.size, table, whole, ahead)
    if _column_sum(table, 0) + _column_sum(table, MINUS) != plus + minus:
        found[2] += _zeros(x)
        if _column_sum(table, MINUS) != minus:
            found[3] += _minus_zeros(x, buckets)
    at_most, below = _around_eps(x, eps, -eps)
    found[0] += at_most
    found[1] += below
    n = x.size
    s1, s2 = _sums(x, shift)
    if not abs(s2) < np.inf:
        s1, s2 = _finite_sums(x, shift)
        n -= _take_out_specials(x, buckets, table, found)
    sums[0] += n
    sums[1] += s1
    sums[2] += s2


@njit(nogil=True)
def _sketch_range(
    x: Array, start: int, stop: int, inner: int, shift: float, low: int, eps: Scalar,
    counts: Array, found: Array, sums: Array, flags: Array,
) -> None:  # fmt: skip
    """Sketch the values from ``start`` to ``stop``, with tables of its own."""
    table = np.zeros((1 if stop - start < BLOCK else TABLES, ROW), np.uint32)
    buckets = np.empty(BLOCK, np.uint16)
    high = low + counts.size // 2 - 1
    row = flags.size * inner if inner < PLANE else 0
    seen = np.zeros(row * max(1, 64 // max(row, 1)), np.uint8)
    n_open = _open(flags)
    for first in range(start, stop, BLOCK):
        values = x[first : min(first + BLOCK, stop)]
        _write_buckets(values, low, high, buckets)
        _sketch_block(values, buckets, shift, eps, table, found, sums, x, first + BLOCK)
        if seen.size:
            _flag_rows(values, first, eps, seen)
        elif n_open:
            _flag_planes(values, first, inner, eps, flags)
            n_open = _open(flags)
    for i in range(seen.size):
        flags[i // inner % flags.size] |= seen[i]
    _fold(table, found[2], found[3], counts)


@njit(nogil=True)
def _fold(table: Array, zeros: int, minus_zeros: int, counts: Array) -> None:
    """Add the table to the layout's buckets, which are ordered by value."""
    for row in range(1, table.shape[0]):
        for j in range(ROW):
            table[0, j] += table[row, j]
    zero = counts.size // 2
    for j in range(zero):
        counts[zero + 1 + j] += table[0, j]
        counts[zero - 1 - j] += table[0, MINUS + j]
    counts[zero] += zeros
    counts[zero + 1] -= zeros - minus_zeros
    counts[zero - 1] -= minus_zeros


@njit(nogil=True)
def _join_moments(moments: Array, n: float, s1: float, s2: float, shift: float) -> None:
    """Chan's rule: join n values with sums ``s1``, ``s2`` about ``shift`` to (n, mean, M2)."""
    if n == 0:
        return
    mean, m2 = shift + s1 / n, max(s2 - s1 * s1 / n, 0.0)
    total = moments[0] + n
    delta = mean - moments[1]
    moments[2] += m2 + delta * delta * moments[0] * n / total
    moments[1] = mean if moments[0] == 0 else moments[1] + delta * n / total
    moments[0] = total


@njit(nogil=True)
def _a_member(x: Array) -> float:
    """The first finite value; with it as shift, M2's relative error is at most n·2⁻⁵²."""
    for value in x:
        if abs(value) < np.inf:
            return np.float64(value)
    return 0.0


@njit(nogil=True)
def _finish(found: Array, sums: Array, shift: float, exact: Array, moments: Array) -> None:
    """Add what was found to one row of a layer's buffers."""
    _join_moments(moments, sums[0], sums[1], sums[2], shift)
    exact[0] += 1
    exact[1:4] += found[4:7]
    exact[4] += found[0] - found[1]
    exact[5] += found[0]


@njit(nogil=True)
def sketch_serial(
    x: Array, inner: int, low: int, eps: Scalar,
    counts: Array, exact: Array, moments: Array, flags: Array,
) -> None:  # fmt: skip
    """Add the values to one row of a layer's buffers, in this thread.

    Args:
        x: (n,) float32 or float64 values as they lie in memory.
        inner: values of one channel that lie side by side; n is a multiple of C·inner.
        low: exponent and mantissa bits where the layout's octaves begin, less one.
        eps: bound of near zero, float64 for float64 values, else float32.
        counts: (B,) int64, buckets of the layout; B is at most 2·512 + 1.
        exact: (6,) int64: calls, NaN, −∞, +∞, near zero, at most eps.
        moments: (3,) float64: number of finite values, their mean, M2.
        flags: (C,) uint8; C may be 0.
    """
    shift = _a_member(x)
    found = np.zeros(N_FOUND, np.int64)
    sums = np.zeros(3, np.float64)
    _sketch_range(x, 0, x.size, inner, shift, low, eps, counts, found, sums, flags)
    _finish(found, sums, shift, exact, moments)


@njit(nogil=True, parallel=True)
def sketch_parallel(
    x: Array, inner: int, low: int, eps: Scalar,
    counts: Array, exact: Array, moments: Array, flags: Array, parts: int,
) -> None:  # fmt: skip
    """As `sketch_serial`, cut into ``parts`` that run at the same time with tables of their own."""
    shift = _a_member(x)
    counted = np.zeros((parts, counts.size), np.int64)
    found = np.zeros((parts, N_FOUND), np.int64)
    sums = np.zeros((parts, 3), np.float64)
    seen = np.zeros((parts, flags.size), np.uint8)
    for k in prange(parts):
        start, stop = x.size * k // parts, x.size * (k + 1) // parts
        _sketch_range(
            x, start, stop, inner, shift, low, eps, counted[k], found[k], sums[k], seen[k]
        )
    for k in range(parts):
        for j in range(counts.size):
            counts[j] += counted[k, j]
        for c in range(flags.size):
            flags[c] |= seen[k, c]
    _finish(found.sum(axis=0), sums.sum(axis=0), shift, exact, moments)


@njit(nogil=True)
def add_batch_norm(
    old_mean: Array, old_var: Array, mean: Array, var: Array, share: float, biased: float,
    sums: Array,
) -> None:  # fmt: skip
    """See `convlens.watching.normalization.add`.

    Args:
        old_mean: (C,) running mean before the batch.
        old_var: (C,) running variance before it.
        mean: (C,) running mean after it.
        var: (C,) running variance after it.
        share: the momentum.
        biased: (n - 1) / n for n values of a channel.
        sums: (4,) float64: mean and variance of the batch, running mean and variance.
    """
    total = np.zeros(4, np.float64)
    for c in range(mean.size):
        total[0] += (mean[c] - (1.0 - share) * old_mean[c]) / share
        total[1] += (var[c] - (1.0 - share) * old_var[c]) / share * biased
        total[2] += mean[c]
        total[3] += var[c]
    for k in range(4):
        sums[k] += total[k] / mean.size
