"""The figures of a report: records in, Bokeh layouts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import (
    BasicTicker,
    ColorBar,
    ColumnDataSource,
    DataRange1d,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    NoOverlap,
    NumeralTickFormatter,
    OpenURL,
    Quad,
    Range1d,
    TapTool,
    UIElement,
)
from bokeh.palettes import cividis, viridis
from bokeh.plotting import figure

from convlens.plots.canvas import BLUE, GREEN, NONFINITE_LABEL, ORANGE
from convlens.plots.curves import smoothed
from convlens.records import Epoch, LayerHistory, StepSeries
from convlens.sketch import Floats
from convlens.views.canvas import PALE, StepAxis, add_hover, draw_line, harmless
from convlens.views.timeline import EMPTY, Grid, Heat, heat_of, near_zero_cells, thin

LOSS_HEIGHT, METRIC_HEIGHT, SCHEDULE_HEIGHT = 320, 210, 260
STATS_HEIGHT, HEAT_HEIGHT = 210, 340

SMOOTH = 0.98

Span = tuple[int, int]


def loss_figure(axis: StepAxis, steps: StepSeries, epochs: Sequence[Epoch]) -> figure:
    """Training loss by step, raw and smoothed, and validation loss by epoch."""
    finite = np.isfinite(steps.loss)
    kind, label = ("log", "loss (log scale)") if _spreads(steps.loss) else ("linear", "loss")
    plot = axis.figure("Loss", label, LOSS_HEIGHT, y_axis_type=kind)
    axis.mark_epochs(plot)
    if finite.any():
        loss = np.where(finite, steps.loss, np.nan)
        _draw_training_loss(plot, steps, loss)
    measured = [(e.last_step, e.valid_loss) for e in epochs if e.valid_loss is not None]
    if measured:
        x, y = np.array(measured, np.float64).T
        style: dict[str, Any] = {"line_width": 1.5, "legend_label": "validation, each epoch"}
        add_hover(plot, draw_line(plot, x, y, color=ORANGE, points=True, **style), "valid", "@y")
    return plot


def metric_figure(axis: StepAxis, epochs: Sequence[Epoch], name: str) -> figure:
    """One metric of the validation, at the end of each epoch."""
    plot = axis.figure(name.capitalize(), name, METRIC_HEIGHT)
    axis.mark_epochs(plot)
    x = [epoch.last_step for epoch in epochs]
    y = np.array([epoch.metrics.get(name, np.nan) for epoch in epochs], np.float64)
    style: dict[str, Any] = {"line_width": 1.5}
    add_hover(
        plot, draw_line(plot, x, y, color=ORANGE, points=True, **style), "value", "@y{0.0000}"
    )
    _calm(plot, y)
    return plot


def curves(
    steps: StepSeries, epochs: Sequence[Epoch], names: Sequence[str], span: Span
) -> UIElement:
    """Loss, and below it each metric, over one time axis."""
    axis = StepAxis(span, epochs)
    plots = [loss_figure(axis, steps, epochs), *(metric_figure(axis, epochs, n) for n in names)]
    return column(plots, sizing_mode="stretch_width")


def schedule(
    steps: StepSeries, epochs: Sequence[Epoch], names: Mapping[str, str], span: Span
) -> UIElement:
    """Hyperparameters by step, side by side: name in the record → label of the axis."""
    axis = StepAxis(span, epochs)
    plots = [_hyper_figure(axis, steps, name, label) for name, label in names.items()]
    return row(plots, sizing_mode="stretch_width")


def matrix_height(n_layers: int) -> int:
    """Pixels for the matrix of so many layers: readable rows, but one screen at most."""
    return min(110 + 26 * n_layers, 900)


def matrix(
    layers: Sequence[LayerHistory], grid: Grid, epochs: Sequence[Epoch], span: Span
) -> UIElement:
    """Layers × steps coloured by the share of values near zero; a row leads to its layer."""
    n = len(layers)
    axis = StepAxis(span, epochs)
    plot = axis.figure(
        "Share of values near zero", "layer", matrix_height(n), y_range=Range1d(n - 0.5, -0.5)
    )
    plot.ygrid.visible = False
    plot.background_fill_color = PALE
    mapper = LinearColorMapper(palette=cividis(256), low=0.0, high=1.0, nan_color="rgba(0,0,0,0)")
    source = ColumnDataSource(
        {
            "image": [near_zero_cells(history, grid)[None] for history in layers],
            "y": np.arange(n) - 0.46,
            "middle": np.arange(n),
            "index": np.arange(n),
            "name": [title_of(history) for history in layers],
        }
    )
    place = {"x": grid.first - 0.5, "dw": grid.n_cells * grid.width, "dh": 0.92}
    image = plot.image("image", y="y", source=source, color_mapper=mapper, **place)
    axis.mark_epochs(plot, "#ffffff")
    clickable = plot.hbar(
        y="middle",
        left=span[0] - 0.5,
        right=span[1] + 0.5,
        height=1,
        source=source,
        alpha=0,
        selection_alpha=0,
        nonselection_alpha=0,
    )
    tips = [("layer", "@name"), ("batch", "$x{0}"), ("near zero", "@image{0.0 %}")]
    plot.add_tools(
        HoverTool(renderers=[image], tooltips=tips),
        TapTool(renderers=[clickable], callback=OpenURL(url="#layer-@index", same_tab=True)),
    )
    plot.yaxis.ticker = FixedTicker(ticks=list(range(n)))
    plot.yaxis.major_label_overrides = {
        i: harmless(short(history.layer.name or history.layer.kind))
        for i, history in enumerate(layers)
    }
    plot.yaxis.major_label_policy = NoOverlap()
    bar = ColorBar(
        color_mapper=mapper,
        ticker=BasicTicker(desired_num_ticks=5),
        formatter=NumeralTickFormatter(format="0 %"),
        title="share near zero",
        width=14,
    )
    plot.add_layout(bar, "right")
    return plot


def layer(history: LayerHistory, grid: Grid, epochs: Sequence[Epoch], span: Span) -> UIElement:
    """Everything of one condensed layer: its histograms, and three statistics below them."""
    axis = StepAxis(span, epochs)
    near = f"% near zero (|x| ≤ {history.eps:g})"
    title = "Near zero (dashed: after its ReLU)" if history.layer.feeds_relu else "Near zero"
    stats = [
        _stat_figure(axis, history, history.mean, "Mean", "mean"),
        _stat_figure(axis, history, history.std, "Standard deviation", "standard deviation"),
        _stat_figure(axis, history, 100.0 * history.near_zero, title, near),
    ]
    stats[2].y_range = Range1d(-4, 104)
    if history.layer.feeds_relu:
        _draw_after_relu(stats[2], history)
    return column(
        [heat_figure(axis, history, grid), row(stats, sizing_mode="stretch_width")],
        sizing_mode="stretch_width",
    )


def heat_figure(axis: StepAxis, history: LayerHistory, grid: Grid) -> figure:
    """The histogram of every batch as one coloured column."""
    heat = heat_of(history, grid)
    label = "activation"
    if heat.outside > 0.0005:
        label = f"activation ({100 * heat.outside:.1f} % lie outside)"
    plot = axis.figure(
        "Activations of every batch", label, HEAT_HEIGHT, y_range=Range1d(heat.low, heat.high)
    )
    plot.grid.visible = False
    plot.background_fill_color = PALE
    mapper = LinearColorMapper(
        palette=viridis(EMPTY), low=0, high=EMPTY - 1, high_color="rgba(0,0,0,0)"
    )
    image = plot.image(
        [heat.cells],
        x=grid.first - 0.5,
        y=heat.low,
        dw=grid.n_cells * grid.width,
        dh=heat.high - heat.low,
        color_mapper=mapper,
    )
    plot.add_tools(
        HoverTool(renderers=[image], tooltips=[("batch", "$x{0}"), ("activation", "$y{0.000}")])
    )
    axis.mark_epochs(plot, "#ffffff")
    _mark_nonfinite(plot, history, grid, heat)
    plot.add_layout(_count_bar(mapper, heat.peak), "right")
    return plot


def title_of(history: LayerHistory) -> str:
    """A layer's name and kind."""
    info = history.layer
    return f"{info.name} ({info.kind})" if info.name else info.kind


