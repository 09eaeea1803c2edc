from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from plots_data import cycles, epochs_of, healthy, history, sketch, training

mpl.use("Agg")

import matplotlib.pyplot as plt

from convlens.core.columns import coarsen
from convlens.core.layer_histories import LayerHistories
from convlens.core.steps import empty_steps, sum_up
from convlens.core.training_curves import TrainingCurves
from convlens.errors import ArgumentError, LayerNotFoundError
from convlens.plots import (
    CurvePlots,
    LayerPlots,
    color_dim,
    plot_layer_stats,
    plot_loss,
    plot_sched,
    show_images,
)
from convlens.plots.canvas import NONFINITE_LABEL, STEP_LABEL
from convlens.plots.curves import smoothed
from convlens.plots.one_layer import column_spans, value_range


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def render(ax):
    """Draw for real, so that layout and fonts are tried too."""
    ax.figure.canvas.draw()


def words(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    box = ax.get_legend()
    return [] if box is None else [text.get_text() for text in box.get_texts()]


def mesh_of(ax):
    return next(c for c in ax.collections if isinstance(c, mpl.collections.QuadMesh))


def test_importing_plots_loads_neither_matplotlib_nor_torch():
    code = "import convlens.plots, sys; print({'matplotlib', 'torch'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"


# Loss


def test_loss_is_drawn_raw_smoothed_and_by_epoch():
    steps, epochs = training(600), epochs_of(5, 120)
    ax = plot_loss(steps, epochs)
    render(ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (STEP_LABEL, "loss")
    raw, smooth, valid = ax.lines[:3]
    np.testing.assert_array_equal(raw.get_ydata(), steps.loss)
    assert np.std(np.diff(smooth.get_ydata())) < np.std(np.diff(raw.get_ydata())) / 3
    np.testing.assert_allclose(valid.get_xdata(), [119, 239, 359, 479, 599])
    np.testing.assert_allclose(valid.get_ydata(), [e.valid_loss for e in epochs])
    assert words(ax) == ["epoch 1", "2", "3", "4", "5"]
    ends = [line.get_xdata()[0] for line in ax.lines[3:]]
    assert ends == [119.5, 239.5, 359.5, 479.5, 599.5]
    assert [text.get_position()[0] for text in ax.texts] == [59.5, 179.5, 299.5, 419.5, 539.5]


def test_loss_draws_only_what_there_is_on_the_axes_it_is_given():
    _, ax = plt.subplots()
    assert plot_loss(training(100), epochs_of(1, 100, valid=False), ax) is ax
    assert len(plt.get_fignums()) == 1
    assert legend(ax) == ["training, each batch", "training, smoothed"]
    ax = plot_loss(empty_steps(), epochs_of(2, 10, valid=False))
    render(ax)
    assert words(ax)[1:] == ["epoch 1", "2"]
    assert words(ax)[0].startswith("no finite loss was recorded;")
    assert legend(ax) == []
    ax = plot_loss(dataclasses.replace(training(5), loss=np.full(5, np.nan)))
    render(ax)
    assert legend(ax) == [NONFINITE_LABEL]
    assert words(ax)[0].startswith("no finite loss was recorded;")


def test_smoothing_weighs_finite_values_by_their_distance_to_both_sides():
    values = np.array([4.0, 2.0, np.nan, 0.0, 7.0])
    kernel = 0.5 ** np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    kernel[0, 1:] = kernel[1, 3:] = 0.0  # no further ahead than back
    known = np.isfinite(values)
    expected = kernel[:, known] @ values[known] / kernel[:, known].sum(axis=1)
    expected[2] = np.nan
    np.testing.assert_allclose(smoothed(values, 0.5), expected)
    np.testing.assert_allclose(smoothed(values, 0.0), values)


def test_smoothing_begins_where_a_steeply_falling_loss_begins():
    fall = 2.5 * 0.8 ** np.arange(200) + 0.1
    smooth = smoothed(fall, 0.98)
    assert smooth[0] == fall[0]
    assert (np.diff(smooth[:100]) < 0).all()


def test_smoothing_neither_lags_behind_nor_follows_one_huge_loss():
    fall = np.linspace(4, 1, 400)
    steps = dataclasses.replace(training(400), loss=fall.copy())
    smooth = plot_loss(steps).lines[1].get_ydata()
    np.testing.assert_allclose(smooth[100:300], fall[100:300], atol=0.01)
    steps.loss[150] = 1e6
    assert plot_loss(steps).lines[1].get_ydata().max() < 10


def test_nothing_recorded_is_said_in_words():
    ax = plot_loss(empty_steps())
    rate, momentum = plot_sched(empty_steps())
    render(ax)
    render(rate)
    assert words(ax) == ["no steps were recorded yet"]
    assert words(rate) == ["no learning rate was recorded yet"]
    assert words(momentum) == ["no momentum was recorded yet"]


def test_a_single_step_is_a_visible_point_at_an_integer():
    for ax in (plot_loss(training(1)), *plot_sched(training(1)), *plot_layer_stats(healthy(1))):
        render(ax)
        assert ax.lines[0].get_marker() == "o"
        low, high = ax.get_xlim()
        assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [0]


def test_a_huge_loss_makes_the_axis_logarithmic_and_nan_is_marked():
    steps = training(300)
    loss = steps.loss.copy()
    loss[50], loss[200:210] = 1e6, np.nan
    ax = plot_loss(dataclasses.replace(steps, loss=loss))
    render(ax)
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "loss (log scale)"
    assert NONFINITE_LABEL in legend(ax)
    bands = [path.get_extents() for path in ax.collections[0].get_paths()]
    assert [(band.x0, band.x1) for band in bands] == [(s - 0.5, s + 0.5) for s in range(200, 210)]
    epochs = [dataclasses.replace(epoch, valid_loss=1e7) for epoch in epochs_of(2, 50)]
    assert plot_loss(training(100), epochs).get_yscale() == "log"


def test_tiny_values_are_written_at_their_ticks_and_not_as_a_factor_above():
    steps = training(50)
    rates = {"lr": steps.hypers["lr"] * 1e-6}
    rate, _ = plot_sched(dataclasses.replace(steps, hypers=rates), epochs_of(1, 50))
    render(rate)
    assert rate.yaxis.get_offset_text().get_text() == ""
    assert "8e−08" in [label.get_text() for label in rate.get_yticklabels()]


def test_more_steps_than_a_screen_shows_are_a_band_and_its_mean():
    steps = training(20_000)
    loss = steps.loss.copy()
    loss[7_777], loss[12_000] = 9.0, np.nan
    curves = sum_up(dataclasses.replace(steps, loss=loss), 4096)
    for ax in (plot_loss(dataclasses.replace(steps, loss=loss)), plot_loss(curves)):
        render(ax)
        expected = ["training, lowest to highest of 8 batches", "training, smoothed"]
        assert legend(ax) == [*expected, NONFINITE_LABEL]
        band = ax.collections[0].get_paths()[0].get_extents()
        assert (band.x0, band.x1, band.y1) == (-0.5, 19_999.5, 9.0)
        assert band.y0 == np.nanmin(loss)
        (line,) = ax.lines
        assert line.get_xdata().tolist() == curves.middle_step.tolist()
        np.testing.assert_allclose(line.get_ydata()[500:900], curves.loss.mean[500:900], rtol=0.2)
        marked = ax.collections[1].get_paths()[0].get_extents()
        assert (marked.x0, marked.x1) == (11_999.5, 12_007.5)


def test_the_smoothed_line_of_a_band_goes_through_the_means():
    steps = training(400_000)
    curves = sum_up(steps, 4096)
    (line,) = plot_loss(steps).lines
    weight = 0.98**128
    assert weight < 0.1, "so that hardly more than the entries' means is left"
    np.testing.assert_allclose(line.get_ydata(), curves.loss.mean, rtol=0.05)


# Schedule


def test_learning_rate_and_momentum_move_against_each_other():
    steps = training(600)
    rate, momentum = plot_sched(steps, epochs_of(5, 120))
    render(rate)
    assert (rate.get_ylabel(), momentum.get_ylabel()) == ("learning rate", "momentum (β₁ for Adam)")
    up, down = rate.lines[0].get_ydata(), momentum.lines[0].get_ydata()
    assert up.argmax() == down.argmin()
    assert np.corrcoef(up, down)[0, 1] < -0.999


def test_groups_that_agree_are_one_line_and_a_missing_hyperparameter_is_said():
    steps = training(50, groups=2)
    rate, momentum = plot_sched(steps)
    assert legend(rate) == ["parameter group 0", "parameter group 1"]
    assert len(momentum.lines) == 1
    assert legend(momentum) == []
    rate, momentum = plot_sched(dataclasses.replace(steps, hypers={"lr": steps.hypers["lr"]}))
    assert len(rate.get_xticks()) > 1
    assert words(momentum) == ["no momentum was recorded"]


def test_a_wrong_number_of_axes_is_refused():
    _, axes = plt.subplots(1, 2)
    assert plot_sched(training(5), axes=list(axes)) == tuple(axes)
    with pytest.raises(ArgumentError, match=r"axes has 2 entries, but this plot draws on 3"):
        plot_layer_stats(healthy(3), axes=list(axes))


def test_many_epochs_are_numbered_sparsely_and_lines_are_left_out():
    few, many = plot_loss(training(600), epochs_of(20, 30)), plot_loss(training(600))
    bare = len(many.lines)
    assert len(few.lines) == bare + 1 + 20
    assert words(few)[:2] == ["epoch 1", "3"]
    crowded = plot_loss(training(600), epochs_of(100, 6))
    assert len(crowded.lines) == bare + 1
    assert len(words(crowded)) <= 12


# A layer's statistics


def test_layer_stats_draw_what_the_history_holds():
    data = healthy(100)
    mean, std, near = plot_layer_stats(data, epochs_of(2, 50))
    render(mean)
    np.testing.assert_array_equal(mean.lines[0].get_ydata(), data.mean)
    np.testing.assert_array_equal(std.lines[0].get_ydata(), data.std)
    np.testing.assert_array_equal(near.lines[0].get_ydata(), 100 * data.near_zero)
    np.testing.assert_array_equal(mean.lines[0].get_xdata(), np.arange(100))
    assert mean.get_title() == "1.0 (Conv2d): mean"
    assert near.get_ylabel() == "% near zero (|x| ≤ 0.05)"
    assert legend(near) == ["as it is", "after its ReLU (x ≤ 0.05)"]
    assert all(ax.get_xlabel() == STEP_LABEL for ax in (mean, std, near))
    layer = dataclasses.replace(data.layer, feeds_relu=False, name="")
    near = plot_layer_stats(dataclasses.replace(data, layer=layer))[2]
    assert len(near.lines) == 1
    assert near.get_title() == "Conv2d: % near zero"


def test_nan_columns_are_marked_and_an_all_nan_layer_says_so():
    nan = history([sketch(np.full(400, np.nan), step) for step in range(5)])
    mean, std, near = plot_layer_stats(nan)
    render(mean)
    assert words(mean) == words(std) == ["all values NaN or infinite"]
    assert legend(mean) == [NONFINITE_LABEL]
    assert NONFINITE_LABEL in legend(near)


def test_an_empty_history_is_said_in_words():
    axes = (*plot_layer_stats(history([])), color_dim(history([])))
    for ax in axes:
        render(ax)
        assert words(ax) == ["no batch recorded yet"]


def test_outliers_make_signed_statistics_symmetrically_logarithmic():
    rng = np.random.default_rng(0)
    values = [rng.normal(0, 1e8 if step == 3 else 1, 400) for step in range(50)]
    mean, std, _ = plot_layer_stats(history([sketch(v, step) for step, v in enumerate(values)]))
    render(mean)
    assert mean.get_yscale() == "symlog"
    assert "log beyond ±0.1" in mean.get_ylabel()
    assert std.get_yscale() == "log"


# color_dim


def test_color_dim_has_one_column_per_batch_and_counts_of_the_sketch():
    data = cycles(60)
    ax = color_dim(data, epochs=epochs_of(2, 30), limit=5, bins=20)
    render(ax)
    mesh = mesh_of(ax)
    edges = np.linspace(-5, 5, 21)
    np.testing.assert_allclose(mesh.get_array(), data.rebin(edges).T)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], np.arange(61) - 0.5)
    np.testing.assert_allclose(mesh.get_coordinates()[:, 0, 1], edges)
    assert mesh.get_rasterized()
    assert ax.get_xlabel() == STEP_LABEL
    assert mesh.colorbar.ax.get_ylabel() == "values per bin and batch (log scale)"
    assert words(ax) == ["epoch 1", "2"]


