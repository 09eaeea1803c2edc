"""The figures over the whole training: losses, metrics, schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from bokeh.layouts import column
from bokeh.models import DataRange1d, UIElement
from bokeh.plotting import figure

from convlens.plots.canvas import BLUE, GREEN, ORANGE
from convlens.plots.curves import smoothed
from convlens.records import Epoch, StepSeries
from convlens.sketch import Floats
from convlens.views.canvas import StepAxis, add_hover, draw_line, short, side_by_side
from convlens.views.timeline import thin

LOSS_HEIGHT, METRIC_HEIGHT, SCHEDULE_HEIGHT = 320, 210, 260

SMOOTH = 0.98


def curves(
    steps: StepSeries, epochs: Sequence[Epoch], names: Sequence[str], span: tuple[int, int]
) -> UIElement:
    """Loss, and below it each metric, over one time axis."""
    axis = StepAxis(span, epochs)
    plots = [loss_figure(axis, steps, epochs), *(metric_figure(axis, epochs, n) for n in names)]
    return column(*plots, sizing_mode="stretch_width")


def loss_figure(axis: StepAxis, steps: StepSeries, epochs: Sequence[Epoch]) -> figure:
    """Training loss by step, raw and smoothed, and validation loss by epoch."""
    loss = np.where(np.isfinite(steps.loss), steps.loss, np.nan)
    log = _spreads(loss)
    plot = axis.figure("Loss", "loss (log scale)" if log else "loss", LOSS_HEIGHT, log=log)
    axis.mark_epochs(plot)
    if np.isfinite(loss).any():
        _draw_training_loss(plot, steps, loss, log=log)
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
    steps: StepSeries, epochs: Sequence[Epoch], names: Mapping[str, str], span: tuple[int, int]
) -> UIElement:
    """Hyperparameters by step, side by side: name in the record → label of the axis."""
    axis = StepAxis(span, epochs)
    plots = [_hyper_figure(axis, steps, name, label) for name, label in names.items()]
    return side_by_side(plots)


def _draw_training_loss(plot: figure, steps: StepSeries, loss: Floats, *, log: bool) -> None:
    kept = thin(loss)
    x, raw, label = steps.step[kept], loss[kept], "training, each batch"
    if len(steps) <= 2:
        line = draw_line(plot, x, raw, legend=label)
    else:
        draw_line(plot, x, raw, width=0.8, alpha=0.55, legend=label)
        mean, label = _smooth(loss, log=log)[kept], "training, smoothed"
        line = draw_line(plot, x, mean, width=2.5, points=False, legend=label)
    add_hover(plot, line, "loss", "@y")


def _spreads(loss: Floats) -> bool:
    """Whether a few huge values would press all others flat, and a log scale can help."""
    finite = loss[np.isfinite(loss)]
    return bool(len(finite) and (finite > 0).all() and finite.max() > 300 * np.median(finite))


def _smooth(loss: Floats, *, log: bool) -> Floats:
    """The mean that `plots.plot_loss` draws: over a twentieth of the steps to either side at most.

    On a logarithmic axis it is that of the logarithms: one loss of a million must not lift its
    neighbours by decades.
    """
    weight = min(SMOOTH, max(0.0, 1.0 - 20.0 / len(loss)))
    return np.exp(smoothed(np.log(loss), weight)) if log else smoothed(loss, weight)


def _hyper_figure(axis: StepAxis, steps: StepSeries, name: str, label: str) -> figure:
    values = steps.hypers[name]
    plot = axis.figure(label.partition(" (")[0].capitalize(), label, SCHEDULE_HEIGHT)
    axis.mark_epochs(plot)
    kept = thin(values[:, 0])
    # Groups that always agree are one line: which of them is drawn cannot be seen.
    distinct = np.unique(values, axis=1, return_index=True)[1]
    for position, group in enumerate(sorted(distinct.tolist())):
        color = (BLUE, ORANGE, GREEN)[position % 3]
        legend = f"parameter group {group}" if len(distinct) > 1 else None
        line = draw_line(plot, steps.step[kept], values[kept, group], color, 2.5, legend=legend)
        add_hover(plot, line, "value", "@y{0.[000000]}")
    _calm(plot, values)
    return plot


def _calm(plot: figure, values: Floats) -> None:
    """A range that suits a constant: Bokeh's is ±1, which is odd around a rate of 0.06."""
    size = float(np.nanmax(np.abs(values), initial=0.0))
    if isinstance(plot.y_range, DataRange1d) and 0 < size < np.inf:
        plot.y_range.default_span = 0.4 * size
