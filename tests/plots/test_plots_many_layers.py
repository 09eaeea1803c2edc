"""Several layers on one time axis: that all are there, in order, with the numbers they have."""

from __future__ import annotations

import dataclasses
import warnings
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from plots_data import cycles, epochs_of, healthy, history, sketch

mpl.use("Agg")

import matplotlib.pyplot as plt

from convlens.core.columns import coarsen
from convlens.core.histories import LayerInfo
from convlens.core.layer_histories import LayerHistories
from convlens.errors import ArgumentError, LayerNotFoundError
from convlens.plots import LayerPlots, color_dim_all, plot_layer_stats_all
from convlens.plots.canvas import NONFINITE_LABEL
from convlens.plots.one_layer import value_range


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


class Layers(LayerPlots, LayerHistories):
    """Layers that are made when they are asked for."""

    def __init__(self, *histories, n=None):
        self._histories, self.asked = histories, []
        self._n = len(histories) if n is None else n

    @property
    def layers(self):
        return [LayerInfo(i, f"blocks.{i}.conv", "Conv2d", i % 2 == 0) for i in range(self._n)]

    @property
    def epochs(self):
        return epochs_of(2, 10)

    def history(self, index):
        self.asked.append(index)
        one = self._histories[index % len(self._histories)]
        return dataclasses.replace(one, layer=self.layers[index])


def figure_of(ax):
    figure = ax.get_figure(root=True)
    figure.canvas.draw()  # for real, so that layout and fonts are tried too
    return figure


def titles(axes):
    return [ax.get_title(loc="left") for ax in axes]


def mesh_of(ax):
    return next(c for c in ax.collections if isinstance(c, mpl.collections.QuadMesh))


def words(figure):
    return [figure.get_suptitle(), figure.get_supxlabel(), figure.get_supylabel()]


def inside(figure, axes):
    """Whether nothing of the axes is cut off, and no title lies on another."""
    boxes = [ax.title.get_window_extent() for ax in axes] + [ax.get_tightbbox() for ax in axes]
    return all(
        b.x0 >= -1 and b.y0 >= -1 and b.x1 <= figure.bbox.x1 + 1 and b.y1 <= figure.bbox.y1 + 1
        for b in boxes
    )


def test_every_layer_has_a_panel_with_the_percentages_of_its_bins():
    stats = Layers(healthy(20), cycles(20), healthy(20, n_values=400, seed=3))
    axes = stats.color_dim(bins=30)
    figure = figure_of(axes[0])
    assert titles(axes) == [f"blocks.{i}.conv (Conv2d)" for i in range(3)]
    for i, ax in enumerate(axes):
        data = stats[i]
        edges = np.linspace(*value_range(data, None), 31)
        expected = 100 * data.rebin(edges) / data.columns.n_finite[:, None]
        np.testing.assert_allclose(mesh_of(ax).get_array(), expected.T)
        np.testing.assert_allclose(ax.get_ylim(), value_range(data, None))
        assert ax.get_xlim() == (-0.5, 19.5)
    assert words(figure) == [
        "Activations of every batch",
        "batch (optimizer step); dashed: an epoch ends",
        "activation",
    ]
    assert inside(figure, axes)


def test_layers_of_different_size_have_one_scale_of_colours_and_one_bar():
    stats = Layers(healthy(10, n_values=40_000), healthy(10, n_values=400))
    axes = stats.color_dim()
    figure = figure_of(axes[0])
    (bar,) = [ax for ax in figure.axes if ax not in axes]
    assert bar.get_ylabel() == "% of a batch's values per bin (log scale)"
    assert [t.get_text() for t in bar.get_yticklabels()] == ["0", "0.01", "0.1", "1", "10"]
    norms = [mesh_of(ax).norm for ax in axes]
    assert norms[0].vmax == norms[1].vmax == max(mesh_of(ax).get_array().max() for ax in axes)
    assert norms[0](1.0) == pytest.approx(np.log1p(100) / np.log1p(100 * norms[0].vmax))


def test_all_panels_have_the_steps_of_all():
    early = history([sketch(np.ones(8), step) for step in range(5)])
    late = history([sketch(np.ones(8), step) for step in range(20, 30)])
    for axes in (color_dim_all([early, late]), [r[0] for r in plot_layer_stats_all([early, late])]):
        assert [ax.get_xlim() for ax in axes] == [(-0.5, 29.5)] * 2


