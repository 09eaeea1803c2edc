"""A report's figures of the watched layers: all of them as one matrix, and each by itself."""

from __future__ import annotations

from collections.abc import Sequence

from bokeh.layouts import column
from bokeh.models import UIElement

from convlens.histories import LayerHistory
from convlens.plots.canvas import BLUE
from convlens.records import Epoch
from convlens.views.canvas import StepAxis, side_by_side
from convlens.views.layer_view import HeatFigure, StatFigure, draw_moments, draw_near_zero
from convlens.views.matrices import joined_figures, make_matrix
from convlens.views.matrix import MatrixFigure
from convlens.views.timeline import Grid

STATS_HEIGHT, HEAT_HEIGHT = 210, 340


def matrix_height(n_layers: int) -> int:
    """Pixels for the matrix of so many layers: readable rows, but one screen at most."""
    return min(max(110 + 26 * n_layers, 220), 900)


def matrix(
    layers: Sequence[LayerHistory], epochs: Sequence[Epoch], span: tuple[int, int]
) -> UIElement:
    """Layers × steps coloured by the share of values near zero; a row leads to its layer."""
    axis = StepAxis(span, epochs)
    shown = MatrixFigure(axis, matrix_height(len(layers)), links=True, grows=False)
    shown.update(make_matrix("near_zero", joined_figures(layers)))
    return shown.plot


def layer(
    history: LayerHistory, grid: Grid, epochs: Sequence[Epoch], span: tuple[int, int]
) -> UIElement:
    """Everything of one condensed layer: its histograms, and three statistics below them."""
    axis = StepAxis(span, epochs)
    heat = HeatFigure(axis, HEAT_HEIGHT, counts=False)
    heat.update(history, grid, "Activations of every batch, with 1, 25, 50, 75, 99 % quantiles")
    mean, std = (
        StatFigure(axis, title, STATS_HEIGHT, colors=(BLUE,), say_steps=True)
        for title in ("Mean", "Standard deviation")
    )
    near_zero = StatFigure(axis, "% near zero", STATS_HEIGHT, say_steps=True)
    draw_moments(mean, std, history)
    draw_near_zero(near_zero, history)
    stats = [mean.plot, std.plot, near_zero.plot]
    return column(heat.plot, side_by_side(stats), sizing_mode="stretch_width")
