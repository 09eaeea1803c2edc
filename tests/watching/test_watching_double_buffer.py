"""No row is lost, doubled or moved, whenever the device gets round to its work."""

from collections import deque

import numpy as np
import pytest
import torch
from convlens.watching.backends.double_buffer import CopyStream, DoubleBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")


class Device:
    """Two streams whose work is done when `work` is called, in an order drawn at random."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.queues = {"training": deque(), "lane": deque()}
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


class FakeLane:
    def __init__(self, device):
        self.device = device
        self.adopted = []

    def _point(self, stream):
        point = Point(self.device)
        self.device.queue(stream, point.reach)
        return point

    def training(self):
        return self._point("training")

    def mark(self):
        return self._point("lane")

    def hold_training(self, mark):
        self.device.queue("training", mark)

    def follow(self, mark):
        self.device.queue("lane", mark)

    def copy(self, host, device):
        self.device.queue("lane", lambda: host.copy_(device))

    def clear(self, device):
        self.device.queue("lane", device.zero_)

    def host_like(self, device):
        return torch.full_like(device, 77)  # what page-locked memory held before

    def adopt(self, device):
        self.adopted.append(device)


class Run:
    """Training that adds to the rows of its layers, and what came to the host of it."""

    def __init__(self, block, device, lane):
        self.device = device
        self.ring = DoubleBuffer(block, CPU, self.receive, lane)
        self.tensors = []
        self.steps, self.row = [], -1
        self.sent, self.received, self.order = {}, {}, []
        self.value = 0

    def add_layer(self):
        wide = torch.zeros(self.ring.rows, 2, dtype=torch.int64)
        narrow = torch.zeros(self.ring.rows, dtype=torch.int64)
        self.tensors.append((wide, narrow))
        self.ring.add((wide, narrow))

    def begin(self, step):
        if not self.steps or self.steps[-1] != step:
            if len(self.steps) == self.ring.block:
                self.ship()
            self.steps.append(step)
        self.row = self.ring.offset + len(self.steps) - 1
        self.ring.move(len(self.steps) - 1)

    def ship(self):
        if self.steps:
            self.ring.ship(self.steps)
        self.steps = []

    def receive(self, steps, series):
        self.order.extend(steps)
        for layer, (wide, narrow) in enumerate(series):
            assert len(wide) == len(narrow) == self.ring.block
            assert not narrow[len(steps) :].any()
            for step, pair, one in zip(steps, wide.tolist(), narrow.tolist(), strict=False):
                assert pair == [one, 2 * one]
                key = layer, step
                self.received[key] = self.received.get(key, 0) + one

    def call(self, layer, step):
        self.value += 1
        self.sent[layer, step] = self.sent.get((layer, step), 0) + self.value
        row, value, (wide, narrow) = self.row, self.value, self.tensors[layer]
        assert int(self.ring.cursor) == row

        def kernel():
            wide[row] += torch.tensor([value, 2 * value])
            narrow[row] += value

        self.device.queue("training", kernel)

    def drain(self):
        self.ship()
        self.ring.drain()

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
            run.ring.move(-1)
            assert int(run.ring.cursor) == -1
        if step in drains:
            run.drain()
            run.device.waits = 0  # that may wait
    assert run.device.waits == 0, "the host waited while training"
    run.check()


@settings(max_examples=200, deadline=None)
@given(
    steps=st.integers(0, 40),
    block=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    pace=st.integers(0, 12),
    drains=st.sets(st.integers(0, 40), max_size=3),
)
def test_nothing_is_lost_or_doubled(steps, block, seed, pace, drains):
    device = Device(seed)
    run = Run(block, device, FakeLane(device))
    train(run, steps, seed, pace, drains)


@pytest.mark.parametrize("wait", ["hold_training", "follow"])
def test_each_wait_on_the_device_is_needed(wait):
    """The same without one of them loses rows: the test above would see it."""
    failures = 0
    for seed in range(30):
        device = Device(seed)
        lane = FakeLane(device)
        setattr(lane, wait, lambda mark: None)
        try:
            train(Run(3, device, lane), 30, seed, 3)
        except AssertionError:
            failures += 1
    assert failures > 10


def test_a_device_that_has_not_begun_holds_training_but_not_the_host():
    device = Device(0)
    run = Run(2, device, FakeLane(device))
    train(run, 9, 0, pace=0)
    assert run.order == list(range(9))


def test_rows_arrive_while_training_goes_on():
    device = Device(0)
    run = Run(2, device, FakeLane(device))
    run.add_layer()
    for step in range(7):
        run.begin(step)
        run.call(0, step)
        while device.work():
            pass
    assert run.order == [0, 1, 2, 3]
    run.ring.collect()
    assert run.order == [0, 1, 2, 3, 4, 5]
    assert device.waits == 0
    run.check()


def test_page_locked_memory_is_used_again():
    device = Device(0)
    lane = FakeLane(device)
    made = []
    fresh = lane.host_like
    lane.host_like = lambda tensor: made.append(1) or fresh(tensor)
    run = Run(2, device, lane)
    run.add_layer()
    for step in range(40):
        run.begin(step)
        run.call(0, step)
        while device.work():
            pass
    run.check()
    assert len(made) <= 4  # two tensors, two halves
    assert len(lane.adopted) == 2


def test_what_is_shown_stays():
    device, got = Device(0), []
    ring = DoubleBuffer(
        2, CPU, lambda label, series: got.append((label, series[0][0].tolist())), FakeLane(device)
    )
    tensor = torch.zeros(ring.rows, dtype=torch.int64)
    ring.add((tensor,))
    device.queue("training", lambda: tensor[:2].copy_(torch.tensor([5, 6])))
    ring.show("so far")
    ring.ship("all")
    ring.drain()
    while device.work():
        pass
    assert got == [("so far", [5, 6]), ("all", [5, 6])]
    assert ring.offset == 2
    assert not tensor.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    device = torch.device("cuda")
    got = []

    def receive(steps, series):
        got.extend(zip(steps, series[0][0].tolist(), strict=True))

    ring = DoubleBuffer(7, device, receive, CopyStream(device))
    tensor = torch.zeros(ring.rows, dtype=torch.int64, device=device)
    ring.add((tensor,))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1001):
            ring.move(step % 7)
            ones = torch.full((1,), step + 1, dtype=torch.int64, device=device)
            tensor.index_add_(0, ring.cursor, ones)
            if step % 7 == 6:
                ring.ship(list(range(step - 6, step + 1)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ring.drain()
    assert got == [(step, step + 1) for step in range(1001)]
