"""One layer over time in figures that are built once: another layer changes what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.events import DoubleTap
from bokeh.layouts import column, row
from bokeh.models import (
    BasicTicker,
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    Image,
    Legend,
    LegendItem,
    LinearColorMapper,
    LogTicker,
    NoOverlap,
    Quad,
    Range1d,
    UIElement,
)
from bokeh.palettes import viridis
from numpy.typing import NDArray

from convlens.core.buckets import Floats
from convlens.core.histories import LayerHistory, UpdateHistory
from convlens.core.records import Epoch
from convlens.plots.canvas import BLUE, GREEN, NONFINITE_LABEL, ORANGE, short_count
from convlens.runs.follower import BlockSeries
from convlens.views.canvas import MIN_WIDTH, PALE, StepAxis, relabel, retitle, short
from convlens.views.cells import QUANTILES, LayerCells, Prepared, prepare
from convlens.views.lines import MARGIN, Curve, Drawn, Lines, Message, ValueRange
from convlens.views.matrices import name_in_module
from convlens.views.timeline import EMPTY, Grid, Heat, heat_of

WHITE, CLEAR = "#ffffff", "rgba(0, 0, 0, 0)"

TIPS = ("above", "below", "horizontal")
"""Where the values of each colour's lines stand."""

SIDES = ("left", "right", "top", "bottom")

CHOOSE = "Choose a layer: click a row of the matrix."
NO_COLUMNS = "Nothing of this layer was recorded: it took part in no batch yet."
NO_CHANNELS = "This layer has no channels."
NO_GRADIENTS = (
    "Gradients were not recorded: use\ncl.GradientStats() or\ncl.watch(…, gradients=True)."
)
NO_UPDATES = "Updates were not recorded: use\ncl.UpdateStats() or\ncl.watch(…, updates=True)."
NO_PARAMETERS = "This layer has no parameters\nof its own."
ALL_BAD = "Every value is NaN or infinite."


