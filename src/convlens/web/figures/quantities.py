"""The numbers of the matrix of layers by steps, and which layers are sick by them. No drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convlens.core.buckets import Flags, Floats, Ints
from convlens.core.histories import LayerInfo, SeriesFigures
from convlens.core.records import SEVERITIES
from convlens.doctor.activations import (
    DEAD_PROBLEM,
    DEAD_WARNING,
    MIN_BATCHES,
    NEARLY_ALL_ZERO,
    NEARLY_CONSTANT,
)
from convlens.web.run_data import RunData

MAX_CELLS = 800
"""Cells of time at most: no screen shows more."""

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Quantity:
    """One way to colour the matrix.

    Attributes:
        label: what it shows.
        scale: ``"share"`` from 0 to 1, ``"signed"`` on either side of zero, ``"log"`` by magnitude.
        series: ``"activation"``, ``"gradient"`` or ``"update"``.
        how: how to read it.
        zero: what a value of exactly 0 means on a logarithmic scale.
    """

    label: str
    scale: Literal["share", "signed", "log"]
    series: str
    how: str
    zero: str = ""


QUANTITIES: Mapping[str, Quantity] = {
    "near_zero": Quantity(
        "share near zero", "share", "activation",
        "The share of outputs that are near zero, after the ReLU if one follows the layer. About "
        "half is usual there; a row that turns bright passes next to nothing on.",
    ),
    "mean": Quantity(
        "mean activation", "signed", "activation",
        "The mean of each layer's outputs. Pale rows near 0 are good; a row that grows in either "
        "colour drifts, and those after it get ever larger values.",
    ),
    "std": Quantity(
        "standard deviation", "log", "activation",
        "The standard deviation of each layer's outputs. Rows of like colour are good; one that "
        "fades with depth or with time loses what tells images apart.", "all values are the same",
    ),
    "dead": Quantity(
        "share of dead channels", "share", "activation",
        "The share of channels without a positive value before a ReLU, in the worst batch of each "
        "cell. Dark is good; bright rows are capacity that is not used.",
    ),
    "gradient": Quantity(
        "gradient norm ‖g‖", "log", "gradient",
        "The norm of the gradients of each layer's parameters. Rows of like colour are good; those "
        "that fade towards the first layers learn slowly (vanishing gradients).", "no gradient",
    ),
    "update": Quantity(
        "update ratio ‖Δw‖ / ‖w‖", "log", "update",
        "By which part of itself a step changes a layer's parameters. About 0.001 is usual with "
        "SGD and Adam; far more is unstable, far less hardly learns.", "no update",
    ),
}  # fmt: skip
"""What the matrix can show, by the names in addresses."""


@dataclass(frozen=True)
class Cells:
    """One number for each of the run's L layers in each of K columns of time.

    Attributes:
        first_step: (K,) first step of each column.
        last_step: (K,) last step of each column.
        values: (L, K), NaN where nothing was recorded.
        bad: (L, K) whether there were values that are NaN or infinite.
    """

    first_step: Ints
    last_step: Ints
    values: Values
    bad: Flags

    @property
    def tail(self) -> slice:
        """The columns that begin in the last quarter of the steps, at least the last one."""
        if not len(self.first_step):
            return slice(0, 0)
        first, last = int(self.first_step[0]), int(self.last_step[-1])
        start = int(np.searchsorted(self.first_step, last - (last - first) / 4))
        return slice(min(start, len(self.first_step) - 1), len(self.first_step))


def measured(run: RunData, name: str) -> Cells:
    """The numbers of one of `QUANTITIES` as they were recorded."""
    series = QUANTITIES[name].series
    if series == "gradient":
        figures = run.figures("gradient")
        squares = figures.values["norm"].astype(np.float64) ** 2
        values = np.sqrt(_by_layer(run.layers, figures.layers, squares))
    elif series == "update":
        figures = run.figures("update")
        values = _update_ratio(run, figures)
    else:
        figures = run.figures()
        values = figures.values[name]
        relu = np.array([info.feeds_relu for info in run.layers], np.bool_)[:, None]
        if name == "near_zero":
            values = np.where(relu, figures.values["near_zero_after_relu"], values)
        elif name == "dead":
            values = np.where(relu, values, np.nan)
    bad = figures.values["nonfinite"]
    if series != "activation":
        bad = _by_layer(run.layers, figures.layers, bad)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and drawn as the highest
        return Cells(figures.first_step, figures.last_step, values.astype(np.float32), bad > 0)


def _update_ratio(run: RunData, updates: SeriesFigures) -> Floats:
    parameters = run.figures("parameter")
    columns = np.searchsorted(parameters.first_step, updates.first_step)
    there = np.isin(updates.first_step, parameters.first_step)
    rows = {info.name: row for row, info in enumerate(parameters.layers)}
    weights = np.full(updates.values["norm"].shape, np.nan)
    for i, info in enumerate(updates.layers):
        if info.name in rows:
            weights[i, there] = parameters.values["norm"][rows[info.name], columns[there]]
    changes = updates.values["norm"].astype(np.float64)
    size = _by_layer(run.layers, updates.layers, weights**2)
    change = _by_layer(run.layers, updates.layers, changes**2)
    return np.sqrt(np.divide(change, size, out=np.full(size.shape, np.nan), where=size > 0))


def _by_layer(
    layers: Sequence[LayerInfo], parameters: Sequence[LayerInfo], values: NDArray[np.floating]
) -> Floats:
    """(L, K) sums over each layer's own parameters; NaN where none of them has a value."""
    rows = {info.name: row for row, info in enumerate(layers)}
    total = np.full((len(layers), values.shape[1]), np.nan)
    for info, more in zip(parameters, values, strict=True):
        row = rows.get(info.name.rpartition(".")[0])
        if row is not None:
            total[row] = np.where(np.isnan(more), total[row], np.nan_to_num(total[row]) + more)
    return total


