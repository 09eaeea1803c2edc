"""Files that are damaged or hostile: the same numbers or a sentence, and bounds before work."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import tracemalloc
import zlib
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs_data import SMALL, make_columns, make_epoch, make_steps, put

from convlens._api import report
from convlens.core.encoding import pack
from convlens.core.histories import LayerInfo
from convlens.core.records import Picture
from convlens.core.snapshots import Confusion, FeatureMaps, Snapshot
from convlens.errors import RunError
from convlens.runs import Run, create_run, join_run, list_runs, open_run
from convlens.runs.follower import RunFollower
from convlens.runs.schema import DATABASE, TABLES
from convlens.runs.write_buffer import put_total
from snapshot_samples import every_kind

LAYERS = [
    LayerInfo(0, "a", "Conv2d", True),
    LayerInfo(1, "b", "Linear"),
    LayerInfo(0, "a.weight", "Conv2d", quantity="gradient"),
]


def write_run(folder: Path) -> Path:
    """A finished run with rows in every table."""
    with create_run(directory=folder) as writer:
        writer.write_meta({"seed": 3, "data": {"classes": ["a", "b"]}, "note": "x" * 5000})
        writer.write_layers(LAYERS, SMALL, 0.05)
        for info in LAYERS:
            columns = make_columns(0, 200, channels=6 + info.index, layout=SMALL)
            put(writer, info.index, 0, columns, info.quantity)
        writer.write_steps(make_steps(0, 1500))
        for epoch in range(3):
            writer.write_epoch(make_epoch(epoch))
        for epoch in range(2):
            images = np.full((2, 9, 9), 40 * epoch, np.uint8)
            writer.write_picture(Picture("batch", epoch, images, ["1", "2"]))
        for snapshot in every_kind():
            writer.write_snapshot(snapshot)
    return folder


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("intact") / "run")


def digest(value: Any) -> str:
    """What differs whenever anything in it does, arrays to the last bit."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{digest(v)}" for key, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(digest, value)) + "]"
    if hasattr(value, "__dataclass_fields__"):
        return digest([getattr(value, f.name) for f in fields(value)])
    return repr(value)


def read(folder: Path) -> dict[str, str]:
    """Everything that can be read of a run: by its name what it is, or that it cannot be read."""
    run, found = Run(folder), dict[str, str]()

    def snapshots(kind: type[Snapshot]) -> list[Any]:
        layers = run.snapshot_layers(kind)
        epochs = [run.snapshot_epochs(kind, layer) for layer in layers]
        return [layers, epochs, [run.snapshot(kind, layer) for layer in layers]]

    ways = {
        "open": lambda: open_run(folder).name,
        "meta": lambda: run.meta,
        "steps": lambda: run.steps,
        "curves": lambda: [run.curves(50), run.curves(10_000)],
        "epochs": lambda: run.epochs,
        "record": run.record,
        "gradients": lambda: [run.layers_of("gradient"), run.history(0, "gradient")],
        "pictures": run.pictures,
        "snapshots": lambda: [snapshots(kind) for kind in (type(s) for s in every_kind())],
        "followed": lambda: followed(run),
    }
    for name, way in ways.items():
        try:
            found[name] = digest(way())
        except RunError as error:
            assert str(folder) in str(error) or "Restore run.db" in str(error)  # noqa: PT017
            found[name] = "cannot be read"
    (info,) = list_runs(folder.parent)
    found["listed"] = "cannot be read" if info.status == "unreadable" else digest(info)
    return found


def followed(run: Run) -> list[Any]:
    follower = RunFollower(run)
    figures = [follower.figures(quantity) for quantity in ("activation", "gradient")]
    return [figures, follower.history(1), follower.curves(50), dict(follower.meta), follower.steps]


