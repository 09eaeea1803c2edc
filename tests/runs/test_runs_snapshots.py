"""Snapshots in a run: the newest at or before an epoch, layers in the model's order, damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from convlens.core.snapshots import Confusion, FeatureMaps, Kernels, Mistakes, Probes
from convlens.errors import ArgumentError, RunError
from convlens.runs import RunWriter, create_run, open_run
from convlens.runs.schema import DATABASE
from snapshot_samples import assert_same, every_kind, make_maps


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    writer = create_run(directory=tmp_path / "run")
    yield writer
    writer.close()


def test_every_kind_is_read_as_it_was_written(writer: RunWriter) -> None:
    for snapshot in every_kind():
        writer.write_snapshot(snapshot)
    writer.close()
    run = open_run(writer.path)
    for snapshot in every_kind():
        assert_same(run.snapshot(type(snapshot), snapshot.layer), snapshot)
        assert run.snapshot_epochs(type(snapshot), snapshot.layer) == [snapshot.epoch]
        assert run.snapshot_layers(type(snapshot)) == [snapshot.layer]


def test_the_newest_at_or_before_an_epoch(writer: RunWriter) -> None:
    for epoch in (4, -1, 1):
        writer.write_snapshot(make_maps(epoch=epoch, seed=epoch + 9))
    writer.flush(wait=True)
    run = open_run(writer.path)
    assert run.snapshot_epochs(FeatureMaps, "0.0") == [-1, 1, 4]
    for asked, found in ((-1, -1), (0, -1), (1, 1), (3, 1), (4, 4), (99, 4), (None, 4)):
        expected = make_maps(epoch=found, seed=found + 9)
        assert_same(run.snapshot(FeatureMaps, "0.0", asked), expected)
    assert run.snapshot(FeatureMaps, "0.0", epoch=-2) is None


def test_what_was_not_kept_is_none(writer: RunWriter) -> None:
    writer.write_snapshot(make_maps())
    writer.flush(wait=True)
    run = open_run(writer.path)
    assert run.snapshot(FeatureMaps, "0.1") is run.snapshot(Kernels, "0.0") is None
    assert run.snapshot(Probes) is None
    assert run.snapshot_epochs(Confusion) == run.snapshot_layers(Mistakes) == []


@pytest.mark.parametrize("flushed", [False, True])
def test_the_same_key_replaces_and_its_layer_keeps_its_place(
    writer: RunWriter, flushed: bool
) -> None:
    names = ["stem", "layer10", "layer2", "head"]
    for name in names:
        writer.write_snapshot(make_maps(name))
    if flushed:
        writer.flush(wait=True)
    writer.write_snapshot(make_maps("layer10", seed=5))
    for name in reversed(names):
        writer.write_snapshot(make_maps(name, epoch=3))
    writer.flush(wait=True)
    run = open_run(writer.path)
    assert run.snapshot_layers(FeatureMaps) == names
    assert_same(run.snapshot(FeatureMaps, "layer10", -1), make_maps("layer10", seed=5))
    assert run.snapshot_epochs(FeatureMaps, "layer10") == [-1, 3]


def test_it_is_seen_after_a_flush_only(writer: RunWriter) -> None:
    writer.write_snapshot(make_maps())
    run = open_run(writer.path)
    assert run.snapshot(FeatureMaps, "0.0") is None
    writer.flush(wait=True)
    assert_same(run.snapshot(FeatureMaps, "0.0"), make_maps())


def test_what_cannot_be_recorded_is_refused_at_once(writer: RunWriter) -> None:
    odd = make_maps()
    object.__setattr__(odd, "n_channels", np.int64(8))
    with pytest.raises(ArgumentError, match=r"FeatureMaps for layer '0\.0' cannot be recorded \("):
        writer.write_snapshot(odd)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("facts", "[1]"),
        ("facts", "{"),
        ("facts", '{"n_channels": 8}'),
        ("facts", b"\xff"),
        ("payload", b"no arrays"),
        ("payload", "text"),
    ],
)
def test_a_damaged_row_is_a_sentence(writer: RunWriter, column: str, value: object) -> None:
    writer.write_snapshot(make_maps())
    writer.close()
    database = sqlite3.connect(writer.path / DATABASE)
    database.execute(f"UPDATE snapshots SET {column} = ?", (value,))
    database.commit()
    database.close()
    with pytest.raises(RunError, match="damaged"):
        open_run(writer.path).snapshot(FeatureMaps, "0.0")


def test_arrays_of_another_kind_are_a_sentence(writer: RunWriter) -> None:
    writer.write_snapshot(make_maps())
    writer.close()
    database = sqlite3.connect(writer.path / DATABASE)
    database.execute("UPDATE snapshots SET kind = 'kernels'")
    database.commit()
    database.close()
    with pytest.raises(RunError, match=r"run\.db' is damaged or incomplete \(the key \('kernels'"):
        open_run(writer.path).snapshot(Kernels, "0.0")
