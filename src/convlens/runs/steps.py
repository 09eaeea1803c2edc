"""The steps' series in ``run.db``: raw chunks, and above them a pyramid of what they sum up to.

Level 0 holds the steps themselves, 1,024 of them in a chunk. At level j an entry sums up 16^j
steps, and 1,024 entries make a chunk, so that a chunk is a sixteenth of one of the next level. The
newest raw chunk is open and not in the levels above: readers sum it up themselves, and the writer
pays for the pyramid once in 1,024 steps.

Nothing is kept in memory between two calls: what a chunk held is read back from the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convlens.core.downsampling import (
    as_curves,
    cut_steps,
    join_curves,
    merge_curves,
    sum_up,
    take_curves,
    take_steps,
    width_bits,
)
from convlens.core.encoding import pack, unpack
from convlens.core.records import Band, StepCurves, StepSeries, empty_steps, join_steps
from convlens.runs.database import Transaction

CHUNK_BITS = 10
"""2^10 = 1,024 entries in a chunk."""

LEVEL_BITS = 4
"""An entry sums up 2^4 = 16 of the level below."""

HYPER = "hyper/"

_FACTS = ("first_step", "last_step", "n", "epoch", "wall_s")
_PARTS = ("low", "high", "mean", "finite")

LEVELS = 4
"""The top level's entry is 65,536 steps: 4,096 entries of it are 268 million steps."""


class Store(Protocol):
    """Where the chunks lie."""

    def get(self, level: int, chunk: int) -> bytes | None:
        """The payload of a chunk, None if there is none."""
        ...


class WritableStore(Store, Protocol):
    """Where the chunks lie, to be written to."""

    def newest(self) -> int | None:
        """The number of the newest raw chunk, None if there is none."""
        ...

    def put(self, level: int, chunk: int, payload: bytes) -> None:
        """Write a chunk, in place of what it held."""
        ...


class _Recorded:
    """The chunks in a run's file, which are only read.

    Attributes:
        numbers: those of each level, ascending.
    """

    def __init__(self, record: Transaction) -> None:
        self._record = record
        self.numbers: dict[int, list[int]] = {}
        for level, chunk in sorted(record.keys("steps")):
            if not (0 <= level <= LEVELS and 0 <= chunk < 1 << 52):
                raise ValueError(f"chunk {chunk} of level {level} of the steps cannot be")
            self.numbers.setdefault(level, []).append(chunk)

    def get(self, level: int, chunk: int) -> bytes | None:
        """The payload of a chunk, None if there is none."""
        values = self._record.values("steps", (level, chunk))
        return None if values is None else values[0]


def put_steps(store: WritableStore, steps: StepSeries) -> None:
    """Add steps to their chunks; one that is there already is replaced."""
    if not len(steps):
        return
    newest = store.newest()
    chunks = steps.step >> CHUNK_BITS
    touched = np.unique(chunks).tolist()
    for chunk in touched:
        payload = store.get(0, chunk)
        found = None if payload is None else series_of(unpack(payload))
        whole = _add(found, take_steps(steps, np.flatnonzero(chunks == chunk)))
        store.put(0, chunk, pack(_arrays_of_series(whole)))
    closed = set(touched) | ({newest} if newest is not None else set[int]())
    _sum_up(store, closed - {max(closed)})


def read_steps(record: Transaction, first: int | None = None) -> StepSeries:
    """Every recorded step, or those from one on."""
    store = _Recorded(record)
    chunks = store.numbers.get(0, [])
    if first is not None:
        chunks = [chunk for chunk in chunks if chunk >= first >> CHUNK_BITS]
    parts = [series_of(unpack(store.get(0, chunk) or b"")) for chunk in chunks]
    return cut_steps(join_steps(parts), first, None)


