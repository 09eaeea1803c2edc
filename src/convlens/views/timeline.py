"""Columns of time brought down to what a screen can show. Plain NumPy, no drawing.

All layers are cut into the same cells of equally many steps, so that one glance along the time axis
compares them, and so that a report stays small however long the run was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convlens.histories import LayerHistory
from convlens.plots.layers import value_range
from convlens.sketch import Ints, merge_runs

MAX_CELLS = 600
ROWS = 100

# A heat map's cell without any finite value; the counts use 0 to 254.
EMPTY = 255


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


def grid_of(layers: Sequence[LayerHistory], max_cells: int = MAX_CELLS) -> Grid | None:
    """Cells that hold one column each, or several where there are more than ``max_cells``.

    Returns:
        None if no layer has a column.
    """
    steps = [history.first_step for history in layers if len(history)]
    if not steps:
        return None
    first = min(int(of_layer[0]) for of_layer in steps)
    end = max(int(history.last_step[-1]) for history in layers if len(history)) + 1
    gaps = [max(1, int(np.median(np.diff(of_layer)))) for of_layer in steps if len(of_layer) > 1]
    usual = min(gaps, default=end - first)
    n_columns = -(-(end - first) // usual)
    width = usual * -(-n_columns // max_cells)
    return Grid(first, width, -(-(end - first) // width))


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
        low: lower edge of the lowest row.
        high: upper edge of the highest row.
        peak: the largest count per bin and batch, at least 1.
        outside: share of the finite values beyond ``low`` and ``high``.
    """

    cells: NDArray[np.uint8]
    low: float
    high: float
    peak: float
    outside: float


def heat_of(history: LayerHistory, grid: Grid, rows: int = ROWS) -> Heat:
    """The heat map of a condensed history; a cell of several batches shows their mean."""
    low, high = value_range(history, None)
    counts = history.rebin(np.linspace(low, high, rows + 1))
    n_finite = history.columns.n_finite
    outside = 1.0 - counts.sum() / n_finite.sum() if n_finite.any() else 0.0
    level = np.log1p(counts / np.maximum(history.calls, 1)[:, None])
    top = max(float(level.max(initial=0.0)), float(np.log(2.0)))
    image = np.full((rows, grid.n_cells), EMPTY, np.uint8)
    seen = n_finite > 0
    image[:, grid.cells(history)[seen]] = np.round(level[seen].T / top * (EMPTY - 1))
    return Heat(image, low, high, float(np.expm1(top)), max(float(outside), 0.0))
