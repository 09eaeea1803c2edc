"""The matrix of layers by steps: a row for each layer or block, coloured by one quantity."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.core.properties import value
from bokeh.layouts import row
from bokeh.models import (
    BoxAnnotation,
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    Image,
    LinearColorMapper,
    Range1d,
    UIElement,
)
from bokeh.palettes import PRGn11, cividis, interp_palette, viridis
from bokeh.plotting import figure
from numpy.typing import NDArray

from convlens.core.buckets import Floats
from convlens.plots.canvas import ORANGE, short_count
from convlens.web.figures.layer_rows import Row, rows_of
from convlens.web.figures.quantities import QUANTITIES, Cells, Quantity, condense, measured
from convlens.web.figures.style import (
    CARD,
    CLEAR,
    FONT,
    INK,
    PALE,
    PROBLEM,
    SOFT,
    WARNING,
    ZERO,
    StepAxis,
)
from convlens.web.formatting import harmless

if TYPE_CHECKING:
    from convlens.web.pages import Page

NO_DATA, EXACTLY_0, LOW, HIGH, BAD = 0, 1, 2, 254, 255
"""Levels of a cell; `LOW` to `HIGH` are colours from the lowest number to the highest."""

DECADES = 6
"""A logarithmic scale spans so many at most: one tiny number must not make all others alike."""

ABOVE, BELOW = 34, 46
"""Pixels above and under the rows."""


@dataclass(frozen=True)
class Limits:
    """From which number to which the colours reach: round ones, which seldom change in a run."""

    scale: str
    low: float
    high: float

    def levels(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The level of each number."""
        low, high, shown = self.low, self.high, values.astype(np.float64)
        if self.scale == "log":
            low, high = np.log10([low, high])
            shown = np.log10(np.maximum(shown, self.low))
        place = np.clip(np.nan_to_num((shown - low) / (high - low), nan=0.0), 0.0, 1.0)
        levels = np.round(LOW + place * (HIGH - LOW))
        if self.scale == "log":
            levels[values == 0] = EXACTLY_0
        return np.where(np.isnan(values), NO_DATA, levels).astype(np.uint8)

    def ticks(self) -> dict[float, str]:
        """Levels and their words, for the colour bar."""
        if self.scale == "log":
            powers = range(round(np.log10(self.low)), round(np.log10(self.high)) + 1)
            said = {10.0**power: _power(power) for power in powers}
        elif self.scale == "share":
            said = {share: f"{share:.0%}" for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
        else:
            sizes = (size * self.high for size in (-1, -0.5, 0, 0.5, 1))
            said = {size: f"{size:+.2g}" if size else "0" for size in sizes}
        levels = self.levels(np.array(list(said), np.float32))
        return dict(zip(map(float, levels), said.values(), strict=True))


def limits_of(scale: str, values: NDArray[np.float32]) -> Limits:
    """Round limits that hold the values."""
    known: Floats = values[np.isfinite(values)].astype(np.float64)
    if scale == "share":
        return Limits(scale, 0.0, 1.0)
    if scale == "signed":
        # A thousandth of the cells may go beyond: one spike must not pale all others.
        size = float(np.quantile(np.abs(known), 0.999)) if len(known) else 0.0
        decade = 10.0 ** np.floor(np.log10(size)) if size > 0 else 1.0
        high = next((m * decade for m in (1, 2, 5) if m * decade >= size), 10 * decade)
        return Limits(scale, -float(high), float(high))
    known = known[known > 0]
    if not len(known):
        return Limits(scale, 0.1, 1.0)
    high = int(np.ceil(np.log10(known.max())))
    low = max(int(np.floor(np.log10(known.min()))), high - DECADES)
    return Limits(scale, 10.0 ** min(low, high - 1), 10.0**high)


def chosen(page: Page) -> str:
    """The quantity that is shown, one of `QUANTITIES`."""
    return page.view.quantity if page.view.quantity in QUANTITIES else next(iter(QUANTITIES))


def height(n_rows: int) -> int:
    """Of the whole figure, in pixels."""
    return ABOVE + BELOW + max(n_rows, 1) * (24 if n_rows <= 10 else 18)


def shown_cells(page: Page, rows: list[Row]) -> tuple[int, Cells]:
    """The numbers of the rows in few cells of time, and the cells' width in steps."""
    quantity = QUANTITIES[chosen(page)]
    share = quantity.scale == "share"
    width, cells = condense(measured(page.run, chosen(page)), peaks=chosen(page) == "dead")
    values = np.full((len(rows), cells.values.shape[1]), np.nan, np.float32)
    bad = np.zeros(values.shape, np.bool_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN
        for i, one in enumerate(rows):
            part = cells.values[one.layers]
            values[i] = np.fmax.reduce(part) if share else np.nanmean(part, axis=0)
            bad[i] = cells.bad[one.layers].any(axis=0)
    return width, Cells(cells.first_step, cells.last_step, values, bad)


def matrix(page: Page) -> UIElement:
    """Layers by steps, with names, kinds and marks of sick layers beside them."""
    rows = rows_of(page.run, page.view)
    width, cells = shown_cells(page, rows)
    quantity = QUANTITIES[chosen(page)]
    limits = limits_of(quantity.scale, cells.values)
    axis = StepAxis(page.run.span, page.run.epochs)
    y = Range1d(start=max(len(rows), 1) - 0.5, end=-0.5)
    plot = axis.figure("", "", height(len(rows)), y_range=y)
    plot.update(name="linked", min_border_left=4, min_border_right=14)
    plot.update(background_fill_color=PALE, min_border_top=ABOVE, min_border_bottom=BELOW)
    plot.yaxis.visible = plot.ygrid.visible = False
    palette = _palette(quantity.scale)
    mapper = LinearColorMapper(
        palette=[ZERO, *palette], low=EXACTLY_0, high=HIGH, low_color=CLEAR, high_color=ORANGE
    )
    glyph = Image(image="image", x="x", y="bottom", dw="dw", dh=0.92, color_mapper=mapper)
    source = ColumnDataSource(_columns(page, rows, cells, limits, width), name="links")
    image = plot.add_glyph(source, glyph, level="image")
    _hover(plot, image, quantity, width, folded=any(len(one.layers) > 1 for one in rows))
    axis.mark_epochs(plot, SOFT)
    ticks = limits.ticks()
    bar = ColorBar(
        color_mapper=LinearColorMapper(palette=palette, low=LOW, high=HIGH), height=8, padding=2,
        orientation="horizontal", ticker=FixedTicker(ticks=list(ticks)),
        major_label_overrides={**ticks},
    )  # fmt: skip
    plot.add_layout(bar, "above")
    names = _names(rows, y)
    _outline(page, rows, plot)
    return row(names, plot, sizing_mode="stretch_width", spacing=0)


def _columns(
    page: Page, rows: list[Row], cells: Cells, limits: Limits, width: int
) -> dict[str, Any]:
    n, known = len(rows), cells.values.shape[1]
    capacity = 1 << max(known - 1, 0).bit_length()
    levels = np.full((n, capacity), NO_DATA, np.uint8)
    levels[:, :known] = np.where(cells.bad, BAD, limits.levels(cells.values))
    values = np.full((n, capacity), np.nan, np.float32)
    values[:, :known] = cells.values
    begin = float(cells.first_step[0]) - 0.5 if known else 0.0
    return {
        "image": [level[None] for level in levels],
        "value": [value[None] for value in values],
        "x": np.full(n, begin),
        "dw": np.full(n, float(capacity * width)),
        "bottom": np.arange(n) - 0.46,
        "name": [one.name for one in rows],
        "kind": [one.kind for one in rows],
        "health": [_words(one) for one in rows],
        "href": [_href(page, one) for one in rows],
    }


def _href(page: Page, one: Row) -> str:
    if len(one.layers) == 1 or not page.live:
        return page.layer_url(one.worst.layer)
    return page.url(block=one.block)


def _words(one: Row) -> str:
    where = f" ({one.worst.layer})" if len(one.layers) > 1 and one.worst.words else ""
    return (one.worst.words or "nothing conspicuous") + where


def _hover(plot: figure, image: Any, quantity: Quantity, width: int, folded: bool) -> None:  # noqa: ANN401
    share = quantity.scale == "share"
    number = "@value{0.0 %}" if share else "@value{%.3g}"
    tips = [("layer", "@name (@kind)"), ("batch", "$x{0,0}"), (quantity.label, number)]
    if width > 1:
        merged = "largest" if quantity is QUANTITIES["dead"] else "mean"
        tips.append(("", f"{merged} of {width:,} batches"))
    if folded:
        tips.append(("", f"folded rows: {'largest' if share else 'mean'} of their layers"))
    tips.append(("health", "@health"))
    printed: Any = {} if share else {"@value": "printf"}
    plot.add_tools(HoverTool(renderers=[image], tooltips=tips, formatters=printed))


def _names(rows: list[Row], y: Range1d) -> figure:
    """Mark, name and kind of each row, beside the matrix and as high as it."""
    labels = [("▸ " if len(one.layers) > 1 else "") + harmless(one.label) for one in rows]
    # About 7 pixels for each letter of a name, 6 for one of its kind.
    letters = max((7 * len(label) for label in labels), default=0)
    width = 38 + letters + 6 * max((len(one.kind) for one in rows), default=0)
    plot = figure(
        width=width, height=height(len(rows)), x_range=Range1d(start=0, end=width), y_range=y,
        tools="", toolbar_location=None, name="linked-names", outline_line_color=None, min_border=0,
        min_border_top=ABOVE, min_border_bottom=BELOW,
    )  # fmt: skip
    plot.axis.visible = plot.grid.visible = False
    colors = {"problem": PROBLEM, "warning": WARNING}
    source = ColumnDataSource({
        "y": np.arange(len(rows)),
        "name": labels,
        "full": [one.name for one in rows],
        "kind": [harmless(one.kind) for one in rows],
        "health": [_words(one) for one in rows],
        "ink": [colors.get(one.worst.severity, INK) for one in rows],
        "mark": [colors.get(one.worst.severity, CLEAR) for one in rows],
        "style": ["bold" if one.worst.severity == "problem" else "normal" for one in rows],
    })  # fmt: skip
    text: dict[str, Any] = {"source": source, "text_font": value(FONT), "text_baseline": "middle"}
    marks = plot.scatter(8, "y", source=source, size=9, marker="square", color="mark")
    plot.text(18, "y", "name", text_font_size="11.5px", text_color="ink", text_font_style="style",
              **text)  # fmt: skip
    plot.text(width - 4, "y", "kind", text_font_size="11px", text_color=SOFT, text_align="right",
              **text)  # fmt: skip
    tips = [("layer", "@full"), ("health", "@health")]
    plot.add_tools(HoverTool(renderers=[marks], tooltips=tips, mode="hline"))
    return plot


def _outline(page: Page, rows: list[Row], plot: figure) -> None:
    """A line with a rim of the other brightness: seen on every colour and beside them."""
    index = page.run.names.index(page.view.layer) if page.view.layer in page.run.names else -1
    at = next((i for i, one in enumerate(rows) if index in one.layers), -1)
    for color, thick in ((CARD, 5), (INK, 2)):
        plot.add_layout(BoxAnnotation(
            top=at - 0.5, bottom=at + 0.5, visible=at >= 0, fill_color=None, line_color=color,
            line_width=thick, line_alpha=1,
        ))  # fmt: skip


def _palette(scale: str) -> list[str]:
    size = HIGH - LOW + 1
    if scale == "signed":
        return list(interp_palette(PRGn11, size))
    return list(cividis(size) if scale == "share" else viridis(size))


def _power(power: int) -> str:
    if power >= 0:
        return short_count(10**power)
    return f"{10.0**power:.{-power}f}" if power >= -3 else f"1e{power}"