def condense(cells: Cells, *, peaks: bool) -> tuple[int, Cells]:
    """The same numbers in at most `MAX_CELLS` cells of equal width, and that width in steps.

    Where twice as many columns come, cells become twice as wide: a growing run seldom changes what
    was drawn.

    Args:
        cells: as recorded.
        peaks: whether a cell is the largest number of its columns, else their mean.
    """
    first, last = cells.first_step, cells.last_step
    if not len(first):
        return 1, cells
    gap = int(np.median(np.diff(first))) if len(first) > 1 else int(last[-1] - first[0]) + 1
    width = max(1, gap)
    while (int(last[-1]) - int(first[0])) // width + 1 > MAX_CELLS:
        width *= 2
    n = (int(last[-1]) - int(first[0])) // width + 1
    places = (first - first[0]) // width
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    values = np.full((len(cells.values), n), np.nan, np.float32)
    bad = np.zeros(values.shape, np.bool_)
    values[:, places[starts]] = _merged(cells, starts, peaks)
    bad[:, places[starts]] = np.logical_or.reduceat(cells.bad, starts, axis=1)
    begins = first[0] + width * np.arange(n)
    return width, Cells(begins, begins + width - 1, values, bad)


def _merged(cells: Cells, starts: Ints, peaks: bool) -> NDArray[np.floating]:
    if peaks or len(starts) == len(cells.first_step):
        return np.fmax.reduceat(cells.values, starts, axis=1)
    known = ~np.isnan(cells.values)
    weight = known * (cells.last_step - cells.first_step + 1.0)
    total = np.add.reduceat(np.where(known, cells.values, 0) * weight, starts, axis=1)
    mass = np.add.reduceat(weight, starts, axis=1)
    return np.divide(total, mass, out=np.full(total.shape, np.nan), where=mass > 0)


class LayerHealth(NamedTuple):
    """How a layer is, by the findings about it and by its own numbers in the last quarter.

    Attributes:
        layer: its name.
        severity: ``"problem"``, ``"warning"`` or empty.
        words: why, in a few words, such as ``"all channels dead"``; empty if it is well.
    """

    layer: str
    severity: str
    words: str


def layer_health(run: RunData) -> list[LayerHealth]:
    """The health of every watched layer, worst first; those alike in order of depth."""
    own = _judge(run)
    found: list[tuple[int, int, float, int, str]] = []
    for i, info in enumerate(run.layers):
        rank, group, score, words = own.get(i, (2, 9, 0.0, ""))
        severity = run.severity_of(info.name)
        if severity in SEVERITIES[:2]:
            about = (one for one in run.findings or () if one.layer == info.name)
            words = words or next(about).kind.replace("-", " ")
            rank = min(rank, SEVERITIES.index(severity))
        found.append((rank, group, score, i, words))
    names = (*SEVERITIES[:2], "")
    return [
        LayerHealth(run.layers[i].name, names[rank], words)
        for rank, _, _, i, words in sorted(found)
    ]


def _judge(run: RunData) -> dict[int, tuple[int, int, float, str]]:
    """By layer: rank of its severity, what is wrong by importance, score (low is bad), words."""
    cells, values = measured(run, "dead"), run.figures().values
    if not len(cells.first_step):
        return {}
    tail = cells.tail
    batches = int((cells.last_step - cells.first_step + 1)[tail].sum())
    dead = np.fmin.reduce(cells.values[:, tail], axis=1)
    near_zero = np.fmin.reduce(measured(run, "near_zero").values[:, tail], axis=1)
    size = np.maximum(np.abs(values["mean"]), 0.05)
    spread = np.fmax.reduce((values["std"] / size)[:, tail], axis=1)
    gradients = measured(run, "gradient")
    norm = np.full(len(dead), np.nan)
    if len(gradients.first_step):
        norm = np.fmax.reduce(gradients.values[:, gradients.tail], axis=1)
    found: dict[int, tuple[int, int, float, str]] = {}
    for i, bad in enumerate(cells.bad):
        if bad.any():
            step = int(cells.first_step[bad.argmax()])
            found[i] = 0, 0, step, f"NaN or infinite values from step {step:,}"
        elif batches >= MIN_BATCHES and dead[i] >= DEAD_WARNING:
            share = "all" if dead[i] == 1 else f"at least {100 * dead[i]:.0f} % of"
            found[i] = int(dead[i] < DEAD_PROBLEM), 1, -float(dead[i]), f"{share} channels dead"
        elif spread[i] <= NEARLY_CONSTANT:
            found[i] = 1, 2, 0.0, "all values are the same"
        elif near_zero[i] > NEARLY_ALL_ZERO:
            found[i] = 1, 3, -float(near_zero[i]), f"{100 * near_zero[i]:.0f} % near zero"
        elif norm[i] == 0:
            found[i] = 1, 4, 0.0, "gradient exactly 0"
    return found
