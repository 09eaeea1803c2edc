from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bokeh.document import Document
from bokeh.events import DoubleTap
from bokeh.models import Legend, NoOverlap
from views_data import LAYOUT, PER_EPOCH, epochs_of, healthy_loss, normal_columns, step_series

from convlens.core.histories import LayerHistory, LayerInfo
from convlens.views.canvas import StepAxis
from convlens.views.layer_view import (
    ALL_BAD,
    CHOOSE,
    NO_CHANNELS,
    NO_COLUMNS,
    NO_GRADIENTS,
    NO_PARAMETERS,
    NO_UPDATES,
    HeatFigure,
    LayerView,
)
from convlens.views.lines import Curve
from convlens.views.timeline import EMPTY, MAX_CELLS, Grid


def history(n: int = 100, name: str = "0.0", channels: int = 8, **facts) -> LayerHistory:
    """Growing deviations, so that quantiles and limits differ from column to column."""
    columns = normal_columns(np.full(n, 0.5), np.linspace(0.5, 2, n), 10_000, channels, **facts)
    return LayerHistory(LayerInfo(0, name, "Conv2d", feeds_relu=True), columns, LAYOUT)


@pytest.fixture
def view() -> LayerView:
    return LayerView(StepAxis((0, 99)))


def lines_of(stat) -> dict[str, np.ndarray]:
    sources = [slot.lines for slot in stat.slots]
    return {name: y for data in sources for name, y in zip(data["name"], data["ys"], strict=True)}


def cell(view: LayerView, name: str, row: int, column: int) -> float:
    return view.heat.source.data[name][0][row, column]


def test_nothing_chosen_says_so(view):
    assert view.heat.message.text == CHOOSE
    view.show("Another run was opened.")
    assert view.heat.message.text == "Another run was opened."
    assert view.heat.limits is None


def test_what_is_pointed_at_is_the_count(view):
    of = history()
    view.update(of)

    low, high = view.heat.limits
    counts = of.rebin(np.linspace(low, high, 101))
    assert view.heat.source.data["image"][0].shape == (100, MAX_CELLS)
    assert cell(view, "count", 40, 7) == pytest.approx(counts[7, 40])
    assert cell(view, "low", 40, 7) == pytest.approx(low + 0.40 * (high - low))
    assert cell(view, "high", 40, 7) == pytest.approx(low + 0.41 * (high - low))
    assert (view.heat.plot.y_range.start, view.heat.plot.y_range.end) == (low, high)
    tips = dict(view.heat._hover.tooltips)
    assert set(tips) == {"batch", "activation", "values"}
    assert view.heat.message.text == ""


def test_many_columns_are_cells_of_several_batches(view):
    of = history(1300)
    view.update(of)

    assert view.heat.source.data["dw"][0] == 4 * MAX_CELLS  # the next power of two
    low, high = view.heat.limits
    counts = of.rebin(np.linspace(low, high, 101))
    assert cell(view, "count", 40, 1) == pytest.approx(counts[4:8, 40].mean(), rel=1e-6)
    assert set(dict(view.heat._hover.tooltips)) == {
        "batch",
        "activation",
        "values, mean of 4 batches",
    }
    assert len(view.heat.quantiles[0].lines["xs"][0]) == 325


def test_quantiles_are_the_histories(view):
    of = history()
    view.update(of)

    drawn = [ys for lines in view.heat.quantiles for ys in lines.lines["ys"]]
    for line, q in zip(drawn, (0.5, 0.25, 0.75, 0.01, 0.99), strict=True):
        np.testing.assert_allclose(line, of.quantile(q), rtol=1e-6)


def test_statistics_are_the_histories(view):
    of = history(dead=3)
    view.update(of)

    np.testing.assert_allclose(lines_of(view.mean)["mean"], of.mean, rtol=1e-6)
    np.testing.assert_allclose(lines_of(view.std)["standard deviation"], of.std, rtol=1e-6)
    near = lines_of(view.near_zero)
    assert list(near) == ["output", "after ReLU", "exactly 0"]
    np.testing.assert_allclose(near["after ReLU"], 100 * of.near_zero_after_relu, rtol=1e-6)
    channels = lines_of(view.channels)
    np.testing.assert_array_equal(channels["dead"], np.full(100, 3))
    np.testing.assert_array_equal(channels["silent"], of.silent_channels)
    assert view.channels.plot.title.text == "Dead, silent channels of 8"
    assert view.near_zero.plot.title.text == "% near zero (|x| ≤ 0.05)"


def test_an_axis_of_counts_ends_at_their_number_and_no_legend_lies_in_it(view):
    view.update(history(dead=3))

    ranges = [stat.plot.y_range for stat in (view.channels, view.near_zero)]
    ends = [(round(reach.start, 2), round(reach.end, 2)) for reach in ranges]
    assert ends == [(-0.48, 8.48), (-6.0, 106.0)]
    assert not any(isinstance(one, Legend) for one in view.channels.plot.center)
    assert sum(isinstance(one, Legend) for one in view.channels.plot.above) == 1