def flips(file: Path) -> list[int]:
    """Bits all over a file: of its header, of each page's, and drawn from everything."""
    size = file.stat().st_size
    rng = np.random.default_rng(0)
    header = rng.choice(100 * 8, 40, replace=False)
    of_pages = [page * 8 + bit for page in range(0, size, 4096) for bit in rng.choice(12 * 8, 2)]
    return [*header.tolist(), *of_pages, *rng.choice(size * 8, 120, replace=False).tolist()]


def test_a_flipped_bit_gives_the_same_numbers_or_a_sentence(intact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "run"
    shutil.copytree(intact, folder)
    expected, file = read(folder), folder / DATABASE
    assert "cannot be read" not in expected.values()
    content, unread = file.read_bytes(), 0
    for at in flips(file):
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        file.write_bytes(damaged)
        found = read(folder)
        unread += "cannot be read" in found.values()
        for name, value in found.items():
            assert value in (expected[name], "cannot be read"), (at, name)
    assert unread > 100


def test_a_report_of_a_damaged_run_is_the_same_or_a_sentence(intact: Path, tmp_path: Path) -> None:
    shutil.copytree(intact, tmp_path / "run")
    file, content = tmp_path / "run" / DATABASE, (intact / DATABASE).read_bytes()

    def shown() -> str:
        os.utime(file, (1e9, 1e9))  # the report says when it was written
        return re.sub(r"\bp\d+\b|[0-9a-f-]{36}", "", report(tmp_path / "run").read_text())

    expected = shown()
    for at in np.random.default_rng(1).choice(len(content) * 8, 4, replace=False).tolist():
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        file.write_bytes(damaged)
        try:
            found = shown()
        except RunError:
            continue
        assert found == expected


# ---- rows that are no such rows -----------------------------------------------------------------


class Editor:
    """Somebody who writes to a run's file and knows how its checksums are made."""

    def __init__(self, folder: Path) -> None:
        self.database = sqlite3.connect(folder / DATABASE, isolation_level=None)

    def set(self, name: str, key: tuple[Any, ...], *values: Any) -> None:
        """Put values under a key, with the right checksums."""
        table = TABLES[name]
        self.database.execute(f"DELETE FROM {name} WHERE {table.same_key}", key)
        row = (None, *key, *table.checksums(key, values), *values)
        self.database.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)
        put_total(self.database, table)

    def __enter__(self) -> Editor:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    shutil.copytree(intact, tmp_path / "runs" / "run")
    return tmp_path / "runs" / "run"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("layer = 1 - layer", "the key .* is not what was written"),
        ("payload = (SELECT max(payload) FROM columns)", "the row .* is not what was written"),
        ("crc = crc + 1", "rows of the table columns are missing"),
        ("id = id + 1000", "rows of the table columns are missing"),
    ],
)
def test_columns_under_another_key_are_found(folder: Path, change: str, words: str) -> None:
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        database.execute(f"UPDATE columns SET {change} WHERE quantity = 'activation'")
    for way in (lambda run: run.record(), lambda run: RunFollower(run).figures()):
        with pytest.raises(RunError, match=rf"run\.db' is damaged or incomplete \({words}"):
            way(open_run(folder))


@pytest.mark.parametrize("name", ["columns", "steps", "epochs", "snapshots", "layers", "meta"])
def test_a_row_that_is_gone_is_missed(folder: Path, name: str) -> None:
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        database.execute(f"DELETE FROM {name} WHERE id = (SELECT max(id) FROM {name})")
    found = read(folder)
    assert "cannot be read" in found.values()
    assert found[{"layers": "record", "columns": "record"}.get(name, name)] == "cannot be read"


