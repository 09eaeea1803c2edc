"""Reading the columns of watched series: the chunks of every rank, added up at one level of time.

Columns are cached in blocks: the 64 columns of the run's level whose steps share
``step >> (level + 6)``, which are one chunk of that level, or finer chunks that wait to be merged.
While a run grows only some of its blocks change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from convlens.core.buckets import BucketLayout
from convlens.core.columns import CHUNK_BITS, Columns, decode, empty_columns, join
from convlens.core.histories import OPTIMIZER_STEP, LayerHistory, LayerInfo
from convlens.errors import RunError
from convlens.runs.database_reader import Transaction, cannot_open, explained
from convlens.runs.schema import DATABASE, parsed, rank_database

MOST_LAYERS, MOST_LEVEL = 1 << 24, 56
"""Bounds for validation: the number of layers, and the level of a column (2^56 steps)."""


class Sliceable(Protocol):
    """What is made of columns: slices of it are of the same columns."""

    def __getitem__(self, rows: slice, /) -> Self: ...


T = TypeVar("T", bound=Sliceable)


@dataclass(frozen=True)
class Watched:
    """What was watched of a quantity, and how.

    Attributes:
        layers: in order of their index.
        layout: the buckets.
        eps: bound of near zero.
        sample: the fraction of each batch's images that was watched.
        counted: what its steps are, see `LayerHistory.counted`.
    """

    layers: Sequence[LayerInfo] = ()
    layout: BucketLayout = field(default_factory=BucketLayout)
    eps: float = 0.05
    sample: float = 1.0
    counted: str = OPTIMIZER_STEP

    def history(self, layer: LayerInfo, columns: Columns) -> LayerHistory:
        """A layer's columns as its history."""
        return LayerHistory(layer, columns, self.layout, self.eps, self.sample, self.counted)


def read_layers(record: Transaction, quantity: str) -> list[LayerInfo]:
    """What was watched of a quantity, in order of its index."""
    found = [
        LayerInfo(index, name, kind, bool(relu), series)
        for (series, index), (name, kind, relu) in record.rows("layers")
        if series == quantity
    ]
    if not all(0 <= info.index < MOST_LAYERS for info in found):
        raise ValueError(f"a layer of {quantity!r} has an invalid index")
    return sorted(found, key=lambda info: info.index)


def read_watched(record: Transaction, quantity: str, counted: str = OPTIMIZER_STEP) -> Watched:
    """What was watched of a quantity, and how."""
    layers = read_layers(record, quantity)
    if not layers:
        return Watched()
    text, eps, sample = dict(record.rows("watch"))[(quantity,)]
    layout = parsed(text)
    if not isinstance(layout, dict) or not all(type(n) is int for n in layout.values()):
        raise ValueError(f"the bucket layout {text!r} is invalid")
    bits, low, high = layout["mantissa_bits"], layout["min_exponent"], layout["max_exponent"]
    if not (0 <= bits <= 10 and -1100 <= low < high <= 1100):
        raise ValueError(f"the bucket layout {text!r} is invalid")
    return Watched(layers, BucketLayout(**layout), eps, sample, counted)


class Chunk(NamedTuple):
    """A chunk of a series.

    Attributes:
        start: the first step of its span.
        level: a column's steps share ``step >> level``.
        crc: the row's checksum, which changes whenever the row does.
        rank: whose it is.
    """

    start: int
    level: int
    crc: int
    rank: int


