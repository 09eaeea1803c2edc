"""Losses, a metric, what else was logged, and the schedule over the steps, above one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.core.properties import value
from bokeh.layouts import column
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    DataRange1d,
    DataRenderer,
    HoverTool,
    Legend,
    LegendItem,
    LinearAxis,
    NoOverlap,
    Range1d,
    UIElement,
)
from bokeh.plotting import figure
from numpy.typing import NDArray

from convlens.core.buckets import Flags, Floats
from convlens.core.records import Epoch
from convlens.core.steps import StepCurves
from convlens.plots.canvas import BLUE, GREEN, ORANGE, STEP_LABEL
from convlens.plots.curves import SMOOTH, distinct_groups, smoothed_loss
from convlens.web import formatting
from convlens.web.figures.style import (
    CARD,
    RUNS,
    StepAxis,
    add_tips,
    float32,
    line,
    say,
    spreads,
    stacked,
)

if TYPE_CHECKING:
    from convlens.web.pages import Page
    from convlens.web.run_data import RunData

LOSS, SMALL, STEPS = 250, 105, 45
"""Heights in pixels: of the loss, which grows with the window (``curves.css``), of another figure,
and of what stands below the lowest: the time axis's labels."""

HYPERS = frozenset(
    ("lr", "momentum", "beta2", "eps", "weight_decay", "dampening", "alpha", "rho", "lambd",
     "lr_decay", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum",
     "initial_accumulator_value", "momentum_decay")
)  # fmt: skip
"""What optimizers call their numbers; of other names are those that a loop logged itself."""

LOG = 30.0
"""The axis is logarithmic where the highest loss is so many times the median: what is linear would
show little but the first steps."""

ROOM = 0.06
"""Share of the height that the axis of losses reaches beyond them, above and below."""

LEGEND_ROW, METRIC = 26, 150
"""Pixels of two runs in a legend, and of a metric of several runs."""

NAME = 20
"""Characters of a run's name in a legend."""

EPOCH_MARKS = 60
"""More epochs are not marked on the lines of several runs."""


def curves(page: Page) -> UIElement:
    """Loss, the chosen metric, the chosen other number and the schedule, over one time axis."""
    axis = StepAxis(page.run.span, page.run.epochs)
    plots = [_FIGURES[name](page, axis) for name in parts(page)] or [axis.figure("", "", SMALL)]
    return _above_one_another(plots)


def parts(page: Page) -> list[str]:
    """Which of the figures have something to show."""
    run = page.run
    losses = len(run.curves) or any(epoch.valid_loss is not None for epoch in run.epochs)
    shown = {
        "loss": bool(losses),
        "metric": bool(metric_names(run.epochs)),
        "logged": bool(logged_names(page)),
        "schedule": _is_known(run.hypers, "lr") or _is_known(run.hypers, "momentum"),
    }
    return [name for name, there in shown.items() if there]


def metric_names(epochs: Sequence[Epoch]) -> list[str]:
    """The metrics of any epoch, in the order in which they came."""
    return list(dict.fromkeys(name for epoch in epochs for name in epoch.metrics))


def logged_names(page: Page) -> list[str]:
    """The numbers that a loop of one's own logged besides its loss."""
    return [name for name in page.run.hypers.hypers if name not in HYPERS]


def is_log(pages: Sequence[Page]) -> bool:
    """Whether the loss has a logarithmic axis: as asked, else as the values of any run need."""
    if pages[0].view.log:
        return pages[0].view.log == "on"
    bands = [page.run.curves.loss for page in pages]
    return any(spreads(band.low, band.high, band.finite, LOG) for band in bands)