DEEP = "[" * 200 + "]" * 200


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("epochs", (0,), (json.dumps({"metrics": 5}),)),
        ("epochs", (0,), (json.dumps({"epoch": "text"}),)),
        ("epochs", (7,), (json.dumps({**vars(make_epoch(7)), "metrics": {"accuracy": "9"}}),)),
        ("epochs", (7,), (json.dumps({**vars(make_epoch(7)), "first_step": "x"}),)),
        ("epochs", (7,), (json.dumps({**vars(make_epoch(7)), "more": 1}),)),
        ("epochs", (7,), (json.dumps(vars(make_epoch(8))),)),
        ("epochs", (7,), (DEEP,)),
        ("epochs", ("text",), (json.dumps(vars(make_epoch(0))),)),
        ("meta", ("status",), ("5",)),
        ("meta", ("created",), ("{}",)),
        ("meta", ("ranks",), ('"many"',)),
        ("meta", ("deep",), (DEEP,)),
        ("meta", ("deeper",), ("[" * 100_000,)),
        ("meta", ("broken",), ("{",)),
        ("meta", ("bytes",), (b"{}",)),
    ],
)
def test_a_row_that_cannot_be_is_a_sentence_and_hides_no_other_run(
    folder: Path, name: str, key: tuple[Any, ...], values: tuple[Any, ...]
) -> None:
    write_run(folder.parent / "other")
    with Editor(folder) as editor:
        editor.set(name, key, *values)
    with pytest.raises(RunError, match=r"run\.db' is damaged or incomplete \("):
        open_run(folder).facts()
    found = {info.name: info for info in list_runs(folder.parent)}
    assert (found["run"].status, found["other"].status) == ("unreadable", "finished")
    assert str(folder) in (found["run"].problem or "")


def steps_arrays(**changes: np.ndarray) -> bytes:
    steps = make_steps(0, 8)
    arrays = {"step": steps.step, "epoch": steps.epoch, "loss": steps.loss, "wall_s": steps.wall_s}
    return pack(arrays | changes)


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("steps", (0,), (b"nonsense",)),
        ("steps", (0,), (pack({"step": np.arange(3)}),)),
        ("steps", (0,), (steps_arrays(loss=np.zeros(7)),)),
        ("steps", (0,), (steps_arrays(loss=np.zeros((8, 2))),)),
        ("steps", (0,), (steps_arrays(step=np.zeros(8)),)),
        ("steps", (-1,), (steps_arrays(),)),
        ("columns", ("activation", 0, 0, 0), (b"nonsense",)),
        ("columns", ("activation", 0, 0, 0), (steps_arrays(),)),
        ("columns", ("activation", 0, 0, 2**40), (steps_arrays(),)),
        ("columns", ("activation", 0, 0, -1), (steps_arrays(),)),
        ("columns", ("activation", 0, -64, 0), (steps_arrays(),)),
        ("layers", ("activation", -1), ("x", "Conv2d", 0)),
        ("layers", ("activation", 2**40), ("x", "Conv2d", 0)),
        ("watch", ("activation",), ("{}", 0.05, 1.0)),
        ("watch", ("activation",), ("5", 0.05, 1.0)),
        ("watch", ("activation",), ('{"mantissa_bits": 40}', 0.05, 1.0)),
        (
            "watch",
            ("activation",),
            ('{"mantissa_bits": 30, "min_exponent": -9, "max_exponent": 9}', 0.05, 1.0),
        ),
    ],
)
def test_numbers_that_cannot_be_are_a_sentence(
    folder: Path, name: str, key: tuple[Any, ...], values: tuple[Any, ...]
) -> None:
    with Editor(folder) as editor:
        editor.set(name, key, *values)
    assert read(folder)["record"] == "cannot be read"
    assert read(folder)["followed"] == "cannot be read"


