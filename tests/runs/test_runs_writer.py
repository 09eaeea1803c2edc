"""The thread that writes a run: no step waits for it, nothing is lost, and it ends by itself."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from runs_data import LAYOUT, SMALL, make_columns, make_epoch, make_steps, put, start_python

from convlens.errors import RunError
from convlens.histories import LayerInfo
from convlens.records import StepSeries
from convlens.runs import RunWriter, create_run, open_run
from convlens.runs.schema import DATABASE
from convlens.sketch import coarsen, encode

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
    thread = writer._thread
    if thread is not None:
        thread.join()


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
            writer.write_columns("activation", 0, 0, chunk, bytearray(payload))  # type: ignore[arg-type]
            if k % 256 == 255:
                writer.write_columns("activation", 0, 2, chunk >> 2, bytearray(payload))  # type: ignore[arg-type]
            writer.flush()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    writer.flush(wait=True)
    with closing(sqlite3.connect(writer.path / DATABASE)) as database:
        rows = database.execute("SELECT level, start FROM columns ORDER BY start").fetchall()
    assert rows == [(2, 0), (2, 256), (2, 512), (0, 768), (0, 832), (0, 896), (0, 960)]
    assert peak < 2 * 8 * len(payload)  # one batch at the thread, one behind it


def test_a_lock_that_passes_is_no_error_but_is_said_where_one_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convlens.runs.record.BUSY_S", 0.01)
    writer = create_run("mnist", tmp_path)
    with held(writer.path):
        for k in range(3):
            writer.write_steps(make_steps(k, 1))
            writer.flush()
            wait_for_thread(writer)
        with pytest.raises(RunError, match=r"run\.db' cannot be written \(database is locked\)"):
            writer.flush(wait=True)
    writer.close()
    assert open_run(writer.path).steps.step.tolist() == [0, 1, 2]


def test_closing_while_somebody_holds_the_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convlens.runs.record.BUSY_S", 0.01)
    writer = create_run("mnist", tmp_path)
    with (
        held(writer.path),
        pytest.raises(RunError, match=r"cannot be written \(database is locked\)"),
    ):
        writer.close()


def limit_pages(writer: RunWriter, pages: int) -> None:
    """A disk with room for so many pages."""
    with writer._writing:
        assert writer._database is not None
        writer._database.execute(f"PRAGMA max_page_count = {pages}").fetchall()


def test_an_error_comes_with_the_next_flush_and_what_failed_is_tried_again(
    writer: RunWriter,
) -> None:
    limit_pages(writer, 1)  # SQLite takes as many as there are already
    writer.write_steps(make_steps(0, 1000))
    writer.flush()
    wait_for_thread(writer)
    writer.write_steps(make_steps(1000, 1000))
    with pytest.raises(RunError, match=r"run\.db' cannot be written \(database or disk is full\)"):
        writer.flush()
    wait_for_thread(writer)
    assert len(open_run(writer.path).steps) == 0
    limit_pages(writer, 1_000_000)
    writer.write_steps(make_steps(2000, 1))
    with pytest.raises(RunError, match="database or disk is full"):
        writer.flush()  # of the attempt before
    writer.flush(wait=True)
    assert len(open_run(writer.path).steps) == 2001


def test_closing_raises_what_no_flush_could(tmp_path: Path) -> None:
    writer = create_run("mnist", tmp_path)
    limit_pages(writer, 1)
    writer.write_steps(make_steps(0, 1000))
    writer.flush()
    with pytest.raises(RunError, match="database or disk is full"):
        writer.close()
    assert open_run(writer.path).meta["status"] == "running"


def test_an_interrupt_while_one_waits_loses_nothing(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    writer.write_steps(make_steps(0, 5))
    with monkeypatch.context() as patch:
        patch.setattr("convlens.runs.rows.put_steps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.flush(wait=True)
    assert len(open_run(writer.path).steps) == 0
    writer.flush(wait=True)
    assert len(open_run(writer.path).steps) == 5


def test_no_thread_lives_on_when_all_is_written(writer: RunWriter) -> None:
    writer.write_steps(make_steps(0, 5))
    writer.flush()
    wait_for_thread(writer)
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("write run.db") for name in names)
    assert len(open_run(writer.path).steps) == 5


def test_the_log_stays_short_while_readers_overlap(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 500_000
    monkeypatch.setattr("convlens.runs.record.LOG_LIMIT", limit)
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
from convlens.histories import LayerInfo
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
import convlens.runs.record as record
from convlens.runs import create_run
from runs_data import make_steps
record.BUSY_S = 0.05
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
    assert "mnist-0001/run.db' cannot be written (database is locked)" in errors
    assert len(open_run(tmp_path / "mnist-0001").steps) == 0


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
        assert writer._thread is not None
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
