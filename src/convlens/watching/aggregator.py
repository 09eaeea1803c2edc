"""`Aggregator`: adds up sketches of several series in columns of time, and hands them over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from convlens.core.buckets import BucketLayout, Ints
from convlens.core.columns import CHUNK_BITS, Columns, chunk_of, empty_columns, level_at
from convlens.core.histories import OPTIMIZER_STEP, LayerHistory, LayerInfo
from convlens.core.records import HANDOVER_S, RecordSink
from convlens.watching.backends.buffers import Buffers, buffer_device, columns_of
from convlens.watching.backends.dispatch import Sketcher
from convlens.watching.backends.double_buffer import CopyStream, DoubleBuffer, Rows
from convlens.watching.column_store import ColumnStore, Series
from convlens.watching.layer_selection import channel_axis
from convlens.watching.normalization import Statistics
from convlens.watching.notes import Notes
from convlens.watching.sampling import squared_errors

CHUNK = 1 << CHUNK_BITS


@dataclass
class Slot:
    """A series and the memory that its current chunk grows in.

    Attributes:
        info: what is known of it.
        buffers: None until its device and channels are known.
        channel_rule: where its channels are, see `layer_selection.channel_rule`.
        batch_norm: whether it keeps the statistics of a batch normalization.
        old: those from before the current batch.
        listed: whether a run is told of it.
        seen: whether columns of it were handed over; known after `Aggregator.flush` or later.
    """

    info: LayerInfo
    buffers: Buffers | None = None
    channel_rule: int | None = None
    batch_norm: bool = False
    old: Statistics | None = None
    listed: bool = True
    seen: bool = False

    @property
    def series(self) -> Series:
        """Its key in the `ColumnStore`."""
        return self.info.quantity, self.info.index


@dataclass(frozen=True)
class _Label:
    """The chunk and steps of rows that a device sends; ``growing`` if they will be sent again."""

    level: int
    chunk: int
    first: Ints
    last: Ints
    growing: bool = False


class Aggregator:
    """Sketches of several series of one training, all in the same columns of time.

    Args:
        eps: bound of near zero.
        sample: the fraction of each batch's images that is sketched.
        sink: where columns are written to besides memory.
        flush_sink: flush the sink after each write.
        notes: where to say what could not be recorded.

    Attributes:
        row: the row of the current step in every buffer, -1 while nothing is to be counted.
        kernel: adds a tensor to a row of buffers.
        kernel_s: seconds spent in kernels so far.
        handover_s: seconds spent on handing over columns.
        n_sketches: how many tensors were sketched.
        n_flushes: how often the buffers were emptied.
        counted: what its steps are, see `LayerHistory.counted`.
    """

    def __init__(
        self,
        eps: float,
        sample: float = 1.0,
        sink: RecordSink | None = None,
        *,
        flush_sink: bool = False,
        notes: Notes | None = None,
    ) -> None:
        self.layout, self.eps, self.sample = BucketLayout(), eps, sample
        self.store = ColumnStore(self.layout, eps, sample, sink, flush_sink=flush_sink, notes=notes)
        self.slots: dict[Series, Slot] = {}
        self.row = -1
        self.kernel_s, self.handover_s = 0.0, 0.0
        self.n_sketches = self.n_flushes = 0
        self.kernel: Callable[..., None] = Sketcher(self.layout, eps)
        self.counted = OPTIMIZER_STEP
        self._step, self._level, self._chunk = -1, 0, -1
        self._first = np.full(CHUNK, -1, np.int64)
        self._last = np.full(CHUNK, -1, np.int64)
        self._on_cuda: dict[torch.device, DoubleBuffer[_Label]] = {}
        self._series_on: dict[torch.device, list[Series]] = {}
        self._shown_at, self._n_shown = time.monotonic(), 0
        self._declared = False

    @property
    def rare_s(self) -> float:
        """Seconds, in any thread, for work that not every step causes."""
        return self.handover_s + self.store.work_s

    # ---- series ---------------------------------------------------------------------------------

    def open(self, infos: Iterable[LayerInfo]) -> list[Slot]:
        """Make series, each with a key of its own."""
        made = [Slot(info) for info in infos]
        self.slots |= {slot.series: slot for slot in made}
        self._declared = False
        return made

    def describe(self, slot: Slot, info: LayerInfo) -> None:
        """Replace what is known of a series, and list it."""
        if info != slot.info or not slot.listed:
            slot.info, slot.listed, self._declared = info, True, False

    def allocate(self, slot: Slot, channels: int, device: torch.device) -> Buffers:
        """The slot's buffers for values on this device, made if it has others or none."""
        device = buffer_device(device)
        if slot.buffers is None or slot.buffers.device != device:
            if slot.buffers is not None:  # the model has moved
                self.flush()
            doubled = self._double_buffer(device)
            slot.buffers = Buffers(
                CHUNK if doubled is None else doubled.rows,
                self.layout,
                channels,
                device,
                batch_norm=slot.batch_norm,
                sampled=self.sample < 1.0,
                cursor=None if doubled is None else doubled.cursor,
            )
            if doubled is not None:
                doubled.add(slot.buffers.tensors())
                self._series_on[device].append(slot.series)
        return slot.buffers

    def _double_buffer(self, device: torch.device) -> DoubleBuffer[_Label] | None:
        """What brings the columns of a CUDA device to the host; None for other devices."""
        if device.type == "cuda" and device not in self._on_cuda:
            self._add_double_buffer(device, CopyStream(device))
        return self._on_cuda.get(device)

    def _add_double_buffer(self, device: torch.device, stream: CopyStream) -> None:
        consumer = partial(self._arrived, device)
        self._on_cuda[device] = DoubleBuffer(CHUNK, device, consumer, stream)
        self._series_on[device] = []
        self._on_cuda[device].move(self.row)

    def row_on(self, device: torch.device) -> int:
        """The current row of buffers on this device, -1 for none."""
        doubled = self._on_cuda.get(device)
        return self.row if doubled is None or self.row < 0 else doubled.offset + self.row

    def lose_batch_norm(self, slot: Slot) -> None:
        """The statistics of a batch normalization are not known for the current step."""
        slot.old = None
        if slot.batch_norm and slot.buffers is not None and self.row >= 0:
            slot.buffers.batch_norm[self.row_on(slot.buffers.device)] = math.nan

    # ---- time -----------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """What is sketched from now on belongs to this step."""
        level = max(self._level, level_at(step))
        chunk = chunk_of(step, level)
        if level != self._level or chunk != self._chunk:
            self.row = -1
            self.flush()
            self._level, self._chunk = level, chunk
        self._step = step
        row = self.row = (step >> level) & (CHUNK - 1)
        if self._first[row] < 0 or step < self._first[row]:
            self._first[row] = step
        self._last[row] = max(self._last[row], step)
        for doubled in self._on_cuda.values():
            doubled.move(row)
        if self.store.sink is not None:
            self._show_now_and_then()

    def step_done(self) -> None:
        """Let readers of a run see the current step, if it is time to; more may be added to it.

        Otherwise they see a step when the next one begins, which in a slow loop is late.
        """
        if self.store.sink is None or self.row < 0:
            return
        if self._on_cuda:
            if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                return
            for doubled in self._on_cuda.values():
                doubled.collect()
        self._show_now_and_then(done=True)

    def pause(self) -> None:
        """Count nothing until the next `begin`."""
        self.row = -1
        for doubled in self._on_cuda.values():
            doubled.move(-1)

    def flush(self) -> None:
        """Hand over what the buffers hold, and empty them; the current step goes on."""
        if not (self._first >= 0).any():
            return
        start = time.perf_counter()
        self._declare()
        columns = self._take_all(clear=True)
        self.store.add(self._level, self._chunk, columns)
        label = _Label(self._level, self._chunk, self._first.copy(), self._last.copy())
        for doubled in self._on_cuda.values():
            doubled.swap(label)
            doubled.move(self.row)
        self._first.fill(-1)
        self._last.fill(-1)
        if self.row >= 0:
            self._first[self.row] = self._last[self.row] = self._step
        self.n_flushes += 1
        self._n_shown, self._shown_at = self.n_sketches, time.monotonic()
        self.handover_s += time.perf_counter() - start

    def close(self) -> None:
        """Hand over everything and wait until it is written."""
        self.flush()
        for doubled in self._on_cuda.values():
            doubled.drain()
        self.store.wait()

    def _show_now_and_then(self, *, done: bool = False) -> None:
        """Write columns that are not full if it is time; ``done`` includes the current row."""
        if self._n_shown == self.n_sketches and not self._on_cuda:  # a replayed graph counts none
            return
        if time.monotonic() < self._shown_at + HANDOVER_S or self.store.busy:
            return
        start = time.perf_counter()
        self._declare()
        self.store.show(self._level, self._chunk, self._take_all(clear=False))
        for doubled in self._on_cuda.values():
            first = self._first.copy()
            if not done:
                first[self.row] = -1  # kernels add to this row while it is copied
            label = _Label(self._level, self._chunk, first, self._last.copy(), growing=True)
            doubled.show(label, hold=done)
        self._n_shown, self._shown_at = self.n_sketches, time.monotonic()
        self.handover_s += time.perf_counter() - start

    def _declare(self) -> None:
        if not self._declared:
            self.store.declare([slot.info for slot in self.slots.values() if slot.listed])
            self._declared = True

    def _arrived(self, device: torch.device, label: _Label, rows: Sequence[Rows]) -> None:
        """A CUDA device has sent rows of its series."""
        taken = zip(self._series_on[device], rows, strict=False)  # some series came since
        columns = {series: columns_of(own, label.first, label.last) for series, own in taken}
        columns = {series: own for series, own in columns.items() if len(own)}
        for series in columns:
            self.slots[series].seen = True
        hand_over = self.store.show if label.growing else self.store.add
        hand_over(label.level, label.chunk, columns)

    def _take_all(self, *, clear: bool) -> dict[Series, Columns]:
        """The columns in buffers that are not on a CUDA device."""
        taken: dict[Series, Columns] = {}
        for slot in self.slots.values():
            if slot.buffers is not None and slot.buffers.device not in self._on_cuda:
                columns = slot.buffers.take(self._first, self._last)
                if len(columns):
                    taken[slot.series], slot.seen = columns, True
                if clear:
                    slot.buffers.clear()  # at once, while they are in the cache
        return taken

    # ---- sketching ------------------------------------------------------------------------------

    def sketch(self, slot: Slot, x: Tensor) -> None:
        """Add a tensor to the current column of its series."""
        axis = channel_axis(slot.channel_rule, x.ndim)
        buffers = slot.buffers
        if buffers is None or buffers.device != x.device:
            buffers = self.allocate(slot, 0 if axis is None else x.shape[axis], x.device)
        start = time.perf_counter()
        row = self.row_on(buffers.device) if self._on_cuda else self.row
        if self.sample < 1.0:
            x = self._sampled(x, buffers, row)
        self.kernel(x, axis, buffers, row)
        self.kernel_s += time.perf_counter() - start
        self.n_sketches += 1

    def sketch_into(
        self, slot: Slot, x: Tensor, axis: int | None, tensors: Sequence[Tensor], cursor: Tensor
    ) -> None:
        """What `sketch` does, from a compiled graph, which may have copied the buffers."""
        buffers = slot.buffers
        assert buffers is not None
        if tensors[0].data_ptr() != buffers.counts.data_ptr():
            buffers = buffers.like(tensors)
        start = time.perf_counter()
        if self.sample < 1.0 and self.row >= 0:
            x = self._sampled(x, buffers, self.row_on(buffers.device))
        self.kernel(x, axis, buffers, -1, cursor)
        self.kernel_s += time.perf_counter() - start
        self.n_sketches += 1

    def _sampled(self, x: Tensor, buffers: Buffers, row: int) -> Tensor:
        """The images to sketch; their squared errors are added to the row."""
        if not x.ndim:
            return x
        n_images = x.shape[0]
        some = x[: max(1, round(self.sample * n_images))]
        buffers.error[row] += squared_errors(some, n_images, self.eps).to(buffers.device)
        return some

    # ---- reading --------------------------------------------------------------------------------

    def history(self, series: Series) -> LayerHistory:
        """Everything recorded of one series so far."""
        slot, unfinished = self.slots[series], None
        for doubled in self._on_cuda.values():
            doubled.drain()
        if slot.buffers is not None:
            doubled = self._on_cuda.get(slot.buffers.device)
            offset = 0 if doubled is None else doubled.offset
            unfinished = slot.buffers.take(self._first, self._last, offset)
        columns = self.store.columns(series, self._level, unfinished)
        if columns is None:
            columns = empty_columns(self.layout.size, 0)
        return LayerHistory(slot.info, columns, self.layout, self.eps, self.sample, self.counted)
