"""One watched layer over time: its three statistics, and the histogram of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convlens.core.buckets import Flags, Floats, Ints, quantiles
from convlens.core.histories import LayerHistory
from convlens.core.records import Epoch
from convlens.errors import ArgumentError
from convlens.plots.canvas import (
    BLUE,
    GREEN,
    label_axes,
    mark_epochs,
    mark_nonfinite,
    marker,
    say_empty,
    say_no_values,
    scale_values,
    short_count,
    step_label,
    take_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Perceptually uniform, and read the same with every common colour blindness.
COLOR_MAP = "viridis"

# Of all values, so many are left out on either side of color_dim's range.
TAIL = 0.001


def plot_layer_stats(
    history: LayerHistory, epochs: Sequence[Epoch] = (), axes: Sequence[Axes] | None = None
) -> tuple[Axes, Axes, Axes]:
    """Draw a layer's mean, standard deviation and percentage of values near zero, by batch.

    `plot_layer_stats_all` draws several layers.
    Near zero is |x| ≤ eps. For a layer whose output a ReLU takes, the percentage after that ReLU
    (x ≤ eps) is drawn too. A column that covers several batches is one point in their middle.

    Args:
        history: the layer's history.
        epochs: the finished epochs, marked where they end.
        axes: where to draw, three axes; a new figure if None.

    Raises:
        ArgumentError: if another number of axes is given.
    """
    first, second, third = take_axes(axes, 3, (13.0, 3.6))
    _draw_series(first, history, epochs, history.mean, "mean")
    _draw_series(second, history, epochs, history.std, "standard deviation")
    label = f"% near zero (|x| ≤ {history.eps:g})"
    _draw_series(third, history, epochs, 100.0 * history.near_zero, label)
    if len(history):
        third.set_ylim(-3, 103)
        if history.layer.feeds_relu:
            _draw_after_relu(third, history)
    return first, second, third


def _draw_series(
    ax: Axes, history: LayerHistory, epochs: Sequence[Epoch], values: Floats, label: str
) -> None:
    word = label.partition(" (")[0]
    label_axes(ax, f"{layer_title(history)}: {word}", label, step_label(history))
    if not len(history):
        say_empty(ax, "no batch was recorded yet")
        return
    if np.isfinite(values).any():
        ax.plot(history.middle_step, values, color=BLUE, lw=1.3, marker=marker(values), ms=4)
        scale_values(ax, values)
    else:
        say_no_values(ax, "every value was NaN or infinite")
    ax.grid(axis="y", alpha=0.25)
    mark_epochs(ax, epochs)
    spans = column_spans(history)
    if mark_nonfinite(ax, spans.first, spans.width, history.nonfinite > 0):
        ax.legend(loc="lower right", fontsize="small")


def _draw_after_relu(ax: Axes, history: LayerHistory) -> None:
    before, after = ax.lines[0], history.near_zero_after_relu * 100.0
    before.set_label("as it is")
    ax.plot(
        history.middle_step,
        after,
        color=GREEN,
        lw=1.3,
        ls="--",
        marker=marker(after),
        ms=4,
        label=f"after its ReLU (x ≤ {history.eps:g})",
    )
    ax.legend(loc="best", fontsize="small")


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
            0.1 % to 99.9 % quantiles over all batches, and zero. What lies outside is said.
        bins: rows, evenly spaced in the activation's value.

    Raises:
        ArgumentError: if ``limit`` is no range or ``bins`` is below 1.
    """
    if bins < 1:
        raise ArgumentError(f"bins={bins} is the number of rows drawn; give at least 1.")
    low, high = value_range(history, limit)
    (ax,) = take_axes(None if ax is None else [ax], 1, (9.5, 4.4))
    what = history.layer.quantity
    unit = "batch" if what == "activation" else "step"
    title = f"{layer_title(history)}: {what}s of every {unit}"
    label_axes(ax, title, what, step_label(history))
    if not len(history):
        say_empty(ax, "no batch was recorded yet")
        return ax
    ax.set_facecolor("0.92")
    spans = column_spans(history)
    if history.columns.n_finite.any():
        _draw_columns(ax, history, spans, np.linspace(low, high, bins + 1))
    else:
        say_no_values(ax, "every value was NaN or infinite")
    ax.set_xlim(spans.first[0] - 0.5, spans.first[-1] + spans.width[-1] - 0.5)
    ax.set_ylim(low, high)
    mark_epochs(ax, epochs, color="white")
    if mark_nonfinite(ax, spans.first, spans.width, history.nonfinite > 0):
        ax.legend(loc="lower right", fontsize="small")
    return ax


