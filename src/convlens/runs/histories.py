"""The histories of watched series: the chunks of every rank, added up at one level of time."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from convlens.errors import RunError
from convlens.histories import LayerHistory, LayerInfo, UpdateHistory
from convlens.runs.database import cannot_open, reading
from convlens.runs.schema import DATABASE, rank_database
from convlens.sketch import (
    AnyColumns,
    BucketLayout,
    Columns,
    Ints,
    coarsen,
    concatenate,
    decode,
    empty_columns,
)


def read_layers(database: sqlite3.Connection, quantity: str) -> list[LayerInfo]:
    """What was watched of a quantity, in order of its index."""
    rows = database.execute(
        "SELECT layer, name, kind, feeds_relu FROM layers WHERE quantity = ? ORDER BY layer",
        (quantity,),
    )
    return [LayerInfo(index, name, kind, bool(relu), quantity) for index, name, kind, relu in rows]


def read_histories(
    database: sqlite3.Connection, series: Sequence[LayerInfo], others: Sequence[Path]
) -> list[LayerHistory]:
    """The histories of some series.

    All columns are brought to the highest level that occurs in the run, so that all series agree in
    time, also while the writer is about to merge their chunks one after the other.

    Args:
        database: the run's own file.
        series: which histories, of quantities that were watched alike.
        others: the files of further ranks.
    """
    if not series:
        return []
    layout, eps, sample = read_settings(database, series[0].quantity)
    level, columns = _read_file(database, series, layout)
    for file in others:
        with reading(file) as other:
            its_level, more = _read_file(other, series, layout)
        level = max(level, its_level)
        columns = [_added(mine, its, level) for mine, its in zip(columns, more, strict=True)]
    return [
        LayerHistory(info, coarsen(found, level), layout, eps, sample)
        for info, found in zip(series, columns, strict=True)
    ]


def read_settings(database: sqlite3.Connection, quantity: str) -> tuple[BucketLayout, float, float]:
    """How a quantity was watched: the buckets, the bound of near zero, the share of images."""
    layout, eps, sample = database.execute(
        "SELECT layout, eps, sample FROM watch WHERE quantity = ?", (quantity,)
    ).fetchone()
    return BucketLayout(**json.loads(layout)), eps, sample


def read_level(database: sqlite3.Connection) -> int:
    """The highest level of any columns in a file, 0 if there are none."""
    (level,) = database.execute("SELECT max(level) FROM columns").fetchone()
    return level or 0


def add_up(files: Sequence[tuple[int, Iterable[AnyColumns]]], empty: AnyColumns) -> AnyColumns:
    """The columns of one series in several files, brought to the highest level of any.

    Args:
        files: of each file its level, and chunks in order of time, none above that level.
        empty: no columns, for a file without any.
    """
    (level, parts), *others = files
    columns = _joined(level, parts, empty)
    for its_level, its_parts in others:
        level = max(level, its_level)
        columns = _added(columns, _joined(its_level, its_parts, empty), level)
    return coarsen(columns, level)


def aligned(update: LayerHistory, parameter: LayerHistory) -> UpdateHistory:
    """Both over the columns that both have."""
    first = update.first_step, parameter.first_step
    _, mine, its = np.intersect1d(*first, assume_unique=True, return_indices=True)
    return UpdateHistory(_some(update, mine), _some(parameter, its))


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
    found = {int(match[1]): entries[name] for name in entries if (match := _RANK.fullmatch(name))}
    missing = [rank for rank in range(1, ranks or 1) if rank not in found]
    if missing and complete:
        raise RunError(
            f"{str(folder / rank_database(missing[0]))!r} is missing, but {ranks} ranks wrote this "
            f"run, each what it saw; copy the file into the folder of {DATABASE} again."
        )
    return [found[rank] for rank in sorted(found)]


_RANK = re.compile(r"rank-([1-9]\d*)\.db")


def _read_file(
    database: sqlite3.Connection, series: Sequence[LayerInfo], layout: BucketLayout
) -> tuple[int, list[Columns]]:
    """The highest level in one file, and the columns of these series at it."""
    level = read_level(database)
    return level, [_columns(database, info, level, layout) for info in series]


def _columns(
    database: sqlite3.Connection, info: LayerInfo, level: int, layout: BucketLayout
) -> Columns:
    rows = database.execute(
        "SELECT payload FROM columns WHERE quantity = ? AND layer = ? ORDER BY start, level",
        (info.quantity, info.index),
    )
    return _joined(
        level,
        (decode(payload, layout.size) for (payload,) in rows),
        empty_columns(layout.size, 0),
    )


def _joined(level: int, parts: Iterable[AnyColumns], empty: AnyColumns) -> AnyColumns:
    """Chunks one after the other, at one level."""
    # Chunk by chunk, so that a long run never lies in memory at full width.
    coarse = [coarsen(part, level) for part in parts]
    return coarsen(concatenate(coarse), level) if coarse else empty


def _added(mine: AnyColumns, its: AnyColumns, level: int) -> AnyColumns:
    """The sum of what two ranks saw, however far either has come."""
    both = concatenate([mine, its])
    order = np.argsort(both.first_step, kind="stable")
    return coarsen(both[order], level)


def _some(history: LayerHistory, rows: Ints) -> LayerHistory:
    return replace(history, columns=history.columns[rows])
