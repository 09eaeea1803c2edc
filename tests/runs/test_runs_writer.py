"""The thread that writes a run: no step waits for it, nothing is lost, and it ends by itself."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from runs_data import LAYOUT, SMALL, make_columns, make_epoch, make_steps, put, start_python

from convlens.core.columns import coarsen, encode
from convlens.core.histories import LayerInfo
from convlens.core.records import Picture
from convlens.core.steps import StepSeries
from convlens.errors import ConvlensWarning, RunError
from convlens.runs import RunWriter, create_run, list_runs, open_run
from convlens.runs.schema import DATABASE
from convlens.runs.write_buffer import WriteBuffer

STALL_S = 0.005


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    writer = create_run("mnist", tmp_path)
    yield writer
    writer.close()


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Nobody else can write to the run's file, as on a disk that does not answer."""
    with closing(sqlite3.connect(run / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def wait_for_thread(writer: RunWriter) -> None:
    """Until the thread has nothing to do, or tries again later."""
    until(lambda: not writer.background.alive or writer._problem is not None)


def test_a_disk_that_does_not_answer_keeps_no_step_waiting(writer: RunWriter) -> None:
    writer.write_layers([LayerInfo(0, "0", "Conv2d")], LAYOUT, 0.05)
    writer.flush(wait=True)
    payloads = [encode(make_columns(0, k + 1)) for k in range(50)]
    stalls = []
    with held(writer.path):
        for k in range(50):
            begin = time.perf_counter()
            writer.write_steps(make_steps(k, 1))
            writer.write_columns("activation", 0, 0, 0, payloads[k])
            writer.write_epoch(make_epoch(k))
            writer.flush()
            stalls.append(time.perf_counter() - begin)
        assert len(open_run(writer.path).steps) == 0
    assert np.quantile(stalls, 0.9) < STALL_S
    writer.flush(wait=True)
    run = open_run(writer.path)
    assert run.steps.step.tolist() == run.history(0).first_step.tolist() == list(range(50))
    assert len(run.epochs) == 50


def test_what_waits_takes_no_more_than_what_the_file_will_hold(writer: RunWriter) -> None:
    payload = os.urandom(100_000)
    with held(writer.path):
        tracemalloc.start()
        for k in range(1000):
            # 64 states of each chunk, and after every four chunks one that they are merged into.
            chunk = k // 64
            copy = payload[:-1] + b"x"  # with memory of its own
            writer.write_columns("activation", 0, 0, chunk, copy)
            if k % 256 == 255:
                writer.write_columns("activation", 0, 2, chunk >> 2, copy)
            writer.flush()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    writer.flush(wait=True)
    with closing(sqlite3.connect(writer.path / DATABASE)) as database:
        rows = database.execute("SELECT level, start FROM columns ORDER BY start").fetchall()
    assert rows == [(2, 0), (2, 256), (2, 512), (0, 768), (0, 832), (0, 896), (0, 960)]
    assert peak < 2 * 8 * len(payload)  # one batch at the thread, one behind it


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems come and go within a test's time."""
    monkeypatch.setattr("convlens.runs.database_writer.BUSY_S", 0.01)
    monkeypatch.setattr("convlens.runs.writer.RETRY_S", 0.01)
    monkeypatch.setattr("convlens.runs.writer.CLOSE_S", 0.05)


def until(happened: Callable[[], bool]) -> None:
    """Wait for another thread; what it says is recorded meanwhile."""
    limit = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.005)


@pytest.mark.usefixtures("quick")
def test_a_lock_is_said_and_what_waits_is_written_when_it_is_free(tmp_path: Path) -> None:
    writer = create_run("mnist", tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with held(writer.path):
            for k in range(3):
                writer.write_steps(make_steps(k, 1))
                writer.flush()
            until(lambda: len(said) > 0)
            writer.flush(wait=True)
            assert len(open_run(writer.path).steps) == 0
        # No other flush comes: the thread goes on by itself.
        until(lambda: len(said) > 1)
    first, second = (str(warning.message) for warning in said)
    assert "run.db' cannot be written (database is locked): another process writes" in first
    assert "What is recorded waits in memory, at most 64 MiB" in first
    assert "run.db' is written again; nothing was lost." in second
    assert {warning.category for warning in said} == {ConvlensWarning}
    assert open_run(writer.path).steps.step.tolist() == [0, 1, 2]
    writer.close()


@pytest.mark.usefixtures("quick")
def test_closing_while_somebody_holds_the_file_keeps_the_end_beside_it(tmp_path: Path) -> None:
    writer = create_run("mnist", tmp_path)
    with held(writer.path):
        writer.write_steps(make_steps(0, 7))
        writer.write_epoch(make_epoch(0))
        with pytest.warns(ConvlensWarning) as said:
            writer.close("failed", "the reason")
    assert "The record of the run lacks epochs: 1, steps: 7. " in str(said[-1].message)
    run = open_run(writer.path)
    assert (run.meta["status"], run.meta["error"]) == ("failed", "the reason")
    assert run.meta["lost"] == "epochs: 1, steps: 7"
    assert list_runs(tmp_path)[0].status == "failed"
    assert len(run.steps) == 0
    with pytest.raises(RunError, match="is closed and cannot be written to"):
        writer.flush()


def limit_pages(writer: RunWriter, pages: int) -> None:
    """A disk with room for so many pages."""
    with writer._writing:
        database = writer._database._database
        assert database is not None
        database.execute(f"PRAGMA max_page_count = {pages}").fetchall()


@pytest.mark.usefixtures("quick")
def test_a_full_disk_ends_nothing_and_is_said_once(writer: RunWriter) -> None:
    limit_pages(writer, 1)  # SQLite takes as many as there are already
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for k in range(3):
            writer.write_steps(make_steps(1000 * k, 1000))
            writer.flush()
            writer.flush(wait=True)
        until(lambda: len(said) > 0)
        assert len(said) == 1
        assert "run.db' cannot be written (database or disk is full); check" in str(said[0].message)
        assert len(open_run(writer.path).steps) == 0
        limit_pages(writer, 1_000_000)
        until(lambda: len(said) > 1)
    assert len(open_run(writer.path).steps) == 3000


@pytest.mark.usefixtures("quick")
def test_what_waits_is_bounded_and_what_was_given_up_is_counted(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convlens.runs.writer.BUDGET", 1 << 20)
    writer.write_layers([LayerInfo(0, "0", "Conv2d")], SMALL, 0.05)
    columns = make_columns(0, 64 * 50, layout=SMALL)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with held(writer.path):
            writer.flush(wait=True)
            for k in range(50):
                part = columns[64 * k : 64 * k + 64]
                writer.write_columns("activation", 0, 0, k, encode(part) + bytes(100_000))
                writer.write_steps(make_steps(k, 1))
                writer.flush()
            assert writer._flushed.n_bytes <= 1 << 20
        until(lambda: "again" in str(said[-1].message))
    texts = [str(warning.message) for warning in said]
    assert sum("from now on the oldest columns" in text for text in texts) == 1
    (lost,) = re.findall(r"is written again; lost are chunks of columns: (\d+)\.", texts[-1])
    writer.close()
    assert open_run(writer.path).meta["lost"] == f"chunks of columns: {lost}"
    with closing(sqlite3.connect(writer.path / DATABASE)) as database:
        starts = database.execute("SELECT start FROM columns ORDER BY start").fetchall()
    assert len(starts) == 50 - int(lost) >= 7
    assert starts[-1] == (64 * 49,), "the newest is kept"
    assert starts[0] != (0,), "and the oldest given up"
    assert len(open_run(writer.path).steps) == 50, "steps are small: they are kept"


def test_of_steps_that_are_too_many_the_newest_are_kept() -> None:
    buffer = WriteBuffer()
    for first in range(0, 100_000, 1000):
        buffer.add_steps(make_steps(first, 1000))
        later, buffer = buffer, WriteBuffer()
        buffer.merge(later)
    lost = buffer.drop_oldest(1 << 20)
    assert 0 < lost["steps"] < 100_000
    assert buffer.count()["steps"] == 100_000 - lost["steps"]
    assert buffer.drop_oldest(1 << 20) == {}, "with room for more"


@pytest.mark.usefixtures("quick")
def test_a_row_that_no_database_takes_keeps_no_other_back(writer: RunWriter) -> None:
    writer.write_layers(
        [LayerInfo(0, "a \ud800 name", "Conv2d"), LayerInfo(1, "b", "x")], SMALL, 0.1
    )
    writer.write_columns("activation", 0, 0, 0, "no bytes")  # type: ignore[arg-type]
    writer.write_steps(make_steps(0, 5))
    with pytest.warns(ConvlensWarning) as said:
        writer.write_picture(Picture("batch", 0, np.array([object()]), ["x"]))
        writer.flush(wait=True)
    texts = sorted(str(warning.message) for warning in said)
    assert "run.db' cannot hold the row columns ('activation', 0, 0, 0): expected" in texts[0]
    assert "run.db' cannot hold the row layers ('activation', 0): " in texts[1]
    assert "run.db' cannot hold the row pictures ('batch', 0): an array of object" in texts[2]
    run = open_run(writer.path)
    assert (len(run.steps), [layer.name for layer in run.layers]) == (5, ["b"])


# ---- the folder ---------------------------------------------------------------------------------


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("quick")
def test_a_folder_that_is_renamed_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    writer = create_run("mnist", tmp_path)
    writer.write_steps(make_steps(0, 3))
    writer.flush(wait=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        writer.path.rename(tmp_path / "elsewhere")
        writer.write_steps(make_steps(3, 3))
        writer.flush()
        until(lambda: len(said) > 0)
        assert not writer.path.exists(), "nothing is made anew"
        assert not writer.is_in_place
        assert "run.db' is not there any more: its folder was deleted, renamed" in str(
            said[0].message
        )
        (tmp_path / "elsewhere").rename(writer.path)
        until(lambda: len(said) > 1)
    writer.close()
    assert open_run(writer.path).steps.step.tolist() == list(range(6))
    assert files_of(writer.path) == [DATABASE]


@pytest.mark.usefixtures("quick")
def test_a_run_that_ends_while_its_folder_is_renamed_says_so_there(tmp_path: Path) -> None:
    writer = create_run("mnist", tmp_path)
    writer.write_steps(make_steps(0, 3))
    writer.flush(wait=True)
    writer.path.rename(tmp_path / "elsewhere")
    writer.write_steps(make_steps(3, 4))
    with pytest.warns(ConvlensWarning) as said:
        writer.close()
    assert "The record of the run lacks steps: 4. " in str(said[-1].message)
    assert files_of(tmp_path) == ["elsewhere"]
    run = open_run(tmp_path / "elsewhere")
    assert (run.meta["status"], run.meta["lost"]) == ("finished", "steps: 4")
    assert len(run.steps) == 3


@pytest.mark.usefixtures("quick")
def test_a_folder_that_is_deleted_is_not_made_anew(tmp_path: Path) -> None:
    writer = create_run("mnist", tmp_path)
    shutil.rmtree(writer.path)
    writer.write_steps(make_steps(0, 3))
    with pytest.warns(ConvlensWarning) as said:
        writer.close()
    assert "is not there any more" in str(said[0].message)
    assert "The record of the run lacks steps: 3. " in str(said[1].message)
    assert list(tmp_path.iterdir()) == []


CLOSE_BESIDE = """
import sys, warnings
from pathlib import Path
import convlens.runs.writer as record
from convlens.runs import create_run
from runs_data import make_steps
warnings.simplefilter("ignore")
record.CLOSE_S = 0.05
writer = create_run(directory=sys.argv[1])
writer.path.rename(sys.argv[1] + "-elsewhere")
print("renamed", flush=True)
sys.stdin.readline()
writer.write_steps(make_steps(0, 3))
writer.close()
"""


def test_another_run_in_its_place_is_left_alone(tmp_path: Path) -> None:
    """SQLite deletes a log by its name when a connection is closed, whosever it is by now."""
    place = tmp_path / "mnist-0001"
    with start_python(CLOSE_BESIDE, str(place)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "renamed\n"
        other = create_run("mnist", tmp_path)
        assert other.path == place
        other.write_steps(make_steps(0, 9))
        other.flush(wait=True)
        before = files_of(place)
        assert f"{DATABASE}-wal" in before
        _, errors = process.communicate("go\n", timeout=60)
        assert (process.returncode, errors) == (0, "")
        assert files_of(place) == before
        shutil.copytree(place, tmp_path / "copy")
        assert len(open_run(tmp_path / "copy").steps) == 9
        other.close()
    assert open_run(tmp_path / "mnist-0001-elsewhere").meta["status"] == "finished"


def test_an_interrupt_while_one_waits_loses_nothing(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    writer.write_steps(make_steps(0, 5))
    with monkeypatch.context() as patch:
        patch.setattr("convlens.runs.write_buffer.put_steps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.flush(wait=True)
    assert len(open_run(writer.path).steps) == 0
    writer.flush(wait=True)
    assert len(open_run(writer.path).steps) == 5


def test_no_thread_lives_on_when_all_is_written(writer: RunWriter) -> None:
    writer.write_steps(make_steps(0, 5))
    writer.flush()
    until(lambda: not writer.background.alive)
    assert len(open_run(writer.path).steps) == 5


def test_the_log_stays_short_while_readers_overlap(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 500_000
    monkeypatch.setattr("convlens.runs.database_writer.LOG_LIMIT", limit)
    stop = threading.Event()

    def read() -> sqlite3.Connection:
        database = sqlite3.connect(writer.path / DATABASE, isolation_level=None)
        database.execute("BEGIN")
        database.execute("SELECT count(*) FROM columns").fetchone()
        return database

    def poll() -> None:
        reader = read()
        while not stop.is_set():
            following = read()  # there is a reader at every moment
            reader.close()
            reader = following
        reader.close()

    poller = threading.Thread(target=poll)
    poller.start()
    log = writer.path / (DATABASE + "-wal")
    longest = 0
    try:
        for k in range(100):
            writer.write_columns("activation", 0, 0, k, os.urandom(100_000))
            writer.flush(wait=True)
            longest = max(longest, log.stat().st_size)
    finally:
        stop.set()
        poller.join()
    assert longest < 2 * limit


def test_a_process_killed_while_its_thread_writes_leaves_whole_flushes(tmp_path: Path) -> None:
    source = """
import sys
from convlens.core.histories import LayerInfo
from convlens.runs import create_run
from runs_data import SMALL, make_columns, make_steps, put
writer = create_run("mnist", sys.argv[1])
writer.write_layers([LayerInfo(0, "0", "Conv2d")], SMALL, 0.05)
columns = make_columns(0, 64 * 200, layout=SMALL)
for k in range(200):
    writer.write_steps(make_steps(64 * k, 64))
    put(writer, 0, 0, columns[64 * k : 64 * k + 64])
    writer.write_meta({"flushes": k + 1})
    writer.flush()
    print(k, flush=True)
"""
    for attempt, enough in enumerate((3, 60), 1):
        with start_python(source, str(tmp_path)) as process:
            assert process.stdout is not None
            for _ in range(enough):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        run = open_run(tmp_path / f"mnist-000{attempt}")
        flushes = run.meta.get("flushes", 0)
        assert run.steps.step.tolist() == list(range(64 * flushes))
        if flushes:
            assert run.history(0).first_step.tolist() == list(range(64 * flushes))
        assert len(run.curves(points=64)) <= 64


EXIT = """
import sys
import convlens.runs.writer as record
import convlens.runs.database_writer as writing
from convlens.runs import create_run
from runs_data import make_steps
writing.BUSY_S = record.CLOSE_S = 0.05
writer = create_run("mnist", sys.argv[1])
print("made", flush=True)
sys.stdin.readline()
writer.write_steps(make_steps(0, 700))
writer.flush()
"""


def test_what_was_flushed_is_written_at_a_normal_exit(tmp_path: Path) -> None:
    with start_python(EXIT, str(tmp_path)) as process:
        _, errors = process.communicate("go\n", timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert len(open_run(tmp_path / "mnist-0001").steps) == 700


def test_an_exit_does_not_hang_on_a_held_file_and_says_what_is_lost(tmp_path: Path) -> None:
    with start_python(EXIT, str(tmp_path)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with held(tmp_path / "mnist-0001"):
            _, errors = process.communicate("go\n", timeout=60)
    assert process.returncode == 0
    assert "The record of the run lacks steps: 700. " in errors
    assert "mnist-0001/run.db' cannot be written (database is locked)" in errors
    run = open_run(tmp_path / "mnist-0001")
    assert (len(run.steps), run.meta["status"]) == (0, "crashed")


def forked(child: object) -> int:
    """What a forked child that does this exits with."""
    process = os.fork()
    if process == 0:
        try:
            child()  # type: ignore[operator]
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_forked_while_the_thread_writes_neither_hangs_nor_writes(
    writer: RunWriter,
) -> None:
    def child() -> None:
        for call in (lambda: writer.write_steps(make_steps(9, 1)), writer.flush):
            with pytest.raises(RunError, match=r"cannot be written to from its fork \d+; write"):
                call()
        writer.close("failed")

    with held(writer.path):
        writer.write_steps(make_steps(0, 5))
        writer.flush()
        assert writer.background.alive
        writer.write_steps(make_steps(5, 1))
        with writer._lock:  # as if the fork came while another thread adds rows
            assert forked(child) == 0
    writer.flush(wait=True)
    run = open_run(writer.path)
    assert run.steps.step.tolist() == list(range(6))
    assert run.meta["status"] == "running"


def test_memory_does_not_grow_with_the_run(writer: RunWriter) -> None:
    def train(first: int, last: int) -> None:
        for start in range(first, last, 1024):
            step = np.arange(start, start + 1024)
            lr = {"lr": np.full((1024, 1), 0.1)}
            writer.write_steps(StepSeries(step, step // 100, 1.0 / (1 + step), step * 0.1, lr))
            columns = coarsen(make_columns(start, 1024, layout=SMALL), 4)
            put(writer, 0, 4, columns)
            writer.flush(wait=True)

    train(0, 4096)
    tracemalloc.start()
    train(4096, 8192)
    before, _ = tracemalloc.get_traced_memory()
    train(8192, 65536)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 500_000, "the steps alone are 2.3 MB"
