from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from bokeh.document import Document
from bokeh.events import DoubleTap, Tap
from bokeh.models import BoxAnnotation, Image, Line, MultiLine, Patch, Scatter, Span
from test_views_matrices import figures
from views_data import PER_EPOCH, epochs_of, healthy_loss, step_series

from convlens.core.histories import LayerInfo, SeriesFigures
from convlens.core.records import Epoch
from convlens.core.steps import StepCurves, StepSeries, empty_steps, sum_up
from convlens.plots.canvas import BLUE, ORANGE
from convlens.views import canvas
from convlens.views.canvas import DARK, StepAxis, dark_theme, darken, short_names, with_room
from convlens.views.curves import loss_figure
from convlens.views.layer_view import LayerView
from convlens.views.matrices import BAD, MAX_COLUMNS, NONE, make_matrix
from convlens.views.matrix import MatrixFigure
from convlens.views.overview import RunView


def curves(n: int, points: int = 1500, loss: np.ndarray | None = None) -> StepCurves:
    steps = step_series(healthy_loss(n) if loss is None else loss) if n else empty_steps()
    return sum_up(steps, points)


def layers(n_layers: int, n_steps: int, name: str = "layer{}") -> SeriesFigures:
    infos = [LayerInfo(i, name.format(i), "Conv2d") for i in range(n_layers)]
    values = np.random.default_rng(0).random((n_layers, 4096), np.float32)[:, :n_steps]
    named = dict.fromkeys(("near_zero", "near_zero_after_relu", "mean", "std"), values)
    return figures(infos, np.arange(n_steps), **named)


