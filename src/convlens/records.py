"""Frozen records of plain numbers and NumPy arrays that the rooms hand each other.

What is shown was measured: training writes these to a `RecordSink`; the report, the page and the
doctor read them back, from memory or from a run's record, and cannot tell the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convlens.errors import ArgumentError
from convlens.sketch import (
    BucketLayout,
    Columns,
    Flags,
    Floats,
    Ints,
    count_below,
    quantile,
    quantile_bounds,
    rebin,
)

_ERRORS = {"mean": 0, "std": 1, "near_zero": 2, "near_zero_after_relu": 3, "zeros": 4}
"""Where each figure's squared error lies in `convlens.sketch.Columns.error`."""


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


@dataclass(frozen=True)
class LayerHistory:
    """One layer's statistics over the recorded columns of time. K columns, B buckets, C channels.

    Shares are fractions of ``n``. ``mean`` and ``std`` are those of the finite values; ``std`` is
    the population's (divided by n), as activations are all there is to measure.

    Attributes:
        layer: whose values they are, and which.
        columns: the sketches.
        layout: the buckets of ``columns.counts``.
        eps: bound of near zero.
        sample: the fraction of each batch's images that was looked at; 1 is all of them.
    """

    layer: LayerInfo
    columns: Columns
    layout: BucketLayout
    eps: float = 0.05
    sample: float = 1.0

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def first_step(self) -> Ints:
        """(K,) first optimizer step of each column."""
        return self.columns.first_step

    @property
    def last_step(self) -> Ints:
        """(K,) last optimizer step of each column."""
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

        ``sqrt((m2 + n · mean²) / calls)``: the sum of squares follows from the moments, since
        Σx² = Σ(x − mean)² + n · mean². NaN where no value was finite.
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
        return self._share(self.columns.counts[:, self.layout.zero])

    @property
    def nonpositive(self) -> Floats:
        """(K,) share of values with x ≤ 0: the exact zeros once a ReLU has been applied."""
        below = self.columns.counts[:, : self.layout.zero + 1].sum(axis=1)
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
        """(K,) channels without a single positive value where a ReLU follows; else all zero."""
        dead: Flags = ~self.columns.positive
        return dead.sum(axis=1) if self.layer.feeds_relu else np.zeros(len(self), np.int64)

    @property
    def silent_channels(self) -> Ints:
        """(K,) channels whose every value is near zero."""
        silent: Flags = ~self.columns.active
        return silent.sum(axis=1)

    @property
    def batch_mean(self) -> Floats:
        """(K,) of batch normalization: mean over channels of the batch's mean, else NaN.

        Several calls in a column are averaged, here and in the next three.
        """
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
        Techniques, 1977, §2.6); for ``std`` by the delta method from the variance. NaN if a
        batch gave one image or none.

        Args:
            figure: ``"mean"``, ``"std"``, ``"near_zero"``, ``"near_zero_after_relu"`` or
                ``"zeros"``.

        Returns:
            Zeros for a history that counted every value.

        Raises:
            ArgumentError: if there is no such figure.
        """
        if figure not in _ERRORS:
            raise ArgumentError(
                f"figure={figure!r} has no standard error; give one of "
                f"{', '.join(map(repr, _ERRORS))}."
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
        """(K, B) finite values per bucket."""
        return self.columns.counts

    @property
    def bucket_edges(self) -> Floats:
        """(B + 1,) ascending edges of the buckets; see `BucketLayout.edges`."""
        return self.layout.edges

    @property
    def min_bucket(self) -> Floats:
        """(K, 2) edges of the bucket that holds the smallest finite value.

        The smallest value lies between them, so that either edge is off by the bucket's width at
        most, 1/8 of the value with the standard layout. The outermost buckets, of |x| ≥ 65,536,
        have an infinite edge. NaN where no value was finite.
        """
        return self.quantile_bounds(0.0)

    @property
    def max_bucket(self) -> Floats:
        """(K, 2) edges of the bucket that holds the largest finite value; see `min_bucket`."""
        return self.quantile_bounds(1.0)

    def quantile(self, q: float) -> Floats:
        """(K,) value below which a share ``q`` of the finite values lies.

        The error is at most the bucket's width, 1/8 of the value with the standard layout;
        `quantile_bounds` has the bucket.

        Raises:
            ArgumentError: if ``q`` is not between 0 and 1.
        """
        return quantile(self.counts, self.bucket_edges, _checked_share(q))

    def quantile_bounds(self, q: float) -> Floats:
        """(K, 2) what the quantile lies between: the edges of its bucket, as in `min_bucket`.

        The quantile is the smallest value that a share ``q`` of the finite values does not exceed.

        Raises:
            ArgumentError: if ``q`` is not between 0 and 1.
        """
        return quantile_bounds(self.counts, self.bucket_edges, _checked_share(q))

    def share_below(self, threshold: float) -> Floats:
        """(K,) share of values with x < ``threshold``, −∞ among them.

        Exact at 0 and at the positive ``bucket_edges``. Elsewhere the bucket that the threshold
        cuts is spread evenly over its width, and the error is at most that bucket's share:
        `share_below_bounds` has the least and the most that it can be.

        Raises:
            ArgumentError: if ``threshold`` is not finite.
        """
        estimate = count_below(self.counts, self.bucket_edges, _checked_finite(threshold))[2]
        return self._share(estimate + self.columns.neg_inf)

    def share_below_bounds(self, threshold: float) -> Floats:
        """(K, 2) the least and the most that the share of values with x < ``threshold`` can be.

        Raises:
            ArgumentError: if ``threshold`` is not finite.
        """
        least, most, _ = count_below(self.counts, self.bucket_edges, _checked_finite(threshold))
        shares = [self._share(count + self.columns.neg_inf) for count in (least, most)]
        return np.stack(shares, axis=1)

    def rebin(self, edges: Sequence[float] | Floats) -> Floats:
        """(K, M) counts in bins of one's own between ``edges``, shape (M + 1,).

        The error at an edge is at most the count of the bucket that it cuts. Values outside the
        edges are in no bin.

        Raises:
            ArgumentError: if the edges are not ascending finite numbers, two at least.
        """
        bins = np.asarray(edges, np.float64)
        if (
            bins.ndim != 1
            or len(bins) < 2
            or not np.isfinite(bins).all()
            or (np.diff(bins) < 0).any()
        ):
            raise ArgumentError(
                f"edges={edges!r} are no edges of bins; give at least two finite numbers in "
                "ascending order."
            )
        return rebin(self.counts, self.bucket_edges, bins)

    def _share(self, count: Ints | Floats) -> Floats:
        n = self.n
        return np.divide(count, n, out=np.full(len(n), np.nan), where=n > 0)


def _checked_share(q: float) -> float:
    if not 0 <= q <= 1:
        raise ArgumentError(f"q={q} is no share of the values; give a number from 0 to 1.")
    return q


def _checked_finite(threshold: float) -> float:
    if not math.isfinite(threshold):
        raise ArgumentError(f"threshold={threshold} is not finite; give a finite number.")
    return threshold


@dataclass(frozen=True)
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

    @property
    def ratio(self) -> Floats:
        """(K,) ‖Δw‖ / ‖w‖: how large a step is, measured by what it changes.

        Both are `LayerHistory.norm`, root mean squares over a column's steps. NaN where the
        parameter was all zero, as a bias may be before its first step.
        """
        size = self.parameter.norm
        return np.divide(self.update.norm, size, out=np.full(len(self), np.nan), where=size > 0)


@dataclass(frozen=True)
class StepSeries:
    """What was recorded at each of S optimizer steps, for G parameter groups.

    Attributes:
        step: (S,) number of the step, from 0.
        epoch: (S,) number of the epoch, from 0.
        loss: (S,) training loss of the batch.
        wall_s: (S,) seconds since the fit began, at the end of the step.
        hypers: each hyperparameter by name (``"lr"``, ``"momentum"``, …), shape (S, G). For Adam
            ``"momentum"`` is β₁.
    """

    step: Ints
    epoch: Ints
    loss: Floats
    wall_s: Floats
    hypers: Mapping[str, Floats] = field(default_factory=dict[str, Floats])

    def __len__(self) -> int:
        return len(self.step)


def empty_steps() -> StepSeries:
    """No steps at all."""
    none, reals = np.zeros(0, np.int64), np.zeros(0)
    return StepSeries(none, none, reals, reals, {})


def join_steps(parts: Sequence[StepSeries]) -> StepSeries:
    """Series one after the other; a hyperparameter or group that a part lacks is NaN there."""
    if not parts:
        return empty_steps()
    lengths = [len(part) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part.hypers)
    return StepSeries(
        step=np.concatenate([part.step for part in parts]),
        epoch=np.concatenate([part.epoch for part in parts]),
        loss=np.concatenate([part.loss for part in parts]),
        wall_s=np.concatenate([part.wall_s for part in parts]),
        hypers={
            name: join_groups([part.hypers.get(name) for part in parts], lengths, np.nan)
            for name in names
        },
    )


def join_groups(
    parts: Sequence[NDArray[Any] | None], lengths: Sequence[int], missing: float
) -> NDArray[Any]:
    """Arrays of shape (length, G), one below the other, each filled up to the widest of them."""
    found = [part for part in parts if part is not None]
    width = max(part.shape[1] for part in found)
    joined = np.full((sum(lengths), width), missing, np.result_type(*found))
    start = 0
    for part, length in zip(parts, lengths, strict=True):
        if part is not None:
            joined[start : start + length, : part.shape[1]] = part
        start += length
    return joined


@dataclass(frozen=True)
class Band:
    """The finite values of a series in each of K entries. All arrays are (K,), or (K, G) by group.

    Attributes:
        low: the lowest, NaN where there is none.
        high: the highest.
        mean: their mean.
        finite: how many there are.
    """

    low: Floats
    high: Floats
    mean: Floats
    finite: Ints


@dataclass(frozen=True)
class StepCurves:
    """The series of a training summed up in K entries, for drawing any number of steps.

    Attributes:
        width: an entry covers the recorded steps that share ``step // width``, a power of two; with
            1 the entries are the steps themselves.
        first_step: (K,) the first step in it.
        last_step: (K,) the last one.
        n: (K,) how many steps were recorded of it.
        epoch: (K,) the epoch of its last step.
        wall_s: (K,) seconds since the fit began, at the end of its last step.
        loss: training loss of the batches; (K,) arrays.
        hypers: each hyperparameter by name; (K, G) arrays for G parameter groups.
    """

    width: int
    first_step: Ints
    last_step: Ints
    n: Ints
    epoch: Ints
    wall_s: Floats
    loss: Band
    hypers: Mapping[str, Band] = field(default_factory=dict[str, Band])

    def __len__(self) -> int:
        return len(self.first_step)

    @property
    def middle_step(self) -> Floats:
        """(K,) middle of each entry's steps: where a line is drawn through it."""
        return (self.first_step + self.last_step) / 2


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Attributes:
        epoch: its number, from 0.
        first_step: its first optimizer step.
        last_step: its last optimizer step.
        train_loss: mean of the batch losses, weighted by batch size.
        valid_loss: mean loss over the validation items, None without validation.
        metrics: each metric of the validation by name.
        wall_s: seconds for training and validation of this epoch.
    """

    epoch: int
    first_step: int
    last_step: int
    train_loss: float
    valid_loss: float | None
    metrics: Mapping[str, float]
    wall_s: float


@dataclass(frozen=True)
class Picture:
    """Images that a run keeps, with a word for each.

    Attributes:
        name: what they show: ``"batch"`` or ``"worst"``.
        epoch: the epoch after which they were taken, -1 for before training.
        images: (N, H, W) or (N, H, W, 3), uint8.
        captions: N texts, such as ``"7"`` or ``"4, predicted 9 (99.1 %), loss 4.71"``.
    """

    name: str
    epoch: int
    images: NDArray[np.uint8]
    captions: Sequence[str]


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor saw.

    Attributes:
        kind: a stable key such as ``"one-class"`` or ``"dead-channels"``.
        severity: ``"good"``, ``"note"`` or ``"problem"``.
        text: one or two sentences: what was measured, what it means, what to try.
        layer: the layer it is about, None for the whole run.
        first_step: where it begins, None if that does not apply.
    """

    kind: str
    severity: str
    text: str
    layer: str | None = None
    first_step: int | None = None