@dataclass(frozen=True)
class Spans:
    """Where K columns lie on the step axis.

    Attributes:
        first: (K,) first step; the left edge is half a step before it.
        width: (K,) how many steps it is drawn wide.
        bare: (K,) whether steps that nothing was recorded for follow before the next column.
    """

    first: Ints
    width: Ints
    bare: Flags


def column_spans(history: LayerHistory) -> Spans:
    """Where the columns are drawn; a column reaches to the next one if that follows as usual.

    With every tenth batch recorded, a column stands for the ten until the next. A longer pause,
    as between two times of watching, stays bare.
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
                f"limit={limit} is no range of activations; give a positive number, or a pair "
                "(lowest, highest)."
            )
        return float(low), float(high)
    total = history.counts.sum(axis=0, keepdims=True)
    low, high = quantiles(total, history.bucket_edges, (TAIL, 1 - TAIL))[:, 0]
    low, high = np.fmin(low, 0.0), np.fmax(high, 0.0)
    # Nothing finite, or nothing but zeros: any range shows it, this one is plain.
    return (float(low), float(high)) if high > low else (-1.0, 1.0)


def _draw_columns(ax: Axes, history: LayerHistory, spans: Spans, edges: Floats) -> None:
    from matplotlib.colors import FuncNorm

    counts = history.rebin(edges)
    outside = share_outside(history, counts)
    if outside > 0.0005:
        ax.set_ylabel(f"{ax.get_ylabel()} ({100 * outside:.1f} % lie outside)")
    per_batch = counts / np.maximum(history.calls, 1)[:, None]
    per_batch[history.columns.n_finite == 0] = np.nan
    x, cells = with_gaps(spans, per_batch)
    peak = max(float(np.nanmax(cells, initial=0.0)), 1.0)
    mesh = ax.pcolormesh(
        x,
        edges,
        np.ma.masked_invalid(cells.T),
        cmap=COLOR_MAP,
        norm=FuncNorm((np.log1p, np.expm1), vmin=0.0, vmax=peak),
        rasterized=True,
    )
    ax.axhline(0.0, color="white", lw=0.6, alpha=0.5)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_label("values per bin and batch (log scale)")
    powers = 10 ** np.arange(0, int(np.log10(peak)) + 1)
    bar.set_ticks([0, *powers.tolist()], labels=["0", *(short_count(int(p)) for p in powers)])
    bar.minorticks_off()


def with_gaps(spans: Spans, cells: Floats) -> tuple[Floats, Floats]:
    """Edges and cells for a mesh, with an empty column wherever no step was recorded.

    Returns:
        (K + G + 1,) edges and (K + G, M) cells for K columns and G gaps.
    """
    after = np.flatnonzero(spans.bare) + 1
    ends = spans.first + spans.width
    edges = np.insert(np.append(spans.first, ends[-1]), after, ends[after - 1])
    return edges - np.float64(0.5), np.insert(cells, after, np.nan, axis=0)


def share_outside(history: LayerHistory, counts: Floats) -> float:
    """The share of the finite values, over all columns, that is in none of the counted bins."""
    n_finite = float(history.columns.n_finite.sum())
    return 1.0 - float(counts.sum()) / n_finite if n_finite else 0.0


def layer_title(history: LayerHistory) -> str:
    """The layer's name and kind."""
    layer = history.layer
    return f"{layer.name} ({layer.kind})" if layer.name else layer.kind