def short(name: str, length: int = 26) -> str:
    """A long name without its middle: both ends tell layers apart."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _draw_training_loss(plot: figure, steps: StepSeries, loss: Floats) -> None:
    kept = thin(loss)
    x, raw = steps.step[kept], loss[kept]
    if len(steps) <= 2:
        line = draw_line(plot, x, raw, line_width=1.5, legend_label="training, each batch")
    else:
        label = "training, each batch"
        draw_line(plot, x, raw, line_width=0.8, alpha=0.45, points=False, legend_label=label)
        mean = _smooth(loss, logs=_spreads(loss))[kept]
        line = draw_line(plot, x, mean, line_width=2.5, legend_label="training, smoothed")
    add_hover(plot, line, "loss", "@y")


def _spreads(values: Floats) -> bool:
    """Whether a few huge values would press all others flat, and a log scale can help."""
    finite = values[np.isfinite(values)]
    return bool(len(finite) and (finite > 0).all() and finite.max() > 300 * np.median(finite))


def _smooth(loss: Floats, *, logs: bool) -> Floats:
    """The mean that `plots.plot_loss` draws: over a twentieth of the steps to either side at most.

    On a logarithmic axis it is that of the logarithms: one loss of a million must not lift its
    neighbours by decades.
    """
    weight = min(SMOOTH, max(0.0, 1.0 - 20.0 / len(loss)))
    return np.exp(smoothed(np.log(loss), weight)) if logs else smoothed(loss, weight)


def _hyper_figure(axis: StepAxis, steps: StepSeries, name: str, label: str) -> figure:
    values = steps.hypers[name]
    plot = axis.figure(label.partition(" (")[0].capitalize(), label, SCHEDULE_HEIGHT)
    axis.mark_epochs(plot)
    kept = thin(values[:, 0])
    # Groups that always agree are one line: which of them is drawn cannot be seen.
    distinct = np.unique(values, axis=1, return_index=True)[1]
    for position, group in enumerate(sorted(distinct.tolist())):
        style: dict[str, Any] = {"line_width": 2.5, "color": (BLUE, ORANGE, GREEN)[position % 3]}
        if len(distinct) > 1:
            style["legend_label"] = f"parameter group {group}"
        line = draw_line(plot, steps.step[kept], values[kept, group], **style)
        add_hover(plot, line, "value", "@y{0.[000000]}")
    _calm(plot, values)
    return plot


def _calm(plot: figure, values: Floats) -> None:
    """A range that suits a constant: Bokeh's is ±1, which is odd around a rate of 0.06."""
    size = float(np.nanmax(np.abs(values), initial=0.0))
    if isinstance(plot.y_range, DataRange1d) and 0 < size < np.inf:
        plot.y_range.default_span = 0.4 * size


