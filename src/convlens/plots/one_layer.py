"""One watched layer over time: its three statistics, and the histogram of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convlens.core.buckets import Flags, Floats, Ints, quantiles
from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.records import Epoch
from convlens.errors import ArgumentError
from convlens.plots.canvas import (
    BLUE,
    GREEN,
    figure_of,
    label_axes,
    label_colour_bar,
    log_norm,
    mark_epochs,
    mark_nonfinite,
    marker,
    say,
    scale_values,
    short_count,
    step_label,
    take_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Normalize

STATISTICS = ("mean", "standard deviation", "% near zero")

TAIL = 0.001
"""The share of all values left out on either side of color_dim's range."""

NO_BATCH = "no batch recorded yet"
ALL_NONFINITE = "all values NaN or infinite"


def plot_layer_stats(
    history: LayerHistory, epochs: Sequence[Epoch] = (), axes: Sequence[Axes] | None = None
) -> tuple[Axes, Axes, Axes]:
    """Draw a layer's mean, standard deviation and percentage of values near zero, by batch.

    Near zero is |x| ≤ eps. For a layer whose output a ReLU takes, the percentage after that ReLU
    (x ≤ eps) is drawn too. A column that covers several batches is one point in their middle.
    `plot_layer_stats_all` draws several layers.

    Args:
        history: the layer's history.
        epochs: the finished epochs, marked where they end.
        axes: where to draw, three axes; a new figure if None.

    Raises:
        ArgumentError: if another number of axes is given.
    """
    first, second, third = take_axes(axes, 3, (13.0, 3.6))
    drawn = first, second, third
    labels = (*STATISTICS[:2], f"{STATISTICS[2]} (|x| ≤ {history.eps:g})")
    for ax, word, label in zip(drawn, STATISTICS, labels, strict=True):
        label_axes(ax, f"{layer_title(history.layer)}: {word}", label, step_label(history))
    draw_stats(drawn, history)
    for ax in drawn:
        mark_epochs(ax, epochs)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="best", fontsize="small")
    return drawn


def draw_stats(axes: tuple[Axes, Axes, Axes], history: LayerHistory) -> None:
    """The three statistics alone, without titles; bucket counts are not needed."""
    spans, x = column_spans(history), history.middle_step
    for ax, values in zip(
        axes, (history.mean, history.std, 100.0 * history.near_zero), strict=True
    ):
        ax.grid(axis="y", alpha=0.25)
        mark_nonfinite(ax, spans.first, spans.width, history.nonfinite > 0)
        if not len(history):
            say(ax, NO_BATCH)
        elif not np.isfinite(values).any():
            say(ax, ALL_NONFINITE, keep_steps=True)
        else:
            ax.plot(x, values, color=BLUE, lw=1.2, marker=marker(values), ms=3.5)
            scale_values(ax, values)
    percentage = axes[2]
    if percentage.lines:
        percentage.set_ylim(-3, 103)
    if percentage.lines and history.layer.feeds_relu:
        after = 100.0 * history.near_zero_after_relu
        label = f"after its ReLU (x ≤ {history.eps:g})"
        percentage.lines[0].set_label("as it is")
        percentage.plot(
            x, after, color=GREEN, lw=1.2, ls="--", marker=marker(after), ms=3.5, label=label
        )


def color_dim(
    history: LayerHistory,
    ax: Axes | None = None,
    epochs: Sequence[Epoch] = (),
    limit: float | tuple[float, float] | None = None,
    bins: int = 100,
) -> Axes:
    """Draw the histogram of every batch as one coloured column: colour is log(1 + count).

    The counts are re-binned from the sketch's logarithmic buckets, each spread evenly over its
    width. A column that covers several batches shows their mean, so that columns of different
    widths can be compared. Columns without any finite value stay blank under an orange mark.
    `color_dim_all` draws several layers.

    Args:
        history: the layer's history.
        ax: where to draw, a new figure if None.
        epochs: the finished epochs, marked where they end.
        limit: the range of activations drawn: ±limit, or (lowest, highest); None for the data's
            0.1 % to 99.9 % quantiles over all batches, and zero. The axis says how much lies
            outside.
        bins: rows, evenly spaced in the activation's value.

    Raises:
        ArgumentError: if ``limit`` is no range or ``bins`` is below 1.
    """
    found = Binned.of(history, limit, bins)
    (ax,) = take_axes(None if ax is None else [ax], 1, (9.5, 4.4))
    what = found.layer.quantity
    title = f"{layer_title(found.layer)}: {what}s of every {found.unit}"
    outside = f" ({100 * found.outside:.1f} % lie outside)" if found.outside > 0.0005 else ""
    label_axes(ax, title, what + outside, found.steps)
    per_batch = found.counts / np.maximum(history.calls, 1)[:, None]
    peak = max(float(np.max(per_batch, initial=0.0)), 1.0)
    mesh = draw_cells(ax, found, per_batch, log_norm(peak))
    if mesh is not None:
        bar = figure_of(ax).colorbar(mesh, ax=ax, pad=0.02)
        powers = [10**power for power in range(int(np.log10(peak)) + 1)]
        ticks = {0.0: "0"} | {float(power): short_count(power) for power in powers}
        label_colour_bar(bar, "values per bin and batch (log scale)", ticks)
    if len(history):
        end = found.spans.first[-1] + found.spans.width[-1]
        ax.set_xlim(found.spans.first[0] - 0.5, end - 0.5)
    mark_epochs(ax, epochs, color="white")
    if found.bad.any():
        ax.legend(loc="lower right", fontsize="small")
    return ax