def shown(n_layers: int = 3, n_steps: int = 100) -> RunView:
    view = RunView()
    epochs = epochs_of(step_series(healthy_loss(n_steps)), (0.9,) * (n_steps // PER_EPOCH))
    view.update(curves(n_steps), epochs, make_matrix("near_zero", layers(n_layers, n_steps)))
    return view


def in_document(view: RunView) -> list:
    """All changes that a browser would be sent from now on."""
    doc, events = Document(), []
    doc.add_root(view.curves)
    doc.add_root(view.matrix)
    doc.on_change(events.append)
    return events


def drawn(plot, kind) -> list:
    return [renderer for renderer in plot.renderers if isinstance(renderer.glyph, kind)]


def lines_of(plot) -> list[tuple[str, int]]:
    sources = [renderer.data_source.data for renderer in drawn(plot, MultiLine)]
    return [
        (name, len(x)) for data in sources for name, x in zip(data["name"], data["xs"], strict=True)
    ]


def color_of(model) -> str:
    return getattr(model.line_color, "value", model.line_color)


def linear(view: RunView):
    return view.loss.scales.plot(False)


def log(view: RunView):
    return view.loss.scales.plot(True)


def seen(view: RunView) -> tuple[bool, bool]:
    return linear(view).visible, log(view).visible


def messages(view: RunView) -> list[str]:
    held = [view.loss.scales, view.metric._message, view.schedule._message]
    return [message.text for message in (*held, view.matrix_figure.message)]


def test_a_run_that_has_not_begun_says_so():
    view = RunView()
    view.update(curves(0), [], make_matrix("near_zero", figures([], [])))

    assert messages(view) == [
        "No step was recorded yet.",
        "No epoch was finished yet.",
        "No learning rate and no momentum was recorded.",
        "No layer was watched.",
    ]
    assert not any(item.visible for item in view.loss._entries)


def test_one_step_is_a_point():
    view = shown(n_steps=1)

    points = [r for r in drawn(linear(view), Scatter) if len(r.data_source.data["x"])]
    assert len(points) == 1
    assert points[0].data_source.data["y"][0] == pytest.approx(healthy_loss(1)[0])
    assert view.axis.whole == (-0.5, 0.5)
    assert view.matrix_figure.source.data["value"][0][0, 0] > 0
    assert "No step" not in " ".join(messages(view))


def test_what_is_drawn_is_the_record():
    view = shown(n_steps=300)
    plot = linear(view)

    assert lines_of(plot) == [
        ("training loss", 300),
        ("training loss", 300),
        ("validation loss", 2),
    ]
    raw = drawn(plot, MultiLine)[0].data_source.data["ys"][0]
    np.testing.assert_array_equal(raw, healthy_loss(300).astype(np.float32))
    assert lines_of(view.metric.plot) == [("accuracy", 2)]
    assert view.metric.plot.title.text == "Accuracy"
    assert lines_of(view.schedule.plot) == [("learning rate", 300), ("momentum (β₁ for Adam)", 300)]
    assert (view.axis.range.start, view.axis.range.end) == (-0.5, 299.5)


def test_many_steps_are_a_band():
    view = RunView()
    view.update(curves(10_000, 1000), [], make_matrix("near_zero", layers(1, 4)))
    (band,) = drawn(linear(view), Patch)

    assert np.nanmax(band.data_source.data["y"]) == healthy_loss(10_000).max().astype(np.float32)
    seen = {item.name: item.visible for item in view.loss._entries}
    assert seen == {"each batch": False, "low to high": True, "smoothed": True, "validation": False}


def test_growing_changes_data_and_no_models():
    view = shown(n_steps=100)
    events = in_document(view)
    before = {model.id for root in (view.curves, view.matrix) for model in root.references()}

    view.update(curves(101), [], make_matrix("near_zero", layers(3, 101)))

    after = {model.id for root in (view.curves, view.matrix) for model in root.references()}
    assert after == before
    patched = [event for event in events if type(event).__name__ == "ColumnsPatchedEvent"]
    (patch,) = patched
    assert set(patch.patches) == {"image", "value"}
    assert [index for index, _ in patch.patches["value"]] == [
        (row, slice(0, 1), slice(100, 101)) for row in range(3)
    ]
    expected = layers(3, 101).values["near_zero"]
    source = view.matrix_figure.source.data
    np.testing.assert_array_equal(np.concatenate(source["value"])[:, :101], expected)
    assert np.isnan(np.concatenate(source["value"])[:, 101:]).all()


def test_the_same_again_sends_nothing_of_the_matrix():
    view = shown(n_steps=100)
    events = in_document(view)

    view.update_matrix(make_matrix("near_zero", layers(3, 100)))

    assert events == []


def test_cells_become_wider_when_they_are_too_many():
    view = shown(n_steps=MAX_COLUMNS)
    source = view.matrix_figure.source
    assert "mean of" not in str(view.matrix_figure._hover.tooltips)

    view.update_matrix(make_matrix("near_zero", layers(3, MAX_COLUMNS + 1)))

    assert source.data["dw"][0] == 2 * MAX_COLUMNS
    values = layers(1, 2).values["near_zero"][0]
    assert source.data["value"][0][0, 0] == pytest.approx(values.mean())
    assert ("", "mean of 2 batches") in view.matrix_figure._hover.tooltips


def test_another_quantity_changes_colours_and_words():
    view = shown()
    matrix = view.matrix_figure
    shares = list(matrix._mapper.palette)

    view.update_matrix(make_matrix("mean", layers(3, 100)))

    assert matrix.plot.title.text == "Layers: mean activation"
    assert list(matrix._mapper.palette) != shares
    assert set(matrix._bar.major_label_overrides.values()) == {"-1", "-0.5", "0", "+0.5", "+1"}
    assert matrix._hover.tooltips[-1] == ("mean activation", "@value{%.3g}")
    assert matrix._hover.formatters == {"@value": "printf"}


def test_what_was_not_recorded_is_said_in_the_matrix():
    view = shown()

    view.update_matrix(make_matrix("gradient", layers(3, 100)))

    assert view.matrix_figure.message.text == "Gradients were not recorded."
    assert (np.concatenate(view.matrix_figure.source.data["image"]) == NONE).all()


def test_layers_with_nan_are_marked():
    of = layers(2, 10)
    of.values["nonfinite"][1, 4:6] = 0.01
    view = RunView()
    view.update(curves(10), [], make_matrix("std", of))

    image = np.concatenate(view.matrix_figure.source.data["image"])
    assert np.argwhere(image == BAD).tolist() == [[1, 4], [1, 5]]


def test_losses_that_are_not_finite_are_marked():
    loss = healthy_loss(100)
    loss[[10, 11, 50]] = np.nan
    view = RunView()
    view.update(curves(100, loss=loss), [], make_matrix("near_zero", layers(1, 1)))

    strips = view.loss._strips.drawn.data
    np.testing.assert_array_equal(strips["left"], [9.5, 49.5])
    np.testing.assert_array_equal(strips["right"], [11.5, 50.5])
    view.update(curves(5, loss=np.full(5, np.nan)), [], make_matrix("near_zero", layers(1, 1)))
    assert messages(view)[0] == "Every loss was NaN or infinite."


def test_a_click_on_a_row_chooses_it():
    view = shown(n_layers=5)
    chosen: list[int] = []
    view.on_select(chosen.append)

    for y in (0.4, 3.6, 5.2, -0.7, None):
        view.matrix_figure.plot._trigger_event(Tap(view.matrix_figure.plot, y=y))

    assert chosen == [0, 4]
    outlines = [m for m in view.matrix_figure.plot.center if isinstance(m, BoxAnnotation)]
    assert {(box.top, box.bottom, box.visible) for box in outlines} == {(3.5, 4.5, True)}
    view.select(None)
    assert not any(box.visible for box in outlines)
    view.select(7)  # of another run: no such row
    assert not any(box.visible for box in outlines)


def test_a_chosen_row_is_outlined_once_it_is_there():
    view = RunView()
    view.select(2)
    view.update(curves(5), [], make_matrix("near_zero", layers(3, 5)))

    boxes = [m for m in view.matrix_figure.plot.center if isinstance(m, BoxAnnotation)]
    assert all(box.visible and box.bottom == 2.5 for box in boxes)


@pytest.mark.parametrize("n_layers", [0, 1, 200])
def test_any_number_of_layers(n_layers):
    view = RunView()
    view.update(curves(3), [], make_matrix("std", layers(n_layers, 3, "x" * 77 + "{:03}")))

    matrix = view.matrix_figure
    assert len(matrix.source.data["image"]) == n_layers
    assert (matrix._rows.start, matrix._rows.end) == (max(n_layers, 1) - 0.5, -0.5)
    names = list(matrix.plot.yaxis[0].major_label_overrides.values())
    assert len(names) == n_layers
    assert all(len(name) <= 14 for name in names)
    if n_layers:
        assert matrix.source.data["name"][0] == "x" * 77 + "000 (Conv2d)"


def test_names_that_do_not_fit_lose_what_all_of_them_share():
    long = [f"backbone.stage{i}.a_very_long_name.conv" for i in range(3)]

    assert short_names(long, 14) == ["stage0…e.conv", "stage1…e.conv", "stage2…e.conv"]
    assert short_names(["a.b.c", "a.b.d"], 14) == ["a.b.c", "a.b.d"]
    assert short_names(["x" * 80], 11) == ["xxxxx…xxxxx"]
    assert short_names(["a." + "b" * 20, "a." + "b" * 20 + ".c"], 11) == [
        "bbbbb…bbbbb",
        "bbbbb…bbb.c",
    ]
    assert short_names([], 14) == []


def test_the_axis_follows_unless_one_has_zoomed():
    view = shown(n_steps=100)
    steps = view.axis.range

    view.update(curves(200), [], make_matrix("near_zero", layers(3, 200)))
    assert (steps.start, steps.end) == (-0.5, 199.5)
    steps.update(start=20, end=40)
    view.update(curves(250), [], make_matrix("near_zero", layers(3, 250)))
    assert (steps.start, steps.end) == (20, 40)
    assert steps.bounds == (-0.5, 249.5)
    view.follow(True)
    assert (steps.start, steps.end) == (-0.5, 249.5)
    view.follow(False)
    view.update(curves(300), [], make_matrix("near_zero", layers(3, 300)))
    assert (steps.start, steps.end) == (-0.5, 249.5)


def test_a_double_click_shows_all_steps():
    view = shown(n_steps=100)
    view.axis.range.update(start=20, end=40)

    linear(view)._trigger_event(DoubleTap(linear(view)))

    assert (view.axis.range.start, view.axis.range.end) == (-0.5, 99.5)


def test_epochs_are_marked_as_they_end():
    view = shown(n_steps=PER_EPOCH)
    (marks,) = linear(view).xgrid
    assert marks.ticker.ticks == [PER_EPOCH - 0.5]

    epochs = epochs_of(step_series(healthy_loss(2 * PER_EPOCH)), (0.9, 0.95))
    view.update(curves(2 * PER_EPOCH), epochs, make_matrix("near_zero", layers(3, 3)))

    assert marks.ticker.ticks == [PER_EPOCH - 0.5, 2 * PER_EPOCH - 0.5]
    axes = [a for a in linear(view).above if hasattr(a, "major_label_overrides")]
    assert list(axes[0].major_label_overrides.values()) == ["epoch 1", "epoch 2"]


def test_the_marks_of_epochs_stay_inside_their_frame():
    view = shown()

    # Bokeh clips what it draws up to the level of glyphs, and the image has to lie below the marks.
    heat = LayerView(view.axis).heat.plot
    for plot in (view.matrix_figure.plot, heat):
        assert plot.xgrid[0].level == "underlay"
        assert drawn(plot, Image)[0].level == "image"
    assert {linear(view).xgrid[0].level, view.metric.plot.xgrid[0].level} == {"underlay"}


def test_a_step_is_marked_in_all_figures():
    view = shown()

    view.set_step(40)

    plots = [
        *(view.loss.scales.plot(log) for log in (False, True)),
        view.metric.plot,
        view.schedule.plot,
        view.matrix_figure.plot,
    ]
    for plot in plots:
        (mark,) = [m for m in plot.center if isinstance(m, Span)]
        assert (mark.location, mark.visible) == (40, True)
    view.set_step(None)
    assert not view.axis.marked.visible


def test_log_scale_is_chosen_by_the_loss_or_by_hand():
    view = shown()
    assert seen(view) == (True, False)
    view.set_log(True)
    assert seen(view) == (False, True)
    view.set_log(None)
    assert seen(view)[0]
    loss = healthy_loss(100)
    loss[30] = 1e9
    view.update(curves(100, loss=loss), [], make_matrix("near_zero", layers(3, 100)))
    assert seen(view)[1]
    reach = log(view).y_range
    assert 0 < reach.start < loss.min()
    assert reach.end > 1e9


def test_losses_below_zero_do_not_stop_a_log_scale():
    view = RunView()
    view.set_log(True)
    view.update(curves(50, loss=-healthy_loss(50)), [], make_matrix("near_zero", layers(1, 1)))

    (smooth,) = drawn(log(view), MultiLine)[1].data_source.data["ys"]
    assert (smooth < 0).all()


def test_smoothing_is_chosen():
    view = shown()
    smooth = drawn(linear(view), MultiLine)[1].data_source
    calm = smooth.data["ys"][0]

    view.set_smooth(0.0)

    np.testing.assert_array_equal(smooth.data["ys"][0], healthy_loss(100).astype(np.float32))
    assert np.abs(np.diff(calm)).max() < np.abs(np.diff(healthy_loss(100))).max() / 3


def test_a_metric_is_chosen_and_missing_values_are_said():
    view = RunView()
    epochs = [Epoch(0, 0, 9, 1.0, None, {"a" * 80: 0.5, "b": np.nan}, 1.0)]
    view.update(curves(10), epochs, make_matrix("near_zero", layers(1, 1)))
    assert len(view.metric.plot.title.text) < 30

    view.set_metric("b")

    assert view.metric.plot.title.text == "B"
    assert view.metric._message.text == "Every value was NaN or infinite."
    view.set_metric("gone")
    assert view.metric.plot.title.text.startswith("Aaaa")
    view.update(curves(10), [Epoch(0, 0, 9, 1.0, None, {}, 1.0)], make_matrix("std", layers(1, 1)))
    assert view.metric._message.text == "No metric was recorded."


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ((0.9, 1.0), (0.894, 1.0)),
        ((1.0, 1.0), (0.944, 1.0)),
        ((0.0, 0.0), (0.0, 0.56)),
        ((0.5, 0.7), (0.488, 0.712)),
        ((90.0, 100.0), (89.4, 100.6)),
        ((-0.5, 0.5), (-0.56, 0.56)),
    ],
)
def test_the_axis_of_a_share_ends_where_shares_do(values, ends):
    view = RunView()
    epochs = epochs_of(step_series(healthy_loss(2 * PER_EPOCH)), values)
    view.update(curves(2 * PER_EPOCH), epochs, make_matrix("near_zero", layers(1, 4)))

    reach = view.metric.plot.y_range
    assert (reach.start, reach.end) == pytest.approx(ends)


