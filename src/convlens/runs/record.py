"""Writing a run: one SQLite file, in write-ahead mode while it grows.

What is written waits in memory until `RunWriter.flush` hands all of it to a thread, which commits
it in one transaction: a reader, or whoever finds the file after a crash, sees whole flushes only,
and a training step never waits for the disk.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from convlens.errors import ArgumentError, RunError
from convlens.histories import LayerInfo
from convlens.records import Epoch, Picture, StepSeries
from convlens.runs.folder import make_exact, make_numbered
from convlens.runs.rows import Rows
from convlens.runs.schema import APPLICATION_ID, SCHEMA_VERSION, TABLES, rank_database
from convlens.sketch import CHUNK_BITS, BucketLayout
from convlens.snapshots import Snapshot, facts_of

BUSY_S = 10.0
"""How long a commit waits for whoever else holds the file, before it is tried again later."""

FOLD_S = 2.0
"""And how long for readers, where the write-ahead log is folded into the file."""

LOG_LIMIT = 32 << 20
"""Bytes of the write-ahead log beyond which it is emptied, even if readers come and go."""


def create_run(
    name: str = "run",
    base: str | Path = "runs",
    directory: str | Path | None = None,
    *,
    ranks: int = 1,
) -> RunWriter:
    """Make a new run directory and open it for writing.

    Args:
        name: the run is called ``name-0001``, or the next free number.
        base: the folder that holds the runs; it is made if missing.
        directory: make exactly this directory instead; it must not exist or be empty.
        ranks: how many processes train together; this one is rank 0, the others call `join_run`.

    Raises:
        ArgumentError: if ``name`` cannot be part of a directory's name.
        RunError: if the directory cannot be made, or ``directory`` is in use.
    """
    if directory is not None:
        writer = RunWriter(make_exact(Path(directory)))
    else:
        writer = RunWriter(make_numbered(Path(base), name))
    if ranks > 1:
        writer.write_meta({"ranks": ranks})
        writer.flush()
    return writer


def join_run(path: str | Path, rank: int) -> RunWriter:
    """Write what another rank sees to the directory of a run that rank 0 has made.

    Each rank has a file of its own there, ``rank-1.db`` and so on, so that none waits for another;
    whoever reads the run gets the columns of all of them added up. Gradients, parameters and
    updates are the same on every rank, so rank 0 alone writes those.

    Args:
        path: the run's directory: rank 0's `RunWriter.path`.
        rank: from 1 on.

    Raises:
        ArgumentError: if ``rank`` is not positive.
        RunError: if the directory is not there, or this rank has a file in it already.
    """
    path = Path(path)
    if rank < 1:
        raise ArgumentError(
            f"rank={rank} cannot join a run: rank 0 makes it with create_run; give 1 or more."
        )
    if not path.is_dir():
        raise RunError(
            f"path={str(path)!r} is not there for rank {rank} to join; let rank 0 make the run "
            "first, in a folder that all ranks share, and give its path."
        )
    return RunWriter(path, rank)


class RunWriter:
    """Writes one run; a `convlens.records.RecordSink`.

    As a context manager it closes itself: as finished, or as failed with the exception's text.
    Safe to call from several threads. Nothing is visible to readers before `flush`. Arrays that
    were given to it must not be changed afterwards.

    What a flush hands over is written by a thread that lives only while there is something to
    write. If that fails, the rows are kept and tried again with every flush; the error is raised by
    the next one, unless the file was merely locked by somebody, which passes. At a normal exit of
    the interpreter what was flushed is written. A forked child neither writes nor closes.

    Attributes:
        path: the run's directory.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path, self._rank = path, rank
        self._file = path / rank_database(rank)
        self._process = os.getpid()
        self._lock = threading.RLock()  # for what is below; never held while writing
        self._pending = Rows()
        self._queue: list[Rows] = []  # flushed, to be written
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None  # of the last attempt to write
        self._closed = False
        self._writing = threading.Lock()  # for the database
        self._database: sqlite3.Connection | None = _create(self._file)
        self.write_meta({"created": datetime.now(UTC).isoformat("T", "seconds")})
        self.write_meta({"status": "running"} | ({"rank": rank} if rank else {}))
        self.flush(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        elif isinstance(error, KeyboardInterrupt):
            self.close("stopped")
        else:
            self.close("failed", f"{type(error).__name__}: {error}")

    def write_meta(self, values: Mapping[str, Any]) -> None:
        """Add or replace facts of the run by name.

        Raises:
            ArgumentError: if a value is not plain JSON.
        """
        texts = {key: _to_json(key, value) for key, value in values.items()}
        with self._rows() as rows:
            for key, text in texts.items():
                rows.add("meta", (key,), text)

    def write_layers(
        self, layers: Sequence[LayerInfo], layout: BucketLayout, eps: float, sample: float = 1.0
    ) -> None:
        """Say which series are watched, before their first columns; the same again replaces."""
        with self._rows() as rows:
            for quantity in {info.quantity for info in layers}:
                rows.add(
                    "watch", (quantity,), json.dumps(asdict(layout)), float(eps), float(sample)
                )
            for info in layers:
                if not self._writes(info.quantity):
                    continue
                key = (info.quantity, int(info.index))
                rows.add("layers", key, info.name, info.kind, int(info.feeds_relu))

    def write_columns(
        self, quantity: str, layer: int, level: int, chunk: int, payload: bytes
    ) -> None:
        """Write a chunk of a series, in place of what lies in its span; see `RecordSink`."""
        if not self._writes(quantity):
            return
        start = int(chunk) << (int(level) + CHUNK_BITS)
        with self._rows() as rows:
            rows.add_columns((quantity, int(layer)), int(level), start, payload)

    def _writes(self, quantity: str) -> bool:
        """Every rank has activations of its own; gradients and weights are the same on all."""
        return self._rank == 0 or quantity == "activation"

    def write_steps(self, steps: StepSeries) -> None:
        """Add finished steps; one that was written before is replaced."""
        if len(steps):
            with self._rows() as rows:
                rows.add_steps(steps)

    def write_epoch(self, epoch: Epoch) -> None:
        """Append a finished epoch; the same number replaces."""
        text = _to_json("epoch", {**asdict(epoch), "metrics": dict(epoch.metrics)})
        with self._rows() as rows:
            rows.add("epochs", (int(epoch.epoch),), text)

    def write_picture(self, picture: Picture) -> None:
        """Add images; the same name and epoch replaces."""
        with self._rows() as rows:
            rows.add_picture(picture)

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Add a snapshot; the same kind, layer and epoch replaces, and keeps its layer's place.

        Raises:
            ArgumentError: if one of its plain values is not plain JSON.
        """
        try:
            facts = facts_of(snapshot)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"snapshot of {type(snapshot).__name__} for layer {snapshot.layer!r} cannot be "
                f"recorded ({error}); give plain numbers, texts, tuples and NumPy arrays."
            ) from error
        with self._rows() as rows:
            rows.add_snapshot(snapshot, facts)

    def flush(self, *, wait: bool = False) -> None:
        """Hand everything written so far over to be committed, in one transaction.

        Args:
            wait: return when it can be read; otherwise return at once.

        Raises:
            RunError: if the file could not be written. Nothing of what failed is visible then, and
                it will be tried again.
        """
        self._check_process()
        with self._lock:
            self._check_open()
            self._hand_over()
            problem, self._problem = self._problem, None
            wait = wait or not self._start()
        if wait:
            problem = self._write_all()
        if problem is not None and (wait or not _is_locked(problem)):
            raise _cannot_write(self._file, problem) from problem

    def close(self, status: str = "finished", error: str | None = None) -> None:
        """Write how the run ended, and leave one plain file that also opens read-only.

        Args:
            status: ``"finished"``, ``"stopped"`` or ``"failed"``.
            error: what went wrong, for ``"failed"``.

        Raises:
            RunError: if the file cannot be written; what was committed before is safe.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            if not self._closed:
                self.write_meta({"status": status} | ({"error": error} if error else {}))
                self._hand_over()
                self._closed = True
        problem = self._write_all(last=True)
        if problem is not None:
            raise _cannot_write(self._file, problem) from problem

    @contextmanager
    def _rows(self) -> Generator[Rows]:
        """What waits for the next flush, to be added to."""
        self._check_process()
        with self._lock:
            self._check_open()
            yield self._pending

    def _check_process(self) -> None:
        """Before any lock: at a fork, it may have been held by a thread that the child lacks."""
        if os.getpid() != self._process:
            raise RunError(
                f"The run {str(self.path)!r} is written by process {self._process} and cannot be "
                f"written to from its fork {os.getpid()}; write from the process that made it."
            )

    def _check_open(self) -> None:
        if self._closed:
            raise RunError(
                f"The run {str(self.path)!r} is closed and cannot be written to any more; "
                "make a new one with create_run."
            )

    def _hand_over(self) -> None:
        """Move the pending rows to the queue, which is kept as one: replaced rows go."""
        if self._pending:
            rows, self._pending = self._pending, Rows()
            self._queue.append(rows)
        while len(self._queue) > 1:  # again as often as one likes, so an interrupt does no harm
            self._queue[0].add_all(self._queue[1])
            del self._queue[1]

    def _start(self) -> bool:
        """Have the queue written; False if there can be no thread, as the interpreter ends."""
        if not self._queue or (self._thread is not None and self._thread.is_alive()):
            return True
        self._thread = threading.Thread(target=self._work, name=f"write {self._file.name}")
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            return False
        return True

    def _work(self) -> None:
        """The thread: write until nothing waits any more, or until it fails."""
        while True:
            problem = self._write_all()
            with self._lock:
                self._problem = problem
                if problem is not None or not self._queue:
                    self._thread = None
                    break
        if problem is not None and not threading.main_thread().is_alive():
            # No flush will come to raise it: have it printed.
            raise _cannot_write(self._file, problem) from problem

    def _write_all(self, *, last: bool = False) -> Exception | None:
        """Write what is queued, here and now; what went wrong, None if nothing."""
        with self._writing:
            database = self._database
            if database is None:
                return None
            problem = self._write_queue(database)
            if last:
                try:
                    _into_one_file(database)
                except sqlite3.Error as error:
                    problem = problem or error
                finally:
                    database.close()
                    self._database = None
        return problem

    def _write_queue(self, database: sqlite3.Connection) -> Exception | None:
        with self._lock:
            taken, self._queue = self._queue, []
        try:
            if taken:
                _commit(database, taken)
                _limit_log(database, self._file)
        except BaseException as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            with self._lock:
                self._queue[:0] = taken
            if not isinstance(error, Exception):
                raise
            return error
        return None


def _create(file: Path) -> sqlite3.Connection:
    try:
        file.touch(exist_ok=False)  # of two writers in one directory, the second fails here
        # check_same_thread is off because RunWriter serializes by its own lock.
        database = sqlite3.connect(
            file, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
    except (OSError, sqlite3.Error) as error:
        raise _cannot_write(file, error) from error
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # In WAL mode NORMAL never corrupts; only a power cut may lose the newest flushes.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN IMMEDIATE")
        for statement in TABLES:
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
    except sqlite3.Error as error:
        database.close()
        raise _cannot_write(file, error) from error
    return database


def _commit(database: sqlite3.Connection, batch: Sequence[Rows]) -> None:
    database.execute("BEGIN IMMEDIATE")
    for rows in batch:
        rows.write(database)
    database.execute("COMMIT")


def _limit_log(database: sqlite3.Connection, file: Path) -> None:
    """Empty a long write-ahead log; readers that poll would never let SQLite start it anew."""
    with suppress(FileNotFoundError):
        if file.with_name(file.name + "-wal").stat().st_size > LOG_LIMIT:
            _fold_log(database)


def _into_one_file(database: sqlite3.Connection) -> None:
    """Fold the write-ahead log into the file and leave write-ahead mode.

    A reader that has it open keeps SQLite from doing so. A page does, but lets go when it sees that
    the run has ended, or two beats after its last look; one that is just reading everything may not
    in time. Then the record is as complete, only in two or three files, which readers know how to
    open too.
    """
    until = time.monotonic() + FOLD_S
    if _fold_log(database):
        while not _leave_log(database) and time.monotonic() < until:
            time.sleep(0.01)


def _leave_log(database: sqlite3.Connection) -> bool:
    """Leave write-ahead mode; False if somebody has the file open: SQLite does not wait."""
    try:
        with closing(database.execute("PRAGMA journal_mode = DELETE")) as cursor:
            cursor.fetchall()
    except sqlite3.OperationalError as error:
        if not _is_locked(error):
            raise
        return False
    return True


def _fold_log(database: sqlite3.Connection) -> bool:
    """Whether it could be done: readers of old states are waited for, but not for ever."""
    database.execute(f"PRAGMA busy_timeout = {int(FOLD_S * 1000)}")
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


def _is_locked(error: Exception) -> bool:
    """Whether somebody else holds the file, which passes."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _to_json(key: str, value: Any) -> str:  # noqa: ANN401 - any JSON value
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{key}={value!r} cannot be recorded ({error}); give plain JSON: numbers, texts, "
            "lists and dictionaries."
        ) from error


def _cannot_write(file: Path, error: Exception) -> RunError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return RunError(
        f"{str(file)!r} cannot be written ({reason}); check that the folder is writable and the "
        "disk is not full. What was written before is safe."
    )
