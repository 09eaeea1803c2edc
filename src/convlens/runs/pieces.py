"""What is kept of a run that is followed: its columns in blocks, of which only some change.

A block is the 64 columns of the run's level whose steps share ``step >> (level + 6)``: what one
chunk of that level holds, or finer chunks that wait to be merged into it. Blocks are independent of
each other, so that one of them is read anew and all others stay.

Everything here is replaced, never changed: whoever holds an older state keeps it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.core.columns import (
    CHUNK_BITS,
    BucketLayout,
    Columns,
    Ints,
    concatenate,
    decode,
    empty_columns,
    narrow,
)
from convlens.core.histories import (
    FIGURES,
    LayerHistory,
    LayerInfo,
    SeriesFigures,
    figures_of,
)
from convlens.core.outlines import Outline, decode_outlines, outline
from convlens.runs.database import Transaction, cannot_open, explained
from convlens.runs.histories import Chunk, add_up, read_chunks, read_level, read_payload

WIDTH = 1 << CHUNK_BITS
TOGETHER = 16
"""So many chunks are decoded at once, whosever they are."""

Row = tuple[int, Chunk]
"""Layer and chunk."""

Changes = Mapping[int, frozenset[int]] | None
"""The blocks of each layer that have changed; None if anything may have."""


@dataclass(frozen=True)
class Watch:
    """What was watched of a quantity, and how.

    Attributes:
        layers: in order of their index.
        layout: the buckets.
        eps: bound of near zero.
        sample: the fraction of each batch's images that was looked at.
    """

    layers: Sequence[LayerInfo] = ()
    layout: BucketLayout = field(default_factory=BucketLayout)
    eps: float = 0.05
    sample: float = 1.0

    def history(self, layer: LayerInfo, columns: Columns) -> LayerHistory:
        """A layer's columns as its history."""
        return LayerHistory(layer, columns, self.layout, self.eps, self.sample)


class Source:
    """One rank's file, in a read transaction.

    Args:
        record: the transaction.
        between: called before each chunk that is read.

    Attributes:
        record: the transaction.
        file: its path.
        level: the highest level of any columns in it.
        inode: its number in the file system.
    """

    def __init__(self, record: Transaction, between: Callable[[], None] | None = None) -> None:
        self.record, self.file, self._between = record, record.file, between
        with explained(self.file):
            self.level, self._chunks = read_level(record), read_chunks(record)
        try:
            self.inode = self.file.stat().st_ino
        except OSError as error:
            raise cannot_open(self.file, error.strerror) from error

    def rows(self, quantity: str) -> frozenset[Row]:
        """Every chunk of a quantity, to be compared with what there was before."""
        series = ((i, chunks) for (name, i), chunks in self._chunks.items() if name == quantity)
        return frozenset((layer, chunk) for layer, chunks in series for chunk in chunks)

    def payloads(
        self, info: LayerInfo, blocks: frozenset[int] | None, level: int
    ) -> Iterator[bytes]:
        """A series' chunks in order of time: all, or those in some blocks of a level."""
        for chunk in self._chunks.get((info.quantity, info.index), ()):
            if blocks is None or chunk.start >> (level + CHUNK_BITS) in blocks:
                if self._between is not None:
                    self._between()
                with explained(self.file):
                    yield read_payload(self.record, info.quantity, info.index, chunk)


def _by_block(columns: Columns, level: int) -> Iterator[tuple[int, slice]]:
    """The blocks that columns lie in, and which of them lie there; columns are in order of time."""
    block = columns.first_step >> (level + CHUNK_BITS)
    starts = np.flatnonzero(np.diff(block, prepend=block[:1] - 1)).tolist()
    for first, stop in zip(starts, [*starts[1:], len(block)], strict=False):
        yield int(block[first]), slice(first, stop)