def test_values_pointed_at_do_not_lie_on_each_other():
    view = shown()

    for plot in (linear(view), log(view), view.schedule.plot):
        tips = [tool.attachment for tool in plot.tools if getattr(tool, "mode", "") == "vline"]
        assert tips == ["above", "below"]


def test_parameter_groups_that_differ_have_a_line_each():
    steps = step_series(healthy_loss(50))
    rate = steps.hypers["lr"] * np.array([[1.0, 1.0, 0.1]])
    steps = type(steps)(steps.step, steps.epoch, steps.loss, steps.wall_s, {"lr": rate})
    view = RunView()

    view.update(sum_up(steps, 100), [], make_matrix("near_zero", layers(1, 1)))

    names = [name for name, _ in lines_of(view.schedule.plot)]
    assert names == ["learning rate, parameter group 0", "learning rate, parameter group 2"]
    assert view.schedule._message.text == "No momentum was recorded."


def test_a_reports_matrix_has_no_room_and_leads_to_layers():
    matrix = MatrixFigure(StepAxis((0, 9)), 200, links=True, grows=False)
    matrix.update(make_matrix("near_zero", layers(2, 10)))

    assert matrix.source.data["image"][0].shape == (1, 10)
    assert matrix.source.data["right"].tolist() == [9.5, 9.5]
    assert not matrix.plot.subscribed_events


