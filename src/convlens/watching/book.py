"""`Sketchbook`: which column a step belongs to, and one row of buffers for it in every series."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convlens.records import LayerHistory, LayerInfo, RecordSink
from convlens.sketch import (
    CHUNK_BITS,
    BucketLayout,
    Columns,
    coarsen,
    empty_columns,
    level_at,
)
from convlens.watching.buffers import Buffers
from convlens.watching.kernels import Sketcher
from convlens.watching.ledger import Ledger, Series, chunk_of
from convlens.watching.normalization import Statistics
from convlens.watching.probes import channel_axis
from convlens.watching.sampling import squared_errors

CHUNK = 1 << CHUNK_BITS
SHOW_S = 1.0  # seconds after which what a reader sees of an unfinished chunk is renewed


@dataclass
class Slot:
    """A series and the memory that its current chunk grows in.

    Attributes:
        info: what is known of it.
        buffers: None until its device and channels are known.
        channel_rule: where its channels are, see `probes.channel_rule`.
        batch_norm: whether it keeps the statistics of a batch normalization.
        old: those from before the batch that is under way.
    """

    info: LayerInfo
    buffers: Buffers | None = None
    channel_rule: int | None = None
    batch_norm: bool = False
    old: Statistics | None = None

    @property
    def series(self) -> Series:
        """Its key in the `Ledger`."""
        return self.info.quantity, self.info.index


class Sketchbook:
    """Sketches of several series of one training, all in the same columns of time.

    Args:
        eps: bound of near zero.
        sample: the fraction of each batch's images that is looked at.
        sink: where columns are written to besides memory.
        flush_sink: whether nobody else flushes the sink.

    Attributes:
        row: the row of the current step in every buffer, -1 while nothing is to be counted.
        kernel: adds a tensor to a row of buffers.
        kernel_s: seconds spent in kernels so far.
        handover_s: seconds spent on handing columns to the ledger.
        n_sketches: how many tensors were sketched.
        n_flushes: how often the buffers were emptied.
    """

    def __init__(
        self,
        eps: float,
        sample: float = 1.0,
        sink: RecordSink | None = None,
        *,
        flush_sink: bool = False,
    ) -> None:
        self.layout, self.eps, self.sample = BucketLayout(), eps, sample
        self.ledger = Ledger(self.layout, eps, sample, sink, flush_sink=flush_sink)
        self.slots: dict[Series, Slot] = {}
        self.row = -1
        self.kernel_s, self.handover_s = 0.0, 0.0
        self.n_sketches = self.n_flushes = 0
        self.kernel: Callable[[Tensor, int | None, Buffers, int], None]
        self.kernel = Sketcher(self.layout, eps)
        self._step, self._level, self._chunk = -1, 0, -1
        self._first = np.full(CHUNK, -1, np.int64)
        self._last = np.full(CHUNK, -1, np.int64)
        self._shown = time.perf_counter()
        self._declared = False

    # ---- series ---------------------------------------------------------------------------------

    def open(self, infos: Iterable[LayerInfo]) -> list[Slot]:
        """Make series, each with a key of its own."""
        made = [Slot(info) for info in infos]
        self.slots |= {slot.series: slot for slot in made}
        self._declared = False
        return made

    def describe(self, slot: Slot, info: LayerInfo) -> None:
        """Say more of a series, such as that a ReLU follows."""
        if info != slot.info:
            slot.info, self._declared = info, False

    def allot(self, slot: Slot, channels: int, device: torch.device) -> Buffers:
        """The slot's buffers on this device, made if it has others or none."""
        if slot.buffers is None or slot.buffers.device != device:
            if slot.buffers is not None:  # the model has moved
                self.flush()
            slot.buffers = Buffers(
                CHUNK,
                self.layout,
                channels,
                device,
                batch_norm=slot.batch_norm,
                sampled=self.sample < 1.0,
            )
        return slot.buffers

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
        if self.ledger.sink is not None:
            self._show_now_and_then()

    def pause(self) -> None:
        """Nothing is to be counted until the next `begin`."""
        self.row = -1

    def flush(self) -> None:
        """Hand over what the buffers hold, and empty them; the current step goes on."""
        if not (self._first >= 0).any():
            return
        start = time.perf_counter()
        self._declare()
        self.ledger.add(self._level, self._chunk, self._take_all())
        for slot in self.slots.values():
            if slot.buffers is not None:
                slot.buffers.clear()
        self._first.fill(-1)
        self._last.fill(-1)
        if self.row >= 0:
            self._first[self.row] = self._last[self.row] = self._step
        self.n_flushes += 1
        self.handover_s += time.perf_counter() - start

    def close(self) -> None:
        """Hand over everything and wait until it is written."""
        self.flush()
        self.ledger.close()

    def _show_now_and_then(self) -> None:
        now = time.perf_counter()
        if now - self._shown < SHOW_S or self.ledger.busy:
            return
        self._shown = now
        self._declare()
        self.ledger.show(self._level, self._chunk, self._take_all())
        self.handover_s += time.perf_counter() - now

    def _declare(self) -> None:
        if not self._declared:
            self.ledger.declare([slot.info for slot in self.slots.values()])
            self._declared = True

    def _take_all(self) -> dict[Series, Columns]:
        taken = {series: self._take(slot) for series, slot in self.slots.items()}
        return {series: columns for series, columns in taken.items() if len(columns)}

    def _take(self, slot: Slot) -> Columns:
        if slot.buffers is None:
            return empty_columns(self.layout.size, 0)
        return slot.buffers.take(self._first, self._last)

    # ---- sketching ------------------------------------------------------------------------------

    def sketch(self, slot: Slot, x: Tensor) -> None:
        """Add a layer's output to the current column of its series, and what goes with it."""
        axis = channel_axis(slot.channel_rule, x.ndim)
        buffers = slot.buffers
        if buffers is None or buffers.device != x.device:
            buffers = self.allot(slot, 0 if axis is None else x.shape[axis], x.device)
        self._add(slot, x, axis, buffers, self.row)

    def sketch_whole(self, slot: Slot, x: Tensor) -> None:
        """Add all values of a tensor that has no images and no channels."""
        buffers = slot.buffers
        if buffers is None or buffers.device != x.device:
            buffers = self.allot(slot, 0, x.device)
        start = time.perf_counter()
        self.kernel(x, None, buffers, self.row)
        self.kernel_s += time.perf_counter() - start
        self.n_sketches += 1

    def sketch_into(
        self, slot: Slot, x: Tensor, axis: int | None, tensors: Sequence[Tensor], cursor: Tensor
    ) -> None:
        """What `sketch` does, from a compiled graph, which may have made copies of the buffers."""
        buffers = slot.buffers
        assert buffers is not None
        if tensors[0].data_ptr() != buffers.counts.data_ptr():
            buffers = buffers.like(tensors)
        row = int(cursor)
        if row >= 0:
            self._add(slot, x, axis, buffers, row)

    def _add(self, slot: Slot, x: Tensor, axis: int | None, buffers: Buffers, row: int) -> None:
        start = time.perf_counter()
        if self.sample < 1.0 and x.ndim:
            n_images = x.shape[0]
            x = x[: max(1, round(self.sample * n_images))]
            buffers.error[row] += squared_errors(x, n_images, self.eps)
        self.kernel(x, axis, buffers, row)
        self.kernel_s += time.perf_counter() - start
        self.n_sketches += 1

    # ---- reading --------------------------------------------------------------------------------

    def history(self, series: Series) -> LayerHistory:
        """Everything recorded of one series so far."""
        slot = self.slots[series]
        unfinished = self._take(slot) if slot.buffers is not None else None
        columns = self.ledger.columns(series, self._level, unfinished)
        if columns is None:
            columns = empty_columns(self.layout.size, 0)
        return LayerHistory(slot.info, coarsen(columns, 0), self.layout, self.eps, self.sample)
