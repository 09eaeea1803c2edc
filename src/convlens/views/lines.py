"""Lines that are built once and drawn anew whenever a run has grown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.events import DoubleTap
from bokeh.layouts import column
from bokeh.models import (
    Column,
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
from bokeh.models.glyph import Glyph
from bokeh.plotting import figure
from numpy.typing import NDArray

from convlens.core.buckets import Flags, Floats, Ints
from convlens.plots.canvas import FEW, NONFINITE_LABEL, ORANGE
from convlens.views.canvas import FONT, INK, SOFT, StepAxis, match

MARGIN = 92
"""Pixels on the right of figures that stand above one another, for legends and colour bars."""

ROOM = 0.06
"""Share of the height that an axis reaches beyond what is drawn, above and below."""


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        name: what it is, for whoever points at it.
        x: (K,) steps.
        y: (K,) values; a gap where they are not finite.
    """

    name: str
    x: Ints | Floats
    y: Floats | NDArray[np.float32]


class Drawn:
    """One kind of glyph with its data, in one or several figures.

    It is added to them when there is something to draw, or a legend needs it: a page of a dozen
    figures has hundreds of models, each of which is made by the session, sent, and made once more
    by the browser.

    Args:
        glyph: makes it.
        columns: names of its data's columns.
        range_name: the y range it belongs to.
        hover: properties of the tooltip, None for none.
        name: of the source of its data, by which the page's script finds it.
    """

    def __init__(
        self,
        glyph: Callable[[], Glyph],
        columns: Sequence[str],
        *,
        range_name: str = "default",
        hover: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        self._make, self._range_name, self._hover, self._name = glyph, range_name, hover, name
        self._first: Mapping[str, Any] = {name: [] for name in columns}
        self._made: tuple[ColumnDataSource, Glyph] | None = None
        self._renderers: dict[figure, GlyphRenderer[Any] | None] = {}

    def join(self, plot: figure) -> None:
        """Draw the same in another figure too."""
        self._renderers[plot] = None
        if self._made is not None:
            self.renderer(plot)

    def renderer(self, plot: figure) -> GlyphRenderer[Any]:
        """What draws it in one of the figures, for its legend."""
        if self._made is None:
            self._made = ColumnDataSource(dict(self._first), name=self._name), self._make()
        drawn = self._renderers[plot]
        if drawn is None:
            source, glyph = self._made
            drawn = plot.add_glyph(source, glyph, y_range_name=self._range_name)
            match(drawn, plot)
            self._renderers[plot] = drawn
            if self._hover is not None:
                plot.add_tools(HoverTool(renderers=[drawn], **self._hover))
        return drawn

    def put(self, data: Mapping[str, Any]) -> None:
        """Draw these data."""
        if self._made is None:
            self._first = data
        else:
            put(self._made[0], data)
        if any(len(column) for column in data.values()):
            for plot in self._renderers:
                self.renderer(plot)

    @property
    def data(self) -> Mapping[str, Any]:
        """What is drawn."""
        return self._first if self._made is None else self._made[0].data


class Lines:
    """The lines of one colour in one or several figures; where points are few they are dots too.

    Args:
        plots: the figures, which show the same; `join` adds others.
        color: of the lines.
        width: in pixels.
        dashed: whether they are dashed.
        alpha: their opacity.
        number: how a value is written, as Bokeh's tooltips write numbers; None says nothing.
        dots: whether the points are always seen, which else are seen where they are few.
        range_name: the y range they belong to.
        tip: on which side of a point its value stands, as of several lines in one figure they must
            not lie on each other: one that Bokeh's tooltips know.
        name: of the source of the lines, by which the page's script finds it.
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
        name: str | None = None,
    ) -> None:
        line: dict[str, Any] = {"line_color": color, "line_width": width, "line_alpha": alpha}
        point: dict[str, Any] = {"fill_color": color, "fill_alpha": alpha, "line_color": None}
        line["line_dash"] = [6, 4] if dashed else []
        hover = None
        if number is not None:
            # In a label Bokeh would show the placeholder itself.
            tips = [("batch", "$snap_x{0,0}"), ("", f"@name: $snap_y{{{number}}}")]
            hover = {"tooltips": tips, "mode": "vline", "attachment": tip}
        self._dots = dots
        self._lines = Drawn(
            lambda: MultiLine(xs="xs", ys="ys", **line),
            ("xs", "ys", "name"),
            range_name=range_name,
            hover=hover,
            name=name,
        )
        self._points = Drawn(
            lambda: Scatter(x="x", y="y", size=5, **point), ("x", "y"), range_name=range_name
        )
        for plot in plots:
            self.join(plot)

    @property
    def lines(self) -> Mapping[str, Any]:
        """What is drawn: ``xs``, ``ys`` and ``name`` of each line."""
        return self._lines.data

    @property
    def points(self) -> Mapping[str, Any]:
        """The dots: ``x`` and ``y``."""
        return self._points.data

    def join(self, plot: figure) -> None:
        """Draw the same in another figure too."""
        self._lines.join(plot)
        self._points.join(plot)

    def renderer(self, plot: figure) -> GlyphRenderer[Any]:
        """What draws the lines in one of the figures, for its legend."""
        return self._lines.renderer(plot)

    def draw(self, series: Sequence[Curve]) -> None:
        """Show these instead of whatever was shown."""
        xs = [one.x.astype(np.float32) for one in series]
        with np.errstate(over="ignore"):  # what float32 cannot hold is drawn as a gap
            ys = [one.y.astype(np.float32) for one in series]
        self._lines.put({"xs": xs, "ys": ys, "name": [one.name for one in series]})
        if self._dots is False:
            return
        few = [i for i, y in enumerate(ys) if self._dotted(y)]
        none = np.zeros(0, np.float32)
        x = np.concatenate([none, *(xs[i] for i in few)])
        y = np.concatenate([none, *(ys[i] for i in few)])
        self._points.put({"x": x, "y": y})

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
        strip: dict[str, Any] = {"fill_color": ORANGE, "fill_alpha": 0.35, "line_color": None}
        self.drawn = Drawn(
            lambda: VStrip(x0="left", x1="right", **strip),
            ("left", "right"),
            hover={"tooltips": [("batch", "$x{0,0}"), ("here", word)]},
        )
        for plot in plots:
            self.join(plot)

    def join(self, plot: figure) -> None:
        """Mark the same in another figure too."""
        self.drawn.join(plot)

    def draw(self, first: Ints, last: Ints, bad: Flags) -> None:
        """Mark the columns that are bad; neighbours become one strip."""
        begins = np.flatnonzero(bad & ~np.append(False, bad[:-1]))
        ends = np.flatnonzero(bad & ~np.append(bad[1:], False))
        self.drawn.put({"left": first[begins] - 0.5, "right": last[ends] + 0.5})


class Message:
    """A sentence inside a figure that has nothing to show."""

    def __init__(self, plot: figure) -> None:
        # In place from the start: what is put around a figure later is not always drawn by Bokeh.
        self._label = Label(x=10, y=10, x_units="screen", y_units="screen", text_color=SOFT)
        self._label.update(text="", text_font=FONT, text_font_size="13px", visible=False)
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
        self._spanned: NDArray[np.floating] = np.zeros(0)
        self._ends = (0.1 if log else 0.0, 1.0)
        self.range = Range1d(start=self._ends[0], end=self._ends[1])

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
        self._spanned = seen = self._drawn(values)
        low, high = reach if reach and len(seen) else self._limits(seen)
        if self._log:
            ratio = max(high / low, 1.5)
            start, end = low / ratio**ROOM, high * ratio**ROOM
        else:
            start, end = low - ROOM * (high - low), high + ROOM * (high - low)
        if ends is not None:
            start, end = max(start, ends[0]), min(end, ends[1])
        if (start, end) != self._ends:
            self._ends = start, end
            self.range.update(start=start, end=end)
        return bool(len(seen))

    def extend(self, values: NDArray[np.floating]) -> None:
        """Show these too."""
        if not self.spans(values):
            self.fit(np.concatenate([self._spanned, self._drawn(values)]))

    def spans(self, values: NDArray[np.floating]) -> bool:
        """Whether these lie within the axis, which was brought to some values before."""
        seen = self._drawn(values)
        start, end = self._ends
        return len(self._spanned) > 0 and not ((seen < start) | (seen > end)).any()

    def _drawn(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        return values[np.isfinite(values) & ((values > 0) | (not self._log))]

    def _limits(self, seen: NDArray[np.floating]) -> tuple[float, float]:
        """The lowest and the highest value; something around it if there is one alone."""
        if not len(seen):
            return (0.1, 1.0) if self._log else (0.0, 1.0)
        low, high = float(seen.min()), float(seen.max())
        least = 0.1 * max(abs(low), abs(high)) or 1.0
        if not self._log and high - low < least:
            return (low + high - least) / 2, (low + high + least) / 2
        return low, high


class LossScales:
    """A figure of losses, whose axis is linear or logarithmic.

    A figure of Bokeh's cannot change its axis: there is one of each, made when it is first wanted.

    Args:
        axis: the time axis.
        height: in pixels.
        fill: adds what is drawn to a figure that was made.

    Attributes:
        root: what to lay out.
        log: whether the axis that is seen is logarithmic.
    """

    def __init__(self, axis: StepAxis, height: int, fill: Callable[[figure], None]) -> None:
        self._axis, self._height, self._fill = axis, height, fill
        self._plots: dict[bool, figure] = {}
        self._ranges = {log: ValueRange(log=log) for log in (False, True)}
        self._messages: dict[bool, Message] = {}
        self._words = ""
        self.root: Column = column(sizing_mode="stretch_width")
        self.log = False

    def plot(self, log: bool) -> figure:
        """The figure with this axis."""
        if log not in self._plots:
            title = "Loss (log scale)" if log else "Loss"
            plot = self._axis.figure(
                title, "loss", self._height, self._ranges[log].range, log=log, say_steps=False
            )
            self._plots[log] = plot
            plot.on_event(DoubleTap, lambda: self._axis.follow(True))
            self._fill(plot)
            self._messages[log] = Message(plot)
            self.say(self._words)
            plot.visible = False
            match(plot, self.root)
            self.root.children = [*self.root.children, plot]
        return self._plots[log]

    def show(self, log: bool) -> None:
        """Have this axis seen."""
        self.log = log
        self.plot(log).visible = True
        if (not log) in self._plots:
            self._plots[not log].visible = False

    def fit(self, values: NDArray[np.floating]) -> None:
        """Let the axis span these."""
        for reach in self._ranges.values():
            reach.fit(values)

    def extend(self, values: NDArray[np.floating]) -> None:
        """Let the axis span these too."""
        for reach in self._ranges.values():
            reach.extend(values)

    def spans(self, values: NDArray[np.floating]) -> bool:
        """Whether the axes that there are span these already."""
        return all(self._ranges[log].spans(values) for log in self._plots)

    @property
    def text(self) -> str:
        """What is said in the figure that is seen, empty if nothing."""
        return self._messages[self.log].text if self.log in self._messages else ""

    def say(self, words: str) -> None:
        """Say this in the figure; nothing if it is empty."""
        self._words = words
        for message in self._messages.values():
            message.say(words)


def legend_beside(
    plot: figure, entries: Sequence[tuple[str, GlyphRenderer[Any]]]
) -> list[LegendItem]:
    """A legend in the margin on the right, where it covers nothing; its entries."""
    items = [LegendItem(label=word, renderers=[drawn], name=word) for word, drawn in entries]
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
