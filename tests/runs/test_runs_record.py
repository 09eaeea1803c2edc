"""Writing and reading a run: what goes in comes out, at any time, after any end."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs_data import (
    LAYOUT,
    assert_same,
    make_columns,
    make_epoch,
    make_steps,
    put,
)

from convlens.core.buckets import BucketLayout
from convlens.core.columns import coarsen, concatenate
from convlens.core.histories import LayerInfo
from convlens.core.layer_histories import LayerHistories, UpdateHistories
from convlens.core.records import Picture, RecordSink
from convlens.core.training_curves import TrainingCurves
from convlens.errors import ArgumentError, ConvlensWarning, LayerNotFoundError, RunError
from convlens.runs import RunWriter, create_run, list_runs, open_run
from convlens.runs.lock import CRASHED
from convlens.runs.schema import DATABASE


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    writer = create_run("mnist", tmp_path)
    yield writer
    writer.close()


def test_everything_comes_back(writer: RunWriter) -> None:
    sink: RecordSink = writer
    layers = [LayerInfo(0, "0.0", "Conv2d", True), LayerInfo(1, "1", "Linear")]
    layout = BucketLayout(mantissa_bits=2)
    columns = make_columns(0, 7, layout=layout)
    pictures = [
        Picture("batch", -1, np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4), ["3", "<b>"]),
        Picture("worst", 0, np.full((1, 2, 2, 3), 7, np.uint8), ["4, predicted 9"]),
    ]
    sink.write_meta({"seed": 3, "data": {"name": "mnist", "classes": ["é", "\ud800"]}})
    sink.write_layers(layers, layout, 0.1)
    put(sink, 1, 0, columns)
    sink.write_steps(make_steps(0, 20))
    sink.write_epoch(make_epoch(0))
    sink.write_epoch(make_epoch(1, train_loss=math.nan, valid_loss=None))
    for picture in pictures:
        sink.write_picture(picture)
    writer.flush(wait=True)

    run = open_run(writer.path)
    assert run.name == "mnist-0001"
    assert run.meta["seed"] == 3
    assert run.meta["data"] == {"name": "mnist", "classes": ["é", "\ud800"]}
    assert run.meta["status"] == "running"
    assert run.layers == layers
    history = run.history(1)
    assert (history.eps, history.layout.mantissa_bits) == (0.1, 2)
    assert_same(history.columns, columns)
    assert len(run.history(0)) == 0
    steps = run.steps
    expected = make_steps(0, 20)
    np.testing.assert_array_equal(steps.loss, expected.loss)
    np.testing.assert_array_equal(steps.hypers["lr"], expected.hypers["lr"])
    assert list(steps.hypers) == ["lr", "momentum"]
    assert run.epochs[0] == make_epoch(0)
    assert math.isnan(run.epochs[1].train_loss)
    assert run.epochs[1].valid_loss is None
    assert [(p.name, p.epoch, list(p.captions)) for p in run.pictures()] == [
        ("batch", -1, ["3", "<b>"]),
        ("worst", 0, ["4, predicted 9"]),
    ]
    np.testing.assert_array_equal(run.pictures("worst")[0].images, pictures[1].images)
    record = run.record()
    assert (len(record.steps), len(record.epochs), len(record.layers)) == (20, 2, 2)


def test_a_flush_is_one_transaction_and_nothing_shows_before(writer: RunWriter) -> None:
    run = open_run(writer.path)
    writer.write_steps(make_steps(0, 3))
    writer.write_epoch(make_epoch(0))
    assert len(run.steps) == 0
    assert run.epochs == []
    writer.flush(wait=True)
    assert len(run.steps) == 3
    assert len(run.epochs) == 1


def test_a_failed_flush_leaves_nothing_behind_and_is_said(writer: RunWriter) -> None:
    writer.write_steps(make_steps(0, 3))
    with sqlite3.connect(writer.path / DATABASE) as other:
        other.execute("ALTER TABLE epochs RENAME TO elsewhere")
    writer.write_epoch(make_epoch(0))
    with pytest.warns(
        ConvlensWarning, match=r"run\.db' cannot be written \(no such table: epochs\)"
    ):
        writer.flush(wait=True)
    with sqlite3.connect(writer.path / DATABASE) as other:
        assert other.execute("SELECT count(*) FROM steps").fetchone() == (0,)
        other.execute("ALTER TABLE elsewhere RENAME TO epochs")
    other.close()
    with pytest.warns(ConvlensWarning, match=r"run\.db' is written again; nothing was lost"):
        writer.flush(wait=True)
    with closing(sqlite3.connect(writer.path / DATABASE)) as other:
        assert other.execute("SELECT count(*) FROM steps").fetchone() == (1,)
        assert other.execute("SELECT count(*) FROM epochs").fetchone() == (1,)


def test_steps_and_columns_arrive_in_chunks(writer: RunWriter) -> None:
    writer.write_layers([LayerInfo(0, "0", "Conv2d", True)], LAYOUT, 0.05)
    for first in (0, 8, 16):
        writer.write_steps(make_steps(first, 8))
        put(writer, 0, 0, make_columns(0, first + 8))
        writer.flush()
    writer.write_steps(make_steps(0, 0))
    writer.flush(wait=True)
    run = open_run(writer.path)
    assert run.steps.step.tolist() == list(range(24))
    assert run.history(0).first_step.tolist() == list(range(24))


def test_columns_of_several_levels_are_read_at_the_coarsest(writer: RunWriter) -> None:
    writer.write_layers([LayerInfo(0, "a", "Conv2d"), LayerInfo(1, "b", "Conv2d")], LAYOUT, 0.05)
    fine, coarse = make_columns(0, 256), make_columns(256, 3, width=4)
    put(writer, 0, 0, fine)
    put(writer, 0, 2, coarse)
    put(writer, 1, 0, make_columns(0, 24))
    writer.flush(wait=True)
    run = open_run(writer.path)
    assert_same(run.history(0).columns, concatenate([coarsen(fine, 2), coarse]))
    assert run.history(1).first_step.tolist() == [0, 4, 8, 12, 16, 20]
    assert run.history(1).n.sum() == make_columns(0, 24).n.sum()


def test_recorder_and_activation_stats_are_what_plots_draw(writer: RunWriter) -> None:
    writer.write_layers([LayerInfo(0, "0.0", "Conv2d"), LayerInfo(1, "1.0", "Conv2d")], LAYOUT, 0.1)
    put(writer, 0, 0, make_columns(0, 4))
    writer.write_steps(make_steps(0, 4))
    writer.write_epoch(make_epoch(0))
    writer.flush(wait=True)
    run = open_run(writer.path)
    assert isinstance(run.recorder, TrainingCurves)
    assert len(run.recorder.steps) == 4
    assert run.recorder.epochs == run.epochs
    assert isinstance(run.activation_stats, LayerHistories)
    assert run.activation_stats.names == ["0.0", "1.0"]
    assert run.activation_stats.epochs == run.epochs
    assert len(run.activation_stats["0.0"]) == 4
    assert run.activation_stats[-1].layer.name == "1.0"
    with pytest.raises(LayerNotFoundError, match="layer=7 is out of range: there are 2 layers"):
        run.history(7)


def test_each_quantity_has_series_of_its_own(writer: RunWriter) -> None:
    names = ["0.weight", "0.bias"]
    layers = [LayerInfo(0, "0", "Conv2d", True)]
    for quantity in ("gradient", "parameter", "update"):
        layers += [LayerInfo(i, n, "Conv2d", quantity=quantity) for i, n in enumerate(names)]
    writer.write_layers(layers, LAYOUT, 0.05, sample=0.25)
    written = {info: make_columns(10 * i, 70) for i, info in enumerate(layers)}
    for info, columns in written.items():
        # The parameters' last step was not written with the others, as if cut off in between.
        part = columns[: 69 if info.quantity == "parameter" else 70]
        part = replace(part, first_step=np.arange(len(part)), last_step=np.arange(len(part)))
        put(writer, info.index, 0, part, info.quantity)
    writer.flush(wait=True)

    run = open_run(writer.path)
    assert run.layers == run.activation_stats.layers == layers[:1]
    assert run.gradient_stats.layers == layers[1:3]
    assert run.gradient_stats.names == run.update_stats.names == names
    bias = run.gradient_stats["0.bias"]
    assert (bias.layer, bias.sample) == (layers[2], 0.25)
    np.testing.assert_array_equal(bias.mean, written[layers[2]].mean)
    update = run.update_stats["0.weight"]
    assert isinstance(run.update_stats, UpdateHistories)
    assert (update.parameter.layer, update.update.layer) == (layers[3], layers[5])
    assert len(update) == len(update.ratio) == 69
    np.testing.assert_array_equal(update.update.mean, written[layers[5]].mean[:69])
    np.testing.assert_array_equal(update.parameter.mean, written[layers[3]].mean[:69])
    assert run.gradient_stats.epochs == run.update_stats.epochs == []
    with pytest.raises(LayerNotFoundError, match="layer='x' is not among the 2 layers"):
        _ = run.update_stats["x"]
    assert [history.layer.quantity for history in run.record().layers] == ["activation"]


def test_the_same_picture_replaces(writer: RunWriter) -> None:
    for value in (1, 2):
        images = np.full((1, 2, 2), value, np.uint8)
        writer.write_picture(Picture("worst", 4, images, ["x"]))
    writer.flush(wait=True)
    (picture,) = open_run(writer.path).pictures("worst")
    assert picture.images.max() == 2


def test_meta_that_is_not_json_is_refused(writer: RunWriter) -> None:
    with pytest.raises(ArgumentError, match=r"seed=\{1\} cannot be recorded .*give plain JSON"):
        writer.write_meta({"seed": {1}})


def test_context_manager_says_how_it_ended(tmp_path: Path) -> None:
    with create_run("a", tmp_path) as fine:
        pass
    with pytest.raises(ZeroDivisionError), create_run("b", tmp_path) as failed:
        _ = 1 / 0
    with pytest.raises(KeyboardInterrupt), create_run("c", tmp_path) as stopped:
        raise KeyboardInterrupt
    assert open_run(fine.path).meta["status"] == "finished"
    meta = open_run(failed.path).meta
    assert (meta["status"], meta["error"]) == ("failed", "ZeroDivisionError: division by zero")
    assert open_run(stopped.path).meta["status"] == "stopped"


def test_closing_leaves_one_plain_file_and_ends_writing(tmp_path: Path) -> None:
    writer = create_run("mnist", tmp_path)
    writer.write_steps(make_steps(0, 5))
    writer.close()
    writer.close("failed")
    assert [p.name for p in writer.path.iterdir()] == [DATABASE]
    header = (writer.path / DATABASE).read_bytes()[18:20]
    assert header == b"\x01\x01", "still in write-ahead mode"
    assert open_run(writer.path).meta["status"] == "finished"
    for call in (writer.flush, lambda: writer.write_epoch(make_epoch(0))):
        with pytest.raises(RunError, match="is closed and cannot be written to any more"):
            call()


@pytest.mark.parametrize("reading", [True, False])
def test_closing_beside_a_reader_loses_nothing(tmp_path: Path, *, reading: bool) -> None:
    writer = create_run("mnist", tmp_path)
    with sqlite3.connect(writer.path / DATABASE) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM meta").fetchall()
        if not reading:  # but the file stays open
            other.execute("COMMIT")
        writer.write_steps(make_steps(0, 5))
        writer.close()
    other.close()
    assert len(open_run(writer.path).steps) == 5


def test_a_log_that_cannot_be_folded_is_read_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(database: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    writer = create_run("mnist", tmp_path)
    monkeypatch.setattr("convlens.runs.database_writer._into_one_file", full)
    writer.write_steps(make_steps(0, 5))
    writer.close()
    run = open_run(writer.path)
    assert (run.meta["status"], len(run.steps)) == ("finished", 5)


def test_a_database_that_cannot_be_made_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convlens.runs.database_writer.STATEMENTS", ("CREATE NONSENSE",))
    with pytest.raises(RunError, match=r"run\.db' cannot be written \(near .*\); check that"):
        create_run("mnist", tmp_path)
    assert list((tmp_path / "mnist-0001").iterdir()) == [], "what is no run is not left behind"


def test_writing_from_several_threads(writer: RunWriter) -> None:
    def write(first: int) -> None:
        for k in range(20):
            writer.write_steps(make_steps(first + k, 1))
            writer.flush()

    threads = [threading.Thread(target=write, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.flush(wait=True)
    expected = sorted(1000 * i + k for i in range(4) for k in range(20))
    assert sorted(open_run(writer.path).steps.step.tolist()) == expected


WRITE_AND_DIE = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from convlens.core.histories import LayerInfo
from convlens.runs import create_run
from runs_data import LAYOUT, make_columns, make_epoch, make_steps, put
writer = create_run("mnist", {base!r})
writer.write_layers([LayerInfo(0, "0.0", "Conv2d")], LAYOUT, 0.05)
for k in range(3):
    writer.write_steps(make_steps(10 * k, 10))
    put(writer, 0, 0, make_columns(0, 10 * k + 10))
    writer.flush(wait=True)
writer.write_epoch(make_epoch(0))
print("flushed", flush=True)
sys.stdin.read()
"""


