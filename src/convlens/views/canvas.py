"""What all Bokeh figures of a report share: colours, time axis, epoch marks, embedding.

Nothing here uses Bokeh's callbacks in JavaScript, which need ``eval``; linking is done by the
page's own script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.core.json_encoder import serialize_json
from bokeh.core.property.vectorization import Value
from bokeh.document import Document
from bokeh.embed import json_item
from bokeh.layouts import row
from bokeh.model import Model
from bokeh.models import (
    ColumnDataSource,
    CrosshairTool,
    DataRange1d,
    DataRenderer,
    FixedTicker,
    HoverTool,
    LayoutDOM,
    LinearAxis,
    NoOverlap,
    Range1d,
    Span,
    UIElement,
)
from bokeh.plotting import figure
from bokeh.themes import Theme

from convlens.core.buckets import Floats, Ints
from convlens.core.records import Epoch
from convlens.plots.canvas import (
    BLUE,
    FEW,
    GREEN,
    MAX_EPOCH_LINES,
    MAX_EPOCH_NAMES,
    ORANGE,
    STEP_LABEL,
)

CARD = "#fefefe"
INK = "#23292f"
SOFT = "#59636f"
RULE = "#e3e7eb"
FRAME = "#b9c0c8"
PALE = "#eceff2"

DARK = {
    CARD: "#161b20",
    INK: "#e4e9ee",
    SOFT: "#a3adb8",
    RULE: "#2a3138",
    FRAME: "#4a535d",
    PALE: "#272e35",
    BLUE: "#5ab4ec",
    ORANGE: "#f08a4b",
    GREEN: "#34c79d",
}
"""What each colour of a figure becomes on a dark page; the page's script replaces them.