def test_colour_is_log_of_one_plus_count():
    mesh = mesh_of(color_dim(cycles(20), limit=4))
    np.testing.assert_allclose(mesh.norm(9.0), np.log1p(9.0) / np.log1p(mesh.norm.vmax))
    assert mesh.norm.vmin == 0
    many = mesh_of(color_dim(history([sketch(np.zeros(2_000_000), 0)])))
    ticks = [text.get_text() for text in many.colorbar.ax.get_yticklabels()]
    assert ticks == ["0", "1", "10", "100", "1 k", "10 k", "100 k", "1 M"]


def test_merged_columns_are_as_wide_as_their_steps_and_show_the_mean_batch():
    data = healthy(70)
    merged = dataclasses.replace(data, columns=coarsen(data.columns, 4))
    mesh = mesh_of(color_dim(merged, limit=9, bins=8))
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0] + 0.5, [0, 16, 32, 48, 64, 70])
    np.testing.assert_allclose(mesh.get_array().sum(axis=0), 4000, rtol=0.01)
    mean = plot_layer_stats(merged)[0]
    np.testing.assert_array_equal(mean.lines[0].get_xdata(), [7.5, 23.5, 39.5, 55.5, 66.5])


def test_sampled_batches_reach_to_the_next_and_a_pause_stays_bare():
    steps = [0, 10, 20, 100, 110]
    data = history([sketch(np.ones(8), step) for step in steps])
    spans = column_spans(data)
    np.testing.assert_array_equal(spans.width, [10, 10, 10, 10, 1])
    np.testing.assert_array_equal(spans.gap, [False, False, True, False, False])
    mesh = mesh_of(color_dim(data, bins=4))
    np.testing.assert_allclose(
        mesh.get_coordinates()[0, :, 0] + 0.5, [0, 10, 20, 30, 100, 110, 111]
    )
    assert mesh.get_array().mask.all(axis=0).tolist() == [False, False, False, True, False, False]


