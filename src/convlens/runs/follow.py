"""Following a run that grows: only what is new is read, and what was read is kept."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar, cast

from convlens.core.columns import CHUNK_BITS
from convlens.core.downsampling import check_points
from convlens.core.histories import LayerHistory, LayerInfo, SeriesFigures, UpdateHistory
from convlens.core.layers import find_layer
from convlens.core.records import Epoch, StepCurves, StepSeries
from convlens.core.training_curves import POINTS
from convlens.runs.database import KeptOpen, Transaction, cannot_open, explained, reading
from convlens.runs.histories import aligned, rank_files, read_layers, read_settings
from convlens.runs.lock import writer_of
from convlens.runs.pieces import Changes, Figures, Row, Series, Source, Watch
from convlens.runs.reader import GROWING, Run, read_epochs, read_recorded, with_end
from convlens.runs.schema import DATABASE
from convlens.runs.steps import read_curves, read_steps

SERIES = 8
"""Series that are kept with their bucket counts: those asked for last."""

CURVES = 4
"""Numbers of points that curves are kept in: those asked for last."""

TICK_NS = 50_000_000
"""Two changes of a file within this time may bear the same time stamp."""

Key = TypeVar("Key")
Value = TypeVar("Value")

_FILES = re.compile(r"(run|rank-[1-9]\d*)\.db(-wal)?")


@dataclass(frozen=True)
class _State:
    """What was read in one transaction; replaced by the next, never changed."""

    run: tuple[Any, ...] = ()  # which one: another may come to lie in the same folder
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    epochs: Sequence[Epoch] = ()
    levels: Mapping[Path, int] = field(default_factory=dict[Path, int])
    totals: Mapping[Path, Mapping[str, object]] = field(  # of a table, equal if its rows are
        default_factory=dict[Path, Mapping[str, object]]
    )
    rows: Mapping[tuple[Path, str], frozenset[Row]] = field(
        default_factory=dict[tuple[Path, str], frozenset[Row]]
    )
    watches: Mapping[str, Watch] = field(default_factory=dict[str, Watch])
    curves: Mapping[int, StepCurves] = field(default_factory=dict[int, StepCurves])
    figures: Mapping[str, Figures] = field(default_factory=dict[str, Figures])
    series: Mapping[tuple[str, int], Series] = field(default_factory=dict[tuple[str, int], Series])

    @property
    def level(self) -> int:
        """That of the whole run."""
        return max(self.levels.values())


@dataclass(frozen=True)
class Newest:
    """What a glance at a run finds.

    Attributes:
        created: the fact of this name in the run's meta.
        status: likewise.
        n_layers: how many layers' activations were watched.
        epochs: every finished epoch; the same object while nothing is read but glances.
        steps: the newest of the recorded steps.
    """

    created: object
    status: object
    n_layers: int
    epochs: Sequence[Epoch]
    steps: StepSeries


class RunFollower:
    """A run that is read again and again, finished or growing: each time only what is new.

    Everything that is asked for is of one moment, that of the last `refresh`, or of the last time
    something was asked for that had not been asked for before, which reads the run again. What was
    asked for once is kept up to date; of full histories the eight that were asked for last, with
    about 4 MB each where there are 4,096 columns, and 0.3 MB for each series of `figures`.

    No connection stays open between two calls, so that the writer can close its run, but that of
    `newest` as long as each call finds new steps: `rest` closes it. One thread may `refresh` while
    another asks, or refreshes too.

    Args:
        run: what to follow.

    Attributes:
        version: grows whenever something new was read, so that several who look can tell.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.version = run, 0
        self._state = _State()
        self._swapping = Lock()
        self._file = KeptOpen(run.path / DATABASE)
        self._stamp: object = None  # of the files when they were read, None if it proves nothing
        self._glance: tuple[object, int, Newest] | None = None  # with its stamp, and since when
        self._tables: dict[str, tuple[object, object]] = {}  # by name, of which total, what it held
        self._seen = -1  # the version at the last refresh
        self._quantities: dict[str, None] = {}
        self._figures: dict[str, None] = {}
        self._series: dict[tuple[str, int], LayerInfo] = {}
        self._points: dict[int, int] = {}
        self._built: dict[tuple[str, int], tuple[Series, LayerHistory]] = {}

    def refresh(self, between: Callable[[], None] | None = None) -> bool:
        """Read what is new since the last time.

        Args:
            between: called now and then while reading, for a thread that has to wait for others.

        Returns:
            Whether anything is new, also what was read in between because it was asked for.

        Raises:
            RunError: if the run cannot be read; the state stays as it was.
        """
        stamp = _stamp(self.run.path)
        if stamp is None or stamp != self._stamp:
            self._read(stamp, between)
        seen, self._seen = self._seen, self.version
        return seen != self.version

    def newest(self, since: int) -> Newest:
        """What is new, at a tenth of the cost of a `refresh`, which it neither is nor needs.

        Args:
            since: the steps after this one.

        Raises:
            RunError: if the run cannot be read.
        """
        known = self._glance
        # Not asked for the first time after news: more is likely, and opening is what it costs.
        again = known is not None and known[1] == since
        stamp = _stamp(self.run.path) if again else None
        if known is None or stamp is None or known[0] != stamp:
            known = self._glance = stamp, since, self._read_newest(since)
        return known[2]

    def rest(self) -> None:
        """Let go of the run's file until the next call of `newest`, so that it can be closed."""
        self._file.close()

    @property
    def meta(self) -> Mapping[str, Any]:
        """Facts by name; see `Run.meta`."""
        return self._read_once().meta

    @property
    def epochs(self) -> Sequence[Epoch]:
        """Every finished epoch."""
        return self._read_once().epochs

    def layers(self, quantity: str = "activation") -> Sequence[LayerInfo]:
        """What was watched of a quantity (see `LayerInfo`), in order of its index."""
        return self._watch(quantity).layers

    def curves(self, points: int = POINTS) -> StepCurves:
        """The steps' series summed up in at most ``points`` entries.

        Raises:
            ArgumentError: if ``points`` is not positive.
        """
        check_points(points)
        _remember(self._points, points, points, CURVES)
        return self._read_once(points in self._state.curves).curves[points]

    def figures(self, quantity: str = "activation") -> SeriesFigures:
        """The figures of all series of a quantity, without their histograms."""
        self._quantities[quantity] = self._figures[quantity] = None
        return self._read_once(quantity in self._state.figures).figures[quantity].all

    def history(self, index: int, quantity: str = "activation") -> LayerHistory:
        """The history of one series, as `Run.history` gives it.

        Args:
            index: its position among `layers` (negative from the end).
            quantity: of another series than the activations: its position among those.

        Raises:
            LayerNotFoundError: if there is no such layer.
        """
        return self._histories(self._info(index, quantity))[0]

    def series(self, index: int, quantity: str = "activation") -> Series:
        """What `history` makes its history of, which tells what has changed since an older one.

        Raises:
            LayerNotFoundError: if there is no such layer.
        """
        info = self._info(index, quantity)
        return self._kept(info).series[info.quantity, info.index]

    def update_history(self, index: int) -> UpdateHistory:
        """What the optimizer did to the parameter at this position (negative from the end).

        Raises:
            LayerNotFoundError: if there is no such parameter.
        """
        info = self._info(index, "update")
        self._watch("parameter")
        return aligned(*self._histories(info, replace(info, quantity="parameter")))

    def _watch(self, quantity: str) -> Watch:
        self._quantities[quantity] = None
        return self._read_once(quantity in self._state.watches).watches[quantity]

    def _info(self, index: int, quantity: str) -> LayerInfo:
        layers = self._watch(quantity).layers
        return layers[find_layer(index, [layer.name for layer in layers])]

    def _kept(self, *infos: LayerInfo) -> _State:
        """The state, with these series in it."""
        keys = [(info.quantity, info.index) for info in infos]
        for key, info in zip(keys, infos, strict=True):
            _remember(self._series, key, info, SERIES)
        state = self._state
        return state if all(key in state.series for key in keys) else self._read_once(False)

    def _histories(self, *infos: LayerInfo) -> list[LayerHistory]:
        keys = [(info.quantity, info.index) for info in infos]
        state = self._kept(*infos)
        built: dict[tuple[str, int], tuple[Series, LayerHistory]] = {}
        for key in keys:
            series = state.series[key]
            before, history = self._built.get(key, (None, None))
            if history is None or before is not series:
                history = series.history()
            built[key] = series, history
        self._built = built  # only these: at full width a history has eight times the bytes
        return [history for _, history in built.values()]

    # ---- reading --------------------------------------------------------------------------------

    def _read_once(self, known: bool = True) -> _State:
        """The state, read if there is none yet or if what is asked for is not in it."""
        if not known or not self._state.run:
            self._read(_stamp(self.run.path))
        return self._state

    def _read(self, stamp: object, between: Callable[[], None] | None = None) -> None:
        self._stamp = None
        while True:
            old = self._state
            new = self._read_after(old, between)
            same = _look_same(new, old)
            with self._swapping:
                if self._state is old:  # else another thread has read meanwhile: read what is new
                    self.version += not same
                    self._state, self._stamp = new, stamp
                    return

    def _read_after(self, old: _State, between: Callable[[], None] | None) -> _State:
        """What there is now, of which only what has changed is read."""
        with ExitStack() as stack:
            main = stack.enter_context(self.run.transaction())
            meta = self._meta(main)
            complete = meta.get("status") not in GROWING
            others = rank_files(self.run.path, meta.get("ranks"), complete=complete)
            records = [main, *(stack.enter_context(reading(file)) for file in others)]
            return self._next(old, [Source(record, between) for record in records], meta)

    def _read_newest(self, since: int) -> Newest:
        with self._file.reading() as record:
            meta = self._meta(record)
            newest = Newest(
                meta.get("created"),
                meta.get("status"),
                len(self._known(record, "layers", partial(read_layers, record, "activation"))),
                self._known(record, "epochs", partial(read_epochs, record)),
                read_steps(record, since + 1),
            )
        if newest.status != "running" or not len(newest.steps):
            self.rest()  # its writer is about to close it, or has died, or takes its time
        return newest

    def _meta(self, record: Transaction) -> Mapping[str, Any]:
        return with_end(self._known(record, "meta", partial(read_recorded, record)), record)

    def _known(self, record: Transaction, name: str, read: Callable[[], Value]) -> Value:
        """What was read of a table of the run's own file, anew only if its rows are others."""
        total = record.totals[name]
        known = self._tables.get(name)
        if known is None or known[0] != total:
            known = self._tables[name] = total, read()
        return cast("Value", known[1])

    def _next(self, old: _State, sources: Sequence[Source], meta: Mapping[str, Any]) -> _State:
        """The state after an older one."""
        main = sources[0].record
        run = meta.get("created"), *((str(source.file), source.inode) for source in sources)
        if run[: len(old.run)] != old.run:
            old = _State()
        totals = {source.file: source.record.totals for source in sources}
        before, now = old.totals.get(main.file, {}), totals[main.file]
        epochs = self._known(main, "epochs", partial(read_epochs, main))
        curves = {
            points: old.curves[points]
            if before.get("steps") == now["steps"] and points in old.curves
            else read_curves(main, points)
            for points in list(self._points)
        }
        new = replace(old, run=run, meta=meta, epochs=epochs, totals=totals, curves=curves)
        return self._with_layers(old, new, sources)

    def _with_layers(self, old: _State, new: _State, sources: Sequence[Source]) -> _State:
        """The new state with what was watched, as it is now."""
        # Against the order in which another thread may add to them: a series has its quantity.
        asked, figures = dict(self._series), list(self._figures)
        quantities = list(self._quantities)
        same = {
            source.file: old.totals.get(source.file, {}).get("columns")
            == source.record.totals["columns"]
            for source in sources
        }
        new = replace(
            new,
            levels={source.file: source.level for source in sources},
            rows={
                (s.file, q): old.rows[s.file, q]
                if same[s.file] and (s.file, q) in old.rows
                else s.rows(q)
                for s in sources
                for q in quantities
            },
            watches={quantity: _watch(sources[0], quantity) for quantity in quantities},
        )
        changes = {quantity: _changes(old, new, sources, quantity) for quantity in new.watches}
        return replace(
            new,
            figures={q: _figures(old, new, sources, q, changes[q]) for q in figures},
            series={
                key: _series(old, new, sources, info, changes[info.quantity])
                for key, info in asked.items()
            },
        )