def read_curves(
    record: Transaction, points: int, first: int | None = None, last: int | None = None
) -> StepCurves:
    """The steps ``first`` to ``last`` in at most ``points`` entries.

    Only the finest level that the entries can be made of is read, and the newest raw chunk.
    """
    store = _Recorded(record)
    if 0 not in store.numbers:
        return sum_up(empty_steps(), points)
    newest = store.numbers[0][-1]
    tail = _entries(store, 0, newest)
    begin, end = store.numbers[0][0] << CHUNK_BITS, int(tail.last_step[-1])
    begin = begin if first is None else max(first, begin)
    end = end if last is None else min(last, end)
    bits = width_bits(begin, end, points)
    level = min(bits // LEVEL_BITS, LEVELS)
    closed = _closed(store, level, begin, min(end, (newest << CHUNK_BITS) - 1))
    parts = [*closed, merge_curves(tail, 1 << level * LEVEL_BITS)]
    # The tail may be the rest of an entry that began in closed chunks.
    merged = merge_curves(join_curves(parts), 1 << max(bits, level * LEVEL_BITS))
    inside = (merged.last_step >= begin) & (merged.first_step <= end)
    return take_curves(merged, np.flatnonzero(inside))


def series_of(arrays: dict[str, NDArray[Any]]) -> StepSeries:
    """The series in the arrays of a raw chunk."""
    _check_arrays(arrays, "step", {"step": "i", "epoch": "i"})
    hypers = {
        name.removeprefix(HYPER): values
        for name, values in arrays.items()
        if name.startswith(HYPER)
    }
    return StepSeries(arrays["step"], arrays["epoch"], arrays["loss"], arrays["wall_s"], hypers)


# ---- writing ------------------------------------------------------------------------------------


def _add(found: StepSeries | None, steps: StepSeries) -> StepSeries:
    """Both in ascending order; of one step, what was recorded last."""
    whole = steps if found is None else join_steps([found, steps])
    order = np.argsort(whole.step, kind="stable")
    ascending = whole.step[order]
    last = np.append(ascending[1:] != ascending[:-1], True)
    kept = order[last]
    return whole if np.array_equal(kept, np.arange(len(whole))) else take_steps(whole, kept)


def _sum_up(store: WritableStore, chunks: Iterable[int]) -> None:
    """Bring what these raw chunks hold into every level above."""
    changed = sorted(chunks)
    for level in range(1, LEVELS + 1):
        above: dict[int, list[int]] = {}
        for chunk in changed:
            above.setdefault(chunk >> LEVEL_BITS, []).append(chunk)
        for chunk, below in above.items():
            _renew(store, level, chunk, below)
        changed = sorted(above)


def _renew(store: WritableStore, level: int, chunk: int, below: list[int]) -> None:
    """Put new entries into one chunk, for those chunks of the level below that have changed."""
    width = 1 << level * LEVEL_BITS
    parts = [merge_curves(_entries(store, level - 1, c), width) for c in below]
    payload = store.get(level, chunk)
    if payload is not None:
        old = _curves_of(unpack(payload), width)
        came_from = old.first_step >> (CHUNK_BITS + (level - 1) * LEVEL_BITS)
        parts.append(take_curves(old, np.flatnonzero(~np.isin(came_from, below))))
    whole = join_curves(parts)
    whole = take_curves(whole, np.argsort(whole.first_step))
    store.put(level, chunk, pack(_arrays_of_curves(whole)))


def _entries(store: Store, level: int, chunk: int) -> StepCurves:
    """One chunk of any level, which must be there."""
    payload = store.get(level, chunk)
    if payload is None:
        raise ValueError(f"chunk {chunk} of the steps' level {level} is missing")
    arrays = unpack(payload)
    return (
        as_curves(series_of(arrays)) if level == 0 else _curves_of(arrays, 1 << level * LEVEL_BITS)
    )


def _closed(store: _Recorded, level: int, first: int, last: int) -> Iterator[StepCurves]:
    """The chunks of a level that reach into the steps from ``first`` to ``last``."""
    shift = CHUNK_BITS + level * LEVEL_BITS
    for chunk in store.numbers.get(level, []):
        if first >> shift <= chunk <= last >> shift:
            yield _entries(store, level, chunk)


def _arrays_of_series(steps: StepSeries) -> dict[str, NDArray[Any]]:
    arrays = {"step": steps.step, "epoch": steps.epoch, "loss": steps.loss, "wall_s": steps.wall_s}
    return arrays | {f"{HYPER}{name}": values for name, values in steps.hypers.items()}


def _arrays_of_curves(curves: StepCurves) -> dict[str, NDArray[Any]]:
    arrays = {name: getattr(curves, name) for name in _FACTS}
    bands = {"loss": curves.loss} | {f"{HYPER}{name}": b for name, b in curves.hypers.items()}
    for name, band in bands.items():
        arrays |= {f"{part}/{name}": getattr(band, part) for part in _PARTS}
    return arrays


def _check_arrays(arrays: dict[str, NDArray[Any]], first: str, kinds: dict[str, str]) -> None:
    """Raise a ValueError unless these are arrays of one length; those of a group have two axes.

    Args:
        arrays: by name.
        first: whose length all have.
        kinds: by name, of numbers; reals where it says nothing.
    """
    n = len(arrays[first])
    for name, array in arrays.items():
        ndim = 2 if HYPER in name else 1
        if array.dtype.kind != kinds.get(name, "f") or array.ndim != ndim or len(array) != n:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, expected {n} rows")


def _curves_of(arrays: dict[str, NDArray[Any]], width: int) -> StepCurves:
    whole = [name for name in arrays if name.startswith("finite/")]
    whole += ["first_step", "last_step", "n", "epoch"]
    _check_arrays(arrays, "first_step", dict.fromkeys(whole, "i"))

    def band(name: str) -> Band:
        return Band(**{part: arrays[f"{part}/{name}"] for part in _PARTS})

    prefix = f"{_PARTS[0]}/{HYPER}"
    names = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
    hypers = {name: band(f"{HYPER}{name}") for name in names}
    return StepCurves(
        width, **{name: arrays[name] for name in _FACTS}, loss=band("loss"), hypers=hypers
    )