def test_the_range_is_the_quantiles_of_all_values_and_zero():
    data = healthy(50)
    low, high = value_range(data, None)
    pooled = np.random.default_rng(0)
    values = np.concatenate(
        [pooled.normal(-0.6 * t, 0.3 + 1.2 * t**0.5, 4000) for t in np.arange(50) / 49]
    )
    np.testing.assert_allclose([low, high], np.quantile(values, [0.001, 0.999]), rtol=0.07)
    positive = history([sketch(np.full(8, 3.0), 0)])
    assert value_range(positive, None)[0] == 0.0
    assert value_range(data, 2) == (-2.0, 2.0)
    assert value_range(data, (-1, 3)) == (-1.0, 3.0)


def test_color_dim_draws_into_given_axes_of_an_own_figure():
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    assert color_dim(cycles(590, n_values=400), right, epochs_of(5, 118)) is right
    render(right)
    assert plt.get_fignums() == [figure.number]
    assert not left.has_data()
    assert mesh_of(right).get_array().shape == (100, 590)
    box = mesh_of(right).colorbar.ax.get_tightbbox()
    assert box.x1 <= figure.bbox.x1, "the colour bar's label is not cut off"


def test_what_lies_outside_the_range_is_said():
    data = history([sketch(np.repeat([0.5, 50.0], 200), step) for step in range(3)])
    assert color_dim(data, limit=1).get_ylabel() == "activation (50.0 % lie outside)"
    assert color_dim(data, limit=100).get_ylabel() == "activation"
    rng = np.random.default_rng(0)  # a few huge values do not press the others flat
    data = history([sketch(np.append(rng.normal(0, 1, 3999), 1e30), step) for step in range(20)])
    ax = color_dim(data)
    render(ax)
    assert 2.5 < ax.get_ylim()[1] < 4
    assert "% lie outside" in ax.get_ylabel()
    assert mesh_of(ax).get_array().sum() > 0.99 * 20 * 4000


