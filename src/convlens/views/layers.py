"""The figures of the watched layers: all of them as one matrix, and each by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.layouts import column
from bokeh.models import (
    BasicTicker,
    ColorBar,
    ColorMapper,
    ColumnDataSource,
    FixedTicker,
    HBar,
    HoverTool,
    Image,
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

from convlens.histories import LayerHistory
from convlens.plots.canvas import GREEN, NONFINITE_LABEL, ORANGE, short_count
from convlens.records import Epoch
from convlens.sketch import Floats
from convlens.views.canvas import (
    PALE,
    StepAxis,
    add_hover,
    draw_line,
    harmless,
    short,
    side_by_side,
)
from convlens.views.timeline import EMPTY, Grid, Heat, heat_of, near_zero_cells

STATS_HEIGHT, HEAT_HEIGHT = 210, 340

WHITE, SILVER, CLEAR = "#ffffff", "#9aa0a6", "rgba(0, 0, 0, 0)"


def matrix_height(n_layers: int) -> int:
    """Pixels for the matrix of so many layers: readable rows, but one screen at most."""
    return min(max(110 + 26 * n_layers, 220), 900)


def matrix(
    layers: Sequence[LayerHistory], grid: Grid, epochs: Sequence[Epoch], span: tuple[int, int]
) -> UIElement:
    """Layers × steps coloured by the share of values near zero; a row leads to its layer."""
    n = len(layers)
    axis = StepAxis(span, epochs)
    rows = Range1d(start=n - 0.5, end=-0.5)
    plot = axis.figure("Share of values near zero", "layer", matrix_height(n), rows)
    plot.ygrid.visible = False
    plot.background_fill_color = PALE
    mapper = LinearColorMapper(palette=cividis(256), low=0.0, high=1.0, nan_color=CLEAR)
    _draw_rows(plot, layers, grid, mapper)
    axis.mark_epochs(plot, SILVER)
    plot.yaxis.ticker = FixedTicker(ticks=list(range(n)))
    plot.yaxis.major_label_overrides = {i: _row_name(history) for i, history in enumerate(layers)}
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


def layer(
    history: LayerHistory, grid: Grid, epochs: Sequence[Epoch], span: tuple[int, int]
) -> UIElement:
    """Everything of one condensed layer: its histograms, and three statistics below them."""
    axis = StepAxis(span, epochs)
    near = f"% near zero (|x| ≤ {history.eps:g})"
    title = "Near zero (dashed: after its ReLU)" if history.layer.feeds_relu else "Near zero"
    stats = [
        _stat_figure(axis, history, history.mean, "Mean", "mean"),
        _stat_figure(axis, history, history.std, "Standard deviation", "standard deviation"),
        _stat_figure(axis, history, 100.0 * history.near_zero, title, near),
    ]
    stats[2].y_range = Range1d(start=-4, end=104)
    if history.layer.feeds_relu:
        after = 100.0 * history.near_zero_after_relu
        draw_line(stats[2], history.middle_step, after, GREEN, dashed=True)
    heat = heat_figure(axis, history, grid)
    return column(heat, side_by_side(stats), sizing_mode="stretch_width")


def heat_figure(axis: StepAxis, history: LayerHistory, grid: Grid) -> figure:
    """The histogram of every batch as one coloured column."""
    heat = heat_of(history, grid)
    label = "activation"
    if heat.outside > 0.0005:
        label = f"activation ({100 * heat.outside:.1f} % lie outside)"
    values = Range1d(start=heat.low, end=heat.high)
    plot = axis.figure("Activations of every batch", label, HEAT_HEIGHT, values)
    plot.grid.visible = False
    plot.background_fill_color = PALE
    mapper = LinearColorMapper(palette=viridis(EMPTY), low=0, high=EMPTY - 1, high_color=CLEAR)
    cells = Image(
        image="image",
        x=grid.first - 0.5,
        y=heat.low,
        dw=grid.n_cells * grid.width,
        dh=heat.high - heat.low,
        color_mapper=mapper,
    )
    image = plot.add_glyph(ColumnDataSource({"image": [heat.cells]}), cells)
    tips = [("batch", "$x{0}"), ("activation", "$y{0.000}")]
    plot.add_tools(HoverTool(renderers=[image], tooltips=tips))
    axis.mark_epochs(plot, WHITE)
    _mark_nonfinite(plot, history, grid, heat)
    plot.add_layout(_count_bar(mapper, heat.peak), "right")
    return plot


def _row_name(history: LayerHistory) -> str:
    return harmless(short(history.layer.name or history.layer.kind))


def _draw_rows(
    plot: figure, layers: Sequence[LayerHistory], grid: Grid, mapper: ColorMapper
) -> None:
    positions = np.arange(len(layers))
    infos = [history.layer for history in layers]
    source = ColumnDataSource(
        {
            "image": [near_zero_cells(history, grid)[None] for history in layers],
            "bottom": positions - 0.46,
            "middle": positions,
            "index": positions,
            "name": [f"{info.name} ({info.kind})" for info in infos],
        }
    )
    left, width = grid.first - 0.5, grid.n_cells * grid.width
    cells = Image(image="image", x=left, y="bottom", dw=width, dh=0.92, color_mapper=mapper)
    image = plot.add_glyph(source, cells)
    tips = [("layer", "@name"), ("batch", "$x{0}"), ("near zero", "@image{0.0 %}")]
    unseen = HBar(y="middle", left=left, right=left + width, height=1, fill_alpha=0, line_alpha=0)
    rows = plot.add_glyph(
        source, unseen, selection_glyph=unseen.clone(), nonselection_glyph=unseen.clone()
    )
    plot.add_tools(
        HoverTool(renderers=[image], tooltips=tips),
        TapTool(renderers=[rows], callback=OpenURL(url="#layer-@index", same_tab=True)),
    )


def _stat_figure(
    axis: StepAxis, history: LayerHistory, values: Floats, title: str, label: str
) -> figure:
    finite = bool(np.isfinite(values).any())
    title = title if finite else f"{title}: every value is NaN or infinite"
    plot = axis.figure(title, label, STATS_HEIGHT, names=False)
    axis.mark_epochs(plot)
    line = draw_line(plot, history.middle_step, values)
    add_hover(plot, line, label.partition(" (")[0], "@y{0.000}")
    return plot


def _mark_nonfinite(plot: figure, history: LayerHistory, grid: Grid, heat: Heat) -> None:
    """An orange band along the top where values are NaN or infinite."""
    bad = history.nonfinite > 0
    if not bad.any():
        return
    left = grid.first - 0.5 + grid.cells(history)[bad] * grid.width
    source = ColumnDataSource({"left": left, "right": left + grid.width})
    bottom = heat.high - 0.04 * (heat.high - heat.low)
    band = Quad(left="left", right="right", top=heat.high, bottom=bottom, fill_color=ORANGE)
    band.line_color = None
    renderer = plot.add_glyph(source, band)
    tips = [("batch", "$x{0}"), ("here", NONFINITE_LABEL)]
    plot.add_tools(HoverTool(renderers=[renderer], tooltips=tips))


def _count_bar(mapper: ColorMapper, peak: float) -> ColorBar:
    counts = [0, *(10**power for power in range(int(np.log10(peak)) + 1))]
    ticks = [float(np.log1p(count) / np.log1p(peak) * (EMPTY - 1)) for count in counts]
    labels = [short_count(count) for count in counts]
    return ColorBar(
        color_mapper=mapper,
        ticker=FixedTicker(ticks=ticks),
        major_label_overrides=dict(zip(ticks, labels, strict=True)),
        title="values per bin (log scale)",
        width=14,
    )