class HeatFigure:
    """The histogram of every batch as one coloured column, with quantile lines over it.

    Args:
        axis: the time axis.
        height: in pixels.
        counts: whether count and range are known where one points, which costs twelve
            bytes for each cell of the image; else only the place is.
    """

    def __init__(self, axis: StepAxis, height: int, *, counts: bool = True) -> None:
        self._counts = counts
        self._values = Range1d(start=-1.0, end=1.0)
        self.plot = plot = axis.figure("Activations", "activation", height, self._values)
        plot.ygrid.visible = False
        plot.background_fill_color = PALE
        palette = viridis(EMPTY)
        self._mapper = LinearColorMapper(palette=palette, low=0, high=EMPTY - 1, high_color=CLEAR)
        self.source = ColumnDataSource(_no_image(counts))
        cells = Image(image="image", x="x", y="y", dw="dw", dh="dh", color_mapper=self._mapper)
        image = plot.add_glyph(self.source, cells, level="image")
        self._hover = HoverTool(renderers=[image], tooltips=_tips(counts, 1))
        plot.add_tools(self._hover)
        style: Any = {"number": None, "dots": False}
        self.quantiles = [
            Lines([plot], WHITE, 2.0, alpha=0.95, **style),
            Lines([plot], WHITE, 1.2, alpha=0.8, **style),
            Lines([plot], WHITE, 1.0, alpha=0.8, dashed=True, **style),
        ]
        axis.mark_epochs(plot, WHITE)
        self._bad = Drawn(
            lambda: Quad(
                left="left",
                right="right",
                top="top",
                bottom="bottom",
                fill_color=ORANGE,
                line_color=None,
            ),
            SIDES,
            hover={"tooltips": [("batch", "$x{0,0}"), ("here", NONFINITE_LABEL)]},
        )
        self._bad.join(plot)
        self._ticks = FixedTicker()
        self._bar = ColorBar(
            color_mapper=self._mapper, ticker=self._ticks, title="values per bin (log scale)"
        )
        self._bar.update(width=14)
        plot.add_layout(self._bar, "right")
        self.message = Message(plot)
        self._grid: Grid | None = None
        self._range = (np.nan, np.nan)

    def update(self, history: LayerHistory, grid: Grid, title: str) -> None:
        """Show a condensed history on these cells."""
        self._show(history, grid, heat_of(history, grid))
        self._draw_quantiles(history.middle_step, history.quantiles(QUANTILES))
        self._describe(grid, title)
        self.message.say("" if len(history) else NO_COLUMNS)

    def draw(self, cells: LayerCells, since: int, title: str) -> None:
        """Show a layer that has been worked out; cells before ``since`` are shown already."""
        history, grid, heat = cells.history, cells.grid, cells.heat
        if since and (grid, (heat.low, heat.high)) == (self._grid, self._range):
            self._patch(history, grid, heat, since)
        else:
            self._show(history, grid, heat)
        known = history.columns.n_finite.any()
        self._draw_quantiles(history.middle_step, cells.quantiles if known else [])
        self._describe(grid, title)
        self.message.say("" if len(history) else NO_COLUMNS)

    def _show(self, history: LayerHistory, grid: Grid, heat: Heat) -> None:
        """All cells, sent whole."""
        data: dict[str, object] = {
            "image": [heat.cells.copy()],  # what is shown is brought up to date in place
            "x": [grid.first - 0.5],
            "y": [heat.low],
            "dw": [float(grid.n_cells * grid.width)],
            "dh": [heat.high - heat.low],
        }
        if self._counts:
            data |= self._cells_for_hover(grid, heat)
        self.source.data.update(data)
        self._values.update(start=heat.low, end=heat.high)
        self._say_counts(history, grid, heat)

    def _patch(self, history: LayerHistory, grid: Grid, heat: Heat, since: int) -> None:
        """The cells from one on, sent alone."""
        part = slice(since, int(grid.cells(history)[-1]) + 1)
        if part.start >= part.stop:
            return
        where = (0, slice(0, len(heat.cells)), part)
        patches: dict[str, Any] = {"image": [(where, heat.cells[:, part].ravel())]}
        if self._counts:
            patches["count"] = [(where, heat.counts[:, part].ravel())]
        self.source.patch(patches)
        self._say_counts(history, grid, heat)

    def clear(self, sentence: str) -> None:
        """Show nothing but a sentence."""
        self.source.data = _no_image(self._counts)
        self._grid, self._range = None, (np.nan, np.nan)
        self._bad.put({side: [] for side in SIDES})
        for lines in self.quantiles:
            lines.draw([])
        retitle(self.plot, "Activations")
        self.message.say(sentence)

    @property
    def limits(self) -> tuple[float, float] | None:
        """The lowest and the highest value drawn, None if nothing is."""
        return None if self._grid is None else self._range

    def reach(self, low: float, high: float) -> None:
        """Let the value axis span these, so that two figures can be compared."""
        self._values.update(start=low, end=high)

    def _cells_for_hover(self, grid: Grid, heat: Heat) -> dict[str, list[NDArray[np.generic]]]:
        """What the tooltip says of each cell; what is as before is not sent again."""
        rows, shape = heat.cells.shape[0], heat.cells.shape
        found: dict[str, list[NDArray[np.generic]]] = {"count": [heat.counts.copy()]}
        if (heat.low, heat.high) != self._range or grid != self._grid:
            edges = np.linspace(heat.low, heat.high, rows + 1)
            low, high = edges[:-1, None].astype(np.float32), edges[1:, None].astype(np.float32)
            found |= {"low": [_filled(low, shape)], "high": [_filled(high, shape)]}
        return found

    def _draw_quantiles(self, x: Floats, values: Sequence[Floats] | Floats) -> None:
        pairs = zip(QUANTILES, values, strict=False)
        lines = [Curve(f"{q:.0%}", x, y) for q, y in pairs if np.isfinite(y).any()]
        median, quarters, tails = self.quantiles
        median.draw(lines[2:3])
        quarters.draw([*lines[1:2], *lines[3:4]])
        tails.draw([*lines[:1], *lines[4:]])

    def _draw_bad(self, history: LayerHistory, grid: Grid, heat: Heat) -> None:
        """An orange band along the top where values are NaN or infinite."""
        left = grid.first - 0.5 + grid.cells(history)[history.nonfinite > 0] * grid.width
        bottom = heat.high - 0.04 * (heat.high - heat.low)
        top, low = np.full(len(left), heat.high), np.full(len(left), bottom)
        self._bad.put({"left": left, "right": left + grid.width, "top": top, "bottom": low})

    def _say_counts(self, history: LayerHistory, grid: Grid, heat: Heat) -> None:
        """The colour bar, and what is not among the colours."""
        self._draw_bad(history, grid, heat)
        label = "activation"
        if heat.outside > 0.0005:
            label = f"activation ({100 * heat.outside:.1f} % lie outside)"
        self.plot.yaxis.axis_label = label
        relabel(self._bar, self._ticks, _count_ticks(heat.peak))
        self._range = heat.low, heat.high

    def _describe(self, grid: Grid, title: str) -> None:
        retitle(self.plot, title)
        if self._grid is None or grid.width != self._grid.width:
            self._hover.tooltips = _tips(self._counts, grid.width)
        self._grid = grid


