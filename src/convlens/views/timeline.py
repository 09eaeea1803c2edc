"""Columns of time brought down to what a screen can show. Plain NumPy, no drawing.

All layers are cut into the same cells of equally many steps, so that one glance along the time axis
compares them, and so that a report stays small however long the run was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convlens.core.buckets import Flags, Floats, Ints
from convlens.core.columns import merge_runs
from convlens.core.histories import LayerHistory, SeriesFigures
from convlens.plots.one_layer import value_range

MAX_CELLS = 600
ROWS = 100

# A heat map's cell without any finite value; the counts use 0 to 254.
EMPTY = 255


class HasSteps(Protocol):
    """What has columns of time."""

    @property
    def first_step(self) -> Ints:
        """(K,) first step of each column."""
        ...

    @property
    def last_step(self) -> Ints:
        """(K,) last step of each column."""
        ...


@dataclass(frozen=True)
class Grid:
    """Cells of time: cell i covers the steps from ``first + i * width``, ``width`` of them.

    Attributes:
        first: the first step.
        width: steps in a cell.
        n_cells: how many cells.
    """

    first: int
    width: int
    n_cells: int

    def cells(self, history: LayerHistory) -> Ints:
        """(K,) the cell in which each column begins."""
        return (history.first_step - self.first) // self.width


def grid_of(layers: Sequence[HasSteps], max_cells: int = MAX_CELLS) -> Grid | None:
    """Cells that hold one column each, or several where there are more than ``max_cells``.

    Returns:
        None if no layer has a column.
    """
    steps = [layer.first_step for layer in layers if len(layer.first_step)]
    if not steps:
        return None
    first = min(int(of_layer[0]) for of_layer in steps)
    end = max(int(layer.last_step[-1]) for layer in layers if len(layer.last_step)) + 1
    gaps = [max(1, int(np.median(np.diff(of_layer)))) for of_layer in steps if len(of_layer) > 1]
    usual = min(gaps, default=end - first)
    n_columns = -(-(end - first) // usual)
    width = usual * -(-n_columns // max_cells)
    return Grid(first, width, -(-(end - first) // width))


def root_mean_square(
    figures: SeriesFigures, values: NDArray[np.floating], grid: Grid
) -> tuple[Floats, Floats]:
    """Sizes on the cells: of each the root mean square over its steps.

    Args:
        figures: whose columns they are.
        values: (R, K) sizes, NaN where there is none.
        grid: the cells.

    Returns:
        (cells,) the middle of each cell's steps, and (R, cells) the sizes.
    """
    first, last = figures.first_step, figures.last_step
    if not len(first):
        return np.zeros(0), np.zeros((len(values), 0))
    cells = (first - grid.first) // grid.width
    starts = np.flatnonzero(np.diff(cells, prepend=cells[0] - 1))
    known = ~np.isnan(values)
    weight = known * (last - first + 1)
    squares = np.where(known, values, 0.0).astype(np.float64) ** 2
    total = np.add.reduceat(squares * weight, starts, axis=1)
    mass = np.add.reduceat(weight, starts, axis=1)
    mean = np.divide(total, mass, out=np.full(total.shape, np.nan), where=mass > 0)
    ends = np.append(starts[1:], len(first)) - 1
    return (first[starts] + last[ends]) / 2, np.sqrt(mean)


def condense(history: LayerHistory, grid: Grid) -> LayerHistory:
    """The same history with the columns of each cell merged into one."""
    if not len(history):
        return history
    cells = grid.cells(history)
    starts = np.flatnonzero(np.diff(cells, prepend=cells[0] - 1))
    return replace(history, columns=merge_runs(history.columns, starts))


@dataclass(frozen=True)
class Heat:
    """The histograms of a layer's columns as an image.

    Attributes:
        cells: (rows, cells) uint8: 0 to 254 for log1p of the count per bin and batch, from none to
            ``peak``; `EMPTY` where there was no finite value. Row 0 is the lowest activation.
        counts: (rows, cells) the count per bin and batch.
        low: lower edge of the lowest row.
        high: upper edge of the highest row.
        peak: the count per bin and batch of the highest colour, at least 1.
        outside: share of the finite values beyond ``low`` and ``high``.
    """

    cells: NDArray[np.uint8]
    counts: NDArray[np.float32]
    low: float
    high: float
    peak: float
    outside: float


def heat_of(history: LayerHistory, grid: Grid, rows: int = ROWS) -> Heat:
    """The heat map of a condensed history; a cell of several batches shows their mean."""
    low, high = value_range(history, None)
    binned = history.rebin(np.linspace(low, high, rows + 1))
    n_finite = history.columns.n_finite
    outside = 1.0 - binned.sum() / n_finite.sum() if n_finite.any() else 0.0
    per_batch = binned / np.maximum(history.calls, 1)[:, None]
    peak = max(float(per_batch.max(initial=0.0)), 1.0)
    counts = np.zeros((rows, grid.n_cells), np.float32)
    image = np.full((rows, grid.n_cells), EMPTY, np.uint8)
    cells = grid.cells(history)
    counts[:, cells] = per_batch.T
    image[:, cells] = heat_levels(per_batch.T, peak, n_finite > 0)
    return Heat(image, counts, low, high, peak, max(float(outside), 0.0))


def heat_levels(counts: NDArray[np.floating], peak: float, seen: Flags) -> NDArray[np.uint8]:
    """(rows, K) the colours of counts per bin and batch; `EMPTY` in columns that are not seen."""
    shown = np.round(np.log1p(counts) / np.log1p(peak) * (EMPTY - 1))
    return np.where(seen, np.minimum(shown, EMPTY - 1), EMPTY).astype(np.uint8)
