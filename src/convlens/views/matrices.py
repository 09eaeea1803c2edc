"""Layers by steps: one number for each layer and stretch of steps, and the colour it gets.

Plain NumPy, no drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convlens.core.buckets import Flags, Floats, Ints
from convlens.core.histories import FIGURES, LayerHistory, LayerInfo, SeriesFigures, figures_of
from convlens.errors import ArgumentError
from convlens.plots.canvas import short_count
from convlens.views.timeline import Grid

MAX_COLUMNS = 800
"""Cells that a matrix is drawn with at most: no screen shows more."""

NONE, BAD = 0, 255
"""Levels of a cell without a number, and of one with values that are NaN or infinite."""

TOP = BAD - 1
"""The levels from 1 to this one are colours, from the lowest to the highest number."""

DECADES = 6
"""A logarithmic scale spans so many at most: one tiny number must not make all others alike."""

Scale = Literal["share", "signed", "log"]
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """One number for each of L layers in each of K columns of time.

    Attributes:
        label: what the numbers are.
        unit: their unit, or what its ends mean; empty where the label says all.
        scale: how they are coloured: ``"share"`` from 0 to 1, ``"signed"`` on either side of zero,
            ``"log"`` by magnitude.
        names: the L layers' names.
        kinds: their modules' class names.
        first_step: (K,) first step of each column.
        last_step: (K,) last step of each column.
        values: (L, K) the numbers, NaN where there is none.
        bad: (L, K) whether the layer had values that are NaN or infinite.
        peaks: whether columns that are drawn as one show their largest number, else their mean.
        missing: a sentence for where nothing was recorded.
    """

    label: str
    unit: str
    scale: Scale
    names: Sequence[str]
    kinds: Sequence[str]
    first_step: Ints
    last_step: Ints
    values: Values
    bad: Flags
    peaks: bool = False
    missing: str = "no batch was recorded yet"


@dataclass(frozen=True)
class Quantity:
    """One way to colour the matrix.

    Attributes:
        label: what it shows.
        scale: see `Matrix`.
        series: ``"activation"``, ``"gradient"`` or ``"update"``.
        unit: see `Matrix`.
        peaks: see `Matrix`.
    """

    label: str
    scale: Scale
    series: str = "activation"
    unit: str = ""
    peaks: bool = False


QUANTITIES: Mapping[str, Quantity] = {
    "near_zero": Quantity("share near zero", "share"),
    "mean": Quantity("mean activation", "signed"),
    "std": Quantity("standard deviation", "log"),
    "dead": Quantity("share of channels dead", "share", peaks=True),
    "gradient": Quantity("gradient size ‖g‖", "log", "gradient"),
    "update": Quantity("update ratio ‖Δw‖ / ‖w‖", "log", "update"),
}
"""What the matrix can show, by key."""


def make_matrix(
    key: str,
    activations: SeriesFigures,
    gradients: SeriesFigures | None = None,
    updates: SeriesFigures | None = None,
    parameters: SeriesFigures | None = None,
) -> Matrix:
    """The matrix of one quantity; the rows are the watched layers, whatever the quantity.

    Args:
        key: one of `QUANTITIES`.
        activations: the layers' outputs.
        gradients: the parameters' gradients, None if they were not watched.
        updates: what the steps added to the parameters, None if that was not watched.
        parameters: the parameters before the steps.

    Raises:
        ArgumentError: if there is no such quantity.
    """
    if key not in QUANTITIES:
        raise ArgumentError(
            f"key={key!r} is nothing that a matrix shows; give one of "
            f"{', '.join(map(repr, QUANTITIES))}."
        )
    series = QUANTITIES[key].series
    if series == "activation":
        return _activation_matrix(key, activations)
    layers = activations.layers or _modules(gradients or updates)
    if series == "gradient":
        return _gradient_matrix(layers, gradients)
    return _update_matrix(layers, updates, parameters)


def joined_figures(layers: Sequence[LayerHistory]) -> SeriesFigures:
    """The figures of whole histories, on the union of their columns."""
    none = np.zeros(0, np.int64)
    firsts = np.concatenate([none, *(history.first_step for history in layers)])
    first, where = np.unique(firsts, return_index=True)
    last = np.concatenate([none, *(history.last_step for history in layers)])[where]
    values = np.full((len(FIGURES), len(layers), len(first)), np.nan, np.float32)
    for i, history in enumerate(layers):
        values[:, i, np.searchsorted(first, history.first_step)] = figures_of(history)
    infos = [history.layer for history in layers]
    return SeriesFigures(infos, first, last, dict(zip(FIGURES, values, strict=True)))


def condense_matrix(matrix: Matrix, max_cells: int = MAX_COLUMNS) -> tuple[Grid, Matrix]:
    """The same matrix on cells of equal width, as many as can be drawn.

    A cell is the mean of its columns, each weighing as its steps, or the largest of them, as the
    matrix says. Twice as many columns make cells twice as wide, so that a growing run seldom
    changes what has been drawn.

    Returns:
        The cells, and the matrix with a column for each of them.
    """
    first = matrix.first_step
    if not len(first):
        return Grid(0, 1, 0), matrix
    width = _cell_width(first, int(matrix.last_step[-1]), max_cells)
    grid = Grid(int(first[0]), width, (int(matrix.last_step[-1]) - int(first[0])) // width + 1)
    cells = (first - grid.first) // width
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    shape = (len(matrix.names), grid.n_cells)
    values, bad = np.full(shape, np.nan, np.float32), np.zeros(shape, np.bool_)
    values[:, cells[starts]] = _merge(matrix, starts)
    bad[:, cells[starts]] = np.logical_or.reduceat(matrix.bad, starts, axis=1)
    begins = grid.first + width * np.arange(grid.n_cells)
    ends = begins + width - 1
    return grid, replace(matrix, first_step=begins, last_step=ends, values=values, bad=bad)


@dataclass(frozen=True)
class Limits:
    """From which number to which the colours of a matrix reach.

    Attributes:
        scale: see `Matrix`.
        low: the number of the lowest colour; what is below has that colour too.
        high: the number of the highest.
    """

    scale: Scale
    low: float
    high: float

    def levels(self, values: Values) -> NDArray[np.uint8]:
        """The colour of each number, 1 to `TOP`; `NONE` where it is NaN."""
        place = (self._measure(values) - self._low) / (self._high - self._low)
        shown = np.clip(np.nan_to_num(place, nan=0.0), 0.0, 1.0)
        levels = np.round(1 + shown * (TOP - 1))
        return np.where(np.isnan(values), NONE, levels).astype(np.uint8)

    def ticks(self) -> dict[float, str]:
        """Levels and their words, for the colour bar."""
        if self.scale == "share":
            numbers = [0.0, 0.25, 0.5, 0.75, 1.0]
            words = [f"{100 * number:.0f} %" for number in numbers]
        elif self.scale == "signed":
            numbers = [self.low, self.low / 2, 0.0, self.high / 2, self.high]
            words = [f"{number:+.2g}" if number else "0" for number in numbers]
        else:
            powers = range(round(np.log10(self.low)), round(np.log10(self.high)) + 1)
            numbers = [10.0**power for power in powers]
            words = [_power(power) for power in powers]
        levels = self.levels(np.array(numbers, np.float32)).tolist()
        return dict(zip(map(float, levels), words, strict=True))

    @property
    def _low(self) -> float:
        return float(np.log10(self.low)) if self.scale == "log" else self.low

    @property
    def _high(self) -> float:
        return float(np.log10(self.high)) if self.scale == "log" else self.high

    def _measure(self, values: Values) -> Floats:
        if self.scale != "log":
            return values.astype(np.float64)
        return np.log10(np.maximum(values, self.low, dtype=np.float64))


def limits_of(matrix: Matrix) -> Limits:
    """Round limits that hold the matrix, so that they seldom change while a run grows."""
    known = matrix.values[np.isfinite(matrix.values)]
    if matrix.scale == "share":
        return Limits("share", 0.0, 1.0)
    if matrix.scale == "signed":
        # A thousandth of the cells may go beyond: one spike must not pale all others.
        size = float(np.quantile(np.abs(known), 0.999)) if len(known) else 0.0
        high = round_up(size) if size > 0 else 1.0
        return Limits("signed", -high, high)
    known = known[known > 0]
    if not len(known):
        return Limits("log", 0.1, 1.0)
    high = int(np.ceil(np.log10(float(known.max()))))
    low = int(np.floor(np.log10(float(known.min()))))
    return Limits("log", 10.0 ** min(max(low, high - DECADES), high - 1), 10.0**high)


def _activation_matrix(key: str, figures: SeriesFigures) -> Matrix:
    values = figures.values.get(key, np.full((len(figures.layers), 0), np.nan, np.float32))
    if key == "near_zero" and len(figures.layers):
        feeds_relu = np.array([info.feeds_relu for info in figures.layers])[:, None]
        values = np.where(feeds_relu, figures.values["near_zero_after_relu"], values)
    if not figures.layers:
        missing = "no layer was watched"
    elif key == "dead" and len(figures.first_step):
        missing = "no layer has channels"
    else:
        missing = "no batch was recorded yet"
    return _matrix(key, figures.layers, figures, values, figures.values.get("nonfinite"), missing)


def _gradient_matrix(layers: Sequence[LayerInfo], gradients: SeriesFigures | None) -> Matrix:
    if gradients is None or not gradients.layers:
        return _nothing("gradient", layers, "gradients were not recorded")
    owners = _owners(layers, gradients.layers)
    size = np.sqrt(_added(_squares(gradients.values["norm"]), owners, len(layers)))
    bad = _added(gradients.values["nonfinite"], owners, len(layers))
    return _matrix("gradient", layers, gradients, size, bad)


def _update_matrix(
    layers: Sequence[LayerInfo], updates: SeriesFigures | None, parameters: SeriesFigures | None
) -> Matrix:
    if updates is None or parameters is None or not updates.layers:
        return _nothing("update", layers, "updates were not recorded")
    columns = np.searchsorted(parameters.first_step, updates.first_step)
    there = np.isin(updates.first_step, parameters.first_step)
    weights = np.full(updates.values["norm"].shape, np.nan, np.float32)
    rows = {info.name: row for row, info in enumerate(parameters.layers)}
    for i, info in enumerate(updates.layers):
        if info.name in rows:
            weights[i, there] = parameters.values["norm"][rows[info.name], columns[there]]
    owners = _owners(layers, updates.layers)
    size = _added(_squares(weights), owners, len(layers))
    step = _added(_squares(updates.values["norm"]), owners, len(layers))
    measured = (size > 0) & np.isfinite(size)
    ratio = np.divide(step, size, out=np.full(size.shape, np.nan), where=measured)
    bad = _added(updates.values["nonfinite"], owners, len(layers))
    return _matrix("update", layers, updates, np.sqrt(ratio), bad)


def _matrix(
    key: str,
    layers: Sequence[LayerInfo],
    figures: SeriesFigures,
    values: NDArray[np.floating],
    nonfinite: NDArray[np.floating] | None,
    missing: str = "no batch was recorded yet",
) -> Matrix:
    quantity = QUANTITIES[key]
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and drawn as the highest
        values = values.astype(np.float32)
    bad = np.zeros(values.shape, np.bool_) if nonfinite is None else nonfinite > 0
    return Matrix(
        quantity.label,
        quantity.unit,
        quantity.scale,
        [info.name or info.kind for info in layers],
        [info.kind for info in layers],
        figures.first_step,
        figures.last_step,
        values,
        bad,
        quantity.peaks,
        missing,
    )


def _nothing(key: str, layers: Sequence[LayerInfo], missing: str) -> Matrix:
    none = np.zeros(0, np.int64)
    values = np.zeros((len(layers), 0), np.float32)
    return _matrix(key, layers, SeriesFigures(layers, none, none, {}), values, None, missing)


def module_of(parameter: str) -> str:
    """The name of the module that has a parameter: all but its last part."""
    return parameter.rpartition(".")[0]


def name_in_module(parameter: str) -> str:
    """The name that a parameter has in its module: the last part."""
    return parameter.rpartition(".")[2]


def _owners(layers: Sequence[LayerInfo], parameters: Sequence[LayerInfo]) -> Ints:
    """(P,) the row of the layer that each parameter belongs to, -1 if it is not watched."""
    rows = {info.name: row for row, info in enumerate(layers)}
    return np.array([rows.get(module_of(info.name), -1) for info in parameters], np.int64)


def _modules(parameters: SeriesFigures | None) -> list[LayerInfo]:
    """A row for each module with parameters, where no layer's output was watched."""
    infos = parameters.layers if parameters is not None else ()
    names = dict.fromkeys(module_of(info.name) for info in infos)
    return [LayerInfo(i, name, "module") for i, name in enumerate(names)]


