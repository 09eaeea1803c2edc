"""Rows of sketches on a device, copied to the host while training goes on.

On a GPU every tensor of sketches has two halves. Training fills one while the other is copied into
page-locked host memory on a stream of its own and cleared there. Nobody waits on the host: a half
is handed over when its copy is found to be complete, and if the other half is not yet cleared when
it is needed, the training stream waits for it on the device.

On the CPU there is nothing to copy: one half, whose rows are handed over as they lie there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Rows = tuple[Tensor, ...]
"""The rows in use of each tensor of one series, on the host."""

Consumer = Callable[[Sequence[int], Sequence[Rows]], None]
"""Gets the steps of a block's rows and, for every series in order of `Ring.add`, those rows.

The tensors are written again later: it has to copy what it keeps.
"""


class Mark(Protocol):
    """A point in the work of a stream; `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether the device has come past it."""
        ...

    def synchronize(self) -> None:
        """Wait on the host until it has."""
        ...


class Lane(Protocol):
    """A device's second stream, beside the one that trains; `CudaLane` is one."""

    def training(self) -> Mark:
        """Everything that training has queued so far."""
        ...

    def hold_training(self, mark: Mark) -> None:
        """What training queues from here on waits, on the device, for ``mark``."""
        ...

    def follow(self, mark: Mark) -> None:
        """What the lane queues from here on waits, on the device, for ``mark``."""
        ...

    def copy(self, host: Tensor, device: Tensor) -> None:
        """Queue a copy from the device to page-locked memory."""
        ...

    def clear(self, device: Tensor) -> None:
        """Queue zeros."""
        ...

    def mark(self) -> Mark:
        """Everything that the lane has queued so far."""
        ...

    def host_like(self, device: Tensor) -> Tensor:
        """Page-locked memory for a copy of ``device``."""
        ...

    def adopt(self, device: Tensor) -> None:
        """Say that the lane works on this memory, so that it is not given away before it has."""
        ...


class CudaLane:
    """A stream of its own on a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def training(self) -> Mark:
        """Everything queued on the current stream of the device."""
        return torch.cuda.current_stream(self._device).record_event()

    def hold_training(self, mark: Mark) -> None:
        """The current stream waits for ``mark``."""
        assert isinstance(mark, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(mark)

    def follow(self, mark: Mark) -> None:
        """The lane waits for ``mark``."""
        assert isinstance(mark, torch.cuda.Event)
        self._stream.wait_event(mark)

    def copy(self, host: Tensor, device: Tensor) -> None:
        """Queue a copy that does not wait."""
        with torch.cuda.stream(self._stream):
            host.copy_(device, non_blocking=True)

    def clear(self, device: Tensor) -> None:
        """Queue zeros."""
        with torch.cuda.stream(self._stream):
            device.zero_()

    def mark(self) -> Mark:
        """Everything queued on the lane."""
        return self._stream.record_event()

    def host_like(self, device: Tensor) -> Tensor:
        """Page-locked memory, without which a copy would wait."""
        return torch.empty(device.shape, dtype=device.dtype, pin_memory=True)

    def adopt(self, device: Tensor) -> None:
        """The allocator waits for the lane before it gives this memory to somebody else."""
        device.record_stream(self._stream)


def lane_for(device: torch.device) -> Lane | None:
    """The lane that a device needs: None where copies wait anyway, or nothing needs copying."""
    return CudaLane(device) if device.type == "cuda" else None


@dataclass(frozen=True)
class _Shipment:
    """A half on its way to the host."""

    steps: list[int]
    arrived: Mark
    series: list[Rows]
    hosts: list[Rows]  # the whole of the memory that ``series`` is a part of


class Ring:
    """Which row of its tensors the current step has, and how full rows come to the host.

    A series is some tensors whose first dimension is `rows`; each has its row for every step. The
    row is known on the device too, so that a captured graph finds it.

    Args:
        block: steps that are handed over together.
        device: where the tensors are.
        consumer: gets the blocks, in order, each step once.
        lane: the second stream; without one, blocks are handed over at once.
    """

    def __init__(
        self, block: int, device: torch.device, consumer: Consumer, lane: Lane | None = None
    ) -> None:
        self.block = block
        self.cursor = torch.full((1,), -1, dtype=torch.int64, device=device)
        self.row = -1
        self.steps: list[int] = []  # of the rows in use in the open half
        self._consumer = consumer
        self._lane = lane
        self._half = 0
        self._series: list[Rows] = []
        self._cleared: list[Mark | None] = [None, None]  # what the next user of a half waits for
        self._under_way: deque[_Shipment] = deque()
        self._free: list[list[Rows]] = []

    @property
    def rows(self) -> int:
        """How many rows the tensors of a series have."""
        return self.block if self._lane is None else 2 * self.block

    def add(self, tensors: Rows) -> None:
        """Take in a series; its tensors are all zeros and have `rows` rows."""
        self._series.append(tensors)
        if self._lane is not None:
            for tensor in tensors:
                self._lane.adopt(tensor)

    def begin(self, step: int) -> int:
        """Say that a step begins: its row, the same again if it is the last one's number."""
        self.collect()
        if not (self.steps and self.steps[-1] == step):
            if len(self.steps) == self.block:
                self.ship()
            if not self.steps:
                self._wait_until_cleared()
            self.steps.append(step)
        self._move(self._half * self.block + len(self.steps) - 1)
        return self.row

    def skip(self) -> None:
        """Say that a step begins which is not watched."""
        self._move(-1)

    def ship(self) -> None:
        """Send the open half on its way, full or not, and go on with the other."""
        if not self.steps:
            return
        steps, self.steps = self.steps, []
        self._move(-1)
        start = self._half * self.block
        used = [tuple(t[start : start + len(steps)] for t in s) for s in self._series]
        if self._lane is None:
            self._consumer(steps, [tuple(t.cpu() for t in rows) for rows in used])
            for rows in used:
                for tensor in rows:
                    tensor.zero_()
            return
        self._under_way.append(self._send(self._lane, steps, used))
        self._half = 1 - self._half

    def collect(self) -> None:
        """Hand over the blocks that have arrived, without waiting for any."""
        while self._under_way and self._under_way[0].arrived.query():
            self._hand_over()

    def drain(self) -> None:
        """Hand over everything, the open half too; this waits for the device."""
        self.ship()
        while self._under_way:
            self._under_way[0].arrived.synchronize()
            self._hand_over()

    def _move(self, row: int) -> None:
        if row != self.row:
            self.row = row
            self.cursor.fill_(row)  # a number in the kernel's arguments: nothing is copied

    def _wait_until_cleared(self) -> None:
        mark, self._cleared[self._half] = self._cleared[self._half], None
        if mark is not None and self._lane is not None:
            self._lane.hold_training(mark)

    def _send(self, lane: Lane, steps: list[int], used: list[Rows]) -> _Shipment:
        """Queue the copies of these rows, and zeros behind them."""
        hosts = self._free.pop() if self._free else []
        for tensors in self._series[len(hosts) :]:  # all, or those that came since
            hosts.append(tuple(lane.host_like(tensor[: self.block]) for tensor in tensors))
        series = [tuple(host[: len(steps)] for host in rows) for rows in hosts]
        lane.follow(lane.training())
        for to, rows in zip(series, used, strict=True):
            for host, tensor in zip(to, rows, strict=True):
                lane.copy(host, tensor)
        arrived = lane.mark()
        for rows in used:
            for tensor in rows:
                lane.clear(tensor)
        self._cleared[self._half] = lane.mark()
        return _Shipment(steps, arrived, series, hosts)

    def _hand_over(self) -> None:
        shipment = self._under_way.popleft()
        self._consumer(shipment.steps, shipment.series)
        self._free.append(shipment.hosts)
