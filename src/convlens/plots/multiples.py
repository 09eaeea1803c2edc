"""Several layers side by side on one time axis: small multiples of what `layers` draws large."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from convlens.core.buckets import Flags, Floats
from convlens.core.columns import coarsen
from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.records import Epoch
from convlens.errors import ArgumentError
from convlens.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    NONFINITE_LABEL,
    mark_nonfinite,
    marker,
    say_no_values,
    scale_values,
    step_label,
    take_axes,
)
from convlens.plots.layers import (
    COLOR_MAP,
    Spans,
    column_spans,
    share_outside,
    value_range,
    with_gaps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

MOST_COLUMNS = 512
"""A small panel is no wider than so many pixels; columns beyond are merged before drawing."""

STEEPNESS = 100.0
"""Colour is log(1 + 100 · percentage): a share of 0.01 % is told from none."""

FONT_PT = 8.0
WIDTH_IN = 13.0
MOST_EPOCH_LINES = 20  # in a small panel
PANEL_IN = 1.25  # height of a small panel, inches
ALL_NONFINITE = "all NaN or infinite"
NO_BATCH = "no batch yet"


def color_dim_all(
    histories: Iterable[LayerHistory],
    axes: Sequence[Axes] | None = None,
    epochs: Sequence[Epoch] = (),
    limit: float | tuple[float, float] | None = None,
    bins: int = 100,
    left_out: int = 0,
) -> list[Axes]:
    """Draw the histograms of several layers' batches, a small `plots.color_dim` for each.

    All panels have the same steps and the same colours: the percentage of a batch's finite values
    that lies in a bin, so that layers with few and with many values can be compared. Each panel has
    its own range of values, and its own bins in it. More than 512 columns are merged.

    Args:
        histories: the layers' histories, L of them.
        axes: where to draw, L axes; a new figure if None.
        epochs: the finished epochs; their ends are dashed lines.
        limit: as in `plots.color_dim`, for every layer.
        bins: rows of each panel.
        left_out: how many layers there are besides, for a sentence that says so.

    Returns:
        L axes, in the order of the layers.

    Raises:
        ArgumentError: if there are no histories, another number of axes is given, ``limit`` is no
            range or ``bins`` is below 1.
    """
    if bins < 1:
        raise ArgumentError(f"bins={bins} is the number of rows drawn; give at least 1.")
    panels = [_panel(history, limit, bins) for history in histories]
    _check_any(panels)
    columns = _columns_for(len(panels))
    drawn = _take_grid(axes, len(panels), columns, 1)
    peak = max(panel.peak for panel in panels)
    _share_steps(drawn, [p.spans for p in panels], epochs, "white")
    meshes = [_draw_panel(ax, p, peak) for ax, p in zip(drawn, panels, strict=True)]
    mesh = next((mesh for mesh in meshes if mesh is not None), None)
    if mesh is not None:
        _add_colour_bar(drawn, mesh, peak)
    if axes is None:
        what = panels[0].layer.quantity
        title = f"{what.capitalize()}s of every {panels[0].unit}"
        _frame(drawn, epochs, _heading(title, len(panels), left_out), panels[0].steps)
        _figure_of(drawn).supylabel(what, fontsize=FONT_PT + 1)
    if any(panel.bad.any() for panel in panels):
        _add_legend(drawn, drawn, own=axes is None)
    return drawn


def plot_layer_stats_all(
    histories: Iterable[LayerHistory],
    epochs: Sequence[Epoch] = (),
    axes: Sequence[Axes] | Sequence[Sequence[Axes]] | None = None,
    left_out: int = 0,
) -> list[tuple[Axes, Axes, Axes]]:
    """Draw mean, standard deviation and percentage near zero of several layers, a row for each.

    All panels have the same steps; each has its own scale, but the percentages, which go from 0 to
    100. See `plots.plot_layer_stats` for what is drawn.

    Args:
        histories: the layers' histories, L of them.
        epochs: the finished epochs; their ends are dashed lines.
        axes: where to draw, L rows of three axes, or 3·L; a new figure if None.
        left_out: how many layers there are besides, for a sentence that says so.

    Returns:
        L times three axes, in the order of the layers.

    Raises:
        ArgumentError: if there are no histories, or another number of axes is given.
    """
    rows = [_Row.of(history) for history in histories]
    _check_any(rows)
    drawn = _take_grid(axes, len(rows), _blocks_for(len(rows)), 3)
    triples = list(zip(drawn[::3], drawn[1::3], drawn[2::3], strict=True))
    _share_steps(drawn, [row.spans for row in rows], epochs, GREY)
    for i, (triple, row) in enumerate(zip(triples, rows, strict=True)):
        _draw_row(triple, row)
        _head_row(
            triple, row, own=axes is None, top=i % -(-len(rows) // _blocks_for(len(rows))) == 0
        )
    if axes is None:
        what = rows[0].layer.quantity.capitalize()
        title = f"{what}s: mean, standard deviation, percentage near zero (|x| ≤ {rows[0].eps:g})"
        _frame(drawn, epochs, _heading(title, len(rows), left_out), rows[0].steps)
    if any(row.after_relu is not None or row.bad.any() for row in rows):
        _add_legend(drawn, [triple[2] for triple in triples], own=axes is None)
    return triples


@dataclass(frozen=True)
class _Panel:
    """What one panel of `color_dim_all` shows; the history itself may be large.

    Attributes:
        layer: whose values they are.
        after: what is said after its name.
        unit: what a column is of, a batch or a step.
        steps: what the steps are, for the axis.
        spans: where the K columns lie.
        shares: (K, M) percentage of the finite values in each bin, NaN where there are none.
        edges: (M + 1,) of the bins.
        bad: (K,) whether there are values that are NaN or infinite.
    """

    layer: LayerInfo
    after: str
    unit: str
    steps: str
    spans: Spans
    shares: Floats
    edges: Floats
    bad: Flags

    @property
    def peak(self) -> float:
        """The largest percentage."""
        return float(np.nanmax(self.shares, initial=0.0))


def _panel(history: LayerHistory, limit: float | tuple[float, float] | None, bins: int) -> _Panel:
    history = _narrowed(history)
    low, high = value_range(history, limit)
    edges = np.linspace(low, high, bins + 1)
    counts = history.rebin(edges)
    n = history.columns.n_finite[:, None]
    shares = np.divide(100.0 * counts, n, out=np.full(counts.shape, np.nan), where=n > 0)
    outside = 100 * share_outside(history, counts)
    after = f", {outside:.0f} % outside" if outside >= 1 else ""
    unit = "batch" if history.layer.quantity == "activation" else "step"
    spans = column_spans(history)
    steps, bad = step_label(history), history.nonfinite > 0
    return _Panel(history.layer, after, unit, steps, spans, shares, edges, bad)


def _narrowed(history: LayerHistory) -> LayerHistory:
    """The history in at most `MOST_COLUMNS` columns: neighbours are added up."""
    columns = history.columns
    if len(columns) <= MOST_COLUMNS:
        return history
    steps = int(columns.last_step[-1] - columns.first_step[0]) + 1
    # One column may hang over at each end of the merged ones.
    level = (-(-steps // (MOST_COLUMNS - 1)) - 1).bit_length()
    return replace(history, columns=coarsen(columns, level))


def _draw_panel(ax: Axes, panel: _Panel, peak: float) -> QuadMesh | None:
    from matplotlib.colors import FuncNorm

    _title(ax, panel.layer, panel.after)
    _small_ticks(ax)
    ax.set_facecolor("0.92")
    ax.set_ylim(panel.edges[0], panel.edges[-1])
    if not len(panel.spans.first):
        _say(ax, NO_BATCH)
        return None
    mark_nonfinite(ax, panel.spans.first, panel.spans.width, panel.bad)
    if np.isnan(panel.shares).all():
        _say(ax, ALL_NONFINITE)
        return None
    x, cells = with_gaps(panel.spans, panel.shares)
    norm = FuncNorm((_to_colour, _from_colour), vmin=0.0, vmax=max(peak, 0.01))
    mesh = ax.pcolormesh(
        x, panel.edges, np.ma.masked_invalid(cells.T), cmap=COLOR_MAP, norm=norm, rasterized=True
    )
    ax.axhline(0.0, color="white", lw=0.6, alpha=0.5)
    return mesh


def _to_colour(percentage: Floats) -> Floats:
    return np.log1p(STEEPNESS * percentage)


def _from_colour(colour: Floats) -> Floats:
    return np.expm1(colour) / STEEPNESS


def _add_colour_bar(drawn: Sequence[Axes], mesh: QuadMesh, peak: float) -> None:
    figure = _figure_of(drawn)
    aspect = max(20.0, figure.get_figheight() / 0.16)
    bar = figure.colorbar(mesh, ax=list(drawn), pad=0.01, aspect=aspect, fraction=0.03)
    bar.set_label("% of a batch's values per bin (log scale)", fontsize=FONT_PT)
    ticks = [tick for tick in (0.01, 0.1, 1.0, 10.0, 100.0) if tick <= peak]
    bar.set_ticks([0.0, *ticks], labels=["0", *(f"{tick:g}" for tick in ticks)], fontsize=FONT_PT)
    bar.minorticks_off()


@dataclass(frozen=True)
class _Row:
    """What one row of `plot_layer_stats_all` shows: (K,) each."""

    layer: LayerInfo
    eps: float
    steps: str
    middle: Floats
    spans: Spans
    mean: Floats
    std: Floats
    near_zero: Floats
    after_relu: Floats | None
    bad: Flags

    @classmethod
    def of(cls, history: LayerHistory) -> _Row:
        return cls(
            layer=history.layer,
            eps=history.eps,
            steps=step_label(history),
            middle=history.middle_step,
            spans=column_spans(history),
            mean=history.mean,
            std=history.std,
            near_zero=100.0 * history.near_zero,
            after_relu=100.0 * history.near_zero_after_relu if history.layer.feeds_relu else None,
            bad=history.nonfinite > 0,
        )


def _draw_row(axes: tuple[Axes, Axes, Axes], row: _Row) -> None:
    for ax, values in zip(axes, (row.mean, row.std, row.near_zero), strict=True):
        _small_ticks(ax)
        ax.grid(axis="y", alpha=0.25)
        if not len(values):
            _say(ax, NO_BATCH)
        elif not np.isfinite(values).any():
            _say(ax, ALL_NONFINITE)
        else:
            ax.plot(row.middle, values, color=BLUE, lw=1.0, marker=marker(values), ms=2.5)
            scale_values(ax, values)
            _fewer_ticks(ax)
            ax.set_ylabel("")
        mark_nonfinite(ax, row.spans.first, row.spans.width, row.bad)
    if not len(row.near_zero):
        return
    percentage = axes[2]
    percentage.set_ylim(-4, 104)
    percentage.set_yticks([0, 50, 100])
    if row.after_relu is not None:
        percentage.lines[0].set_label("as it is")
        percentage.plot(
            row.middle, row.after_relu, color=GREEN, lw=1.0, ls="--",
            marker=marker(row.after_relu), ms=2.5,
            label=f"after its ReLU (x ≤ {row.eps:g})",
        )  # fmt: skip


def _head_row(axes: tuple[Axes, Axes, Axes], row: _Row, *, own: bool, top: bool) -> None:
    """The layer above the row, and above the topmost of a figure of our own what is drawn."""
    if not own:
        _title(axes[0], row.layer, ": mean")
        axes[1].set_title("standard deviation", loc="left", fontsize=FONT_PT, pad=3)
        axes[2].set_title("% near zero", loc="left", fontsize=FONT_PT, pad=3)
        return
    _title(axes[0], row.layer, panels=3)
    for ax, word in zip(axes, ("mean", "standard deviation", "% near zero"), strict=True):
        if top:
            ax.annotate(
                word, (0.5, 1.0), xycoords="axes fraction", xytext=(0, 2.1 * FONT_PT),
                textcoords="offset points", ha="center", fontsize=FONT_PT + 1,
            )  # fmt: skip


def _check_any(layers: Sequence[object]) -> None:
    if not layers:
        raise ArgumentError("histories is empty; give the history of one layer at least.")


def _columns_for(n: int) -> int:
    """Panels in a row, so that they stay wider than high, and the figure no higher than a page."""
    return min(n, next((c for c, most in ((2, 4), (3, 12), (4, 24), (5, 40)) if n <= most), 6))


def _blocks_for(n: int) -> int:
    """How many rows of three lie side by side."""
    return 1 if n <= 6 else 2 if n <= 24 else 3


def _take_grid(
    axes: Sequence[Axes] | Sequence[Sequence[Axes]] | None, n: int, columns: int, group: int
) -> list[Axes]:
    """``n * group`` axes that were given, or those of a new figure, with ``columns`` groups a row.

    Narrow empty columns part the groups. The order goes row by row where a group is one panel, and
    down the first column of groups, then the next, where it is several.
    """
    if axes is not None:
        return take_axes(list(np.ravel(np.asarray(axes, object))), n * group, (0, 0))
    import matplotlib.pyplot as plt

    rows = -(-n // columns)
    height = PANEL_IN * (1.6 if rows <= 3 else 1.25 if rows <= 6 else 1.0)
    width = WIDTH_IN if columns * group > 2 else 9.0
    figure = plt.figure(figsize=(width, rows * height + 0.9), layout="constrained")
    parted = group > 1 and columns > 1
    widths = ([1.0] * group + ([0.12] if parted else [])) * columns
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)
    drawn: list[Axes] = []
    for i in range(n):
        row, column = divmod(i, columns) if group == 1 else divmod(i, rows)[::-1]
        for j in range(group):
            place = grid[row, column * (group + parted) + j]
            drawn.append(figure.add_subplot(place, sharex=drawn[0] if drawn else None))
    return drawn


def _title(ax: Axes, layer: LayerInfo, after: str = "", panels: int = 1) -> None:
    """A small title at the left: name and kind, or as much of the name's end as has room."""
    width_in = panels * ax.get_position().width * _figure_of([ax]).get_figwidth()
    most = max(10, int(72 * width_in / (0.55 * FONT_PT)))
    text = f"{layer.name} ({layer.kind}){after}" if layer.name else layer.kind + after
    if len(text) > most:
        text = layer.name + after
    text = text if len(text) <= most else "…" + text[1 - most :]
    ax.set_title(text, loc="left", fontsize=FONT_PT, pad=3, parse_math=False)