def test_powers_of_ten_do_not_overlap(view):
    for stat in (view.gradients, view.updates):
        assert isinstance(stat.plot.yaxis[0].major_label_policy, NoOverlap)


def test_a_title_of_a_layer_fits_its_figure(view):
    view.update(history(name="layer4.0.conv1"))
    whole = "layer4.0.conv1: activations, quantiles 1, 25, 50, 75, 99 %"
    assert view.heat.plot.title.text == whole

    view.update(history(name="backbone.layer4.0.conv1"))
    assert len(view.heat.plot.title.text) <= len(whole) + 1


def test_a_layer_without_relu_or_channels(view):
    of = history(channels=0)
    of = replace(of, layer=replace(of.layer, feeds_relu=False))
    view.update(of)

    assert list(lines_of(view.near_zero)) == ["output", "exactly 0"]
    assert view.channels.message.text == NO_CHANNELS


def test_gradients_and_updates_or_a_sentence(view):
    view.update(history())
    assert view.gradients.message.text == NO_GRADIENTS
    assert view.updates.message.text == NO_UPDATES

    view.update(history(), [], [])
    assert view.gradients.message.text == view.updates.message.text == NO_PARAMETERS

    x, ones = np.arange(100), np.ones(100)
    gradients = [Curve("weight", x, 2.0 * ones), Curve("bias", x, 0.1 * ones)]
    view.update(history(), gradients, [Curve("weight", x, 0.005 * ones)])
    assert view.gradients.message.text == view.updates.message.text == ""
    sizes = lines_of(view.gradients)
    assert list(sizes) == ["weight", "bias"]
    np.testing.assert_allclose(sizes["weight"], gradients[0].y, rtol=1e-6)
    np.testing.assert_allclose(lines_of(view.updates)["weight"], 0.005, rtol=1e-3)
    assert 0 < view.updates.plot.y_range.start < 0.005 < view.updates.plot.y_range.end


def test_another_layer_changes_data_and_no_models(view):
    view.update(history(name="before"), None)
    view.update(history(name="first", channels=4), [Curve("weight", np.arange(3), np.ones(3))])
    doc, events = Document(), []
    doc.add_root(view.root)
    doc.on_change(events.append)
    before = {model.id for model in view.root.references()}

    view.update(history(name="second"), None)

    assert {model.id for model in view.root.references()} == before
    assert view.heat.plot.title.text.startswith("second: activations, quantiles")
    # The batches of each cell are the same and are not sent again.
    sent = [set(e.cols) for e in events if getattr(e, "cols", None) and "image" in e.cols]
    assert sent == [{"image", "x", "y", "dw", "dh", "count"}]


def test_steps_that_are_not_finite_are_marked(view):
    nan = np.where(np.arange(100) >= 90, 5, 0)
    view.update(history(nan=nan))

    bad = view.heat._bad.data
    assert (bad["left"][0], bad["right"][-1]) == (89.5, 99.5)
    assert bad["top"][0] == view.heat.limits[1]


def test_nothing_but_nan_says_so(view):
    of = history(20)
    none = np.zeros_like(of.counts)
    gone = {"counts": none, "nan": of.n, "mean": np.full(20, np.nan), "m2": np.zeros(20)}
    view.update(replace(of, columns=type(of.columns)(**{**vars(of.columns), **gone})))

    assert (view.heat.source.data["image"][0] == EMPTY).all()
    assert view.mean.message.text == view.std.message.text == ALL_BAD
    assert [len(lines.lines["xs"]) for lines in view.heat.quantiles] == [0, 0, 0]


def test_a_layer_that_took_part_in_no_batch_says_so(view):
    view.update(history(0))

    assert view.heat.message.text == NO_COLUMNS


def test_one_column_is_seen(view):
    view.update(history(1))

    assert cell(view, "count", 50, 0) > 0
    points = view.mean.slots[0].points
    assert (points["x"].tolist(), points["y"].tolist()) == ([0.0], [0.5])


def test_epochs_and_span_are_the_axis(view):
    epochs = epochs_of(step_series(healthy_loss(236)), (0.9, 0.95))
    view.update(history(236), epochs=epochs)

    assert view.axis.whole == (-0.5, 235.5)
    assert view.axis._ends.ticks == [PER_EPOCH - 0.5, 2 * PER_EPOCH - 0.5]
    view.axis.range.update(start=3, end=5)
    view.heat.plot._trigger_event(DoubleTap(view.heat.plot))
    assert (view.axis.range.start, view.axis.range.end) == (-0.5, 235.5)


def test_a_long_name_is_shortened_and_no_formula(view):
    view.update(history(name="$$" + "x" * 80))

    title = view.heat.plot.title.text
    assert len(title) < 110
    assert "$$" not in title


def test_a_report_has_no_counts():
    heat = HeatFigure(StepAxis((0, 99)), 300, counts=False)
    heat.update(history(), Grid(0, 1, 100), "A layer")

    assert set(heat.source.data) == {"image", "x", "y", "dw", "dh"}
    assert heat.source.data["image"][0].shape == (100, 100)
    assert [field for _, field in heat._hover.tooltips] == ["$x{0}", "$y{0.000}"]
