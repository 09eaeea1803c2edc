"""Snapshots in ``run.db``: one row for a kind, a layer and an epoch."""

from __future__ import annotations

from convlens.core.snapshots import S, Snapshot, decode
from convlens.runs.database import Transaction


def read_snapshot(record: Transaction, kind: type[S], layer: str, epoch: int | None) -> S | None:
    """The newest of a kind and layer at or before an epoch; None means the newest of all."""
    epochs = read_epochs_of(record, kind, layer)
    taken = max((e for e in epochs if epoch is None or e <= epoch), default=None)
    values = None if taken is None else record.values("snapshots", (kind.KIND, layer, taken))
    if taken is None or values is None:
        return None
    facts, payload = values
    return decode(kind, taken, layer, facts, payload)


def read_epochs_of(record: Transaction, kind: type[Snapshot], layer: str) -> list[int]:
    """The epochs of which there is a snapshot of a kind and layer."""
    found = record.keys("snapshots")
    return sorted(
        epoch for name, its_layer, epoch in found if (name, its_layer) == (kind.KIND, layer)
    )


def read_layers_of(record: Transaction, kind: type[Snapshot]) -> list[str]:
    """The layers of which there is a snapshot of a kind, in the order of their first writing."""
    found = sorted((mark, key) for key, mark in record.keys("snapshots").items())
    return list(dict.fromkeys(layer for _, (name, layer, _) in found if name == kind.KIND))
