"""The tables of ``run.db``, and how to tell such a file from any other.

Arrays lie in blobs made by `convlens.packets.pack` or `convlens.sketch.encode`, everything else
in JSON, which (unlike SQLite's REAL) keeps NaN.
"""

from __future__ import annotations

DATABASE = "run.db"


def rank_database(rank: int) -> str:
    """The file that a rank writes to, in the folder of rank 0."""
    return DATABASE if rank == 0 else f"rank-{rank}.db"


APPLICATION_ID = 0x434C454E
"""``"CLEN"`` in ASCII: the file's own mark, in SQLite's header."""

SCHEMA_VERSION = 3

TABLES = (
    # One fact of the run by its name.
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # How each quantity was watched: the bucket layout, eps and the share of images looked at.
    """CREATE TABLE watch (
        quantity TEXT PRIMARY KEY, layout TEXT NOT NULL, eps REAL NOT NULL,
        sample REAL NOT NULL)""",
    """CREATE TABLE layers (
        quantity TEXT NOT NULL, layer INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
        feeds_relu INTEGER NOT NULL, PRIMARY KEY (quantity, layer))""",
    # Chunks of sketch columns, which share step >> level; start is the first step of the span that
    # a chunk covers: 64 << level steps.
    """CREATE TABLE columns (
        quantity TEXT NOT NULL, layer INTEGER NOT NULL, start INTEGER NOT NULL,
        level INTEGER NOT NULL, payload BLOB NOT NULL,
        PRIMARY KEY (quantity, layer, start, level))""",
    "CREATE INDEX columns_by_level ON columns (level)",
    # The steps' series in chunks of 1,024 entries: at level 0 an entry is a step, at level j it
    # sums up those that share step >> 4 j. See convlens.runs.steps.
    """CREATE TABLE steps (
        level INTEGER NOT NULL, chunk INTEGER NOT NULL, payload BLOB NOT NULL,
        PRIMARY KEY (level, chunk))""",
    "CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE pictures (
        name TEXT NOT NULL, epoch INTEGER NOT NULL, captions TEXT NOT NULL, payload BLOB NOT NULL,
        PRIMARY KEY (name, epoch))""",
    # What is kept beside numbers, see convlens.snapshots; epoch −1 is before training. The id says
    # which layer was written first: layers are shown in this order, which is the model's.
    """CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY, kind TEXT NOT NULL, layer TEXT NOT NULL, epoch INTEGER NOT NULL,
        facts TEXT NOT NULL, payload BLOB NOT NULL, UNIQUE (kind, layer, epoch))""",
)

NO_SNAPSHOTS = """CREATE TEMP VIEW snapshots AS
    SELECT 0 AS id, '' AS kind, '' AS layer, 0 AS epoch, '' AS facts, x'' AS payload WHERE 0"""

VIEWS_OF_SCHEMA_1 = (
    # A temporary view hides the table of its name: a run of convlens 0.1.0 is read as one of today.
    """CREATE TEMP VIEW watch AS
        SELECT 'activation' AS quantity, layout, eps, 1.0 AS sample FROM main.watch""",
    """CREATE TEMP VIEW layers AS
        SELECT 'activation' AS quantity, layer, name, kind, feeds_relu FROM main.layers""",
    """CREATE TEMP VIEW columns AS
        SELECT 'activation' AS quantity, layer, id AS start, level, payload, id AS rowid
        FROM main.columns""",
    "CREATE TEMP VIEW steps AS SELECT 0 AS level, id AS chunk, payload FROM main.steps",
    NO_SNAPSHOTS,
)

VIEWS_OF = {1: VIEWS_OF_SCHEMA_1, 2: (NO_SNAPSHOTS,)}
"""By an older schema, the statements for a read-only connection to such a run."""
