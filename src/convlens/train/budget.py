"""How much a run keeps beside its numbers: which epochs, which layers, how finely.

Everything here is a function of sizes that are known when a training begins, so that what is kept
is bounded, however long the training and however large the network. Bytes are those before
compression; the table's own come to about two thirds of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

MAP_BYTES = 4 << 20
"""Feature maps of all layers at one kept epoch."""

KERNEL_BYTES = 1 << 20
"""Kernels of all convolutions at one kept epoch, but for those that read the images."""

EFFECTIVE_BYTES = 8 << 20
"""Effective fields of all layers and all epochs."""

MISTAKE_BYTES = 16 << 20
"""Mistakes of all epochs, if those of every epoch are to be kept."""

CHANNELS = 16
"""Channels of a layer whose feature maps are kept: the first."""

CELLS = (32, 24, 16, 12, 8)
"""Cells along each side of a feature map: the first that fits the budget."""

PLANES = ((64, 16), (32, 16), (32, 8), (16, 8), (16, 4), (8, 4), (4, 4), (4, 2), (2, 2))
"""Filters and input channels of kernels that are kept: the first that fits the budget."""

KERNEL_SIDE = 11
"""Larger kernels than 11 × 11 are not kept."""

EFFECTIVE_LAYERS = 16
"""Layers whose effective field is kept: each costs a backward pass."""

SIDE = 64
"""Pixels along the longer side of an image among the mistakes."""

N_WORST = 32
"""Mistakes of the largest loss of all."""

N_PAIRS = 64
"""Mistakes that are the worst confusion of two classes: those of the largest loss."""

CONFUSION_EPOCHS = 200
"""Of a longer training, confusion is kept at kept epochs only."""

CONFUSION_CLASSES = 100
"""The same for more classes."""

MOST_CLASSES = 1000
"""With more classes, no confusion is counted: the table grows with their square."""

T = TypeVar("T")


def kept_epochs(n_epochs: int, n_kept: int = 20) -> tuple[int, ...]:
    """The epochs after which something is kept, ascending: at most ``n_kept``, always the last.

    All of them where there are no more than that. Otherwise on a logarithmic scale, since a
    network changes most at first: epochs 1, 2, 3, … as far as the scale is finer than an epoch,
    then with gaps that grow in proportion.

    Args:
        n_epochs: epochs of the training, at least 1.
        n_kept: how many to keep, at least 1.
    """
    if n_epochs <= n_kept:
        return tuple(range(n_epochs))
    if n_kept == 1:
        return (n_epochs - 1,)
    ends = [1]  # an epoch's number from 1: how many are finished after it
    while len(ends) < n_kept:
        left = n_kept - len(ends)
        following = ends[-1] * (n_epochs / ends[-1]) ** (1 / left)
        ends.append(max(ends[-1] + 1, round(following)))
    return tuple(end - 1 for end in ends)


def evenly(things: Sequence[T], most: int) -> list[T]:
    """At most so many of them, from the first to the last at even distances."""
    if len(things) <= most:
        return list(things)
    return [things[i] for i in np.linspace(0, len(things) - 1, most).round().astype(int).tolist()]


def cells_of(grid: tuple[int, int], side: int) -> tuple[int, int]:
    """Cells of a feature map of ``grid`` units: one for each unit, or ``side``."""
    return min(grid[0], side), min(grid[1], side)


def choose_cells(grids: Sequence[tuple[int, int]], planes: Sequence[int]) -> int:
    """Cells along a side so that the maps of all layers fit the budget.

    Args:
        grids: (H, W) of each layer.
        planes: how many maps are kept of each layer: images times channels.
    """

    def size(side: int) -> int:
        shapes = [cells_of(grid, side) for grid in grids]
        return sum(n * h * w for n, (h, w) in zip(planes, shapes, strict=True))

    return next((side for side in CELLS if size(side) <= MAP_BYTES), CELLS[-1])


def choose_planes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Filters and input channels so that the kernels of all convolutions fit the budget.

    Args:
        shapes: (C_out, C_in / groups, kH, kW) of each.
    """

    def size(n_out: int, n_in: int) -> int:
        return sum(4 * min(o, n_out) * min(i, n_in) * h * w for o, i, h, w in shapes)

    return next((planes for planes in PLANES if size(*planes) <= KERNEL_BYTES), PLANES[-1])


def effective_epochs(kept: Sequence[int], n_bytes: int) -> set[int]:
    """Before training and those kept epochs at which effective fields fit the budget.

    Args:
        kept: the kept epochs.
        n_bytes: of one epoch's effective fields.
    """
    most = max(1, EFFECTIVE_BYTES // max(1, n_bytes) - 1)
    return {-1, kept[-1], *evenly([*reversed(kept)], most)}