def loss(page: Page, axis: StepAxis) -> figure:
    """Training loss by step, raw and smoothed, and validation loss by epoch."""
    curves, log = page.run.curves, is_log([page])
    plot = _loss_figure(axis, "loss", log)
    plot.sizing_mode = "stretch_both"
    axis.mark_epochs(plot)
    low, high = _positive(curves.loss.low, log), _positive(curves.loss.high, log)
    wide, few = curves.width > 1, len(curves) <= 2 and curves.width == 1
    outline = band_outline(curves, low, high) if wide else {"x": [], "y": []}
    band = plot.patch("x", "y", source=ColumnDataSource(outline), color=BLUE, alpha=0.3)
    x, y = (curves.first_step, high) if not wide else (curves.first_step[:0], high[:0])
    raw = line(plot, x, y, width=0.8, alpha=0.5, points=few)
    mean = _smoothed(page, log)
    smooth = line(plot, curves.middle_step, mean, width=2.5, points=few)
    x, y = _validation(page.run.epochs)
    valid = line(plot, x, _positive(y, log), ORANGE, points=True)
    bad = curves.loss.finite < curves.n
    strips = _strips(plot, curves, bad)
    if len(curves):
        tips = {"smoothed": mean} if not few else {}
        add_tips(plot, smooth, {"loss": curves.loss.mean, **tips, **_last_validation(page)})
    else:
        add_tips(plot, valid, {"validation loss": y})
    shown = {
        "each batch": (raw, not wide), "low to high": (band, wide),
        "smoothed": (smooth, not few), "validation": (valid, bool(len(x))),
        "NaN or ∞": (strips, bool(bad.any())),
    }  # fmt: skip
    _explain(plot, [(word, drawn) for word, (drawn, there) in shown.items() if there])
    known = _fit(plot, np.concatenate([curves.loss.low, curves.loss.high, y]), log=log)
    say(plot, "" if known else "Every loss was NaN or infinite.")
    return plot


def metric(page: Page, axis: StepAxis) -> figure:
    """One metric of the validation, at the end of each epoch."""
    name = _chosen(page.view.metric, metric_names(page.run.epochs))
    plot = axis.figure(formatting.short(name, 60), "", SMALL, say_steps=False)
    axis.mark_epochs(plot)
    x, y = _metric(page.run.epochs, name)
    drawn = line(plot, x, y, ORANGE, points=True)
    add_tips(plot, drawn, {"value": y})
    _fit(plot, y)
    return plot


def logged(page: Page, axis: StepAxis) -> figure:
    """One number that a loop logged besides its loss."""
    name = _chosen(page.view.logged, logged_names(page))
    plot = axis.figure(formatting.short(name, 60), "", SMALL, say_steps=False)
    axis.mark_epochs(plot)
    steps, y = page.run.hypers, page.run.hypers.hypers[name].mean[:, 0]
    known = np.isfinite(y)  # it may have been logged at some steps only
    drawn = line(plot, steps.middle_step[known], y[known])
    add_tips(plot, drawn, {"value": y[known]})
    _fit(plot, y)
    return plot


def schedule(page: Page, axis: StepAxis) -> figure:
    """Learning rate, and momentum on an axis of its own; a line for each parameter group."""
    hypers = page.run.hypers
    there = {name: hypers.hypers[name] for name in ("lr", "momentum") if _is_known(hypers, name)}
    title = " and ".join(_WORDS[name] for name in there)
    plot = axis.figure(title.capitalize(), "", SMALL, say_steps=False)
    axis.mark_epochs(plot)
    if "momentum" in there:
        right = LinearAxis(
            y_range_name="momentum", axis_label="mom.", axis_label_text_color=GREEN,
            major_label_policy=NoOverlap(),
        )  # fmt: skip
        right.ticker = BasicTicker(desired_num_ticks=3)  # pyright: ignore[reportAttributeAccessIssue]
        plot.extra_y_ranges = {"momentum": DataRange1d()}
        plot.add_layout(right, "right")
    plot.yaxis[0].update(axis_label="rate", axis_label_text_color=BLUE)
    lines: list[Any] = []
    tips: dict[str, Floats] = {}
    for name, band in there.items():
        groups = distinct_groups(band)[: len(RUNS)]
        color, range_name = (BLUE, "default") if name == "lr" else (GREEN, "momentum")
        drawn = [
            line(plot, hypers.middle_step, band.mean[:, group], color, 2.0,
                 points=len(hypers) <= 2, dashed=name == "momentum", y_range_name=range_name)
            for group in groups
        ]  # fmt: skip
        of = "" if len(groups) == 1 else ", group {}"
        tips |= {_WORDS[name] + of.format(group): band.mean[:, group] for group in groups}
        low, size = np.nanmin(band.low), float(np.nanmax(np.abs(band.high)))
        span = plot.y_range if name == "lr" else plot.extra_y_ranges[range_name]
        span.update(renderers=drawn, default_span=0.4 * size or 1.0)  # not ±1 around 0.06
        if name == "momentum" and low == np.nanmax(band.high):  # not on top of a constant rate
            plot.extra_y_ranges = {"momentum": Range1d(start=0, end=1.1 * size or 1.0)}
        lines += drawn
    add_tips(plot, lines[0], tips)
    return plot


_FIGURES = {"loss": loss, "metric": metric, "logged": logged, "schedule": schedule}
_WORDS = {"lr": "learning rate", "momentum": "momentum"}


