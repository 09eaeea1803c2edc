"""The buckets of the sketch: their layout, and what can be read from counts in them.

A float's own bits are a logarithmic histogram: sign, exponent and the top mantissa bits name its
bucket. Shapes: K columns of counts, B buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class BucketLayout:
    """Which bucket a finite float32 falls into; stored with every run.

    Buckets are ordered by value and symmetric about the zero bucket in the middle: overflow,
    the buckets of ``2**min_exponent <= |x| < 2**max_exponent``, underflow, zero, and the same
    mirrored. Each octave is cut into ``2**mantissa_bits`` buckets of equal width.

    >>> from convlens.core.buckets import BucketLayout
    >>> BucketLayout().size
    773
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


def quantiles(counts: Ints, edges: Floats, shares: Sequence[float]) -> Floats:
    """The values below which some shares of the finite values lie.

    Args:
        counts: (K, B) bucket counts.
        edges: (B + 1,) bucket edges.
        shares: Q numbers between 0 and 1.

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
    """(K, 2) edges of the bucket that holds a quantile.

    The quantile is the smallest value that a share ``q`` of the finite values does not exceed.
    The outermost edges are infinite; an empty column gives NaN.
    """
    cumulative = counts.cumsum(axis=1, dtype=np.int64)
    bucket, _ = _bucket_of(cumulative, q)
    bounds = np.stack([edges[bucket], edges[bucket + 1]], axis=1)
    return np.where(cumulative[:, -1:] > 0, bounds, np.nan)


def _bucket_of(cumulative: Ints, q: float) -> tuple[Ints, Floats]:
    """(K,) bucket of a quantile, (K,) how many values lie up to it."""
    total = cumulative[:, -1]
    target = np.maximum(q * total, np.minimum(total, 1) * 0.5)
    return np.argmax(cumulative >= target[:, None], axis=1), target


def count_below(counts: Ints, edges: Floats, threshold: float) -> tuple[Ints, Ints, Floats]:
    """How many finite values lie below a finite threshold.

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
    """Bucket counts in other bins, each bucket spread evenly over its width.

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
    """The edges, with the infinite outermost ones moved in to their neighbours."""
    inner = edges.copy()
    inner[0], inner[-1] = edges[1], edges[-2]
    return inner
