"""The sketch as a NumPy value: bucket layout, columns, merging, quantiles, re-binning, chunks.

A float's own bits are a logarithmic histogram: sign, exponent and the top mantissa bits name its
bucket. A *sketch* of a set of values is the count of values in each bucket together with n, mean,
the sum of squared deviations M2, and a few exact counts. Two sketches add up (Chan, Golub, LeVeque:
Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979): counts exactly,
moments to float64 rounding. `Columns` holds K sketches of one layer, one for each column of time.

Nothing here knows where the numbers came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from convlens.core.encoding import pack, unpack
from convlens.errors import RunError

BUDGET_BITS = 12
"""A series keeps at most 2^12 = 4,096 columns; see `level_at`."""

CHUNK_BITS = 6
"""Columns are kept in chunks of 2^6 = 64: those whose steps share ``step >> (level + 6)``."""

CHUNK_LIMIT = 1 << 25
"""Bytes that an encoded chunk may have once inflated: 32 MiB."""

MOST_COLUMNS, MOST_BUCKETS, MOST_CHANNELS = 1 << BUDGET_BITS, 1 << 16, 1 << 20
"""Columns, buckets and channels that an encoded chunk may have."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class BucketLayout:
    """Which bucket a finite float32 falls into: fixed, versioned, stored with every run.

    Buckets are ordered by value and symmetric about the zero bucket in the middle: overflow,
    the buckets of ``2**min_exponent <= |x| < 2**max_exponent``, underflow, zero, and the same
    mirrored. Each octave is cut into ``2**mantissa_bits`` buckets of equal width, so that a bucket
    is at most ``2**-mantissa_bits`` wide relative to its values.
    """

    mantissa_bits: int = 3
    min_exponent: int = -32
    max_exponent: int = 16
    version: int = 1

    @property
    def n_octave_buckets(self) -> int:
        """Buckets of one sign without under- and overflow."""
        return (self.max_exponent - self.min_exponent) << self.mantissa_bits

    @property
    def zero(self) -> int:
        """Index of the bucket that holds exactly the zeros."""
        return self.n_octave_buckets + 2

    @property
    def size(self) -> int:
        """Number of buckets B."""
        return 2 * self.zero + 1

    @property
    def relative_error(self) -> float:
        """Largest relative error of a value read from its bucket's middle (within the range)."""
        return 2.0 ** -(self.mantissa_bits + 1)

    @cached_property
    def edges(self) -> Floats:
        """Ascending edges, shape (B + 1,): bucket i lies between ``edges[i]`` and ``edges[i + 1]``.

        A positive bucket includes its lower edge, a negative one its upper edge; the zero bucket is
        the single point 0. The outermost edges are infinite.
        """
        step = 1 << self.mantissa_bits
        mantissa = 1.0 + np.arange(step) / step
        octaves = 2.0 ** np.arange(self.min_exponent, self.max_exponent)
        positive = np.append((octaves[:, None] * mantissa).ravel(), 2.0**self.max_exponent)
        upper = np.concatenate([[0.0], positive, [np.inf]])
        return np.concatenate([-upper[::-1], upper])


