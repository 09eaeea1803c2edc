"""The steps' series in ``run.db``: raw chunks, and above them a pyramid of what they sum up to.

Level 0 holds the steps themselves, 1,024 of them in a chunk. At level j an entry sums up 16^j
steps, and 1,024 entries make a chunk, so that a chunk is a sixteenth of one of the next level. The
newest raw chunk is open and not in the levels above: readers sum it up themselves, and the writer
pays for the pyramid once in 1,024 steps.

Nothing is kept in memory between two calls: what a chunk held is read back from the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.packets import pack, unpack
from convlens.records import Band, StepCurves, StepSeries, join_steps
from convlens.series import (
    as_curves,
    cut_steps,
    join_curves,
    merge_curves,
    sum_up,
    take_curves,
    take_steps,
    width_bits,
)

CHUNK_BITS = 10
"""2^10 = 1,024 entries in a chunk."""

LEVEL_BITS = 4
"""An entry sums up 2^4 = 16 of the level below."""

HYPER = "hyper/"

_FACTS = ("first_step", "last_step", "n", "epoch", "wall_s")
_PARTS = ("low", "high", "mean", "finite")

LEVELS = 4
"""The top level's entry is 65,536 steps: 4,096 entries of it are 268 million steps."""


def put_steps(database: sqlite3.Connection, steps: StepSeries) -> None:
    """Add steps to their chunks; one that is there already is replaced."""
    if not len(steps):
        return
    newest = _newest(database)
    chunks = steps.step >> CHUNK_BITS
    touched = np.unique(chunks).tolist()
    for chunk in touched:
        found = read_chunk(database, chunk)
        whole = _add(found, take_steps(steps, np.flatnonzero(chunks == chunk)))
        _put(database, 0, chunk, _arrays_of_series(whole))
    closed = set(touched) | ({newest} if newest is not None else set[int]())
    _sum_up(database, closed - {max(closed)})


def read_chunk(database: sqlite3.Connection, chunk: int) -> StepSeries | None:
    """The steps of one raw chunk, None if none of them were recorded."""
    payload = _get(database, 0, chunk)
    return None if payload is None else series_of(unpack(payload))


def read_steps(database: sqlite3.Connection, first: int | None = None) -> StepSeries:
    """Every recorded step, or those from one on."""
    rows = database.execute(
        "SELECT payload FROM steps WHERE level = 0 AND chunk >= ? ORDER BY chunk",
        (0 if first is None else first >> CHUNK_BITS,),
    )
    return cut_steps(join_steps([series_of(unpack(payload)) for (payload,) in rows]), first, None)