@dataclass(frozen=True)
class LayerHeights:
    """Pixels of a layer's figures."""

    heat: int = 300
    stats: int = 125


class LayerView:
    """The chosen layer: its histograms, and below them what else was recorded of it.

    `root` is what to lay out. A double click in any figure shows all steps again.

    Args:
        axis: the time axis, which other figures of the document may share.
        heights: of the figures.
    """

    def __init__(self, axis: StepAxis, heights: LayerHeights = LayerHeights()) -> None:
        self.axis = axis
        self.heat = HeatFigure(axis, heights.heat)
        self.heat.plot.update(min_border_right=MARGIN)
        height = heights.stats
        self.mean = StatFigure(axis, "Mean", height, colors=(BLUE,))
        self.std = StatFigure(axis, "Standard deviation", height, colors=(BLUE,))
        self.near_zero = StatFigure(axis, "% near zero", height)
        self.channels = StatFigure(axis, "Dead, silent channels", height, colors=(BLUE, GREEN))
        self.gradients = StatFigure(axis, "Gradient size ‖g‖", height, log=True)
        self.updates = StatFigure(axis, "Update ratio ‖Δw‖ / ‖w‖", height, log=True)
        stats = [
            [self.mean, self.std],
            [self.near_zero, self.channels],
            [self.gradients, self.updates],
        ]
        rows = [row(*(s.plot for s in pair), sizing_mode="stretch_width") for pair in stats]
        self._cells: LayerCells | None = None
        self._prepared: Prepared | None = None
        self.root: UIElement = column(self.heat.plot, *rows, sizing_mode="stretch_width")
        for plot in (self.heat.plot, *(s.plot for pair in stats for s in pair)):
            plot.on_event(DoubleTap, lambda: axis.follow(True))
        self.show(None)

    def update(
        self,
        layer: LayerHistory | BlockSeries,
        gradients: Sequence[Curve] | None = None,
        updates: Sequence[Curve] | None = None,
        epochs: Sequence[Epoch] = (),
    ) -> None:
        """Show a layer as it is now, the same as before or another.

        The time axis is left to `RunView`, which knows the run's span, unless the layer reaches
        beyond it or ``epochs`` are given.

        Args:
            layer: its history; or what a follower keeps of it, of which only what has changed is
                worked out and sent.
            gradients: the sizes of its parameters' gradients, none if it has no parameters; None
                if the run has them of no layer.
            updates: the ratios of its parameters' updates; likewise.
            epochs: the finished epochs.
        """
        if epochs:
            self.axis.update(self._span(layer), epochs)
        prepared, self._prepared = self._prepared, None
        if prepared is None or not prepared.fits(layer, self._cells):
            prepared = prepare(layer, self._cells)
        self._cells = prepared.cells
        history = self._cells.history
        self.heat.draw(self._cells, prepared.since, _heat_title(history))
        self._draw_stats(history)
        self._draw_parameters(gradients, updates)

    def prepare(self, layer: BlockSeries, between: Callable[[], None]) -> None:
        """Work out what takes longest of an `update` by this layer, in whichever thread.

        The figures stay as they are, and may be changed meanwhile: what does not fit then is worked
        out by the update itself.

        Args:
            layer: what a follower keeps of it.
            between: called now and then, for a thread that has to wait for others.
        """
        self._prepared = prepare(layer, self._cells, between)

    def show(self, sentence: str | None = None) -> None:
        """Show no layer, and this sentence; None asks to choose one."""
        self._cells = self._prepared = None
        self.heat.clear(CHOOSE if sentence is None else sentence)
        for stat in (self.mean, self.std, self.near_zero, self.channels):
            stat.draw([], "")
        self.gradients.draw([], "")
        self.updates.draw([], "")

    def _span(self, layer: LayerHistory | BlockSeries) -> tuple[int, int]:
        low, high = self.axis.whole
        first, last = layer.first_step, layer.last_step
        if not len(first):
            return int(low + 0.5), int(high - 0.5)
        return int(min(low + 0.5, first[0])), int(max(high - 0.5, last[-1]))

    def _draw_stats(self, history: LayerHistory) -> None:
        draw_moments(self.mean, self.std, history)
        draw_near_zero(self.near_zero, history)
        draw_channels(self.channels, history)

    def _draw_parameters(
        self, gradients: Sequence[Curve] | None, updates: Sequence[Curve] | None
    ) -> None:
        missing = NO_GRADIENTS if gradients is None else NO_PARAMETERS
        self.gradients.draw(_by_slot(gradients or ()), missing)
        missing = NO_UPDATES if updates is None else NO_PARAMETERS
        self.updates.draw(_by_slot(updates or ()), missing)


