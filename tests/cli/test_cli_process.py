"""The command as a process: its streams fail or know few characters, and Ctrl-C ends it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tomllib
from collections import OrderedDict
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convlens as cl
from convlens.__main__ import Output
from convlens.core.steps import StepSeries
from convlens.runs import create_run

COMMAND = [sys.executable, "-m", "convlens"]
SMALL = [sys.executable, str(Path(__file__).parent / "small_mnist.py")]
TRAIN = ["train", "mnist", "--no-watch", "--epochs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image, and ``runs`` with one small run; read by tests, never written."""
    folder = tmp_path_factory.mktemp("folder")
    writer = create_run(directory=folder / "runs" / "mine")
    writer.write_steps(StepSeries(np.arange(3), np.zeros(3, int), np.ones(3), np.arange(3.0), {}))
    writer.close()
    Image.new("RGB", (40, 30), (200, 30, 90)).save(folder / "cat.png")
    return folder


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``line``, in which $C is the command, and $S the same with a small data set."""
    return subprocess.run(
        ["bash", "-c", f"C='{' '.join(COMMAND)}'\nS='{' '.join(SMALL)}'\n{line}"],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def interrupt_after(marker: str, arguments: list[str], folder: Path, times: int = 1) -> list[str]:
    """Exit code and the lines of the error output of a command that gets SIGINT after ``marker``.

    With a marker that begins with "import " it is sent while modules are imported, just after that
    one was.
    """
    imports = marker.startswith("import ")
    # Where the tests themselves run in the background of a script, SIGINT would be ignored.
    python, *command = SMALL if arguments[0] == "train" else COMMAND
    options = ["-X", "importtime"] if imports else []
    process = subprocess.Popen(
        ["env", "--default-signal=INT", python, *options, *command, *arguments],
        cwd=folder, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stderr if imports else process.stdout:
        if line.strip().endswith(marker.removeprefix("import ")) or line.startswith(marker):
            break
    else:
        pytest.fail(f"{marker} never came")
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    lines = [line for line in said.splitlines() if not line.startswith("import time:")]
    return [str(process.returncode), *lines]


# ---- streams that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "code", "said"),
    [
        pytest.param("| head -1", 0, "", marks=pytest.mark.slow),
        (">/dev/full", 1, "convlens: standard output could not be written (No space left on dev"),
        pytest.param("<&- >&-", 0, "", marks=pytest.mark.slow),
    ],
)
def test_a_training_goes_on_without_its_output(tmp_path, outputs, code, said):
    done = shell(f"$S {' '.join(TRAIN)} 2 {outputs}; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == len(said.splitlines())
    run = cl.open_run(tmp_path / "runs" / "mnist-0001")
    assert run.meta["status"] == "finished"
    assert (run.path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "outputs", "code", "n_lines"),
    [
        ("runs", "| true", 0, 0),
        ("report runs/mine --out {}/report.html", "| true", 0, 0),
        ("report runs/mine --out {}/report.html", ">/dev/full", 1, 1),
        ("runs", ">&-", 0, 0),
        ("runs", ">&- 2>&-", 0, 0),
        ("--help", ">/dev/full 2>&1", 1, 0),
        ("runs", "2>/dev/full", 0, 0),
    ],
)
def test_other_commands_end_quietly(folder, tmp_path, arguments, outputs, code, n_lines):
    line = f"$C {arguments.format(tmp_path)} {outputs}; exit ${{PIPESTATUS[0]}}"
    done = shell(line, folder)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == n_lines
    assert (tmp_path / "report.html").exists() == arguments.startswith("report")


# ---- few characters ------------------------------------------------------------------------------


def test_a_summary_and_a_field_in_ascii(folder, tmp_path):
    place = "--layer 1.0 --unit 3,4 --image cat.png --size 28"
    done = shell(
        "$C summary simple_cnn | head -4; echo ${PIPESTATUS[0]}\n"
        f"$C field simple_cnn {place} --out {tmp_path}/a.png ",
        folder, PYTHONIOENCODING="ascii",
    )  # fmt: skip
    *_, first, code, field = done.stdout.splitlines()
    assert "1x8x14x14" in first
    assert (code, done.stderr) == ("0", "")
    assert field.startswith("1.0, unit 3, 4 of 7x7 sees rows 8-16, columns 12-20: 9x9: ")
    assert (tmp_path / "a.png").exists()


def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xd7")
    create_run(directory=tmp_path / name / name).close()
    line = (
        "$C runs caf*; cd caf*; PYTHONIOENCODING=utf-8:strict $C report caf*; cd /; "
        "$C report nowhere*"
    )
    done = shell(line, tmp_path, PYTHONIOENCODING="ascii")
    listed, report = done.stdout.splitlines()
    assert listed.startswith(r"caf\xe9 \xd7  ")
    assert report == r"caf\xe9 \xd7/report.html"
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("encoding", "row", "shape"),
    [
        ("utf-8", "8→16", "1×16×7×7"), ("ascii", "8->16", "1x16x7x7"),
        ("latin-1", "8->16", "1×16×7×7"), ("cp1252", "8->16", "1×16×7×7"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("terminal", [False, True])
def test_a_printed_summary_fits_the_encoding(monkeypatch, encoding, row, shape, terminal):
    monkeypatch.setenv("COLUMNS", "140")
    written = io.BytesIO()
    output = io.TextIOWrapper(written, encoding)
    monkeypatch.setattr(output, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", output)
    cl.summary(cl.simple_cnn(1, 10), (1, 1, 28, 28)).print()
    output.flush()
    lines = written.getvalue().decode(encoding).splitlines()
    line = next(line for line in lines if row in line)
    assert shape in line
    if not terminal:
        assert lines[1].index("output") == line.index(shape)  # columns stay aligned


def test_a_summary_without_an_output_is_not_printed(monkeypatch):
    table = cl.summary(torch.nn.Linear(2, 2), (1, 2))
    monkeypatch.setattr(sys, "stdout", None)
    table.print()


def test_a_layer_whose_name_holds_a_newline_is_one_row():
    model = torch.nn.Sequential(OrderedDict({"a\n\x1b[2J": torch.nn.Conv2d(1, 2, 3)}))
    table = cl.summary(model, (1, 1, 8, 8))
    assert r"a\n\x1b[2J" in str(table)
    assert "\x1b" not in str(table) + table.to_markdown() + table._repr_html_()
    assert len(str(table).splitlines()) == 6 + len(table.notes)


def test_what_is_written_after_a_failure_is_dropped(tmp_path):
    descriptor = os.open("/dev/full", os.O_WRONLY)
    output = Output(io.BufferedWriter(io.FileIO(descriptor, "w")), "utf-8")
    output.write("a")
    output.flush()
    assert output.problem == "No space left on device"
    output.write("b")
    output.close()  # flushes, and raises nothing


# ---- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marker", "arguments"),
    [
        ("import argparse", ["runs"]),
        ("import convlens.cli", ["runs"]),
        ("import sqlite3", ["runs"]),
        ("import torch._C", ["summary", "simple_cnn"]),
        ("import convlens.web.report", ["report", "runs/mine", "--out", "never.html"]),
    ],
)
def test_an_interrupt_while_modules_are_imported(folder, marker, arguments):
    assert interrupt_after(marker, arguments, folder) == ["130", "convlens: Interrupted."]
    assert not (folder / "never.html").exists()


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupt_while_training(tmp_path, times):
    code, *lines = interrupt_after("Watch it", [*TRAIN, "9999"], tmp_path, times)
    assert (code, lines[-1]) == ("130", "convlens: Interrupted.")
    assert lines[:-1] in ([], ["What was recorded until then is in runs/mnist-0001."])
    if times == 1:
        assert lines[:-1]
        assert cl.open_run(tmp_path / "runs" / "mnist-0001").meta["status"] == "stopped"


def test_an_interrupt_at_the_end(folder):
    code, *lines = interrupt_after("mine", ["runs"], folder)
    assert code in ("0", "130", str(-signal.SIGINT))  # done, or nearly
    assert lines in ([], ["convlens: Interrupted."])


def test_an_interrupt_ends_the_page(folder):
    arguments = ["view", "runs", "--no-browser", "--port", "0"]
    assert interrupt_after("The page is at", arguments, folder) == ["0"]


def test_where_interrupts_are_ignored_they_stay_so(folder):
    """In the background of a script; the process tells itself how it treats SIGINT."""
    done = shell(
        "trap '' INT\n$C runs >/dev/null\n"
        f"{sys.executable} -c 'import signal, convlens.__main__ as m\n"
        "try: m.main()\n"
        "except SystemExit: print(signal.getsignal(signal.SIGINT).name)' runs | tail -1",
        folder,
    )
    assert (done.stdout, done.stderr) == ("SIG_IGN\n", "")


def test_the_installed_command_begins_where_these_do():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, _, name = project["project"]["scripts"]["convlens"].partition(":")
    assert module == "convlens.__main__"
    assert callable(getattr(import_module(module), name))
