"""What all Bokeh figures share: colours, the time axis, lines, marks, embedding.

Nothing here uses Bokeh's callbacks in JavaScript, which need ``eval``; linked zoom, colours of a
dark page and growing runs are done by ``static/site.js``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import bokeh
import numpy as np
from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    CrosshairTool,
    DataRange1d,
    DataRenderer,
    FixedTicker,
    GlyphRenderer,
    HoverTool,
    Label,
    LinearAxis,
    Node,
    NoOverlap,
    Range,
    Range1d,
    Span,
    UIElement,
)
from bokeh.plotting import figure
from bokeh.themes import Theme
from numpy.typing import NDArray

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
from convlens.web.formatting import harmless

CARD = "#fefefe"
INK = "#23292f"
SOFT = "#59636f"
RULE = "#e3e7eb"
FRAME = "#b9c0c8"
PALE = "#eceff2"
CLEAR = "rgba(0, 0, 0, 0)"
ZERO = "#8a4fbf"
"""Marks a value that is exactly 0 where the axis is logarithmic."""
PROBLEM, WARNING = "#b4281a", "#a86400"
"""Marks sick layers."""

RUNS = (BLUE, ORANGE, GREEN, ZERO, "#b5487f", "#8f6a00", "#2596b0", "#6d7780")
"""Colours of runs in one figure."""

DARK: Mapping[str, str] = {
    CARD: "#161b20",
    INK: "#e4e9ee",
    SOFT: "#a3adb8",
    RULE: "#2a3138",
    FRAME: "#4a535d",
    PALE: "#272e35",
    BLUE: "#5ab4ec",
    ORANGE: "#f08a4b",
    GREEN: "#34c79d",
    ZERO: "#c79af0",
    PROBLEM: "#ff8a78",
    WARNING: "#e0b050",
    RUNS[4]: "#ee90bd",
    RUNS[5]: "#dcb84a",
    RUNS[6]: "#62d2e8",
    RUNS[7]: "#b4bfc9",
}
"""What each colour of a figure becomes on a dark page; ``site.js`` replaces them.

``CARD`` is what figures stand on, the same as in ``site.css``.
"""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"

STEPS = "steps"
"""Name of every time axis's range, by which ``site.js`` links them."""

LEFT, RIGHT = 104, 96
"""Pixels beside the frame of figures that stand above one another: names on the left, legends and
colour bars on the right."""

ROOM = 0.008
"""Share of the steps by which a time axis is longer on either side: a dot at its end is whole."""

SMALL = 160
"""Pixels of height below which a figure has few ticks."""

MIN_WIDTH = 260
"""Pixels below which a figure gets a line to itself."""

_TEXT = {"text_font": FONT, "text_font_size": "12px"}