@pytest.mark.parametrize("n", [1, 12, pytest.param(60, marks=pytest.mark.slow)])
def test_panels_are_not_cut_off_however_many_there_are(n):
    stats = Layers(healthy(10, n_values=80), n=63 if n == 60 else n)
    axes = stats.color_dim(bins=8)
    figure = figure_of(axes[0])
    assert len(axes) == n
    assert inside(figure, axes)
    numbered = [ax for ax in axes if ax.xaxis.get_tick_params()["labelbottom"]]
    lowest = {ax.get_position().x0: ax for ax in axes}  # row by row, so the last one stays
    assert numbered == [ax for ax in axes if lowest[ax.get_position().x0] is ax]
    assert min(ax.get_position().height * figure.get_figheight() for ax in axes) > 0.7
    assert figure.get_figheight() < 16
    said = "the first 60 of 63 layers; layers=stats.names[60:] draws the rest"
    assert words(figure)[0].endswith(said) == (n == 60)
    assert stats.asked == list(range(n)), "what is not drawn is not read"


def test_the_layers_that_are_drawn_can_be_chosen():
    stats = Layers(healthy(3, n_values=40), n=63)
    rest = stats.color_dim(layers=stats.names[60:], bins=4)
    assert titles(rest) == [f"blocks.{i}.conv (Conv2d)" for i in range(60, 63)]
    ((mean, _, _),) = stats.plot_layer_stats(layers=[5])
    assert titles([mean]) == ["blocks.5.conv (Conv2d)"]


def test_more_columns_than_a_panel_has_pixels_are_added_up():
    one = cycles(64, n_values=400)
    columns = one.columns[np.arange(4096) % 64]
    steps = np.arange(4096, dtype=np.int64)
    long = dataclasses.replace(
        one, columns=dataclasses.replace(columns, first_step=steps, last_step=steps)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (ax,) = color_dim_all([long], bins=10)
    cells = np.asarray(mesh_of(ax).get_array())
    assert cells.shape == (10, 256)
    merged = dataclasses.replace(long, columns=coarsen(long.columns, 4))
    counts = merged.rebin(np.linspace(*ax.get_ylim(), 11))
    np.testing.assert_allclose(cells, 100 * counts.T / merged.columns.n_finite)
    assert ax.get_xlim() == (-0.5, 4095.5)


def test_stats_have_a_row_of_three_for_each_layer():
    stats = Layers(healthy(20), cycles(20))
    rows = stats.plot_layer_stats()
    figure = figure_of(rows[0][0])
    for i, (mean, std, near) in enumerate(rows):
        np.testing.assert_array_equal(mean.lines[0].get_ydata(), stats[i].mean)
        np.testing.assert_array_equal(std.lines[0].get_ydata(), stats[i].std)
        np.testing.assert_array_equal(near.lines[0].get_ydata(), 100 * stats[i].near_zero)
        assert near.get_ylim() == (-3, 103)
        assert mean.get_title(loc="left") == f"blocks.{i}.conv (Conv2d)"
    assert [len(row[2].lines) for row in rows] == [2, 1], "only the first one's ReLU takes it"
    assert [ax.texts[0].get_text() for ax in rows[0]] == [
        "mean", "standard deviation", "% near zero"
    ]  # fmt: skip
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "as it is", "after its ReLU (x ≤ 0.05)"
    ]  # fmt: skip
    assert "percentage near zero (|x| ≤ 0.05)" in words(figure)[0]
    assert inside(figure, [ax for row in rows for ax in row])


def test_many_rows_lie_side_by_side_in_reading_order():
    rows = Layers(healthy(4, n_values=40), n=7).plot_layer_stats()
    figure_of(rows[0][0])
    places = [(-row[0].get_position().y0, row[0].get_position().x0) for row in rows]
    assert places == sorted(places)
    assert len({x for _, x in places}) == 2
    assert [i for i, row in enumerate(rows) if row[0].texts] == [0, 1]


def test_a_few_huge_values_make_a_small_axis_logarithmic():
    values = [np.random.default_rng(s).normal(0, 1e8 if s == 3 else 1, 400) for s in range(50)]
    outlier = history([sketch(v, step) for step, v in enumerate(values)])
    ((mean, std, _),) = plot_layer_stats_all([outlier])
    figure_of(mean)
    assert (mean.get_yscale(), std.get_yscale()) == ("symlog", "log")
    assert len([t for t in std.get_yticklabels() if t.get_text()]) <= 6


