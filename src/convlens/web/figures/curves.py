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
    seen = np.isfinite(mean).any() or np.isfinite(y).any()
    _fit(plot, [band, raw, smooth, valid], known=bool(seen))
    say(plot, "" if seen else "Every loss was NaN or infinite.")
    return plot


def metric(page: Page, axis: StepAxis) -> figure:
    """One metric of the validation, at the end of each epoch."""
    name = _chosen(page.view.metric, metric_names(page.run.epochs))
    plot = axis.figure(formatting.short(name, 60), "", SMALL, say_steps=False)
    axis.mark_epochs(plot)
    x, y = _metric(page.run.epochs, name)
    drawn = line(plot, x, y, ORANGE, points=True)
    add_tips(plot, drawn, {"value": y})
    _fit(plot, [drawn], y)
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
    _fit(plot, [drawn], y)
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
                 dashed=name == "momentum", y_range_name=range_name)
            for group in groups
        ]  # fmt: skip
        of = "" if len(groups) == 1 else ", group {}"
        tips |= {_WORDS[name] + of.format(group): band.mean[:, group] for group in groups}
        _fit(plot, drawn, band.mean[:, groups], range_name)
        lines += drawn
    add_tips(plot, lines[0], tips)
    return plot


_FIGURES = {"loss": loss, "metric": metric, "logged": logged, "schedule": schedule}
_WORDS = {"lr": "learning rate", "momentum": "momentum"}


def overlaid(pages: Sequence[Page], names: Sequence[str]) -> UIElement:
    """Losses and a metric of up to eight runs over one time axis, a colour for each run.

    The page has the legend: it holds names of any length.

    Args:
        pages: one for each run; what the first one's view says of logarithmic axes, smoothing and
            metric holds for all.
        names: what each run is called.
    """
    spans = [page.run.span for page in pages]
    axis = StepAxis((min(low for low, _ in spans), max(high for _, high in spans)))
    first, log = pages[0], is_log(pages)
    name = _chosen(first.view.metric, metric_names([e for page in pages for e in page.run.epochs]))
    words = ("training loss, smoothed", "validation loss", formatting.short(name, 40))
    training = _loss_figure(axis, words[0], log)
    others = [
        axis.figure("", words[1], 180, log=log, say_steps=False),
        *([axis.figure("", words[2], 140, say_steps=False)] if name else []),
    ]
    drawn: list[list[Any]] = [[], [], []]
    values: list[list[Floats]] = [[], [], []]
    for page, color in zip(pages, RUNS, strict=False):
        shown = _smoothed(page.at(smooth=first.view.smooth), log)
        drawn[0].append(_training(training, page, color, shown, log=log, bands=len(pages) == 2))
        values[0].append(shown)
        for i, (x, y) in enumerate([_validation(page.run.epochs), _metric(page.run.epochs, name)]):
            if i < len(others):
                values[i + 1].append(_positive(y, log and i == 0))
                drawn[i + 1].append(line(others[i], x, values[i + 1][-1], color, points=True))
    plots = [training, *others]
    for plot, lines, seen, word in zip(plots, drawn, values, words, strict=False):
        for one, run in zip(lines, names, strict=False):
            one.name = formatting.harmless(formatting.short(run, 40))
        tips = [("run", "$name"), ("batch", "@x{0,0}"), (formatting.harmless(word), "@y{0.0000}")]
        plot.add_tools(HoverTool(renderers=lines, tooltips=tips, mode="mouse", line_policy="next"))
        known = np.concatenate(seen)
        _fit(plot, lines, None if log and plot is not plots[-1] else known,
             known=bool(np.isfinite(known).any()))  # fmt: skip
        say(plot, "" if np.isfinite(known).any() else "Not recorded.")
    return _above_one_another(plots)


def _training(plot: figure, page: Page, color: str, mean: Floats, *, log: bool, bands: bool) -> Any:  # noqa: ANN401 — a renderer
    """A run's smoothed loss, with a dot where each of its epochs ends."""
    curves, loss = page.run.curves, page.run.curves.loss
    if bands:
        outline = band_outline(curves, _positive(loss.low, log), _positive(loss.high, log))
        plot.patch("x", "y", source=ColumnDataSource(outline), color=color, alpha=0.18)
    drawn = line(plot, curves.middle_step, mean, color, 2.2)
    known = np.isfinite(mean)
    ends = np.array([epoch.last_step for epoch in page.run.epochs[:EPOCH_MARKS]], np.float64)
    if known.any():
        height = np.interp(ends, curves.middle_step[known], mean[known])
        plot.scatter(ends, height, size=8, fill_color=color, line_color=color)
    return drawn


def _above_one_another(plots: Sequence[figure]) -> UIElement:
    """Figures with one time axis, whose labels stand under the lowest."""
    for plot in plots[:-1]:
        plot.below[0].update(visible=False)
    last = plots[-1]
    last.below[0].axis_label = STEP_LABEL  # pyright: ignore[reportAttributeAccessIssue]
    if last.height is not None:
        last.height += STEPS
    return column(*map(stacked, plots), sizing_mode="stretch_both")


def _loss_figure(axis: StepAxis, label: str, log: bool) -> figure:
    label += " (log scale)" if log else ""
    plot = axis.figure("", label, LOSS, log=log, epoch_names=bool(axis.epochs), say_steps=False)
    plot.sizing_mode = "stretch_both"
    return plot


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
    legend.update(margin=0, padding=2, glyph_width=16, label_standoff=4)
    if columns:
        legend.update(ncols=columns)
    plot.add_layout(legend, "above")


def _fit(
    plot: figure,
    lines: Sequence[Any],
    values: Floats | None = None,
    name: str = "default",
    *,
    known: bool = True,
) -> None:
    """Fit a y range to these lines: around a constant, such as a rate of 0.06, not by ±1."""
    if not known or (values is not None and not np.isfinite(values).any()):
        if name == "default":  # Bokeh complains of a range without data
            plot.y_range = Range1d(start=0.1, end=1.0)
        return
    span = plot.y_range if name == "default" else plot.extra_y_ranges[name]
    span.update(renderers=list(lines))
    size = (
        0.0
        if values is None
        else float(np.nanmax(np.abs(values), where=np.isfinite(values), initial=0.0))
    )
    if 0 < size < 1e30:
        span.update(default_span=0.4 * size)


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
