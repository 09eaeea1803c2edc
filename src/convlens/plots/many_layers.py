"""Several layers on one time axis: small multiples of what `one_layer` draws large."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from convlens.core.columns import coarsen
from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.records import Epoch
from convlens.errors import ArgumentError
from convlens.plots.canvas import (
    GREY,
    NONFINITE_LABEL,
    figure_of,
    label_colour_bar,
    log_norm,
    step_label,
    take_axes,
)
from convlens.plots.one_layer import (
    STATISTICS,
    Binned,
    Spans,
    column_spans,
    draw_cells,
    draw_stats,
    layer_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

MOST_COLUMNS = 512
"""Width of a small panel in pixels; more columns are merged before drawing."""

STEEPNESS = 100.0
"""Colour is log(1 + 100 · percentage), so that 0.01 % differs visibly from 0 %."""

FONT_PT = 8.0
MOST_EPOCH_LINES = 20  # in a small panel


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
        left_out: number of layers that are not drawn, for the heading.

    Returns:
        L axes, in the order of the layers.

    Raises:
        ArgumentError: if there are no histories, another number of axes is given, ``limit`` is no
            range or ``bins`` is below 1.
    """
    panels = [Binned.of(_merged(history), limit, bins) for history in histories]
    columns = next((c for c, most in enumerate((0, 1, 4, 12, 24, 40)) if len(panels) <= most), 6)
    drawn = _take_grid(axes, len(panels), columns, 1)
    shares = [100.0 * p.counts / np.maximum(p.n_finite, 1)[:, None] for p in panels]
    peak = max(float(np.max(share, initial=0.0)) for share in shares)
    _share_steps(drawn, [panel.spans for panel in panels], epochs, "white")
    meshes: list[QuadMesh | None] = []
    for ax, panel, share in zip(drawn, panels, shares, strict=True):
        meshes.append(draw_cells(ax, panel, share, log_norm(max(peak, 0.01), STEEPNESS)))
        _shrink(ax)
        after = f", {100 * panel.outside:.0f} % outside" if panel.outside >= 0.01 else ""
        _title(ax, panel.layer, after)
    _add_colour_bar(drawn, meshes, peak)
    if axes is None:
        what = panels[0].layer.quantity
        title = f"{what.capitalize()}s of every {panels[0].unit}"
        _frame(drawn, columns, epochs, _heading(title, len(panels), left_out), panels[0].steps)
        figure_of(drawn[0]).supylabel(what, fontsize=FONT_PT + 1)
    _add_legend(drawn, drawn, own=axes is None)
    return drawn


def plot_layer_stats_all(
    histories: Iterable[LayerHistory],
    epochs: Sequence[Epoch] = (),
    axes: Sequence[Axes] | Sequence[Sequence[Axes]] | None = None,
    left_out: int = 0,
) -> list[tuple[Axes, Axes, Axes]]:
    """Draw mean, standard deviation and percentage near zero of several layers, three axes each.

    All panels have the same steps; each has its own scale, but the percentages, which go from 0 to
    100. See `plots.plot_layer_stats` for what is drawn.

    Args:
        histories: the layers' histories, L of them.
        epochs: the finished epochs; their ends are dashed lines.
        axes: where to draw, L rows of three axes, or 3·L; a new figure if None.
        left_out: number of layers that are not drawn, for the heading.

    Returns:
        L times three axes, in the order of the layers.

    Raises:
        ArgumentError: if there are no histories, or another number of axes is given.
    """
    rows = [_without_buckets(history) for history in histories]
    n, own = len(rows), axes is None
    columns = 1 if n <= 6 else 2 if n <= 24 else 3
    drawn = _take_grid(axes, n, columns, 3)
    triples = list(zip(drawn[::3], drawn[1::3], drawn[2::3], strict=True))
    _share_steps(drawn, [column_spans(row) for row in rows], epochs, GREY)
    for i, (triple, row) in enumerate(zip(triples, rows, strict=True)):
        draw_stats(triple, row)
        for ax in triple:
            _shrink(ax)
        if triple[2].lines:
            triple[2].set_yticks([0, 50, 100])
        _title(triple[0], row.layer, "" if own else f": {STATISTICS[0]}", panels=3 if own else 1)
        if not own:
            for ax, word in zip(triple[1:], STATISTICS[1:], strict=True):
                ax.set_title(word, loc="left", fontsize=FONT_PT, pad=3)
        elif i < columns:
            _head(triple)
    if own:
        what = rows[0].layer.quantity.capitalize()
        title = f"{what}s: mean, standard deviation, percentage near zero (|x| ≤ {rows[0].eps:g})"
        _frame(drawn, 3 * columns, epochs, _heading(title, n, left_out), step_label(rows[0]))
    _add_legend(drawn, [triple[2] for triple in triples], own=own)
    return triples


