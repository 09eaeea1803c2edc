"""Reading a run's file: one read transaction, verified rows, a sentence for what is wrong.

Reading writes nothing, not even beside the file, with one exception: where a run was cut off and
its log was copied without ``run.db-shm``, SQLite makes that file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from stat import S_ISREG

from convlens.errors import ConvlensError, RunError
from convlens.runs.lock import WriterState, writer_of
from convlens.runs.schema import (
    APPLICATION_ID,
    DATABASE,
    ROW_LIMIT,
    SCHEMA_VERSION,
    STATEMENTS,
    TABLES,
    TOTALS,
    Key,
    Table,
)

DAMAGES = (
    sqlite3.Error,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    MemoryError,
)
"""Errors that reading can only meet in a file that convlens did not write."""


Mark = tuple[int, int, int]
"""Id of a row, checksum of its key, and of all of it."""


LOG_HEADER = 32
"""Bytes of a write-ahead log's own header; SQLite reads no log that has nothing else."""


class Transaction:
    """One read transaction on a run's file. Every row that it returns has been verified.

    Args:
        database: a connection that has begun a transaction.
        file: its file.
        writer: what was known of its writer before.

    Attributes:
        totals: for each table how many rows it has and the sum of their ids and checksums.
    """

    def __init__(self, database: sqlite3.Connection, file: Path, writer: WriterState) -> None:
        self._database, self.file, self.writer = database, file, writer
        _check_tables(database)
        self.totals: dict[str, tuple[int, int]] = {}
        for _, (name,), n_and_total in self._all(TOTALS):
            self.totals[str(name)] = n_and_total
        self._keys: dict[str, dict[Key, Mark]] = {}

    def rows(self, name: str) -> list[tuple[Key, Key]]:
        """Key and values of every row of a table, in the order in which they were first written."""
        found = self._all(TABLES[name])
        self._check_total(name, len(found), sum(sum(mark) for mark, _, _ in found))
        found.sort(key=lambda row: row[0])
        return [(key, values) for _, key, values in found]

    def keys(self, name: str) -> dict[Key, Mark]:
        """The key of every row of a table, with its id and checksums; values are not read."""
        if name not in self._keys:
            table, found, total = TABLES[name], dict[Key, Mark](), 0
            columns, types = ", ".join(table.key), tuple(table.key.values())
            rows = self._database.execute(
                f"SELECT id, key_crc, crc, {columns} FROM {name} INDEXED BY {name}_keys"
            ).fetchall()
            for row in rows:  # of which there may be tens of thousands
                key = row[3:]
                if tuple(map(type, key)) != types or row[1] != table.key_checksum(key):
                    raise ValueError(f"the key {key} of the table {name} is not what was written")
                found[key] = row[:3]
                total += row[0] + row[1] + row[2]
            self._check_total(name, len(rows), total)
            self._keys[name] = found
        return self._keys[name]

    def take_keys(self, older: Transaction) -> None:
        """Take the keys from an older transaction on the same file where nothing has changed."""
        for name, keys in older._keys.items():
            if older.totals[name] == self.totals[name]:
                self._keys[name] = keys

    def values(self, name: str, key: Key) -> Key:
        """The values of the row with a key, which must be one of `keys`."""
        mark = self.keys(name)[key]
        rows = self._all(TABLES[name], mark[0])
        if len(rows) != 1 or rows[0][:2] != (mark, key):
            raise ValueError(f"the row {key} of the table {name} cannot be found")
        return rows[0][2]

    def _all(self, table: Table, row_id: int | None = None) -> list[tuple[Mark, Key, Key]]:
        """Id and checksums, key and values of the rows of a table, or of the one with an id."""
        names = ("id", "key_crc", "crc", *table.key, *table.values)
        rows = self._database.execute(
            f"SELECT {', '.join(names)} FROM {table.name}"
            + ("" if row_id is None else " WHERE id = ?"),
            () if row_id is None else (row_id,),
        )
        found, n = list[tuple[Mark, Key, Key]](), 3 + len(table.key)
        for row in rows:
            mark, key, values = row[:3], row[3:n], row[n:]
            fits = _fits(key, table.key) and _fits(values, table.values)
            if not fits or mark[1:] != table.checksums(key, values):
                raise ValueError(f"the row {key} of the table {table.name} is not what was written")
            found.append((mark, key, values))
        return found

    def _check_total(self, name: str, n: int, total: int) -> None:
        if (n, total) != self.totals[name]:
            raise ValueError(f"rows of the table {name} are missing")