@contextmanager
def process_that_writes(base: Path) -> Iterator[subprocess.Popen[str]]:
    source = WRITE_AND_DIE.format(tests=str(Path(__file__).parent), base=str(base))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "flushed\n"
        yield process


def test_reading_while_another_process_writes_and_after_it_is_killed(tmp_path: Path) -> None:
    with process_that_writes(tmp_path) as process:
        run = open_run(tmp_path / "mnist-0001")
        assert len(run.steps) == 30
        process.send_signal(signal.SIGKILL)
        process.wait()
    files = sorted(p.name for p in run.path.iterdir())
    assert files == [DATABASE, DATABASE + "-shm", DATABASE + "-wal", "run.lock"]
    for _ in range(2):
        run = open_run(tmp_path / "mnist-0001")
        assert run.meta["status"] == "crashed"
        assert run.meta["error"] == CRASHED
        assert len(run.steps) == len(run.history(0)) == 30
        assert run.epochs == []
        assert abs(run.last_written.timestamp() - (run.path / DATABASE).stat().st_mtime) < 60


def test_a_killed_run_opens_from_a_copy_without_the_shared_memory_file(tmp_path: Path) -> None:
    with process_that_writes(tmp_path) as process:
        process.kill()
    (tmp_path / "mnist-0001" / (DATABASE + "-shm")).unlink()
    assert len(open_run(tmp_path / "mnist-0001").steps) == 30


