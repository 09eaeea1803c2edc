"""A layer's history on the cells of a screen, kept up to date as the run grows. No drawing.

Only the cells that have changed are worked out anew: what comes of a cell depends on its columns
alone, and on limits that are rounded, so that they seldom change.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convlens.core.buckets import Floats, finite_edges, quantile_bounds
from convlens.core.columns import concatenate
from convlens.core.histories import LayerHistory
from convlens.plots.one_layer import TAIL
from convlens.runs.follower import BlockSeries
from convlens.views.matrices import round_up
from convlens.views.timeline import (
    EMPTY,
    MAX_CELLS,
    ROWS,
    Grid,
    Heat,
    condense,
    grid_of,
    heat_levels,
)

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
"""The shares below the lines that are drawn over a layer's histograms."""


def at_once() -> None:
    """What is called between two parts of some work that nothing has to wait for."""


class LayerCells:
    """A layer on its cells.

    The images have room for as many cells as a run may get, and a growing run fills them. Nothing
    of it changes: `grown` gives another.

    Args:
        source: the layer's history, or what a follower keeps of it.
        between: called between the parts of the work.

    Attributes:
        grid: the cells, with room for more.
        history: a column for each cell that has any, in order of time.
        heat: the histograms of the cells as an image.
        quantiles: (5, K) the `QUANTILES` of the history's columns.
    """

    def __init__(
        self, source: LayerHistory | BlockSeries, between: Callable[[], None] = at_once
    ) -> None:
        self._series = source if isinstance(source, BlockSeries) else None
        self.grid = _grid(source)
        whole = source.history() if isinstance(source, BlockSeries) else source
        between()
        self.history = condense(whole, self.grid)
        between()
        self._limits = steady_range(self.history)
        shape = ROWS, self.grid.n_cells
        self._counts = np.zeros(shape, np.float32)
        self._image = np.full(shape, EMPTY, np.uint8)
        self._peak = 0.0
        self.quantiles: Floats = self.history.quantiles(QUANTILES)
        between()
        self._work_out(0)

    def grown(
        self, series: BlockSeries, between: Callable[[], None] = at_once
    ) -> tuple[LayerCells, int] | None:
        """The same layer with what is new of it.

        Args:
            series: what a follower keeps of it now.
            between: called between the parts of the work.

        Returns:
            Its cells, and the first of them that may have changed; None if all is to be worked out
            anew.
        """
        since = None if self._series is None else series.changed_since(self._series)
        if since is None or not len(self.history) or _grid(series) != self.grid:
            return None
        cell = max(0, (since - self.grid.first) // self.grid.width)
        begin = self.grid.first + cell * self.grid.width
        kept = int(np.searchsorted(self.history.first_step, begin))
        new = condense(series.history(begin), self.grid)
        between()
        columns = concatenate([self.history.columns[:kept], new.columns])
        found = [self.quantiles[:, :kept], new.quantiles(QUANTILES)]
        after = copy(self)
        after._series, after.history = series, replace(self.history, columns=columns)
        after.quantiles = np.concatenate(found, axis=1)
        after._counts, after._image = self._counts.copy(), self._image.copy()
        after._limits = steady_range(after.history)
        between()
        same = after._work_out(kept if after._limits == self._limits else 0)
        return after, cell if same else 0

    @property
    def heat(self) -> Heat:
        """The image."""
        inside = float((self._counts[:, self._at].sum(axis=0) * self.history.calls).sum())
        n_finite = float(self.history.columns.n_finite.sum())
        outside = max(1.0 - inside / n_finite, 0.0) if n_finite else 0.0
        return Heat(self._image, self._counts, *self._limits, self._peak, outside)

    @property
    def _at(self) -> NDArray[np.int64]:
        return self.grid.cells(self.history)

    def _work_out(self, first: int) -> bool:
        """The image from a column on; False if what is before it has changed too."""
        columns = self.history.columns[first:]
        new, at = replace(self.history, columns=columns), self._at
        binned = new.rebin(np.linspace(*self._limits, ROWS + 1))
        self._counts[:, at[first:]] = (binned / np.maximum(new.calls, 1)[:, None]).T
        peak = round_up(max(float(self._counts.max(initial=0.0)), 1.0))
        start = first if peak == self._peak else 0
        self._peak = peak
        seen = self.history.columns.n_finite[start:] > 0
        self._image[:, at[start:]] = heat_levels(self._counts[:, at[start:]], peak, seen)
        return start > 0


@dataclass(frozen=True)
class Prepared:
    """What is to be shown of a layer, where certain cells are shown.

    Attributes:
        layer: what it was made of.
        shown: the cells that are shown, None if none are.
        cells: those to be shown.
        since: the first of them that may be another.
    """

    layer: LayerHistory | BlockSeries
    shown: LayerCells | None
    cells: LayerCells
    since: int

    def fits(self, layer: LayerHistory | BlockSeries, shown: LayerCells | None) -> bool:
        """Whether it is of this layer, and for where these cells are shown."""
        return layer is self.layer and shown is self.shown


def prepare(
    layer: LayerHistory | BlockSeries,
    shown: LayerCells | None,
    between: Callable[[], None] = at_once,
) -> Prepared:
    """Work out a layer's cells, from those that are shown if they are of the same layer."""
    grown = None
    if shown is not None and isinstance(layer, BlockSeries):
        grown = shown.grown(layer, between)
    cells, since = grown or (LayerCells(layer, between), 0)
    return Prepared(layer, shown, cells, since)


def steady_range(history: LayerHistory) -> tuple[float, float]:
    """From which to which activation a layer's image reaches: `value_range` out to whole buckets.

    So that it seldom changes while a run grows.
    """
    total = history.counts.sum(axis=0, keepdims=True)
    edges = finite_edges(history.bucket_edges)
    low = float(np.fmin(quantile_bounds(total, edges, TAIL)[0, 0], 0.0))
    high = float(np.fmax(quantile_bounds(total, edges, 1 - TAIL)[0, 1], 0.0))
    return (low, high) if high > low else (-1.0, 1.0)


def _grid(source: LayerHistory | BlockSeries) -> Grid:
    """Cells that stay as they are until twice as many steps are there."""
    grid = grid_of([source], MAX_CELLS)
    if grid is None:
        return Grid(0, 1, MAX_CELLS)
    return Grid(grid.first, 1 << (grid.width - 1).bit_length(), MAX_CELLS)
