"""Rows that wait to be written, by their key: a later row replaces an earlier one.

However many of them wait for a slow disk, they hold no more than what the file would.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from convlens.core.columns import CHUNK_BITS
from convlens.core.encoding import pack
from convlens.core.steps import StepSeries, join_steps, take_steps
from convlens.runs.schema import TABLES, TOTALS, Key, Table
from convlens.runs.step_chunks import split_steps, update_chunk

BAD_ROW = (
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    ValueError,
    TypeError,
    OverflowError,
)
"""Errors of a row that cannot be written anywhere, whatever the disk does."""

WORDS = {name: name for name in TABLES if name not in ("meta", "watch", "steps")}
WORDS["columns"] = "chunks of columns"
"""Plural names of tables for messages."""

MOST_PARTS = 64
"""Series of steps that wait; more are joined."""


Arrays = Mapping[str, NDArray[Any]]


class WriteBuffer:
    """Rows of every table.

    Attributes:
        n_bytes: what they take in memory.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, Key], Key] = {}  # in the order in which they were first added
        self._spans: dict[Key, set[tuple[int, int]]] = {}  # of each series, start and level
        self._steps: list[StepSeries] = []
        self.n_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._rows or self._steps)

    def add(self, table: str, key: Key, *values: str | float | bytes | Arrays) -> None:
        """Add a row; arrays are compressed when it is written."""
        self.n_bytes += _size(values) - _size(self._rows.get((table, key), ()))
        self._rows[table, key] = values

    def add_columns(self, series: Key, level: int, start: int, payload: bytes) -> None:
        """Add a chunk of a series, in place of those that lie in its span of steps."""
        spans = self._spans.setdefault(series, set())
        # Added first, so that an interrupt between the two loses nothing.
        spans.add((start, level))
        self.add("columns", (*series, start, level), payload)
        end = start + (1 << level + CHUNK_BITS)
        for other in [span for span in spans if start <= span[0] < end and span[1] <= level]:
            if other != (start, level):
                self._drop("columns", (*series, *other))

    def add_steps(self, steps: StepSeries) -> None:
        """Add steps that follow."""
        self._steps.append(steps)
        self.n_bytes += _size_of_steps(steps)
        if len(self._steps) > MOST_PARTS:
            self._steps = [join_steps(self._steps)]

    def merge(self, later: WriteBuffer) -> None:
        """Add everything of a buffer that was filled after this one."""
        for (table, key), values in later._rows.items():
            if table == "columns":
                self.add_columns(key[:2], key[3], key[2], values[0])
            else:
                self.add(table, key, *values)
        for steps in later._steps:
            self.add_steps(steps)

    def drop_oldest(self, limit: int) -> Counter[str]:
        """Drop the oldest columns, then pictures, then steps, if all takes more bytes than that.

        Down to an eighth below it, so that this is rare.

        Returns:
            How many of what were dropped.
        """
        lost = Counter[str]()
        if self.n_bytes <= limit:
            return lost
        limit -= limit >> 3
        columns = sorted((key[2], key) for table, key in self._rows if table == "columns")
        others = [row for row in self._rows if row[0] in ("snapshots", "pictures")]
        for table, key in [*(("columns", key) for _, key in columns), *others]:
            if self.n_bytes > limit:
                self._drop(table, key)
                lost[WORDS[table]] += 1
        if self.n_bytes > limit and self._steps:
            steps = join_steps(self._steps)
            size = _size_of_steps(steps)
            kept = int(len(steps) * max(limit - (self.n_bytes - size), 0) / size)
            lost["steps"] = len(steps) - kept
            self._steps = [take_steps(steps, slice(lost["steps"], None))]
            self.n_bytes += _size_of_steps(self._steps[0]) - size
        return lost

    def count(self) -> Counter[str]:
        """The number of waiting rows by their plural name."""
        found = Counter(WORDS[table] for table, _ in self._rows if table in WORDS)
        return found + Counter({"steps": sum(map(len, self._steps))})

    def write(self, database: sqlite3.Connection) -> list[str]:
        """Write everything; the caller has begun a transaction.

        Returns:
            Rows that were left out, as no database takes them.
        """
        refused: list[str] = []
        for (name, key), values in self._rows.items():
            try:
                if name == "columns":
                    _drop_span(database, key)
                put_row(database, TABLES[name], key, tuple(map(_packed, values)))
            except BAD_ROW as error:
                refused.append(f"{name} {key!r}: {error}")
        try:
            put_steps(database, join_steps(self._steps))
        except BAD_ROW as error:
            refused.append(f"steps: {error}")
        for name in {name for name, _ in self._rows} | ({"steps"} if self._steps else set[str]()):
            put_total(database, TABLES[name])
        return refused

    def _drop(self, table: str, key: Key) -> None:
        self.n_bytes -= _size(self._rows.pop((table, key), ()))
        if table == "columns":
            self._spans[key[:2]].discard(key[2:])


def _size(values: Key) -> int:
    size = sum(len(value) for value in values if isinstance(value, str | bytes))
    arrays = (value for value in values if isinstance(value, Mapping))
    return size + sum(array.nbytes for found in arrays for array in found.values())


def _packed(value: Any) -> Any:  # noqa: ANN401 - a value of any column
    return pack(value) if isinstance(value, Mapping) else value


def _size_of_steps(steps: StepSeries) -> int:
    return (4 + sum(values.shape[1] for values in steps.hypers.values())) * 8 * len(steps)


def put_row(database: sqlite3.Connection, table: Table, key: Key, values: Key) -> None:
    """Write a row with its checksums, in place of one with this key, whose id it keeps.

    Raises:
        TypeError: if a value is not of its column's type, so that readers would not take it.
    """
    types = (*table.key.values(), *table.values.values())
    if tuple(map(type, (*key, *values))) != types:
        raise TypeError(f"expected values of the types {[t.__name__ for t in types]}")
    found = database.execute(f"SELECT id FROM {table.name} WHERE {table.same_key}", key).fetchone()
    row = (found[0] if found else None, *key, *table.checksums(key, values), *values)
    marks = ", ".join("?" * len(row))
    database.execute(f"INSERT OR REPLACE INTO {table.name} VALUES ({marks})", row)


def put_steps(database: sqlite3.Connection, steps: StepSeries) -> None:
    """Add steps to their chunks."""
    table = TABLES["steps"]
    for chunk, part in split_steps(steps):
        row = database.execute(
            "SELECT key_crc, crc, payload FROM steps WHERE chunk = ?", (chunk,)
        ).fetchone()
        if row is not None and row[:2] != table.checksums((chunk,), row[2:]):
            raise sqlite3.DatabaseError(f"chunk {chunk} of the steps is damaged")
        put_row(database, table, (chunk,), (update_chunk(row[2] if row else None, part),))


def put_total(database: sqlite3.Connection, table: Table) -> None:
    """Write how many rows a table has, and what their ids and checksums add up to."""
    (n, total) = database.execute(
        f"SELECT count(*), ifnull(sum(id + key_crc + crc), 0) FROM {table.name}"
    ).fetchone()
    put_row(database, TOTALS, (table.name,), (n, total))


def _drop_span(database: sqlite3.Connection, key: Key) -> None:
    """Take out the chunks that lie in the span of the one with this key."""
    quantity, layer, start, level = key
    last = start + (1 << level + CHUNK_BITS) - 1
    database.execute(
        "DELETE FROM columns "
        "WHERE quantity = ? AND layer = ? AND start BETWEEN ? AND ? AND level <= ?",
        (quantity, layer, start, last, level),
    )