@contextmanager
def as_user(user: int) -> Iterator[None]:
    """As another user, where this process is root, to whom permissions mean nothing."""
    before = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(user)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(before)


def as_owner() -> AbstractContextManager[None]:
    return as_user(0)


def as_stranger() -> AbstractContextManager[None]:
    return as_user(65534)


@contextmanager
def read_only(run: Path) -> Iterator[Path]:
    """A copy of the run in a folder that this process may not write to, even if it is root."""
    with tempfile.TemporaryDirectory() as base:
        copy = Path(base) / run.name
        shutil.copytree(run, copy)
        Path(base).chmod(0o755)
        for path in copy.iterdir():
            path.chmod(0o444)
        copy.chmod(0o555)
        try:
            with as_stranger():
                yield copy
        finally:
            copy.chmod(0o755)


def test_a_closed_run_opens_in_a_read_only_folder(tmp_path: Path) -> None:
    writer = create_run("mnist", tmp_path)
    writer.write_steps(make_steps(0, 5))
    writer.close()
    with read_only(writer.path) as copy:
        with pytest.raises(PermissionError):
            (copy / "x").touch()
        assert len(open_run(copy).steps) == 5


def test_a_run_left_in_write_ahead_mode_without_a_log_opens_read_only(tmp_path: Path) -> None:
    writer = create_run("mnist", tmp_path)
    writer.write_steps(make_steps(0, 5))
    writer.close()
    database = sqlite3.connect(writer.path / DATABASE)
    database.execute("PRAGMA journal_mode = WAL")
    database.close()
    with read_only(writer.path) as copy:
        assert [p.name for p in copy.iterdir()] == [DATABASE]
        assert len(open_run(copy).steps) == 5
        assert [p.name for p in copy.iterdir()] == [DATABASE]