@dataclass(frozen=True)
class Columns:
    """Sketches of one layer, one per column of time. K columns, B buckets, C channels.

    Column k covers the optimizer steps ``first_step[k]`` to ``last_step[k]``. Every count is exact.
    ``mean`` and ``m2`` (sum of squared deviations from the mean) are those of the finite values.

    Attributes:
        first_step: (K,) first step counted in the column.
        last_step: (K,) last step counted in the column.
        calls: (K,) how many forward calls were counted.
        counts: (K, B) finite values per bucket of the `BucketLayout`.
        nan: (K,) values that are NaN.
        neg_inf: (K,) values that are −∞.
        pos_inf: (K,) values that are +∞.
        near_zero: (K,) values with |x| ≤ eps.
        at_most_eps: (K,) values with x ≤ eps: those near zero once a ReLU has been applied.
        mean: (K,) mean of the finite values, NaN where there are none.
        m2: (K,) sum of squared deviations of the finite values from their mean.
        positive: (K, C) whether the channel had any value > 0; C is 0 without a channel axis.
        active: (K, C) whether the channel had any value that is not near zero.
        batch_norm: (K, 4) for batch normalization, else (K, 0): sums over the calls of the mean
            over channels of the batch's mean, its (biased) variance, the running mean and the
            running variance.
        error: (K, 5) where only some of each batch's images were looked at, else (K, 0): sums over
            the calls of the squared standard errors of the mean, the variance, and the shares near
            zero, at most eps, and exactly zero.
    """

    first_step: Ints
    last_step: Ints
    calls: Ints
    counts: Ints
    nan: Ints
    neg_inf: Ints
    pos_inf: Ints
    near_zero: Ints
    at_most_eps: Ints
    mean: Floats
    m2: Floats
    positive: Flags
    active: Flags
    batch_norm: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    error: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        for name in _SUMS:
            array, shape = getattr(self, name), (len(self.first_step), 0)
            if not array.size and array.shape != shape:  # not measured: no wider than the default
                object.__setattr__(self, name, np.zeros(shape))

    def __len__(self) -> int:
        return len(self.first_step)

    @property
    def n_finite(self) -> Ints:
        """(K,) number of finite values."""
        return self.counts.sum(axis=1, dtype=np.int64)

    @property
    def n(self) -> Ints:
        """(K,) number of values, finite or not."""
        return self.n_finite + self.nan + self.neg_inf + self.pos_inf

    def __getitem__(self, rows: slice | Ints) -> Self:
        """The same sketches for some of the columns."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


AnyColumns = TypeVar("AnyColumns", bound=Columns)


def empty_columns(n_buckets: int, n_channels: int) -> Columns:
    """No columns at all, of the right widths."""
    none, reals = np.zeros(0, np.int64), np.zeros(0, np.float64)
    flags, counts = np.zeros((0, n_channels), np.bool_), np.zeros((0, n_buckets), np.int64)
    return Columns(
        none, none, none, counts, none, none, none, none, none, reals, reals, flags, flags
    )


def concatenate(parts: Sequence[AnyColumns]) -> AnyColumns:
    """Columns one after the other; channel flags and sums are widened to the widest part.

    Raises:
        ValueError: if ``parts`` is empty.
    """
    if not parts:
        raise ValueError("parts is empty")
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {}
    for f in fields(parts[0]):
        arrays = [getattr(part, f.name) for part in parts]
        if f.name in _FLAGS or f.name in _SUMS:
            width = max(array.shape[1] for array in arrays)
            arrays = [
                a if a.shape[1] == width else np.pad(a, ((0, 0), (0, width - a.shape[1])))
                for a in arrays
            ]
        joined[f.name] = np.concatenate(arrays)
    return type(parts[0])(**joined)


def merge_runs(columns: AnyColumns, starts: Ints) -> AnyColumns:
    """Add up neighbouring columns: group g is the columns from ``starts[g]`` to ``starts[g + 1]``.

    Args:
        columns: K columns in order of time.
        starts: (G,) ascending positions, the first 0.

    Returns:
        G columns. Counts add up exactly, channel flags are joined by *or*, moments by Chan's rule.
        What comes of a group depends on its columns alone; a group of one is that column.
    """
    if len(columns) == 0:
        return columns
    n = columns.n_finite
    total = np.add.reduceat(n, starts)
    mean = np.where(n > 0, columns.mean, 0.0)
    group_mean = np.add.reduceat(n * mean, starts) / np.maximum(total, 1)
    shift = mean - np.repeat(group_mean, np.diff(np.append(starts, len(columns))))
    # The residual corrects the rounding of group_mean, so that merging stays exact to float64.
    residual = np.add.reduceat(n * shift, starts) / np.maximum(total, 1)
    m2 = np.add.reduceat(columns.m2 + n * shift**2, starts) - total * residual**2
    alone = np.diff(np.append(starts, len(columns))) == 1
    merged: dict[str, Any] = {
        "first_step": np.minimum.reduceat(columns.first_step, starts),
        "last_step": np.maximum.reduceat(columns.last_step, starts),
        "mean": np.where(
            alone, columns.mean[starts], np.where(total > 0, group_mean + residual, np.nan)
        ),
        "m2": np.where(alone, columns.m2[starts], np.maximum(m2, 0.0)),
        "positive": np.logical_or.reduceat(columns.positive, starts, axis=0),
        "active": np.logical_or.reduceat(columns.active, starts, axis=0),
    }
    for f in fields(columns):
        if f.name not in merged:
            array = getattr(columns, f.name)
            wide = array.dtype if f.name in _SUMS else np.int64  # counts may lie in fewer bits
            add = _add_wide if f.name == "counts" and array.shape[1] else np.add.reduceat
            merged[f.name] = add(array, starts, axis=0, dtype=wide)
    return type(columns)(**merged)


def _add_wide(array: Ints, starts: Ints, axis: int, dtype: type[np.int64]) -> Ints:
    """What ``np.add.reduceat`` gives for many integers in a row, in an eighth of its time."""
    added = np.empty((len(starts), array.shape[1]), dtype)
    stops = np.append(starts[1:], len(array)).tolist()
    for i, (first, stop) in enumerate(zip(starts.tolist(), stops, strict=True)):
        np.add.reduce(array[first:stop], axis=axis, dtype=dtype, out=added[i])
    return added


def coarsen(columns: AnyColumns, level: int) -> AnyColumns:
    """Merge the columns whose steps share ``step >> level``; columns are in order of time."""
    if len(columns) == 0:
        return columns
    key = columns.first_step >> level
    starts = np.flatnonzero(np.diff(key, prepend=key[0] - 1))
    return columns if len(starts) == len(columns) else merge_runs(columns, starts)


def level_at(step: int) -> int:
    """The level at which ``step`` is recorded: columns of the steps that share ``step >> level``.

    One level for a whole run, raised by the step's number alone whenever 4,096 columns are full,
    so that layers, ranks and resumed runs always agree.
    """
    return max(0, step.bit_length() - BUDGET_BITS)


def quantiles(counts: Ints, edges: Floats, shares: Sequence[float]) -> Floats:
    """The values below which some shares of the finite values lie, for each column.

    Args:
        counts: (K, B) bucket counts.
        edges: (B + 1,) bucket edges.
        shares: Q of them, each between 0 and 1.

    Returns:
        (Q, K) values, interpolated linearly within their bucket, NaN for an empty column. The error
        is at most the width of that bucket; in the outermost buckets it is the bucket's inner edge.
    """
    finite = finite_edges(edges)
    cumulative = counts.cumsum(axis=1, dtype=np.int64)
    found = np.full((len(shares), len(counts)), np.nan)
    for i, q in enumerate(shares):
        bucket, target = _bucket_of(cumulative, q)
        inside = np.take_along_axis(counts, bucket[:, None], axis=1)[:, 0]
        before = np.take_along_axis(cumulative, bucket[:, None], axis=1)[:, 0] - inside
        share = np.clip((target - before) / np.maximum(inside, 1), 0.0, 1.0)
        value = finite[bucket] + share * (finite[bucket + 1] - finite[bucket])
        found[i] = np.where(cumulative[:, -1] > 0, value, np.nan)
    return found


def quantile_bounds(counts: Ints, edges: Floats, q: float) -> Floats:
    """Edges of the bucket that a quantile lies in, for each column.

    Args:
        counts: (K, B) bucket counts.
        edges: (B + 1,) bucket edges.
        q: between 0, for the smallest value, and 1, for the largest.

    Returns:
        (K, 2) lower and upper edge, between which the smallest value lies that a share ``q`` of the
        values does not exceed; infinite in the outermost buckets, NaN for an empty column.
    """
    cumulative = counts.cumsum(axis=1, dtype=np.int64)
    bucket, _ = _bucket_of(cumulative, q)
    bounds = np.stack([edges[bucket], edges[bucket + 1]], axis=1)
    return np.where(cumulative[:, -1:] > 0, bounds, np.nan)


def _bucket_of(cumulative: Ints, q: float) -> tuple[Ints, Floats]:
    """(K,) bucket of a quantile, (K,) how many values lie up to it, of counts added up."""
    total = cumulative[:, -1]
    target = np.maximum(q * total, np.minimum(total, 1) * 0.5)
    return np.argmax(cumulative >= target[:, None], axis=1), target


def count_below(counts: Ints, edges: Floats, threshold: float) -> tuple[Ints, Ints, Floats]:
    """How many finite values lie below a threshold, for each column.

    Args:
        counts: (K, B) bucket counts.
        edges: (B + 1,) bucket edges.
        threshold: a finite number.

    Returns:
        (K,) the least and the most that it can be, which differ by the bucket that the threshold
        cuts, and (K,) an estimate that spreads this bucket evenly over its width. At zero and at
        the positive edges no bucket is cut.
    """
    side = "right" if threshold > 0 else "left"  # which edge belongs to a bucket
    bucket = int(np.searchsorted(edges, threshold, side)) - 1 if threshold else len(edges) // 2 - 1
    least = counts[:, :bucket].sum(axis=1, dtype=np.int64)
    low, high = edges[bucket], edges[bucket + 1]
    if threshold >= 0 and threshold == low:
        return least, least, least.astype(np.float64)
    cut = counts[:, bucket]
    share = (threshold - low) / (high - low) if np.isfinite(high - low) else 0.0
    return least, least + cut, least + share * cut


def rebin(counts: Ints, edges: Floats, new_edges: Floats) -> Floats:
    """Bucket counts in bins of one's own, each bucket spread evenly over its width.

    Args:
        counts: (K, B) bucket counts.
        edges: (B + 1,) bucket edges.
        new_edges: (M + 1,) ascending finite edges.

    Returns:
        (K, M) counts. What lies outside ``new_edges`` is left out. The error at an edge is at most
        the count of the bucket that the edge cuts. Zeros belong to the bin that holds 0.
    """
    finite = finite_edges(edges)
    width = np.diff(finite)
    lower, upper = new_edges[:-1, None], new_edges[1:, None]
    overlap = np.clip(np.minimum(upper, finite[1:]) - np.maximum(lower, finite[:-1]), 0.0, None)
    share = np.divide(overlap, width, out=np.zeros_like(overlap), where=width > 0)
    points = np.flatnonzero(width == 0)
    holder = np.searchsorted(new_edges, finite[points], side="right") - 1
    inside = (holder >= 0) & (holder < len(new_edges) - 1)
    share[holder[inside], points[inside]] = 1.0
    return counts.astype(np.float64) @ share.T


def finite_edges(edges: Floats) -> Floats:
    """The edges with the outermost, infinite ones drawn in to their neighbours."""
    inner = edges.copy()
    inner[0], inner[-1] = edges[1], edges[-2]
    return inner


def encode(columns: Columns) -> bytes:
    """Columns as compressed bytes: only the buckets in use, in the narrowest integers, zlib.

    The counts come last, and how many they are before them, so that `convlens.core.outlines`
    can stop there.
    """
    used = np.flatnonzero(columns.counts.any(axis=0))
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    arrays: dict[str, NDArray[Any]] = {f.name: getattr(columns, f.name) for f in _FIELDS}
    arrays["finite"] = narrow(columns.n_finite)
    arrays["shape"] = np.array([low, columns.counts.shape[1], columns.positive.shape[1]], np.int64)
    del arrays["counts"]
    arrays["counts"] = columns.counts[:, low:high]
    for name in _INTEGERS:
        arrays[name] = narrow(arrays[name])
    for name in _FLAGS:
        arrays[name] = np.packbits(arrays[name], axis=1)
    return pack(arrays)


def decode(payload: bytes, n_buckets: int | None = None, *, narrow: bool = False) -> Columns:
    """The columns that `encode` wrote. Never runs anything: arrays of plain numbers only.

    Args:
        payload: the bytes.
        n_buckets: number of buckets B that they must have.
        narrow: leave the counts in the narrow integers that they were written in.

    Raises:
        RunError: if the bytes are not such a chunk.
        ValueError: if it is one of other buckets.
    """
    arrays = unpack(payload, CHUNK_LIMIT)
    try:
        del arrays["finite"]  # it follows from the counts
        low, size, n_channels = check_shape(arrays.pop("shape"), ndim=1).tolist()
        check_chunk(arrays, low, size, n_channels)
        used = arrays["counts"]
        widen(arrays, n_channels)
        if low + used.shape[1] > size:
            raise ValueError(f"its buckets from {low} on are not among {size}")
        arrays["counts"] = np.zeros((len(used), size), used.dtype if narrow else np.int64)
        arrays["counts"][:, low : low + used.shape[1]] = used
        columns = Columns(**arrays)
    except DAMAGES as error:
        raise damaged(payload, error) from error
    check_buckets(size, n_buckets)
    return columns


def check_buckets(found: int, expected: int | None) -> None:
    """Raise a ValueError unless a chunk has the buckets that are expected, if any."""
    if expected is not None and found != expected:
        raise ValueError(f"{found} buckets where {expected} are expected")


DAMAGES = (ValueError, KeyError, TypeError, IndexError)
"""What arrays that are no chunk lead to."""


def damaged(payload: bytes, error: Exception) -> RunError:
    """The sentence for a chunk that `encode` never wrote."""
    return RunError(
        f"A chunk of sketch columns ({len(payload)} bytes) cannot be decoded ({error}); "
        "the record is damaged there. Restore run.db from a copy."
    )


def widen(arrays: dict[str, NDArray[Any]], n_channels: int) -> None:
    """Make of a packet's arrays those of `Columns`, but for the counts."""
    for name, array in arrays.items():
        if name in _FLAGS:
            flags = np.unpackbits(array, axis=-1, count=n_channels)
            arrays[name] = flags.view(np.bool_)
        elif name not in _REALS and name != "counts":
            arrays[name] = array.astype(np.int64, copy=False)


