"""A run from before snapshots is read to the last bit: `schema_2.sql` is a dump of one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from runs_data import assert_same
from test_runs_schema_1 import LAYOUT, columns

from convlens.histories import LayerInfo
from convlens.records import Epoch
from convlens.runs import Run, list_runs, open_run
from convlens.runs.schema import DATABASE
from convlens.sketch import coarsen


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "old-0001"
    folder.mkdir()
    dump = (Path(__file__).parent / "schema_2.sql").read_text(encoding="utf-8")
    database = sqlite3.connect(folder / DATABASE)
    database.executescript(dump)
    database.close()
    return open_run(folder)


def test_its_histories_are_those_that_were_written(run: Run) -> None:
    assert run.layers == [LayerInfo(0, "0.0", "Conv2d", True), LayerInfo(1, "1", "Linear")]
    first, second = run.record().layers
    assert (first.layout, first.eps, first.sample) == (LAYOUT, 0.1, 0.5)
    assert_same(first.columns, coarsen(columns(0, 6), 1))
    assert_same(second.columns, coarsen(columns(0, 4), 1))  # one level for the whole run
    gradient = run.gradient_stats[-1]
    assert (gradient.layer.name, gradient.eps) == ("1.weight", 1e-7)
    assert_same(gradient.columns, columns(3, 2))


def test_its_series_and_pictures_are_those_that_were_written(run: Run) -> None:
    steps, step = run.steps, np.arange(16)
    np.testing.assert_array_equal(steps.step, step)
    np.testing.assert_array_equal(steps.loss, 2.0 / (1 + step))
    np.testing.assert_array_equal(steps.hypers["lr"], step[:, None] / [[10, 100]])
    assert run.curves(points=4, first=4).first_step.tolist() == [4, 8, 12]
    assert run.epochs == [Epoch(0, 0, 9, 0.5, None, {"accuracy": 0.75}, 1.5)]
    (picture,) = run.pictures()
    assert list(picture.captions) == ["4", "<b>"]
    np.testing.assert_array_equal(picture.images, np.arange(24).reshape(2, 3, 4))


def test_it_is_listed_with_the_others(run: Run) -> None:
    (info,) = list_runs(run.path.parent)
    assert (info.status, info.n_epochs, info.metrics) == ("finished", 1, {"accuracy": 0.75})