class RecordSink(Protocol):
    """Where training and watching write to: a run's record implements it."""

    def write_meta(self, values: Mapping[str, Any]) -> None:
        """Add or replace facts of the run by name; values are plain JSON."""
        ...

    def write_layers(
        self, layers: Sequence[LayerInfo], layout: BucketLayout, eps: float, sample: float = 1.0
    ) -> None:
        """Say which series are watched, before their first columns; the same again replaces.

        Args:
            layers: series of one or several quantities.
            layout: the buckets that all of the run's columns have.
            eps: bound of near zero for these quantities.
            sample: the fraction of each batch's images that was looked at for them.
        """
        ...

    def write_columns(
        self, quantity: str, layer: int, level: int, chunk: int, payload: bytes
    ) -> None:
        """Write one chunk of columns: those whose steps share ``step >> (level + CHUNK_BITS)``.

        It replaces what was written of the same span of steps of this series: an earlier state of
        the same chunk, and the finer chunks that it was merged from.

        Args:
            quantity: the ``quantity`` of its `LayerInfo`.
            layer: the index of its `LayerInfo`.
            level: a column's steps share ``step >> level``.
            chunk: the ``step >> (level + CHUNK_BITS)`` of its steps.
            payload: the columns, as `convlens.sketch.encode` writes them: encoded once, by whoever
                keeps them too.
        """
        ...

    def write_steps(self, steps: StepSeries) -> None:
        """Append finished steps."""
        ...

    def write_epoch(self, epoch: Epoch) -> None:
        """Append a finished epoch."""
        ...

    def write_picture(self, picture: Picture) -> None:
        """Add images; the same name and epoch replaces."""
        ...

    def flush(self) -> None:
        """Make everything written so far visible to readers soon, in one transaction.

        It does not wait for the disk; an error comes with a later call.
        """
        ...


@dataclass(frozen=True)
class RunRecord:
    """A whole run as plain numbers: what the doctor, the plots and the views are given.

    Attributes:
        meta: facts by name: versions, seed, command, data, model, classes, status ….
        steps: every recorded step.
        epochs: every finished epoch.
        layers: the watched layers' histories, in order of their index.
    """

    meta: Mapping[str, Any]
    steps: StepSeries
    epochs: Sequence[Epoch]
    layers: Sequence[LayerHistory]
