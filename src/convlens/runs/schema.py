"""The tables of ``run.db``, their checksums, and how to tell such a file from any other.

Arrays lie in blobs made by `convlens.core.encoding.pack` or `convlens.core.columns.encode`,
everything else in JSON, which (unlike SQLite's REAL) keeps NaN.

Every row has a checksum of its table and key, and one of these and its values, so that a flipped
bit is found, also where values came to lie under another key. The table ``totals`` says of each
other table how many rows it has and what their ids and checksums add up to, so that a row that
cannot be reached any more is missed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convlens.core.records import Epoch

DATABASE = "run.db"


def rank_database(rank: int) -> str:
    """The file that a rank writes to, in the folder of rank 0."""
    return DATABASE if rank == 0 else f"rank-{rank}.db"


APPLICATION_ID = 0x434C454E
"""``"CLEN"`` in ASCII, in SQLite's header."""

SCHEMA_VERSION = 1

ROW_LIMIT = 1 << 26
"""Bytes that a row may have: 64 MiB."""

MOST_TEXT = 1 << 24
"""Characters of JSON that a row may have."""

MOST_DEPTH = 60
"""Levels of nested lists and objects in a row's JSON."""


def parsed(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a row's JSON.

    Raises:
        ValueError: if it is no JSON, or larger or deeper than any that is written.
    """
    if len(text) > MOST_TEXT:
        raise ValueError(f"{len(text):,} characters of JSON, expected at most {MOST_TEXT:,}")
    value = json.loads(text)
    if isinstance(value, dict | list) and _is_deep(value, MOST_DEPTH):
        raise ValueError(f"JSON of more than {MOST_DEPTH} levels")
    return value


def epoch_of(number: int, text: str) -> Epoch:
    """The epoch in a row.

    Raises:
        ValueError: if it is not one.
    """
    facts = parsed(text)
    if not isinstance(facts, dict) or not isinstance(facts.get("metrics"), dict):
        raise ValueError(f"epoch {number} is {text[:80]!r}")
    losses = [facts[name] for name in ("train_loss", "valid_loss") if facts[name] is not None]
    numbers = [*facts["metrics"].values(), facts["wall_s"], *losses]
    whole = [facts["first_step"], facts["last_step"]]
    fits = all(type(n) in (int, float) for n in numbers) and all(type(n) is int for n in whole)
    if not fits or facts["epoch"] != number:
        raise ValueError(f"epoch {number} is {text[:80]!r}")
    return Epoch(**facts)


def _is_deep(value: Any, levels: int) -> bool:  # noqa: ANN401
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(v, levels - 1) for v in inner if isinstance(v, dict | list))


SQL_TYPES = {str: "TEXT", int: "INTEGER", float: "REAL", bytes: "BLOB"}

Key = tuple[Any, ...]
"""Values of some columns: texts, integers, reals or bytes."""


@dataclass(frozen=True)
class Table:
    """A table of a run's file: an id, a key, two checksums, and values.

    Attributes:
        name: its name.
        key: the columns that tell its rows apart, with the type of each.
        values: the other columns.
    """

    name: str
    key: Mapping[str, type] = field(hash=False)
    values: Mapping[str, type] = field(hash=False)

    @property
    def statements(self) -> tuple[str, str]:
        """SQL that creates the table, and the index that its keys and checksums are read from."""
        types = {**self.key, "key_crc": int, "crc": int, **self.values}  # what is long comes last
        columns = ", ".join(f"{name} {SQL_TYPES[t]} NOT NULL" for name, t in types.items())
        return (
            f"CREATE TABLE {self.name} (id INTEGER PRIMARY KEY, {columns})",
            f"CREATE INDEX {self.name}_keys ON {self.name} ({', '.join(self.key)}, key_crc, crc)",
        )

    @property
    def same_key(self) -> str:
        """The SQL condition for a row with a certain key."""
        return " AND ".join(f"{name} = ?" for name in self.key)

    def checksums(self, key: Key, values: Key) -> tuple[int, int]:
        """``key_crc`` and ``crc`` of a row with this key and these values."""
        key_crc = crc = self.key_checksum(key)
        for value in values:
            kind, data = "bytes", value
            if not isinstance(value, bytes):
                kind, data = type(value).__name__, str(value).encode("utf-8", "surrogatepass")
            crc = zlib.crc32(data, zlib.crc32(f"{kind} {len(data)} ".encode(), crc))
        return key_crc, crc

    def key_checksum(self, key: Key) -> int:
        """``key_crc`` of a row with this key."""
        return zlib.crc32(ascii((self.name, *key)).encode())


TABLES = {
    table.name: table
    for table in (
        # One fact of the run by its name.
        Table("meta", {"key": str}, {"value": str}),
        # How each quantity was watched: the buckets, eps and the share of images looked at.
        Table("watch", {"quantity": str}, {"layout": str, "eps": float, "sample": float}),
        Table(
            "layers",
            {"quantity": str, "layer": int},
            {"name": str, "kind": str, "feeds_relu": int},
        ),
        # Chunks of sketch columns, which share step >> level; start is the first step of the span
        # that a chunk covers: 64 << level steps.
        Table(
            "columns",
            {"quantity": str, "layer": int, "start": int, "level": int},
            {"payload": bytes},
        ),
        # The steps' series in chunks of 1,024 steps.
        Table("steps", {"chunk": int}, {"payload": bytes}),
        Table("epochs", {"epoch": int}, {"value": str}),
        Table("pictures", {"name": str, "epoch": int}, {"captions": str, "payload": bytes}),
        # See core.snapshots; epoch −1 is before training. The id says which layer was written
        # first: layers are shown in this order, the model's.
        Table(
            "snapshots",
            {"kind": str, "layer": str, "epoch": int},
            {"facts": str, "payload": bytes},
        ),
    )
}

TOTALS = Table("totals", {"name": str}, {"n": int, "total": int})

STATEMENTS = [line for table in (*TABLES.values(), TOTALS) for line in table.statements]
"""SQL that creates the tables of a new file; a file with any others is not read."""
