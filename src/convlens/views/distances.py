"""How far two runs are apart, layer by layer and step by step. Plain NumPy, no drawing.

The distance of two histograms is their total variation, ½ Σ |p − q| over the buckets' shares p and
q of all values, NaN and the infinities as buckets of their own: the share of the values that would
have to be moved to make one of the other. It is 0 for the same histogram and 1 where no bucket
holds values of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convlens.core.buckets import Flags, Floats, Ints
from convlens.core.columns import Columns, coarsen
from convlens.core.histories import LayerHistory
from convlens.core.wording import plural
from convlens.errors import ArgumentError
from convlens.views.matrices import Matrix

THRESHOLD = 0.1
"""A distance that is more than noise: a tenth of the values lie elsewhere."""


@dataclass(frozen=True)
class Distance:
    """How far one layer is apart in two runs, over the K columns of time that both have.

    Attributes:
        name: the layer's.
        kind: its module's class name, in the first run.
        first_step: (K,) first step of each column.
        last_step: (K,) last step of each column.
        values: (K,) total variation, from 0 to 1; NaN where a run has no values.
        equal: (K,) whether every single count is the same.
    """

    name: str
    kind: str
    first_step: Ints
    last_step: Ints
    values: Floats
    equal: Flags


@dataclass(frozen=True)
class Comparison:
    """Two runs beside each other.

    Attributes:
        distances: of the layers that both runs have, by name, in the first run's order.
        remarks: sentences on what could not be compared, and how the rest was.
    """

    distances: Sequence[Distance]
    remarks: Sequence[str]

    def matrix(self) -> Matrix:
        """Layers × steps of the distances."""
        firsts = np.concatenate([np.zeros(0, np.int64), *(d.first_step for d in self.distances)])
        lasts = np.concatenate([np.zeros(0, np.int64), *(d.last_step for d in self.distances)])
        first, where = np.unique(firsts, return_index=True)
        values = np.full((len(self.distances), len(first)), np.nan, np.float32)
        for row, distance in enumerate(self.distances):
            values[row, np.searchsorted(first, distance.first_step)] = distance.values
        return Matrix(
            "distance of the two runs",
            "total variation",
            "share",
            [distance.name or distance.kind for distance in self.distances],
            [distance.kind for distance in self.distances],
            first,
            lasts[where],
            values,
            np.zeros(values.shape, np.bool_),
            missing="the runs share no layer and step",
        )


@dataclass(frozen=True)
class Parting:
    """Where two runs part.

    Attributes:
        sentence: all of it in words.
        first_step: of the first column with any difference, None if there is none.
        layer: the first layer that differs there.
    """

    sentence: str
    first_step: int | None = None
    layer: str | None = None


def total_variation(a: Columns, b: Columns) -> Floats:
    """(K,) distance of two sketches column by column: ½ Σ |p − q| over shares of all values.

    Args:
        a: K columns.
        b: K columns with the same buckets.

    Returns:
        From 0 to 1; NaN where either has no value at all.
    """
    p, q = _counts(a), _counts(b)
    n, m = (counts.sum(axis=1, keepdims=True, dtype=np.float64) for counts in (p, q))
    apart = np.abs(p / np.maximum(n, 1) - q / np.maximum(m, 1)).sum(axis=1) / 2
    return np.where((n[:, 0] > 0) & (m[:, 0] > 0), np.clip(apart, 0.0, 1.0), np.nan)


def layer_distance(a: LayerHistory, b: LayerHistory) -> Distance:
    """How far two histories are apart at equal steps.

    Both are brought to the wider columns of the two. Columns that do not cover the same steps in
    both, as the newest of a growing run, are left out.

    Raises:
        ArgumentError: if they were counted in different buckets.
    """
    if a.layout != b.layout:
        raise ArgumentError(
            f"Layer {a.layer.name!r} was counted in {a.layout.size} buckets in one run and in "
            f"{b.layout.size} others in the other, which cannot be compared; compare runs that "
            "were recorded with the same bucket layout."
        )
    level = max(_level(a.columns), _level(b.columns))
    mine, its = coarsen(a.columns, level), coarsen(b.columns, level)
    _, rows, others = np.intersect1d(
        mine.first_step, its.first_step, assume_unique=True, return_indices=True
    )
    same = mine.last_step[rows] == its.last_step[others]
    mine, its = mine[rows[same]], its[others[same]]
    equal = (_counts(mine) == _counts(its)).all(axis=1)
    return Distance(
        a.layer.name,
        a.layer.kind,
        mine.first_step,
        mine.last_step,
        total_variation(mine, its),
        equal,
    )


def compare(
    a: Sequence[LayerHistory], b: Sequence[LayerHistory], names: tuple[str, str] = ("A", "B")
) -> Comparison:
    """Compare two runs' layers of the same names.

    Args:
        a: the layers of one run.
        b: those of the other.
        names: what the runs are called in the remarks.
    """
    others = {history.layer.name: history for history in b}
    distances, remarks = list[Distance](), list[str]()
    pairs = [(h, others[h.layer.name]) for h in a if h.layer.name in others]
    for mine, its in pairs:
        try:
            distances.append(layer_distance(mine, its))
        except ArgumentError as error:
            remarks.append(str(error))
    common = {mine.layer.name for mine, _ in pairs}
    for name, layers in zip(names, (a, b), strict=True):
        alone = [h.layer.name or h.layer.kind for h in layers if h.layer.name not in common]
        if alone:
            listed = ", ".join(alone[:5]) + (", …" if len(alone) > 5 else "")
            remarks.append(f"Only in {name}: {plural(len(alone), 'layer')} ({listed}).")
    if not pairs:
        remarks.insert(0, "The runs have no layer of the same name, so none can be compared.")
    remarks += _remarks_on_time(a, b, names, distances)
    return Comparison(distances, remarks)


def first_parting(distances: Sequence[Distance], threshold: float = THRESHOLD) -> Parting:
    """The first step at which two runs part.

    They part in the first column of time in which any count of any layer differs: before it the
    activations' histograms are exactly equal. A second step is given for where the distance of any
    layer first exceeds ``threshold``.

    Raises:
        ArgumentError: if ``threshold`` is not between 0 and 1.
    """
    if not 0 <= threshold < 1:
        raise ArgumentError(f"threshold must be at least 0 and less than 1, got {threshold}.")
    compared = [distance for distance in distances if len(distance.first_step)]
    if not compared:
        return Parting("The runs share no layer and step, so nothing can be said of their parting.")
    first = _first(compared, [~distance.equal for distance in compared])
    if first is None:
        span = f"{_lowest(compared):,} to {max(int(d.last_step[-1]) for d in compared):,}"
        layers = plural(len(compared), "common layer")
        return Parting(f"The runs never part: all counts of {layers} are equal, steps {span}.")
    distance, column = first
    step = int(distance.first_step[column])
    words = f"The runs part {_when(distance, column)}, in layer {distance.name or distance.kind}"
    words += (
        ": every count before was the same."
        if step > _lowest(compared)
        else ": they differ from the first step on."
    )
    far = _first(compared, [distance.values > threshold for distance in compared])
    rule = f"a distance above {threshold:g}"
    if far is None:
        words += f" No layer ever has {rule}."
        return Parting(words, step, distance.name)
    there = f"{_when(*far)}, in layer {far[0].name or far[0].kind}"
    at_once = (far[0].name, far[1]) == (distance.name, column)
    further = f"It is {rule} at once." if at_once else f"The first with {rule} is {there}."
    return Parting(f"{words} {further}", step, distance.name)


def _counts(columns: Columns) -> NDArray[np.int64]:
    """(K, B + 3) counts, those of NaN and the infinities last."""
    extra = np.stack([columns.nan, columns.neg_inf, columns.pos_inf], axis=1)
    return np.concatenate([columns.counts, extra], axis=1)


def _level(columns: Columns) -> int:
    """The smallest level whose columns none of these exceeds."""
    differing = columns.first_step ^ columns.last_step
    return int(differing.max(initial=0)).bit_length()


def _first(distances: Sequence[Distance], marked: Sequence[Flags]) -> tuple[Distance, int] | None:
    """The earliest marked column, that of the first layer where several are equally early."""
    found = [
        (int(distance.first_step[flags.argmax()]), row, int(flags.argmax()))
        for row, (distance, flags) in enumerate(zip(distances, marked, strict=True))
        if flags.any()
    ]
    if not found:
        return None
    _, row, column = min(found)
    return distances[row], column


def _lowest(distances: Sequence[Distance]) -> int:
    return min(int(distance.first_step[0]) for distance in distances)


def _when(distance: Distance, column: int) -> str:
    first, last = int(distance.first_step[column]), int(distance.last_step[column])
    return f"at step {first:,}" if first == last else f"within steps {first:,} to {last:,}"


def _remarks_on_time(
    a: Sequence[LayerHistory],
    b: Sequence[LayerHistory],
    names: tuple[str, str],
    distances: Sequence[Distance],
) -> list[str]:
    remarks = list[str]()
    ends = [max((int(h.last_step[-1]) for h in side if len(h)), default=None) for side in (a, b)]
    if None not in ends and ends[0] != ends[1]:
        said = " and ".join(f"{n} to step {e:,}" for n, e in zip(names, ends, strict=True))
        remarks.append(f"The runs are not equally long: {said}. They are compared where both are.")
    widths = [int((d.last_step - d.first_step).max()) + 1 for d in distances if len(d.first_step)]
    if widths and max(widths) > 1:
        remarks.append(f"Compared in columns of up to {max(widths):,} batches added up.")
    return remarks
