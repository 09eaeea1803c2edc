"""Columns without their bucket counts: enough for figures, and read in a fraction of the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.core.columns import (
    CHUNK_LIMIT,
    DAMAGES,
    Columns,
    Ints,
    check_buckets,
    check_chunk,
    check_shape,
    damaged,
    widen,
)
from convlens.core.encoding import unpack_heads


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
    found = dict[int, Outline]()
    for group in unpack_heads(payloads, "counts", CHUNK_LIMIT):
        try:
            for rows, outlines in _outlines(dict(group.arrays), n_buckets):
                found |= zip((group.rows[row] for row in rows), outlines, strict=True)
        except DAMAGES as error:
            raise damaged(payloads[group.rows[0]], error) from error
    return [found[i] for i in range(len(payloads))]


def _outlines(
    arrays: dict[str, NDArray[Any]], n_buckets: int
) -> Iterator[tuple[list[int], list[Outline]]]:
    """Which of M chunks, and what they hold; the arrays have an axis more than those of one."""
    shapes = check_shape(arrays.pop("shape"), ndim=2)
    # Flags of 10 and of 16 channels fill two bytes both: equal arrays, but not equal chunks.
    for size, n_channels in np.unique(shapes[:, 1:], axis=0).tolist():
        rows = np.flatnonzero((shapes[:, 1:] == (size, n_channels)).all(axis=1))
        some = {name: array[rows] for name, array in arrays.items()}
        check_buckets(size, n_buckets)
        for low in (int(shapes[rows, 0].min()), int(shapes[rows, 0].max())):
            check_chunk({name: a[0] for name, a in some.items()}, low, size, n_channels)
        n = some["first_step"].shape[1]
        widen(some, n_channels)
        some["counts"] = np.zeros((len(rows), n, 0), np.int64)
        chunks = [Outline(**{name: a[i] for name, a in some.items()}) for i in range(len(rows))]
        yield rows.tolist(), chunks
