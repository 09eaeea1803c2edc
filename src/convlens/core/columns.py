"""`Columns`: the sketches of one layer over time, how they add up, and their bytes.

A *sketch* of a set of values is the count of values in each bucket (`convlens.core.buckets`)
together with n, mean, the sum of squared deviations M2, and a few exact counts. Two sketches add up
(Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing Sample Variances,
1979): counts exactly, moments to float64 rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from convlens.core.buckets import Flags, Floats, Ints
from convlens.core.encoding import pack, unpack
from convlens.errors import RunError

BUDGET_BITS = 12
"""A series keeps at most 2^12 = 4,096 columns; see `level_at`."""

CHUNK_BITS = 6
"""Columns are stored in chunks of 2^6 = 64: those whose steps share ``step >> (level + 6)``."""

CHUNK_LIMIT = 1 << 25
"""Bytes that an encoded chunk may have once inflated: 32 MiB."""

MOST_COLUMNS, MOST_BUCKETS, MOST_CHANNELS = 1 << BUDGET_BITS, 1 << 16, 1 << 20
"""Columns, buckets and channels that an encoded chunk may have."""


@dataclass(frozen=True, repr=False)
class Columns:
    """Sketches of one layer, one per column of time. K columns, B buckets, C channels.

    Column k covers the optimizer steps ``first_step[k]`` to ``last_step[k]``. Every count is exact.
    ``mean`` and ``m2`` (sum of squared deviations from the mean) are those of the finite values.

    Attributes:
        first_step: (K,) first step counted in the column.
        last_step: (K,) last step counted in the column.
        calls: (K,) how many forward calls were counted.
        counts: (K, B) finite values per bucket of the `BucketLayout`, in any integer type; (K, 0)
            where they were left out, see `without_counts`.
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
        finite: (K, 1) number of finite values where the counts were left out, else (K, 0).
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
    finite: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def __post_init__(self) -> None:
        for name in _OPTIONAL:
            array, shape = getattr(self, name), (len(self.first_step), 0)
            if not array.size and array.shape != shape:  # not measured: no wider than the default
                object.__setattr__(self, name, np.zeros(shape, array.dtype))

    def __len__(self) -> int:
        return len(self.first_step)

    def __repr__(self) -> str:
        span = f" (steps {self.first_step[0]} to {self.last_step[-1]})" if len(self) else ""
        shape = f"{self.counts.shape[1]} buckets, {self.positive.shape[1]} channels"
        return f"Columns({len(self)} columns{span}, {shape})"

    @property
    def n_finite(self) -> Ints:
        """(K,) number of finite values."""
        return self.finite[:, 0] if self.finite.size else self.counts.sum(axis=1, dtype=np.int64)

    @property
    def n(self) -> Ints:
        """(K,) number of values, finite or not."""
        return self.n_finite + self.nan + self.neg_inf + self.pos_inf

    def __getitem__(self, rows: slice | Ints) -> Self:
        """The same sketches for some of the columns."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def without_counts(self) -> Columns:
        """The same without the bucket counts, which are nearly all of the memory.

        >>> from convlens.core.columns import empty_columns
        >>> empty_columns(773, 8).without_counts()
        Columns(0 columns, 0 buckets, 8 channels)
        """
        none = np.zeros((len(self), 0), np.int64)
        return replace(self, counts=none, finite=self.n_finite[:, None])


_FLAGS = ("positive", "active")
_REALS = ("mean", "m2", "batch_norm", "error")
_OPTIONAL = ("batch_norm", "error", "finite")


def empty_columns(n_buckets: int, n_channels: int) -> Columns:
    """No columns, of the right widths."""
    none, reals = np.zeros(0, np.int64), np.zeros(0, np.float64)
    flags, counts = np.zeros((0, n_channels), np.bool_), np.zeros((0, n_buckets), np.int64)
    return Columns(
        none, none, none, counts, none, none, none, none, none, reals, reals, flags, flags
    )


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Columns one after the other; flags and sums are widened to the widest part.

    Raises:
        ValueError: if ``parts`` is empty.
    """
    if not parts:
        raise ValueError("parts is empty")
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {}
    for f in fields(Columns):
        arrays = [getattr(part, f.name) for part in parts]
        if f.name in _FLAGS or f.name in _OPTIONAL:
            width = max(array.shape[1] for array in arrays)
            arrays = [
                a if a.shape[1] == width else np.pad(a, ((0, 0), (0, width - a.shape[1])))
                for a in arrays
            ]
        joined[f.name] = np.concatenate(arrays)
    return Columns(**joined)


