"""What waits to be written: rows by their key, a later one in place of an earlier one.

However many flushes wait for a slow disk, they hold no more than what the file would.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from convlens.core.columns import CHUNK_BITS
from convlens.core.downsampling import take_steps
from convlens.core.encoding import pack
from convlens.core.records import Picture, StepSeries, join_steps
from convlens.core.snapshots import Snapshot, arrays_of
from convlens.runs.schema import TABLES, TOTALS, Key, Table
from convlens.runs.steps import put_steps

BAD_ROW = (
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    ValueError,
    TypeError,
    OverflowError,
)
"""What a row leads to that cannot be written anywhere, whatever the disk does."""

WORDS = {name: name for name in TABLES if name not in ("meta", "watch", "steps")}
WORDS["columns"] = "chunks of columns"
"""What the rows of a table are called in a sentence; facts and settings are not counted there."""

MOST_PARTS = 64
"""Parts of the steps' series that wait; more are joined."""


@dataclass(frozen=True)
class _Row:
    """A row: its plain values, and arrays that become its last value when it is written."""

    values: Key
    arrays: Mapping[str, NDArray[Any]] | None = None

    @property
    def n_bytes(self) -> int:
        arrays = sum(array.nbytes for array in (self.arrays or {}).values())
        return arrays + sum(len(v) for v in self.values if isinstance(v, str | bytes))

    def packed(self) -> Key:
        return self.values if self.arrays is None else (*self.values, pack(self.arrays))


