"""One layer over the steps: the histogram of every batch, and its statistics below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import bokeh.models as bk
import numpy as np
from bokeh.core.properties import value
from bokeh.layouts import column, row
from bokeh.palettes import viridis
from bokeh.plotting import figure
from numpy.typing import NDArray

from convlens.core.buckets import Flags, Floats, Ints, finite_edges, quantile_bounds
from convlens.core.columns import merge_runs
from convlens.core.histories import LayerHistory, LayerInfo, SeriesFigures
from convlens.plots.canvas import BLUE, FEW, GREEN, ORANGE
from convlens.plots.one_layer import TAIL
from convlens.web.figures.style import (
    CLEAR,
    INK,
    MIN_WIDTH,
    PALE,
    SOFT,
    ZERO,
    StepAxis,
    float32,
    say,
    spreads,
)
from convlens.web.formatting import harmless, short

if TYPE_CHECKING:
    from convlens.web.pages import Page
    from convlens.web.run_data import RunData

Item = tuple[str, "list[bk.GlyphRenderer[Any]]"]
Items = Sequence[Item]
"""Words of a legend, and what they stand for."""

HEAT, STAT = 340, 165
"""Heights in pixels."""

CELLS, REPORT_CELLS = 600, 120
"""Columns of colour at most, on the page and in a report, which has many layers."""

ROWS = 100
BAD = "NaN, ∞"
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
COLORS = (BLUE, GREEN, ORANGE, SOFT, INK)
"""Of a figure's lines; so many parameters are drawn."""

WHITE, NIGHT = "#ffffff", "#440154"
"""Lines over the colours of the histograms, and viridis's darkest to write on: not themed."""


