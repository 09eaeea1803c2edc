"""`RunFollower`: reads a run again and again while it grows; what did not change is kept."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from convlens.core.buckets import Ints
from convlens.core.columns import (
    Columns,
    concatenate,
    empty_columns,
    narrow,
)
from convlens.core.histories import (
    FIGURES,
    LayerHistory,
    LayerInfo,
    SeriesFigures,
    UpdateHistory,
    figures_of,
)
from convlens.core.layers import find_layer
from convlens.core.records import Epoch
from convlens.core.steps import StepCurves, StepSeries, check_points, join_steps, sum_up
from convlens.core.training_curves import POINTS
from convlens.errors import RunError
from convlens.runs.column_reader import Block, ColumnReader, Watched, read_watched
from convlens.runs.database_reader import Transaction, cannot_open, explained
from convlens.runs.lock import writer_of
from convlens.runs.reader import Run, aligned, counted_in, read_epochs, read_recorded, with_end
from convlens.runs.schema import DATABASE
from convlens.runs.step_chunks import KnownChunks, read_step_chunks

SERIES = 4
"""Size of the cache of full histories (most recently used)."""

TICK_NS = 50_000_000
"""Two changes of a file within this time may have the same time stamp."""

Value = TypeVar("Value")
SeriesKey = tuple[str, int]


@dataclass(frozen=True, eq=False)
class BlockSeries:
    """A series with its bucket counts, in blocks. It is replaced, never changed.

    Attributes:
        watched: how it was watched.
        info: whose it is.
        blocks: by their number, in order of time.
    """

    watched: Watched
    info: LayerInfo
    blocks: Mapping[int, Block[Columns]]

    def history(self) -> LayerHistory:
        """All columns."""
        parts = [block.value for block in self.blocks.values()]
        columns = concatenate(parts) if parts else empty_columns(self.watched.layout.size, 0)
        return self.watched.history(self.info, columns)


@dataclass(frozen=True)
class _BlockFigures:
    """(K,) first and last steps of a block's columns, and (F, K) `FIGURES`."""

    first: Ints
    last: Ints
    values: NDArray[np.float32]

    def __getitem__(self, rows: slice) -> _BlockFigures:
        return _BlockFigures(self.first[rows], self.last[rows], self.values[:, rows])


@dataclass(frozen=True, eq=False)
class _Figures:
    """The figures of all series of a quantity, in blocks."""

    watched: Watched
    level: int
    series: Sequence[Mapping[int, Block[_BlockFigures]]]

    @cached_property
    def joined(self) -> SeriesFigures:
        """All of them over the same columns."""
        parts = [[block.value for block in blocks.values()] for blocks in self.series]
        every = [part for found in parts for part in found]
        none = np.zeros(0, np.int64)
        column = np.unique(np.concatenate([none, *(part.first >> self.level for part in every)]))
        first = np.full(len(column), np.iinfo(np.int64).max)
        last = np.full(len(column), -1)
        values = np.full((len(FIGURES), len(parts), len(column)), np.nan, np.float32)
        for i, found in enumerate(parts):
            for part in found:
                at = np.searchsorted(column, part.first >> self.level)
                first[at] = np.minimum(first[at], part.first)
                last[at] = np.maximum(last[at], part.last)
                values[:, i, at] = part.values
        figures = dict(zip(FIGURES, values, strict=True))
        return SeriesFigures(self.watched.layers, first, last, figures)


@dataclass(frozen=True, eq=False)
class _State:
    """Everything read in one transaction. It is replaced by the next one, never changed."""

    run: tuple[Any, ...] = ()  # which one: another may come to lie in the same folder
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    epochs: Sequence[Epoch] = ()
    totals: Sequence[Mapping[str, object]] = ()  # of each file; equal if its rows are
    watched: Mapping[str, Watched] = field(default_factory=dict[str, Watched])
    level: int = 0
    steps: KnownChunks = field(default_factory=dict[int, tuple[int, StepSeries]])
    figures: Mapping[str, _Figures] = field(default_factory=dict[str, _Figures])
    series: Mapping[SeriesKey, BlockSeries] = field(default_factory=dict[SeriesKey, BlockSeries])

    def looks_like(self, other: _State) -> bool:
        """Whether a reader would see no difference."""
        facts = [(s.run, s.meta.get("status"), s.totals) for s in (self, other)]
        both = self.watched.keys() & other.watched.keys()
        return facts[0] == facts[1] and all(self.watched[q] == other.watched[q] for q in both)


