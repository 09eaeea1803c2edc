"""The histories of what was watched: a layer's or a parameter's statistics over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convlens.core.buckets import (
    BucketLayout,
    Flags,
    Floats,
    Ints,
    count_below,
    quantile_bounds,
    quantiles,
    rebin,
)
from convlens.core.columns import Columns
from convlens.errors import ArgumentError

_ERRORS = {"mean": 0, "std": 1, "near_zero": 2, "near_zero_after_relu": 3, "zeros": 4}
"""Where each figure's squared error lies in `convlens.core.columns.Columns.error`."""


OPTIMIZER_STEP, FORWARD = "optimizer step", "forward"


@dataclass(frozen=True)
class LayerInfo:
    """What is known of a watched layer.

    Attributes:
        index: its position among the watched layers, from 0.
        name: the module's qualified name, such as ``"0.0"`` or ``"layer1.conv2"``.
        kind: the module's class name, such as ``"Conv2d"``.
        feeds_relu: whether a ReLU takes this layer's output directly, so that a channel with no
            positive value is dead.
        quantity: what the values are: ``"activation"``, the layer's output; ``"gradient"``, that
            of a parameter; ``"parameter"``, a parameter before an optimizer's step; ``"update"``,
            what that step added to it. Indices count within one quantity.
    """

    index: int
    name: str
    kind: str
    feeds_relu: bool = False
    quantity: str = "activation"