@dataclass(frozen=True)
class Cells:
    """Cell i is the steps from ``first + i * width`` on, ``width`` of them."""

    first: int
    width: int
    n: int

    @classmethod
    def of(cls, history: LayerHistory, most: int, *, growing: bool) -> Cells:
        """Cells for a history; those of a growing run stay until there are twice as many steps."""
        first, end = int(history.first_step[0]), int(history.last_step[-1]) + 1
        gaps = np.diff(history.first_step)
        usual = max(1, int(np.median(gaps))) if len(gaps) else 1
        needed = usual * -(-(end - first) // (usual * most))
        width = 1 << (needed - 1).bit_length()
        return cls(first, width, most if growing else -(-(end - first) // width))

    def starts(self, first_step: Ints) -> tuple[Ints, Ints]:
        """The cells that columns begin in, and for each the first of its columns."""
        cells = (first_step - self.first) // self.width
        starts = np.flatnonzero(np.diff(cells, prepend=cells[:1] - 1))
        return cells[starts], starts


@dataclass(frozen=True)
class Stat:
    """What one small figure shows.

    Attributes:
        title: its title.
        x: (K,) steps.
        lines: (K,) values of each line by its name.
        bad: (K,) whether anything was NaN or infinite there.
        number: how a value is written, in Bokeh's format.
        top: of a y axis that begins at 0; None for what is drawn.
        log: whether the y axis is logarithmic.
        zero: what an exact 0 means there.
    """

    title: str
    x: Floats
    lines: Mapping[str, Floats]
    bad: Flags
    number: str = "0.0000"
    top: float | None = None
    log: bool = False
    zero: str = "exactly 0"


def layer(page: Page) -> bk.UIElement:
    """The chosen layer's histograms and statistics over one time axis."""
    run, name = page.run, page.view.layer
    axis = StepAxis(run.span, run.epochs, marked_step(page))
    history = run.history(name) if name in run.names else None
    if not history:
        plot = axis.figure("Activations", "", HEAT, y_range=bk.Range1d(start=0, end=1))
        say(plot, "Nothing of this layer was recorded.")
        return plot
    most = CELLS if page.live else REPORT_CELLS
    cells = Cells.of(history, most, growing=run.status == "running")
    merged = merge_runs(history.columns, cells.starts(history.first_step)[1])
    history = replace(history, columns=merged)
    stats = [*output_stats(history), *parameter_stats(run, name, cells)]
    plots = [stat_figure(axis, stat) for stat in stats]
    pairs = [
        row(*plots[i : i + 2], sizing_mode="stretch_width", styles={"flex-wrap": "wrap"})
        for i in range(0, len(plots), 2)
    ]
    above = heat(axis, history, cells, exact=page.live)
    return column(above, *pairs, sizing_mode="stretch_width")


def height(n_stats: int) -> int:
    """Pixels of `layer` with so many statistics, where two stand side by side."""
    return HEAT + STAT * -(-n_stats // 2)


def marked_step(page: Page) -> int | None:
    """The step of the epoch in view, None for the newest."""
    run, epoch = page.run, page.view.epoch
    if epoch == -1:
        return run.span[0]
    return next((one.last_step for one in run.epochs if one.epoch == epoch), None)


# ---- the histogram of every batch ---------------------------------------------------------------


def heat(axis: StepAxis, history: LayerHistory, cells: Cells, *, exact: bool) -> figure:
    """The histogram of each cell as a column of colours, with quantiles as lines over it.

    Counts that are not exact have three digits, which takes half the bytes.
    """
    low, high = value_range(history)
    image, outside = histograms(history, cells, low, high)
    if not exact:
        image = (image.view(np.int32) & -(1 << 16)).view(np.float32)
    label = "activation" + (f" ({100 * outside:.1f} % lie outside)" if outside > 0.0005 else "")
    what = "batch" if cells.width == 1 else f"{cells.width:,} batches"
    span = bk.Range1d(start=low, end=high)
    plot = axis.figure(f"Histogram of every {what}", label, HEAT, y_range=span, epoch_names=True)
    plot.update(min_border_left=58, min_border_right=10, background_fill_color=PALE)
    plot.ygrid.visible = False
    peak = 2.0 ** np.ceil(np.log2(np.nanmax(image, initial=10.0)))  # so it seldom changes
    mapper = bk.LogColorMapper(palette=viridis(256), low=0.5, high=peak, nan_color=CLEAR)
    place = {"x": cells.first - 0.5, "y": low, "dw": float(cells.n * cells.width), "dh": high - low}
    source = bk.ColumnDataSource({"image": [image], **{k: [v] for k, v in place.items()}})
    glyph = bk.Image(image="image", x="x", y="y", dw="dw", dh="dh", color_mapper=mapper)
    drawn = plot.add_glyph(source, glyph, level="image")
    each = "@image{0,0}" if cells.width == 1 else f"@image{{0,0.0}} (mean of {what})"
    at = f"$y{{0.0000}} (bins of {(high - low) / ROWS:.2g})"
    tips = [("batch", "$x{0,0}"), ("values in the bin", each), ("activation", at)]
    plot.add_tools(bk.HoverTool(renderers=[drawn], tooltips=tips))  # pyright: ignore[reportArgumentType]
    ticks = bk.FixedTicker(ticks=[10**power for power in range(int(np.log10(peak)) + 1)])
    short_counts = bk.NumeralTickFormatter(format="0a")
    bar = bk.ColorBar(color_mapper=mapper, ticker=ticks, formatter=short_counts)
    bar.update(width=12, title="values per bin")
    plot.add_layout(bar, "right")
    axis.mark_epochs(plot, WHITE)
    items = [*_draw_quantiles(plot, history), *_draw_bad(plot, history, cells)]
    if history.layer.feeds_relu:
        _draw_relu(plot, low, high)
    _explain(plot, items, background_fill_color=NIGHT, background_fill_alpha=1.0,
             label_text_color=WHITE)  # fmt: skip
    return plot


def value_range(history: LayerHistory) -> tuple[float, float]:
    """From which to which activation: 0 and all but a `TAIL` on either side, in whole buckets."""
    total = history.counts.sum(axis=0, keepdims=True)
    edges = finite_edges(history.bucket_edges)
    low = float(np.fmin(quantile_bounds(total, edges, TAIL)[0, 0], 0.0))
    high = float(np.fmax(quantile_bounds(total, edges, 1 - TAIL)[0, 1], 0.0))
    if not high > low:
        return -1.0, 1.0
    return low or -0.04 * high, high or -0.04 * low  # so that a line at 0 is not the frame


def histograms(
    history: LayerHistory, cells: Cells, low: float, high: float
) -> tuple[NDArray[np.float32], float]:
    """(ROWS, cells) values per bin and batch, NaN where none is finite; the share outside."""
    binned = history.rebin(np.linspace(low, high, ROWS + 1))
    n_finite = history.columns.n_finite
    shown = binned / np.maximum(history.calls, 1)[:, None]
    shown[n_finite == 0] = np.nan
    image = np.full((ROWS, cells.n), np.nan, np.float32)
    image[:, cells.starts(history.first_step)[0]] = shown.T
    return image, max(1.0 - float(binned.sum()) / max(int(n_finite.sum()), 1), 0.0)


def _draw_quantiles(plot: figure, history: LayerHistory) -> Items:
    """Each pair of quantiles as one line, parted by NaN: models are what takes time in Bokeh."""
    values, x, gap = history.quantiles(QUANTILES), history.middle_step, [np.nan]
    items: list[Item] = []
    looks = (
        ("median", [2], 2.2, []),
        ("25, 75 %", [1, 3], 1.3, []),
        ("1, 99 %", [0, 4], 1.2, [5, 4]),
    )
    for word, chosen, width, dash in looks:
        y = np.concatenate([np.append(values[i], gap) for i in chosen])
        source = _source(x=np.tile(np.append(x, gap), len(chosen)), y=y)
        line = bk.Line(x="x", y="y", line_color=WHITE, line_width=width, line_dash=dash)
        items.append((word, [plot.add_glyph(source, line)]))
        if len(history) <= FEW:
            dots = bk.Scatter(x="x", y="y", size=4, line_color=WHITE, fill_color=WHITE)
            items[-1][1].append(plot.add_glyph(source, dots))
    return items


def _draw_bad(plot: figure, history: LayerHistory, cells: Cells) -> Items:
    """A band along the top where values are NaN or infinite."""
    left = cells.first - 0.5 + cells.starts(history.first_step)[0] * cells.width
    left = left[history.nonfinite > 0]
    plot.extra_y_ranges = {"frame": bk.Range1d()}
    quad = bk.Quad(left="left", right="right", top=1.0, bottom=0.955)
    quad.update(fill_color=ORANGE, line_color=None)
    source = _source(left=left, right=left + cells.width)
    band = plot.add_glyph(source, quad, y_range_name="frame")
    return [(BAD, [band])] if len(left) else []


def _draw_relu(plot: figure, low: float, high: float) -> None:
    plot.add_layout(bk.Span(location=0, dimension="width", line_color=ORANGE, line_width=1.5))
    at_top = -low > 0.85 * (high - low)
    words = bk.Label(x=6, x_units="screen", y=0, y_offset=-2 if at_top else 2)
    words.padding = 3  # pyright: ignore[reportAttributeAccessIssue]
    words.update(text="ReLU cuts here", text_color=WHITE, text_font_size="11px")
    words.update(text_baseline="top" if at_top else "bottom")
    words.update(background_fill_color=NIGHT, background_fill_alpha=0.75)
    plot.add_layout(words)


def _explain(plot: figure, items: Items, **more: Any) -> None:  # noqa: ANN401 — properties
    """A legend above the frame, where it covers nothing."""
    if items:
        named = [bk.LegendItem(label=value(word), renderers=drawn) for word, drawn in items]
        legend = bk.Legend(items=named, orientation="horizontal", location="top_right")
        legend.update(margin=2, spacing=10, padding=2, label_text_font_size="11px", **more)
        legend.update(glyph_height=12, glyph_width=18)
        plot.add_layout(legend, "above")


def _source(**columns: NDArray[Any]) -> bk.ColumnDataSource:
    return bk.ColumnDataSource({name: float32(one) for name, one in columns.items()})


# ---- statistics ---------------------------------------------------------------------------------


def output_stats(history: LayerHistory) -> list[Stat]:
    """What was measured of a layer's output."""
    x, bad, relu = history.middle_step, history.nonfinite > 0, history.layer.feeds_relu
    std, n = history.std, history.channels
    share = {"output": history.near_zero}
    share |= {"after ReLU": history.near_zero_after_relu} if relu else {}
    share |= {"exactly 0": history.zeros}
    found = [
        Stat("Mean", x, {"mean": history.mean}, bad),
        Stat("Standard deviation", x, {"standard deviation": std}, bad,
             log=spreads(std, std, np.isfinite(std).astype(np.int64))),
        Stat(f"% near zero (|x| ≤ {history.eps:g})", x, {k: 100 * v for k, v in share.items()}, bad,
             "0.00", 100.0),
    ]  # fmt: skip
    if n:
        dead = {"dead": history.dead_channels} if relu else {}
        lines = {
            k: v.astype(float) for k, v in (dead | {"silent": history.silent_channels}).items()
        }
        title = f"{'Dead and silent' if relu else 'Silent'} channels of {n:,}"
        found.append(Stat(title, x, lines, bad, "0", float(n)))
    if history.columns.batch_norm.shape[1]:
        mean = {"batch": history.batch_mean, "running": history.running_mean}
        variance = {"batch": history.batch_var, "running": history.running_var}
        found.append(Stat("Mean that is normalized", x, mean, bad))
        found.append(Stat("Variance that is normalized", x, variance, bad))
    return found


def n_output_stats(history: LayerHistory) -> int:
    """How many figures `output_stats` makes."""
    return 3 + (history.channels > 0) + 2 * (history.columns.batch_norm.shape[1] > 0)


def parameters_of(infos: Sequence[LayerInfo], layer: str) -> list[int]:
    """Which of some parameters are a layer's own."""
    return [i for i, info in enumerate(infos) if info.name.rpartition(".")[0] == layer]


def parameter_stats(run: RunData, layer: str, cells: Cells) -> list[Stat]:
    """The sizes of the gradients and updates of a layer's parameters, as far as recorded."""
    found: list[Stat] = []
    gradients = run.figures("gradient")
    rows = parameters_of(gradients.layers, layer)
    names = [gradients.layers[i].name for i in rows]
    if rows:
        sizes = root_mean_square(gradients, rows, cells)
        found.append(_by_parameter("Gradient size ‖g‖", names, cells, *sizes, "no gradient"))
    updates, parameters = run.figures("update"), run.figures("parameter")
    whose = {info.name: i for i, info in enumerate(parameters.layers)}
    rows = [i for i in parameters_of(updates.layers, layer) if updates.layers[i].name in whose]
    names = [updates.layers[i].name for i in rows]
    if rows:
        at, steps, bad = root_mean_square(updates, rows, cells)
        its_at, sizes, _ = root_mean_square(parameters, [whose[name] for name in names], cells)
        at, mine, its = np.intersect1d(at, its_at, assume_unique=True, return_indices=True)
        steps, sizes = steps[:, mine], sizes[:, its]
        ratios = np.divide(steps, sizes, out=np.full(steps.shape, np.nan), where=sizes > 0)
        found.append(_by_parameter("Update ratio ‖Δw‖ / ‖w‖", names, cells, at, ratios, bad[mine],
                                   "not changed"))  # fmt: skip
    return found


def _by_parameter(
    title: str, names: Sequence[str], cells: Cells, at: Ints, values: Floats, bad: Flags, zero: str
) -> Stat:
    if len(names) > len(COLORS):
        title += f" ({len(COLORS)} of {len(names)} parameters)"
    lines = {
        n.rpartition(".")[2]: v for n, v in list(zip(names, values, strict=True))[: len(COLORS)]
    }
    x = (cells.first + at * cells.width + (cells.width - 1) / 2).astype(np.float64)
    return Stat(title, x, lines, bad, "0.00e+0", log=True, zero=f"exactly 0: {zero}")


def root_mean_square(
    figures: SeriesFigures, rows: Sequence[int], cells: Cells
) -> tuple[Ints, Floats, Flags]:
    """(K,) cells, (R, K) root mean square of the norms of a cell's steps, (K,) whether not finite.

    NaN where nothing finite was recorded.
    """
    first, last = figures.first_step, figures.last_step
    at, starts = cells.starts(first)
    values = figures.values["norm"][rows].astype(np.float64)
    if not len(at):
        return at, values, np.zeros(0, np.bool_)
    known = np.isfinite(values)
    weight = known * (last - first + 1)
    total = np.add.reduceat(np.where(known, values, 0.0) ** 2 * weight, starts, axis=1)
    mass = np.add.reduceat(weight, starts, axis=1)
    mean = np.divide(total, mass, out=np.full(total.shape, np.nan), where=mass > 0)
    bad = (figures.values["nonfinite"][rows] > 0) | np.isinf(values)
    return at, np.sqrt(mean), np.logical_or.reduceat(bad.any(axis=0), starts)


def stat_figure(axis: StepAxis, stat: Stat) -> figure:
    """Some lines, with marks where a logarithmic axis has no place for a 0, and for NaN."""
    values = np.array([*stat.lines.values()])
    zero = (values == 0) & stat.log
    drawn = np.where(np.isfinite(values) & ~zero, values, np.nan)
    plot = axis.figure(stat.title, "", STAT, log=stat.log, say_steps=False)
    plot.update(min_border_left=58, min_border_right=10, min_width=MIN_WIDTH)
    plot.xaxis.major_label_policy = plot.yaxis.major_label_policy = bk.NoOverlap()
    side: Any = plot.yaxis[0]
    side.ticker.update(desired_num_ticks=4, mantissas=[1, 2, 5])
    if not stat.log:
        side.formatter.update(power_limit_low=-5)
    axis.mark_epochs(plot)
    items = _draw_lines(plot, stat, drawn, zero)
    _set_range(plot, stat, drawn, [one for _, renderers in items for one in renderers])
    marks = _draw_marks(plot, stat, zero.any(axis=0))
    if len(items) > 3:  # more would not fit
        items[2:] = [(f"{items[2][0]} …", items[2][1])]
    said_by_title = [*stat.lines] == [stat.title.lower()]
    _explain(plot, [*([] if said_by_title else items), *marks])
    return plot


def _draw_lines(plot: figure, stat: Stat, drawn: Floats, zero: Flags) -> list[Item]:
    """The lines, and one tooltip for all of them, wherever in a column the pointer is."""
    source = _source(x=stat.x, **{f"y{i}": y for i, y in enumerate(drawn)})
    items: list[Item] = []
    tips = [("batch", "$x{0,0}")]
    for i, (name, color) in enumerate(zip(stat.lines, COLORS, strict=False)):
        word = harmless(short(name, 20))
        tips.append((word, f"@y{i}{{{stat.number}}}"))
        if zero[i].any():
            source.data[f"said{i}"] = [
                stat.zero if v == 0 else f"{v:.3g}" for v in stat.lines[name]
            ]
            tips[-1] = word, f"@said{i}"
        line = bk.Line(x="x", y=f"y{i}", line_color=color, line_width=1.5)
        line.line_dash = [6, 4] if i == 1 else []
        items.append((word, [plot.add_glyph(source, line)]))
        if len(stat.x) <= FEW:
            dots = bk.Scatter(x="x", y=f"y{i}", size=5, line_color=color, fill_color=color)
            items[-1][1].append(plot.add_glyph(source, dots))
    bar = bk.VBar(x="x", width=float(np.median(np.diff(stat.x))) if len(stat.x) > 1 else 1.0)
    bar.update(bottom=1, top=10, fill_alpha=0, line_alpha=0)
    bars = plot.add_glyph(source, bar, y_range_name="frame")
    plot.add_tools(bk.HoverTool(renderers=[bars], tooltips=tips, point_policy="follow_mouse"))  # pyright: ignore[reportArgumentType]
    return items


def _set_range(plot: figure, stat: Stat, drawn: Floats, lines: Sequence[Any]) -> None:
    """The y axis: fixed for shares, else what the lines need of what is zoomed."""
    # The frame itself, for what has no place on the y axis; positive, as that may be logarithmic.
    plot.extra_y_ranges = {"frame": bk.Range1d(start=1, end=10)}
    if stat.top is not None:
        plot.y_range = bk.Range1d(start=-0.04 * stat.top, end=1.04 * stat.top)
    elif np.isfinite(drawn).any():
        flat = not stat.log and np.nanmin(drawn) == np.nanmax(drawn)
        span = 0.2 * abs(float(np.nanmin(drawn))) or 1.0
        plot.y_range = bk.DataRange1d(renderers=list(lines), default_span=span if flat else 2.0)
    else:
        plot.y_range = bk.Range1d(start=0.1, end=1.0)
        plot.yaxis.visible = plot.ygrid.visible = False
        bad = stat.bad.any() or not stat.log
        say(plot, "Every value is NaN or infinite." if bad else stat.zero.capitalize())


def _draw_marks(plot: figure, stat: Stat, zero: Flags) -> Items:
    """Marks on the frame: at the bottom for a 0, at the top for NaN and infinity."""
    items: list[Item] = []
    for where, marker, color, word, y in (
        (zero, "inverted_triangle", ZERO, "exactly 0", 1.15),
        (stat.bad, "square", ORANGE, BAD, 8.9 if stat.log else 9.6),
    ):
        mark = bk.Scatter(x="x", y=y, marker=marker, size=7, line_color=color, fill_color=color)
        if where.any():
            drawn = plot.add_glyph(_source(x=stat.x[where]), mark, y_range_name="frame")
            items.append((word, [drawn]))
    return items
