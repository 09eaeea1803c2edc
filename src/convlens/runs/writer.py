"""`RunWriter`: writes a run, which is one SQLite file, in write-ahead mode while it grows.

What is written waits in memory until `RunWriter.flush`; then a thread commits it in one
transaction, so that a training step never waits for the disk.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from convlens.core.background import Background, Notices
from convlens.core.buckets import BucketLayout
from convlens.core.columns import CHUNK_BITS
from convlens.core.histories import LayerInfo
from convlens.core.outcome import outcome_of
from convlens.core.records import Epoch, Picture
from convlens.core.snapshots import Snapshot, arrays_of, facts_of
from convlens.core.steps import StepSeries
from convlens.errors import ArgumentError, RunError
from convlens.runs.database_writer import DatabaseWriter, explain
from convlens.runs.folder import make_exact, make_numbered
from convlens.runs.schema import epoch_of, parsed, rank_database
from convlens.runs.write_buffer import WriteBuffer

BUDGET = 64 << 20
"""Bytes that wait in memory at most while the file cannot be written."""

RETRY_S = 1.0
"""Seconds between a commit that failed and the next attempt."""

CLOSE_S = 5.0
"""Seconds for attempts to write what waits when a run is closed or the interpreter exits."""


def create_run(
    name: str = "run",
    base: str | Path = "runs",
    directory: str | Path | None = None,
    *,
    ranks: int = 1,
) -> RunWriter:
    """Make a new run directory and open it for writing.

    >>> import tempfile
    >>> from convlens.runs import create_run, open_run
    >>> with tempfile.TemporaryDirectory() as base:
    ...     with create_run("mnist", base) as writer:
    ...         writer.write_meta({"seed": 3})
    ...     open_run(writer.path).meta["seed"]
    3

    Args:
        name: the run is called ``name-0001``, or the next free number.
        base: the folder that holds the runs; it is made if missing.
        directory: make exactly this directory instead; it must not exist or be empty.
        ranks: how many processes train together; this one is rank 0, the others call `join_run`.

    Raises:
        ArgumentError: if ``name`` cannot be part of a directory's name.
        RunError: if the directory cannot be made, or ``directory`` is in use.
    """
    path = make_numbered(Path(base), name) if directory is None else make_exact(Path(directory))
    writer = RunWriter(path)
    if ranks > 1:
        writer.write_meta({"ranks": ranks})
        writer.flush()
    return writer


def join_run(path: str | Path, rank: int) -> RunWriter:
    """Write what another rank sees to the directory of a run that rank 0 has made.

    Each rank has a file of its own there, ``rank-1.db`` and so on, so that none waits for another;
    readers add up the columns of all. Gradients, parameters and updates are the same on every rank,
    so rank 0 alone writes those.

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
            f"rank must be at least 1 to join a run, got {rank}; rank 0 makes it with create_run."
        )
    if not path.is_dir():
        raise RunError(
            f"path={str(path)!r} is not there for rank {rank} to join; let rank 0 make the run "
            "first, in a folder that all ranks share, and give its path."
        )
    return RunWriter(path, rank)