def overlaid(pages: Sequence[Page], names: Sequence[str]) -> UIElement:
    """Losses and a metric of up to eight runs over one time axis, a colour for each run.

    The page has the legend: it holds names of any length.

    Args:
        pages: one for each run; what the first one's view says of the logarithmic axis, smoothing
            and metric holds for all.
        names: what each run is called.
    """
    runs, view, log = [page.run for page in pages], pages[0].view, is_log(pages)
    axis = StepAxis((min(run.span[0] for run in runs), max(run.span[1] for run in runs)))
    training, validation = (
        _loss_figure(axis, "training loss", log),
        _loss_figure(axis, "validation loss", log),
    )
    smooth = [_smoothed(page.at(smooth=view.smooth), log) for page in pages]
    for run, mean, color in zip(runs, smooth, RUNS, strict=False):
        _mark_ends(training, run, mean, color, log=log, band=len(runs) == 2)
    means = [(run.curves.middle_step, mean) for run, mean in zip(runs, smooth, strict=True)]
    _overlay(training, means, names, log=log)
    measured = [_validation(run.epochs) for run in runs]
    _overlay(validation, [(x, _positive(y, log)) for x, y in measured], names, log=log)
    plots = [training, validation]
    metrics = metric_names([epoch for run in runs for epoch in run.epochs])
    if metrics:
        name = _chosen(view.metric, metrics)
        plots.append(axis.figure("", formatting.short(name), METRIC, say_steps=False))
        _overlay(plots[-1], [_metric(run.epochs, name) for run in runs], names)
    return _above_one_another(plots, grows=False)


def overlaid_height(pages: Sequence[Page]) -> int:
    """Pixels of what `overlaid` draws."""
    metrics = any(epoch.metrics for page in pages for epoch in page.run.epochs)
    return 2 * LOSS + (METRIC if metrics else 0) + STEPS


def _mark_ends(
    plot: figure, run: RunData, mean: Floats, color: str, *, log: bool, band: bool
) -> None:
    """A dot on a run's loss where each of its epochs ends, and the band around it."""
    curves = run.curves
    low, high = _positive(curves.loss.low, log), _positive(curves.loss.high, log)
    if band and curves.width == 1:
        line(plot, curves.first_step, low, color, 0.8, alpha=0.4, points=False)
    elif band:
        outline = band_outline(curves, low, high)
        plot.patch("x", "y", source=ColumnDataSource(outline), color=color, alpha=0.18)
    known = np.isfinite(mean)
    ends = np.array([epoch.last_step for epoch in run.epochs[:EPOCH_MARKS]], np.float64)
    if known.any():
        height = np.interp(ends, curves.middle_step[known], mean[known])
        source = ColumnDataSource({"x": float32(ends), "y": float32(height)})
        plot.scatter(
            "x", "y", source=source, size=8, fill_color=CARD, line_color=color, line_width=2
        )


def _overlay(
    plot: figure,
    series: Sequence[tuple[Floats, Floats]],
    names: Sequence[str],
    *,
    log: bool = False,
) -> list[Any]:
    """A line for each run, and one tooltip for the line under the pointer."""
    drawn = [line(plot, x, y, color, 2.0) for (x, y), color in zip(series, RUNS, strict=False)]
    for one, name in zip(drawn, names, strict=False):
        one.name = formatting.harmless(name)
    tips = [("run", "$name"), ("batch", "@x{0,0}"), ("value", "@y{0.[000000]}")]
    plot.add_tools(
        HoverTool(renderers=list[DataRenderer](drawn), tooltips=tips, line_policy="nearest")
    )
    known = _fit(plot, np.concatenate([y for _, y in series]), log=log)
    say(plot, "" if known else "Not recorded.")
    return drawn


def _above_one_another(plots: Sequence[figure], *, grows: bool = True) -> UIElement:
    """Figures with one time axis, whose labels stand under the lowest."""
    for plot in plots[:-1]:
        plot.below[0].update(visible=False)
    last = plots[-1]
    last.below[0].axis_label = STEP_LABEL  # pyright: ignore[reportAttributeAccessIssue]
    last.height = (last.height or 0) + STEPS
    return column(*map(stacked, plots), sizing_mode="stretch_both" if grows else "stretch_width")


def _loss_figure(axis: StepAxis, label: str, log: bool) -> figure:
    label += " (log scale)" if log else ""
    return axis.figure("", label, LOSS, log=log, epoch_names=bool(axis.epochs), say_steps=False)


