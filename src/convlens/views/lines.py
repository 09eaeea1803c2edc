"""Lines that are built once and drawn anew whenever a run has grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    GlyphRenderer,
    HoverTool,
    Label,
    Legend,
    LegendItem,
    MultiLine,
    Range1d,
    Scatter,
    VStrip,
)
from bokeh.plotting import figure
from numpy.typing import NDArray

from convlens.plots.canvas import FEW, NONFINITE_LABEL, ORANGE
from convlens.sketch import Flags, Floats, Ints
from convlens.views.canvas import FONT, INK, SOFT

MARGIN = 92
"""Pixels on the right of figures that stand above one another, for legends and colour bars."""

ROOM = 0.06
"""Share of the height that an axis reaches beyond what is drawn, above and below."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: what it is, for whoever points at it.
        x: (K,) steps.
        y: (K,) values; a gap where they are not finite.
    """

    name: str
    x: Ints | Floats
    y: Floats | NDArray[np.float32]


class Lines:
    """The lines of one colour in one or several figures; where points are few they are dots too.

    Args:
        plots: the figures, which show the same.
        color: of the lines.
        width: in pixels.
        dashed: whether they are dashed.
        alpha: their opacity.
        number: how a value is written, as Bokeh's tooltips write numbers; None says nothing.
        dots: whether the points are always seen, which else are seen where they are few.
        range_name: the y range they belong to.
        tip: on which side of a point its value stands, as of several lines in one figure they must
            not lie on each other: one that Bokeh's tooltips know.
    """

    def __init__(
        self,
        plots: Sequence[figure],
        color: str,
        width: float = 1.5,
        *,
        dashed: bool = False,
        alpha: float = 1.0,
        number: str | None = "0.[0000]",
        dots: bool | None = None,
        range_name: str = "default",
        tip: str = "horizontal",
    ) -> None:
        self._source = ColumnDataSource({"xs": [], "ys": [], "name": []})
        self._points = ColumnDataSource({"x": [], "y": []})
        self._dots = dots
        self.renderers: list[GlyphRenderer[Any]] = []
        dash = [6, 4] if dashed else []
        line = MultiLine(
            xs="xs", ys="ys", line_color=color, line_width=width, line_alpha=alpha, line_dash=dash
        )
        point = Scatter(x="x", y="y", size=5, fill_color=color, line_color=None, fill_alpha=alpha)
        for plot in plots:
            drawn = plot.add_glyph(self._source, line, y_range_name=range_name)
            dotted = plot.add_glyph(self._points, point, y_range_name=range_name)
            self.renderers += [drawn, dotted]
            if number is not None:
                # In a label Bokeh would show the placeholder itself.
                tips = [("batch", "$snap_x{0,0}"), ("", f"@name: $snap_y{{{number}}}")]
                hover = HoverTool(renderers=[drawn], tooltips=tips, mode="vline")
                hover.update(attachment=tip)
                plot.add_tools(hover)

    def draw(self, series: Sequence[Series]) -> None:
        """Show these instead of whatever was shown."""
        xs = [one.x.astype(np.float32) for one in series]
        with np.errstate(over="ignore"):  # what float32 cannot hold is drawn as a gap
            ys = [one.y.astype(np.float32) for one in series]
        put(self._source, {"xs": xs, "ys": ys, "name": [one.name for one in series]})
        few = [i for i, y in enumerate(ys) if self._dotted(y)]
        none = np.zeros(0, np.float32)
        x = np.concatenate([none, *(xs[i] for i in few)])
        y = np.concatenate([none, *(ys[i] for i in few)])
        put(self._points, {"x": x, "y": y})

    def _dotted(self, y: NDArray[np.float32]) -> bool:
        return bool(np.isfinite(y).sum() <= FEW) if self._dots is None else self._dots


def put(source: ColumnDataSource, data: Mapping[str, Any]) -> None:
    """Give a source its data, unless it has them: what has not changed is not sent again."""
    old: Any = source.data
    if old.keys() != data.keys() or any(not _same(old[name], data[name]) for name in data):
        source.data = dict(data)


def _same(old: Sequence[Any], new: Sequence[Any]) -> bool:
    if len(old) != len(new):
        return False
    if isinstance(new, np.ndarray):
        return np.array_equal(np.asarray(old), new, equal_nan=True)
    return all(
        a == b if isinstance(b, str) else np.array_equal(a, b, equal_nan=True)
        for a, b in zip(old, new, strict=True)
    )


class Strips:
    """Stretches of steps with values that are NaN or infinite, as coloured strips."""

    def __init__(self, plots: Sequence[figure], word: str = NONFINITE_LABEL) -> None:
        self._source = ColumnDataSource({"left": [], "right": []})
        strip = VStrip(x0="left", x1="right", fill_color=ORANGE, fill_alpha=0.35, line_color=None)
        for plot in plots:
            drawn = plot.add_glyph(self._source, strip)
            tips = [("batch", "$x{0,0}"), ("here", word)]
            plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips))

    def draw(self, first: Ints, last: Ints, bad: Flags) -> None:
        """Mark the columns that are bad; neighbours become one strip."""
        begins = np.flatnonzero(bad & ~np.append(False, bad[:-1]))
        ends = np.flatnonzero(bad & ~np.append(bad[1:], False))
        put(self._source, {"left": first[begins] - 0.5, "right": last[ends] + 0.5})


class Message:
    """A sentence inside a figure that has nothing to show."""

    def __init__(self, plot: figure) -> None:
        self._label = Label(
            x=10,
            y=10,
            x_units="screen",
            y_units="screen",
            text="",
            text_color=SOFT,
            text_font=FONT,
            text_font_size="13px",
            visible=False,
        )
        plot.add_layout(self._label)

    @property
    def text(self) -> str:
        """What it says, empty if nothing."""
        return str(self._label.text) if self._label.visible else ""

    def say(self, text: str) -> None:
        """Say this; nothing if it is empty."""
        self._label.update(text=text, visible=bool(text))


class ValueRange:
    """A y range that is brought to what is drawn here, not by the browser.

    Bokeh's own range complains in the browser's console while nothing is drawn, and is ±1 around a
    constant, which is odd around a rate of 0.06.
    """

    def __init__(self, *, log: bool = False) -> None:
        self._log = log
        self.range = Range1d(start=0.1 if log else 0.0, end=1.0)

    def fit(
        self,
        values: NDArray[np.floating],
        reach: tuple[float, float] | None = None,
        ends: tuple[float, float] | None = None,
    ) -> bool:
        """Show all of the values that are finite, on a logarithmic axis all that are positive.

        Args:
            values: all that is drawn, of any shape.
            reach: from where to where, in place of the lowest and the highest.
            ends: which the axis does not go beyond, as there are no values there.

        Returns:
            Whether there is any such value.
        """
        seen = values[np.isfinite(values) & ((values > 0) | (not self._log))]
        low, high = reach if reach and len(seen) else self._limits(seen)
        if self._log:
            ratio = max(high / low, 1.5)
            start, end = low / ratio**ROOM, high * ratio**ROOM
        else:
            start, end = low - ROOM * (high - low), high + ROOM * (high - low)
        if ends is not None:
            start, end = max(start, ends[0]), min(end, ends[1])
        self.range.update(start=start, end=end)
        return bool(len(seen))

    def _limits(self, seen: NDArray[np.floating]) -> tuple[float, float]:
        """The lowest and the highest value; something around it if there is one alone."""
        if not len(seen):
            return (0.1, 1.0) if self._log else (0.0, 1.0)
        low, high = float(seen.min()), float(seen.max())
        least = 0.1 * max(abs(low), abs(high)) or 1.0
        if not self._log and high - low < least:
            return (low + high - least) / 2, (low + high + least) / 2
        return low, high


def legend_beside(
    plot: figure, entries: Sequence[tuple[str, Lines | GlyphRenderer[Any]]]
) -> list[LegendItem]:
    """A legend in the margin on the right, where it covers nothing; its entries."""
    items = [
        LegendItem(label=word, renderers=_of(plot, drawn), name=word) for word, drawn in entries
    ]
    legend = Legend(
        items=list(items),
        margin=4,
        glyph_width=14,
        glyph_height=14,
        label_standoff=4,
        label_text_font_size="11px",
        label_text_color=INK,
    )
    legend.update(padding=0)
    plot.add_layout(legend, "right")
    return items


def _of(plot: figure, drawn: Lines | GlyphRenderer[Any]) -> list[GlyphRenderer[Any]]:
    if isinstance(drawn, GlyphRenderer):
        return [drawn]
    return [one for one in drawn.renderers if one in plot.renderers]
