"""The sizes of a layer's gradients and updates, as lines over the steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convlens.core.histories import SeriesFigures
from convlens.runs.follower import RunFollower
from convlens.views.canvas import short
from convlens.views.lines import Curve
from convlens.views.matrices import module_of, name_in_module
from convlens.views.timeline import Grid, root_mean_square


def parameter_lines(
    follower: RunFollower, layer: str, grid: Grid
) -> tuple[list[Curve] | None, list[Curve] | None]:
    """The sizes of a layer's gradients, and the ratios of its updates to what they change.

    Args:
        follower: the run.
        layer: the layer's name.
        grid: the cells of time; each is one point of a line.

    Returns:
        Of each a line for each of the layer's parameters, None where the run has them of no layer.
    """

    def rows(figures: SeriesFigures) -> list[int]:
        return [i for i, info in enumerate(figures.layers) if module_of(info.name) == layer]

    gradients, updates, parameters = (
        follower.figures(quantity) for quantity in ("gradient", "update", "parameter")
    )
    return (
        _sizes(gradients, rows(gradients), grid) if gradients.layers else None,
        _ratios(updates, parameters, rows(updates), grid) if updates.layers else None,
    )


def _sizes(figures: SeriesFigures, rows: Sequence[int], grid: Grid) -> list[Curve]:
    x, sizes = root_mean_square(figures, figures.values["norm"][rows], grid)
    names = [short(name_in_module(figures.layers[row].name), 20) for row in rows]
    return [Curve(name, x, size) for name, size in zip(names, sizes, strict=True)]


def _ratios(
    updates: SeriesFigures, parameters: SeriesFigures, rows: Sequence[int], grid: Grid
) -> list[Curve]:
    """How large the steps are, measured by what they change, on the cells that both have."""
    whose = {info.name: row for row, info in enumerate(parameters.layers)}
    rows = [row for row in rows if updates.layers[row].name in whose]
    of = [whose[updates.layers[row].name] for row in rows]
    x, steps = root_mean_square(updates, updates.values["norm"][rows], grid)
    its_x, sizes = root_mean_square(parameters, parameters.values["norm"][of], grid)
    _, mine, its = np.intersect1d(x, its_x, assume_unique=True, return_indices=True)
    steps, sizes = steps[:, mine], sizes[:, its]
    ratios = np.divide(steps, sizes, out=np.full(steps.shape, np.nan), where=sizes > 0)
    names = [short(name_in_module(updates.layers[row].name), 20) for row in rows]
    return [Curve(name, x[mine], ratio) for name, ratio in zip(names, ratios, strict=True)]
