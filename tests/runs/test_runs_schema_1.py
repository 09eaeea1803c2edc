"""A run that convlens 0.1.0 wrote is read to the last bit: `schema_1.sql` is a dump of one."""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from convlens.histories import LayerInfo
from convlens.records import Epoch
from convlens.runs import Run, list_runs, open_run
from convlens.runs.schema import DATABASE
from convlens.sketch import BucketLayout, Columns, coarsen, concatenate

LAYOUT = BucketLayout(mantissa_bits=0, min_exponent=-2, max_exponent=1)


def columns(first: int, count: int, width: int = 1) -> Columns:
    """What was written then."""
    steps = first + width * np.arange(count)
    ones = np.ones(count, np.int64)
    return Columns(
        first_step=steps,
        last_step=steps + width - 1,
        calls=ones * width,
        counts=steps[:, None] + np.arange(LAYOUT.size),
        nan=ones * 2,
        neg_inf=ones * 0,
        pos_inf=ones,
        near_zero=steps + 3,
        at_most_eps=steps + 4,
        mean=steps / 8,
        m2=steps / 4 + 1,
        positive=(steps[:, None] + np.arange(5)) % 3 == 0,
        active=(steps[:, None] + np.arange(5)) % 2 == 0,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "old-0001"
    folder.mkdir()
    dump = (Path(__file__).parent / "schema_1.sql").read_text(encoding="utf-8")
    database = sqlite3.connect(folder / DATABASE)
    database.executescript(dump)
    database.close()
    return open_run(folder)


def test_its_histories_are_those_that_were_written(run: Run) -> None:
    infos = [LayerInfo(0, "0.0", "Conv2d", True), LayerInfo(1, "1", "Linear")]
    assert run.layers == run.activation_stats.layers == infos
    written = [
        concatenate([coarsen(columns(0, 6), 1), columns(6, 3, width=2)]),
        coarsen(concatenate([columns(0, 7), columns(7, 5)]), 1),
    ]
    for history, expected in zip(run.record().layers, written, strict=True):
        assert (history.layout, history.eps, history.sample) == (LAYOUT, 0.1, 1.0)
        for f in fields(Columns):
            found = getattr(history.columns, f.name)
            np.testing.assert_array_equal(found, getattr(expected, f.name), f.name)
    assert len(run.gradient_stats) == len(run.update_stats) == 0


def test_its_series_and_pictures_are_those_that_were_written(run: Run) -> None:
    step = np.arange(16)
    steps = run.steps
    np.testing.assert_array_equal(steps.step, step)
    np.testing.assert_array_equal(steps.loss, 2.0 / (1 + step))
    np.testing.assert_array_equal(steps.wall_s, step * 0.5)
    np.testing.assert_array_equal(steps.hypers["lr"], step[:, None] / [[10, 100]])
    assert run.epochs == [Epoch(0, 0, 9, 0.5, None, {"accuracy": 0.75}, 1.5)]
    (picture,) = run.pictures()
    assert list(picture.captions) == ["4", "<b>"]
    np.testing.assert_array_equal(picture.images, np.arange(24).reshape(2, 3, 4))


def test_its_curves_are_summed_up_from_its_steps(run: Run) -> None:
    curves = run.curves(points=4, first=4)
    assert (curves.width, curves.first_step.tolist()) == (4, [4, 8, 12])
    np.testing.assert_array_equal(curves.loss.high, 2.0 / np.array([5, 9, 13]))
    assert run.curves().loss.mean.tolist() == run.steps.loss.tolist()


def test_it_is_listed_with_the_others(run: Run) -> None:
    (info,) = list_runs(run.path.parent)
    assert (info.status, info.n_epochs, info.metrics) == ("finished", 1, {"accuracy": 0.75})