class RunFollower:
    """A run that is read again and again, finished or growing: each time only what is new.

    All answers are of one moment: that of the last `refresh`, or of the last first request for
    something, which reads the run again. Whatever was requested once is kept up to date; of full
    histories, only the four requested last.

    No connection stays open between two calls. One thread may `refresh` while another asks.

    Args:
        run: what to follow.

    Attributes:
        version: grows whenever something new was read.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.version = run, 0
        self._state = _State()
        self._reading = Lock()
        self._stamp: object = None  # of the files when they were read; None if unknown
        self._records: Sequence[Transaction] = ()  # of the last reading, over by now
        self._tables: dict[str, tuple[object, object]] = {}  # name to (total, value)
        self._seen = -1  # the version at the last refresh
        self._quantities: dict[str, None] = {}
        self._figures: dict[str, None] = {}
        self._series: dict[SeriesKey, LayerInfo] = {}
        self._readable: tuple[dict[Any, Any], ...] = (
            {},
            {},
            {},
        )  # of these three, at the last reading

    def __repr__(self) -> str:
        return f"RunFollower({str(self.run.path)!r}, version {self.version})"

    def refresh(self) -> bool:
        """Read what is new since the last time.

        Returns:
            Whether anything is new since the last `refresh`, including data that other methods
            have read since.

        Raises:
            RunError: if the run cannot be read; the state stays as it was.
        """
        stamp = files_stamp(self.run.path)
        if stamp is None or stamp != self._stamp:
            self._read(stamp)
        seen, self._seen = self._seen, self.version
        return seen != self.version

    @property
    def nbytes(self) -> int:
        """Bytes of nearly all that is kept."""
        state = self._state
        figures = [v for found in state.figures.values() for v in found.joined.values.values()]
        blocks = [block.value for one in state.series.values() for block in one.blocks.values()]
        kept = 2 * sum(values.nbytes for values in figures)  # as they were read, and joined
        kept += sum(columns.counts.nbytes + 4 * columns.positive.nbytes for columns in blocks)
        return kept + sum(128 * len(steps) for _, steps in state.steps.values())

    @property
    def mark(self) -> str:
        """A short text that differs between any two states that a reader can tell apart."""
        state = self._read_once()
        facts = (state.run, state.meta.get("status"), [sorted(t.items()) for t in state.totals])
        return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()

    @property
    def meta(self) -> Mapping[str, Any]:
        """Facts by name; see `Run.meta`."""
        return self._read_once().meta

    @property
    def epochs(self) -> Sequence[Epoch]:
        """Every finished epoch."""
        return self._read_once().epochs

    def layers_of(self, quantity: str = "activation") -> Sequence[LayerInfo]:
        """What was watched of a quantity (see `LayerInfo`), in order of its index."""
        self._quantities[quantity] = None
        return self._read_once(quantity in self._state.watched).watched[quantity].layers

    def curves(self, points: int = POINTS) -> StepCurves:
        """The steps' series summed up in at most ``points`` entries.

        Raises:
            ArgumentError: if ``points`` is not positive.
        """
        check_points(points)
        return sum_up(self.steps, points)

    @property
    def steps(self) -> StepSeries:
        """Every recorded step."""
        return join_steps([part for _, part in self._read_once().steps.values()])

    def figures(self, quantity: str = "activation") -> SeriesFigures:
        """The figures of all series of a quantity, without their histograms."""
        self._quantities[quantity] = self._figures[quantity] = None
        return self._read_once(quantity in self._state.figures).figures[quantity].joined

    def history(self, index: int, quantity: str = "activation") -> LayerHistory:
        """The history of one series, as `Run.history` returns it.

        Args:
            index: its position among `layers` (negative from the end).
            quantity: of another series than the activations: its position among those.

        Raises:
            LayerNotFoundError: if there is no such layer.
        """
        return self._kept(self._info(index, quantity))[0].history()

    def update_history(self, index: int) -> UpdateHistory:
        """What the optimizer did to the parameter at this position (negative from the end).

        Raises:
            LayerNotFoundError: if there is no such parameter.
        """
        info = self._info(index, "update")
        update, parameter = self._kept(info, replace(info, quantity="parameter"))
        return aligned(update.history(), parameter.history())

    def _info(self, index: int, quantity: str) -> LayerInfo:
        layers = self.layers_of(quantity)
        return layers[find_layer(index, [layer.name for layer in layers])]

    def _kept(self, *infos: LayerInfo) -> list[BlockSeries]:
        keys = [(info.quantity, info.index) for info in infos]
        for key, info in zip(keys, infos, strict=True):
            self._quantities[info.quantity] = None
            self._series.pop(key, None)
            self._series[key] = info  # the latest last
        for old in list(self._series)[:-SERIES]:
            self._series.pop(old, None)
        state = self._read_once(all(key in self._state.series for key in keys))
        return [state.series[key] for key in keys]

    # ---- reading --------------------------------------------------------------------------------

    def _read_once(self, known: bool = True) -> _State:
        """The state, read if there is none yet or if what is asked for is not in it."""
        if not known or not self._state.run:
            return self._read(files_stamp(self.run.path))
        return self._state

    def _read(self, stamp: object) -> _State:
        with self._reading:
            self._stamp = None
            try:
                with self.run.transactions() as records:
                    new = self._after(self._state, records)
            except RunError:  # what cannot be read is not asked for again: the rest may be intact
                kept = map(dict, self._readable)
                self._quantities, self._figures, self._series = cast("Any", kept)
                raise
            self._readable = dict(self._quantities), dict(self._figures), dict(self._series)
            self.version += not new.looks_like(self._state)
            self._state, self._stamp = new, stamp
            return new

    def _after(self, old: _State, records: Sequence[Transaction]) -> _State:
        """The state after an older one, of which only what has changed is read."""
        main, meta = records[0], self._meta(records[0])
        run = meta.get("created"), *((str(record.file), _inode(record.file)) for record in records)
        if run[: len(old.run)] != old.run:
            old, self._records = _State(), ()
        for record, older in zip(records, self._records, strict=False):
            record.take_keys(older)
        self._records = records
        epochs = self._known(main, "epochs", partial(read_epochs, main))
        with explained(main.file):
            watched = {q: read_watched(main, q, counted_in(meta)) for q in list(self._quantities)}
        new = replace(
            old,
            run=run,
            meta=meta,
            epochs=epochs,
            totals=[record.totals for record in records],
            watched=watched,
            steps=read_step_chunks(main, known=old.steps),
        )
        return self._with_columns(old, new, ColumnReader(records))

    def _with_columns(self, old: _State, new: _State, reader: ColumnReader) -> _State:
        def is_same(quantity: str) -> bool:
            known = old.watched.get(quantity)
            return old.level == reader.level and known == new.watched[quantity]

        figures: dict[str, _Figures] = {}
        for quantity in list(self._figures):
            watched = new.watched[quantity]
            known = old.figures.get(quantity) if is_same(quantity) else None
            figures[quantity] = _read_figures(reader, watched, known)
        series: dict[SeriesKey, BlockSeries] = {}
        for key, asked in list(self._series.items()):
            watched = new.watched[asked.quantity]
            info = next((layer for layer in watched.layers if layer.index == asked.index), asked)
            known = old.series.get(key) if is_same(asked.quantity) else None
            series[key] = _read_series(reader, watched, info, known)
        return replace(new, level=reader.level, figures=figures, series=series)

    def _meta(self, record: Transaction) -> Mapping[str, Any]:
        return with_end(self._known(record, "meta", partial(read_recorded, record)), record)

    def _known(self, record: Transaction, name: str, read: Callable[[], Value]) -> Value:
        """The value of ``read()``, called again only if the rows of the table ``name`` changed."""
        total = record.totals[name]
        known = self._tables.get(name)
        if known is None or known[0] != total:
            known = self._tables[name] = total, read()
        return cast("Value", known[1])


def _read_figures(reader: ColumnReader, watched: Watched, known: _Figures | None) -> _Figures:
    found: list[Mapping[int, Block[_BlockFigures]]] = []
    for i, info in enumerate(watched.layers):

        def make(columns: Columns, info: LayerInfo = info) -> _BlockFigures:
            values = figures_of(watched.history(info, columns))
            return _BlockFigures(columns.first_step, columns.last_step, values)

        old = {} if known is None else known.series[i]
        found.append(reader.blocks(info, watched.layout, old, make, counts=False))
    return _Figures(watched, reader.level, found)


def _read_series(
    reader: ColumnReader, watched: Watched, info: LayerInfo, known: BlockSeries | None
) -> BlockSeries:
    def make(columns: Columns) -> Columns:
        return replace(columns, counts=narrow(columns.counts))

    old = {} if known is None else known.blocks
    blocks = reader.blocks(info, watched.layout, old, make)
    if known is not None and list(blocks.values()) == list(old.values()):
        return known
    return BlockSeries(watched, info, blocks)


def _inode(file: Path) -> int:
    try:
        return file.stat().st_ino
    except OSError as error:
        raise cannot_open(file, error.strerror) from error


def files_stamp(folder: Path) -> tuple[Any, ...] | None:
    """Names, sizes and times of a run's files; None if they are too young to prove anything.

    Whether their writer lives is part of it: where it was killed, nothing in them changes. They are
    not opened: closing one would release the locks of a writer in the same process.
    """
    writer = writer_of(folder / DATABASE)
    try:
        with os.scandir(folder) as entries:
            names = re.compile(r"(run|rank-[1-9]\d*)\.db(-wal)?")
            found = [(e.name, e.stat()) for e in entries if names.fullmatch(e.name)]
    except OSError as error:
        raise cannot_open(folder / DATABASE, error.strerror) from error
    if any(stat.st_mtime_ns > time.time_ns() - TICK_NS for _, stat in found):
        return None
    return writer, *sorted((n, s.st_ino, s.st_size, s.st_mtime_ns) for n, s in found)
