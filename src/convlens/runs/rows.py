"""What waits to be written: rows by their key, a later one in place of an earlier one.

However many flushes wait for a slow disk, they hold no more than what the file would.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from convlens.packets import pack
from convlens.records import Picture, StepSeries, join_steps
from convlens.runs.steps import put_steps
from convlens.sketch import CHUNK_BITS
from convlens.snapshots import Snapshot, arrays_of

Row = tuple[Any, ...]
Chunks = dict[tuple[int, int], bytes]
"""Payloads of one series' chunks by their first step and level."""


class Rows:
    """Rows of every table. Adding is cheap: arrays are compressed when they are written."""

    def __init__(self) -> None:
        self._facts: dict[Row, tuple[str, Row]] = {}
        self._columns: dict[tuple[str, int], Chunks] = {}
        self._pictures: dict[tuple[str, int], Picture] = {}
        self._snapshots: dict[tuple[str, str, int], tuple[str, Snapshot]] = {}
        self._steps: list[StepSeries] = []

    def __bool__(self) -> bool:
        held = (self._facts, self._columns, self._pictures, self._snapshots, self._steps)
        return any(held)

    def add(self, table: str, key: Row, *values: object) -> None:
        """A row of plain values; ``key`` are the first of its columns."""
        marks = ", ".join("?" * (len(key) + len(values)))
        statement = f"INSERT OR REPLACE INTO {table} VALUES ({marks})"
        self._facts[table, *key] = statement, (*key, *values)

    def add_columns(self, series: tuple[str, int], level: int, start: int, payload: bytes) -> None:
        """A chunk of a series, in place of those that lie in its span of steps."""
        chunks = self._columns.setdefault(series, {})
        # First this, then those that it replaces: an interrupt between the two loses nothing.
        chunks[start, level] = payload
        end = start + (1 << level + CHUNK_BITS)
        for other in [c for c in chunks if start <= c[0] < end and c[1] <= level]:
            if other != (start, level):
                del chunks[other]

    def add_picture(self, picture: Picture) -> None:
        """Images."""
        self._pictures[picture.name, int(picture.epoch)] = picture

    def add_snapshot(self, snapshot: Snapshot, facts: str) -> None:
        """A snapshot; ``facts`` are its plain values as JSON."""
        key = (snapshot.KIND, snapshot.layer, int(snapshot.epoch))
        self._snapshots[key] = facts, snapshot

    def add_steps(self, steps: StepSeries) -> None:
        """Steps that follow."""
        self._steps.append(steps)

    def add_all(self, later: Rows) -> None:
        """What another holds, which was added after all of this."""
        self._facts |= later._facts
        self._pictures |= later._pictures
        self._snapshots |= later._snapshots
        self._steps += later._steps
        for series, chunks in later._columns.items():
            for (start, level), payload in chunks.items():
                self.add_columns(series, level, start, payload)

    def write(self, database: sqlite3.Connection) -> None:
        """Write everything; the caller has begun a transaction."""
        for statement, row in self._facts.values():
            database.execute(statement, row)
        for (quantity, layer), chunks in self._columns.items():
            for (start, level), payload in chunks.items():
                last = start + (1 << level + CHUNK_BITS) - 1
                database.execute(_REPLACED, (quantity, layer, start, last, level))
                row = (quantity, layer, start, level, payload)
                database.execute("INSERT INTO columns VALUES (?, ?, ?, ?, ?)", row)
        for picture in self._pictures.values():
            captions = json.dumps([str(caption) for caption in picture.captions])
            row = (picture.name, int(picture.epoch), captions, pack({"images": picture.images}))
            database.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", row)
        for key, (facts, snapshot) in self._snapshots.items():
            database.execute(_PUT_SNAPSHOT, (*key, facts, pack(arrays_of(snapshot))))
        put_steps(database, join_steps(self._steps))


_REPLACED = (
    "DELETE FROM columns WHERE quantity = ? AND layer = ? AND start BETWEEN ? AND ? AND level <= ?"
)

_PUT_SNAPSHOT = """INSERT INTO snapshots (kind, layer, epoch, facts, payload) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (kind, layer, epoch) DO UPDATE SET facts = excluded.facts,
    payload = excluded.payload"""  # keeps the id, and so the layer's place