class Rows:
    """Rows of every table. Adding is cheap: arrays are compressed when they are written.

    Attributes:
        n_bytes: what they take in memory, without the steps.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, Key], _Row] = {}  # in the order in which they were first added
        self._spans: dict[Key, set[tuple[int, int]]] = {}  # of each series, start and level
        self._steps: list[StepSeries] = []
        self.n_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._rows or self._steps)

    def add(self, table: str, key: Key, *values: str | float | bytes) -> None:
        """A row of plain values."""
        self._add(table, key, _Row(values))

    def add_columns(self, series: Key, level: int, start: int, payload: bytes) -> None:
        """A chunk of a series, in place of those that lie in its span of steps."""
        spans = self._spans.setdefault(series, set())
        # First this, then those that it replaces: an interrupt between the two loses nothing.
        spans.add((start, level))
        self._add("columns", (*series, start, level), _Row((payload,)))
        end = start + (1 << level + CHUNK_BITS)
        for other in [span for span in spans if start <= span[0] < end and span[1] <= level]:
            if other != (start, level):
                self._drop("columns", (*series, *other))

    def add_picture(self, picture: Picture) -> None:
        """Images."""
        captions = json.dumps([str(caption) for caption in picture.captions])
        key = str(picture.name), int(picture.epoch)
        self._add("pictures", key, _Row((captions,), {"images": picture.images}))

    def add_snapshot(self, snapshot: Snapshot, facts: str) -> None:
        """A snapshot; ``facts`` are its plain values as JSON."""
        key = snapshot.KIND, str(snapshot.layer), int(snapshot.epoch)
        self._add("snapshots", key, _Row((facts,), arrays_of(snapshot)))

    def add_steps(self, steps: StepSeries) -> None:
        """Steps that follow."""
        self._steps.append(steps)

    def add_all(self, later: Rows) -> None:
        """What another holds, which was added after all of this."""
        for (table, key), row in later._rows.items():
            if table == "columns":
                self.add_columns(key[:2], key[3], key[2], row.values[0])
            else:
                self._add(table, key, row)
        self._steps += later._steps
        if len(self._steps) > MOST_PARTS:
            self._steps = [join_steps(self._steps)]

    def give_up(self, limit: int) -> Counter[str]:
        """Forget the oldest columns, then pictures, then steps, if all takes more bytes than that.

        It is an eighth below then, so that this does not come with every row.

        Returns:
            How many of what were forgotten.
        """
        lost = Counter[str]()
        if self.n_bytes + self._bytes_of_steps() <= limit:
            return lost
        limit -= limit >> 3
        room = limit - self._bytes_of_steps()
        columns = sorted((key[2], key) for table, key in self._rows if table == "columns")
        others = [row for row in self._rows if row[0] in ("snapshots", "pictures")]
        for table, key in [*(("columns", key) for _, key in columns), *others]:
            if self.n_bytes > room:
                self._drop(table, key)
                lost[WORDS[table]] += 1
        share = (limit - self.n_bytes) / max(self._bytes_of_steps(), 1)
        if share < 1:
            steps = join_steps(self._steps)
            lost["steps"] = len(steps) - int(share * len(steps))
            self._steps = [take_steps(steps, slice(lost["steps"], None))]
        return lost

    def count(self) -> Counter[str]:
        """How many of what there are."""
        found = Counter(WORDS[table] for table, _ in self._rows if table in WORDS)
        return found + Counter({"steps": sum(map(len, self._steps))})

    def write(self, database: sqlite3.Connection) -> list[str]:
        """Write everything; the caller has begun a transaction.

        Returns:
            What could not be written, as it is no row that a database takes.
        """
        refused: list[str] = []
        for (name, key), row in self._rows.items():
            try:
                if name == "columns":
                    _drop_span(database, key)
                    insert_row(database, TABLES[name], None, key, row.packed())
                else:
                    put_row(database, TABLES[name], key, row.packed())
            except BAD_ROW as error:
                refused.append(f"{name} {key!r}: {error}")
        try:
            put_steps(_Stored(database), join_steps(self._steps))
        except BAD_ROW as error:
            refused.append(f"steps: {error}")
        changed = {name for name, _ in self._rows} | ({"steps"} if self._steps else set[str]())
        for name in changed:
            put_total(database, TABLES[name])
        return refused

    def _add(self, table: str, key: Key, row: _Row) -> None:
        old = self._rows.get((table, key))
        self._rows[table, key] = row
        self.n_bytes += row.n_bytes - (0 if old is None else old.n_bytes)

    def _drop(self, table: str, key: Key) -> None:
        old = self._rows.pop((table, key), None)
        self.n_bytes -= 0 if old is None else old.n_bytes
        if table == "columns":
            self._spans[key[:2]].discard(key[2:])

    def _bytes_of_steps(self) -> int:
        arrays = (a for s in self._steps for a in (s.step, s.epoch, s.loss, s.wall_s))
        hypers = (a for s in self._steps for a in s.hypers.values())
        return sum(a.nbytes for a in arrays) + sum(a.nbytes for a in hypers)


def put_row(database: sqlite3.Connection, table: Table, key: Key, values: Key) -> None:
    """Write a row, in place of one with this key, whose id it keeps."""
    found = database.execute(f"SELECT id FROM {table.name} WHERE {table.same_key}", key).fetchone()
    insert_row(database, table, found[0] if found else None, key, values)


def insert_row(
    database: sqlite3.Connection, table: Table, row_id: int | None, key: Key, values: Key
) -> None:
    """Write a row with its checksums; an id of None is a new one.

    Raises:
        TypeError: if a value is not of its column's type, so that readers would not take it.
    """
    types = (*table.key.values(), *table.values.values())
    if tuple(map(type, (*key, *values))) != types:
        raise TypeError(f"expected values of the types {[t.__name__ for t in types]}")
    row = (row_id, *key, *table.checksums(key, values), *values)
    marks = ", ".join("?" * len(row))
    database.execute(f"INSERT OR REPLACE INTO {table.name} VALUES ({marks})", row)


def put_total(database: sqlite3.Connection, table: Table) -> None:
    """Write how many rows a table has, and what their ids and checksums add up to."""
    (n, total) = database.execute(
        f"SELECT count(*), ifnull(sum(id + key_crc + crc), 0) FROM {table.name}"
    ).fetchone()
    put_row(database, TOTALS, (table.name,), (n, total))


class _Stored:
    """The chunks of steps in the file that is written."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def newest(self) -> int | None:
        (chunk,) = self._database.execute("SELECT max(chunk) FROM steps WHERE level = 0").fetchone()
        return chunk

    def get(self, level: int, chunk: int) -> bytes | None:
        row = self._database.execute(
            "SELECT key_crc, crc, payload FROM steps WHERE level = ? AND chunk = ?", (level, chunk)
        ).fetchone()
        if row is None:
            return None
        if row[:2] != TABLES["steps"].checksums((level, chunk), row[2:]):
            raise sqlite3.DatabaseError(f"chunk {chunk} of level {level} of the steps is damaged")
        return row[2]

    def put(self, level: int, chunk: int, payload: bytes) -> None:
        put_row(self._database, TABLES["steps"], (level, chunk), (payload,))


def _drop_span(database: sqlite3.Connection, key: Key) -> None:
    """Take out the chunks that lie in the span of the one with this key."""
    quantity, layer, start, level = key
    last = start + (1 << level + CHUNK_BITS) - 1
    database.execute(
        "DELETE FROM columns "
        "WHERE quantity = ? AND layer = ? AND start BETWEEN ? AND ? AND level <= ?",
        (quantity, layer, start, last, level),
    )