def merge_runs(columns: Columns, starts: Ints) -> Columns:
    """Add up neighbouring columns: group g is the columns from ``starts[g]`` to ``starts[g + 1]``.

    Args:
        columns: K columns in order of time.
        starts: (G,) ascending positions, the first 0.

    Returns:
        G columns. Counts add up exactly, channel flags are joined by *or*, moments by Chan's rule.
        A group of one is that column, unchanged.
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
        "counts": _add_counts(columns.counts, starts),
        "mean": np.where(
            alone, columns.mean[starts], np.where(total > 0, group_mean + residual, np.nan)
        ),
        "m2": np.where(alone, columns.m2[starts], np.maximum(m2, 0.0)),
        "positive": np.logical_or.reduceat(columns.positive, starts, axis=0),
        "active": np.logical_or.reduceat(columns.active, starts, axis=0),
    }
    for f in fields(Columns):
        if f.name not in merged:
            merged[f.name] = np.add.reduceat(getattr(columns, f.name), starts, axis=0)
    return Columns(**merged)


def _add_counts(counts: Ints, starts: Ints) -> Ints:
    """``np.add.reduceat`` along axis 0 to int64, in an eighth of its time."""
    added = counts[starts].astype(np.int64)
    stops = np.append(starts[1:], len(counts))
    several = np.flatnonzero(stops - starts > 1) if counts.size else starts[:0]
    for i, first, stop in zip(several, starts[several], stops[several], strict=True):
        np.add.reduce(counts[first:stop], axis=0, dtype=np.int64, out=added[i])
    return added


def coarsen(columns: Columns, level: int) -> Columns:
    """Merge the columns whose steps share ``step >> level``; columns are in order of time."""
    if len(columns) == 0:
        return columns
    key = columns.first_step >> level
    starts = np.flatnonzero(np.diff(key, prepend=key[0] - 1))
    return columns if len(starts) == len(columns) else merge_runs(columns, starts)


def join(parts: Sequence[Columns], level: int) -> Columns:
    """Columns of one series in order of time, merged where they share ``step >> level``."""
    columns = concatenate(parts)
    if np.any(np.diff(columns.first_step) < 0):
        columns = columns[np.argsort(columns.first_step, kind="stable")]
    return coarsen(columns, level)


def level_at(step: int) -> int:
    """The level at which ``step`` is recorded: columns of the steps that share ``step >> level``.

    One level for a whole run, raised by the step's number alone whenever 4,096 columns are full,
    so that layers, ranks and resumed runs always agree.

    >>> from convlens.core.columns import level_at
    >>> level_at(4_095), level_at(4_096), level_at(1_000_000)
    (0, 1, 8)
    """
    return max(0, step.bit_length() - BUDGET_BITS)


def chunk_of(step: int, level: int) -> int:
    """The chunk of 64 columns that a step belongs to."""
    return step >> (level + CHUNK_BITS)


def encode(columns: Columns) -> bytes:
    """Columns as compressed bytes: only the buckets in use, in the narrowest integers, zlib.

    The counts come last, after their sums, so that `decode` need not inflate them.
    """
    used = np.flatnonzero(columns.counts.any(axis=0))
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    size, n_channels = columns.counts.shape[1], columns.positive.shape[1]
    arrays: dict[str, NDArray[Any]] = {"shape": np.array([low, size, n_channels], np.int64)}
    for f in fields(Columns):
        array = getattr(columns, f.name)
        if f.name in _FLAGS:
            arrays[f.name] = np.packbits(array, axis=1)
        elif f.name not in ("counts", "finite"):
            arrays[f.name] = array if f.name in _REALS else narrow(array)
    arrays["finite"] = narrow(columns.n_finite[:, None])
    arrays["counts"] = narrow(columns.counts[:, low:high])
    return pack(arrays)


def decode(payload: bytes, n_buckets: int | None = None, *, counts: bool = True) -> Columns:
    """The columns that `encode` wrote, with counts in the narrow integers that they were stored in.

    Args:
        payload: the bytes.
        n_buckets: number of buckets B that they must have.
        counts: False leaves out the bucket counts, see `Columns.without_counts`.

    Raises:
        RunError: if the bytes are not such a chunk.
    """
    arrays = unpack(payload, CHUNK_LIMIT, last=counts)
    try:
        if not counts:
            if "counts" in arrays:  # they were not last when a few older runs were written
                return decode(payload, n_buckets).without_counts()
            arrays["counts"] = np.zeros((len(arrays["finite"]), 0), np.uint8)
        low, size, n_channels = (int(n) for n in arrays.pop("shape"))
        if n_buckets not in (None, size):
            raise ValueError(f"{size} buckets where {n_buckets} are expected")
        _check_arrays(arrays, low, size, n_channels)
        if counts:
            arrays["finite"] = arrays["finite"][:, :0]
        for name, array in arrays.items():
            if name in _FLAGS:
                arrays[name] = np.unpackbits(array, axis=1, count=n_channels).view(np.bool_)
            elif name not in _REALS and name != "counts":
                arrays[name] = array.astype(np.int64)
        used = arrays["counts"]
        arrays["counts"] = np.zeros((len(used), size if counts else 0), used.dtype)
        arrays["counts"][:, low : low + used.shape[1]] = used
        return Columns(**arrays)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RunError(
            f"A chunk of sketch columns ({len(payload)} bytes) cannot be decoded ({error}); "
            "the record is damaged there. Restore run.db from a copy."
        ) from error


def _check_arrays(arrays: dict[str, NDArray[Any]], low: int, size: int, n_channels: int) -> None:
    """Raise a ValueError unless these are the arrays of one chunk, with the same K in all."""
    n = len(arrays["first_step"])
    for name, array in arrays.items():
        kinds = "f" if name in _REALS else "u" if name in _FLAGS else "iu"
        shape: tuple[int, ...] = (n,)
        if name in _FLAGS:
            shape = (n, (n_channels + 7) // 8)
        elif name == "counts" or name in _OPTIONAL:
            shape = (n, array.shape[-1])
        if array.dtype.kind not in kinds or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, expected {shape}")
    if not 0 <= low <= low + arrays["counts"].shape[1] <= size:
        raise ValueError(f"its buckets from {low} on are not among {size}")
    most = MOST_COLUMNS, MOST_BUCKETS, MOST_CHANNELS
    if n > most[0] or size > most[1] or not 0 <= n_channels <= most[2]:
        found = n, size, n_channels
        raise ValueError(f"it has {found} columns, buckets and channels, expected at most {most}")


def narrow(values: Ints, peak: int | None = None) -> NDArray[Any]:
    """A copy of integers in as few bits as they need, if none is negative.

    Args:
        values: of any shape.
        peak: an upper bound of the values, if it is known and none is negative.
    """
    if peak is None:
        if values.min(initial=0) < 0:
            return values.copy()
        peak = int(values.max(initial=0))
    for dtype in (np.uint8, np.uint16, np.uint32):
        if peak <= np.iinfo(dtype).max:
            return values.astype(dtype)
    return values.copy()