def _named(prefix: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 — properties of Bokeh
    return {f"{prefix}_{name}": value for name, value in {**_TEXT, **more}.items()}


THEME = Theme(
    json={
        "attrs": {
            "Plot": {
                "background_fill_color": CARD,
                "border_fill_color": CARD,
                "outline_line_color": FRAME,
            },
            "Axis": {
                "axis_line_color": None,
                "major_tick_line_color": FRAME,
                "minor_tick_line_color": None,
                **_named("major_label", text_color=SOFT),
                **_named("axis_label", text_color=SOFT, text_font_style="normal"),
                "axis_label_standoff": 8,
            },
            "Grid": {"grid_line_color": RULE},
            "Title": {**_TEXT, "text_color": INK, "text_font_size": "14px"},
            "Legend": {
                "background_fill_alpha": 0.0,
                "border_line_color": None,
                **_named("label", text_color=INK),
                "padding": 4,
                "spacing": 0,
                "click_policy": "hide",
            },
            "BaseColorBar": {
                "background_fill_color": None,
                "major_tick_line_color": None,
                **_named("major_label", text_color=SOFT),
                **_named("title", text_color=SOFT, text_font_style="normal"),
            },
        }
    }
)


class StepAxis:
    """The time axis that the figures of one embedded item share.

    Args:
        span: first and last step of the run.
        epochs: the finished epochs.
        marked: a step to mark in every figure, None for none.
    """

    def __init__(
        self, span: tuple[int, int], epochs: Sequence[Epoch] = (), marked: int | None = None
    ) -> None:
        room = max(0.5, ROOM * (span[1] - span[0]))
        low, high = span[0] - room, span[1] + room
        self.range = Range1d(start=low, end=high, bounds=(low, high), min_interval=1, name=STEPS)
        self.epochs = epochs
        self._cursor = Span(dimension="height", line_color=SOFT, line_dash="dotted")
        self._marked = Span(
            dimension="height", line_color=INK, line_width=1.5, location=marked,
            visible=marked is not None,
        )  # fmt: skip

    def figure(
        self,
        title: str,
        label: str,
        height: int,
        *,
        y_range: Range | None = None,
        log: bool = False,
        epoch_names: bool = False,
        say_steps: bool = True,
    ) -> figure:
        """An empty figure over the steps: drag zooms in, the y axis fits to what is zoomed.

        Args:
            title: its title; texts of a run are safe here.
            label: what the y axis shows, with its unit.
            height: in pixels.
            y_range: what the y axis spans, None for whatever is drawn.
            log: whether the y axis is logarithmic.
            epoch_names: whether the epochs' numbers stand above.
            say_steps: whether the time axis has its label, which the lowest of a stack needs.
        """
        plot = figure(
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
            window_axis="x",
            min_border_left=64,
            min_border_right=16,
        )
        plot.add_tools(CrosshairTool(overlay=self._cursor))
        plot.xaxis.ticker.min_interval = 1  # pyright: ignore[reportAttributeAccessIssue]
        plot.xaxis.formatter.use_scientific = False  # pyright: ignore[reportAttributeAccessIssue]
        plot.yaxis.major_label_policy = NoOverlap()
        if height < SMALL and not log:
            plot.yaxis.ticker = BasicTicker(desired_num_ticks=4)
        plot.xgrid.visible = False
        plot.add_layout(self._marked)
        if epoch_names:
            self._name_epochs(plot)
        return plot

    def mark_epochs(self, plot: figure, color: str = FRAME) -> None:
        """A dashed line where each epoch ends: over images, under all else.

        On a higher level Bokeh would draw the lines outside the frame of a figure zoomed into.
        """
        few = len(self.epochs) <= MAX_EPOCH_LINES
        ticks = [epoch.last_step + 0.5 for epoch in self.epochs] if few else []
        (grid,) = plot.xgrid
        grid.update(ticker=FixedTicker(ticks=ticks), visible=True, level="underlay")
        grid.update(grid_line_color=color, grid_line_dash=[4, 4], grid_line_width=1)

    def _name_epochs(self, plot: figure) -> None:
        every = -(-len(self.epochs) // MAX_EPOCH_NAMES) or 1
        chosen = self.epochs[::every]
        middles = [(epoch.first_step + epoch.last_step) / 2 for epoch in chosen]
        names = [f"epoch {epoch.epoch + 1}" for epoch in chosen]
        axis = LinearAxis(
            major_tick_line_color=None, major_label_standoff=0, major_label_policy=NoOverlap(),
            major_label_overrides=dict(zip(middles, names, strict=True)),
        )  # fmt: skip
        # Bokeh's annotation is narrower than what the axis takes.
        axis.ticker = FixedTicker(ticks=middles)  # pyright: ignore[reportAttributeAccessIssue]
        plot.add_layout(axis, "above")


def stacked(plot: figure) -> figure:
    """Give a figure the borders of those that stand above one another, so that they align."""
    plot.update(min_border_left=LEFT, min_border_right=RIGHT)
    return plot


def float32(values: Ints | Floats | NDArray[np.floating]) -> NDArray[np.float32]:
    """Numbers as they are sent; what float32 cannot hold is drawn as a gap."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32)


def line(
    plot: figure,
    x: Ints | Floats,
    y: Floats | NDArray[np.floating],
    color: str = BLUE,
    width: float = 1.5,
    *,
    word: str = "",
    number: str = "",
    points: bool | None = None,
    dashed: bool = False,
    alpha: float = 1.0,
    legend: str | None = None,
    y_range_name: str = "default",
) -> GlyphRenderer[Any]:
    """A line over the steps; with points where they are few, as one alone would not be seen.

    Args:
        plot: where to draw it.
        x: (K,) steps.
        y: (K,) values; a gap where they are not finite.
        color: of the line.
        width: in pixels.
        word: what its values are, for the tooltip; empty for none.
        number: how a value is written there, in Bokeh's format.
        points: whether points are drawn, None where they are few.
        dashed: whether it is dashed.
        alpha: its opacity.
        legend: its words in the legend.
        y_range_name: the y range it belongs to.
    """
    data = {"x": float32(x), "y": float32(y)}
    source = ColumnDataSource(data)
    style: dict[str, Any] = {"color": color, "alpha": alpha, "y_range_name": y_range_name}
    if legend is not None:
        style["legend_label"] = legend
    dash = [6, 4] if dashed else []
    drawn = plot.line("x", "y", source=source, line_width=width, line_dash=dash, **style)
    few = bool(np.isfinite(data["y"]).sum() <= FEW) if points is None else points
    # Without dots, not with invisible ones: those would make the entry of the legend grey.
    dots = ColumnDataSource({name: column if few else column[:0] for name, column in data.items()})
    spots = plot.scatter("x", "y", source=dots, size=6, **style)
    for renderer in (drawn, spots):  # nothing is selected or muted: fewer models are sent
        renderer.update(nonselection_glyph="auto", muted_glyph="auto")
    if word:
        add_hover(plot, drawn, [(word, f"@y{{{number}}}" if number else "@y")])
    return drawn


def add_tips(
    plot: figure, drawn: GlyphRenderer[Any], values: Mapping[str, Sequence[str] | NDArray[Any]]
) -> None:
    """One tooltip for all that a figure shows at a step of a line: two would cover each other.

    Args:
        plot: the figure.
        drawn: the line that has a point at every step.
        values: (K,) numbers or texts by what they are.
    """
    source, tips = drawn.data_source, [("batch", "@x{0,0}")]
    assert isinstance(source, ColumnDataSource)
    for i, (word, column) in enumerate(values.items()):
        source.data[f"tip{i}"] = column
        written = f"@tip{i}{{0.[000000]}}" if isinstance(column, np.ndarray) else f"@tip{i}"
        tips.append((harmless(word), written))
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips, mode="vline"))


def add_hover(
    plot: figure,
    renderer: DataRenderer,
    tooltips: Sequence[tuple[str, str]],
    *,
    mode: str = "vline",
    **more: Any,  # noqa: ANN401 — properties of HoverTool
) -> None:
    """The batch, and these, under the pointer."""
    tips = [("batch", "$x{0,0}"), *tooltips]
    tool = HoverTool(renderers=[renderer], tooltips=tips, mode=mode, **more)  # pyright: ignore[reportArgumentType]
    plot.add_tools(tool)


def say(plot: figure, sentence: str) -> None:
    """Write a sentence in the middle of a figure that has nothing else to show; empty for none."""
    label = Label(
        x=0.5, y=0.5, x_units="screen", y_units="screen", text=harmless(sentence),
        visible=bool(sentence), text_color=SOFT, text_font=FONT, text_font_size="13px",
        text_align="center", text_baseline="middle",
    )  # fmt: skip
    label.x, label.y = Node.frame.center.clone(), Node.frame.center.clone()  # pyright: ignore[reportAttributeAccessIssue]
    plot.add_layout(label)


def spreads(low: Floats, high: Floats, finite: Ints, times: float = 300.0) -> bool:
    """Whether the highest value, so many times the median, would press all others flat.

    Only of positive values, of which there can be a logarithmic axis.
    """
    low, high = low[finite > 0], high[finite > 0]
    return bool(len(high) and (low > 0).all() and high.max() > times * np.median(high))


def embed(root: UIElement) -> str:
    """A figure or layout as JSON that may stand inside a script element."""
    # Of its own, else Bokeh copies from this process's current one, and fails where that is gone.
    document = Document(theme=THEME)
    document.add_root(root)
    # What `bokeh.embed.json_item` makes; that looks through all models several times more.
    item = {
        "target_id": None,
        "root_id": root.id,
        "doc": document.to_json(deferred=False),
        "version": bokeh.__version__,
    }
    return serialize_json(item).replace("<", "\\u003c")