def test_a_collapsed_layer_shows_its_zeros_in_one_row():
    data = history([sketch(np.zeros(400), step) for step in range(5)])
    ax = color_dim(data, bins=10)
    render(ax)
    array = np.asarray(mesh_of(ax).get_array())
    assert ax.get_ylim() == (-1.0, 1.0)
    assert sorted(array[:, 0]) == [0] * 9 + [400]


def test_nan_columns_are_blank_and_marked():
    values = [np.ones(400), np.full(400, np.nan), np.append(np.ones(399), np.inf)]
    ax = color_dim(history([sketch(v, step) for step, v in enumerate(values)]), bins=4)
    render(ax)
    assert mesh_of(ax).get_array().mask.all(axis=0).tolist() == [False, True, False]
    assert legend(ax) == [NONFINITE_LABEL]
    everywhere = color_dim(history([sketch(values[1], 0)]))
    render(everywhere)
    assert words(everywhere) == ["all values NaN or infinite"]


def test_a_wrong_range_or_bin_count_is_refused():
    data = healthy(3)
    for limit in (0, -1, np.nan, (3, 2), (0, np.inf)):
        with pytest.raises(ArgumentError, match=r"limit must be a positive number or a pair"):
            color_dim(data, limit=limit)
    with pytest.raises(ArgumentError, match=r"bins must be at least 1, got 0"):
        color_dim(data, bins=0)


