from __future__ import annotations

import numpy as np
import pytest
from views_data import LAYOUT, layer_infos, normal_columns

from convlens.core.columns import Columns, coarsen
from convlens.core.histories import LayerHistory
from convlens.views.timeline import (
    EMPTY,
    Grid,
    condense,
    grid_of,
    heat_of,
)


def history(columns: Columns) -> LayerHistory:
    return LayerHistory(layer_infos()[0], columns, LAYOUT)


def columns(n_steps: int, first_step: int = 0, std: float = 1.0, nan: int = 0) -> Columns:
    spread = np.linspace(std / 2, std, n_steps)
    return normal_columns(np.zeros(n_steps), spread, 10_000, 4, first_step=first_step, nan=nan)


def test_grid_has_one_cell_for_each_step_when_they_are_few():
    grid = grid_of([history(columns(590))])

    assert grid == Grid(0, 1, 590)


def test_grid_of_nothing_is_none():
    assert grid_of([]) is None
    assert grid_of([history(columns(0))]) is None


def test_grid_follows_the_level_of_the_columns():
    merged = coarsen(columns(64), 2)

    assert grid_of([history(merged)]) == Grid(0, 4, 16)


def test_grid_of_a_single_column_is_one_cell():
    assert grid_of([history(columns(1, first_step=7))]) == Grid(7, 1, 1)


def test_grid_spans_all_layers():
    grid = grid_of([history(columns(10)), history(columns(10, first_step=20))])

    assert grid == Grid(0, 1, 30)


def test_many_columns_are_merged_into_cells_of_equal_width():
    whole = history(columns(1000))
    grid = grid_of([whole], max_cells=300)

    assert grid == Grid(0, 4, 250)
    small = condense(whole, grid)

    assert len(small) == 250
    assert small.first_step[1] == 4
    assert small.last_step[1] == 7
    np.testing.assert_array_equal(small.counts.sum(axis=0), whole.counts.sum(axis=0))


def test_condense_keeps_columns_that_have_their_own_cell():
    whole = history(columns(20))

    np.testing.assert_array_equal(condense(whole, Grid(0, 1, 20)).mean, whole.mean)
    assert len(condense(history(columns(0)), Grid(0, 1, 20))) == 0


def test_heat_is_the_logarithm_of_the_counts():
    whole = history(columns(30))
    heat = heat_of(whole, Grid(0, 1, 30), rows=50)
    counts = whole.rebin(np.linspace(heat.low, heat.high, 51))

    assert heat.cells.shape == (50, 30)
    assert heat.low < 0 < heat.high
    assert heat.peak == pytest.approx(counts.max())
    expected = np.log1p(counts.T) / np.log1p(counts.max()) * 254
    assert np.abs(heat.cells - expected).max() <= 0.51
    assert 0 < heat.outside < 0.005


def test_heat_shows_the_mean_batch_of_a_merged_cell():
    whole = history(columns(64))
    apart, merged = (
        heat_of(whole, Grid(0, 1, 64)),
        heat_of(history(coarsen(whole.columns, 6)), Grid(0, 64, 1)),
    )

    assert merged.peak < apart.peak
    assert merged.cells.shape == (100, 1)


def test_heat_of_values_that_are_not_finite_is_empty():
    bad = columns(3, nan=10)
    nothing = Columns(**{**vars(bad), "counts": np.zeros_like(bad.counts)})

    heat = heat_of(history(nothing), Grid(0, 1, 3))

    assert (heat.cells == EMPTY).all()
    assert heat.peak == pytest.approx(1.0)
    assert heat.outside == 0.0