class StatFigure:
    """A few lines over the steps in up to three colours, which a legend explains.

    Args:
        axis: the time axis.
        title: until another is given.
        height: in pixels.
        colors: at most three; the second one's lines are dashed.
        log: whether the y axis is logarithmic.
        say_steps: whether the time axis has its label.
    """

    def __init__(
        self,
        axis: StepAxis,
        title: str,
        height: int,
        *,
        colors: Sequence[str] = (BLUE, GREEN, ORANGE),
        log: bool = False,
        say_steps: bool = False,
    ) -> None:
        self._title = title
        self._range = ValueRange(log=log)
        self.plot = axis.figure(
            title, "", height, self._range.range, log=log, names=False, say_steps=say_steps
        )
        self.plot.update(min_border_left=58, min_border_right=10, min_width=MIN_WIDTH)
        ticker = LogTicker(desired_num_ticks=3) if log else BasicTicker(desired_num_ticks=4)
        self.plot.yaxis.ticker = ticker
        for one in (self.plot.xaxis, self.plot.yaxis):
            one.major_label_policy = NoOverlap()
        axis.mark_epochs(self.plot)
        self.slots = [
            Lines([self.plot], color, dashed=i == 1, tip=tip)
            for i, (color, tip) in enumerate(zip(colors, TIPS, strict=False))
        ]
        # What a legend of an open page is given later may stay undrawn, and all of it with that.
        self._items = [LegendItem(renderers=[slot.renderer(self.plot)]) for slot in self.slots]
        legend = Legend(items=list(self._items), orientation="horizontal", margin=2, spacing=10)
        legend.update(label_text_font_size="11px", glyph_width=14, glyph_height=12, padding=0)
        legend.location = "top_right"
        self.plot.add_layout(legend, "above")  # inside it would need free room in every axis
        self.message = Message(self.plot)

    def draw(
        self,
        groups: Sequence[Sequence[Curve]],
        nothing: str,
        title: str | None = None,
        reach: tuple[float, float] | None = None,
    ) -> None:
        """Show the lines of each colour.

        Args:
            groups: the lines of each colour.
            nothing: a sentence for where no value is finite.
            title: in place of the usual.
            reach: what the y axis spans; None for what is drawn.
        """
        padded = [list(groups[i]) if i < len(groups) else [] for i in range(len(self.slots))]
        for slot, lines in zip(self.slots, padded, strict=True):
            slot.draw(lines)
        self._explain(padded)
        values = np.concatenate([np.zeros(0), *(one.y for group in groups for one in group)])
        seen = self._range.fit(values, reach)
        retitle(self.plot, title or self._title)
        self.message.say("" if seen else nothing)

    def _explain(self, groups: Sequence[Sequence[Curve]]) -> None:
        """The legend, where there are several lines."""
        several = sum(map(len, groups)) > 1
        for item, lines in zip(self._items, groups, strict=True):
            name = f"{lines[0].name} …" if len(lines) > 1 else "".join(one.name for one in lines)
            item.update(label=value(name), visible=several and bool(lines))


