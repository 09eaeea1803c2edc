"""Snapshots in ``run.db``: one row for a kind, a layer and an epoch."""

from __future__ import annotations

import sqlite3

from convlens.snapshots import S, Snapshot, decode


def read_snapshot(
    database: sqlite3.Connection, kind: type[S], layer: str, epoch: int | None
) -> S | None:
    """The newest of a kind and layer at or before an epoch; None means the newest of all."""
    row = database.execute(
        "SELECT epoch, facts, payload FROM snapshots WHERE kind = ?1 AND layer = ?2 "
        "AND (?3 IS NULL OR epoch <= ?3) ORDER BY epoch DESC LIMIT 1",
        (kind.KIND, layer, epoch),
    ).fetchone()
    if row is None:
        return None
    taken, facts, payload = row
    return decode(kind, taken, layer, facts, payload)


def read_epochs_of(database: sqlite3.Connection, kind: type[Snapshot], layer: str) -> list[int]:
    """The epochs of which there is a snapshot of a kind and layer."""
    rows = database.execute(
        "SELECT epoch FROM snapshots WHERE kind = ? AND layer = ? ORDER BY epoch",
        (kind.KIND, layer),
    )
    return [epoch for (epoch,) in rows]


def read_layers_of(database: sqlite3.Connection, kind: type[Snapshot]) -> list[str]:
    """The layers of which there is a snapshot of a kind, in the order of their first writing."""
    rows = database.execute(
        "SELECT layer FROM snapshots WHERE kind = ? GROUP BY layer ORDER BY min(id)", (kind.KIND,)
    )
    return [layer for (layer,) in rows]
