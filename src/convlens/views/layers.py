"""A report's figures of the watched layers: all of them as one matrix, and each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bokeh.layouts import column
from bokeh.models import UIElement

from convlens.core.histories import LayerHistory, UpdateHistory
from convlens.core.records import Epoch
from convlens.views.canvas import StepAxis, side_by_side
from convlens.views.layer_view import (
    HeatFigure,
    StatFigure,
    draw_channels,
    draw_gradients,
    draw_moments,
    draw_near_zero,
    draw_updates,
)
from convlens.views.matrices import Matrix
from convlens.views.matrix import MatrixFigure
from convlens.views.timeline import Grid

STATS_HEIGHT, HEAT_HEIGHT = 210, 340


@dataclass(frozen=True)
class Parameters:
    """What was recorded of a layer's parameters; nothing where it has none.

    Attributes:
        gradients: their gradients.
        updates: what the optimizer did to them.
    """

    gradients: Sequence[LayerHistory] = ()
    updates: Sequence[UpdateHistory] = ()


@dataclass(frozen=True)
class Drawn:
    """A layout that is to be embedded.

    Attributes:
        root: the layout.
        height: its pixels where the page is wide.
    """

    root: UIElement
    height: int


def matrix(shown: Matrix, epochs: Sequence[Epoch], span: tuple[int, int]) -> Drawn:
    """Layers × steps coloured by one quantity; a row leads to its layer."""
    height = _matrix_height(len(shown.names))
    figure = MatrixFigure(StepAxis(span, epochs), height, links=True, grows=False)
    figure.update(shown)
    return Drawn(figure.plot, height)


def _matrix_height(n_layers: int) -> int:
    """Pixels for the matrix of so many layers: readable rows, but one screen at most."""
    return min(max(110 + 26 * n_layers, 220), 900)


def layer(
    history: LayerHistory,
    grid: Grid,
    epochs: Sequence[Epoch],
    span: tuple[int, int],
    parameters: Parameters,
) -> Drawn:
    """Everything of one condensed layer: its histograms, and its statistics below them."""
    axis = StepAxis(span, epochs)
    heat = HeatFigure(axis, HEAT_HEIGHT, counts=False)
    heat.update(history, grid, "Activations of every batch, with 1, 25, 50, 75, 99 % quantiles")
    stats = [stat.plot for stat in _stats(axis, history, parameters)]
    across = 2 if len(stats) == 4 else 3
    rows = [side_by_side(stats[i : i + across]) for i in range(0, len(stats), across)]
    root = column(heat.plot, *rows, sizing_mode="stretch_width")
    return Drawn(root, HEAT_HEIGHT + STATS_HEIGHT * len(rows))


def _stats(axis: StepAxis, history: LayerHistory, parameters: Parameters) -> list[StatFigure]:
    """The statistics that this layer has."""

    def stat(title: str, *, log: bool = False) -> StatFigure:
        return StatFigure(axis, title, STATS_HEIGHT, log=log, say_steps=True)

    mean, std, near_zero = (stat(t) for t in ("Mean", "Standard deviation", "% near zero"))
    draw_moments(mean, std, history)
    draw_near_zero(near_zero, history)
    stats = [mean, std, near_zero]
    if history.channels:
        stats.append(stat("Dead, silent channels"))
        draw_channels(stats[-1], history)
    if parameters.gradients:
        stats.append(stat("Gradient size ‖g‖", log=True))
        draw_gradients(stats[-1], parameters.gradients)
    if parameters.updates:
        stats.append(stat("Update ratio ‖Δw‖ / ‖w‖", log=True))
        draw_updates(stats[-1], parameters.updates)
    return stats