def draw_moments(mean: StatFigure, std: StatFigure, history: LayerHistory) -> None:
    """A layer's mean and standard deviation, each in its figure."""
    mean.draw([_series(history, "mean", history.mean)], ALL_BAD)
    std.draw([_series(history, "standard deviation", history.std)], ALL_BAD)


def draw_near_zero(stat: StatFigure, history: LayerHistory) -> None:
    """A layer's percentage near zero, that after its ReLU if it has one, and that of zeros."""
    after = _series(history, "after ReLU", 100.0 * history.near_zero_after_relu)
    lines = [
        _series(history, "output", 100.0 * history.near_zero),
        after if history.layer.feeds_relu else [],
        _series(history, "exactly 0", 100.0 * history.zeros),
    ]
    stat.draw(lines, ALL_BAD, f"% near zero (|x| ≤ {history.eps:g})", reach=(0.0, 100.0))


def draw_channels(stat: StatFigure, history: LayerHistory) -> None:
    """How many of a layer's channels are dead, where a ReLU follows, and how many silent."""
    n, feeds_relu = history.channels, history.layer.feeds_relu
    if not n:
        stat.draw([], NO_CHANNELS)
        return
    dead = _series(history, "dead", history.dead_channels) if feeds_relu else []
    silent = _series(history, "silent", history.silent_channels)
    title = f"{'Dead, silent' if feeds_relu else 'Silent'} channels of {n:,}"
    stat.draw([dead, silent], NO_COLUMNS, title, reach=(0.0, float(n)))


def draw_gradients(stat: StatFigure, gradients: Sequence[LayerHistory] | None) -> None:
    """The sizes of the gradients of a layer's parameters; None if the run has none of any layer."""
    sizes = [
        Curve(short(name_in_module(g.layer.name), 20), g.middle_step, g.norm)
        for g in gradients or ()
    ]
    stat.draw(_by_slot(sizes), NO_GRADIENTS if gradients is None else NO_PARAMETERS)


def draw_updates(stat: StatFigure, updates: Sequence[UpdateHistory] | None) -> None:
    """The update ratios of a layer's parameters; None if the run has none of any layer."""
    ratios = [
        Curve(short(name_in_module(u.update.layer.name), 20), u.update.middle_step, u.ratio)
        for u in updates or ()
    ]
    stat.draw(_by_slot(ratios), NO_UPDATES if updates is None else NO_PARAMETERS)


def _series(history: LayerHistory, word: str, values: Floats | NDArray[np.int64]) -> list[Curve]:
    return [Curve(word, history.middle_step, values.astype(np.float64))]


def _heat_title(history: LayerHistory) -> str:
    info = history.layer
    return f"{short(info.name or info.kind, 16)}: activations, quantiles 1, 25, 50, 75, 99 %"


def _count_ticks(peak: float) -> dict[float, str]:
    counts = [0, *(10**power for power in range(int(np.log10(peak)) + 1))]
    levels = [float(np.log1p(count) / np.log1p(peak) * (EMPTY - 1)) for count in counts]
    return dict(zip(levels, (short_count(count) for count in counts), strict=True))


def _tips(counts: bool, width: int) -> list[tuple[str, str]]:
    if not counts:
        return [("batch", "$x{0}"), ("activation", "$y{0.000}")]
    word = "values" if width == 1 else f"values, mean of {width:,} batches"
    values = ("activation", "@low{0.0000} to @high{0.0000}")
    return [("batch", "$x{0,0}"), values, (word, "@count{0,0}")]


def _no_image(counts: bool) -> dict[str, list[NDArray[np.generic]]]:
    names = ["image", "x", "y", "dw", "dh"]
    if counts:
        names += ["count", "low", "high"]
    return {name: [] for name in names}


def _filled(part: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    return np.ascontiguousarray(np.broadcast_to(part, shape))


def _by_slot(series: Sequence[Curve]) -> list[list[Curve]]:
    """The first line in the first colour, the second in the next, and all others in the last."""
    return [list(series[:1]), list(series[1:2]), list(series[2:])]
