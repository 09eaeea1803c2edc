"""Limits of what `Pictures` keeps: epochs, layers, resolution.

All are functions of sizes known when a training begins, so that the kept bytes are bounded for any
training and network. Bytes are before compression; stored, they are about two thirds of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

MAP_BYTES = 4 << 20
"""Feature maps of all layers at one kept epoch."""

KERNEL_BYTES = 1 << 20
"""Kernels of all convolutions at one kept epoch, without those that read the images."""

EFFECTIVE_BYTES = 8 << 20
"""Effective receptive fields of all layers and epochs."""

MISTAKE_BYTES = 16 << 20
"""Mistakes of all epochs; above it they are kept at kept epochs only."""

CHANNELS = 16
"""The first so many channels of a layer have their feature maps kept."""

CELLS = (32, 24, 16, 12, 8)
"""Cells along each side of a feature map: the first that fits."""

PLANES = ((64, 16), (32, 16), (32, 8), (16, 8), (16, 4), (8, 4), (4, 4), (4, 2), (2, 2))
"""Filters and input channels of kernels that are kept: the first that fits."""

KERNEL_SIDE = 11
"""Larger kernels than 11 × 11 are not kept."""

EFFECTIVE_LAYERS = 16
"""Layers whose effective field is kept: each costs a backward pass."""

SIDE = 64
"""Pixels along the longer side of an image among the mistakes."""

N_PAIRS = 64
"""Mistakes that are the worst confusion of two classes."""

N_EXPLAINED = 24
"""Mistakes of the largest loss that Grad-CAM explains at a kept epoch."""

CONFUSION_EPOCHS = 200
"""Confusion and calibration of a longer training are kept at kept epochs only."""

CONFUSION_CLASSES = 100
"""The same for more classes."""

MOST_CLASSES = 1000
"""With more classes no confusion is counted: the table grows with their square."""

T = TypeVar("T")


def kept_epochs(n_epochs: int, n_kept: int = 20) -> tuple[int, ...]:
    """The epochs after which something is kept, ascending: at most ``n_kept``, always the last.

    Without that many epochs, all of them. Otherwise on a logarithmic scale, since a network changes
    most at first: 1, 2, 3, … while the scale is finer than an epoch, then in growing gaps.
    """
    if n_epochs <= n_kept:
        return tuple(range(n_epochs))
    if n_kept == 1:
        return (n_epochs - 1,)
    numbers = [1]  # epochs counted from 1
    while len(numbers) < n_kept:
        left = n_kept - len(numbers)
        following = numbers[-1] * (n_epochs / numbers[-1]) ** (1 / left)
        numbers.append(max(numbers[-1] + 1, round(following)))
    return tuple(number - 1 for number in numbers)


def evenly(things: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of them, at even distances from the first to the last."""
    if len(things) <= most:
        return list(things)
    return [things[i] for i in np.linspace(0, len(things) - 1, most).round().astype(int).tolist()]


def cells_of(grid: tuple[int, int], side: int) -> tuple[int, int]:
    """Cells of a feature map of ``grid`` units: at most ``side`` along each axis."""
    return min(grid[0], side), min(grid[1], side)


def choose_cells(grids: Sequence[tuple[int, int]], planes: Sequence[int]) -> int:
    """Cells along a side so that the maps of all layers fit in `MAP_BYTES`.

    Args:
        grids: (H, W) of each layer.
        planes: maps kept of each layer: images times channels.
    """

    def size(side: int) -> int:
        shapes = [cells_of(grid, side) for grid in grids]
        return sum(n * h * w for n, (h, w) in zip(planes, shapes, strict=True))

    return next((side for side in CELLS if size(side) <= MAP_BYTES), CELLS[-1])


def choose_planes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Filters and input channels so that the kernels of these shapes fit in `KERNEL_BYTES`."""

    def size(n_out: int, n_in: int) -> int:
        return sum(4 * min(o, n_out) * min(i, n_in) * h * w for o, i, h, w in shapes)

    return next((planes for planes in PLANES if size(*planes) <= KERNEL_BYTES), PLANES[-1])


def effective_epochs(kept: Sequence[int], n_bytes: int) -> set[int]:
    """The epochs, -1 for before training, whose effective fields of ``n_bytes`` each are kept."""
    most = max(1, EFFECTIVE_BYTES // max(1, n_bytes) - 1)
    return {-1, kept[-1], *evenly([*reversed(kept)], most)}