def _smoothed(page: Page, log: bool) -> Floats:
    curves = page.run.curves
    mean = _positive(curves.loss.mean, log)
    smooth = SMOOTH if page.view.smooth is None else page.view.smooth
    if len(curves) <= 2:
        return mean
    positive = not (curves.loss.mean <= 0).any()
    return _positive(smoothed_loss(curves, smooth, log=log and positive), log)


def _positive(values: Floats, log: bool) -> Floats:
    """The values that an axis can show: on a logarithmic one, NaN in place of the others."""
    return np.where(values > 0, values, np.nan) if log else values


def _validation(epochs: Sequence[Epoch]) -> tuple[Floats, Floats]:
    measured = [(e.last_step, e.valid_loss) for e in epochs if e.valid_loss is not None]
    x, y = np.array(measured, np.float64).reshape(-1, 2).T
    return x, y


def _last_validation(page: Page) -> dict[str, list[str]]:
    """What a tooltip says of the validation at each entry: that of the last finished epoch."""
    x, y = _validation(page.run.epochs)
    if not len(x):
        return {}
    place = np.searchsorted(x, page.run.curves.last_step, "right") - 1
    said = [formatting.loss(one) for one in y.tolist()]
    return {"last validation": [said[i] if i >= 0 else formatting.NONE for i in place.tolist()]}


def _metric(epochs: Sequence[Epoch], name: str) -> tuple[Floats, Floats]:
    x = np.array([epoch.last_step for epoch in epochs], np.float64)
    return x, np.array([epoch.metrics.get(name, np.nan) for epoch in epochs], np.float64)


def _chosen(wanted: str, names: Sequence[str]) -> str:
    return wanted if wanted in names else next(iter(names), "")


def _is_known(steps: StepCurves, name: str) -> bool:
    return name in steps.hypers and bool(steps.hypers[name].finite.any())


def _strips(plot: figure, curves: StepCurves, bad: Flags) -> Any:  # noqa: ANN401 — a renderer
    """Mark the entries with values that are not finite; neighbours become one strip."""
    begins = np.flatnonzero(bad & ~np.append(False, bad[:-1]))
    ends = np.flatnonzero(bad & ~np.append(bad[1:], False))
    x0, x1 = curves.first_step[begins] - 0.5, curves.last_step[ends] + 0.5
    source = ColumnDataSource({"x0": float32(x0), "x1": float32(x1)})
    return plot.vstrip("x0", "x1", source=source, fill_color=ORANGE, fill_alpha=0.35,
                       line_color=None)  # fmt: skip


def _explain(plot: figure, entries: Sequence[tuple[str, Any]], columns: int = 0) -> None:
    """A legend above the frame, where it covers nothing."""
    items = [LegendItem(label=value(word), renderers=[drawn]) for word, drawn in entries]
    legend = Legend(items=list(items), orientation="horizontal", location="top_left", spacing=10)
    legend.update(
        margin=0, padding=2, glyph_width=16, glyph_height=14, label_height=14, label_standoff=4
    )
    if columns:
        legend.update(ncols=columns)
    plot.add_layout(legend, "above")


def _fit(plot: figure, values: Floats, *, log: bool = False) -> bool:
    """Fit the y axis to values, and return whether there are any; ``site.js`` fits it to a zoom.

    Bokeh does not fit a logarithmic axis to what is zoomed, and complains of a range without data.
    """
    seen = values[np.isfinite(values) & ((values > 0) | (not log))].astype(np.float64)
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.1, 1.0)
    a, b = np.log10([low, high]) if log else (low, high)
    room = ROOM * (b - a) or (0.1 if log else 0.1 * abs(a)) or 1.0
    a, b = (10 ** (a - room), 10 ** (b + room)) if log else (a - room, b + room)
    plot.update(y_range=Range1d(start=float(a), end=float(b)), tags=["fit"])
    return bool(len(seen))


def band_outline(steps: StepCurves, low: Floats, high: Floats) -> Mapping[str, NDArray[np.float32]]:
    """The corners of the areas between lowest and highest, parted by NaN."""
    known = np.isfinite(low) & np.isfinite(high)
    begins = np.flatnonzero(known & ~np.append(False, known[:-1]))
    ends = np.flatnonzero(known & ~np.append(known[1:], False)) + 1
    edges = np.stack([steps.first_step - 0.5, steps.last_step + 0.5], axis=1)
    gap = np.array([np.nan])
    x, y = [gap], [gap]
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        there = edges[begin:end].ravel()
        x += [there, there[::-1], gap]
        y += [np.repeat(low[begin:end], 2), np.repeat(high[begin:end], 2)[::-1], gap]
    return {"x": float32(np.concatenate(x)), "y": float32(np.concatenate(y))}