def test_own_axes_are_drawn_on_and_returned():
    stats = Layers(healthy(5), cycles(5))
    figure, grid = plt.subplots(2, 3, figsize=(12, 5))
    rows = stats.plot_layer_stats(axes=grid)
    assert [ax for row in rows for ax in row] == list(grid.ravel())
    assert titles(rows[1]) == ["blocks.1.conv (Conv2d): mean", "standard deviation", "% near zero"]
    axes = stats.color_dim(axes=list(grid[0, :2]))
    assert axes == list(grid[0, :2])
    assert plt.get_fignums() == [figure.number]
    assert figure.get_suptitle() == "", "what is around the panels is the caller's"
    with pytest.raises(ArgumentError, match=r"axes has 3 entries, but this plot draws on 2"):
        stats.color_dim(axes=list(grid[0]))
    with pytest.raises(ArgumentError, match=r"axes has 2 entries, but this plot draws on 6"):
        stats.plot_layer_stats(axes=list(grid[0, :2]))


def test_what_is_not_there_is_said_in_its_panel():
    empty, nan = history([]), history([sketch(np.full(400, np.nan), step) for step in range(5)])
    good = healthy(5)
    axes = color_dim_all([empty, nan, good])
    figure = figure_of(axes[0])
    said = [[text.get_text() for text in ax.texts] for ax in axes]
    assert said == [["no batch recorded yet"], ["all values NaN or infinite"], []]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [NONFINITE_LABEL]
    rows = plot_layer_stats_all([good, empty, nan])
    figure_of(rows[0][0])
    assert [rows[1][k].texts[-1].get_text() for k in range(3)] == ["no batch recorded yet"] * 3
    assert rows[2][0].texts[-1].get_text() == "all values NaN or infinite"
    figure_of(color_dim_all([empty])[0])
    figure_of(plot_layer_stats_all([empty])[0][0])


def test_titles_say_what_is_left_out_and_what_the_values_are():
    data = history([sketch(np.repeat([0.5, 50.0], 200), step) for step in range(3)])
    assert titles(color_dim_all([data], limit=1)) == ["1.0 (Conv2d), 50 % outside"]
    assert titles(color_dim_all([data], limit=100)) == ["1.0 (Conv2d)"]
    gradient = dataclasses.replace(data.layer, quantity="gradient", name="0.0.$weight$")
    (ax,) = color_dim_all([dataclasses.replace(data, layer=gradient)])
    assert words(figure_of(ax))[0] == "Gradients of every step"
    assert titles([ax]) == ["0.0.$weight$ (Conv2d)"]


def test_a_long_name_loses_its_kind_and_then_its_beginning_but_not_its_end():
    long = [history([sketch(np.ones(8), 0)], name="features.deep." * 9 + f"{i}") for i in range(8)]
    axes = color_dim_all(long)
    figure_of(axes[0])
    assert titles(axes)[7].startswith("…")
    assert titles(axes)[7].endswith("deep.7")
    boxes = [ax._left_title.get_window_extent() for ax in axes]
    for left, right in pairwise(boxes[:3]):
        assert left.x1 < right.x0


def test_arguments_that_cannot_work_get_a_sentence():
    stats = Layers(healthy(3, n_values=40), n=3)
    _, ax = plt.subplots()
    for call, match in (
        (
            lambda: stats.color_dim(ax=ax),
            "ax is for one layer; name it, or give axes, one for each",
        ),
        (lambda: stats.color_dim(0, axes=[ax]), "axes is for several layers; with one layer, giv"),
        (lambda: stats.color_dim(0, layers=[1]), "layer and layers exclude each other; give one"),
        (lambda: stats.plot_layer_stats(0, layers=[1]), "layer and layers exclude each other"),
        (
            lambda: stats.color_dim(layers="blocks.0.conv"),
            "layers must be a list, got 'blo",
        ),
        (lambda: stats.color_dim(bins=0), "bins must be at least 1, got 0"),
        (lambda: stats.color_dim(limit=-1), "limit must be a positive number"),
        (lambda: color_dim_all([]), "histories is empty; give the history of one layer at least"),
    ):
        with pytest.raises(ArgumentError, match=match):
            call()
    with pytest.raises(LayerNotFoundError, match="layers is empty; give one at least"):
        stats.color_dim(layers=[])
    with pytest.raises(LayerNotFoundError, match="No layers are recorded; train with watching on"):
        Layers(n=0).color_dim()
    with pytest.raises(LayerNotFoundError, match="layer='3' is not among the 3 layers"):
        stats.plot_layer_stats(layers=["3"])
