"""How a run ended, whoever or whatever ended it; and reading it leaves everything as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs_data import start_python

from convlens._api import report
from convlens.runs import create_run, list_runs, open_run
from convlens.runs.follower import RunFollower
from convlens.runs.lock import CRASHED
from convlens.runs.schema import DATABASE

WRITE = """
import sys
from convlens.core.histories import LayerInfo
from convlens.runs import create_run
from runs_data import LAYOUT, make_columns, make_epoch, make_steps, put
writer = create_run(directory=sys.argv[1])
writer.write_layers([LayerInfo(0, "a", "Conv2d")], LAYOUT, 0.05)
put(writer, 0, 0, make_columns(0, 30))
writer.write_steps(make_steps(0, 30))
writer.write_epoch(make_epoch(0))
writer.flush(wait=True)
print("flushed", flush=True)
sys.stdin.readline()
writer.close(*sys.argv[2:])
"""


@contextmanager
def training(folder: Path, *ending: str) -> Iterator[subprocess.Popen[str]]:
    """A process that writes to a run, until it is killed or told to close it."""
    with start_python(WRITE, str(folder), *ending) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "flushed\n"
        yield process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def state_of(folder: Path) -> dict[str, object]:
    """Every file with its bytes and its time."""
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


def test_a_run_is_running_until_its_process_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder) as process:
        run = open_run(folder)
        follower = RunFollower(run)
        assert follower.refresh()
        assert follower.meta["status"] == "running"
        assert [info.status for info in list_runs(tmp_path)] == ["running"]
        kill(process)
    assert run.meta["status"] == run.record().meta["status"] == "crashed"
    assert run.meta["error"] == CRASHED
    assert follower.refresh(), "though no file has changed"
    assert follower.meta["status"] == "crashed"
    assert not follower.refresh()
    (info,) = list_runs(tmp_path)
    assert (info.status, info.n_epochs, info.problem) == ("crashed", 1, None)
    assert CRASHED in report(folder, tmp_path / "report.html").read_text()


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_a_run_that_was_closed_says_how(tmp_path: Path, status: str) -> None:
    with training(tmp_path / "run", status, "the reason") as process:
        assert process.communicate("close\n", timeout=60) == ("", "")
    run = open_run(tmp_path / "run")
    assert (run.meta["status"], run.meta["error"]) == (status, "the reason")
    assert [path.name for path in run.path.iterdir()] == [DATABASE], "its lock file is gone"


def test_a_reader_in_the_writers_own_process_leaves_its_lock(tmp_path: Path) -> None:
    with create_run("mnist", tmp_path) as writer:
        for _ in range(3):
            assert open_run(writer.path).meta["status"] == "running"
            assert list_runs(tmp_path)[0].status == "running"
        held = "from convlens.runs import list_runs; print(list_runs()[0].status)"
        with start_python(f"import os; os.chdir({str(tmp_path.parent)!r})\n" + held.replace(
            "list_runs()", f"list_runs({str(tmp_path)!r})"
        )) as process:  # fmt: skip
            assert process.communicate(timeout=60)[0] == "running\n"


def test_where_it_cannot_be_told_a_run_is_said_to_be_running(tmp_path: Path) -> None:
    with training(tmp_path / "run") as process:
        kill(process)
    run, lock = open_run(tmp_path / "run"), tmp_path / "run" / "run.lock"
    facts = json.loads(lock.read_text())
    assert run.meta["status"] == "crashed"
    lock.write_text(json.dumps({**facts, "machine": ["another-machine"]}))
    assert run.meta["status"] == "running", "it may be written there"
    lock.write_text(json.dumps({**facts, "machine": []}))
    assert run.meta["status"] == "running", "its folder had no locks"
    lock.write_text("nonsense")
    assert run.meta["status"] == "running"
    lock.unlink()
    assert run.meta["status"] == "crashed"


def test_several_readers_at_once_do_not_take_each_other_for_the_writer(tmp_path: Path) -> None:
    with training(tmp_path / "run") as process:
        kill(process)
    source = (
        "import sys; from convlens.runs import open_run\n"
        "run = open_run(sys.argv[1]); print(flush=True); sys.stdin.readline()\n"
        "assert {run.meta['status'] for _ in range(200)} == {'crashed'}\n"
    )
    readers = [start_python(source, str(tmp_path / "run")) for _ in range(2)]
    for reader in readers:
        assert reader.stdout is not None
        reader.stdout.readline()
    assert [reader.communicate("go\n", timeout=60)[1] for reader in readers] == ["", ""]


# ---- reading leaves everything as it is ---------------------------------------------------------


def read_all(folder: Path) -> None:
    run = open_run(folder)
    assert (len(run.steps), len(run.history(0)), len(run.epochs)) == (30, 30, 1)
    run.record()
    follower = RunFollower(run)
    follower.figures()
    assert len(follower.steps) == 30
    list_runs(folder.parent)
    report(run, folder.parent / "report.html")


@pytest.mark.parametrize("crashed", [True, False])
def test_reading_a_run_that_ended_changes_and_makes_no_file(tmp_path: Path, crashed: bool) -> None:
    folder = tmp_path / "run"
    with training(folder) as process:
        kill(process) if crashed else process.communicate("close\n", timeout=60)
    before = state_of(folder)
    read_all(folder)
    assert state_of(folder) == before


@pytest.mark.parametrize("length", [0, 1, 32, 33, 4152, 5000])
def test_a_log_that_was_just_begun_is_no_obstacle(tmp_path: Path, length: int) -> None:
    """Where the process is killed right after its log was folded and begun anew."""
    with training(tmp_path / "run") as process:
        kill(process)
    log = tmp_path / "run" / f"{DATABASE}-wal"
    log.write_bytes(log.read_bytes()[:length])
    before = state_of(tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert (run.meta["status"], len(run.steps)) == ("crashed", 0)
    assert state_of(tmp_path / "run") == before


def test_only_the_index_of_a_log_is_made_where_it_was_not_copied(tmp_path: Path) -> None:
    with training(tmp_path / "run") as process:
        kill(process)
    copy = tmp_path / "copies" / "run"
    shutil.copytree(tmp_path / "run", copy, ignore=shutil.ignore_patterns("*-shm"))
    before = state_of(copy)
    read_all(copy)
    assert {name: state_of(copy)[name] for name in before} == before
    assert state_of(copy).keys() - before.keys() == {f"{DATABASE}-shm"}


def test_a_record_that_was_copied_without_its_log_says_so(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    for name, patterns in (("whole", ()), ("part", (f"{DATABASE}-wal", f"{DATABASE}-shm"))):
        with training(tmp_path / name):
            shutil.copytree(
                tmp_path / name, copies / name, ignore=shutil.ignore_patterns(*patterns)
            )
    assert {info.name: info.status for info in list_runs(copies)} == {
        "whole": "crashed",
        "part": "crashed",
    }
    assert open_run(copies / "whole").meta["error"] == CRASHED
    assert len(open_run(copies / "whole").steps) == 30
    words = "There is no log 'run.db-wal' beside 'run.db': if the folder was copied, copy that file"
    assert words in open_run(copies / "part").meta["error"]
    assert len(open_run(copies / "part").steps) == 0


# ---- a disk and a memory that are full ----------------------------------------------------------

FULL = """
import resource, signal, sys, threading, time, warnings
from convlens.runs import create_run
from convlens.runs import writer as record, database_writer as writing
from runs_data import make_steps
record.RETRY_S, record.CLOSE_S = 0.05, 0.3
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
said = []
warnings.showwarning = lambda message, *rest, **more: said.append(str(message))
warnings.simplefilter("always")
writer = create_run(directory=sys.argv[1])
writer.write_steps(make_steps(0, 1000))
writer.flush(wait=True)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
begin = time.monotonic()
for k in range(1, 21):
    writer.write_steps(make_steps(1000 * k, 1000))
    writer.flush()
