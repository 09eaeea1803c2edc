"""Losses, a metric, learning rate and momentum over the steps, above one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, DataRange1d, LinearAxis, UIElement
from bokeh.plotting import figure
from numpy.typing import NDArray

from convlens.core.buckets import Floats
from convlens.core.steps import StepCurves
from convlens.plots.canvas import BLUE, GREEN, ORANGE
from convlens.plots.curves import SMOOTH, distinct_groups, smoothed_loss
from convlens.web.figures.style import StepAxis, line, say, spreads, stacked
from convlens.web.formatting import short

if TYPE_CHECKING:
    from convlens.web.pages import Page

LOSS, METRIC, SCHEDULE = 230, 95, 110
"""Heights in pixels."""


def curves(page: Page) -> UIElement:
    """Loss, the chosen metric and the schedule over one time axis."""
    run = page.run
    axis = StepAxis(run.span, run.epochs)
    plots = [loss(page, axis), schedule(page, axis)]
    names = metric_names(page)
    if names:
        plots.insert(1, metric(page, axis, page.view.metric or names[0]))
    return column(*map(stacked, plots), sizing_mode="stretch_width")


def metric_names(page: Page) -> list[str]:
    """The metrics of any epoch, in the order in which they came."""
    return list(dict.fromkeys(name for epoch in page.run.epochs for name in epoch.metrics))


def is_log(page: Page) -> bool:
    """Whether the loss has a logarithmic axis: as asked, else as its values need."""
    band = page.run.curves.loss
    if page.view.log:
        return page.view.log == "on"
    return spreads(band.low, band.high, band.finite)


def loss(page: Page, axis: StepAxis) -> figure:
    """Training loss by step, raw and smoothed, and validation loss by epoch."""
    curves, log = page.run.curves, is_log(page)
    plot = axis.figure(
        "Loss", "loss (log scale)" if log else "loss", LOSS, log=log, epoch_names=True,
        say_steps=False,
    )  # fmt: skip
    axis.mark_epochs(plot)
    if curves.width > 1:
        source = ColumnDataSource(band_outline(curves, curves.loss.low, curves.loss.high))
        plot.patch("x", "y", source=source, color=BLUE, alpha=0.3, legend_label="low to high")
    else:
        line(plot, curves.first_step, curves.loss.mean, width=0.8, alpha=0.5, legend="each batch")
    smooth = SMOOTH if page.view.smooth is None else page.view.smooth
    mean = smoothed_loss(curves, smooth, log=log) if len(curves) > 2 else curves.loss.mean
    line(plot, curves.middle_step, mean, width=2.5, word="loss", number="0.0000", legend="smoothed")
    measured = [(e.last_step, e.valid_loss) for e in page.run.epochs if e.valid_loss is not None]
    x, y = np.array(measured, np.float64).reshape(-1, 2).T
    if measured:
        line(plot, x, y, ORANGE, word="validation", number="0.0000", points=True,
             legend="validation")  # fmt: skip
    if plot.legend:
        plot.add_layout(plot.legend[0], "right")
    return plot


def metric(page: Page, axis: StepAxis, name: str) -> figure:
    """One metric of the validation, at the end of each epoch."""
    plot = axis.figure(short(name).capitalize(), "", METRIC, say_steps=False)
    axis.mark_epochs(plot)
    epochs = page.run.epochs
    x = np.array([epoch.last_step for epoch in epochs], np.int64)
    y = np.array([epoch.metrics.get(name, np.nan) for epoch in epochs], np.float64)
    line(plot, x, y, ORANGE, word="value", number="0.0000", points=True)
    return plot


def schedule(page: Page, axis: StepAxis) -> figure:
    """Learning rate, and momentum on an axis of its own; a line for each parameter group."""
    hypers = page.run.hypers
    plot = axis.figure("Learning rate and momentum", "rate", SCHEDULE)
    axis.mark_epochs(plot)
    rate, momentum = hypers.hypers.get("lr"), hypers.hypers.get("momentum")
    plot.extra_y_ranges = {"momentum": DataRange1d()}
    if rate is not None:
        for group in distinct_groups(rate):
            line(plot, hypers.middle_step, rate.mean[:, group], BLUE, 2.0, word="learning rate")
    if momentum is not None:
        for group in distinct_groups(momentum):
            line(plot, hypers.middle_step, momentum.mean[:, group], GREEN, 2.0, dashed=True,
                 y_range_name="momentum", word="momentum")  # fmt: skip
        plot.add_layout(LinearAxis(y_range_name="momentum", axis_label="mom."), "right")
    if rate is None and momentum is None:
        say(plot, "No learning rate was recorded.")
    return plot


def band_outline(steps: StepCurves, low: Floats, high: Floats) -> dict[str, NDArray[np.float32]]:
    """The corners of the areas between lowest and highest, parted by NaN."""
    known = np.isfinite(low)
    begins = np.flatnonzero(known & ~np.append(False, known[:-1]))
    ends = np.flatnonzero(known & ~np.append(known[1:], False)) + 1
    edges = np.stack([steps.first_step - 0.5, steps.last_step + 0.5], axis=1)
    gap = np.array([np.nan])
    x, y = [gap], [gap]
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        there = edges[begin:end].ravel()
        x += [there, there[::-1], gap]
        y += [np.repeat(low[begin:end], 2), np.repeat(high[begin:end], 2)[::-1], gap]
    with np.errstate(over="ignore"):  # what float32 cannot hold is drawn as a gap
        return {
            "x": np.concatenate(x).astype(np.float32),
            "y": np.concatenate(y).astype(np.float32),
        }
