"""`DatabaseWriter`: makes a run's file, commits to it, and closes it into one plain file."""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from convlens.errors import RunError
from convlens.runs.lock import WriterLock
from convlens.runs.schema import APPLICATION_ID, SCHEMA_VERSION, STATEMENTS, TABLES
from convlens.runs.write_buffer import WriteBuffer, put_total

BUSY_S = 1.0
"""Seconds that a commit waits for a lock; then it is tried again later."""

CHECKPOINT_S = 2.0
"""Seconds that a WAL checkpoint waits for readers."""

LOG_LIMIT = 32 << 20
"""Size of the write-ahead log in bytes above which it is truncated."""

_NO_MEMORY = frozenset(
    [sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR_NOMEM, sqlite3.SQLITE_IOERR_SHMMAP]
)


class MovedError(Exception):
    """The file is no longer where it was made."""


class DatabaseWriter:
    """A new record, which its process keeps locked; see `convlens.runs.lock`.

    It gets its name when it has its tables and first facts, so that after a crash it is a run.

    Args:
        path: the file, in a folder that exists.
        facts: its first rows.

    Raises:
        RunError: if it exists or cannot be made.
    """

    def __init__(self, path: Path, facts: WriteBuffer) -> None:
        self.path = path
        try:
            self._lock = WriterLock(path)
            try:
                self._database: sqlite3.Connection | None = _create(path, facts)
                self._place = _place(path)
            except BaseException:
                self._lock.close(remove=True)
                raise
        except (OSError, sqlite3.Error) as error:
            raise RunError(explain(path, error)[1]) from error

    @property
    def is_in_place(self) -> bool:
        """Whether the file lies where it was made."""
        try:
            return _place(self.path) == self._place
        except OSError:
            return False

    def commit(self, rows: WriteBuffer) -> list[str]:
        """Write rows in one transaction.

        Returns:
            Rows that were left out, as no database takes them.

        Raises:
            MovedError: if the file is not where it was made, so that nobody would find the rows.
            sqlite3.Error: if it cannot be written.
        """
        assert self._database is not None
        if not self.is_in_place:
            raise MovedError
        try:
            self._database.execute("BEGIN IMMEDIATE")
            refused = rows.write(self._database)
            self._database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # it may have rolled back by itself
                self._database.execute("ROLLBACK")
            raise
        with suppress(sqlite3.Error, OSError):  # what was committed is safe in either file
            _limit_log(self._database, self.path)
        return refused

    def close(self, ended: Mapping[str, str]) -> None:
        """Fold everything into one file, and let go of it.

        Args:
            ended: how the run ended, if the record does not say it; it is kept beside it.
        """
        if self._database is None:
            return
        in_place = self.is_in_place
        if in_place:
            with suppress(sqlite3.Error):  # then the record is as complete, in two files
                _into_one_file(self._database)
        elif self.path.exists():
            # Another run lies there, whose log SQLite would delete by its name when it closes ours:
            # the connection is never closed.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))
            self._database = None
        if self._database is not None:
            self._database.close()
            self._database = None
        with suppress(OSError):
            if ended:
                self._lock.tell(ended)
            self._lock.close(remove=in_place and not ended)


def explain(file: Path, error: Exception) -> tuple[str, str]:
    """The kind of a problem with writing, and a sentence."""
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, MovedError):
        return "moved", (
            f"{str(file)!r} is not there any more: its folder was deleted, renamed or replaced "
            "while it was written; rename it back."
        )
    reason = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, MemoryError) or code in _NO_MEMORY:
        return "memory", (
            f"{str(file)!r} cannot be written: the memory is too short "
            f"({reason or 'MemoryError'}); check the limits of this process (ulimit -v)."
        )
    if code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "locked", (
            f"{str(file)!r} cannot be written ({reason}): another process writes to it; end that."
        )
    return "failed", (
        f"{str(file)!r} cannot be written ({reason}); check that the folder is writable and the "
        "disk is not full."
    )


def _place(file: Path) -> tuple[int, int]:
    """Device and inode, which tell a file from another one under the same name."""
    found = os.stat(file)  # noqa: PTH116 - shorter
    return found.st_dev, found.st_ino


def _create(file: Path, facts: WriteBuffer) -> sqlite3.Connection:
    if file.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    draft = file.with_name(f"{file.name}-new")
    try:
        with closing(_connect(draft)) as database:  # which folds its log into it
            database.execute("BEGIN IMMEDIATE")
            for statement in STATEMENTS:
                database.execute(statement)
            for table in TABLES.values():
                put_total(database, table)
            facts.write(database)
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute("COMMIT")
        draft.rename(file)
    except BaseException:
        for name in (draft.name, f"{draft.name}-wal", f"{draft.name}-shm"):
            draft.with_name(name).unlink(missing_ok=True)
        raise
    return _connect(file)


def _connect(file: Path) -> sqlite3.Connection:
    # check_same_thread is off because RunWriter serializes by its own lock.
    database = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # In WAL mode NORMAL never corrupts; only a power cut may lose the newest flushes.
        database.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        database.close()
        raise
    return database


def _limit_log(database: sqlite3.Connection, file: Path) -> None:
    """Empty a long write-ahead log; readers that poll would never let SQLite start it anew."""
    if file.with_name(file.name + "-wal").stat().st_size > LOG_LIMIT:
        _empty_log(database)


def _into_one_file(database: sqlite3.Connection) -> None:
    """Fold the write-ahead log into the file and leave write-ahead mode.

    A reader that has it open may keep SQLite from doing so. Then the record is as complete, only in
    two or three files, which readers know how to open too.
    """
    until = time.monotonic() + CHECKPOINT_S
    if _empty_log(database):
        while not _leave_log(database) and time.monotonic() < until:
            time.sleep(0.01)


def _leave_log(database: sqlite3.Connection) -> bool:
    """Leave write-ahead mode; False if somebody has the file open."""
    try:
        with closing(database.execute("PRAGMA journal_mode = DELETE")) as cursor:
            cursor.fetchall()
    except sqlite3.OperationalError as error:
        if not _is_locked(error):
            raise
        return False
    return True


def _empty_log(database: sqlite3.Connection) -> bool:
    """Move the log's content into the file; False if readers of old states kept it from that."""
    database.execute(f"PRAGMA busy_timeout = {int(CHECKPOINT_S * 1000)}")
    try:
        with closing(database.execute("PRAGMA wal_checkpoint(TRUNCATE)")) as cursor:
            (busy, _, _) = cursor.fetchone()
        return not busy
    except sqlite3.OperationalError as error:
        if not _is_locked(error):
            raise
        return False
    finally:
        database.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")


def _is_locked(error: sqlite3.Error) -> bool:
    """Whether somebody else holds a lock on the file."""
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
