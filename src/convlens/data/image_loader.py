"""`ImageLoader`: batches from decoded pixels, in memory or streamed from the cache."""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.core.wording import n_bytes
from convlens.data.free_memory import free_memory
from convlens.data.items import Items
from convlens.data.loaders import ItemLoader, seeded
from convlens.data.pixels import PixelScale, center_cut
from convlens.errors import ArgumentError, DataError
from convlens.execution.devices import pick_device

if TYPE_CHECKING:
    Augment = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]

T = TypeVar("T")

AHEAD = 3
"""Batches that are read before they are asked for."""

AUGMENT_KEY = 1
"""Begins the key of a batch's random numbers: (1, epoch, batch). An epoch's own key is one number,
that of a split is (0, 0)."""

PART_BYTES = 4_000_000
"""Bytes that are measured at a time."""

GROUP_BYTES = 2_000_000
"""Small batches are made together, up to so many bytes of float32, which the CPU's cache holds."""

COPY_BYTES = 64_000_000
"""Bytes that are copied to another device at a time."""


class ImageLoader(ItemLoader):
    """Batches of images that lie as uint8 on the device, or are streamed from a memory map.

    Iterating gives ``(x, y)``: x (N, C, H, W) float32, normalized, and the targets. Without
    ``augment`` x is the middle of the stored pixels. Images that take more than ``max_memory`` are
    streamed: a thread reads the next batches while the last one is used.

        >>> from convlens.data import PixelScale
        >>> from convlens.data.image_loader import ImageLoader
        >>> from convlens.data.items import Items
        >>> pixels = np.zeros((10, 3, 32, 32), np.uint8)
        >>> items = Items(tuple(f"{i}.jpg" for i in range(10)), torch.arange(10))
        >>> scale = PixelScale(torch.zeros(3), torch.ones(3), black=0.0, white=1.0)
        >>> ImageLoader(pixels, items, batch_size=4, scale=scale, size=(28, 28), device="cpu")
        ImageLoader(10 images of 3×28×28, batches of 4, cpu, in memory: 30.7 kB of uint8)

    Args:
        pixels: (N, C, H, W) uint8, in memory or a memory map.
        items: the sources and targets of the images, in the order of ``rows``.
        batch_size: items per batch, at least 1.
        scale: how the pixels are normalized.
        augment: ``augment(x, y, generator) -> (x, y)``: stored uint8 images and targets on the
            device → float32 images from 0 to 1, a copy, and targets. All it draws comes from the
            generator, which is a function of (seed, epoch, number of the batch).
        size: (H, W) of the images in a batch; None for the stored size.
        shuffle: a new order each epoch; otherwise the stored order.
        seed: of the order and of what is drawn, at least 0.
        drop_last: leave out a last batch that is smaller than the others.
        device: where the batches lie: None for cuda if available, else cpu.
        max_memory: bytes that the images may take on the device; None for half of what is free.
        weights: (N,) how often each item is drawn, with replacement; None for once an epoch.
        rows: (N,) where in ``pixels`` each item lies; None for their order.

    Attributes:
        items: the sources and targets.
        labels: the targets, on the device; not to be changed.
        n_items: images of one epoch.
        input_shape: (C, H, W) of one image.
        device: where the batches lie.
        epoch: the epoch that the next iteration gives.
        storage: where the images lie and how much they take, in words.
        streamed: whether they are read from the memory map in each epoch.

    Raises:
        ArgumentError: if an argument has a value that cannot work.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        items: Items,
        *,
        batch_size: int,
        scale: PixelScale,
        augment: Augment | None = None,
        size: tuple[int, int] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: str | torch.device | None = None,
        max_memory: int | None = None,
        weights: Tensor | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        if pixels.ndim != 4 or pixels.dtype != np.uint8:
            raise ArgumentError(
                "pixels must be uint8 of four axes (N, C, H, W), got "
                f"{pixels.dtype} of shape {pixels.shape}."
            )
        rows = np.arange(len(pixels)) if rows is None else np.asarray(rows, np.int64)
        _check_rows(rows, len(pixels), len(items))
        stored = (pixels.shape[2], pixels.shape[3])
        size = stored if size is None else size
        if size[0] > stored[0] or size[1] > stored[1]:
            raise ArgumentError(f"size={size} is larger than the stored images, {stored}.")
        target = pick_device(device)
        super().__init__(
            items.targets.to(target),
            (pixels.shape[1], *size),
            batch_size=batch_size,
            shuffle=shuffle or weights is not None,
            seed=seed,
            drop_last=drop_last,
        )
        self.items = items
        self._weights = None if weights is None else _checked_weights(weights, len(items))
        self._augment = augment
        unit = 255.0 if augment is None else 1.0
        self._factor, self._shift = scale.factors(unit, target)
        self._plain_factor, _ = scale.factors(255.0, target)
        self._images = _Images(pixels, rows, target, max_memory)
        self.storage, self.streamed = self._images.storage, self._images.resident is None

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.storage})"

    def pick(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The items at these positions of the stored order, normalized and not augmented."""
        raw = self._images.take(positions)
        x = self._middle(raw).mul_(self._plain_factor).add_(self._shift)
        return x, self.labels.index_select(0, positions.to(self.device))

    def peek(self, n: int) -> tuple[Tensor, Tensor]:
        """The first ``n`` items of the next epoch as it will give them, also if augmented."""
        parts = self._order(self.epoch).split(self.batch_size)[: -(-n // self.batch_size)]
        found = [
            self._batch(self._images.take(part), part, self.epoch, i)
            for i, part in enumerate(parts)
        ]
        return torch.cat([x for x, _ in found])[:n], torch.cat([y for _, y in found])[:n]

    def _batches(self, order: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = order.to(self._images.order_device)
        if self._augment is None and not self.streamed:
            return self._plain_batches(order)
        return self._other_batches(order.split(self.batch_size), epoch)

    def _plain_batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Small batches are made several at once: an operation costs more than its few images."""
        n, bytes_each = self.batch_size, 4 * math.prod(self.input_shape)
        for positions in order.split(n * max(1, GROUP_BYTES // (n * bytes_each))):
            x, y = self.pick(positions)
            yield from zip(x.split(n), y.split(n), strict=True)

    def _other_batches(
        self, parts: Sequence[Tensor], epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for i, raw in enumerate(self._images.batches(parts)):
            yield self._batch(raw, parts[i], epoch, i)

    def _batch(self, raw: Tensor, part: Tensor, epoch: int, i: int) -> tuple[Tensor, Tensor]:
        """What is given for stored images."""
        y = self.labels.index_select(0, part.to(self.device))
        if self._augment is None:
            x = self._middle(raw)
        else:
            x, y = self._augment(raw, y, seeded(self._seed, AUGMENT_KEY, epoch, i))
        return x.mul_(self._factor).add_(self._shift), y

    def _middle(self, raw: Tensor) -> Tensor:
        """The middle of stored images, float32, from 0 to 255."""
        cut = center_cut(raw, self.input_shape[1:])
        return cut.to(torch.float32, memory_format=torch.contiguous_format)

    def _order(self, epoch: int) -> Tensor:
        if self._weights is None:
            return super()._order(epoch)
        generator = seeded(self._seed, epoch)
        n = len(self._weights)
        return self._weights.multinomial(n, replacement=True, generator=generator)[: self.n_items]


class _Images:
    """The stored images of a loader: all of them on its device, or read from a memory map.

    Attributes:
        resident: (N, C, H, W) uint8 on the device; None if the images are read when needed.
        order_device: where positions are looked up.
        storage: where the images lie, in words.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        rows: NDArray[np.int64],
        device: torch.device,
        max_memory: int | None,
    ) -> None:
        self._device, self._rows = device, torch.from_numpy(rows)
        self._reader = _RowReader(pixels)
        self._shape = pixels.shape[1:]
        needed = len(rows) * pixels[0].nbytes
        given = free_memory(device) // 2 if max_memory is None else max_memory
        self.resident: Tensor | None = None
        where = "in memory" if device.type == "cpu" else f"on {device}"
        self.storage = f"{where}: {n_bytes(needed)} of uint8"
        if device.type == "cpu" and not isinstance(pixels, np.memmap) and pixels.flags.writeable:
            self.resident = torch.from_numpy(pixels)  # it lies in memory: it is not copied
        elif needed <= given:
            self.resident = self._copied()
            self._rows = torch.arange(len(rows))
        else:
            self.storage = (
                f"streamed: {n_bytes(needed)} of uint8, of which {n_bytes(given)} may be {where}"
            )
        self.order_device = torch.device("cpu") if self.resident is None else device
        self._rows = self._rows.to(self.order_device)
        self._in_order = bool((self._rows == torch.arange(len(rows)).to(self._rows)).all())

    def take(self, positions: Tensor) -> Tensor:
        """The images at these positions of the stored order, uint8 on the device."""
        positions = positions.to(self.order_device)
        rows = positions if self._in_order else self._rows.index_select(0, positions)
        if self.resident is not None:
            return self.resident.index_select(0, rows)
        raw = torch.empty((len(rows), *self._shape), dtype=torch.uint8)
        self._reader.read(rows.numpy(), raw.numpy())
        return raw.to(self._device)

    def batches(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each part, uint8 on the device; one is to be used before the next."""
        if self.resident is not None:
            return map(self.take, parts)
        return self._streamed(list(parts))

    def _streamed(self, parts: list[Tensor]) -> Generator[Tensor]:
        length = max(map(len, parts))
        buffers = [_Buffer((length, *self._shape), self._device) for _ in range(AHEAD + 1)]
        jobs = (
            partial(self._fill, buffers[i % len(buffers)], self._rows[part].numpy())
            for i, part in enumerate(parts)
        )
        for buffer, n in prefetched(jobs, AHEAD):
            yield buffer.on_device(n)

    def _fill(self, buffer: _Buffer, rows: NDArray[np.int64]) -> tuple[_Buffer, int]:
        buffer.wait()
        self._reader.read(rows, buffer.pixels.numpy()[: len(rows)])
        return buffer, len(rows)

    def _copied(self) -> Tensor:
        """All images on the device."""
        n, rows = len(self._rows), self._rows.numpy()
        found = torch.empty((n, *self._shape), dtype=torch.uint8, device=self._device)
        if self._device.type == "cpu":
            self._reader.read(rows, found.numpy())
            return found
        length = max(1, COPY_BYTES // int(np.prod(self._shape)))
        for start in range(0, n, length):
            part = torch.empty((min(length, n - start), *self._shape), dtype=torch.uint8)
            self._reader.read(rows[start : start + length], part.numpy())
            found[start : start + length] = part.to(self._device)
        return found


class _Buffer:
    """Memory that is filled again and again; for cuda it is pinned, and copied while work goes on.

    Attributes:
        pixels: (N, C, H, W) uint8 on the host.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._device, self._copied = device, None
        self.pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")

    def on_device(self, n: int) -> Tensor:
        """The first n images."""
        if self._device.type != "cuda":
            return self.pixels[:n].to(self._device)
        found = self.pixels[:n].to(self._device, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(self._device))
        return found

    def wait(self) -> None:
        """Wait until the last copy to the device is done."""
        if self._copied is not None:
            self._copied.synchronize()


class _RowReader:
    """Copies rows of pixels.

    A memory map's file is read by `os.preadv`: pages that are touched in a map count as the
    process's memory, and would grow to the size of the file.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels, self._row_bytes = pixels, pixels[0].nbytes
        self._handle, self._offset, self._file = -1, 0, ""
        if (
            isinstance(pixels, np.memmap)
            and isinstance(pixels.base, mmap.mmap)
            and hasattr(os, "preadv")
        ):
            self._offset, self._file = pixels.offset, str(pixels.filename)
            self._handle = os.open(self._file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._handle)

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy rows to ``out``, in the order of the file.

        Raises:
            DataError: if the file is shorter than it was.
        """
        order = np.argsort(rows)
        if self._handle == -1:
            for i in order:
                out[i] = self._pixels[rows[i]]
            return
        for i in order:
            start = self._offset + int(rows[i]) * self._row_bytes
            if os.preadv(self._handle, [out[i].data], start) != self._row_bytes:
                raise DataError(
                    f"{self._file} was cut while it was read; run again to make it anew."
                )


def measured_scale(pixels: NDArray[np.uint8], rows: NDArray[np.int64]) -> PixelScale:
    """The scale that gives images mean 0 and deviation 1 per channel, in values from 0 to 1.

    A channel that is constant, up to a quarter of one of 255 steps, is only centred.

    Args:
        pixels: (N, C, H, W), perhaps a memory map; it is read a part at a time.
        rows: (M,) those of the images to measure.
    """
    reader, length = _RowReader(pixels), max(1, PART_BYTES // pixels[0].nbytes)
    buffer = np.empty((length, *pixels.shape[1:]), np.uint8)
    sums = torch.zeros(2, pixels.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), length):
        part = rows[start : start + length]
        reader.read(part, buffer)
        x = torch.from_numpy(buffer[: len(part)]).float()
        sums[0] += x.sum((2, 3)).double().sum(0)
        sums[1] += x.square_().sum((2, 3)).double().sum(0)
    mean, square = sums / (len(rows) * pixels[0, 0].size)
    std = (square - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std > 0.25, std / 255, 1.0)
    return PixelScale((mean / 255).float(), std.float(), black=0.0, white=1.0)


def prefetched(jobs: Iterable[Callable[[], T]], ahead: int) -> Generator[T]:
    """The results of jobs that a thread does in their order, up to ``ahead`` of them early.

    A job begins after the result ``ahead + 1`` before it has been used. An error in a job is raised
    here. The thread ends with the generator, also if that is left early.
    """
    pool = ThreadPoolExecutor(1, "convlens-prefetching")
    waiting: deque[Future[T]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_rows(rows: NDArray[np.int64], n_pixels: int, n_items: int) -> None:
    if len(rows) != n_items or n_items == 0:
        raise ArgumentError(
            f"items has {n_items} items for {len(rows)} images; give one for each image, and at "
            "least one."
        )
    if rows.min() < 0 or rows.max() >= n_pixels:
        raise ArgumentError(
            f"rows goes from {rows.min()} to {rows.max()}, but pixels has {n_pixels} images."
        )


def _checked_weights(weights: Tensor, n: int) -> Tensor:
    values = torch.as_tensor(weights).to("cpu", torch.float64)
    good = values.shape == (n,) and bool(values.isfinite().all()) and bool((values >= 0).all())
    if not good or float(values.sum()) <= 0:
        raise ArgumentError(
            f"weights must be {n} numbers of at least 0, one for each item, and not all 0."
        )
    return values
