"""Which positions an operation reads along one axis: exact ones, and a pattern without edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.geometry.periodic import LONGEST, Pattern, window

Ints = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class IndexMap:
    """Which positions each position of an operation reads along one axis.

    Attributes:
        index: (O, K) positions read by each of the O outputs.
        valid: (O, K) False for padding, and to fill up rows.
        pattern: the same on an axis without edges; None if it does not repeat.
    """

    index: Ints
    valid: NDArray[np.bool_]
    pattern: Pattern | None


def strided(n_in: int, n_out: int, offsets: Sequence[int], stride: int = 1) -> IndexMap:
    """Output o reads the positions o·stride + offset."""
    index = np.arange(n_out)[:, None] * stride + np.asarray(offsets)[None, :]
    return within(index, n_in, window(offsets, stride))


def transposed(
    n_in: int, n_out: int, kernel: int, stride: int, padding: int, dilation: int
) -> IndexMap:
    """Output o of a transposed convolution reads (o + p − k·d) / s, where that is whole."""
    shifted = (np.arange(n_out)[:, None] + padding) - np.arange(kernel)[None, :] * dilation
    index = np.where(shifted % stride == 0, shifted // stride, -1)
    places = (tuple(o + padding - k * dilation for k in range(kernel)) for o in range(stride))
    reads = tuple(tuple(p // stride for p in row if p % stride == 0) for row in places)
    return within(index, n_in, Pattern(reads, 1))


def adaptive(n_in: int, n_out: int) -> IndexMap:
    """Output o of adaptive pooling reads floor(o·n / m) … ceil((o + 1)·n / m) − 1."""
    ratio = Fraction(n_in, n_out)
    reads = [range(floor(o * ratio), -floor(-(o + 1) * ratio)) for o in range(n_out)]
    period = ratio.denominator
    return listed(reads, n_in, Pattern(tuple(map(tuple, reads[:period])), ratio.numerator))


def shifted(places: Ints, shift: int) -> IndexMap:
    """Output o reads the position places[o], which is o + shift far from the edges."""
    index = places[:, None].astype(np.int64)
    return IndexMap(index, np.ones_like(index, dtype=bool), window([shift]))


def picked(n_in: int, places: Ints) -> IndexMap:
    """Output o reads the position places[o], negative ones counted from the end."""
    index = np.where(places < 0, places + n_in, places)[:, None].astype(np.int64)
    return IndexMap(index, np.ones_like(index, dtype=bool), None)


def padded(n_in: int, before: int, after: int, mode: str) -> IndexMap:
    """Padding that repeats the input: "reflect", "replicate" or "circular"; see `torch.nn`."""
    places = np.arange(-before, n_in + after)
    if mode.startswith("replicat"):
        places = np.clip(places, 0, n_in - 1)
    elif mode == "circular":
        places = places % n_in
    else:
        places = np.where(places >= n_in, 2 * (n_in - 1) - places, np.abs(places))
    return shifted(places, -before)


@dataclass(frozen=True)
class Resizing:
    """How interpolation goes from ``n_in`` to ``n_out`` positions; see `F.interpolate`.

    Attributes:
        n_in: positions of the input.
        n_out: positions of the output.
        scale: the scale factor, if given instead of ``n_out``.
        align_corners: whether the outermost positions lie on each other.
        precision: torch's type for the places.
    """

    n_in: int
    n_out: int
    scale: float | None = None
    align_corners: bool = False
    precision: type[np.floating] = np.float64

    @property
    def step(self) -> float:
        """Input positions from one output to the next."""
        if self.align_corners:
            return (self.n_in - 1) / (self.n_out - 1) if self.n_out > 1 else 0.0
        return 1 / self.scale if self.scale else self.n_in / self.n_out

    def nearest(self, shift: Fraction) -> IndexMap:
        """Output o reads floor((o + shift)·step)."""
        if self.n_in == self.n_out and not self.scale:
            return shifted(np.arange(self.n_out), 0)
        number = self.precision
        source = (np.arange(self.n_out, dtype=number) + number(shift)) * number(self.step)
        index = np.minimum(np.floor(source).astype(np.int64), self.n_in - 1)[:, None]
        pattern = self._pattern(lambda o, step: [floor((o + shift) * step)])
        return IndexMap(index, np.ones_like(index, dtype=bool), pattern)

    def around(self, offsets: range) -> IndexMap:
        """Output o reads the positions around its place: (0, 1) if linear, (−1 … 2) if cubic."""
        if self.n_in == self.n_out and len(offsets) == 2:
            return shifted(np.arange(self.n_out), 0)
        shift = Fraction(0) if self.align_corners else Fraction(1, 2)
        number = self.precision
        source = (np.arange(self.n_out, dtype=number) + number(shift)) * number(self.step)
        places = np.floor(source - number(shift)).astype(np.int64)
        places = places if len(offsets) > 2 else np.maximum(places, 0)
        index = np.clip(places[:, None] + np.asarray(offsets), 0, self.n_in - 1)
        pattern = self._pattern(
            lambda o, step: [floor((o + shift) * step - shift) + i for i in offsets]
        )
        return IndexMap(index, np.ones_like(index, dtype=bool), pattern)

    def _pattern(self, reads: Callable[[int, Fraction], Sequence[int]]) -> Pattern | None:
        """The pattern, if the step is a fraction of small numbers."""
        step = Fraction(self.step).limit_denominator(LONGEST)
        if not step or float(step) != self.step:
            return None
        rows = (tuple(reads(o, step)) for o in range(step.denominator))
        return Pattern(tuple(rows), step.numerator)


def within(index: Ints, n_in: int, pattern: Pattern | None) -> IndexMap:
    """Positions beyond the axis are padding."""
    valid = (index >= 0) & (index < n_in)
    return IndexMap(np.where(valid, index, 0).astype(np.int64), valid, pattern)


def listed(reads: Sequence[Sequence[int]], n_in: int, pattern: Pattern | None) -> IndexMap:
    """Output o reads the positions reads[o]."""
    index = np.full((len(reads), max(1, *map(len, reads))), -1)
    for row, places in zip(index, reads, strict=True):
        row[: len(places)] = places
    return within(index, n_in, pattern)