class ColumnReader:
    """The columns in the files of all ranks, each in a read transaction.

    Args:
        records: the transactions, rank 0 first.

    Attributes:
        level: the highest level of any columns, which all are brought to, so that all series agree
            in time, also while the writer is about to merge their chunks.
    """

    def __init__(self, records: Sequence[Transaction]) -> None:
        self._records = records
        self._chunks: dict[tuple[str, int], list[Chunk]] = {}
        for rank, record in enumerate(records):
            with explained(record.file):
                self._add(rank, record)
        chunks = [chunk for found in self._chunks.values() for chunk in found]
        self.level = max((chunk.level for chunk in chunks), default=0)

    def _add(self, rank: int, record: Transaction) -> None:
        for (quantity, layer, start, level), (_, _, crc) in record.keys("columns").items():
            if not (0 <= level <= MOST_LEVEL and start >= 0):
                raise ValueError(f"columns have an invalid level {level} or first step {start}")
            found = self._chunks.setdefault((quantity, layer), [])
            found.append(Chunk(start, level, crc, rank))

    def read(self, info: LayerInfo, layout: BucketLayout, *, counts: bool = True) -> Columns:
        """All columns of a series, perhaps without their bucket counts."""
        chunks = sorted(self._chunks.get((info.quantity, info.index), ()))
        return self._read(info, layout, chunks, counts=counts)

    def blocks(
        self,
        info: LayerInfo,
        layout: BucketLayout,
        known: Mapping[int, Block[T]],
        make: Callable[[Columns], T],
        *,
        counts: bool = True,
    ) -> dict[int, Block[T]]:
        """The blocks of a series, of which only those are read that have changed.

        Args:
            info: the series.
            layout: its buckets.
            known: the blocks that were read before, at the same level.
            make: what to make of the columns of all new blocks, which is then cut into them.
            counts: whether these have their bucket counts.
        """
        chunks: dict[int, list[Chunk]] = {}
        for chunk in sorted(self._chunks.get((info.quantity, info.index), ())):
            chunks.setdefault(chunk.start >> (self.level + CHUNK_BITS), []).append(chunk)
        found = {n: known[n] for n, own in chunks.items() if n in known and known[n].chunks == own}
        new = [number for number in chunks if number not in found]
        if new:
            own = [chunk for number in new for chunk in chunks[number]]
            columns = self._read(info, layout, own, counts=counts)
            cuts = np.array([*new, new[-1] + 1]) << (self.level + CHUNK_BITS)
            made, ends = make(columns), np.searchsorted(columns.first_step, cuts).tolist()
            for number, begin, end in zip(new, ends[:-1], ends[1:], strict=True):
                found[number] = Block(chunks[number], made[begin:end])
        return {number: found[number] for number in chunks}

    def _read(
        self, info: LayerInfo, layout: BucketLayout, chunks: Sequence[Chunk], *, counts: bool
    ) -> Columns:
        parts: list[Columns] = []
        for chunk in chunks:
            record = self._records[chunk.rank]
            with explained(record.file):
                key = info.quantity, info.index, chunk.start, chunk.level
                (payload,) = record.values("columns", key)
                parts.append(decode(payload, layout.size, counts=counts))
        return join(parts, self.level) if parts else empty_columns(layout.size, 0)


@dataclass(frozen=True, eq=False)
class Block(Generic[T]):
    """64 columns of a series, or what was made of them.

    Attributes:
        chunks: what they were read from.
        value: the columns, or what was made of them.
    """

    chunks: Sequence[Chunk]
    value: T


def rank_files(folder: Path, ranks: int | None, *, complete: bool) -> list[Path]:
    """The files of the ranks beside rank 0, in their order.

    Args:
        folder: the run's directory.
        ranks: how many there are, None if it was not recorded.
        complete: whether all of them must be there; a rank may not have joined a young run yet.

    Raises:
        RunError: if one is missing.
    """
    try:
        entries = {path.name: path for path in folder.iterdir()}
    except OSError as error:
        raise cannot_open(folder, error.strerror) from error
    found = {
        int(match[1]): path
        for name, path in entries.items()
        if (match := re.fullmatch(r"rank-([1-9]\d*)\.db", name)) and path.is_file()  # and no pipe
    }
    missing = next((rank for rank in range(1, ranks or 1) if rank not in found), None)
    if missing is not None and complete:
        raise RunError(
            f"{str(folder / rank_database(missing))!r} is missing, but {ranks} ranks wrote this "
            f"run, each what it saw; copy the file into the folder of {DATABASE} again."
        )
    return [found[rank] for rank in sorted(found)]
