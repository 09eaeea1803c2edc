"""The figures over the whole training: losses, metrics, schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, DataRange1d, UIElement
from bokeh.plotting import figure
from numpy.typing import NDArray

from convlens.core.buckets import Floats
from convlens.core.records import Epoch
from convlens.core.steps import Band, StepCurves
from convlens.plots.canvas import BLUE, GREEN, ORANGE
from convlens.plots.curves import distinct_groups, smoothed_loss
from convlens.views.canvas import StepAxis, add_hover, draw_line, short, side_by_side

LOSS_HEIGHT, METRIC_HEIGHT, SCHEDULE_HEIGHT = 320, 210, 260


def curves(
    steps: StepCurves, epochs: Sequence[Epoch], names: Sequence[str], span: tuple[int, int]
) -> UIElement:
    """Loss, and below it each metric, over one time axis."""
    axis = StepAxis(span, epochs)
    plots = [loss_figure(axis, steps, epochs), *(metric_figure(axis, epochs, n) for n in names)]
    return column(*plots, sizing_mode="stretch_width")


def loss_figure(axis: StepAxis, steps: StepCurves, epochs: Sequence[Epoch]) -> figure:
    """Training loss by step, raw and smoothed, and validation loss by epoch."""
    log = spreads(steps.loss)
    plot = axis.figure("Loss", "loss (log scale)" if log else "loss", LOSS_HEIGHT, log=log)
    axis.mark_epochs(plot)
    if steps.loss.finite.any():
        _draw_training_loss(plot, steps, log=log)
    measured = [(e.last_step, e.valid_loss) for e in epochs if e.valid_loss is not None]
    if measured:
        x, y = np.array(measured, np.float64).T
        line = draw_line(plot, x, y, ORANGE, points=True, legend="validation, each epoch")
        add_hover(plot, line, "validation loss", "@y")
    return plot


def metric_figure(axis: StepAxis, epochs: Sequence[Epoch], name: str) -> figure:
    """One metric of the validation, at the end of each epoch."""
    plot = axis.figure(name.capitalize(), short(name), METRIC_HEIGHT)
    axis.mark_epochs(plot)
    x = np.array([epoch.last_step for epoch in epochs], np.int64)
    y = np.array([epoch.metrics.get(name, np.nan) for epoch in epochs], np.float64)
    add_hover(plot, draw_line(plot, x, y, ORANGE, points=True), "value", "@y{0.0000}")
    _calm(plot, y)
    return plot


def schedule(
    steps: StepCurves, epochs: Sequence[Epoch], names: Mapping[str, str], span: tuple[int, int]
) -> UIElement:
    """Hyperparameters by step, side by side: name in the record → label of the axis."""
    axis = StepAxis(span, epochs)
    plots = [_hyper_figure(axis, steps, name, label) for name, label in names.items()]
    return side_by_side(plots)


def _draw_training_loss(plot: figure, steps: StepCurves, *, log: bool) -> None:
    loss = steps.loss
    if steps.width > 1:
        label = f"training, lowest to highest of {steps.width:,} batches"
        _draw_band(plot, steps, loss.low, loss.high, BLUE, label)
    elif len(steps) > 2:
        label = "training, each batch"
        draw_line(plot, steps.first_step, loss.mean, width=0.8, alpha=0.55, legend=label)
    if steps.width > 1 or len(steps) > 2:
        # Over a twentieth of the steps to either side at most.
        mean, label = smoothed_loss(steps, log=log), "training, smoothed"
        line = draw_line(plot, steps.middle_step, mean, width=2.5, points=False, legend=label)
    else:
        line = draw_line(plot, steps.first_step, loss.mean, legend="training, each batch")
    add_hover(plot, line, "loss", "@y")


def _draw_band(
    plot: figure, steps: StepCurves, low: Floats, high: Floats, color: str, label: str | None = None
) -> None:
    """From lowest to highest, each entry as wide as its steps; gaps where nothing is finite."""
    style: dict[str, Any] = {} if label is None else {"legend_label": label}
    source = ColumnDataSource(band_outline(steps, low, high))
    plot.patch("x", "y", source=source, color=color, alpha=0.3, line_width=1, **style)


def band_outline(steps: StepCurves, low: Floats, high: Floats) -> dict[str, NDArray[np.float32]]:
    """The corners of the areas between lowest and highest, parted by NaN."""
    known = np.isfinite(low)
    begins = np.flatnonzero(known & ~np.append(False, known[:-1]))
    ends = np.flatnonzero(known & ~np.append(known[1:], False)) + 1
    edges = np.stack([steps.first_step - 0.5, steps.last_step + 0.5], axis=1)
    x, y = list[Floats](), list[Floats]()
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        there = edges[begin:end].ravel()
        x += [there, there[::-1], _GAP]
        y += [np.repeat(low[begin:end], 2), np.repeat(high[begin:end], 2)[::-1], _GAP]
    with np.errstate(over="ignore"):  # what float32 cannot hold is drawn as a gap
        return {
            "x": np.concatenate(x).astype(np.float32),
            "y": np.concatenate(y).astype(np.float32),
        }


_GAP = np.array([np.nan])


def spreads(loss: Band) -> bool:
    """Whether a few huge values would press all others flat, and a log scale can help."""
    low, high = loss.low[loss.finite > 0], loss.high[loss.finite > 0]
    return bool(len(high) and (low > 0).all() and high.max() > 300 * np.median(high))


def _hyper_figure(axis: StepAxis, steps: StepCurves, name: str, label: str) -> figure:
    band = steps.hypers[name]
    plot = axis.figure(label.partition(" (")[0].capitalize(), label, SCHEDULE_HEIGHT)
    axis.mark_epochs(plot)
    distinct = distinct_groups(band)
    for position, group in enumerate(distinct):
        color = (BLUE, ORANGE, GREEN)[position % 3]
        legend = f"parameter group {group}" if len(distinct) > 1 else None
        low, high = band.low[:, group], band.high[:, group]
        if (low < high).any():
            _draw_band(plot, steps, low, high, color)
        line = draw_line(plot, steps.middle_step, band.mean[:, group], color, 2.5, legend=legend)
        add_hover(plot, line, "value", "@y{0.[000000]}")
    _calm(plot, band.mean)
    return plot


def _calm(plot: figure, values: Floats) -> None:
    """A range that suits a constant: Bokeh's is ±1, which is odd around a rate of 0.06."""
    size = float(np.nanmax(np.abs(values), initial=0.0))
    if isinstance(plot.y_range, DataRange1d) and 0 < size < np.inf:
        plot.y_range.default_span = 0.4 * size