def _small_ticks(ax: Axes) -> None:
    ax.tick_params(labelsize=FONT_PT - 1, length=2.5, pad=2)
    _fewer_ticks(ax)


def _fewer_ticks(ax: Axes) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter, SymmetricalLogLocator

    if ax.get_yscale() == "linear":
        ax.yaxis.set_major_locator(MaxNLocator(nbins=3))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        return
    locator = ax.yaxis.get_major_locator()
    if isinstance(locator, LogLocator | SymmetricalLogLocator):
        locator.set_params(numticks=4)
    ax.minorticks_off()


def _say(ax: Axes, text: str) -> None:
    say_no_values(ax, text)
    ax.texts[-1].set_fontsize(FONT_PT)


def _share_steps(
    drawn: Sequence[Axes], spans: Sequence[Spans], epochs: Sequence[Epoch], color: str
) -> None:
    """The same steps everywhere, before anything is drawn, and dashed lines where epochs end."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    known = [s for s in spans if len(s.first)]
    shared = len(drawn[0].get_shared_x_axes().get_siblings(drawn[0])) == len(drawn)
    for ax in drawn[:1] if shared else drawn:
        if known:
            last = max(s.first[-1] + s.width[-1] for s in known)
            ax.set_xlim(min(s.first[0] for s in known) - 0.5, last - 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if not epochs or len(epochs) > MOST_EPOCH_LINES:
        return
    ends = [epoch.last_step + 0.5 for epoch in epochs]
    for ax in drawn:
        ax.vlines(
            ends, 0, 1, color=color, lw=0.6, ls=(0, (3, 3)), zorder=3,
            transform=ax.get_xaxis_transform(),
        )  # fmt: skip


def _frame(drawn: Sequence[Axes], epochs: Sequence[Epoch], title: str, steps: str) -> None:
    """What a figure of our own has around its panels; only the lowest panels number the steps."""
    figure = _figure_of(drawn)
    lowest: dict[int, tuple[int, Axes]] = {}
    for ax in drawn:
        place = ax.get_subplotspec()
        assert place is not None
        row, column = place.rowspan.start, place.colspan.start
        lowest[column] = max(lowest.get(column, (row, ax)), (row, ax), key=lambda found: found[0])
        ax.tick_params(labelbottom=False)
    for _, ax in lowest.values():
        ax.tick_params(labelbottom=True)
    marked = 0 < len(epochs) <= MOST_EPOCH_LINES
    text = steps + ("; dashed: an epoch ends" if marked else "")
    figure.supxlabel(text, fontsize=FONT_PT + 1)
    figure.suptitle(title, fontsize=FONT_PT + 3)


def _add_legend(drawn: Sequence[Axes], named: Sequence[Axes], *, own: bool) -> None:
    """One legend for all: below a figure of our own, in the first axes of somebody else's."""
    found: dict[str, object] = {}
    for ax in named:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = sorted(found, key=lambda label: label == NONFINITE_LABEL)
    handles = [found[label] for label in order]
    where = _figure_of(drawn) if own else named[0]
    place = {"loc": "outside lower right", "ncols": 3} if own else {"loc": "best"}
    where.legend(handles, order, fontsize=FONT_PT, frameon=not own, **place)  # pyright: ignore[reportArgumentType]


def _figure_of(axes: Sequence[Axes]) -> Figure:
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    return figure


def _heading(title: str, n: int, left_out: int) -> str:
    if not left_out:
        return title
    return (
        f"{title}\nthe first {n} of {n + left_out} layers; layers=stats.names[{n}:] draws the rest"
    )
