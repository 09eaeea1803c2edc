"""Step series summed up: lowest, highest and mean of stretches of steps. Plain NumPy.

A stretch is the steps that share ``step // width``, where ``width`` is a power of two, so that
stretches of one width add up to those of any larger one: lowest, highest and counts exactly, means
to float64 rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from convlens.core.columns import Floats, Ints
from convlens.core.records import Band, StepCurves, StepSeries, join_groups
from convlens.errors import ArgumentError


def sum_up(steps: StepSeries, points: int) -> StepCurves:
    """The series in at most ``points`` entries; steps are in ascending order.

    Raises:
        ArgumentError: if ``points`` is not positive.
    """
    check_points(points)
    curves = as_curves(steps)
    if not len(steps):
        return curves
    return merge_curves(curves, 1 << width_bits(int(steps.step[0]), int(steps.step[-1]), points))


def check_points(points: int) -> None:
    """Raise an `ArgumentError` unless a curve can have so many entries."""
    if points < 1:
        raise ArgumentError(f"points={points} leaves nothing of a curve; give 1 or more.")


def take_steps(steps: StepSeries, rows: Ints | slice) -> StepSeries:
    """Some of the steps, in this order."""
    hypers = {name: values[rows] for name, values in steps.hypers.items()}
    return StepSeries(
        steps.step[rows], steps.epoch[rows], steps.loss[rows], steps.wall_s[rows], hypers
    )


def cut_steps(steps: StepSeries, first: int | None, last: int | None) -> StepSeries:
    """The steps from ``first`` to ``last``; None is no bound."""
    if first is None and last is None:
        return steps
    low = 0 if first is None else int(np.searchsorted(steps.step, first))
    high = len(steps) if last is None else int(np.searchsorted(steps.step, last, "right"))
    return take_steps(steps, slice(low, high))


def width_bits(first: int, last: int, points: int) -> int:
    """The smallest b for which the steps ``first`` to ``last`` fill at most ``points`` stretches.

    Stretches are those that share ``step >> b``.
    """
    bits = 0
    while (last >> bits) - (first >> bits) >= points:
        bits += 1
    return bits


def as_curves(steps: StepSeries) -> StepCurves:
    """One entry for each step."""
    return StepCurves(
        width=1,
        first_step=steps.step,
        last_step=steps.step,
        n=np.ones(len(steps), np.int64),
        epoch=steps.epoch,
        wall_s=steps.wall_s,
        loss=_values(steps.loss),
        hypers={name: _values(values) for name, values in steps.hypers.items()},
    )


def merge_curves(curves: StepCurves, width: int) -> StepCurves:
    """Fewer, wider entries; the entries are in ascending order."""
    key = curves.first_step // width
    starts = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))
    if len(starts) == len(curves):
        return replace(curves, width=width)
    ends = np.append(starts[1:], len(curves)) - 1
    return StepCurves(
        width=width,
        first_step=curves.first_step[starts],
        last_step=curves.last_step[ends],
        n=np.add.reduceat(curves.n, starts),
        epoch=curves.epoch[ends],
        wall_s=curves.wall_s[ends],
        loss=_merge(curves.loss, starts),
        hypers={name: _merge(band, starts) for name, band in curves.hypers.items()},
    )


def join_curves(parts: Sequence[StepCurves]) -> StepCurves:
    """Entries of one width, one after the other; a hyperparameter that a part lacks is NaN there.

    Raises:
        ValueError: if ``parts`` is empty.
    """
    lengths = [len(part) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part.hypers)

    def joined(name: str) -> Any:  # noqa: ANN401 - arrays of several kinds
        return np.concatenate([getattr(part, name) for part in parts])

    return StepCurves(
        width=max(part.width for part in parts),
        **{name: joined(name) for name in _FACTS},
        loss=_each(lambda name: np.concatenate([getattr(part.loss, name) for part in parts])),
        hypers={hyper: _join_hyper(hyper, parts, lengths) for hyper in names},
    )


def take_curves(curves: StepCurves, rows: Ints) -> StepCurves:
    """Some of the entries, in this order."""

    def taken(values: Band) -> Band:
        return _each(lambda name: getattr(values, name)[rows])

    return replace(
        curves,
        **{name: getattr(curves, name)[rows] for name in _FACTS},
        loss=taken(curves.loss),
        hypers={name: taken(band) for name, band in curves.hypers.items()},
    )


_FACTS = ("first_step", "last_step", "n", "epoch", "wall_s")


def _each(array: Callable[[str], Any]) -> Band:
    return Band(**{f.name: array(f.name) for f in fields(Band)})


def _values(values: Floats) -> Band:
    finite = np.isfinite(values)
    known = np.where(finite, values, np.nan)
    return Band(known, known, known, finite.astype(np.int64))


def _merge(band: Band, starts: Ints) -> Band:
    finite = np.add.reduceat(band.finite, starts, axis=0)
    lengths = np.diff(np.append(starts, len(band.finite)))
    total = np.repeat(finite, lengths, axis=0)
    # Shares of the whole, not sums: the sum of finite numbers may not be finite.
    share = np.divide(band.finite, total, out=np.zeros(total.shape), where=total > 0)
    mean = np.add.reduceat(np.where(band.finite > 0, band.mean, 0.0) * share, starts, axis=0)
    return Band(
        low=np.fmin.reduceat(band.low, starts, axis=0),
        high=np.fmax.reduceat(band.high, starts, axis=0),
        mean=np.where(finite > 0, mean, np.nan),
        finite=finite,
    )


def _join_hyper(hyper: str, parts: Sequence[StepCurves], lengths: Sequence[int]) -> Band:
    bands = [part.hypers.get(hyper) for part in parts]

    def joined(name: str) -> Any:  # noqa: ANN401 - counts or reals
        arrays = [None if band is None else getattr(band, name) for band in bands]
        return join_groups(arrays, lengths, 0 if name == "finite" else np.nan)

    return _each(joined)