def test_snapshots_and_pictures_that_cannot_be_are_sentences(folder: Path) -> None:
    with Editor(folder) as editor:
        arrays = {"counts": np.zeros((2, 2), np.float32)}
        editor.set("snapshots", ("confusion", "", 5), '{"classes": ["a", "b"]}', pack(arrays))
        editor.set("pictures", ("batch", 0), '["x"]', pack({"images": np.zeros(3, np.uint8)}))
        facts = '{"n_channels": "8", "grid": [8, 10]}'
        maps = next(s for s in every_kind() if isinstance(s, FeatureMaps))
        editor.set("snapshots", ("maps", "x", 0), facts, pack(
            {n: getattr(maps, n) for n in ("maps", "low", "high", "channels")}
        ))  # fmt: skip
    run = open_run(folder)
    with pytest.raises(
        RunError, match=r"damaged .*counts of 'confusion' is float32, expected Ints"
    ):
        run.snapshot(Confusion)
    with pytest.raises(RunError, match=r"damaged .*n_channels of 'maps' is '8', expected int"):
        run.snapshot(FeatureMaps, "x")
    with pytest.raises(RunError, match=r"damaged .*the picture 'batch' of epoch 0 is none"):
        run.pictures("batch")


# ---- bounds before work -------------------------------------------------------------------------


def test_only_our_own_tables_are_read(folder: Path) -> None:
    endless = (
        "CREATE VIEW meta AS WITH RECURSIVE more(key) AS (SELECT 1 UNION ALL SELECT key FROM more) "
        "SELECT key, 0 AS id, 0 AS key_crc, 0 AS crc, 'x' AS value FROM more"
    )
    for statements in (
        ["DROP TABLE meta", endless],
        ["CREATE TABLE more (x)"],
        ["CREATE TRIGGER t AFTER INSERT ON meta BEGIN SELECT 1; END"],
        ["CREATE INDEX more ON meta (value)"],
    ):
        copy = folder.parent / "copy"
        shutil.copytree(folder, copy)
        with closing(sqlite3.connect(copy / DATABASE)) as database:
            for statement in statements:
                database.execute(statement)
        with pytest.raises(RunError, match=r"\(its tables are not those of a run\)"):
            open_run(copy).facts()
        assert "unreadable" in [info.status for info in list_runs(folder.parent)]
        shutil.rmtree(copy)


def test_a_packet_that_would_fill_the_memory_is_refused(folder: Path) -> None:
    bomb = (1 << 28).to_bytes(4, "little") + zlib.compress(bytes(1 << 28))
    for key in (("columns", "activation", 0, 0, 0), ("steps", 0), ("pictures", "batch", 0)):
        with Editor(folder) as editor:
            values = ("[]", bomb) if key[0] == "pictures" else (bomb,)
            editor.set(key[0], key[1:], *values)
    run = open_run(folder)
    tracemalloc.start()
    for way in (run.record, lambda: RunFollower(run).figures(), lambda: run.history(0)):
        with pytest.raises(RunError, match=r"once inflated, expected at most"):
            way()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_any_number_of_ranks_takes_no_time(folder: Path) -> None:
    with Editor(folder) as editor:
        editor.set("meta", ("ranks",), "1000000000")
    with pytest.raises(RunError, match=r"rank-1\.db' is missing, but 1000000000 ranks wrote"):
        open_run(folder).record()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    with create_run("ddp", tmp_path, ranks=2) as writer, join_run(writer.path, 1) as other:
        other.flush(wait=True)
        writer.write_layers(LAYERS, SMALL, 0.05)
    folder = writer.path
    (folder / "rank-1.db").unlink()
    os.mkfifo(folder / "rank-1.db")
    with pytest.raises(RunError, match=r"rank-1\.db' is missing"):
        open_run(folder).record()
    (folder / "rank-1.db").unlink()
    os.mkfifo(folder / f"{DATABASE}-wal")
    with pytest.raises(RunError, match=r"run\.db-wal is not a file"):
        open_run(folder)
    (folder / f"{DATABASE}-wal").unlink()
    os.mkfifo(folder / "run.lock")
    assert open_run(folder).meta["status"] == "finished"
    (folder / DATABASE).unlink()
    os.mkfifo(folder / DATABASE)
    with pytest.raises(RunError, match="has no run"):
        open_run(folder)
    assert list_runs(tmp_path) == []