# ---- the figures of all series of a quantity ----------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """The figures of one block. F figures, L series, 64 columns.

    Attributes:
        first: (L, 64) first step of each column, the largest integer if a series has no such one.
        last: (L, 64) last step, -1 there.
        values: (F, L, 64), NaN there.
    """

    first: Ints
    last: Ints
    values: NDArray[np.float32]

    @classmethod
    def empty(cls, n_series: int) -> Tile:
        """Of series without columns."""
        return cls(
            np.full((n_series, WIDTH), np.iinfo(np.int64).max),
            np.full((n_series, WIDTH), -1, np.int64),
            np.full((len(FIGURES), n_series, WIDTH), np.nan, np.float32),
        )

    def copy(self) -> Tile:
        """One that may be written to."""
        return Tile(self.first.copy(), self.last.copy(), self.values.copy())

    def clear(self, series: int) -> None:
        """Take the columns of one series out."""
        self.first[series], self.last[series] = np.iinfo(np.int64).max, -1
        self.values[:, series] = np.nan

    @cached_property
    def present(self) -> tuple[Ints, Ints, NDArray[np.float32]]:
        """First steps, last steps and values of the columns that any series has."""
        some = (self.last >= 0).any(axis=0)
        first, last = self.first.min(axis=0), self.last.max(axis=0)
        if some.all():
            return first, last, self.values
        return first[some], last[some], self.values[:, :, some]


@dataclass(frozen=True)
class Figures:
    """The figures of a quantity, block by block: about 0.3 MB for each series with 4,096 columns.

    Attributes:
        watch: whose they are.
        level: that of the columns.
        tiles: by block.
    """

    watch: Watch
    level: int
    tiles: Mapping[int, Tile] = field(default_factory=dict[int, Tile])

    def renewed(self, sources: Sequence[Source], changes: Changes) -> Figures:
        """The same with some blocks read anew."""
        tiles = dict(self.tiles) if changes is not None else {}
        fresh: dict[int, Tile] = {}

        def tile(block: int) -> Tile:
            if block not in fresh:
                old = tiles.get(block)
                fresh[block] = Tile.empty(len(self.watch.layers)) if old is None else old.copy()
            return fresh[block]

        for i, columns in self._read(sources, changes):
            info = self.watch.layers[i]
            for block in () if changes is None else changes[info.index]:
                tile(block).clear(i)
            figures = figures_of(self.watch.history(info, columns))
            place = (columns.first_step >> self.level) & (WIDTH - 1)
            for block, rows in _by_block(columns, self.level):
                at = place[rows]
                tile(block).first[i, at] = columns.first_step[rows]
                tile(block).last[i, at] = columns.last_step[rows]
                tile(block).values[:, i, at] = figures[:, rows]
        return Figures(self.watch, self.level, tiles | fresh)

    @cached_property
    def all(self) -> SeriesFigures:
        """Every block, one after the other."""
        none = np.zeros(0, np.int64)
        parts = [self.tiles[block].present for block in sorted(self.tiles)]
        shape = len(FIGURES), len(self.watch.layers), 0
        parts = parts or [(none, none, np.zeros(shape, np.float32))]
        values = np.concatenate([part[2] for part in parts], axis=2)
        return SeriesFigures(
            self.watch.layers,
            np.concatenate([part[0] for part in parts]),
            np.concatenate([part[1] for part in parts]),
            dict(zip(FIGURES, values, strict=True)),
        )

    def _read(self, sources: Sequence[Source], changes: Changes) -> Iterator[tuple[int, Outline]]:
        """Positions of the series that have changed, and their columns in the changed blocks."""
        waiting: list[tuple[int, list[list[bytes]]]] = []
        n_waiting = 0
        for i, info in enumerate(self.watch.layers):
            if changes is not None and info.index not in changes:
                continue
            blocks = None if changes is None else changes[info.index]
            found = [list(source.payloads(info, blocks, self.level)) for source in sources]
            waiting.append((i, found))
            n_waiting += sum(map(len, found))
            if n_waiting >= TOGETHER:
                yield from self._decode(sources, waiting)
                waiting, n_waiting = [], 0
        yield from self._decode(sources, waiting)

    def _decode(
        self, sources: Sequence[Source], waiting: Sequence[tuple[int, list[list[bytes]]]]
    ) -> Iterator[tuple[int, Outline]]:
        """Chunks of several series, decoded together; of each series those of each source."""
        n_buckets = self.watch.layout.size
        flat = [payload for _, found in waiting for payloads in found for payload in payloads]
        chunks = iter(decode_outlines(flat, n_buckets))
        nothing = outline(empty_columns(n_buckets, 0))
        for i, found in waiting:
            files: list[tuple[int, list[Outline]]] = []
            for source, payloads in zip(sources, found, strict=True):
                own = [next(chunks) for _ in payloads]
                # In one piece: finer chunks, of which there may be many, are merged all at once.
                files.append((source.level, [concatenate(own)] if own else []))
            yield i, add_up(files, nothing)


# ---- one series with its bucket counts ----------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """The columns of one block, as narrow as they are on disk.

    Attributes:
        outline: all but the counts.
        low: the lowest bucket in use.
        counts: (K, used) of the buckets in use.
    """

    outline: Outline
    low: int
    counts: NDArray[Any]

    @classmethod
    def of(cls, columns: Columns) -> Block:
        """Of columns with all their counts."""
        used = np.flatnonzero(columns.counts.any(axis=0))
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        return cls(outline(columns), low, narrow(columns.counts[:, low:high]))


@dataclass(frozen=True)
class Series:
    """A series with its bucket counts, block by block.

    With 4,096 columns about 4 MB, and never more than 8 bytes for each of them and of the buckets.

    Attributes:
        watch: how it was watched.
        info: whose it is.
        level: that of the columns.
        blocks: by their number.
    """

    watch: Watch
    info: LayerInfo
    level: int
    blocks: Mapping[int, Block] = field(default_factory=dict[int, Block])

    def renewed(self, sources: Sequence[Source], changes: Changes) -> Series:
        """The same with some blocks read anew."""
        again = None if changes is None else changes.get(self.info.index, frozenset[int]())
        if again is not None and not again:
            return self
        layout = self.watch.layout
        files: list[tuple[int, list[Columns]]] = []
        for source in sources:
            payloads = source.payloads(self.info, again, self.level)
            with explained(source.file):
                parts = [decode(p, layout.size, narrow=True) for p in payloads]
                files.append((source.level, parts))
        columns = add_up(files, empty_columns(layout.size, 0))
        blocks = {} if again is None else {b: k for b, k in self.blocks.items() if b not in again}
        blocks |= {b: Block.of(columns[rows]) for b, rows in _by_block(columns, self.level)}
        return Series(self.watch, self.info, self.level, blocks)

    @property
    def first_step(self) -> Ints:
        """(K,) first step of each column."""
        return self._steps[0]

    @property
    def last_step(self) -> Ints:
        """(K,) last step of each column."""
        return self._steps[1]

    @cached_property
    def _steps(self) -> tuple[Ints, Ints]:
        none = np.zeros(0, np.int64)
        outlines = [self.blocks[block].outline for block in sorted(self.blocks)]
        first = np.concatenate([none, *(outline.first_step for outline in outlines)])
        last = np.concatenate([none, *(outline.last_step for outline in outlines)])
        return first, last

    def changed_since(self, older: Series) -> int | None:
        """The step from which on it may differ from what it was, None if nothing is comparable."""
        if (older.watch, older.info, older.level) != (self.watch, self.info, self.level):
            return None
        both = sorted(older.blocks.keys() | self.blocks.keys())
        new = (b for b in both if older.blocks.get(b) is not self.blocks.get(b))
        return next(new, both[-1] + 1 if both else 0) << (self.level + CHUNK_BITS)

    def history(self, since: int | None = None, *, narrow: bool = False) -> LayerHistory:
        """All of it with every bucket, or the columns that begin at a step or after it.

        Args:
            since: the step.
            narrow: leave the counts in as few bits as they need, for whoever adds them up.
        """
        n_buckets = self.watch.layout.size
        bits = self.level + CHUNK_BITS
        chosen = [b for b in sorted(self.blocks) if since is None or b >= since >> bits]
        blocks = [self.blocks[block] for block in chosen]
        if not blocks:
            return self.watch.history(self.info, empty_columns(n_buckets, 0))
        whole = concatenate([block.outline for block in blocks])
        types = [block.counts.dtype for block in blocks]
        counts = np.zeros((len(whole), n_buckets), np.result_type(*types) if narrow else np.int64)
        row = 0
        for block in blocks:
            n, used = block.counts.shape
            counts[row : row + n, block.low : block.low + used] = block.counts
            row += n
        arrays: dict[str, Any] = {f.name: getattr(whole, f.name) for f in fields(Columns)}
        arrays["counts"] = counts
        columns = Columns(**arrays)
        if since is not None and columns.first_step[0] < since:
            columns = columns[int(np.searchsorted(columns.first_step, since)) :]
        return self.watch.history(self.info, columns)
