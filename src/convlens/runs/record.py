"""Writing a run: one SQLite file, in write-ahead mode while it grows.

What is written waits in memory until `RunWriter.flush` commits all of it in one transaction:
a reader, or whoever finds the file after a crash, sees whole flushes only.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from convlens.errors import ArgumentError, RunError
from convlens.packets import pack
from convlens.records import Epoch, LayerInfo, Picture, StepSeries
from convlens.runs.folder import make_exact, make_numbered
from convlens.runs.schema import APPLICATION_ID, DATABASE, SCHEMA_VERSION, TABLES
from convlens.sketch import BucketLayout


def create_run(
    name: str = "run", base: str | Path = "runs", directory: str | Path | None = None
) -> RunWriter:
    """Make a new run directory and open it for writing.

    Args:
        name: the run is called ``name-0001``, or the next free number.
        base: the folder that holds the runs; it is made if missing.
        directory: make exactly this directory instead; it must not exist or be empty.

    Raises:
        ArgumentError: if ``name`` cannot be part of a directory's name.
        RunError: if the directory cannot be made, or ``directory`` is in use.
    """
    if directory is not None:
        return RunWriter(make_exact(Path(directory)))
    return RunWriter(make_numbered(Path(base), name))


class RunWriter:
    """Writes one run; a `convlens.records.RecordSink`.

    As a context manager it closes itself: as finished, or as failed with the exception's text.
    Safe to call from several threads. Nothing is visible to readers before `flush`.

    Attributes:
        path: the run's directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / DATABASE
        self._lock = threading.RLock()
        self._pending: list[tuple[str, tuple[Any, ...]]] = []
        self._database: sqlite3.Connection | None = _create(self._file)
        self.write_meta({"created": datetime.now(UTC).isoformat("T", "seconds")})
        self.write_meta({"status": "running"})
        self.flush()

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
        rows = [(key, _to_json(key, value)) for key, value in values.items()]
        self._add("INSERT OR REPLACE INTO meta VALUES (?, ?)", *rows)

    def write_layers(self, layers: Sequence[LayerInfo], layout: BucketLayout, eps: float) -> None:
        """Say which layers are watched, before their first columns."""
        watch = (0, json.dumps(asdict(layout)), float(eps))
        self._add("INSERT OR REPLACE INTO watch VALUES (?, ?, ?)", watch)
        rows = [(info.index, info.name, info.kind, int(info.feeds_relu)) for info in layers]
        self._add("INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?)", *rows)

    def write_columns(
        self, layer: int, level: int, first_step: int, last_step: int, payload: bytes
    ) -> None:
        """Append finished columns of the layer with this index, as `sketch.encode` wrote them."""
        self._add(
            "INSERT INTO columns (layer, level, first_step, last_step, payload) "
            "VALUES (?, ?, ?, ?, ?)",
            (int(layer), int(level), int(first_step), int(last_step), payload),
        )

    def write_steps(self, steps: StepSeries) -> None:
        """Append finished steps as one chunk."""
        if not len(steps):
            return
        arrays = {
            "step": steps.step,
            "epoch": steps.epoch,
            "loss": steps.loss,
            "wall_s": steps.wall_s,
        }
        arrays |= {f"hyper/{name}": values for name, values in steps.hypers.items()}
        self._add(
            "INSERT INTO steps (first_step, last_step, payload) VALUES (?, ?, ?)",
            (int(steps.step.min()), int(steps.step.max()), pack(arrays)),
        )

    def write_epoch(self, epoch: Epoch) -> None:
        """Append a finished epoch; the same number replaces."""
        text = _to_json("epoch", {**asdict(epoch), "metrics": dict(epoch.metrics)})
        self._add("INSERT OR REPLACE INTO epochs VALUES (?, ?)", (int(epoch.epoch), text))

    def write_picture(self, picture: Picture) -> None:
        """Add images; the same name and epoch replaces."""
        captions = json.dumps([str(caption) for caption in picture.captions])
        payload = pack({"images": picture.images})
        self._add(
            "INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)",
            (picture.name, int(picture.epoch), captions, payload),
        )

    def flush(self) -> None:
        """Commit everything written so far, in one transaction.

        Raises:
            RunError: if the file cannot be written; nothing of it is visible then.
        """
        with self._lock:
            database = self._open()
            if not self._pending:
                return
            try:
                database.execute("BEGIN IMMEDIATE")
                for statement, row in self._pending:
                    database.execute(statement, row)
                database.execute("COMMIT")
            except sqlite3.Error as error:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise _cannot_write(self._file, error) from error
            self._pending.clear()

    def close(self, status: str = "finished", error: str | None = None) -> None:
        """Write how the run ended, and leave one plain file that also opens read-only.

        Args:
            status: ``"finished"``, ``"stopped"`` or ``"failed"``.
            error: what went wrong, for ``"failed"``.

        Raises:
            RunError: if the file cannot be written; what was flushed before is safe.
        """
        with self._lock:
            if self._database is None:
                return
            self.write_meta({"status": status} | ({"error": error} if error else {}))
            try:
                self.flush()
                _into_one_file(self._database)
            except sqlite3.Error as problem:
                raise _cannot_write(self._file, problem) from problem
            finally:
                self._database.close()
                self._database = None

    def _add(self, statement: str, *rows: tuple[Any, ...]) -> None:
        with self._lock:
            self._open()
            self._pending.extend((statement, row) for row in rows)

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise RunError(
                f"The run {str(self.path)!r} is closed and cannot be written to any more; "
                "make a new one with create_run."
            )
        return self._database


def _create(file: Path) -> sqlite3.Connection:
    try:
        file.touch(exist_ok=False)  # of two writers in one directory, the second fails here
        # check_same_thread is off because RunWriter serializes by its own lock.
        database = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
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


def _into_one_file(database: sqlite3.Connection) -> None:
    """Fold the write-ahead log into the file and leave write-ahead mode.

    A reader at work at this moment keeps SQLite from doing so: the record is as complete, only in
    two or three files, and the reader knows how to open those too.
    """
    database.execute("PRAGMA busy_timeout = 1000")
    try:
        with closing(database.execute("PRAGMA wal_checkpoint(TRUNCATE)")) as cursor:
            cursor.fetchall()
        with closing(database.execute("PRAGMA journal_mode = DELETE")) as cursor:
            cursor.fetchall()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise


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
        "disk is not full. What was flushed before is safe."
    )