def read_curves(
    database: sqlite3.Connection, points: int, first: int | None = None, last: int | None = None
) -> StepCurves:
    """The steps ``first`` to ``last`` in at most ``points`` entries.

    Only the finest level that the entries can be made of is read, and the newest raw chunk.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    newest = _newest(database)
    if version == 1 or newest is None:  # no pyramid
        series = read_steps(database)
        return sum_up(cut_steps(series, first, last), points)
    (oldest,) = database.execute("SELECT min(chunk) FROM steps WHERE level = 0").fetchone()
    tail = _entries(database, 0, newest)
    begin, end = oldest << CHUNK_BITS, int(tail.last_step[-1])
    begin = begin if first is None else max(first, begin)
    end = end if last is None else min(last, end)
    bits = width_bits(begin, end, points)
    level = min(bits // LEVEL_BITS, LEVELS)
    closed = _closed(database, level, begin, min(end, (newest << CHUNK_BITS) - 1))
    parts = [*closed, merge_curves(tail, 1 << level * LEVEL_BITS)]
    # The tail may be the rest of an entry that began in closed chunks.
    merged = merge_curves(join_curves(parts), 1 << max(bits, level * LEVEL_BITS))
    inside = (merged.last_step >= begin) & (merged.first_step <= end)
    return take_curves(merged, np.flatnonzero(inside))


def series_of(arrays: dict[str, Any]) -> StepSeries:
    """The series in the arrays of a raw chunk."""
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


def _sum_up(database: sqlite3.Connection, chunks: Iterable[int]) -> None:
    """Bring what these raw chunks hold into every level above."""
    changed = sorted(chunks)
    for level in range(1, LEVELS + 1):
        above: dict[int, list[int]] = {}
        for chunk in changed:
            above.setdefault(chunk >> LEVEL_BITS, []).append(chunk)
        for chunk, below in above.items():
            _renew(database, level, chunk, below)
        changed = sorted(above)


def _renew(database: sqlite3.Connection, level: int, chunk: int, below: list[int]) -> None:
    """Put new entries into one chunk, for those chunks of the level below that have changed."""
    width = 1 << level * LEVEL_BITS
    parts = [merge_curves(_entries(database, level - 1, c), width) for c in below]
    payload = _get(database, level, chunk)
    if payload is not None:
        old = _curves_of(unpack(payload), width)
        came_from = old.first_step >> (CHUNK_BITS + (level - 1) * LEVEL_BITS)
        parts.append(take_curves(old, np.flatnonzero(~np.isin(came_from, below))))
    whole = join_curves(parts)
    whole = take_curves(whole, np.argsort(whole.first_step))
    _put(database, level, chunk, _arrays_of_curves(whole))


def _entries(database: sqlite3.Connection, level: int, chunk: int) -> StepCurves:
    """One chunk of any level, which must be there."""
    payload = _get(database, level, chunk)
    if payload is None:
        raise ValueError(f"chunk {chunk} of the steps' level {level} is missing")
    arrays = unpack(payload)
    return (
        as_curves(series_of(arrays)) if level == 0 else _curves_of(arrays, 1 << level * LEVEL_BITS)
    )


def _closed(
    database: sqlite3.Connection, level: int, first: int, last: int
) -> Iterator[StepCurves]:
    """The chunks of a level that reach into the steps from ``first`` to ``last``."""
    shift = CHUNK_BITS + level * LEVEL_BITS
    rows = database.execute(
        "SELECT chunk FROM steps WHERE level = ? AND chunk BETWEEN ? AND ? ORDER BY chunk",
        (level, first >> shift, last >> shift),
    )
    for (chunk,) in rows.fetchall():
        yield _entries(database, level, chunk)


# ---- rows ---------------------------------------------------------------------------------------


def _newest(database: sqlite3.Connection) -> int | None:
    (chunk,) = database.execute("SELECT max(chunk) FROM steps WHERE level = 0").fetchone()
    return chunk


def _get(database: sqlite3.Connection, level: int, chunk: int) -> bytes | None:
    row = database.execute(
        "SELECT payload FROM steps WHERE level = ? AND chunk = ?", (level, chunk)
    ).fetchone()
    return None if row is None else row[0]


def _put(
    database: sqlite3.Connection, level: int, chunk: int, arrays: dict[str, NDArray[Any]]
) -> None:
    row = (level, chunk, pack(arrays))
    database.execute("INSERT OR REPLACE INTO steps VALUES (?, ?, ?)", row)


def _arrays_of_series(steps: StepSeries) -> dict[str, NDArray[Any]]:
    arrays = {"step": steps.step, "epoch": steps.epoch, "loss": steps.loss, "wall_s": steps.wall_s}
    return arrays | {f"{HYPER}{name}": values for name, values in steps.hypers.items()}


def _arrays_of_curves(curves: StepCurves) -> dict[str, NDArray[Any]]:
    arrays = {name: getattr(curves, name) for name in _FACTS}
    bands = {"loss": curves.loss} | {f"{HYPER}{name}": b for name, b in curves.hypers.items()}
    for name, band in bands.items():
        arrays |= {f"{part}/{name}": getattr(band, part) for part in _PARTS}
    return arrays


def _curves_of(arrays: dict[str, NDArray[Any]], width: int) -> StepCurves:
    def band(name: str) -> Band:
        return Band(**{part: arrays[f"{part}/{name}"] for part in _PARTS})

    prefix = f"{_PARTS[0]}/{HYPER}"
    names = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
    hypers = {name: band(f"{HYPER}{name}") for name in names}
    return StepCurves(
        width, **{name: arrays[name] for name in _FACTS}, loss=band("loss"), hypers=hypers
    )
