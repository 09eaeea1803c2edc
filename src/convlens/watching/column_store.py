"""`ColumnStore`: what was watched, in bounded memory, and on its way to a run.

Columns are kept in compressed chunks of 64. When 4,096 columns of a series are full, neighbours are
merged, so that a run of any length keeps between 2,048 and 4,096 of them. Compressing, merging and
writing happen in one thread, in order: that of the run if there is one, so that no training step
waits for them. Merging is spread over the time that the next 2,048 columns take.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from convlens.core.background import Background
from convlens.core.buckets import BucketLayout
from convlens.core.columns import Columns, decode, encode, join
from convlens.core.histories import LayerInfo
from convlens.core.records import RecordSink
from convlens.watching.notes import Notes, described

Series = tuple[str, int]
"""The quantity and index of a `LayerInfo`."""


class ColumnStore:
    """Keeps columns by series, in chunks of one level, and gives what changes to a sink.

    An error in it, also one of the sink, ends nothing: it is noted, and the columns stay in memory.

    Args:
        layout: the buckets of all columns.
        eps: bound of near zero.
        sample: the fraction of each batch's images that is looked at.
        sink: where chunks are written to besides memory; work is done in its thread.
        flush_sink: whether nobody else flushes the sink.
        notes: where to say what went wrong.

    Attributes:
        level: that of the columns kept last.
        work_s: processor time of this work.
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
        self.layout, self.eps, self.sample, self.flush_sink = layout, eps, sample, flush_sink
        self._notes = notes or Notes()
        self.level, self.work_s = 0, 0.0
        self._chunks: dict[Series, dict[int, bytes]] = {}
        self._finer: dict[Series, dict[int, bytes]] = {}  # of the level before, to be merged
        self._waiting: deque[None] = deque()  # one for each task; a deque needs no lock
        self.sink = sink

    @property
    def sink(self) -> RecordSink | None:
        """Where chunks are written to besides memory."""
        return self._sink

    @sink.setter
    def sink(self, sink: RecordSink | None) -> None:
        self._sink = sink
        own = Background("Keeping columns of what is watched")
        self._background = own if sink is None else sink.background

    def __getstate__(self) -> dict[str, Any]:
        """A copy has everything that is kept, but neither thread nor sink."""
        self.wait()
        return {key: v for key, v in vars(self).items() if key not in ("_sink", "_background")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.sink = None

    # ---- from the training's thread -------------------------------------------------------------

    def declare(self, layers: Sequence[LayerInfo]) -> None:
        """Say which series there are; the same again replaces what was said of them."""
        self._add(partial(self._write_layers, tuple(layers)))

    def add(self, level: int, chunk: int, columns: Mapping[Series, Columns]) -> None:
        """Join columns to a chunk for good.

        Args:
            level: the columns' steps share ``step >> level``; never less than before.
            chunk: the ``step >> (level + CHUNK_BITS)`` of them all.
            columns: of each series that was called.
        """
        for series, new in columns.items():
            self._add(partial(self._keep, series, level, chunk, new), new.counts.nbytes)
        self._add(self._flush)

    def show(self, level: int, chunk: int, columns: Mapping[Series, Columns]) -> None:
        """Write the columns of a chunk that is still growing, so that readers see them."""
        if self.sink is not None:
            for series, new in columns.items():
                self._add(partial(self._write_open, series, level, chunk, new), new.counts.nbytes)
            self._add(self._flush)

    @property
    def busy(self) -> bool:
        """Whether something handed over is not done yet."""
        self._leave_parent()
        return len(self._waiting) > 0

    def columns(self, series: Series, level: int, unfinished: Columns | None) -> Columns | None:
        """Everything kept of a series and what is still in its buffers, at one level."""
        self.wait()
        kept = [self._finer.get(series, {}), self._chunks.get(series, {})]
        parts = [decode(chunks[chunk]) for chunks in kept for chunk in sorted(chunks)]
        if unfinished is not None:
            parts.append(unfinished)
        return join(parts, max(level, self.level)) if parts else None

    def wait(self) -> None:
        """Return when everything handed over is kept and given to the sink."""
        self._leave_parent()
        self._background.wait()

    def _add(self, work: Callable[[], None], n_bytes: int = 0) -> None:
        self._leave_parent()
        self._waiting.append(None)
        self._background.add(partial(self._do, work), n_bytes)

    def _leave_parent(self) -> None:
        """A forked process lacks the thread and must not write to its parent's run."""
        if self._background.is_inherited:
            lost, self._waiting, self.sink = len(self._waiting), deque(), None
            self._notes.say("fork", lost=lost)

    # ---- in the background ----------------------------------------------------------------------

    def _do(self, work: Callable[[], None]) -> None:
        start = time.thread_time()
        try:
            work()
        except Exception as error:
            self._notes.say("kept", why=described(error))
        finally:
            self._waiting.pop()
            self.work_s += time.thread_time() - start

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
        payload = encode(self._with_kept(series, chunk, new))
        self._chunks.setdefault(series, {})[chunk] = payload
        self._write(series, chunk, payload)
        if self._finer.get(series):
            self._merge(series, min(self._finer[series]) >> 1)

    def _write_open(self, series: Series, level: int, chunk: int, new: Columns) -> None:
        self._rise_to(level)
        self._write(series, chunk, encode(self._with_kept(series, chunk, new)))

    def _with_kept(self, series: Series, chunk: int, new: Columns) -> Columns:
        """The columns with those of the same chunk from before: a step may be counted again."""
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
