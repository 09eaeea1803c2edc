"""Two runs beside each other, in figures that are built once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from bokeh.core.properties import value
from bokeh.events import DoubleTap
from bokeh.layouts import column
from bokeh.models import LegendItem, UIElement
from bokeh.plotting import figure

from convlens.core.buckets import Ints
from convlens.core.histories import LayerHistory
from convlens.core.records import Epoch
from convlens.core.steps import StepCurves
from convlens.plots.canvas import BLUE, ORANGE
from convlens.plots.curves import SMOOTH, smoothed_loss
from convlens.views.canvas import StepAxis, retitle, short
from convlens.views.distances import Comparison
from convlens.views.layer_view import CHOOSE, NO_COLUMNS, HeatFigure
from convlens.views.lines import Curve, Lines, LossScales, legend_beside
from convlens.views.matrix import MatrixFigure
from convlens.views.overview import align
from convlens.views.timeline import MAX_CELLS, Grid, condense, grid_of

TOTAL_VARIATION = (
    "The distance is the total variation of two histograms, ½ Σ |p − q|: the share of the values "
    "that would have to be moved to make one of the other."
)
"""What the matrix of a comparison shows, for the page beside it."""


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        name: the run's.
        curves: its steps.
        epochs: its finished epochs.
    """

    name: str
    curves: StepCurves
    epochs: Sequence[Epoch] = ()


@dataclass(frozen=True)
class CompareHeights:
    """Pixels of each figure of a comparison."""

    loss: int = 220
    matrix: int = 290
    heat: int = 260


@dataclass(frozen=True)
class _LossLines:
    """One run's lines in the figures of the loss."""

    raw: Lines
    smooth: Lines
    valid: Lines


class CompareView:
    """Both losses on one axis, the layers' distances by step, and one layer of both runs.

    `overview` and `layer` are what to lay out.

    Args:
        axis: the time axis, its epochs those of the first run.
        heights: of the figures.
    """

    def __init__(
        self,
        axis: StepAxis | None = None,
        heights: CompareHeights = CompareHeights(),
    ) -> None:
        self.axis = StepAxis((0, 0)) if axis is None else axis
        self._lines = [_loss_lines(color) for color in (BLUE, ORANGE)]
        self._entries: list[LegendItem] = []
        self._names = ("A", "B")
        self.loss = LossScales(self.axis, heights.loss, self._fill)
        self.matrix_figure = MatrixFigure(self.axis, heights.matrix, length=14)
        self.heats = [HeatFigure(self.axis, heights.heat) for _ in range(2)]
        matrix, heats = self.matrix_figure.plot, [heat.plot for heat in self.heats]
        align(matrix)
        for plot in (matrix, *heats):
            plot.on_event(DoubleTap, lambda: self.axis.follow(True))
        self.overview: UIElement = column(self.loss.root, matrix, sizing_mode="stretch_width")
        self.layer: UIElement = column(*heats, sizing_mode="stretch_width")
        self._sides: tuple[Side, Side] | None = None
        self.set_log(False)
        self.show_layer(None)

    def update(self, a: Side, b: Side, comparison: Comparison) -> None:
        """Show two runs as they are now."""
        self._sides = (a, b)
        matrix = comparison.matrix()
        epochs = a.epochs or b.epochs
        self.axis.update(_span((a, b), matrix.first_step, matrix.last_step), epochs)
        for side, lines in zip((a, b), self._lines, strict=True):
            self._draw_loss(side, lines)
        bands = [side.curves.loss for side in (a, b)]
        valid = [e.valid_loss for side in (a, b) for e in side.epochs if e.valid_loss is not None]
        values = np.concatenate([*(one.low for one in bands), *(one.high for one in bands), valid])
        self.loss.fit(values)
        nothing = not np.isfinite(values).any()
        self.loss.say("Neither run has a step with a finite loss." if nothing else "")
        self._names = (short(a.name, 12), short(b.name, 12))
        self._name_lines()
        self.matrix_figure.update(matrix)

    def show_layer(
        self, pair: tuple[LayerHistory | None, LayerHistory | None] | None, words: str = CHOOSE
    ) -> None:
        """Show one layer of both runs below each other, on the same scale of values.

        Args:
            pair: its history in each run, None where a run does not have it; None shows no layer.
            words: what is said where no layer is shown.
        """
        if pair is None or self._sides is None:
            for heat in self.heats:
                heat.clear(words)
            return
        for heat, history, side in zip(self.heats, pair, self._sides, strict=True):
            if history is None or not len(history):
                heat.clear(NO_COLUMNS)
                retitle(heat.plot, short(side.name, 40))
            else:
                name = short(history.layer.name or history.layer.kind, 30)
                _show(heat, history, f"{short(side.name, 30)}: layer {name}")
        limits = [heat.limits for heat in self.heats if heat.limits is not None]
        for heat in self.heats:
            if limits:
                heat.reach(min(low for low, _ in limits), max(high for _, high in limits))

    def set_log(self, log: bool) -> None:
        """Whether the losses have a logarithmic axis."""
        self.loss.show(log)

    def select(self, index: int | None) -> None:
        """Outline a row of the matrix, or none."""
        self.matrix_figure.select(index)

    def on_select(self, callback: Callable[[int], None]) -> None:
        """Have ``callback(index)`` called whenever a row is clicked: `Comparison.distances`'s."""
        self.matrix_figure.on_select(callback)

    def _fill(self, plot: figure) -> None:
        align(plot)
        for lines in self._lines:
            for one in (lines.raw, lines.smooth, lines.valid):
                one.join(plot)
        entries = [("", lines.smooth.renderer(plot)) for lines in self._lines]
        self._entries += legend_beside(plot, entries)
        self._name_lines()

    def _name_lines(self) -> None:
        for i, item in enumerate(self._entries):
            item.label = value(self._names[i % 2])

    def _draw_loss(self, side: Side, lines: _LossLines) -> None:
        curves, name = side.curves, short(side.name, 20)
        known = bool((curves.loss.finite > 0).any())
        raw = [Curve(name, curves.middle_step, curves.loss.mean)] if known else []
        lines.raw.draw(raw if len(curves) > 2 else [])
        if known:
            smooth = SMOOTH if len(curves) > 2 else 0.0
            mean = smoothed_loss(curves, smooth, log=False)
            raw = [Curve(name, curves.middle_step, mean)]
        lines.smooth.draw(raw)
        measured = [(e.last_step, e.valid_loss) for e in side.epochs if e.valid_loss is not None]
        x, y = np.array(measured, np.float64).reshape(-1, 2).T
        lines.valid.draw([Curve(f"{name}, validation", x, y)] if measured else [])


def _loss_lines(color: str) -> _LossLines:
    return _LossLines(
        Lines([], color, 0.8, alpha=0.35, number=None, dots=False),
        Lines([], color, 2.2, number="0.0000"),
        Lines([], color, 1.2, dashed=True, number="0.0000", dots=True),
    )


def _show(heat: HeatFigure, history: LayerHistory, title: str) -> None:
    grid = grid_of([history], MAX_CELLS) or Grid(0, 1, 1)
    heat.update(condense(history, grid), replace(grid, n_cells=MAX_CELLS), title)


def _span(sides: Sequence[Side], *others: Ints) -> tuple[int, int]:
    parts = [side.curves.first_step for side in sides] + [side.curves.last_step for side in sides]
    parts += others
    known = np.concatenate([np.zeros(0, np.int64), *parts])
    return (int(known.min()), int(known.max())) if len(known) else (0, 0)