while not said:
    time.sleep(0.01)
assert time.monotonic() - begin < 5, "it is said within seconds"
if sys.argv[2] == "passes":
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    while len(said) < 2:
        time.sleep(0.01)
writer.close("stopped", "by hand")
print("\\n".join(said))
"""


@pytest.mark.parametrize("passes", [True, False])
def test_a_disk_that_is_full_for_a_while_or_to_the_end(tmp_path: Path, passes: bool) -> None:
    """A limit of a file's size stands for the disk: SQLite's write fails in the same place."""
    folder = tmp_path / "run"
    with start_python(FULL, str(folder), "passes" if passes else "stays") as process:
        said, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert said.count("run.db' cannot be written (disk I/O error); check that the folder is") == (
        1 if passes else 2
    ), said
    run = open_run(folder)
    assert (run.meta["status"], run.meta["error"]) == ("stopped", "by hand")
    written = len(run.steps)
    if passes:
        assert "is written again; nothing was lost" in said
        assert (written, "lost" in run.meta) == (21_000, False)
        assert [path.name for path in folder.iterdir()] == [DATABASE]
    else:
        assert 1000 <= written < 21_000
        assert run.meta["lost"] == f"steps: {21_000 - written:,}"
        assert f"The record of the run lacks steps: {21_000 - written:,}. " in said


NO_MEMORY = """
import resource, sys, threading, warnings
from pathlib import Path
from convlens.runs import create_run, open_run
from runs_data import make_steps
said = []
warnings.showwarning = lambda message, *rest, **more: said.append(str(message))
warnings.simplefilter("always")
writer = create_run(directory=sys.argv[1])
threading.stack_size(64 << 20)  # so that it is the thread that finds no memory
status = Path("/proc/self/status").read_text().splitlines()
(size,) = [int(line.split()[1]) << 10 for line in status if "VmSize" in line]
resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20), resource.RLIM_INFINITY))
for k in range(3):
    writer.write_steps(make_steps(1000 * k, 1000))
    writer.flush()
    assert len(open_run(sys.argv[1]).steps) == 1000 * (k + 1), "it was written here and now"
writer.close()
print("\\n".join(said))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says its size there")
def test_where_no_thread_can_be_started_the_training_writes_itself(tmp_path: Path) -> None:
    with start_python(NO_MEMORY, str(tmp_path / "run")) as process:
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    (sentence,) = said.splitlines()
    assert "takes the training's own time, as no thread can be started (can't start new" in sentence
    assert sentence.endswith("check the limits of this process (ulimit -v, ulimit -u).")
    run = open_run(tmp_path / "run")
    assert (len(run.steps), run.meta["status"]) == (3000, "finished")


def test_a_limit_of_memory_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    source = (
        "import resource, sys\n"
        "from convlens.errors import RunError\n"
        "from convlens.runs import create_run\n"
        "create_run(directory=sys.argv[1] + '-first').close()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    create_run(directory=sys.argv[1])\n"
        "except RunError as error:\n"
        "    print(error)\n"
    )
    with start_python(source, str(tmp_path / "run")) as process:
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "run.db' cannot be written: the memory is too short (" in said
    assert "check the limits of this process (ulimit -v)" in said
    assert list((tmp_path / "run").iterdir()) == [], "what is no run is not left behind"