``CARD`` is what figures stand on, the same as in report.css.
"""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"

MIN_WIDTH = 260
"""Pixels below which a figure says nothing; then it has a line to itself."""

STEPS = "steps"
"""Name of every figure's x range, by which the page's script links them."""

_LOOK: dict[str, Any] = {
    "attrs": {
        "Plot": {
            "background_fill_color": CARD,
            "border_fill_color": CARD,
            "outline_line_color": FRAME,
            "min_border_right": 16,
        },
        "Axis": {
            "axis_line_color": None,
            "major_tick_line_color": FRAME,
            "minor_tick_line_color": None,
            "major_label_text_color": SOFT,
            "major_label_text_font": FONT,
            "major_label_text_font_size": "12px",
            "axis_label_text_color": SOFT,
            "axis_label_text_font": FONT,
            "axis_label_text_font_size": "12px",
            "axis_label_text_font_style": "normal",
            "axis_label_standoff": 8,
        },
        "Grid": {"grid_line_color": RULE},
        "Title": {
            "text_color": INK,
            "text_font": FONT,
            "text_font_size": "14px",
            "text_font_style": "bold",
        },
        "Legend": {
            "background_fill_alpha": 0.0,
            "border_line_color": None,
            "label_text_color": INK,
            "label_text_font": FONT,
            "label_text_font_size": "12px",
            "padding": 4,
            "spacing": 0,
        },
        "BaseColorBar": {
            "background_fill_color": None,
            "major_label_text_color": SOFT,
            "major_label_text_font": FONT,
            "major_label_text_font_size": "12px",
            "major_tick_line_color": None,
            "title_text_color": SOFT,
            "title_text_font": FONT,
            "title_text_font_size": "12px",
            "title_text_font_style": "normal",
        },
    }
}

THEME = Theme(json=_LOOK)


def dark_theme() -> Theme:
    """The look of figures on a dark page: that of the light page in the colours of `DARK`."""
    attrs = {
        kind: {name: DARK.get(value, value) for name, value in look.items()}
        for kind, look in _LOOK["attrs"].items()
    }
    return Theme(json={"attrs": attrs})


def darken(root: Model) -> None:
    """Give a root and all models that it holds the colours of a dark page.

    What the page's script does to a report: each colour in `DARK` is replaced wherever a model has
    it. Colour maps and data stay. What a theme gives is given by `dark_theme`, and what is added
    later takes its colours by `match`.
    """
    for model in root.references():
        if isinstance(model, LayoutDOM):
            model.tags = ["dark"]
        changed: dict[str, Any] = {}
        for name, value in model.properties_with_values(include_defaults=False).items():
            color = value.value if isinstance(value, Value) else value
            if isinstance(color, str) and color in DARK:
                changed[name] = DARK[color]
        model.update(**changed)


def match(model: Model, place: Model) -> None:
    """Give what is added to a figure or a layout later the colours that it has by now."""
    if "dark" in place.tags:
        darken(model)


class StepAxis:
    """The time axis that the figures of one document or embedded item share.

    Figures keep their models: `update` moves the axis and its marks as a run grows.

    Args:
        span: first and last step of the run.
        epochs: the finished epochs.
    """

    def __init__(self, span: tuple[int, int], epochs: Sequence[Epoch] = ()) -> None:
        low, high = _edges(span)
        self.range = Range1d(start=low, end=high, bounds=(low, high), min_interval=1, name=STEPS)
        self.cursor = Span(dimension="height", line_color=SOFT, line_width=1, line_dash="dotted")
        self.marked = Span(dimension="height", line_color=INK, line_width=1.5, visible=False)
        self._ends = FixedTicker(ticks=_ends(epochs))
        self._ticker = FixedTicker()
        self._names: list[LinearAxis] = []
        self._whole = (low, high)
        self._following = True
        self.epochs = epochs

    @property
    def whole(self) -> tuple[float, float]:
        """Left and right edge of all steps."""
        return self._whole

    def figure(
        self,
        title: str,
        label: str,
        height: int,
        y_range: Range1d | None = None,
        *,
        log: bool = False,
        names: bool = True,
        say_steps: bool = True,
    ) -> figure:
        """An empty figure over the steps: drag zooms in, the cursor is that of its neighbours.

        Args:
            title: its title; texts of a run are safe here.
            label: what the y axis shows, with its unit.
            height: in pixels.
            y_range: what the y axis spans, None for whatever is drawn.
            log: whether the y axis is logarithmic.
            names: whether the epochs' numbers stand above.
            say_steps: whether the time axis has its label, which the lowest of a stack needs.
        """
        plot = figure(
            min_border_left=64,
            height=height,
            sizing_mode="stretch_width",
            x_range=self.range,
            tools="xbox_zoom",
            toolbar_location=None,
            title=harmless(title),
            x_axis_label=STEP_LABEL if say_steps else None,
            y_axis_label=harmless(label),
            y_range=y_range or DataRange1d(),
            y_axis_type="log" if log else "linear",
        )
        plot.add_tools(CrosshairTool(overlay=self.cursor))
        plot.xgrid.visible = False
        whole_numbers(plot)
        if names:
            self._name_epochs(plot)
        plot.add_layout(self.marked)
        return plot

    def mark_epochs(self, plot: figure, color: str = FRAME) -> None:
        """A dashed line where each epoch ends: over images, under all else.

        On a higher level Bokeh would draw the lines outside the frame of a figure zoomed into.
        """
        (grid,) = plot.xgrid
        grid.update(ticker=self._ends, visible=True, level="underlay")
        grid.update(grid_line_color=color, grid_line_dash=[4, 4], grid_line_width=1)

    def update(self, span: tuple[int, int], epochs: Sequence[Epoch]) -> None:
        """Follow a run that has grown; whoever has zoomed in keeps what they look at."""
        low, high = whole = _edges(span)
        if whole != self._whole:
            sees_all = (self.range.start, self.range.end) == self._whole
            self._whole = whole
            self.range.update(bounds=whole, reset_start=low, reset_end=high)
            if sees_all and self._following:
                self.range.update(start=low, end=high)
        known, self.epochs = self.epochs, epochs
        if epochs is not known and list(epochs) != list(known):
            self._ends.ticks = _ends(epochs)
            self._write_names()

    def follow(self, on: bool) -> None:
        """Whether all steps are shown from now on; not to follow keeps what is shown now."""
        self._following = on
        if on:
            self.range.update(start=self._whole[0], end=self._whole[1])

    def set_step(self, step: int | None) -> None:
        """Mark one step in all figures, or none."""
        self.marked.update(location=step, visible=step is not None)

    def _name_epochs(self, plot: figure) -> None:
        axis = LinearAxis(
            major_tick_line_color=None, major_label_standoff=0, major_label_policy=NoOverlap()
        )
        # Bokeh's annotation is narrower than what the axis takes.
        axis.ticker = self._ticker  # pyright: ignore[reportAttributeAccessIssue]
        self._names.append(axis)
        plot.add_layout(axis, "above")
        self._write_names()

    def _write_names(self) -> None:
        every = -(-len(self.epochs) // MAX_EPOCH_NAMES) or 1
        chosen = self.epochs[::every]
        middles = [(epoch.first_step + epoch.last_step) / 2 for epoch in chosen]
        names = [f"epoch {epoch.epoch + 1}" for epoch in chosen]
        self._ticker.ticks = middles
        for axis in self._names:
            axis.major_label_overrides = dict(zip(middles, names, strict=True))


def _edges(span: tuple[int, int]) -> tuple[float, float]:
    return span[0] - 0.5, span[1] + 0.5


def with_room(span: tuple[int, int]) -> tuple[int, int]:
    """A span of steps with room for a few more, of an eighth of it at most.

    So that the axis of a growing run moves seldom: whenever it does, every figure is drawn anew.
    """
    first, last = span
    unit = 1 << max((last - first + 1).bit_length() - 4, 0)
    return first, first - 1 + -(-(last - first + 1) // unit) * unit


def _ends(epochs: Sequence[Epoch]) -> list[float]:
    return [epoch.last_step + 0.5 for epoch in epochs] if len(epochs) <= MAX_EPOCH_LINES else []


def retitle(plot: figure, words: str) -> None:
    """Give a figure another title; texts of a run are safe here."""
    title: Any = plot.title
    title.text = harmless(words)


def relabel(labelled: Any, ticker: FixedTicker, labels: Mapping[Any, str]) -> None:  # noqa: ANN401
    """Give an axis or a colour bar other ticks, each with its words."""
    if ticker.ticks != list(labels) or labelled.major_label_overrides != labels:
        ticker.ticks = list(labels)
        labelled.major_label_overrides = dict(labels)


def harmless(words: str) -> str:
    """Text of a run that Bokeh does not take for a formula, whose fonts it would fetch.

    An invisible space parts the characters that open one.
    """
    for sign, bracket in (("$", "$"), ("\\", "["), ("\\", "(")):
        words = words.replace(sign + bracket, f"{sign}\u200b{bracket}")
    return words


def short(name: str, length: int = 26) -> str:
    """A long name without its middle: both ends tell layers apart."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def short_names(names: Sequence[str], length: int) -> list[str]:
    """Names of layers that fit: what all of them begin with says nothing, and goes first."""
    parts = [name.split(".") for name in names]
    shared = 0
    if len(names) > 1 and max(map(len, names)) > length:
        least = min(map(len, parts)) - 1
        while shared < least and len({part[shared] for part in parts}) == 1:
            shared += 1
    return [short(".".join(part[shared:]), length) for part in parts]


