"""`Aggregator` where a ring brings its rows to the host, as on a GPU, on CPU tensors here."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from convlens.watching.aggregator import CHUNK, Aggregator
from convlens.watching.backends.double_buffer import DoubleBuffer
from test_watching_ring import Device, FakeLane

from convlens.core.columns import CHUNK_BITS, Columns, decode
from convlens.core.histories import LayerInfo
from convlens.watching.ledger import join

CPU = torch.device("cpu")


class Sink:
    """What was written, in place of what lay in its span."""

    def __init__(self):
        self.chunks = {}

    def write_layers(self, *arguments):
        pass

    def write_columns(self, quantity, layer, level, chunk, payload):
        start = chunk << (level + CHUNK_BITS)
        end = start + (1 << (level + CHUNK_BITS))
        chunks = self.chunks.setdefault(layer, {})
        for key in [k for k in chunks if start <= k[0] < end and k[1] <= level]:
            del chunks[key]
        chunks[start, level] = payload

    def flush(self):
        pass

    def columns(self, layer, level):
        return join([decode(payload) for payload in self.chunks[layer].values()], level)


class Ringed(Aggregator):
    """Kernels run at once; what a GPU's second stream does, whenever the fake device gets to it."""

    def __init__(self, device, sink):
        super().__init__(0.05, sink=sink)
        self.device = device

    def _ring(self, device):
        if device not in self._rings:
            ring = DoubleBuffer(
                CHUNK,
                device,
                lambda label, rows: self._arrived(device, label, rows),
                FakeLane(self.device),
            )
            self._rings[device], self._on_ring[device] = ring, []
            ring.move(self.row)
        return self._rings[device]


def run(book, steps, work):
    slots = book.open(LayerInfo(i, str(i), "Linear") for i in range(3))
    for slot in slots:
        slot.channel_rule = 1
    generator = torch.Generator().manual_seed(0)
    for step in steps:
        book.begin(step)
        for slot in slots[: 3 if step > 100 else 2]:  # one comes later
            book.sketch(slot, torch.randn(4, 5, generator=generator) * 0.1)
        if step % 3 == 0:
            book.step_done()
        if step % 7 == 0:
            book.pause()
        work()
    return slots


def same(a, b):
    for f in fields(Columns):
        np.testing.assert_array_equal(getattr(a, f.name), getattr(b, f.name), f.name)


@pytest.mark.parametrize("seed", range(3))
def test_a_ring_changes_nothing(monkeypatch, seed):
    # Show what is growing all the time.
    monkeypatch.setattr("convlens.core.beat.Beats.due", lambda self: True)
    steps = [*range(130), *range(4000, 4400), 9000, 9001]
    plain_sink, ring_sink = Sink(), Sink()
    plain = Aggregator(0.05, sink=plain_sink)
    run(plain, steps, lambda: None)
    device = Device(seed)

    def settle():
        # Everything queued is done, in an order drawn at random, before training goes on: the
        # kernels of this test are not in the queue, so they may not overtake a half's clearing.
        while device.work():
            pass

    ringed = Ringed(device, ring_sink)
    slots = run(ringed, steps, settle)
    for slot in slots:
        same(ringed.history(slot.series).columns, plain.history(slot.series).columns)
    plain.close()
    settle()
    ringed.close()
    for slot in slots:
        history = plain.history(slot.series).columns
        same(ringed.history(slot.series).columns, history)
        same(plain_sink.columns(slot.info.index, 2), history)
        same(ring_sink.columns(slot.info.index, 2), history)
