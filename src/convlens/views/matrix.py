"""The matrix of layers by steps as a figure that is built once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.events import Tap
from bokeh.models import (
    BoxAnnotation,
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HBar,
    HoverTool,
    Image,
    LinearColorMapper,
    NoOverlap,
    OpenURL,
    Range1d,
    TapTool,
)
from bokeh.palettes import PRGn11, cividis, interp_palette, viridis
from numpy.typing import NDArray

from convlens.plots.canvas import ORANGE
from convlens.views.canvas import CARD, INK, PALE, StepAxis, harmless, relabel, retitle, short_names
from convlens.views.lines import Message
from convlens.views.matrices import (
    BAD,
    MAX_COLUMNS,
    NONE,
    TOP,
    Limits,
    Matrix,
    Scale,
    condense_matrix,
    limits_of,
)
from convlens.views.timeline import Grid

SILVER, CLEAR = "#9aa0a6", "rgba(0, 0, 0, 0)"

Levels = NDArray[np.uint8]


class MatrixFigure:
    """Layers × steps, coloured by one quantity; a row can be chosen.

    Each row is an image of one line, so that a row's name is known where one points. The images
    are as wide as a run may get, and a growing run fills them: only new cells are sent.

    Args:
        axis: the time axis.
        height: in pixels.
        links: whether a click on a row leads to ``#layer-INDEX`` of the page, as in a report.
        grows: whether the images have room for cells to come.
        length: of a layer's name, beyond which its middle is left out.
        word: the figure's title before the quantity.
    """

    def __init__(
        self,
        axis: StepAxis,
        height: int,
        *,
        links: bool = False,
        grows: bool = True,
        length: int = 26,
        word: str = "Layers",
    ) -> None:
        self._grows, self._length, self._word = grows, length, word
        self._rows = Range1d(start=0.5, end=-0.5)
        self._names: Sequence[str] = ()
        self._chosen: int | None = None
        self._heard: list[Callable[[int], None]] = []
        self._said: object = None
        self._shown = _Shown(Grid(0, 1, 0), Limits("share", 0.0, 1.0), *_no_cells(0, 0))
        self.source = ColumnDataSource(_columns(self._shown, ()))
        self.plot = axis.figure(word, "", height, self._rows, names=False)
        self._draw(axis, links)
        self.message = Message(self.plot)

    def update(self, matrix: Matrix) -> None:
        """Show this matrix; what has not changed is not sent again."""
        grid, cells = condense_matrix(matrix)
        limits = limits_of(cells)
        # An image without any cell cannot be drawn.
        width = MAX_COLUMNS if self._grows else max(grid.n_cells, 1)
        levels, values = _no_cells(len(cells.names), width)
        levels[:, : grid.n_cells] = np.where(cells.bad, BAD, limits.levels(cells.values))
        values[:, : grid.n_cells] = cells.values
        shown = _Shown(Grid(grid.first, grid.width, width), limits, levels, values)
        names = [f"{n} ({k})" for n, k in zip(matrix.names, matrix.kinds, strict=True)]
        if not self._patch(shown, names):
            self.source.data = _columns(shown, names)
        self._shown = shown
        self._describe(matrix, limits, names)

    def select(self, index: int | None) -> None:
        """Outline a row, or none; nobody is told."""
        self._chosen = index
        there = index is not None and 0 <= index < len(self._names)
        top, bottom = (index - 0.5, index + 0.5) if there and index is not None else (0.0, 0.0)
        for outline in self._outlines:
            outline.update(top=top, bottom=bottom, visible=there)

    def on_select(self, callback: Callable[[int], None]) -> None:
        """Have ``callback(index)`` called whenever a row is clicked, once it is outlined."""
        self._heard.append(callback)

    def _draw(self, axis: StepAxis, links: bool) -> None:
        plot = self.plot
        plot.ygrid.visible = False
        plot.background_fill_color = PALE
        self._mapper = mapper = LinearColorMapper(
            palette=_palette("share"), low=1, high=TOP, low_color=CLEAR, high_color=ORANGE
        )
        cells = Image(image="image", x="x", y="bottom", dw="dw", dh=0.92, color_mapper=mapper)
        image = plot.add_glyph(self.source, cells, level="image")
        self._hover = HoverTool(renderers=[image], tooltips=[])
        plot.add_tools(self._hover)
        axis.mark_epochs(plot, SILVER)
        self._ticker = FixedTicker()
        plot.yaxis.ticker = self._ticker
        plot.yaxis.major_label_policy = NoOverlap()
        plot.yaxis.major_tick_line_color = None  # of hundreds of rows they are a black bar
        # A line with a rim of the other brightness: seen on every colour and beside them.
        self._outlines = [
            BoxAnnotation(
                fill_color=None, line_color=color, line_width=width, line_alpha=1, visible=False
            )
            for color, width in ((CARD, 6), (INK, 2.5))
        ]
        for outline in self._outlines:
            plot.add_layout(outline)
        self._bar_ticks = FixedTicker()
        self._bar = ColorBar(color_mapper=mapper, ticker=self._bar_ticks, width=12, padding=6)
        plot.add_layout(self._bar, "right")
        if links:
            self._link_rows()
        else:
            plot.on_event(Tap, self._tapped)  # pyright: ignore[reportArgumentType]

    def _link_rows(self) -> None:
        unseen = HBar(y="middle", left="x", right="right", height=1, fill_alpha=0, line_alpha=0)
        rows = self.plot.add_glyph(
            self.source, unseen, selection_glyph=unseen.clone(), nonselection_glyph=unseen.clone()
        )
        lead = OpenURL(url="#layer-@index", same_tab=True)
        self.plot.add_tools(TapTool(renderers=[rows], callback=lead))

    def _tapped(self, event: Tap) -> None:
        if event.y is None:
            return
        index = round(float(event.y))
        if 0 <= index < len(self._names):
            self.select(index)
            for callback in self._heard:
                callback(index)

    def _patch(self, new: _Shown, names: Sequence[str]) -> bool:
        """Send only the cells that changed; False if that is not possible or no gain."""
        old = self._shown
        if (new.grid, new.limits) != (old.grid, old.limits) or names != self.source.data["name"]:
            return False
        same = (new.values == old.values) | (np.isnan(new.values) & np.isnan(old.values))
        changed = np.flatnonzero(((new.levels != old.levels) | ~same).any(axis=0))
        if not len(changed):
            return True
        low, high = int(changed[0]), int(changed[-1]) + 1
        if high - low > _MOST_PATCHED:
            return False
        part = slice(low, high)
        patches = {
            name: [((i, slice(0, 1), part), row[part]) for i, row in enumerate(cells)]
            for name, cells in (("image", new.levels), ("value", new.values))
        }
        self.source.patch(patches)
        return True

    def _describe(self, matrix: Matrix, limits: Limits, names: Sequence[str]) -> None:
        """Title, names of the rows, colour bar and tooltips, each only if it changed."""
        n, width = len(names), self._shown.grid.width
        if names != self._names:
            self._names = names
            self._rows.update(start=max(n, 1) - 0.5, end=-0.5)
            labels = map(harmless, short_names(matrix.names, self._length))
            relabel(self.plot.yaxis, self._ticker, dict(enumerate(labels)))
            self.select(self._chosen)
        said = (matrix.label, matrix.unit, matrix.scale, limits, width)
        if said != self._said:
            self._said = said
            unit = f" ({matrix.unit})" if matrix.unit else ""
            retitle(self.plot, f"{self._word}: {matrix.label}{unit}")
            self._mapper.palette = _palette(matrix.scale)
            relabel(self._bar, self._bar_ticks, limits.ticks())
            printed = {} if matrix.scale == "share" else {"@value": "printf"}
            self._hover.update(tooltips=_tooltips(matrix, width), formatters=printed)
        nothing = not (np.isfinite(matrix.values).any() or matrix.bad.any())
        self.message.say(_sentence(matrix.missing) if nothing else "")


_MOST_PATCHED = 40
"""Cells of each row; more of them are sent as whole arrays, which costs less than so many words."""


@dataclass(frozen=True)
class _Shown:
    """What the browser has been sent: (L, cells) levels and numbers."""

    grid: Grid
    limits: Limits
    levels: Levels
    values: NDArray[np.float32]


def _no_cells(n_layers: int, width: int) -> tuple[Levels, NDArray[np.float32]]:
    shape = (n_layers, width)
    return np.full(shape, NONE, np.uint8), np.full(shape, np.nan, np.float32)


def _columns(shown: _Shown, names: Sequence[str]) -> dict[str, Any]:
    n, grid, width = len(names), shown.grid, shown.grid.n_cells
    positions = np.arange(n)
    left = grid.first - 0.5
    return {
        "image": [row[None] for row in shown.levels],
        "value": [row[None] for row in shown.values],
        "x": np.full(n, left),
        "dw": np.full(n, float(max(width, 1) * grid.width)),
        "right": np.full(n, left + width * grid.width),
        "bottom": positions - 0.46,
        "middle": positions,
        "index": positions,
        "name": list(names),
    }


def _palette(scale: Scale) -> list[str]:
    if scale == "signed":
        return list(interp_palette(PRGn11, TOP))
    return list(cividis(TOP) if scale == "share" else viridis(TOP))


def _tooltips(matrix: Matrix, width: int) -> list[tuple[str, str]]:
    number = "0.0 %" if matrix.scale == "share" else "%.3g"
    tips = [("layer", "@name"), ("batch", "$x{0,0}"), (matrix.label, f"@value{{{number}}}")]
    if width > 1:
        tips.append(("", f"{'largest' if matrix.peaks else 'mean'} of {width:,} batches"))
    return tips


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
