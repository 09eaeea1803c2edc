"""Several runs in one figure: their curves, and the distances of two of them layer by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from bokeh.layouts import column
from bokeh.models import (
    BoxAnnotation,
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    Image,
    LinearColorMapper,
    NoOverlap,
    NumeralTickFormatter,
    Range1d,
    UIElement,
)
from bokeh.palettes import cividis, viridis
from bokeh.plotting import figure
from numpy.typing import NDArray

from convlens.core.columns import coarsen
from convlens.core.histories import LayerHistory
from convlens.plots.one_layer import value_range
from convlens.web.distances import CELL_BITS, Distance, grid_level
from convlens.web.figures.curves import overlaid
from convlens.web.figures.style import (
    CARD,
    CLEAR,
    INK,
    LEFT,
    PALE,
    StepAxis,
    say,
    stacked,
)
from convlens.web.formatting import harmless, short

if TYPE_CHECKING:
    from convlens.web.pages import ComparePage

HEAT, ROWS = 210, 80
"""Height in pixels and rows of a layer's histograms."""

WHITE = "#ffffff"


def losses(page: ComparePage) -> UIElement:
    """Losses and a metric of all runs."""
    return overlaid(page.pages, page.names)


def matrix_height(n_layers: int) -> int:
    """Pixels of the matrix, of which the axis and the title take 70."""
    return 70 + min(max(22 * n_layers, 60), 560)


def distances(page: ComparePage) -> UIElement:
    """The distance of two runs, layers by steps; a click on a row chooses the layer."""
    found = page.comparison.distances if page.comparison else ()
    n, names = len(found), [one.layer.name for one in found]
    axis = StepAxis(_span(page))
    rows = Range1d(start=max(n, 1) - 0.5, end=-0.5)
    plot = axis.figure("Distance by layer", "", matrix_height(n), y_range=rows)
    plot.update(name="linked", background_fill_color=PALE)
    plot.ygrid.visible = False
    level = max((one.level for one in found), default=0)
    width = float((1 << CELL_BITS) << level)
    source = ColumnDataSource(
        {
            "image": [_row(one, level) for one in found],
            "bottom": np.arange(n) - 0.46,
            "layer": [f"{one.layer.name} ({one.layer.kind})" for one in found],
            "href": [page.url(layer=name) for name in names],
        },
        name="links",
    )
    mapper = LinearColorMapper(palette=list(cividis(250)), low=0, high=1, nan_color=CLEAR)
    glyph = Image(image="image", x=-0.5, y="bottom", dw=width, dh=0.92, color_mapper=mapper)
    image = plot.add_glyph(source, glyph, level="image")
    tips = [("layer", "@layer"), ("batch", "$x{0,0}"), ("distance", "@image{0.0 %}")]
    plot.add_tools(HoverTool(renderers=[image], tooltips=tips))
    shown = {
        i: harmless(short(one.layer.name or one.layer.kind, 14)) for i, one in enumerate(found)
    }
    plot.yaxis.update(
        ticker=FixedTicker(ticks=list(shown)), major_label_overrides=shown,
        major_label_policy=NoOverlap(), major_tick_line_color=None,
    )  # fmt: skip
    chosen = names.index(page.layer) if page.layer in names else None
    for color, size in ((CARD, 6), (INK, 2.5)):
        plot.add_layout(BoxAnnotation(
            top=(chosen or 0) - 0.5, bottom=(chosen or 0) + 0.5, fill_color=None, line_color=color,
            line_width=size, line_alpha=1, visible=chosen is not None,
        ))  # fmt: skip
    percent = NumeralTickFormatter(format="0 %")
    plot.add_layout(ColorBar(color_mapper=mapper, width=12, padding=6, formatter=percent), "right")
    say(plot, "" if n else "Nothing to compare yet.")
    return stacked(plot)


def _row(distance: Distance, level: int) -> NDArray[np.float32]:
    """One layer's cells as an image of one line, with room for all that a run may fill."""
    cells = np.full((1, 1 << CELL_BITS), np.nan, np.float32)
    cells[0, distance.first_step >> level] = distance.values
    return cells


def layer_of_both(page: ComparePage) -> UIElement:
    """The histograms of one layer in both runs, on one scale of values and colours."""
    axis = StepAxis(_span(page))
    if not page.layer:
        plot = axis.figure("Activations", "", HEAT, y_range=Range1d(start=0, end=1))
        say(plot, "The runs have no layer in common.")
        return plot
    level = grid_level(_span(page)[1])
    width = float((1 << CELL_BITS) << level)
    histories = [_condensed(one.run.history(page.layer), level) for one in page.pages]
    ranges = [value_range(history, None) for history in histories if len(history)]
    low = min((pair[0] for pair in ranges), default=-1.0)
    high = max((pair[1] for pair in ranges), default=1.0)
    edges = np.linspace(low, high, ROWS + 1)
    counts = [one.rebin(edges) / np.maximum(one.calls, 1)[:, None] for one in histories]
    peak = max([1.0, *(float(one.max(initial=0.0)) for one in counts)])
    mapper = LinearColorMapper(palette=list(viridis(255)), low=0, high=1, nan_color=CLEAR)
    plots: list[figure] = []
    for name, one, history, binned in zip(page.names, page.pages, histories, counts, strict=True):
        axis.epochs = one.run.epochs
        title = f"{short(name, 24)}: layer {short(page.layer, 20)}"
        plot = axis.figure(title, "activation", HEAT, y_range=Range1d(start=low, end=high))
        plot.update(background_fill_color=PALE)
        plot.ygrid.visible = False
        plot.title.offset = -LEFT / 2  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        cells = np.full((ROWS, 1 << CELL_BITS), np.nan, np.float32)
        seen = history.columns.n_finite > 0
        colours = np.log1p(binned[seen].T) / np.log1p(peak)
        cells[:, (history.first_step >> level)[seen]] = colours
        source = ColumnDataSource({"image": [cells], "y": [low], "dh": [high - low]})
        glyph = Image(image="image", x=-0.5, y="y", dw=width, dh="dh", color_mapper=mapper)
        image = plot.add_glyph(source, glyph, level="image")
        tips = [("batch", "$x{0,0}"), ("activation", "$y{0.000}")]
        plot.add_tools(HoverTool(renderers=[image], tooltips=tips))
        axis.mark_epochs(plot, WHITE)
        say(plot, "" if seen.any() else "Nothing finite of this layer was recorded.")
        plots.append(stacked(plot))
    return column(*plots, sizing_mode="stretch_width")


def _condensed(history: LayerHistory, level: int) -> LayerHistory:
    return replace(history, columns=coarsen(history.columns, level))


def _span(page: ComparePage) -> tuple[int, int]:
    spans = [one.run.span for one in page.pages]
    return min(low for low, _ in spans), max(high for _, high in spans)