@dataclass(frozen=True, repr=False)
class LayerHistory:
    """One layer's statistics over the recorded columns of time. K columns, B buckets, C channels.

    Shares are fractions of ``n``. ``mean`` and ``std`` are those of the finite values; ``std`` is
    the population's (divided by n).

    >>> from convlens.core.buckets import BucketLayout
    >>> from convlens.core.columns import empty_columns
    >>> from convlens.core.histories import LayerHistory, LayerInfo
    >>> LayerHistory(LayerInfo(0, "0.0", "Conv2d"), empty_columns(773, 8), BucketLayout())
    LayerHistory('0.0', Conv2d, activation, 0 columns)

    Attributes:
        layer: whose values they are, and which.
        columns: the sketches.
        layout: the buckets of ``columns.counts``.
        eps: bound of near zero.
        sample: the fraction of each batch's images that was watched; 1 is all of them.
        counted: what its steps are: ``"optimizer step"``, or ``"forward"`` where a watcher counted
            the forwards of the model.
    """

    layer: LayerInfo
    columns: Columns
    layout: BucketLayout
    eps: float = 0.05
    sample: float = 1.0
    counted: str = OPTIMIZER_STEP

    def __len__(self) -> int:
        return len(self.columns)

    def __repr__(self) -> str:
        span = f", steps {self.first_step[0]} to {self.last_step[-1]}" if len(self) else ""
        what = f"{self.layer.name!r}, {self.layer.kind}, {self.layer.quantity}"
        return f"LayerHistory({what}, {len(self)} columns{span})"

    @property
    def first_step(self) -> Ints:
        """(K,) first step of each column; see `counted`."""
        return self.columns.first_step

    @property
    def last_step(self) -> Ints:
        """(K,) last step of each column."""
        return self.columns.last_step

    @property
    def middle_step(self) -> Floats:
        """(K,) middle of each column's steps: where a line is drawn through it."""
        return (self.first_step + self.last_step) / 2

    @property
    def calls(self) -> Ints:
        """(K,) forward calls counted in each column."""
        return self.columns.calls

    @property
    def n(self) -> Ints:
        """(K,) number of values."""
        return self.columns.n

    @property
    def mean(self) -> Floats:
        """(K,) mean of the finite values."""
        return self.columns.mean

    @property
    def std(self) -> Floats:
        """(K,) population standard deviation of the finite values, NaN where there are none."""
        n = self.columns.n_finite
        return np.sqrt(np.divide(self.columns.m2, n, out=np.full(len(n), np.nan), where=n > 0))

    @property
    def norm(self) -> Floats:
        """(K,) L2 norm of one call's finite values, as the root mean square over the calls.

        ``sqrt((m2 + n · mean²) / calls)``; NaN where no value was finite.
        """
        columns = self.columns
        squares = columns.m2 + columns.n_finite * columns.mean**2
        return np.sqrt(
            np.divide(squares, self.calls, out=np.full(len(self), np.nan), where=self.calls > 0)
        )

    @property
    def near_zero(self) -> Floats:
        """(K,) share of values with |x| ≤ eps."""
        return self._share(self.columns.near_zero)

    @property
    def near_zero_after_relu(self) -> Floats:
        """(K,) share of values with x ≤ eps: near zero once a ReLU has been applied."""
        return self._share(self.columns.at_most_eps)

    @property
    def zeros(self) -> Floats:
        """(K,) share of values that are exactly zero."""
        return self._share(self._counts[:, self.layout.zero])

    @property
    def nonpositive(self) -> Floats:
        """(K,) share of values with x ≤ 0: the exact zeros once a ReLU has been applied."""
        below = self._counts[:, : self.layout.zero + 1].sum(axis=1, dtype=np.int64)
        return self._share(below + self.columns.neg_inf)

    @property
    def nonfinite(self) -> Floats:
        """(K,) share of values that are NaN or infinite."""
        return self._share(self.columns.nan + self.columns.neg_inf + self.columns.pos_inf)

    @property
    def channels(self) -> int:
        """Number of channels C, 0 for a layer without a channel axis."""
        return self.columns.positive.shape[1]

    @property
    def dead_channels(self) -> Ints:
        """(K,) channels without a positive value where a ReLU follows; 0 elsewhere."""
        dead: Flags = ~self.columns.positive & (self.n > 0)[:, None]
        return dead.sum(axis=1) if self.layer.feeds_relu else np.zeros(len(self), np.int64)

    @property
    def silent_channels(self) -> Ints:
        """(K,) channels whose every value is near zero; 0 where there was no value."""
        silent: Flags = ~self.columns.active & (self.n > 0)[:, None]
        return silent.sum(axis=1)

    @property
    def batch_mean(self) -> Floats:
        """(K,) of batch normalization: mean over channels of the batch's mean, else NaN."""
        return self._per_call(self.columns.batch_norm, 0)

    @property
    def batch_var(self) -> Floats:
        """(K,) of batch normalization: mean over channels of the batch's biased variance."""
        return self._per_call(self.columns.batch_norm, 1)

    @property
    def running_mean(self) -> Floats:
        """(K,) of batch normalization: mean over channels of the running mean after the batch."""
        return self._per_call(self.columns.batch_norm, 2)

    @property
    def running_var(self) -> Floats:
        """(K,) of batch normalization: mean over channels of the running (unbiased) variance."""
        return self._per_call(self.columns.batch_norm, 3)

    def standard_error(self, figure: str) -> Floats:
        """(K,) standard error of a figure, where only some of each batch's images were looked at.

        The images are the sampling units, since values of one image resemble each other:
        s²·(1 − k/N)/k for k of N images, s² the variance between images (Cochran, Sampling
        Techniques, 1977, §2.6); for ``std`` by the delta method. Zeros for a history that counted
        every value, NaN if a batch gave one image or none.

        Args:
            figure: ``"mean"``, ``"std"``, ``"near_zero"``, ``"near_zero_after_relu"`` or
                ``"zeros"``.

        Raises:
            ArgumentError: if there is no such figure.
        """
        if figure not in _ERRORS:
            raise ArgumentError(
                f"figure must be one of {', '.join(map(repr, _ERRORS))}, got {figure!r}."
            )
        if self.sample == 1.0:
            return np.zeros(len(self))
        error = np.sqrt(self._per_call(self.columns.error, _ERRORS[figure]) / self.calls)
        # d std = d variance / (2 std)
        return error / (2 * self.std) if figure == "std" else error

    def _per_call(self, sums: Floats, column: int) -> Floats:
        if column >= sums.shape[1]:
            return np.full(len(self), np.nan)
        return sums[:, column] / self.calls

    @property
    def counts(self) -> Ints:
        """(K, B) finite values per bucket.

        Raises:
            ArgumentError: if the counts were left out (`Columns.without_counts`), here and in
                everything that is read from buckets.
        """
        return self._counts.astype(np.int64, copy=False)

    @property
    def _counts(self) -> Ints:
        """The counts in the integers that they are stored in, which may be narrow."""
        if self.columns.counts.shape[1] != self.layout.size:
            raise ArgumentError(
                f"The history of {self.layer.name!r} has no bucket counts, from which zeros, "
                "quantiles and histograms are read; use run.activation_stats[...] instead."
            )
        return self.columns.counts

    @property
    def bucket_edges(self) -> Floats:
        """(B + 1,) ascending edges of the buckets; see `BucketLayout.edges`."""
        return self.layout.edges

    @property
    def min_bucket(self) -> Floats:
        """(K, 2) edges of the bucket that holds the smallest finite value, NaN if there is none.

        With the standard layout they differ by 1/8 of the value; the outermost buckets, of
        |x| ≥ 65,536, have an infinite edge.
        """
        return self.quantile_bounds(0.0)

    @property
    def max_bucket(self) -> Floats:
        """(K, 2) edges of the bucket that holds the largest finite value; see `min_bucket`."""
        return self.quantile_bounds(1.0)

    def quantile(self, q: float) -> Floats:
        """(K,) value below which a share ``q`` of the finite values lies.

        The error is at most the width of its bucket, 1/8 of the value with the standard layout.

        Raises:
            ArgumentError: if ``q`` is not between 0 and 1.
        """
        return self.quantiles([q])[0]

    def quantiles(self, shares: Sequence[float]) -> Floats:
        """(Q, K) what `quantile` returns for each share, in little more time than for one.

        Raises:
            ArgumentError: if a share is not between 0 and 1.
        """
        return quantiles(self._counts, self.bucket_edges, [_checked_share(q) for q in shares])

    def quantile_bounds(self, q: float) -> Floats:
        """(K, 2) edges of the bucket that holds the quantile.

        Raises:
            ArgumentError: if ``q`` is not between 0 and 1.
        """
        return quantile_bounds(self._counts, self.bucket_edges, _checked_share(q))

    def share_below(self, threshold: float) -> Floats:
        """(K,) share of values with x < ``threshold``, −∞ among them.

        Exact at 0 and at the positive ``bucket_edges``. Elsewhere the bucket that the threshold
        cuts is spread evenly over its width; see `share_below_bounds`.

        Raises:
            ArgumentError: if ``threshold`` is not finite.
        """
        estimate = count_below(self._counts, self.bucket_edges, _checked_finite(threshold))[2]
        return self._share(estimate + self.columns.neg_inf)

    def share_below_bounds(self, threshold: float) -> Floats:
        """(K, 2) the least and the most that the share of values with x < ``threshold`` can be.

        Raises:
            ArgumentError: if ``threshold`` is not finite.
        """
        least, most, _ = count_below(self._counts, self.bucket_edges, _checked_finite(threshold))
        shares = [self._share(count + self.columns.neg_inf) for count in (least, most)]
        return np.stack(shares, axis=1)

    def rebin(self, edges: Sequence[float] | Floats) -> Floats:
        """(K, M) counts in the bins between ``edges``, shape (M + 1,).

        The error at an edge is at most the count of the bucket that it cuts. Values outside the
        edges are in no bin.

        Raises:
            ArgumentError: if the edges are not at least two finite numbers in ascending order.
        """
        bins = np.asarray(edges, np.float64)
        is_list = bins.ndim == 1 and len(bins) >= 2
        if not is_list or not np.isfinite(bins).all() or (np.diff(bins) < 0).any():
            raise ArgumentError(
                f"edges must be at least two finite numbers in ascending order, got {edges!r}."
            )
        return rebin(self._counts, self.bucket_edges, bins)

    def _share(self, count: Ints | Floats) -> Floats:
        n = self.n
        return np.divide(count, n, out=np.full(len(n), np.nan), where=n > 0)


