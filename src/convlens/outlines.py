"""Columns without their bucket counts: enough for figures, and read in a fraction of the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.packets import unpack_heads
from convlens.sketch import (
    DAMAGES,
    Columns,
    Ints,
    check_buckets,
    check_chunk,
    damaged,
    decode,
    widen,
)


@dataclass(frozen=True)
class Outline(Columns):
    """Columns whose bucket counts were left out: ``counts`` is (K, 0), all else is as it was.

    Attributes:
        finite: (K,) number of finite values.
    """

    finite: Ints = field(kw_only=True)

    @property
    def n_finite(self) -> Ints:
        """(K,) number of finite values."""
        return self.finite


def outline(columns: Columns) -> Outline:
    """The same without bucket counts."""
    kept = {f.name: getattr(columns, f.name) for f in fields(Columns)}
    kept["counts"] = np.zeros((len(columns), 0), np.int64)
    return Outline(**kept, finite=columns.n_finite)


def decode_outlines(payloads: Sequence[bytes], n_buckets: int) -> list[Outline]:
    """Chunks that `encode` wrote without their bucket counts, which are not even inflated.

    Args:
        payloads: any number of chunks; many at once are read several times as fast as one by one.
        n_buckets: number of buckets B that the values were counted in.

    Returns:
        What each holds; arrays of several may share memory.

    Raises:
        RunError: if the bytes are not such chunks, as far as they are read.
    """
    groups, others = unpack_heads(payloads, "counts")
    found = dict[int, Outline]()
    for group in groups:
        try:
            found |= zip(group.rows, _outlines(dict(group.arrays), n_buckets), strict=True)
        except DAMAGES as error:
            raise damaged(payloads[group.rows[0]], error) from error
    for i in others:  # of the first format
        found[i] = outline(decode(payloads[i], n_buckets))
    return [found[i] for i in range(len(payloads))]


def _outlines(arrays: dict[str, NDArray[Any]], n_buckets: int) -> Iterator[Outline]:
    """The chunks in arrays that have an axis more, of M chunks."""
    shapes = arrays.pop("shape")
    _, found, n_channels = (int(v) for v in shapes[0])
    if (shapes[:, 1:] != shapes[:1, 1:]).any():
        raise ValueError("its flags fit no number of channels")
    check_buckets(found, n_buckets)
    n = arrays["first_step"].shape[1]
    lows = int(shapes[:, 0].min()), int(shapes[:, 0].max())
    for low in lows:
        check_chunk({name: array[0] for name, array in arrays.items()}, low, found, n_channels)
    widen(arrays, n_channels, (len(shapes), n))
    arrays["counts"] = np.zeros((len(shapes), n, 0), np.int64)
    for i in range(len(shapes)):
        yield Outline(**{name: array[i] for name, array in arrays.items()})