def _stamp(folder: Path) -> tuple[Any, ...] | None:
    """Names, sizes and times of a run's files; None if they are too young to prove anything.

    Whether their writer lives is part of it: where it was killed, nothing in them changes. They are
    not opened: closing one would take the locks of a writer in the same process.
    """
    writer = writer_of(folder / DATABASE)
    try:
        with os.scandir(folder) as entries:
            found = [(e.name, e.stat()) for e in entries if _FILES.fullmatch(e.name)]
    except OSError as error:
        raise cannot_open(folder / DATABASE, error.strerror) from error
    if any(stat.st_mtime_ns > time.time_ns() - TICK_NS for _, stat in found):
        return None
    return writer, *sorted((n, s.st_ino, s.st_size, s.st_mtime_ns) for n, s in found)


def _watch(source: Source, quantity: str) -> Watch:
    with explained(source.file):
        layers = read_layers(source.record, quantity)
        return Watch(layers, *read_settings(source.record, quantity)) if layers else Watch()


def _changes(old: _State, new: _State, sources: Sequence[Source], quantity: str) -> Changes:
    """Which blocks of a quantity are not what they were; a chunk that changes has another checksum.

    Of 4 billion changes one is missed, until the next.
    """
    if new.levels != old.levels or new.watches[quantity] != old.watches.get(quantity):
        return None
    found: dict[int, set[int]] = {}
    bits = new.level + CHUNK_BITS
    for source in sources:
        before = old.rows.get((source.file, quantity), frozenset[Row]())
        for layer, chunk in before ^ new.rows[source.file, quantity]:
            found.setdefault(layer, set()).add(chunk.start >> bits)
    return {layer: frozenset(blocks) for layer, blocks in found.items()}