def _merged(history: LayerHistory) -> LayerHistory:
    """The history in at most `MOST_COLUMNS` columns: neighbours are added up."""
    columns = history.columns
    if len(columns) <= MOST_COLUMNS:
        return history
    steps = int(columns.last_step[-1] - columns.first_step[0]) + 1
    # One column may hang over at each end of the merged ones.
    level = (-(-steps // (MOST_COLUMNS - 1)) - 1).bit_length()
    return replace(history, columns=coarsen(columns, level))


def _without_buckets(history: LayerHistory) -> LayerHistory:
    """The history with all its buckets as one: they are most of it, and not drawn."""
    columns = history.columns
    return replace(history, columns=replace(columns, counts=columns.n_finite[:, None]))


def _take_grid(
    axes: Sequence[Axes] | Sequence[Sequence[Axes]] | None, n: int, columns: int, group: int
) -> list[Axes]:
    """``n`` groups of axes, given or of a new figure, with ``columns`` groups in a row.

    Narrow empty columns part groups of several axes.
    """
    if not n:
        raise ArgumentError("histories is empty; give the history of one layer at least.")
    if axes is not None:
        return take_axes(list(np.ravel(np.asarray(axes, object))), n * group, (0, 0))
    import matplotlib.pyplot as plt

    rows = -(-n // columns)
    height = 2.0 if rows <= 3 else 1.56 if rows <= 6 else 1.25
    width = 13.0 if columns * group > 2 else 9.0
    figure = plt.figure(figsize=(width, rows * height + 0.9), layout="constrained")
    gap = [0.12] if group > 1 else []
    widths = ([1.0] * group + gap) * columns
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)
    drawn: list[Axes] = []
    for i in range(n * group):
        row, place = divmod(i, columns * group)
        column = place + place // group * len(gap)
        drawn.append(figure.add_subplot(grid[row, column], sharex=drawn[0] if drawn else None))
    return drawn


def _share_steps(
    drawn: Sequence[Axes], spans: Sequence[Spans], epochs: Sequence[Epoch], color: str
) -> None:
    """Give all axes the same steps, before anything is drawn, and dash the ends of epochs."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    known = [s for s in spans if len(s.first)]
    for ax in drawn:
        if known:
            last = max(s.first[-1] + s.width[-1] for s in known)
            ax.set_xlim(min(s.first[0] for s in known) - 0.5, last - 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if len(epochs) <= MOST_EPOCH_LINES:
            ends = [epoch.last_step + 0.5 for epoch in epochs]
            place = ax.get_xaxis_transform()
            dashes = (0, (3, 3))
            ax.vlines(ends, 0, 1, color=color, lw=0.6, ls=dashes, zorder=3, transform=place)


def _shrink(ax: Axes) -> None:
    """Smaller and fewer ticks, smaller words, no label."""
    from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter, SymmetricalLogLocator

    ax.tick_params(labelsize=FONT_PT - 1, length=2.5, pad=2)
    ax.set_ylabel("")
    for text in ax.texts:
        text.set_fontsize(FONT_PT)
    locator = ax.yaxis.get_major_locator()
    if isinstance(locator, LogLocator | SymmetricalLogLocator):
        locator.set_params(numticks=4)
        ax.minorticks_off()
    elif not ax.texts:
        ax.yaxis.set_major_locator(MaxNLocator(nbins=3))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _title(ax: Axes, layer: LayerInfo, after: str = "", panels: int = 1) -> None:
    """A small title at the left: name and kind, or as much of the name's end as has room."""
    width_in = panels * ax.get_position().width * figure_of(ax).get_figwidth()
    most = max(10, int(72 * width_in / (0.55 * FONT_PT)))
    text = layer_title(layer) + after
    if len(text) > most:
        text = layer.name + after
    text = text if len(text) <= most else "…" + text[1 - most :]
    ax.set_title(text, loc="left", fontsize=FONT_PT, pad=3, parse_math=False)


def _head(triple: Sequence[Axes]) -> None:
    """Name the statistics above the topmost row of a new figure."""
    for ax, word in zip(triple, STATISTICS, strict=True):
        ax.annotate(
            word, (0.5, 1.0), xycoords="axes fraction", xytext=(0, 2.1 * FONT_PT),
            textcoords="offset points", ha="center", fontsize=FONT_PT + 1,
        )  # fmt: skip


def _frame(
    drawn: Sequence[Axes], columns: int, epochs: Sequence[Epoch], title: str, steps: str
) -> None:
    """Title a new figure; only the lowest panel of each column numbers the steps."""
    for ax in drawn[:-columns]:
        ax.tick_params(labelbottom=False)
    marked = 0 < len(epochs) <= MOST_EPOCH_LINES
    figure = figure_of(drawn[0])
    figure.supxlabel(steps + ("; dashed: an epoch ends" if marked else ""), fontsize=FONT_PT + 1)
    figure.suptitle(title, fontsize=FONT_PT + 3)


def _add_colour_bar(drawn: Sequence[Axes], meshes: Sequence[QuadMesh | None], peak: float) -> None:
    mesh = next((mesh for mesh in meshes if mesh is not None), None)
    if mesh is None:
        return
    figure = figure_of(drawn[0])
    aspect = max(20.0, figure.get_figheight() / 0.16)
    bar = figure.colorbar(mesh, ax=list(drawn), pad=0.01, aspect=aspect, fraction=0.03)
    ticks = [tick for tick in (0.0, 0.01, 0.1, 1.0, 10.0, 100.0) if tick <= peak]
    label = "% of a batch's values per bin (log scale)"
    label_colour_bar(bar, label, {tick: f"{tick:g}" for tick in ticks})
    bar.ax.tick_params(labelsize=FONT_PT)
    bar.ax.yaxis.label.set_fontsize(FONT_PT)


def _add_legend(drawn: Sequence[Axes], named: Sequence[Axes], *, own: bool) -> None:
    """Add one legend for all: below a new figure, in the first axes of somebody else's."""
    found: dict[str, object] = {}
    for ax in named:
        found |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    if not found:
        return
    order = sorted(found, key=lambda label: label == NONFINITE_LABEL)
    where = figure_of(drawn[0]) if own else named[0]
    place = {"loc": "outside lower right", "ncols": 3} if own else {"loc": "best"}
    where.legend([found[x] for x in order], order, fontsize=FONT_PT, frameon=not own, **place)  # pyright: ignore[reportArgumentType]


def _heading(title: str, n: int, left_out: int) -> str:
    if not left_out:
        return title
    return (
        f"{title}\nthe first {n} of {n + left_out} layers; layers=stats.names[{n}:] draws the rest"
    )
