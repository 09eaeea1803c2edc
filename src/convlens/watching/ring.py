"""Rows of sketches on a device, copied to the host while training goes on.

On a GPU every tensor of sketches has two halves. Training fills one while the other is copied into
page-locked host memory on a stream of its own and cleared there. Nobody waits on the host: a half
is handed over when its copy is found to be complete, and if the other half is not yet cleared when
it is needed, the training stream waits for it on the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

Rows = tuple[Tensor, ...]
"""The tensors of one series, or some of their rows."""

Label = TypeVar("Label")
"""Whatever says what a shipment holds."""


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


@dataclass(frozen=True)
class _Shipment(Generic[Label]):
    """Rows on their way to the host."""

    label: Label
    arrived: Mark
    hosts: list[Rows]


class Ring(Generic[Label]):
    """Which rows of its tensors are being filled, and how full ones come to the host.

    A series is some tensors whose first dimension is `rows`, in two halves of ``block`` each. The
    current row is known on the device too, so that a captured graph finds it.

    Args:
        block: rows in a half.
        device: where the tensors are.
        consumer: gets the label of each shipment and, for every series in order of `add`, its rows
            on the host, in the order of shipping. The memory is used again: it copies what it
            keeps.
        lane: the second stream.

    Attributes:
        offset: the first row of the half that is being filled.
        cursor: (1,) int64 on the device: the current row, -1 for none.
    """

    def __init__(
        self,
        block: int,
        device: torch.device,
        consumer: Callable[[Label, Sequence[Rows]], None],
        lane: Lane,
    ) -> None:
        self.block, self.rows, self.offset = block, 2 * block, 0
        self.cursor = torch.full((1,), -1, dtype=torch.int64, device=device)
        self._consumer, self._lane = consumer, lane
        self._series: list[Rows] = []
        self._cleared: dict[int, Mark] = {}  # by offset: what the next user of a half waits for
        self._under_way: deque[_Shipment[Label]] = deque()
        self._free: list[list[Rows]] = []

    def add(self, tensors: Rows) -> None:
        """Take in a series; its tensors are all zeros and have `rows` rows."""
        self._series.append(tensors)
        for tensor in tensors:
            self._lane.adopt(tensor)

    def move(self, row: int) -> None:
        """Say which row of the half is filled from now on, -1 for none."""
        self.collect()
        # A number among the kernel's arguments: nothing is copied.
        self.cursor.fill_(row if row < 0 else self.offset + row)

    def show(self, label: Label, *, hold: bool = False) -> None:
        """Send a copy of the half that is being filled.

        Args:
            label: what it is.
            hold: let the device's training wait until it is copied, as the current row may be added
                to next. The host does not wait.
        """
        self._send(label)
        if hold:
            self._lane.hold_training(self._under_way[-1].arrived)

    def ship(self, label: Label) -> None:
        """Send the half on its way, and go on with the other, which is empty."""
        self._send(label)
        for tensors in self._open_half():
            for tensor in tensors:
                self._lane.clear(tensor)
        self._cleared[self.offset] = self._lane.mark()
        self.offset = self.block - self.offset
        if self.offset in self._cleared:
            self._lane.hold_training(self._cleared.pop(self.offset))

    def collect(self) -> None:
        """Hand over what has arrived, without waiting for anything."""
        while self._under_way and self._under_way[0].arrived.query():
            self._hand_over()

    def drain(self) -> None:
        """Hand over everything that was sent; this waits for the device."""
        while self._under_way:
            self._under_way[0].arrived.synchronize()
            self._hand_over()

    def _open_half(self) -> list[Rows]:
        end = self.offset + self.block
        return [tuple(tensor[self.offset : end] for tensor in rows) for rows in self._series]

    def _send(self, label: Label) -> None:
        hosts = self._free.pop() if self._free else []
        for tensors in self._series[len(hosts) :]:  # all, or those that came since
            hosts.append(tuple(self._lane.host_like(tensor[: self.block]) for tensor in tensors))
        self._lane.follow(self._lane.training())
        for to, rows in zip(hosts, self._open_half(), strict=True):
            for host, tensor in zip(to, rows, strict=True):
                self._lane.copy(host, tensor)
        self._under_way.append(_Shipment(label, self._lane.mark(), hosts))

    def _hand_over(self) -> None:
        shipment = self._under_way.popleft()
        self._consumer(shipment.label, shipment.hosts)
        self._free.append(shipment.hosts)