# Images


def digits(n, colour=False):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (n, 6, 5, 3) if colour else (n, 6, 5), dtype=np.uint8)


def test_images_are_drawn_unchanged_in_a_grid_under_their_captions():
    images = digits(5)
    ax = show_images(images, ["a", "b", "c", "d", "e"], columns=3)
    render(ax)
    assert len(ax.images) == 5
    for drawn, image in zip(ax.images, images, strict=True):
        np.testing.assert_array_equal(drawn.get_array(), image)
        assert drawn.get_clim() == (0, 255)
    lefts = [image.get_extent()[0] for image in ax.images]
    assert lefts[0] == lefts[3] < lefts[1] == lefts[4] < lefts[2]
    for image, text in zip(ax.images, ax.texts, strict=True):
        left, right, bottom, top = image.get_extent()
        assert left < text.get_position()[0] < right
        assert top > text.get_position()[1]
        assert bottom - top == 6
    box = ax.get_ylim()
    assert all(box[1] <= image.get_extent()[3] <= box[0] for image in ax.images)


def test_long_captions_are_wrapped_and_stay_inside_their_column():
    text = "4, predicted 9 (99.1 %), loss 4.71"
    ax = show_images(digits(8), [text] * 8, columns=4)
    render(ax)
    assert ax.texts[0].get_text().replace("\n", " ") == text
    boxes = [item.get_window_extent() for item in ax.texts]
    for left, right in pairwise(boxes[:4]):
        assert left.x1 <= right.x0
    images = [image.get_window_extent() for image in ax.images]
    for below in boxes[4:]:
        assert all(below.y1 <= image.y0 for image in images[:4])


