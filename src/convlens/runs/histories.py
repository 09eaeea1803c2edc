"""The histories of watched series: the chunks of every rank, added up at one level of time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convlens.core.columns import (
    AnyColumns,
    BucketLayout,
    Columns,
    Ints,
    coarsen,
    concatenate,
    decode,
    empty_columns,
)
from convlens.core.histories import LayerHistory, LayerInfo, UpdateHistory
from convlens.errors import RunError
from convlens.runs.database import Transaction, cannot_open, reading
from convlens.runs.schema import DATABASE, parsed, rank_database

MOST_LAYERS, MOST_LEVEL = 1 << 24, 56
"""What no run reaches: indices of layers, and the level of columns of 2^56 steps."""


def read_layers(record: Transaction, quantity: str) -> list[LayerInfo]:
    """What was watched of a quantity, in order of its index."""
    found = [
        LayerInfo(index, name, kind, bool(relu), series)
        for (series, index), (name, kind, relu) in record.rows("layers")
        if series == quantity
    ]
    if not all(0 <= info.index < MOST_LAYERS for info in found):
        raise ValueError(f"a layer of {quantity!r} has an index that cannot be")
    return sorted(found, key=lambda info: info.index)


def read_histories(
    record: Transaction, series: Sequence[LayerInfo], others: Sequence[Path]
) -> list[LayerHistory]:
    """The histories of some series.

    All columns are brought to the highest level that occurs in the run, so that all series agree in
    time, also while the writer is about to merge their chunks one after the other.

    Args:
        record: the run's own file.
        series: which histories, of quantities that were watched alike.
        others: the files of further ranks.
    """
    if not series:
        return []
    layout, eps, sample = read_settings(record, series[0].quantity)
    level, columns = _read_file(record, series, layout)
    for file in others:
        with reading(file) as other:
            its_level, more = _read_file(other, series, layout)
        level = max(level, its_level)
        columns = [_added(mine, its, level) for mine, its in zip(columns, more, strict=True)]
    return [
        LayerHistory(info, coarsen(found, level), layout, eps, sample)
        for info, found in zip(series, columns, strict=True)
    ]


def read_settings(record: Transaction, quantity: str) -> tuple[BucketLayout, float, float]:
    """How a quantity was watched: the buckets, the bound of near zero, the share of images."""
    text, eps, sample = dict(record.rows("watch"))[(quantity,)]
    layout = parsed(text)
    if not isinstance(layout, dict) or not all(type(n) is int for n in layout.values()):
        raise ValueError(f"the buckets {text!r} cannot be")
    bits, low, high = layout["mantissa_bits"], layout["min_exponent"], layout["max_exponent"]
    if not (0 <= bits <= 10 and -1100 <= low < high <= 1100):
        raise ValueError(f"the buckets {text!r} cannot be")
    return BucketLayout(**layout), eps, sample


class Chunk(NamedTuple):
    """Where a chunk of a series lies in time, and its checksum.

    Attributes:
        start: the first step of its span.
        level: a column's steps share ``step >> level``.
        crc: the row's checksum, another one whenever the row is.
    """

    start: int
    level: int
    crc: int


def read_chunks(record: Transaction) -> dict[tuple[str, int], list[Chunk]]:
    """The chunks of each series, by quantity and layer, in order of time; no payload is read."""
    found: dict[tuple[str, int], list[Chunk]] = {}
    for (quantity, layer, start, level), (_, _, crc) in record.keys("columns").items():
        if not (0 <= level <= MOST_LEVEL and start >= 0):
            raise ValueError(f"columns of level {level} from step {start} on cannot be")
        found.setdefault((quantity, layer), []).append(Chunk(start, level, crc))
    for chunks in found.values():
        chunks.sort()
    return found


def read_payload(record: Transaction, quantity: str, layer: int, chunk: Chunk) -> bytes:
    """The columns of a chunk, as `convlens.core.columns.encode` writes them."""
    found = record.values("columns", (quantity, layer, chunk.start, chunk.level))
    if found is None:
        raise ValueError(f"the columns of layer {layer} from step {chunk.start} on are missing")
    return found[0]


def read_level(record: Transaction) -> int:
    """The highest level of any columns in a file, 0 if there are none."""
    return max((key[3] for key in record.keys("columns")), default=0)


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
    found = {
        int(match[1]): path
        for name, path in entries.items()
        if (match := _RANK.fullmatch(name)) and path.is_file()  # and no pipe, which would block
    }
    missing = next((rank for rank in range(1, ranks or 1) if rank not in found), None)
    if missing is not None and complete:
        raise RunError(
            f"{str(folder / rank_database(missing))!r} is missing, but {ranks} ranks wrote this "
            f"run, each what it saw; copy the file into the folder of {DATABASE} again."
        )
    return [found[rank] for rank in sorted(found)]


_RANK = re.compile(r"rank-([1-9]\d*)\.db")


def _read_file(
    record: Transaction, series: Sequence[LayerInfo], layout: BucketLayout
) -> tuple[int, list[Columns]]:
    """The highest level in one file, and the columns of these series at it."""
    level, empty = read_level(record), empty_columns(layout.size, 0)
    chunks, found = read_chunks(record), list[Columns]()
    for info in series:
        own = chunks.get((info.quantity, info.index), [])
        payloads = (read_payload(record, info.quantity, info.index, chunk) for chunk in own)
        found.append(_joined(level, (decode(p, layout.size) for p in payloads), empty))
    return level, found


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