def test_a_killed_run_in_a_read_only_folder_is_a_sentence(tmp_path: Path) -> None:
    with process_that_writes(tmp_path) as process:
        process.kill()
    (tmp_path / "mnist-0001" / (DATABASE + "-shm")).unlink()
    with (
        read_only(tmp_path / "mnist-0001") as copy,
        pytest.raises(RunError, match=r"was not closed, .*copy the whole folder to one that you"),
    ):
        open_run(copy)


def test_a_closed_reader_says_so(writer: RunWriter) -> None:
    with open_run(writer.path) as run:
        assert repr(run) == f"Run({str(writer.path)!r}, running, 0 steps, 0 epochs)"
    assert repr(run) == f"Run({str(writer.path)!r}, closed)"
    with pytest.raises(RunError, match="was closed; open it again with open_run"):
        _ = run.meta


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"path='.*nothing' does not exist; give the folder"):
        open_run(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"has no run\.db, so it is not a run; give the folder"):
        open_run(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file, not the folder of a run"):
        open_run(tmp_path / "file")
    create_run("mnist", tmp_path).close()
    with pytest.raises(RunError, match="it holds the runs 'mnist-0001': give one of those"):
        open_run(tmp_path)
    assert open_run(tmp_path / "mnist-0001" / DATABASE).name == "mnist-0001"


def test_opening_a_database_of_something_else(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DATABASE) as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    with pytest.raises(RunError, match=r"not of a run \(application id 0, expected 1129071950\)"):
        open_run(tmp_path)


def test_opening_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"not SQLite at all" * 100)
    with pytest.raises(RunError, match=r"run\.db' is damaged or incomplete \(file is not a data"):
        open_run(tmp_path)


