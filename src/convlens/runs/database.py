"""Opening a run's file for reading: one read transaction, and a sentence for whatever is wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from convlens.errors import RunError
from convlens.runs.schema import APPLICATION_ID, SCHEMA_VERSION, VIEWS_OF


@contextmanager
def reading(file: Path) -> Generator[sqlite3.Connection]:
    """One read transaction on a run's file; a run of an older schema is seen as one of today.

    Raises:
        RunError: if there is no such file, or it is not a run that this version reads; also if
            what is done inside meets an error that only a damaged file can cause.
    """
    with explained(file), closing(connect(file)) as database:
        yield database


class KeptOpen:
    """A file that is read again and again, through a connection that stays open between two times.

    To open a record takes longer than to read what is new in it. As long as it is open, its writer
    cannot close it into one file, for which it waits two seconds; so `close` it in time.

    Args:
        file: a run's.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._open: tuple[sqlite3.Connection, tuple[int, int]] | None = None

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """One read transaction; see `reading`. After an error the file is opened anew."""
        with explained(self._file):
            try:
                database = self._begin()
                yield database
                database.execute("COMMIT")
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let go of the file until it is read again."""
        if self._open is not None:
            self._open[0].close()
            self._open = None

    def _begin(self) -> sqlite3.Connection:
        inodes = self._inodes()
        if self._open is not None and self._open[1] == inodes:
            self._open[0].execute("BEGIN")
        else:  # another run may have come to lie here, or a newer copy of its log
            self.close()
            self._open = connect(self._file), inodes
        return self._open[0]

    def _inodes(self) -> tuple[int, int]:
        """Of the file and of its log, 0 if there is none."""
        try:
            own = self._file.stat().st_ino
        except OSError as error:
            raise cannot_open(self._file, error.strerror) from error
        try:
            return own, self._file.with_name(self._file.name + "-wal").stat().st_ino
        except OSError:
            return own, 0


@contextmanager
def explained(file: Path) -> Generator[None]:
    """Whatever only a damaged or missing file can cause becomes a sentence that names it.

    Raises:
        RunError: instead of such an error.
    """
    try:
        yield
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:
            raise cannot_open(file, str(error)) from error
        raise RunError(
            f"{str(file)!r} is damaged or incomplete ({error}); restore it from a copy."
        ) from error


def cannot_open(file: Path, reason: str | None) -> RunError:
    """The sentence for a file that is out of reach."""
    return RunError(
        f"{str(file)!r} cannot be opened ({reason}); check that it is still there and that you may "
        "read it and its folder."
    )


def connect(file: Path) -> sqlite3.Connection:
    """A read-only connection inside a transaction, to a file that was found to be a run.

    Errors are those of SQLite; see `explained`.
    """
    uri = file.absolute().as_uri() + "?mode=ro"
    log = file.with_name(file.name + "-wal")
    try:
        database = _begin(uri, file)
    except sqlite3.OperationalError as error:
        if log.exists() and log.stat().st_size:
            raise RunError(
                f"{str(file)!r} was not closed, and its log {log.name!r} cannot be read in this "
                f"place ({error}); copy the whole folder to one that you may write to."
            ) from error
        # Left in write-ahead mode without a log, in a read-only folder: nobody can be writing.
        database = _begin(uri + "&immutable=1", file)
    return database


def _begin(uri: str, file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        database.execute("PRAGMA temp_store = MEMORY")  # of the views, where nothing can be written
        database.execute("BEGIN")
        (mark,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        _check_mark(file, mark, version)
        for statement in VIEWS_OF.get(version, ()):
            database.execute(statement)
    except BaseException:
        database.close()
        raise
    return database


def _check_mark(file: Path, mark: int, version: int) -> None:
    if mark != APPLICATION_ID:
        raise RunError(
            f"{str(file)!r} is a database, but not of a run (application id {mark}, expected "
            f"{APPLICATION_ID}); give the folder of a run that convlens wrote."
        )
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{str(file)!r} was written by a newer convlens (schema {version}, this one reads up "
            f"to {SCHEMA_VERSION}); upgrade with: pip install --upgrade convlens."
        )
