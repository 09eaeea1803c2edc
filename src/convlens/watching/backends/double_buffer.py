"""Rows of sketches on a CUDA device, copied to the host while training goes on.

Every tensor of sketches has two halves. Training fills one while the other is copied to pinned host
memory on a second stream and cleared there. The host never waits: a half is handed over when its
copy is found to be complete, and if a half is not yet cleared when it is needed, the training
stream waits for it on the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

Rows = tuple[Tensor, ...]
"""The tensors of one series, or some of their rows."""

Event = torch.cuda.Event | torch.Event

Label = TypeVar("Label")
"""What the consumer wants to know of a copy."""


class CopyStream:
    """A second stream on a CUDA device, beside the one that trains."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def training(self) -> Event:
        """An event after everything that training has queued so far."""
        return torch.cuda.current_stream(self._device).record_event()

    def hold_training(self, event: Event) -> None:
        """Let what training queues from here on wait, on the device, for ``event``."""
        torch.cuda.current_stream(self._device).wait_event(event)

    def wait(self, event: Event) -> None:
        """Let what this stream queues from here on wait, on the device, for ``event``."""
        self._stream.wait_event(event)

    def copy(self, host: Tensor, device: Tensor) -> None:
        """Queue a copy to pinned memory."""
        with torch.cuda.stream(self._stream):
            host.copy_(device, non_blocking=True)

    def clear(self, device: Tensor) -> None:
        """Queue zeros."""
        with torch.cuda.stream(self._stream):
            device.zero_()

    def record(self) -> Event:
        """An event after everything that this stream has queued so far."""
        return self._stream.record_event()

    def host_like(self, device: Tensor) -> Tensor:
        """Pinned memory, without which a copy would wait."""
        return torch.empty(device.shape, dtype=device.dtype, pin_memory=True)

    def use(self, device: Tensor) -> None:
        """Keep the allocator from reusing this memory before the stream is done with it."""
        device.record_stream(self._stream)


@dataclass(frozen=True)
class _Copy(Generic[Label]):
    """Rows on their way to the host."""

    label: Label
    arrived: Event
    hosts: list[Rows]


class DoubleBuffer(Generic[Label]):
    """Which rows of its tensors are being filled, and how full ones come to the host.

    A series is some tensors whose first dimension is `rows`, in two halves of ``block`` each. The
    current row is kept on the device too, so that a captured graph finds it.

    Args:
        block: rows in a half.
        device: where the tensors are.
        consumer: called with the label of each copy and, for every series in order of `add`, its
            rows on the host, in order of sending. It copies what it keeps.
        stream: the second stream.

    Attributes:
        offset: the first row of the half that is being filled.
        cursor: (1,) int64 on the device: the current row, -1 for none.
    """

    def __init__(
        self,
        block: int,
        device: torch.device,
        consumer: Callable[[Label, Sequence[Rows]], None],
        stream: CopyStream,
    ) -> None:
        self.block, self.rows, self.offset = block, 2 * block, 0
        self.cursor = torch.full((1,), -1, dtype=torch.int64, device=device)
        self._consumer, self._stream = consumer, stream
        self._series: list[Rows] = []
        self._cleared: dict[int, Event] = {}  # by the offset of a half
        self._under_way: deque[_Copy[Label]] = deque()
        self._free: list[list[Rows]] = []

    def add(self, tensors: Rows) -> None:
        """Take in a series; its tensors are all zeros and have `rows` rows."""
        self._series.append(tensors)
        for tensor in tensors:
            self._stream.use(tensor)

    def move(self, row: int) -> None:
        """Set the row of the half that is filled from now on, -1 for none."""
        self.collect()
        # fill_ passes the number as a kernel argument: nothing is copied.
        self.cursor.fill_(row if row < 0 else self.offset + row)

    def show(self, label: Label, *, hold: bool = False) -> None:
        """Send a copy of the half that is being filled.

        Args:
            label: for the consumer.
            hold: let training wait on the device until the copy is made, as the current row may be
                added to next.
        """
        self._send(label)
        if hold:
            self._stream.hold_training(self._under_way[-1].arrived)

    def swap(self, label: Label) -> None:
        """Send the half that is being filled and go on with the other, which is empty."""
        self._send(label)
        for tensors in self._open_half():
            for tensor in tensors:
                self._stream.clear(tensor)
        self._cleared[self.offset] = self._stream.record()
        self.offset = self.block - self.offset
        if self.offset in self._cleared:
            self._stream.hold_training(self._cleared.pop(self.offset))

    def collect(self) -> None:
        """Hand over what has arrived, without waiting."""
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
        for tensors in self._series[len(hosts) :]:  # all, or those added since
            hosts.append(tuple(self._stream.host_like(tensor[: self.block]) for tensor in tensors))
        self._stream.wait(self._stream.training())
        for to, rows in zip(hosts, self._open_half(), strict=True):
            for host, tensor in zip(to, rows, strict=True):
                self._stream.copy(host, tensor)
        self._under_way.append(_Copy(label, self._stream.record(), hosts))

    def _hand_over(self) -> None:
        copy = self._under_way.popleft()
        self._consumer(copy.label, copy.hosts)
        self._free.append(copy.hosts)