def test_dark_is_the_same_in_other_colours():
    view = shown()
    light = {color_of(renderer.glyph) for renderer in drawn(linear(view), MultiLine)}
    palette = list(view.matrix_figure._mapper.palette)
    assert len(view.curves.children[0].children) == 1

    darken(view.curves)
    darken(view.matrix)

    assert light == {BLUE, ORANGE}
    dark = {color_of(renderer.glyph) for renderer in drawn(linear(view), MultiLine)}
    assert dark == {DARK[BLUE], DARK[ORANGE]}
    later = {color_of(renderer.glyph) for renderer in drawn(log(view), MultiLine)}
    assert later == dark  # made only now
    spans = (view.axis.cursor, view.axis.marked)
    assert [color_of(span) for span in spans] == [DARK[canvas.SOFT], DARK[canvas.INK]]
    assert list(view.matrix_figure._mapper.palette) == palette


def test_the_dark_theme_has_no_light_colour_left():
    attrs = dark_theme()._json["attrs"]
    light = {value for look in canvas.THEME._json["attrs"].values() for value in look.values()}

    values = {value for look in attrs.values() for value in look.values()}
    assert not values & set(DARK)
    assert {DARK[value] for value in light if value in DARK} <= values


def test_a_reports_loss_is_darkened_too():
    plot = loss_figure(StepAxis((0, 99)), curves(100), [])

    darken(plot)

    assert {color_of(renderer.glyph) for renderer in drawn(plot, Line)} == {DARK[BLUE]}