@dataclass(frozen=True)
class Spans:
    """Where K columns lie on the step axis.

    Attributes:
        first: (K,) first step; the left edge is half a step before it.
        width: (K,) how many steps it is drawn wide.
        gap: (K,) whether steps without a record follow before the next column.
    """

    first: Ints
    width: Ints
    gap: Flags


@dataclass(frozen=True)
class Binned:
    """What `color_dim` draws of a history, without the history, which may be large.

    Attributes:
        layer: whose values they are.
        steps: the step axis's label.
        spans: where the K columns lie.
        edges: (M + 1,) of the bins.
        counts: (K, M) finite values in each bin.
        n_finite: (K,) finite values, inside or outside the bins.
        bad: (K,) whether there are values that are NaN or infinite.
    """

    layer: LayerInfo
    steps: str
    spans: Spans
    edges: Floats
    counts: Floats
    n_finite: Ints
    bad: Flags

    @classmethod
    def of(
        cls, history: LayerHistory, limit: float | tuple[float, float] | None, bins: int
    ) -> Binned:
        """Count a history's values in ``bins`` bins.

        Raises:
            ArgumentError: if ``limit`` is no range or ``bins`` is below 1.
        """
        if bins < 1:
            raise ArgumentError(f"bins must be at least 1, got {bins}; it is the number of rows.")
        edges = np.linspace(*value_range(history, limit), bins + 1)
        return cls(
            layer=history.layer,
            steps=step_label(history),
            spans=column_spans(history),
            edges=edges,
            counts=history.rebin(edges),
            n_finite=history.columns.n_finite,
            bad=history.nonfinite > 0,
        )

    @property
    def outside(self) -> float:
        """The share of the finite values, over all columns, that lies in none of the bins."""
        n = float(self.n_finite.sum())
        return 1.0 - float(self.counts.sum()) / n if n else 0.0

    @property
    def unit(self) -> str:
        """What a column is of: parameters change with each step, layers run for each batch."""
        return "batch" if self.layer.quantity == "activation" else "step"


def column_spans(history: LayerHistory) -> Spans:
    """Where the columns are drawn; a column reaches to the next one if that follows as usual.

    With every tenth batch recorded, a column stands for the ten until the next. A longer pause,
    as between two times of watching, stays empty.
    """
    first, last = history.first_step, history.last_step
    usual = int(np.median(np.diff(first))) if len(first) > 1 else 1
    following = np.append(first[1:], last[-1:] + 1)
    end = np.minimum(following, np.maximum(last + 1, first + usual))
    return Spans(first, end - first, end < following)


def value_range(
    history: LayerHistory, limit: float | tuple[float, float] | None
) -> tuple[float, float]:
    """The lowest and the highest activation that color_dim draws.

    Raises:
        ArgumentError: if ``limit`` is not positive, or not an ascending pair of finite numbers.
    """
    if limit is not None:
        low, high = limit if isinstance(limit, tuple) else (-limit, limit)
        if not (np.isfinite([low, high]).all() and low < high):
            raise ArgumentError(
                f"limit must be a positive number or a pair (lowest, highest), got {limit}."
            )
        return float(low), float(high)
    total = history.counts.sum(axis=0, keepdims=True)
    low, high = quantiles(total, history.bucket_edges, (TAIL, 1 - TAIL))[:, 0]
    low, high = np.fmin(low, 0.0), np.fmax(high, 0.0)
    # Nothing finite, or nothing but zeros: any range shows it.
    return (float(low), float(high)) if high > low else (-1.0, 1.0)


def draw_cells(ax: Axes, found: Binned, cells: Floats, norm: Normalize) -> QuadMesh | None:
    """Draw (K, M) cells, or say why there are none; an empty column where no step was recorded."""
    spans = found.spans
    ax.set_ylim(found.edges[0], found.edges[-1])
    if not len(spans.first):
        say(ax, NO_BATCH)
        return None
    ax.set_facecolor("0.92")
    mark_nonfinite(ax, spans.first, spans.width, found.bad)
    if not found.n_finite.any():
        say(ax, ALL_NONFINITE, keep_steps=True)
        return None
    after = np.flatnonzero(spans.gap) + 1
    ends = spans.first + spans.width
    x = np.insert(np.append(spans.first, ends[-1]), after, ends[after - 1]) - 0.5
    shown = np.where(found.n_finite[:, None] > 0, cells, np.nan)
    shown = np.ma.masked_invalid(np.insert(shown, after, np.nan, axis=0).T)
    # viridis is perceptually uniform, and read the same with every common colour blindness.
    mesh = ax.pcolormesh(x, found.edges, shown, cmap="viridis", norm=norm, rasterized=True)
    ax.axhline(0.0, color="white", lw=0.6, alpha=0.5)
    return mesh


def layer_title(layer: LayerInfo) -> str:
    """The layer's name and kind."""
    return f"{layer.name} ({layer.kind})" if layer.name else layer.kind