def _figures(
    old: _State, new: _State, sources: Sequence[Source], quantity: str, changes: Changes
) -> Figures:
    known = old.figures.get(quantity)
    if known is None or changes is None:
        return Figures(new.watches[quantity], new.level).renewed(sources, None)
    return known.renewed(sources, changes) if changes else known


def _series(
    old: _State, new: _State, sources: Sequence[Source], info: LayerInfo, changes: Changes
) -> Series:
    known, watch = old.series.get((info.quantity, info.index)), new.watches[info.quantity]
    if known is None or changes is None:
        info = next((layer for layer in watch.layers if layer.index == info.index), info)
        return Series(watch, info, new.level).renewed(sources, None)
    return known.renewed(sources, changes)


def _look_same(one: _State, other: _State) -> bool:
    """Whether a reader would see no difference."""
    both = one.watches.keys() & other.watches.keys()
    facts = [(s.run, s.meta.get("status"), s.totals) for s in (one, other)]
    return facts[0] == facts[1] and all(one.watches[q] == other.watches[q] for q in both)


def _remember(asked: dict[Key, Value], key: Key, value: Value, limit: int) -> None:
    """Add what was asked for, the latest last, and forget the earliest."""
    asked.pop(key, None)
    asked[key] = value
    for old in list(asked)[:-limit]:
        asked.pop(old, None)  # another thread may have done so
