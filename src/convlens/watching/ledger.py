"""`Ledger`: what was watched, in bounded memory, and on its way to a run.

Columns are kept in compressed chunks of 64. When 4,096 columns of a series are full, neighbours are
merged, so that a run of any length keeps between 2,048 and 4,096 of them. Compressing, merging and
writing happen in one thread of their own, in order, so that no training step waits for them; and
merging is spread over the time that the next 2,048 columns take.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from convlens.core.background import Background
from convlens.core.columns import (
    CHUNK_BITS,
    BucketLayout,
    Columns,
    coarsen,
    concatenate,
    decode,
    encode,
)
from convlens.core.histories import LayerInfo
from convlens.core.records import RecordSink
from convlens.watching.notes import Notes, described

PENDING_BYTES = 1 << 27
"""What may wait for the ledger's thread; beyond it a step does the work, so memory is bounded."""

WORK = "Keeping columns of what is watched"

Series = tuple[str, int]
"""The quantity and index of a `LayerInfo`."""


class Ledger:
    """Keeps columns by series, in chunks of one level, and gives what changes to a sink.

    The thread lives while there is something to do. An error in it, the sink's above all, ends
    nothing: it is noted, and what was handed over stays in memory if it can.

    Args:
        layout: the buckets of all columns.
        eps: bound of near zero.
        sample: the fraction of each batch's images that is looked at.
        sink: where chunks are written to besides memory.
        flush_sink: whether nobody else flushes the sink.
        notes: where to say what went wrong.

    Attributes:
        level: that of the columns kept last.
        work_s: processor time of the ledger's thread.
    """

    def __init__(
        self,
        layout: BucketLayout,
        eps: float,
        sample: float = 1.0,
        sink: RecordSink | None = None,
        *,
        flush_sink: bool = False,
        notes: Notes | None = None,
    ) -> None:
        self.layout, self.eps, self.sample = layout, eps, sample
        self.sink, self.flush_sink = sink, flush_sink
        self._notes = notes or Notes()
        self.level, self.work_s = 0, 0.0
        self._chunks: dict[Series, dict[int, bytes]] = {}
        self._finer: dict[Series, dict[int, bytes]] = {}  # of the level before, to be merged
        self._work: deque[tuple[Callable[[], None], int]] = deque()
        self._pending_bytes = 0
        self._working, self._counting = threading.Lock(), threading.Lock()
        self._process = os.getpid()
        self._background = Background(WORK, self._next, self.wait)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: everything that is kept, and neither thread nor sink."""
        self.wait()
        left_out = ("_working", "_counting", "_background")
        return {k: v for k, v in vars(self).items() if k not in left_out} | {"sink": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._working, self._counting = threading.Lock(), threading.Lock()
        self._background = Background(WORK, self._next, self.wait)

    # ---- from the training's thread -------------------------------------------------------------

    def declare(self, layers: Sequence[LayerInfo]) -> None:
        """Say which series there are; the same again replaces what was said of them."""
        self._add(self._write_layers, tuple(layers))
        self._start()

    def add(self, level: int, chunk: int, columns: Mapping[Series, Columns]) -> None:
        """Join columns to a chunk for good.

        Args:
            level: the columns' steps share ``step >> level``; never less than before.
            chunk: the ``step >> (level + CHUNK_BITS)`` of them all.
            columns: of each series that was called.
        """
        for series, new in columns.items():
            self._add(self._keep, series, level, chunk, new, n_bytes=new.counts.nbytes)
        self._add(self._flush)
        self._start()

    def show(self, level: int, chunk: int, columns: Mapping[Series, Columns]) -> None:
        """Write the columns of a chunk that is still growing, so that readers see them."""
        for series, new in columns.items():
            self._add(self._write_open, series, level, chunk, new, n_bytes=new.counts.nbytes)
        self._add(self._flush)
        self._start()

    @property
    def busy(self) -> bool:
        """Whether something handed over is not done yet."""
        self._in_a_fork()
        return self._pending_bytes > 0

    def columns(self, series: Series, level: int, unfinished: Columns | None) -> Columns | None:
        """Everything kept of a series and what is still in its buffers, at one level."""
        self.wait()
        kept = [self._finer.get(series, {}), self._chunks.get(series, {})]
        parts = [decode(chunks[chunk]) for chunks in kept for chunk in sorted(chunks)]
        if unfinished is not None:
            parts.append(unfinished)
        return join(parts, max(level, self.level)) if parts else None

    def wait(self) -> None:
        """Until everything handed over is kept and written."""
        self._in_a_fork()
        self._background.wait()

    def close(self) -> None:
        """Finish the work, which ends the thread; the next call starts another."""
        self.wait()

    def _in_a_fork(self) -> None:
        """A forked process lacks the thread, which may have held the locks."""
        if os.getpid() == self._process:
            return
        self._process, self.sink = os.getpid(), None
        self._working, self._counting = threading.Lock(), threading.Lock()
        lost, self._pending_bytes = len(self._work), 0
        self._work.clear()
        self._notes.say("fork", lost=lost)

    def _add(self, work: Callable[..., None], *args: object, n_bytes: int = 0) -> None:
        self._in_a_fork()
        while self._work and self._pending_bytes + n_bytes > PENDING_BYTES:
            self._background.do()
        self._count(n_bytes + 1)
        self._work.append((partial(work, *args), n_bytes + 1))

    def _start(self) -> None:
        if not self._background.wake():
            self.wait()

    def _count(self, n_bytes: int) -> None:
        with self._counting:
            self._pending_bytes += n_bytes

    def _next(self) -> float | None:
        """Do what was handed over first; None if there is nothing."""
        with self._working:
            if not self._work:
                return None
            work, n_bytes = self._work.popleft()
            start = time.thread_time()
            try:
                work()
            except Exception as error:
                self._notes.say("kept", why=described(error))
            finally:
                self._count(-n_bytes)
                self.work_s += time.thread_time() - start
        return 0.0

    # ---- in the ledger's own thread -------------------------------------------------------------

    def _to_sink(self, work: Callable[[RecordSink], None]) -> None:
        if self.sink is None:
            return
        try:
            work(self.sink)
        except Exception as error:
            self._notes.say("sink", why=described(error))

    def _write_layers(self, layers: Sequence[LayerInfo]) -> None:
        self._to_sink(lambda sink: sink.write_layers(layers, self.layout, self.eps, self.sample))

    def _keep(self, series: Series, level: int, chunk: int, new: Columns) -> None:
        self._rise_to(level)
        kept = self._chunks.setdefault(series, {})
        kept[chunk] = encode(self._with_kept(series, chunk, new))
        self._write(series, chunk, kept[chunk])
        if self._finer.get(series):
            self._merge(series, min(self._finer[series]) >> 1)

    def _write_open(self, series: Series, level: int, chunk: int, new: Columns) -> None:
        self._rise_to(level)
        self._write(series, chunk, encode(self._with_kept(series, chunk, new)))

    def _with_kept(self, series: Series, chunk: int, new: Columns) -> Columns:
        """The columns with those of the same chunk from before: steps may be counted anew."""
        if self._finer.get(series):
            self._merge(series, chunk)
        payload = self._chunks.get(series, {}).get(chunk)
        return new if payload is None else join([decode(payload), new], self.level)

    def _rise_to(self, level: int) -> None:
        """Begin a coarser level; what is left of the one before is merged first."""
        while self.level < level:
            for series, chunks in self._finer.items():
                while chunks:
                    self._merge(series, min(chunks) >> 1)
            self.level += 1
            self._finer, self._chunks = self._chunks, {}

    def _merge(self, series: Series, chunk: int) -> None:
        """Make a chunk of this level out of its two halves, if they are there."""
        finer = self._finer[series]
        halves = [finer.pop(half) for half in (2 * chunk, 2 * chunk + 1) if half in finer]
        if halves:
            merged = encode(join([decode(half) for half in halves], self.level))
            self._chunks.setdefault(series, {})[chunk] = merged
            self._write(series, chunk, merged)

    def _write(self, series: Series, chunk: int, payload: bytes) -> None:
        self._to_sink(lambda sink: sink.write_columns(*series, self.level, chunk, payload))

    def _flush(self) -> None:
        if self.flush_sink:
            self._to_sink(lambda sink: sink.flush())


def join(parts: Sequence[Columns], level: int) -> Columns:
    """Columns of one series in order of time, merged where they share ``step >> level``."""
    columns = concatenate(parts)
    if np.any(np.diff(columns.first_step) < 0):
        columns = columns[np.argsort(columns.first_step, kind="stable")]
    return coarsen(columns, level)


def chunk_of(step: int, level: int) -> int:
    """The chunk that a step belongs to."""
    return step >> (level + CHUNK_BITS)
