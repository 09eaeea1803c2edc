"""How far two runs are apart, layer by layer and step by step.

The distance of two histograms is their total variation, ½ Σ |p − q| over the buckets' shares p and
q of all values, NaN and the infinities as buckets of their own: the share of the values that would
have to be moved to make one of the other.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Lock, Thread

import numpy as np
from numpy.typing import NDArray

from convlens.core.buckets import Floats, Ints
from convlens.core.columns import Columns, coarsen
from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.wording import plural
from convlens.errors import ArgumentError
from convlens.runs import Run
from convlens.web.store import lower_priority

CELL_BITS = 9
"""The steps are added up to at most 2^9 = 512 cells."""

THRESHOLD = 0.1
"""A distance that is more than noise: a tenth of the values lie elsewhere."""

MAX_KEPT = 8
"""Comparisons that are remembered."""

WAIT_S = 1.0
"""The request that begins a comparison waits for it this long."""

SHARE = 20
"""A comparison of growing runs is worked out anew after so many times the time it took."""


@dataclass(frozen=True)
class Distance:
    """How far one layer is apart in two runs, over the K cells of time that both have.

    Attributes:
        layer: the layer, as the first run has it.
        level: a cell covers the steps that share ``step >> level``.
        first_step: (K,) first step of each cell.
        last_step: (K,) last step of each cell.
        values: (K,) total variation, from 0 to 1; NaN where a run has no values.
        parted: first and last step of the first column of time in which any single count differs.
    """

    layer: LayerInfo
    level: int
    first_step: Ints
    last_step: Ints
    values: Floats
    parted: tuple[int, int] | None


@dataclass(frozen=True)
class Comparison:
    """The distances of two runs.

    Attributes:
        distances: of the layers that both runs have, by name, in the first run's order.
        parting: the first step at which they part, in words.
        remarks: sentences on what could not be compared, and how the rest was.
    """

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
    differ = np.flatnonzero((mine.counts != its.counts).any(axis=1) | (_rest(mine) != _rest(its)).any(axis=1))  # fmt: skip
    parted = (int(mine.first_step[differ[0]]), int(mine.last_step[differ[0]])) if len(differ) else None  # fmt: skip
    if len(mine):
        level = max(level, grid_level(int(mine.last_step[-1])))
    mine, its = coarsen(mine, level), coarsen(its, level)
    apart = total_variation(mine, its)
    return Distance(a.layer, level, mine.first_step, mine.last_step, apart, parted)


def total_variation(a: Columns, b: Columns) -> Floats:
    """(K,) distance of two sketches of the same buckets column by column, NaN where one is empty."""
    p, q = (np.concatenate([one.counts, _rest(one)], axis=1) for one in (a, b))
    n, m = (counts.sum(axis=1, keepdims=True, dtype=np.float64) for counts in (p, q))
    apart = np.abs(p / np.maximum(n, 1) - q / np.maximum(m, 1)).sum(axis=1) / 2
    return np.where((n[:, 0] > 0) & (m[:, 0] > 0), np.clip(apart, 0.0, 1.0), np.nan)


def _rest(columns: Columns) -> NDArray[np.int64]:
    return np.stack([columns.nan, columns.neg_inf, columns.pos_inf], axis=1)


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
        names = [new if names.count(old) > 1 else old for old, new in zip(names, longer, strict=True)]
    return names


def compare(a: Run, b: Run) -> Comparison:
    """Compare two runs' layers of the same names; one layer of both is in memory at a time.

    Raises:
        RunError: if one of them cannot be read.
    """
    names, layers = names_of((a, b)), a.layers
    others = {info.name: i for i, info in enumerate(b.layers)}
    distances, remarks, ends = list[Distance](), list[str](), (list[int](), list[int]())
    for i, info in enumerate(layers):
        if info.name not in others:
            continue
        pair = a.history(i), b.history(others[info.name])
        for of, history in zip(ends, pair, strict=True):
            of += history.last_step[-1:].tolist()
        try:
            distances.append(layer_distance(*pair))
        except ArgumentError as error:
            remarks.append(str(error))
    for name, mine, its in ((names[0], layers, b.layers), (names[1], b.layers, layers)):
        alone = [one.name or one.kind for one in mine if one.name not in {o.name for o in its}]
        if alone:
            listed = ", ".join(alone[:5]) + (", …" if len(alone) > 5 else "")
            remarks.append(f"Only in {name}: {plural(len(alone), 'layer')} ({listed}).")
    lasts = [max(of, default=0) for of in ends]
    if lasts[0] != lasts[1]:
        said = " and ".join(f"{n} to step {e:,}" for n, e in zip(names, lasts, strict=True))
        remarks.append(f"The runs are not equally long: {said}. They are compared where both are.")
    return Comparison(distances, parting(distances), [*remarks, *_remarks_on_meta(a, b)])


def _remarks_on_meta(a: Run, b: Run) -> Iterator[str]:
    data = [run.meta.get("data") for run in (a, b)]
    sizes = [one.get("batch_size") if isinstance(one, dict) else None for one in data]
    if None not in sizes and sizes[0] != sizes[1]:
        yield f"Their batches are not equally large ({sizes[0]} and {sizes[1]} items): the same step is not the same number of items."  # fmt: skip
    if a.meta.get("counted") != b.meta.get("counted"):
        yield "One run counts the optimizer's steps, the other every forward of the model."


def parting(distances: Sequence[Distance]) -> str:
    """The first step at which two runs part, and where they are first more than noise apart."""
    compared = [distance for distance in distances if len(distance.first_step)]
    if not compared:
        return "The runs have no layer and step in common, so their layers cannot be compared."
    first = min(int(distance.first_step[0]) for distance in compared)
    parted = [(one.parted, one.layer) for one in compared if one.parted is not None]
    if not parted:
        last = max(int(distance.last_step[-1]) for distance in compared)
        layers = plural(len(compared), "common layer")
        return f"The runs never part: all counts of {layers} are equal, steps {first:,} to {last:,}."
    when, layer = min(parted, key=lambda pair: pair[0])
    before = "every count before was the same" if when[0] > first else "they differ from the first step on"  # fmt: skip
    words = f"The runs part {_when(*when)}, in layer {layer.name or layer.kind}: {before}."
    far = [(int(np.argmax(one.values > THRESHOLD)), one) for one in compared]
    spans = [
        ((int(one.first_step[k]), int(one.last_step[k])), one.layer)
        for k, one in far
        if one.values[k] > THRESHOLD
    ]
    if not spans:
        return f"{words} No layer ever has a distance above {100 * THRESHOLD:g} %."
    there, layer = min(spans, key=lambda pair: pair[0])
    return f"{words} The first with a distance above {100 * THRESHOLD:g} % is layer {layer.name or layer.kind}, {_when(*there)}."  # fmt: skip


def _when(first: int, last: int) -> str:
    return f"at step {first:,}" if first == last else f"within steps {first:,} to {last:,}"


@dataclass
class _Work:
    """A comparison that is worked out, and what is known meanwhile."""

    mark: str = ""
    asked: str = ""
    known: Comparison | None = None
    again: float = -float("inf")
    done: Event = field(default_factory=Event)


class Distances:
    """Comparisons of pairs of runs, worked out by one thread: every histogram is read."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._works: OrderedDict[tuple[str, str], _Work] = OrderedDict()
        self._asked: SimpleQueue[tuple[_Work, Run, Run]] = SimpleQueue()
        # A daemon: the distances of long runs take seconds, and Ctrl-C ends the server at once.
        Thread(target=self._work, name="convlens distances", daemon=True).start()

    def of(self, runs: Sequence[tuple[Run, str]]) -> tuple[str, Comparison | None]:
        """What is known of two runs; another comparison is begun where their state differs.

        Args:
            runs: each with the mark of its state; nothing is known of other numbers than two.

        Returns:
            The mark of the states that were compared, and the comparison, None for none yet.
        """
        if len(runs) != 2:
            return "", None
        (a, _), (b, _) = runs
        mark = "-".join(mark for _, mark in runs)
        with self._lock:
            work = self._works.setdefault((str(a.path), str(b.path)), _Work())
            self._works.move_to_end((str(a.path), str(b.path)))
            while len(self._works) > MAX_KEPT:
                self._works.popitem(last=False)
            first = not work.asked
            if work.asked == work.mark != mark and time.monotonic() > work.again:
                work.asked = mark
                self._asked.put((work, a, b))
        if first:
            work.done.wait(WAIT_S)
        return work.mark, work.known

    def _work(self) -> None:
        lower_priority()
        while True:
            work, a, b = self._asked.get()
            mark, begun = work.asked, time.monotonic()
            try:
                found = compare(a, b)
            except Exception as error:
                found = Comparison(parting=f"The layers cannot be compared: {error}")
            work.again = time.monotonic() + SHARE * (time.monotonic() - begun)
            work.known, work.mark = found, mark
            work.done.set()
