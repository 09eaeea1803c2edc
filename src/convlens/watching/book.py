"""`Sketchbook`: which column a step belongs to, and one row of buffers for it in every series."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

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

CHUNK = 1 << CHUNK_BITS
SHOW_S = 1.0  # seconds after which what a reader sees of an unfinished chunk is renewed


@dataclass
class Slot:
    """A series and the memory that its current chunk grows in.

    Attributes:
        info: what is known of it.
        buffers: None until its device and channels are known.
        batch_norm: whether it keeps the statistics of a batch normalization.
        axes: the axis of the channels by number of dimensions, once looked up.
    """

    info: LayerInfo
    buffers: Buffers | None = None
    batch_norm: bool = False
    axes: dict[int, int | None] = field(default_factory=dict[int, "int | None"])

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
        kernel_s: seconds spent in the kernels so far.
        n_sketches: how many there were.
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
        self.kernel_s, self.flush_s, self.n_sketches = 0.0, 0.0, 0
        self._kernel = Sketcher(self.layout, eps)
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
            if slot.buffers is not None and self.row >= 0:  # the model has moved
                self.flush()
                self.begin(self._step)
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
        self._step = step
        level = max(self._level, level_at(step))
        chunk = chunk_of(step, level)
        if level != self._level or chunk != self._chunk:
            self.flush()
            self._level, self._chunk = level, chunk
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
        """Hand over what the buffers hold, and empty them."""
        self.row = -1
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
        self.flush_s += time.perf_counter() - start

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
        row, self.row = self.row, -1
        self.ledger.show(self._level, self._chunk, self._take_all())
        self.row = row
        self.flush_s += time.perf_counter() - now

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

    def sketch(self, slot: Slot, x: Tensor, axis: int | None) -> None:
        """Add a tensor to the current column of a series."""
        buffers = slot.buffers
        if buffers is None or buffers.device != x.device:
            buffers = self.allot(slot, 0 if axis is None else x.shape[axis], x.device)
        start = time.perf_counter()
        if self.sample < 1.0 and x.ndim:
            x = x[: max(1, round(self.sample * x.shape[0]))]
        self._kernel(x, axis, buffers, self.row)
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