def test_opening_a_run_of_another_version(writer: RunWriter) -> None:
    writer.close()
    database = sqlite3.connect(writer.path / DATABASE)
    database.execute("PRAGMA user_version = 4")
    database.close()
    with pytest.raises(RunError, match=r"another convlens \(schema 4, this one reads 1\); install"):
        open_run(writer.path)


def damage(writer: RunWriter, statement: str, *values: object) -> None:
    writer.close()
    database = sqlite3.connect(writer.path / DATABASE)
    database.execute(statement, values)
    database.commit()
    database.close()


def test_pages_overwritten_are_a_sentence(writer: RunWriter) -> None:
    for first in range(0, 2000, 100):
        writer.write_steps(make_steps(first, 100))
    writer.close()
    file = writer.path / DATABASE
    content = bytearray(file.read_bytes())
    content[4096 * 2 :] = b"\xa5" * (len(content) - 4096 * 2)
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"damaged or incomplete .*; restore it from a copy"):
        open_run(writer.path).record()


def test_columns_of_another_layout_are_damage(writer: RunWriter) -> None:
    writer.write_layers([LayerInfo(0, "0", "Conv2d")], BucketLayout(mantissa_bits=2), 0.05)
    put(writer, 0, 0, make_columns(0, 2))
    writer.flush(wait=True)
    with pytest.raises(RunError, match=r"\(773 buckets where 389 are expected\).*damaged"):
        open_run(writer.path).history(0)


def test_a_run_that_goes_away_while_open(tmp_path: Path) -> None:
    writer = create_run("mnist", tmp_path)
    writer.close()
    run = open_run(writer.path)
    shutil.rmtree(writer.path)
    with pytest.raises(RunError, match=r"run\.db' cannot be opened .*; check that it is still"):
        _ = run.meta
    with pytest.raises(RunError, match=r"run\.db' cannot be opened \(No such file or dir"):
        _ = run.last_written


