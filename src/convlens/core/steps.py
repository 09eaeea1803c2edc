"""The series of a training's steps, and the same summed up for drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from convlens.core.buckets import Floats, Ints
from convlens.errors import ArgumentError


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        span = f" ({self.step[0]} to {self.step[-1]})" if len(self) else ""
        return f"StepSeries({len(self)} steps{span}, hypers={list(self.hypers)})"


def empty_steps() -> StepSeries:
    """No steps.

    >>> from convlens.core.steps import empty_steps
    >>> empty_steps()
    StepSeries(0 steps, hypers=[])
    """
    none, reals = np.zeros(0, np.int64), np.zeros(0)
    return StepSeries(none, none, reals, reals, {})


def join_steps(parts: Sequence[StepSeries]) -> StepSeries:
    """Series one after the other; a hyperparameter or group that a part lacks is NaN there."""
    if len(parts) < 2:
        return parts[0] if parts else empty_steps()
    hypers: dict[str, Floats] = {}
    for name in dict.fromkeys(name for part in parts for name in part.hypers):
        found = [part.hypers.get(name, np.zeros((len(part), 0))) for part in parts]
        width = max(values.shape[1] for values in found)
        padded = [
            np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=np.nan)
            for values in found
        ]
        hypers[name] = np.concatenate(padded)
    return StepSeries(
        step=np.concatenate([part.step for part in parts]),
        epoch=np.concatenate([part.epoch for part in parts]),
        loss=np.concatenate([part.loss for part in parts]),
        wall_s=np.concatenate([part.wall_s for part in parts]),
        hypers=hypers,
    )


def take_steps(steps: StepSeries, rows: Ints | slice) -> StepSeries:
    """Some of the steps, in this order."""
    hypers = {name: values[rows] for name, values in steps.hypers.items()}
    return StepSeries(
        steps.step[rows], steps.epoch[rows], steps.loss[rows], steps.wall_s[rows], hypers
    )


def cut_steps(steps: StepSeries, first: int | None, last: int | None) -> StepSeries:
    """The steps from ``first`` to ``last``; None is no bound."""
    low = 0 if first is None else int(np.searchsorted(steps.step, first))
    high = len(steps) if last is None else int(np.searchsorted(steps.step, last, "right"))
    return steps if (low, high) == (0, len(steps)) else take_steps(steps, slice(low, high))


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


@dataclass(frozen=True, repr=False)
class StepCurves:
    """The series of a training summed up in K entries, for drawing any number of steps.

    Attributes:
        width: an entry covers the recorded steps that share ``step // width``, a power of two; with
            1 the entries are the steps themselves.
        first_step: (K,) the first step in it.
        last_step: (K,) the last one.
        n: (K,) how many steps it covers.
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

    def __repr__(self) -> str:
        return f"StepCurves({len(self)} entries of {self.width} steps, hypers={list(self.hypers)})"

    @property
    def middle_step(self) -> Floats:
        """(K,) middle of each entry's steps: where a line is drawn through it."""
        return (self.first_step + self.last_step) / 2


def check_points(points: int) -> None:
    """Raise an `ArgumentError` unless a curve can have so many entries."""
    if points < 1:
        raise ArgumentError(f"points must be at least 1, got {points}.")


def sum_up(steps: StepSeries, points: int) -> StepCurves:
    """The series in at most ``points`` entries; steps are in ascending order.

    Raises:
        ArgumentError: if ``points`` is not positive.
    """
    check_points(points)
    bits = 0
    while len(steps) and (steps.step[-1] >> bits) - (steps.step[0] >> bits) >= points:
        bits += 1
    key = steps.step >> bits
    starts = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))
    lengths = np.diff(np.append(starts, len(steps)))
    ends = starts + lengths - 1
    return StepCurves(
        width=1 << bits,
        first_step=steps.step[starts],
        last_step=steps.step[ends],
        n=lengths,
        epoch=steps.epoch[ends],
        wall_s=steps.wall_s[ends],
        loss=_band(steps.loss, starts, lengths),
        hypers={name: _band(values, starts, lengths) for name, values in steps.hypers.items()},
    )


def _band(values: Floats, starts: Ints, lengths: Ints) -> Band:
    is_finite = np.isfinite(values)
    known = np.where(is_finite, values, np.nan)
    finite = np.add.reduceat(is_finite, starts, axis=0, dtype=np.int64)
    # Shares of the mean, not sums: the sum of finite numbers may not be finite.
    share = np.where(is_finite, values, 0.0) / np.maximum(np.repeat(finite, lengths, axis=0), 1)
    return Band(
        low=np.fmin.reduceat(known, starts, axis=0),
        high=np.fmax.reduceat(known, starts, axis=0),
        mean=np.where(finite > 0, np.add.reduceat(share, starts, axis=0), np.nan),
        finite=finite,
    )