def test_colour_images_given_axes_and_no_captions():
    _, ax = plt.subplots()
    assert show_images(digits(4, colour=True), ax=ax) is ax
    assert [image.get_array().shape for image in ax.images] == [(6, 5, 3)] * 4
    assert words(ax) == []
    ax = show_images(digits(0))
    render(ax)
    assert words(ax) == ["no images"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros((2, 3, 6, 5), np.uint8),), r"has shape \(2, 3, 6, 5\) and dtype uint8; exp"),
        ((np.zeros((2, 6, 5)),), r"images has shape \(2, 6, 5\) and dtype float64; exp"),
        ((digits(2), ["a"]), "captions has 1 texts for 2 images; give one for each"),
        ((digits(2), (), 0), "columns must be at least 1, got 0"),
    ],
)
def test_wrong_images_captions_and_columns_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        show_images(*arguments)


# The abstract classes


class Layers(LayerPlots, LayerHistories):
    def __init__(self, histories):
        self._histories = histories

    @property
    def layers(self):
        return [one.layer for one in self._histories]

    @property
    def epochs(self):
        return epochs_of(1, 10)

    def history(self, index):
        return self._histories[index]


class Curves(CurvePlots, TrainingCurves):
    steps = training(20)
    epochs = epochs_of(2, 10)


def test_layers_are_found_by_index_and_name():
    first, second = healthy(10), cycles(10)
    second = dataclasses.replace(second, layer=dataclasses.replace(second.layer, name="2.0"))
    stats = Layers([first, second])
    assert len(stats) == 2
    assert list(stats) == stats.names == ["1.0", "2.0"]
    assert stats[-1] is stats["2.0"] is second
    assert stats[0] is first
    with pytest.raises(LayerNotFoundError, match=r"layer='2\.1' is not among the 2 layers"):
        stats["2.1"]
    with pytest.raises(LayerNotFoundError, match=r"layer=2 is out of range: there are 2 layers"):
        stats[2]


def test_layers_and_curves_draw_themselves_with_their_epochs():
    stats = Layers([healthy(10)])
    axes = stats.plot_layer_stats("1.0")
    assert words(axes[0]) == ["epoch 1"]
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), stats[0].mean)
    _, ax = plt.subplots()
    assert stats.color_dim(-1, ax=ax, limit=2, bins=7) is ax
    assert mesh_of(ax).get_array().shape == (7, 10)
    assert words(ax) == ["epoch 1"]
    curves = Curves()
    assert words(curves.plot_loss()) == ["epoch 1", "2"]
    assert [words(ax) for ax in curves.plot_sched()] == [["epoch 1", "2"]] * 2


def test_what_a_notebook_and_a_terminal_show():
    stats, curves = Layers([healthy(10)]), Curves()
    assert repr(stats) == "<Layers, 1 series: 1.0>"
    assert repr(curves) == "Recorder(20 steps, 2 epochs)"
    for thing in (stats, curves):
        assert thing._repr_html_().startswith('<img alt="')
        assert 'src="data:image/png;base64,iVBOR' in thing._repr_html_()
    assert plt.get_fignums() == []
    assert Layers([])._repr_html_() is None


def test_a_schedule_of_many_steps_shows_what_lies_between_its_entries():
    steps = training(20_000, groups=2)
    rate, momentum = plot_sched(steps)
    render(rate)
    assert (len(rate.lines), len(rate.collections)) == (2, 2)
    assert (len(momentum.lines), len(momentum.collections)) == (1, 1)
    low, high = (f(steps.hypers["lr"][:, 0]) for f in (np.min, np.max))
    band = rate.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (low, high)


def test_a_long_run_is_drawn_without_a_warning():
    one = cycles(64, n_values=400)
    columns = one.columns[np.arange(4096) % 64]
    steps = np.arange(4096, dtype=np.int64) * 4
    columns = dataclasses.replace(columns, first_step=steps, last_step=steps + 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = color_dim(dataclasses.replace(one, columns=columns), epochs=epochs_of(100, 164))
        render(ax)
    assert ax.get_xlim() == (-0.5, 4096 * 4 - 0.5)
