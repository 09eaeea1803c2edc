from __future__ import annotations

import numpy as np
import pytest
from views_data import LAYOUT, normal_columns

from convlens.core.columns import coarsen
from convlens.core.histories import LayerHistory, LayerInfo, SeriesFigures
from convlens.errors import ArgumentError
from convlens.views.matrices import (
    MAX_COLUMNS,
    NONE,
    QUANTITIES,
    TOP,
    Limits,
    Matrix,
    condense_matrix,
    joined_figures,
    limits_of,
    make_matrix,
)
from convlens.views.timeline import Grid


def figures(infos, first, **values) -> SeriesFigures:
    first = np.asarray(first)
    names = ("mean", "std", "near_zero", "near_zero_after_relu", "dead", "silent", "norm")
    shape = (len(infos), len(first))
    filled = {name: np.full(shape, np.nan, np.float32) for name in names}
    filled["nonfinite"] = np.zeros(shape, np.float32)
    filled |= {name: np.asarray(of, np.float32) for name, of in values.items()}
    return SeriesFigures(infos, first, first, filled)


def matrix(values, scale="share", first=None, last=None, **facts) -> Matrix:
    values = np.asarray(values, np.float32)
    first = np.arange(values.shape[1]) if first is None else np.asarray(first)
    last = first if last is None else np.asarray(last)
    names = [f"layer{i}" for i in range(len(values))]
    bad = np.zeros(values.shape, np.bool_)
    return Matrix("x", "", scale, names, ["Conv2d"] * len(names), first, last, values, bad, **facts)


LAYERS = [
    LayerInfo(0, "a", "Conv2d", feeds_relu=True),
    LayerInfo(1, "b", "Conv2d"),
    LayerInfo(2, "", "Linear"),
]


def parameters(quantity: str) -> list[LayerInfo]:
    names = ("a.weight", "a.bias", "elsewhere.weight", "weight")
    return [LayerInfo(i, name, "", quantity=quantity) for i, name in enumerate(names)]


def test_near_zero_is_that_after_the_relu_where_one_follows():
    of = figures(LAYERS[:2], [0], near_zero=[[0.1], [0.2]], near_zero_after_relu=[[0.6], [0.7]])

    made = make_matrix("near_zero", of)

    np.testing.assert_allclose(made.values, [[0.6], [0.2]], rtol=1e-6)
    assert made.names == ["a", "b"]
    assert made.scale == "share"


def test_a_layers_gradient_is_that_of_all_its_parameters():
    of = figures(LAYERS, [0, 5])
    norm = [[3.0, 1.0], [4.0, np.nan], [9.0, 9.0], [2.0, 0.0]]
    gradients = figures(parameters("gradient"), [0, 5], norm=norm)

    made = make_matrix("gradient", of, gradients)

    np.testing.assert_array_equal(made.values, [[5.0, 1.0], [np.nan] * 2, [2.0, 0.0]])
    assert made.names == ["a", "b", "Linear"]
    np.testing.assert_array_equal(made.first_step, [0, 5])


def test_huge_gradients_do_not_overflow():
    of = figures(LAYERS, [0])
    gradients = figures(parameters("gradient"), [0], norm=[[1e30], [0.0], [1.0], [np.inf]])

    made = make_matrix("gradient", of, gradients)

    assert made.values[0, 0] == pytest.approx(1e30)
    assert made.values[2, 0] == np.inf


def test_the_update_ratio_is_of_the_whole_layer():
    of = figures(LAYERS, [0, 1])
    updates = figures(parameters("update"), [0, 1], norm=[[3, 3], [4, 4], [1, 1], [1, 1]])
    weights = figures(parameters("parameter"), [0, 1], norm=[[30, 0], [40, 0], [1, 1], [100, 1]])

    made = make_matrix("update", of, None, updates, weights)

    expected = [[0.1, np.nan], [np.nan, np.nan], [0.01, 1.0]]
    np.testing.assert_allclose(made.values, expected, rtol=1e-6)


def test_parameters_are_found_by_name_and_step():
    of = figures(LAYERS, [0, 1])
    updates = figures(parameters("update")[:1], [1, 2], norm=[[1, 1]])
    weights = figures(parameters("parameter")[::-1], [0, 1], norm=[[7, 7]] * 3 + [[9, 10]])

    made = make_matrix("update", of, None, updates, weights)

    np.testing.assert_allclose(made.values[0], [0.1, np.nan], rtol=1e-6)


@pytest.mark.parametrize(("key", "word"), [("gradient", "gradients"), ("update", "updates")])
def test_what_was_not_recorded_is_said(key, word):
    made = make_matrix(key, figures(LAYERS, [0]))

    assert made.missing == f"{word} were not recorded"
    assert made.values.shape == (3, 0)
    assert made.names == ["a", "b", "Linear"]


def test_without_layers_the_gradients_modules_are_the_rows():
    gradients = figures(parameters("gradient"), [0], norm=[[3.0], [4.0], [9.0], [2.0]])

    made = make_matrix("gradient", figures([], []), gradients)

    assert made.names == ["a", "elsewhere", "module"]
    np.testing.assert_array_equal(made.values[:, 0], [5.0, 9.0, 2.0])


def test_an_unknown_quantity_gets_a_sentence():
    with pytest.raises(ArgumentError, match=r"key='colour' is nothing .* give one of 'near_zero',"):
        make_matrix("colour", figures([], []))


