"""The steps' series: raw to the last bit, and summed up in as many entries as can be seen."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convlens.core.steps import Band, StepCurves, StepSeries, join_steps, sum_up, take_steps
from convlens.errors import ArgumentError
from convlens.runs import Run, create_run, open_run


def series(step: np.ndarray, seed: int = 0) -> StepSeries:
    """Losses with NaN and infinities among them, two hyperparameters, one of them by group."""
    rng = np.random.default_rng(seed)
    loss = rng.lognormal(size=len(step))
    loss[rng.random(len(step)) < 0.02] = np.nan
    loss[rng.random(len(step)) < 0.01] = np.inf
    hypers = {"lr": rng.random((len(step), 2)), "momentum": rng.random((len(step), 1))}
    return StepSeries(step, step // 100, loss, step * 0.5, hypers)


def write(base: Path, *blocks: StepSeries) -> Run:
    with create_run("long", base) as writer:
        for block in blocks:
            writer.write_steps(block)
            writer.flush()
    return open_run(writer.path)


def assert_same_steps(found: StepSeries, expected: StepSeries) -> None:
    for name in ("step", "epoch", "loss", "wall_s"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    assert sorted(found.hypers) == sorted(expected.hypers)
    for name, values in expected.hypers.items():
        np.testing.assert_array_equal(found.hypers[name], values, name)


def assert_same_band(found: Band, expected: Band) -> None:
    for f in fields(Band):
        one, other = getattr(found, f.name), getattr(expected, f.name)
        if f.name == "mean":  # added up level by level
            np.testing.assert_allclose(one, other, rtol=1e-12, err_msg=f.name)
        else:
            np.testing.assert_array_equal(one, other, f.name)


def assert_same_curves(found: StepCurves, expected: StepCurves) -> None:
    assert found.width == expected.width
    for name in ("first_step", "last_step", "n", "epoch", "wall_s"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    assert_same_band(found.loss, expected.loss)
    assert sorted(found.hypers) == sorted(expected.hypers)
    for name, band in expected.hypers.items():
        assert_same_band(found.hypers[name], band)


def by_hand(steps: StepSeries, width: int) -> StepCurves:
    """Entry by entry, without any of the code under test."""
    groups = [np.flatnonzero(steps.step // width == key) for key in np.unique(steps.step // width)]

    def band(values: np.ndarray) -> Band:
        whole = np.where(np.isfinite(values), values, np.nan)
        parts = [whole[rows] for rows in groups]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all of an entry may be NaN
            return Band(
                low=np.array([np.nanmin(part, axis=0) for part in parts]),
                high=np.array([np.nanmax(part, axis=0) for part in parts]),
                mean=np.array([np.nanmean(part, axis=0) for part in parts]),
                finite=np.array([np.isfinite(part).sum(axis=0) for part in parts]),
            )

    ends = [rows[-1] for rows in groups]
    return StepCurves(
        width,
        first_step=steps.step[[rows[0] for rows in groups]],
        last_step=steps.step[ends],
        n=np.array([len(rows) for rows in groups]),
        epoch=steps.epoch[ends],
        wall_s=steps.wall_s[ends],
        loss=band(steps.loss),
        hypers={name: band(values) for name, values in steps.hypers.items()},
    )


@pytest.mark.parametrize(
    ("points", "width"), [(5000, 1), (3000, 1), (2999, 2), (100, 32), (1, 4096)]
)
def test_curves_in_memory_are_what_a_loop_finds(points: int, width: int) -> None:
    steps = series(np.arange(3000))
    steps.loss[64:128] = np.nan  # entries without any finite value
    curves = sum_up(steps, points)
    assert curves.width == width
    assert_same_curves(curves, by_hand(steps, width))


def test_a_sum_that_is_too_large_for_a_float_still_has_a_mean() -> None:
    steps = replace(series(np.arange(8)), loss=np.full(8, 1.5e308))
    assert sum_up(steps, 1).loss.mean.tolist() == pytest.approx([1.5e308], rel=1e-12)


@st.composite
def blocks(draw: st.DrawFn) -> list[StepSeries]:
    """Steps with gaps, in blocks of any size and order, some of them recorded twice."""
    first, length = draw(st.integers(0, 100_000)), draw(st.integers(1, 40_000))
    share = draw(st.sampled_from([1.0, 0.5, 0.01]))
    seed = draw(st.integers(0, 100))
    kept = np.flatnonzero(np.random.default_rng(seed).random(length) < share)
    steps = series(first + (kept if len(kept) else np.arange(1)), seed)
    cuts = sorted(draw(st.sets(st.integers(0, len(steps)), max_size=12)) | {0, len(steps)})
    parts = [take_steps(steps, np.arange(a, b)) for a, b in pairwise(cuts)]
    if draw(st.booleans()):
        parts = draw(st.permutations(parts))
    again = draw(st.integers(0, len(parts)))
    return [*parts, *parts[:again]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(blocks(), st.integers(1, 5000), st.data())
def test_curves_of_a_run_are_those_of_its_steps(
    parts: list[StepSeries], points: int, data: st.DataObject
) -> None:
    with TemporaryDirectory() as base:
        run = write(Path(base), *parts)
        whole = join_steps(parts)
        expected = take_steps(whole, np.unique(whole.step, return_index=True)[1])
        steps = run.steps
        assert_same_steps(steps, expected)
        curves = run.curves(points)
        assert len(curves) <= points
        assert curves.n.sum() == len(expected)
        assert_same_curves(curves, by_hand(expected, curves.width))
        ends = st.integers(int(steps.step[0]), int(steps.step[-1]))
        first, last = sorted((data.draw(ends), data.draw(ends)))
        inside = take_steps(
            expected, np.flatnonzero((expected.step >= first) & (expected.step <= last))
        )
        part = run.curves(points, first, last)
        assert len(part) <= points
        if len(inside):
            assert_same_curves(part, by_hand(inside, part.width))


def test_a_step_that_is_recorded_again_replaces(tmp_path: Path) -> None:
    before, after = series(np.arange(3000), 1), series(np.arange(2000, 2500), 2)
    run = write(tmp_path, before, after)
    expected = join_steps(
        [take_steps(before, np.arange(2000)), after, take_steps(before, np.arange(2500, 3000))]
    )
    assert_same_steps(run.steps, expected)
    assert_same_curves(run.curves(points=64), by_hand(expected, 64))


def test_a_hyperparameter_that_comes_later_is_nan_before(tmp_path: Path) -> None:
    early = replace(series(np.arange(1500)), hypers={})
    late = series(np.arange(1500, 3000))
    run = write(tmp_path, early, late)
    assert np.isnan(run.steps.hypers["lr"][:1500]).all()
    lr = run.curves(points=24).hypers["lr"]
    assert lr.finite[:11].max() == 0
    assert np.isnan(lr.mean[:11]).all()
    assert lr.finite.sum(axis=0).tolist() == [1500, 1500]


def test_a_run_without_steps_has_empty_curves(tmp_path: Path) -> None:
    run = write(tmp_path)
    assert (len(run.curves()), len(run.recorder.curves(first=3)), run.curves().hypers) == (0, 0, {})
    with pytest.raises(ArgumentError, match="points must be at least 1, got 0"):
        run.curves(points=0)
    with pytest.raises(ArgumentError, match="points must be at least 1, got -1"):
        sum_up(series(np.arange(3)), -1)