class RunWriter:
    """Writes one run; a `convlens.core.records.RecordSink`.

    As a context manager it closes itself: as finished, stopped or failed. Safe to call from several
    threads. Arrays that were given to it must not be changed afterwards.

    Once it is made, no disk, lock or folder ends a training: what a flush hands over is committed
    by a thread, which tries again every second as long as that fails. The problem is said as a
    `convlens.errors.ConvlensWarning`, and the rows wait in memory; beyond 64 MiB the oldest
    columns, pictures and steps are dropped. At a normal exit of the interpreter what waits is
    written. A forked child neither writes nor closes.

    Attributes:
        path: the run's directory.
        background: the thread that writes.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path, self._rank = path, rank
        self._file = path / rank_database(rank)
        self._process = os.getpid()
        self._lock = threading.RLock()  # for what is below; never held while writing
        self._pending = WriteBuffer()
        self._flushed = WriteBuffer()  # to be committed
        self._dropped = Counter[str]()
        self._problem: Exception | None = None  # of the last attempt to write
        self._retry_at = 0.0
        self._closed = False
        self._writing = threading.Lock()  # for the file
        self._database = DatabaseWriter(self._file, _first_facts(rank))
        self.background = Background(
            f"Writing to {str(self._file)!r}", self._retry, finish=self._at_exit
        )
        self._notices, self._refused = Notices(), Notices()

    @property
    def is_in_place(self) -> bool:
        """Whether the run's directory is the one that was made, not deleted, renamed, replaced."""
        return self._database.is_in_place

    def __repr__(self) -> str:
        return f"RunWriter({str(self.path)!r}{', closed' if self._closed else ''})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(*outcome_of(error))

    def write_meta(self, values: Mapping[str, Any]) -> None:
        """Add or replace facts of the run by name.

        Raises:
            ArgumentError: if a value is not plain JSON.
        """
        texts = {key: _to_json(key, value) for key, value in values.items()}
        with self._open_buffer() as buffer:
            for key, text in texts.items():
                buffer.add("meta", (key,), text)

    def write_layers(
        self, layers: Sequence[LayerInfo], layout: BucketLayout, eps: float, sample: float = 1.0
    ) -> None:
        """Say which series are watched, before their first columns; the same again replaces."""
        watch = json.dumps(asdict(layout)), float(eps), float(sample)
        with self._open_buffer() as buffer:
            for quantity in {info.quantity for info in layers}:
                buffer.add("watch", (quantity,), *watch)
            for info in layers:
                if self._writes(info.quantity):
                    values = str(info.name), str(info.kind), int(info.feeds_relu)
                    buffer.add("layers", (info.quantity, int(info.index)), *values)

    def write_columns(
        self, quantity: str, layer: int, level: int, chunk: int, payload: bytes
    ) -> None:
        """Write a chunk of a series, in place of what lies in its span; see `RecordSink`."""
        if not self._writes(quantity):
            return
        start = int(chunk) << (int(level) + CHUNK_BITS)
        with self._open_buffer() as buffer:
            buffer.add_columns((quantity, int(layer)), int(level), start, payload)

    def _writes(self, quantity: str) -> bool:
        """Every rank has activations of its own; gradients and weights are the same on all."""
        return self._rank == 0 or quantity == "activation"

    def write_steps(self, steps: StepSeries) -> None:
        """Add finished steps; one that was written before is replaced."""
        if len(steps):
            with self._open_buffer() as buffer:
                buffer.add_steps(steps)

    def write_epoch(self, epoch: Epoch) -> None:
        """Add a finished epoch; the same number replaces.

        Raises:
            ArgumentError: if a loss or metric is not a number.
        """
        text = _to_json("epoch", {**asdict(epoch), "metrics": dict(epoch.metrics)})
        try:
            epoch_of(int(epoch.epoch), text)
        except (ValueError, KeyError) as error:
            raise ArgumentError(
                f"{_short(epoch)} cannot be recorded ({error}); give losses and metrics that are "
                "numbers."
            ) from error
        with self._open_buffer() as buffer:
            buffer.add("epochs", (int(epoch.epoch),), text)

    def write_picture(self, picture: Picture) -> None:
        """Add images; the same name and epoch replaces."""
        captions = json.dumps([str(caption) for caption in picture.captions])
        key = str(picture.name), int(picture.epoch)
        with self._open_buffer() as buffer:
            buffer.add("pictures", key, captions, {"images": picture.images})

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
        key = snapshot.KIND, str(snapshot.layer), int(snapshot.epoch)
        with self._open_buffer() as buffer:
            buffer.add("snapshots", key, facts, arrays_of(snapshot))

    def flush(self, *, wait: bool = False) -> None:
        """Hand everything written so far over to be committed, in one transaction.

        Where it cannot be committed, that is said, and it is tried again; see `RunWriter`.

        Args:
            wait: return when it can be read, or when that could not be done; otherwise at once.
        """
        with self._open_buffer():
            self._hand_over()
        if wait:
            self._commit(now=True)
        else:
            self.background.add(self._commit)

    def close(self, status: str = "finished", error: str | None = None) -> None:
        """Write how the run ended, and leave one plain file that also opens read-only.

        What cannot be written in five seconds is lost, which is said. How the run ended is kept
        beside the record then, if that is possible.

        Args:
            status: ``"finished"``, ``"stopped"`` or ``"failed"``.
            error: what went wrong, for ``"failed"``.
        """
        if os.getpid() != self._process:
            return
        self.background.wait()
        ended = {"status": status} | ({"error": error} if error else {})
        with self._lock:
            if not self._closed:
                dropped = {"lost": _counted(self._dropped)} if self._dropped else {}
                self.write_meta(ended | dropped)
                self._hand_over()
                self._closed = True
        self.background.stop()
        lost = self._write_in_time()
        with self._writing:
            self._database.close({} if lost is None else self._end_of({**ended, "lost": lost}))

    @contextmanager
    def _open_buffer(self) -> Generator[WriteBuffer]:
        """The buffer of rows that the next flush hands over, locked."""
        # Before any lock: a thread that a forked child lacks may have held it.
        if os.getpid() != self._process:
            raise RunError(
                f"The run {str(self.path)!r} is written by process {self._process} and cannot be "
                f"written to from its fork {os.getpid()}; write from the process that made it."
            )
        with self._lock:
            if self._closed:
                raise RunError(
                    f"The run {str(self.path)!r} is closed and cannot be written to any more; "
                    "make a new one with create_run."
                )
            yield self._pending

    def _hand_over(self) -> None:
        """Move what is pending to what is to be committed."""
        if self._flushed:
            self._flushed.merge(self._pending)
            self._pending = WriteBuffer()
        else:
            self._flushed, self._pending = self._pending, WriteBuffer()
        if self._problem is not None:
            self._keep_to_budget()

    # ---- committing -----------------------------------------------------------------------------

    def _commit(self, *, now: bool = False) -> None:
        """Write what was flushed, unless the last attempt failed a moment ago."""
        with self._writing:
            with self._lock:
                if self._problem is not None and not now and time.monotonic() < self._retry_at:
                    return
                taken, self._flushed = self._flushed, WriteBuffer()
            if not taken:
                return
            try:
                refused = self._database.commit(taken)
            except BaseException as error:
                with self._lock:
                    taken.merge(self._flushed)
                    self._flushed = taken
                if not isinstance(error, Exception):
                    raise
                self._failed(error)
            else:
                self._done(refused)

    def _retry(self) -> float | None:
        """Try again what could not be written; in how many seconds to do so, None if all is."""
        if self._problem is None:
            return None
        left = self._retry_at - time.monotonic()
        if left <= 0:
            self._commit()
        return max(left, 0.0)

    def _failed(self, error: Exception) -> None:
        kind, sentence = explain(self._file, error)
        with self._lock:
            self._problem, self._retry_at = error, time.monotonic() + RETRY_S
            self._keep_to_budget()
        self._notices.say(
            kind,
            f"{sentence} What is recorded waits in memory, at most {BUDGET >> 20} MiB, and is "
            "written as soon as that is possible.",
        )

    def _keep_to_budget(self) -> None:
        lost = self._flushed.drop_oldest(BUDGET)
        if lost:
            self._dropped += lost
            self._notices.say(
                "budget",
                f"{str(self._file)!r} still cannot be written, and {BUDGET >> 20} MiB wait in "
                "memory: from now on the oldest columns, pictures and steps are given up.",
            )

    def _done(self, refused: Sequence[str]) -> None:
        with self._lock:
            self._problem, lost = None, _counted(self._dropped)
        self._notices.over(
            f"{str(self._file)!r} is written again; "
            + (f"lost are {lost}." if lost else "nothing was lost.")
        )
        for row in refused:
            self._refused.say(
                row, f"{str(self._file)!r} cannot hold the row {row}; it was left out."
            )

    # ---- the end --------------------------------------------------------------------------------

    def _write_in_time(self) -> str | None:
        """Write what waits, as long as the time allows; in words what could not be, or None."""
        until = time.monotonic() + CLOSE_S
        self._commit(now=True)
        while self._problem is not None and time.monotonic() < until:
            time.sleep(min(RETRY_S, 0.2))
            self._commit(now=True)
        with self._lock:
            if self._problem is None:
                return None
            lost = _counted(self._flushed.count() + self._dropped)
        why = explain(self._file, self._problem)[1]
        self._notices.say("lost", f"The record of the run lacks {lost or 'how it ended'}. {why}")
        return lost

    def _end_of(self, ended: Mapping[str, str]) -> Mapping[str, str]:
        """``ended`` if it cannot be written to the record; empty if it can."""
        buffer = WriteBuffer()
        for key, value in ended.items():
            buffer.add("meta", (key,), json.dumps(value))
        try:
            self._database.commit(buffer)
        except Exception:
            return ended
        return {}

    def _at_exit(self) -> None:
        if os.getpid() == self._process and not self._closed:
            self.background.stop()
            self.background.wait()
            self._write_in_time()


def _first_facts(rank: int) -> WriteBuffer:
    buffer = WriteBuffer()
    facts = {"created": datetime.now(UTC).isoformat("T", "seconds"), "status": "running"}
    for key, value in (facts | ({"rank": rank} if rank else {})).items():
        buffer.add("meta", (key,), json.dumps(value))
    return buffer


def _counted(found: Counter[str]) -> str:
    """What was lost, in words, such as "chunks of columns: 3, steps: 120"."""
    return ", ".join(f"{what}: {n:,}" for what, n in sorted(found.items()))


def _to_json(key: str, value: Any) -> str:  # noqa: ANN401 - any JSON value
    try:
        text = json.dumps(value)
        parsed(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"{key}={_short(value)} cannot be recorded ({error}); give plain JSON: numbers, texts, "
            "lists and dictionaries."
        ) from error
    return text


def _short(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]} …"