def whole_numbers(plot: figure) -> None:
    """Steps are whole: no ticks between them, none written as 1e5."""
    plot.xaxis.ticker.min_interval = 1  # pyright: ignore[reportAttributeAccessIssue]
    plot.xaxis.formatter.use_scientific = False  # pyright: ignore[reportAttributeAccessIssue]


def draw_line(
    plot: figure,
    x: Ints | Floats,
    y: Floats,
    color: str = BLUE,
    width: float = 1.5,
    *,
    points: bool | None = None,
    dashed: bool = False,
    alpha: float = 1.0,
    legend: str | None = None,
) -> DataRenderer:
    """A line over the steps; with points where they are few, as one alone would not be seen."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is drawn as a gap
        source = ColumnDataSource({"x": x.astype(np.float32), "y": y.astype(np.float32)})
    style: dict[str, Any] = {"color": color, "alpha": alpha}
    if legend is not None:
        style["legend_label"] = legend
    dash = [6, 4] if dashed else []
    line = plot.line("x", "y", source=source, line_width=width, line_dash=dash, **style)
    if np.isfinite(y).sum() <= FEW if points is None else points:
        plot.scatter("x", "y", source=source, size=6, **style)
    return line


def add_hover(plot: figure, renderer: DataRenderer, word: str, number: str) -> None:
    """Batch and value under the pointer."""
    tooltips = [("batch", "@x{0}"), (word, number)]
    plot.add_tools(HoverTool(renderers=[renderer], tooltips=tooltips, mode="vline"))


def side_by_side(plots: Sequence[figure]) -> UIElement:
    """Figures in a row, which breaks on a narrow page."""
    for plot in plots:
        plot.min_width = MIN_WIDTH
    return row(*plots, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"})


def embed(root: UIElement) -> str:
    """A figure or layout as JSON that may stand inside a script element."""
    # Of its own, else Bokeh copies from this process's current one, and fails where that is gone.
    document = Document(theme=THEME)
    document.add_root(root)
    return serialize_json(json_item(root)).replace("<", "\\u003c")