def _added(values: NDArray[np.floating], owners: Ints, n_layers: int) -> Floats:
    """(L, K) sums over each layer's parameters; NaN for a layer that has none."""
    added = np.full((n_layers, values.shape[1]), np.nan)
    for row, owner in enumerate(owners.tolist()):
        if owner >= 0:
            so_far, more = added[owner], values[row]
            both = so_far + np.nan_to_num(more, nan=0.0)
            added[owner] = np.where(np.isnan(so_far), more, both)
    return added


def _squares(norm: Values) -> Floats:
    return norm.astype(np.float64) ** 2


def _cell_width(first: Ints, last: int, max_cells: int) -> int:
    usual = max(1, int(np.median(np.diff(first)))) if len(first) > 1 else last - int(first[0]) + 1
    width = usual
    while (last - int(first[0])) // width + 1 > max_cells:
        width *= 2
    return width


def _merge(matrix: Matrix, starts: Ints) -> Values:
    if len(starts) == len(matrix.first_step):
        return matrix.values
    if matrix.peaks:
        return np.fmax.reduceat(matrix.values, starts, axis=1)
    weight = (matrix.last_step - matrix.first_step + 1).astype(np.float64)
    known = np.isfinite(matrix.values)
    total = np.add.reduceat(np.where(known, matrix.values, 0) * weight, starts, axis=1)
    mass = np.add.reduceat(known * weight, starts, axis=1)
    merged = np.divide(total, mass, out=np.full(total.shape, np.nan), where=mass > 0)
    return merged.astype(np.float32)


def round_up(size: float) -> float:
    """The next of … 0.1, 0.2, 0.5, 1, 2, 5 …."""
    decade = 10.0 ** np.floor(np.log10(size))
    return float(next(m * decade for m in (1, 2, 5, 10) if m * decade >= size * (1 - 1e-9)))


def _power(power: int) -> str:
    if power >= 0:
        return short_count(10**power)
    return f"{10.0**power:.{-power}f}" if power >= -3 else f"1e{power}"