def _stat_figure(
    axis: StepAxis, history: LayerHistory, values: Floats, title: str, label: str
) -> figure:
    finite = bool(np.isfinite(values).any())
    title = title if finite else f"{title}: every value is NaN or infinite"
    plot = axis.figure(title, label, STATS_HEIGHT, names=False)
    axis.mark_epochs(plot)
    line = draw_line(plot, _middle(history), values, line_width=1.5)
    add_hover(plot, line, label.partition(" (")[0], "@y{0.000}")
    return plot


def _draw_after_relu(plot: figure, history: LayerHistory) -> None:
    values = 100.0 * history.near_zero_after_relu
    style: dict[str, Any] = {"line_width": 1.5, "line_dash": "dashed"}
    draw_line(plot, _middle(history), values, color=GREEN, **style)


def _mark_nonfinite(plot: figure, history: LayerHistory, grid: Grid, heat: Heat) -> None:
    bad = history.nonfinite > 0
    if not bad.any():
        return
    left = grid.first - 0.5 + grid.cells(history)[bad] * grid.width
    source = ColumnDataSource({"left": left, "right": left + grid.width})
    bottom = heat.high - 0.04 * (heat.high - heat.low)
    style: dict[str, Any] = {"fill_color": ORANGE, "line_color": None}
    band = Quad(left="left", right="right", top=heat.high, bottom=bottom, **style)
    renderer = plot.add_glyph(source, band)
    hover = HoverTool(renderers=[renderer], tooltips=[("batch", "$x{0}"), ("", NONFINITE_LABEL)])
    plot.add_tools(hover)


def _count_bar(mapper: LinearColorMapper, peak: float) -> ColorBar:
    counts = [0, *(10**power for power in range(int(np.log10(peak)) + 1))]
    ticks = [float(np.log1p(count) / np.log1p(peak) * (EMPTY - 1)) for count in counts]
    labels = [_short_count(count) for count in counts]
    return ColorBar(
        color_mapper=mapper,
        ticker=FixedTicker(ticks=ticks),
        major_label_overrides=dict(zip(ticks, labels, strict=True)),
        title="values per bin (log scale)",
        width=14,
    )


def _short_count(count: int) -> str:
    for power, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= power:
            return f"{count // power} {letter}"
    return str(count)


def _middle(history: LayerHistory) -> Floats:
    return (history.first_step + history.last_step) / 2