FIGURES = (
    *("mean", "std", "near_zero", "near_zero_after_relu"),
    *("dead", "silent", "norm", "nonfinite"),
)
"""The names in `SeriesFigures.values`, in the order of `figures_of`."""


@dataclass(frozen=True, repr=False)
class SeriesFigures:
    """The figures of all series of one quantity over the same columns of time. L series, K columns.

    Attributes:
        layers: the series, in order of their index.
        first_step: (K,) first step of each column, in any of the series.
        last_step: (K,) last step of each column.
        values: for each of `FIGURES` an (L, K) array, NaN where a series has no such column. Those
            of `LayerHistory` under their names; ``"dead"`` and ``"silent"`` are the shares of its
            dead and silent channels, NaN for a series without channels.
    """

    layers: Sequence[LayerInfo]
    first_step: Ints
    last_step: Ints
    values: Mapping[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.first_step)

    def __repr__(self) -> str:
        return f"SeriesFigures({len(self.layers)} series, {len(self)} columns)"

    @property
    def middle_step(self) -> Floats:
        """(K,) middle of each column's steps: where a line is drawn through it."""
        return (self.first_step + self.last_step) / 2


def figures_of(history: LayerHistory) -> NDArray[np.float32]:
    """(F, K) each of `FIGURES` for each column; bucket counts are not needed."""
    found = np.empty((len(FIGURES), len(history)), np.float32)
    channels = np.where(history.n > 0, history.channels or np.nan, np.nan)
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        found[0], found[1] = history.mean, history.std
        found[2], found[3] = history.near_zero, history.near_zero_after_relu
        found[4] = history.dead_channels / channels
        found[5] = history.silent_channels / channels
        found[6], found[7] = history.norm, history.nonfinite
    return found


@dataclass(frozen=True, repr=False)
class UpdateHistory:
    """What the optimizer's steps did to one parameter, over the same K columns of time.

    Attributes:
        update: what each step added to the parameter.
        parameter: the parameter before each step.
    """

    update: LayerHistory
    parameter: LayerHistory

    def __len__(self) -> int:
        return len(self.update)

    def __repr__(self) -> str:
        layer = self.update.layer
        return f"UpdateHistory({layer.name!r}, {layer.kind}, {len(self)} columns)"

    @property
    def ratio(self) -> Floats:
        """(K,) ‖Δw‖ / ‖w‖: how large a step is, measured by what it changes.

        Both are `LayerHistory.norm`, root mean squares over a column's steps. NaN where the
        parameter was all zero, as a bias may be before its first step.
        """
        size = self.parameter.norm
        return np.divide(self.update.norm, size, out=np.full(len(self), np.nan), where=size > 0)


def _checked_share(q: float) -> float:
    if not 0 <= q <= 1:
        raise ArgumentError(f"q must be a number from 0 to 1, got {q}.")
    return q


def _checked_finite(threshold: float) -> float:
    if not math.isfinite(threshold):
        raise ArgumentError(f"threshold must be finite, got {threshold}.")
    return threshold