def test_the_axis_of_a_growing_run_has_room_and_moves_seldom():
    for last in (0, 1, 30, 63, 64, 999, 100_000):
        first, end = with_room((0, last))
        assert first == 0
        assert last <= end <= last + (last + 1) / 8
    assert len({with_room((7, last)) for last in range(100_000, 108_000)}) <= 5


def extended(view: RunView, first: int, loss: np.ndarray, epochs: Sequence[Epoch]) -> None:
    step = np.arange(first, first + len(loss))
    zeros = np.zeros(len(loss))
    view.extend(StepSeries(step, step, loss, zeros, {}), epochs, growing=True)


def raw_of(view: RunView) -> tuple[np.ndarray, np.ndarray]:
    data = view.loss._raw.lines
    return np.concatenate([*data["xs"], []]), np.concatenate([*data["ys"], []])


def test_the_newest_losses_go_on_from_where_the_curves_end():
    view = shown(n_steps=300)
    epochs = view.axis.epochs
    extended(view, 300, np.full(20, 0.5), epochs)
    x, y = raw_of(view)
    assert x.tolist() == list(range(320))
    np.testing.assert_array_equal(y[:300], healthy_loss(300).astype(np.float32))
    assert (y[300:] == 0.5).all()
    extended(view, 300, np.full(40, 0.25), epochs)  # all since the curves, not since the last time
    x, y = raw_of(view)
    assert len(x) == 340
    assert (y[300:] == 0.25).all()
    assert view.axis.range.end >= 339.5
    view.update(curves(350), epochs, make_matrix("near_zero", layers(3, 350)))
    assert len(raw_of(view)[0]) == 350


def test_beside_a_band_the_newest_losses_are_a_line_that_the_legend_explains():
    view = RunView()
    view.update(curves(10_000, 1000), [], make_matrix("near_zero", layers(1, 4)))
    entries = {item.name: item for item in view.loss._entries}
    assert len(raw_of(view)[0]) == 0
    assert not entries["each batch"].visible
    extended(view, 10_000, np.full(30, 0.5), ())
    assert raw_of(view)[0].tolist() == list(range(9_999, 10_030)), "from its end on"
    assert entries["each batch"].visible
    assert entries["low to high"].visible


