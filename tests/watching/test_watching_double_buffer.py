"""No row is lost, doubled or moved, whenever the device gets round to its work."""

from collections import deque
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convlens.core.background import Background
from convlens.core.columns import CHUNK_BITS, Columns, decode, join
from convlens.core.histories import LayerInfo
from convlens.watching.aggregator import Aggregator
from convlens.watching.backends.double_buffer import CopyStream, DoubleBuffer

CPU = torch.device("cpu")


class Device:
    """Two streams whose work is done when `work` is called, in an order drawn at random."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.queues = {"training": deque(), "copies": deque()}
        self.waits = 0  # how often the host waited

    def queue(self, stream, action):
        self.queues[stream].append(action)

    def work(self):
        """Do one thing, if one can be done."""
        ready = [q for q in self.queues.values() if q and (not isinstance(q[0], Point) or q[0].ok)]
        if not ready:
            return False
        queue = ready[self.rng.integers(len(ready))]
        action = queue.popleft()
        if not isinstance(action, Point):
            action()
        return True


class Point:
    """An event: a stream that has it in its queue waits for it."""

    def __init__(self, device):
        self.device, self.ok = device, False

    def reach(self):
        self.ok = True

    def query(self):
        return self.ok

    def synchronize(self):
        self.device.waits += 1
        while not self.ok:
            assert self.device.work(), "the device waits for itself"


class FakeStream:
    def __init__(self, device):
        self.device = device
        self.used = []

    def _point(self, stream):
        point = Point(self.device)
        self.device.queue(stream, point.reach)
        return point

    def training(self):
        return self._point("training")

    def record(self):
        return self._point("copies")

    def hold_training(self, mark):
        self.device.queue("training", mark)

    def wait(self, mark):
        self.device.queue("copies", mark)

    def copy(self, host, device):
        self.device.queue("copies", lambda: host.copy_(device))

    def clear(self, device):
        self.device.queue("copies", device.zero_)

    def host_like(self, device):
        return torch.full_like(device, 77)  # what page-locked memory held before

    def use(self, device):
        self.used.append(device)


class Run:
    """Training that adds to the rows of its layers, and what came to the host of it."""

    def __init__(self, block, device, stream):
        self.device = device
        self.buffer = DoubleBuffer(block, CPU, self.receive, stream)
        self.tensors = []
        self.steps, self.row = [], -1
        self.sent, self.received, self.order = {}, {}, []
        self.value = 0

    def add_layer(self):
        wide = torch.zeros(self.buffer.rows, 2, dtype=torch.int64)
        narrow = torch.zeros(self.buffer.rows, dtype=torch.int64)
        self.tensors.append((wide, narrow))
        self.buffer.add((wide, narrow))

    def begin(self, step):
        if not self.steps or self.steps[-1] != step:
            if len(self.steps) == self.buffer.block:
                self.swap()
            self.steps.append(step)
        self.row = self.buffer.offset + len(self.steps) - 1
        self.buffer.move(len(self.steps) - 1)

    def swap(self):
        if self.steps:
            self.buffer.swap(self.steps)
        self.steps = []

    def receive(self, steps, series):
        self.order.extend(steps)
        for layer, (wide, narrow) in enumerate(series):
            assert len(wide) == len(narrow) == self.buffer.block
            assert not narrow[len(steps) :].any()
            for step, pair, one in zip(steps, wide.tolist(), narrow.tolist(), strict=False):
                assert pair == [one, 2 * one]
                key = layer, step
                self.received[key] = self.received.get(key, 0) + one

    def call(self, layer, step):
        self.value += 1
        self.sent[layer, step] = self.sent.get((layer, step), 0) + self.value
        row, value, (wide, narrow) = self.row, self.value, self.tensors[layer]
        assert int(self.buffer.cursor) == row

        def kernel():
            wide[row] += torch.tensor([value, 2 * value])
            narrow[row] += value

        self.device.queue("training", kernel)

    def drain(self):
        self.swap()
        self.buffer.drain()

    def check(self):
        self.drain()
        assert {key: n for key, n in self.received.items() if n} == self.sent
        assert sorted(self.order) == self.order
        while self.device.work():
            pass
        for tensors in self.tensors:
            assert not any(tensor.any() for tensor in tensors)


def train(run, steps, seed, pace, drains=()):
    """Some layers at each step, now and then another layer, now and then a step again."""
    rng = np.random.default_rng(seed)
    run.add_layer()
    for step in range(steps):
        for _ in range(1 + (rng.random() < 0.2)):
            run.begin(step)
            if rng.random() < 0.1:
                run.add_layer()
            for layer in range(len(run.tensors)):
                if rng.random() < 0.9:
                    run.call(layer, step)
            for _ in range(rng.integers(pace + 1)):
                run.device.work()
        if rng.random() < 0.1:
            run.buffer.move(-1)
            assert int(run.buffer.cursor) == -1
        if step in drains:
            run.drain()
            run.device.waits = 0  # that may wait
    assert run.device.waits == 0, "the host waited while training"
    run.check()


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(0, 40),
    block=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    pace=st.integers(0, 12),
    drains=st.sets(st.integers(0, 40), max_size=3),
)
def test_nothing_is_lost_or_doubled(steps, block, seed, pace, drains):
    device = Device(seed)
    run = Run(block, device, FakeStream(device))
    train(run, steps, seed, pace, drains)


@pytest.mark.parametrize("wait", ["hold_training", "wait"])
def test_each_wait_on_the_device_is_needed(wait):
    """The same without one of them loses rows: the test above would see it."""
    failures = 0
    for seed in range(30):
        device = Device(seed)
        stream = FakeStream(device)
        setattr(stream, wait, lambda mark: None)
        try:
            train(Run(3, device, stream), 30, seed, 3)
        except AssertionError:
            failures += 1
    assert failures > 10


def test_a_device_that_has_not_begun_holds_training_but_not_the_host():
    device = Device(0)
    run = Run(2, device, FakeStream(device))
    train(run, 9, 0, pace=0)
    assert run.order == list(range(9))


def test_rows_arrive_while_training_goes_on():
    device = Device(0)
    run = Run(2, device, FakeStream(device))
    run.add_layer()
    for step in range(7):
        run.begin(step)
        run.call(0, step)
        while device.work():
            pass
    assert run.order == [0, 1, 2, 3]
    run.buffer.collect()
    assert run.order == [0, 1, 2, 3, 4, 5]
    assert device.waits == 0
    run.check()


def test_page_locked_memory_is_used_again():
    device = Device(0)
    stream = FakeStream(device)
    made = []
    fresh = stream.host_like
    stream.host_like = lambda tensor: made.append(1) or fresh(tensor)
    run = Run(2, device, stream)
    run.add_layer()
    for step in range(40):
        run.begin(step)
        run.call(0, step)
        while device.work():
            pass
    run.check()
    assert len(made) <= 4  # two tensors, two halves
    assert len(stream.used) == 2


def test_what_is_shown_stays():
    device, got = Device(0), []
    buffer = DoubleBuffer(
        2, CPU, lambda label, series: got.append((label, series[0][0].tolist())), FakeStream(device)
    )
    tensor = torch.zeros(buffer.rows, dtype=torch.int64)
    buffer.add((tensor,))
    device.queue("training", lambda: tensor[:2].copy_(torch.tensor([5, 6])))
    buffer.show("so far")
    buffer.swap("all")
    buffer.drain()
    while device.work():
        pass
    assert got == [("so far", [5, 6]), ("all", [5, 6])]
    assert buffer.offset == 2
    assert not tensor.any()


# ---- an aggregator whose rows a double buffer brings to the host, on CPU tensors here ------------


class Sink:
    """What was written, in place of what lay in its span."""

    def __init__(self):
        self.chunks, self.background = {}, Background("Testing")

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


def fill(aggregator, steps, work):
    slots = aggregator.open(LayerInfo(i, str(i), "Linear") for i in range(3))
    for slot in slots:
        slot.channel_rule = 1
    generator = torch.Generator().manual_seed(0)
    for step in steps:
        aggregator.begin(step)
        for slot in slots[: 3 if step > 100 else 2]:  # one comes later
            aggregator.sketch(slot, torch.randn(4, 5, generator=generator) * 0.1)
        if step % 3 == 0:
            aggregator.step_done()
        if step % 7 == 0:
            aggregator.pause()
        work()
    return slots


def same(a, b):
    for f in fields(Columns):
        np.testing.assert_array_equal(getattr(a, f.name), getattr(b, f.name), f.name)


@pytest.mark.parametrize("seed", range(2))
def test_a_double_buffer_changes_no_column(monkeypatch, seed):
    # Show columns that are not full at every step.
    monkeypatch.setattr("convlens.watching.aggregator.HANDOVER_S", 0.0)
    steps = [*range(130), *range(4000, 4400), 9000, 9001]
    plain_sink, device_sink = Sink(), Sink()
    plain = Aggregator(0.05, sink=plain_sink)
    fill(plain, steps, lambda: None)
    device = Device(seed)

    def settle():
        # Everything queued is done, in an order drawn at random, before training goes on: the
        # kernels of this test are not in the queue, so they may not overtake a half's clearing.
        while device.work():
            pass

    doubled = Aggregator(0.05, sink=device_sink)
    doubled._add_double_buffer(CPU, FakeStream(device))
    slots = fill(doubled, steps, settle)
    for slot in slots:
        same(doubled.history(slot.series).columns, plain.history(slot.series).columns)
    plain.close()
    settle()
    doubled.close()
    for slot in slots:
        history = plain.history(slot.series).columns
        same(doubled.history(slot.series).columns, history)
        same(plain_sink.columns(slot.info.index, 2), history)
        same(device_sink.columns(slot.info.index, 2), history)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    device = torch.device("cuda")
    got = []

    def receive(steps, series):
        got.extend(zip(steps, series[0][0].tolist(), strict=True))

    buffer = DoubleBuffer(7, device, receive, CopyStream(device))
    tensor = torch.zeros(buffer.rows, dtype=torch.int64, device=device)
    buffer.add((tensor,))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1001):
            buffer.move(step % 7)
            ones = torch.full((1,), step + 1, dtype=torch.int64, device=device)
            tensor.index_add_(0, buffer.cursor, ones)
            if step % 7 == 6:
                buffer.swap(list(range(step - 6, step + 1)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    buffer.drain()
    assert got == [(step, step + 1) for step in range(1001)]