def test_folders_that_may_not_be_read(tmp_path: Path) -> None:
    create_run("mnist", tmp_path).close()
    with read_only(tmp_path / "mnist-0001") as copy, as_owner():
        copy.chmod(0o000)
        with as_stranger():
            with pytest.raises(RunError, match=r"path='.*' cannot be read \(Permission denied\)"):
                open_run(copy)
            with pytest.raises(RunError, match=r"base='.*' cannot be read \(Permission denied\)"):
                list_runs(copy)
            assert list_runs(copy.parent) == []
        copy.chmod(0o555)


def test_names_count_up_and_are_never_reused(tmp_path: Path) -> None:
    base = tmp_path / "deep" / "runs"
    for expected in ("mnist-0001", "mnist-0002"):
        with create_run("mnist", base) as writer:
            assert writer.path == base / expected
    (base / "mnist-0007").mkdir()
    (base / "mnist-x").mkdir()
    with create_run("mnist", base) as writer:
        assert writer.path.name == "mnist-0008"
    with create_run("<script>alert(1)<", base) as writer:
        assert writer.path.name == "<script>alert(1)<-0001"
        assert open_run(writer.path).name == writer.path.name


def test_two_that_start_together_get_two_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run("mnist", tmp_path).close()
    monkeypatch.setattr("convlens.runs.folder._number", lambda *_: 0)
    with create_run("mnist", tmp_path) as writer:
        assert writer.path.name == "mnist-0002"


@pytest.mark.parametrize("name", ["a/b", "a\\b", "", "  ", "..", ".", "a\nb", "a\0b"])
def test_a_name_that_is_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="cannot be part of a folder's name; give a word"):
        create_run(name, tmp_path)


def test_a_base_that_cannot_hold_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"base='.*file' cannot hold a new run \(File exists\)"):
        create_run("mnist", tmp_path / "file")
    create_run("mnist", tmp_path).close()
    with (
        read_only(tmp_path / "mnist-0001") as folder,
        pytest.raises(RunError, match=r"cannot hold a new run \(Permission denied\); give a fold"),
    ):
        create_run("mnist", folder)


def test_an_exact_directory(tmp_path: Path) -> None:
    with create_run(directory=tmp_path / "a" / "b") as writer:
        assert writer.path == tmp_path / "a" / "b"
    with pytest.raises(RunError, match="already exists and is not empty; give a new folder"):
        create_run(directory=writer.path)
    (tmp_path / "empty").mkdir()
    create_run(directory=tmp_path / "empty").close()
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"directory='.*file' cannot be made \(File exists\)"):
        create_run(directory=tmp_path / "file")
    with pytest.raises(RunError, match=r"run\.db' cannot be written \(File exists\)"):
        RunWriter(writer.path)


def test_listing(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nothing") == []
    with create_run("b", tmp_path) as first:
        first.write_meta({"created": "2026-01-01T00:00:00+00:00"})
        first.write_epoch(make_epoch(0, metrics={"accuracy": 0.99}))
    with create_run("a", tmp_path) as second:
        second.write_meta({"created": "2026-01-02T00:00:00+00:00"})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / DATABASE).write_bytes(b"x" * 500)
    (tmp_path / "other").mkdir()
    broken, one, two = list_runs(tmp_path)
    assert (broken.name, broken.status) == ("broken", "unreadable")
    assert broken.problem is not None
    assert "is damaged" in broken.problem
    assert (one.name, one.status, one.n_epochs, one.metrics) == (
        "b-0001",
        "finished",
        1,
        {"accuracy": 0.99},
    )
    assert (two.name, two.n_epochs, two.metrics) == ("a-0001", 0, {})


def test_reading_and_writing_import_neither_torch_nor_matplotlib() -> None:
    source = (
        "import sys, convlens.runs; "
        "bad = {'torch', 'safetensors', 'matplotlib', 'bokeh', 'convlens.runs.checkpoints'}; "
        "bad &= set(sys.modules); "
        "assert not bad, bad"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", source], check=True, env=environment)