def test_the_axis_reaches_a_newest_loss_that_lies_outside():
    view = shown(n_steps=300)
    plot = linear(view)
    before = plot.y_range.start, plot.y_range.end
    extended(view, 300, np.array([1.0, np.nan, np.inf]), view.axis.epochs)
    assert (plot.y_range.start, plot.y_range.end) == before
    extended(view, 300, np.array([1.0, 40.0]), view.axis.epochs)
    assert plot.y_range.end > 40.0
    assert np.isnan(raw_of(view)[1]).sum() == 0


def test_an_epoch_that_ends_between_two_updates_is_drawn():
    view = shown(n_steps=300)
    more = [*view.axis.epochs, Epoch(2, 200, 309, 0.5, 0.125, {"accuracy": 0.75}, 1.0)]
    extended(view, 300, np.full(20, 0.5), more)
    assert ("validation loss", 3) in lines_of(linear(view))
    assert lines_of(view.metric.plot) == [("accuracy", 3)]
    assert list(view.axis.epochs) == more


def test_what_is_shown_already_is_not_sent_again():
    view = shown(n_steps=300)
    epochs = view.axis.epochs
    extended(view, 300, np.full(22, 0.5), epochs)
    changes = in_document(view)
    extended(view, 300, np.full(22, 0.5), epochs)
    assert changes == []
    extended(view, 300, np.full(23, 0.5), epochs)
    assert len(changes) == 1, "the line alone"


def fits(view: RunView, first: int, loss: list[float]) -> bool:
    step = np.arange(first, first + len(loss))
    zeros = np.zeros(len(loss))
    return view.fits(StepSeries(step, step, np.array(loss), zeros, {}), view.axis.epochs)


def test_losses_that_would_only_make_the_line_longer_fit():
    view = shown(n_steps=300)
    assert not fits(view, 300, [0.5]), "no line has been begun that could be made longer"
    extended(view, 300, np.array([0.5]), view.axis.epochs)
    assert fits(view, 301, [0.5, 0.25])
    assert fits(view, 301, [])
    assert not fits(view, 301, [np.nan])
    assert not fits(view, 301, [1e3]), "the axis does not reach so far"
    assert not fits(view, 301, [0.5] * 100), "nor so far to the right"
    more = [*view.axis.epochs, Epoch(2, 200, 309, 0.5, 0.125, {}, 1.0)]
    assert not view.fits(StepSeries(*[np.zeros(0)] * 4, {}), more), "an epoch"
    view.set_log(True)
    assert fits(view, 301, [0.5])
    assert not fits(view, 301, [1e-9]), "the other axis counts where it is there"


@pytest.mark.parametrize(("known", "points"), [(1, 1500), (2, 1500), (10_000, 1000)])
def test_one_new_loss_is_a_line_from_where_the_curves_end(known: int, points: int):
    view = RunView()
    view.update(curves(known, points), [], make_matrix("near_zero", layers(1, 4)))
    extended(view, known, np.array([0.5]), ())
    x, y = raw_of(view)
    assert x[-2:].tolist() == [known - 1, known]
    assert np.isfinite(y[-2:]).all()


def test_new_losses_that_are_not_finite_are_marked_at_once():
    view = shown(n_steps=300)
    extended(view, 300, np.array([1.0, np.nan, np.inf, 1.0]), view.axis.epochs)
    strips = view.loss._strips.drawn.data
    assert (strips["left"].tolist(), strips["right"].tolist()) == ([300.5], [302.5])


def test_what_was_said_of_bad_losses_goes_with_the_first_good_one():
    view = RunView()
    bad = curves(10, loss=np.full(10, np.nan))
    view.update(bad, [], make_matrix("near_zero", layers(1, 4)))
    assert view.loss.scales.text == "Every loss was NaN or infinite."
    extended(view, 10, np.array([0.5]), ())
    assert view.loss.scales.text == ""


def test_a_logarithmic_axis_reaches_a_new_lowest_loss_though_some_were_not_positive():
    view = RunView()
    loss = healthy_loss(300)
    loss[10] = -1.0
    view.update(curves(300, loss=loss), [], make_matrix("near_zero", layers(1, 4)))
    view.set_log(True)
    extended(view, 300, np.array([1e-6]), ())
    assert log(view).y_range.start < 1e-6
