"""Histories and series cut down to what a screen can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.records import LayerHistory
from convlens.sketch import Columns, Floats, Ints, merge_runs

MAX_COLUMNS = 600
"""Columns of an image; a plot on the page is about as many pixels wide."""

ROWS = 96
"""Bins of the value axis in a heat map."""

TAIL = 0.0005
"""Share of all values left out above and below the value axis of a heat map."""


@dataclass(frozen=True)
class TimeAxis:
    """The run's steps in ``n`` cells of equal width, shared by every layer.

    Attributes:
        start: the first step.
        stop: one after the last step.
        n: number of cells, at most `MAX_COLUMNS`.
    """

    start: int
    stop: int
    n: int

    @property
    def width(self) -> int:
        """Steps covered by all cells together."""
        return self.stop - self.start

    def cell(self, step: Ints) -> Ints:
        """The cell that holds each step."""
        return (step - self.start) * self.n // self.width

    def columns(self, history: LayerHistory) -> tuple[Columns, Ints]:
        """The history merged to at most one column per cell, and which column each cell shows.

        A cell in which no column begins shows the one before it, -1 if there is none yet.
        """
        cell = self.cell(history.first_step)
        starts = np.flatnonzero(np.diff(cell, prepend=-1))
        merged = merge_runs(history.columns, starts)
        holder = np.searchsorted(cell[starts], np.arange(self.n), side="right") - 1
        return merged, holder


def time_axis(histories: list[LayerHistory]) -> TimeAxis | None:
    """The time axis of these layers, None if nothing was recorded."""
    filled = [h for h in histories if len(h)]
    if not filled:
        return None
    start = min(int(h.first_step[0]) for h in filled)
    stop = max(int(h.last_step[-1]) for h in filled) + 1
    return TimeAxis(start, stop, min(stop - start, MAX_COLUMNS))


@dataclass(frozen=True)
class HeatMap:
    """A layer's histograms over time, ready to be drawn.

    Attributes:
        levels: (ROWS, n) uint8: ``log1p(count per batch)`` on a scale of 0 to 255 = ``peak``.
        peak: the largest count per batch.
        low: the value at the bottom.
        high: the value at the top.
        shown: the share of all finite values between them.
    """

    levels: NDArray[np.uint8]
    peak: float
    low: float
    high: float
    shown: float


def heat_map(history: LayerHistory, axis: TimeAxis) -> HeatMap | None:
    """The heat map of one layer, None if it had no finite value."""
    columns, holder = axis.columns(history)
    merged = LayerHistory(history.layer, columns, history.layout, history.eps)
    low, high = value_range(merged)
    if not low < high:
        return None
    counts = merged.rebin(np.linspace(low, high, ROWS + 1))
    total = int(merged.counts.sum())
    per_batch = counts / np.maximum(columns.calls, 1)[:, None]
    peak = float(per_batch.max())
    scale = 255.0 / np.log1p(peak) if peak > 0 else 0.0
    levels = np.round(np.log1p(per_batch) * scale).astype(np.uint8)
    image = np.where((holder >= 0)[:, None], levels[holder], 0).T
    return HeatMap(np.ascontiguousarray(image), peak, low, high, float(counts.sum()) / total)


def value_range(history: LayerHistory) -> tuple[float, float]:
    """Values between which all but a `TAIL` on either side lie, always with 0 among them."""
    everything = LayerHistory(
        history.layer,
        merge_runs(history.columns, np.zeros(1, np.int64)),
        history.layout,
        history.eps,
    )
    low = float(everything.quantile(TAIL)[0])
    high = float(everything.quantile(1.0 - TAIL)[0])
    if not np.isfinite(low + high):
        return 0.0, 0.0
    low, high = min(low, 0.0), max(high, 0.0)
    margin = max(0.02 * (high - low), 1e-6)
    return low - margin, high + margin


def thin(x: NDArray[Any], y: Floats, limit: int = 1500) -> tuple[NDArray[Any], Floats]:
    """A long series as the lowest and highest value of each stretch, so that no peak is lost."""
    if len(x) <= limit:
        return x, y
    edges = np.linspace(0, len(x), limit // 2 + 1).astype(int)
    keep: list[int] = []
    for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = np.nan_to_num(y[a:b], nan=np.inf)
        keep += sorted({a + int(np.argmin(part)), a + int(np.argmax(part))})
    return x[keep], y[keep]


def smoothed(values: Floats, weight: float = 0.97) -> Floats:
    """Exponential mean, corrected for its start; what is not finite leaves it unchanged."""
    means = np.full(len(values), np.nan)
    mean, mass = 0.0, 0.0
    for i, value in enumerate(values.tolist()):
        if np.isfinite(value):
            mean = weight * mean + (1.0 - weight) * value
            mass = weight * mass + (1.0 - weight)
        means[i] = mean / mass if mass else np.nan
    return means