def _fits(row: Key, types: Mapping[str, type]) -> bool:
    return tuple(map(type, row)) == tuple(types.values())


@contextmanager
def reading(file: Path) -> Generator[Transaction]:
    """One read transaction on a run's file.

    Raises:
        RunError: if there is no such file, if it is not a run that this version reads, or if the
            block meets an error that only a damaged file can cause.
    """
    with explained(file):
        writer = writer_of(file)
        with closing(connect(file, writer)) as database:
            yield Transaction(database, file, writer)


@contextmanager
def explained(file: Path) -> Generator[None]:
    """Turn what only a damaged or missing file can cause into a `RunError` that names it."""
    try:
        yield
    except ConvlensError:
        raise
    except DAMAGES as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:
            raise cannot_open(file, str(error)) from error
        reason = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            raise RunError(
                f"{str(file)!r} cannot be read: the memory is too short ({reason}); check the "
                "limits of this process (ulimit -v)."
            ) from error
        raise RunError(
            f"{str(file)!r} is damaged or incomplete ({reason}); restore it from a copy."
        ) from error


def cannot_open(file: Path, reason: str | None) -> RunError:
    """The error for a file that is out of reach."""
    return RunError(
        f"{str(file)!r} cannot be opened ({reason}); check that it is still there and that you may "
        "read it and its folder."
    )


def connect(file: Path, writer: WriterState) -> sqlite3.Connection:
    """A read-only connection inside a transaction; errors are those of SQLite."""
    uri, log = file.absolute().as_uri() + "?mode=ro", _log(file)
    is_logged = _has_something(log)
    if writer.alive:
        return _begin(uri, file)
    if not is_logged:  # nobody can be writing, and all that there is lies in one file
        return _begin(uri + "&immutable=1", file)
    try:
        return _begin(uri + "&readonly_shm=1", file)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_CANTOPEN:
            raise
    try:  # without run.db-shm, which SQLite makes then
        return _begin(uri, file)
    except sqlite3.OperationalError as error:
        raise RunError(
            f"{str(file)!r} was not closed, and its log {log.name!r} cannot be read in this place "
            f"({error}); copy the whole folder to one that you may write to."
        ) from error


def _log(file: Path) -> Path:
    return file.with_name(file.name + "-wal")


def _has_something(log: Path) -> bool:
    """Whether a write-ahead log is not empty; a ValueError if it is not a regular file."""
    try:
        found = log.stat()
    except FileNotFoundError:  # looked for only once: SQLite may delete it at any moment
        return False
    if not S_ISREG(found.st_mode):
        raise ValueError(f"{log.name} is not a file")
    return found.st_size > LOG_HEADER


def _begin(uri: str, file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, ROW_LIMIT)
        for pragma in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("BEGIN")
        (mark,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        _check_mark(file, mark, version)
    except BaseException:
        database.close()
        raise
    return database


def _check_tables(database: sqlite3.Connection) -> None:
    """Raise a ValueError unless there are our own tables and nothing else, such as a view."""
    found = [sql for (sql,) in database.execute("SELECT sql FROM sqlite_schema")]
    if sorted(map(str, found)) != sorted(STATEMENTS):
        raise ValueError("its tables are not those of a run")


def _check_mark(file: Path, mark: int, version: int) -> None:
    if mark != APPLICATION_ID:
        raise RunError(
            f"{str(file)!r} is a database, but not of a run (application id {mark}, expected "
            f"{APPLICATION_ID}); give the folder of a run that convlens wrote."
        )
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{str(file)!r} was written by another convlens (schema {version}, this one reads "
            f"{SCHEMA_VERSION}); install the version that it was written with."
        )


def is_record(path: Path) -> bool:
    """Whether a folder has a record; False if it may not be read."""
    try:
        return (path / DATABASE).is_file()
    except (OSError, ValueError):
        return False