_FIELDS = fields(Columns)
_FLAGS = ("positive", "active")
_SUMS = ("batch_norm", "error")
_REALS = ("mean", "m2", *_SUMS)
_INTEGERS = tuple(f.name for f in _FIELDS if f.name not in (*_FLAGS, *_REALS))


def check_shape(shape: NDArray[Any], ndim: int) -> Ints:
    """Raise a ValueError unless this says, of one chunk or several, what it was made of.

    Args:
        shape: the lowest bucket in use, how many buckets, and how many channels there are.
        ndim: 1 for one chunk, 2 for several.
    """
    if shape.dtype.kind != "i" or shape.ndim != ndim or shape.shape[-1] != 3:
        raise ValueError(f"shape is {shape.dtype} of shape {shape.shape}")
    return shape.astype(np.int64, copy=False)


def check_chunk(arrays: dict[str, NDArray[Any]], low: int, n_buckets: int, n_channels: int) -> None:
    """Raise a ValueError unless these are the arrays of one chunk, with the same K in all."""
    n = len(arrays["first_step"])
    for name, array in arrays.items():
        kinds = "f" if name in _REALS else "u" if name in _FLAGS else "iu"
        shape: tuple[int, ...] = (n,)
        if name in _FLAGS:
            shape = (n, (n_channels + 7) // 8)
        elif name == "counts" or name in _SUMS:
            shape = (n, array.shape[-1])
        if array.dtype.kind not in kinds or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, expected {shape}")
    if not 0 <= low <= n_buckets:
        raise ValueError(f"its buckets from {low} on are not among {n_buckets}")
    most = MOST_COLUMNS, MOST_BUCKETS, MOST_CHANNELS
    if n > most[0] or n_buckets > most[1] or not 0 <= n_channels <= most[2]:
        found = n, n_buckets, n_channels
        raise ValueError(f"it has {found} columns, buckets and channels, expected at most {most}")


def narrow(values: Ints, peak: int | None = None) -> NDArray[Any]:
    """A copy of integers in as few bits as they need, if none is negative.

    Args:
        values: of any shape.
        peak: what none of them exceeds, if none is negative and that is known.
    """
    if peak is None:
        if values.min(initial=0) < 0:
            return values.copy()
        peak = int(values.max(initial=0))
    for dtype in (np.uint8, np.uint16, np.uint32):
        if peak <= np.iinfo(dtype).max:
            return values.astype(dtype)
    return values.copy()