@pytest.mark.parametrize("key", QUANTITIES)
def test_no_layers_and_no_columns_are_no_error(key):
    for of in (figures([], []), figures(LAYERS, [])):
        grid, cells = condense_matrix(make_matrix(key, of))
        assert grid.n_cells == cells.values.shape[1] == 0


def test_figures_of_histories_are_on_the_union_of_their_columns():
    early = normal_columns(np.zeros(3), np.ones(3), 1000, 4, dead=1)
    late = normal_columns(np.ones(2), np.ones(2), 1000, 0, first_step=2)
    histories = [LayerHistory(LAYERS[0], early, LAYOUT), LayerHistory(LAYERS[1], late, LAYOUT)]

    of = joined_figures(histories)

    np.testing.assert_array_equal(of.first_step, [0, 1, 2, 3])
    np.testing.assert_array_equal(of.values["mean"][1], [np.nan, np.nan, 1, 1])
    np.testing.assert_array_equal(of.values["dead"][0], [0.25, 0.25, 0.25, np.nan])
    assert np.isnan(of.values["dead"][1]).all()
    np.testing.assert_allclose(of.values["norm"][0, :3], histories[0].norm, rtol=1e-6)


def test_few_columns_are_cells_of_their_own():
    grid, cells = condense_matrix(matrix(np.arange(10).reshape(2, 5), first=[0, 1, 2, 4, 5]))

    assert grid == Grid(0, 1, 6)
    np.testing.assert_array_equal(cells.values[0], [0, 1, 2, np.nan, 3, 4])


def test_cells_are_means_weighted_by_steps():
    first, last = np.array([0, 1, 2, 3, 4]), np.array([0, 1, 2, 3, 6])
    values = [[1.0, 2.0, np.nan, 4.0, 8.0]]

    grid, cells = condense_matrix(matrix(values, first=first, last=last), max_cells=2)

    assert grid == Grid(0, 4, 2)
    np.testing.assert_allclose(cells.values, [[7 / 3, 8.0]], rtol=1e-6)
    np.testing.assert_array_equal(cells.last_step, [3, 7])


def test_dead_channels_are_shown_at_their_worst():
    _, cells = condense_matrix(matrix([[0, 0.5, 0, np.nan, np.nan, 0.25]], peaks=True), max_cells=3)

    np.testing.assert_array_equal(cells.values, [[0.5, 0.0, 0.25]])


def test_a_growing_run_keeps_its_cells_until_they_are_too_many():
    widths = []
    for n in (1, 2, 700, 800, 801, 1600, 1601, 4096):
        grid, cells = condense_matrix(matrix(np.zeros((2, n))))
        assert grid.first == 0
        assert grid.n_cells == cells.values.shape[1] <= MAX_COLUMNS
        widths.append(grid.width)
    assert widths == [1, 1, 1, 1, 2, 2, 4, 8]


def test_columns_of_many_steps_are_as_wide_as_they_are():
    columns = coarsen(normal_columns(np.zeros(64), np.ones(64), 1000, 4), 3)
    of = joined_figures([LayerHistory(LAYERS[0], columns, LAYOUT)])

    grid, _ = condense_matrix(make_matrix("std", of))

    assert grid == Grid(0, 8, 8)


def test_shares_have_fixed_colours():
    limits = limits_of(matrix([[0.4, 0.5]]))

    np.testing.assert_array_equal(
        limits.levels(np.array([0, 0.5, 1, np.nan], np.float32)), [1, 128, TOP, NONE]
    )
    assert limits.ticks() == {
        1.0: "0 %",
        64.0: "25 %",
        128.0: "50 %",
        191.0: "75 %",
        254.0: "100 %",
    }


def test_the_mean_is_on_either_side_of_zero():
    limits = limits_of(matrix([[-0.3, 1.4, np.nan, np.inf]], "signed"))

    assert (limits.low, limits.high) == (-2.0, 2.0)
    levels = limits.levels(np.array([-9, 0, 9, np.inf], np.float32)).tolist()
    assert levels == [1, 128, TOP, TOP]
    assert list(limits.ticks().values()) == ["-2", "-1", "0", "+1", "+2"]


def test_sizes_are_by_decades():
    limits = limits_of(matrix([[0.0, 0.003, 20.0, np.nan]], "log"))

    assert (limits.low, limits.high) == pytest.approx((0.001, 100.0))
    assert list(limits.ticks().values()) == ["0.001", "0.01", "0.1", "1", "10", "100"]
    levels = limits.levels(np.array([0.0, 0.001, 100.0, np.inf], np.float32))
    assert levels.tolist() == [1, 1, TOP, TOP]


def test_one_tiny_number_does_not_make_all_others_alike():
    limits = limits_of(matrix([[1e-30, 0.5]], "log"))

    assert (limits.low, limits.high) == pytest.approx((1e-6, 1.0))
    assert limits.ticks()[1.0] == "1e-6"


@pytest.mark.parametrize("scale", ["share", "signed", "log"])
@pytest.mark.parametrize("values", [[[]], [[np.nan]], [[0.0]], [[np.inf]]])
def test_there_are_always_limits(scale, values):
    limits = limits_of(matrix(values, scale))

    assert isinstance(limits, Limits)
    assert np.isfinite([limits.low, limits.high]).all()
    assert limits.low < limits.high
    assert len(limits.ticks()) > 1
