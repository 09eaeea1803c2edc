"""The tables of ``run.db``, and how to tell such a file from any other.

Arrays lie in blobs made by `convlens.packets.pack` or `convlens.sketch.encode`, everything else
in JSON, which (unlike SQLite's REAL) keeps NaN.
"""

from __future__ import annotations

DATABASE = "run.db"

APPLICATION_ID = 0x434C454E
"""``"CLEN"`` in ASCII: the file's own mark, in SQLite's header."""

SCHEMA_VERSION = 1

TABLES = (
    # One fact of the run by its name.
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # How watching was set: the bucket layout and eps, one row.
    """CREATE TABLE watch (
        id INTEGER PRIMARY KEY CHECK (id = 0), layout TEXT NOT NULL, eps REAL NOT NULL)""",
    """CREATE TABLE layers (
        layer INTEGER PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL,
        feeds_relu INTEGER NOT NULL)""",
    # Sketch columns in the order they were finished; their steps share step >> level.
    """CREATE TABLE columns (
        id INTEGER PRIMARY KEY, layer INTEGER NOT NULL, level INTEGER NOT NULL,
        first_step INTEGER NOT NULL, last_step INTEGER NOT NULL, payload BLOB NOT NULL)""",
    "CREATE INDEX columns_by_layer ON columns (layer, id)",
    "CREATE INDEX columns_by_level ON columns (level)",
    # Series in chunks, as they were written.
    """CREATE TABLE steps (
        id INTEGER PRIMARY KEY, first_step INTEGER NOT NULL, last_step INTEGER NOT NULL,
        payload BLOB NOT NULL)""",
    "CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE pictures (
        name TEXT NOT NULL, epoch INTEGER NOT NULL, captions TEXT NOT NULL, payload BLOB NOT NULL,
        PRIMARY KEY (name, epoch))""",
)
