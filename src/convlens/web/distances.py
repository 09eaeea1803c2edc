"""How far two runs are apart, layer by layer and step by step.

The distance of two histograms is their total variation, ½ Σ |p − q| over the buckets' shares p and
q of all values, NaN and the infinities as buckets of their own: the share of the values that would
have to be moved to make one of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from convlens.core.buckets import Flags, Floats, Ints
from convlens.core.columns import Columns, coarsen
from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.wording import plural
from convlens.errors import ArgumentError
from convlens.runs import Run
from convlens.web.workers import Results

CELL_BITS = 9
"""The steps are added up to at most 2^9 = 512 cells."""

THRESHOLD = 0.1
"""A distance that is more than noise: a tenth of the values lie elsewhere."""

MAX_KEPT = 8
"""Comparisons that are remembered."""

WAIT_S, SHARE = 1.0, 20
"""The first request waits so long for a comparison; one of growing runs is worked out anew after
so many times what it took."""

Steps = tuple[int, int]
"""First and last step."""


@dataclass(frozen=True)
class Distance:
    """How far one layer is apart in two runs, over the K cells of time that both have.

    Attributes:
        layer: the layer, as the first run has it.
        level: a cell covers the steps that share ``step >> level``.
        first_step: (K,) first step of each cell.
        last_step: (K,) last step of each cell.
        values: (K,) total variation, from 0 to 1; NaN where a run has no values.
        parted: the first column of time in which any single count differs.
        far: the first cell with a distance above `THRESHOLD`.
    """

    layer: LayerInfo
    level: int
    first_step: Ints
    last_step: Ints
    values: Floats
    parted: Steps | None
    far: Steps | None


@dataclass(frozen=True)
class Comparison:
    """The distances of the layers that two runs share, where they part, and what to know of it."""

    distances: Sequence[Distance] = ()
    parting: str = ""
    remarks: Sequence[str] = ()


def grid_level(last_step: int) -> int:
    """The level at which the steps up to one are at most 2^`CELL_BITS` cells."""
    return max(0, last_step.bit_length() - CELL_BITS)


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
            f"{b.layout.size} others in the other, which cannot be compared."
        )
    level = max(_level(a.columns), _level(b.columns))
    mine, its = coarsen(a.columns, level), coarsen(b.columns, level)
    _, rows, others = np.intersect1d(
        mine.first_step, its.first_step, assume_unique=True, return_indices=True
    )
    same = mine.last_step[rows] == its.last_step[others]
    mine, its = mine[rows[same]], its[others[same]]
    parted = _first(mine, (_counts(mine) != _counts(its)).any(axis=1))
    level = max(level, grid_level(int(mine.last_step.max(initial=0))))
    mine, its = coarsen(mine, level), coarsen(its, level)
    values = total_variation(mine, its)
    far = _first(mine, values > THRESHOLD)
    return Distance(a.layer, level, mine.first_step, mine.last_step, values, parted, far)


def total_variation(a: Columns, b: Columns) -> Floats:
    """(K,) distance of two sketches of the same buckets, NaN where either has no value."""
    p, q = _counts(a), _counts(b)
    n, m = (counts.sum(axis=1, keepdims=True, dtype=np.float64) for counts in (p, q))
    apart = np.abs(p / np.maximum(n, 1) - q / np.maximum(m, 1)).sum(axis=1) / 2
    return np.where((n[:, 0] > 0) & (m[:, 0] > 0), np.clip(apart, 0.0, 1.0), np.nan)


def _counts(columns: Columns) -> NDArray[np.int64]:
    """(K, B + 3) counts, those of NaN and the infinities last."""
    rest = np.stack([columns.nan, columns.neg_inf, columns.pos_inf], axis=1)
    return np.concatenate([columns.counts, rest], axis=1)


def _first(columns: Columns, flags: Flags) -> Steps | None:
    """First and last step of the first column that is marked."""
    k = int(flags.argmax()) if len(flags) else 0
    return (int(columns.first_step[k]), int(columns.last_step[k])) if flags.any() else None


def _level(columns: Columns) -> int:
    """The smallest level whose columns none of these exceeds."""
    return int((columns.first_step ^ columns.last_step).max(initial=0)).bit_length()


def names_of(runs: Sequence[Run]) -> list[str]:
    """What runs are called: by their folders' names, with as many folders above as tell them apart.

    Returns:
        Names such as ``"demo-0001"``, or ``"old/demo-0001"`` where two runs are named alike.
    """
    paths = [run.path.resolve() for run in runs]
    names = [path.name for path in paths]
    depth = 1
    while len(set(names)) < len(set(paths)):
        depth += 1
        longer = ["/".join(path.parts[-depth:]) for path in paths]
        names = [
            new if names.count(old) > 1 else old for old, new in zip(names, longer, strict=True)
        ]
    return names


def compare(a: Run, b: Run) -> Comparison:
    """Compare two runs' layers of the same names; one layer of both is in memory at a time.

    Raises:
        RunError: if one of them cannot be read.
    """
    layers = a.layers, b.layers
    names, places = names_of((a, b)), {info.name: i for i, info in enumerate(layers[1])}
    distances, remarks, lasts = list[Distance](), list[str](), [0, 0]
    for i, info in enumerate(layers[0]):
        if info.name not in places:
            continue
        pair = a.history(i), b.history(places[info.name])
        lasts = [max([last, *one.last_step[-1:]]) for last, one in zip(lasts, pair, strict=True)]
        try:
            distances.append(layer_distance(*pair))
        except ArgumentError as error:
            remarks.append(str(error))
    for name, mine, its in zip(names, layers, layers[::-1], strict=True):
        common = {info.name for info in its}
        alone = [info.name or info.kind for info in mine if info.name not in common]
        if alone:
            listed = ", ".join(alone[:5]) + (", …" if len(alone) > 5 else "")
            remarks.append(f"Only in {name}: {plural(len(alone), 'layer')} ({listed}).")
    if lasts[0] != lasts[1]:
        said = " and ".join(f"{n} to step {e:,}" for n, e in zip(names, lasts, strict=True))
        remarks.append(f"The runs are not equally long: {said}. They are compared where both are.")
    return Comparison(distances, parting(distances), [*remarks, *_remarks_on_steps(a, b)])


def _remarks_on_steps(a: Run, b: Run) -> Iterator[str]:
    """Why the same step may not be the same in both."""
    metas = a.meta, b.meta
    data = [meta.get("data") for meta in metas]
    sizes = [one.get("batch_size") if isinstance(one, dict) else None for one in data]
    if None not in sizes and sizes[0] != sizes[1]:
        yield (
            f"Batches have {sizes[0]} items in one run and {sizes[1]} in the other, so that the "
            "same step is not the same number of items."
        )
    if metas[0].get("counted") != metas[1].get("counted"):
        yield "One run counts the optimizer's steps, the other every forward of the model."


def parting(distances: Sequence[Distance]) -> str:
    """The first step at which two runs part, and where they are first more than noise apart."""
    compared = [one for one in distances if len(one.first_step)]
    if not compared:
        return "The runs have no layer and step in common, so their layers cannot be compared."
    names = [f"layer {one.layer.name or one.layer.kind}" for one in compared]
    first = min(int(one.first_step[0]) for one in compared)
    parted = [(one.parted, i) for i, one in enumerate(compared) if one.parted]
    if not parted:
        last, n = max(int(one.last_step[-1]) for one in compared), plural(len(names), "layer")
        return f"The runs never part: every count of {n} is equal from step {first:,} to {last:,}."
    steps, i = min(parted)
    begin = "they differ from the first step on"
    before = begin if steps[0] == first else "every count before was the same"
    words = f"The runs part {_when(steps)}, in {names[i]}: {before}."
    far = [(one.far, i) for i, one in enumerate(compared) if one.far]
    rule = f"a distance above {100 * THRESHOLD:g} %"
    if not far:
        return f"{words} No layer ever has {rule}."
    steps, i = min(far)
    return f"{words} The first with {rule} is {names[i]}, {_when(steps)}."


def _when(steps: Steps) -> str:
    first, last = steps
    return f"at step {first:,}" if first == last else f"within steps {first:,} to {last:,}"


def _compare(a: Run, b: Run) -> Comparison:
    try:
        return compare(a, b)
    except Exception as error:
        return Comparison(parting=f"The layers cannot be compared: {error}")


class Distances:
    """Comparisons of pairs of runs, worked out by one thread: every histogram is read."""

    def __init__(self) -> None:
        self._results = Results[Comparison](MAX_KEPT, lambda took: SHARE * took)

    def close(self) -> None:
        """Work out nothing any more."""
        self._results.close()

    def of(self, runs: Sequence[tuple[Run, str]]) -> tuple[str, Comparison | None]:
        """The state that two runs were compared in, and the comparison, None for none yet.

        Another one is begun where the mark of a run's state differs. Of other numbers of runs than
        two nothing is known.
        """
        if len(runs) != 2:
            return "", None
        (a, _), (b, _) = runs
        mark = "-".join(mark for _, mark in runs)
        found = self._results.of((a.path, b.path), mark, partial(_compare, a, b), wait_s=WAIT_S)
        return found.mark or "", found.value
