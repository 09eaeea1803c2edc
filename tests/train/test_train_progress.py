"""Progress in a pipe, a terminal and a real notebook."""

import contextlib
import io
import os
import pty
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest

import convlens as cl
from convlens.core.records import Epoch
from convlens.train.callbacks import progress
from convlens.train.callbacks.progress import epoch_line

PROGRAM = """
import numpy as np, convlens as cl
x = np.random.default_rng(0).normal(size=(96, 1, 8, 8)).astype("float32")
dls = cl.from_arrays(x, np.arange(96) % 3, layout="NCHW", valid=0.25, batch_size=2, name="toy")
learn = cl.Learner(dls, cl.simple_cnn(1, 3, widths=(4, 8)), metrics=[cl.accuracy], run="run")
learn.fit(3, 0.01)
_ = open("done", "w").write(str(len(learn.recorder.epochs)))
"""


def learner():
    x = np.random.default_rng(0).normal(size=(96, 1, 8, 8)).astype("float32")
    dls = cl.from_arrays(x, np.arange(96) % 3, layout="NCHW", valid=0.25, batch_size=2, name="toy")
    model = cl.simple_cnn(1, 3, widths=(4, 8))
    return cl.Learner(dls, model, metrics=[cl.accuracy], run=None)


def test_a_pipe_gets_one_plain_line_per_epoch(capsys):
    learner().fit(3, 0.01)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, start=1):
        assert line.startswith(f"epoch {number}/3  train loss ")
        assert "valid loss" in line
        assert line.endswith(" s")
        assert "\x1b" not in line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_and_the_same_lines(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    learner().fit(3, 0.01)
    text = screen.getvalue()
    assert "108/108" in text
    assert text.count("train loss") == 3


COMPILING = """
import numpy as np, sys, torch, convlens as cl
x = np.random.default_rng(0).normal(size=(48, 1, 8, 8)).astype("float32")
dls = cl.from_arrays(x, np.arange(48) % 3, layout="NCHW", valid=0.25, batch_size=4, name="toy")
compiling = torch.compile
torch.compile = lambda model: compiling(model, backend="eager")
learn = cl.Learner(dls, cl.simple_cnn(1, 3, widths=(4, 8)), compile=True, run=None)
learn.fit(2, 0.01)
"""


def in_a_terminal(program):
    """What a program has written to a pseudo-terminal."""
    far, near = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-c", program]
    child = subprocess.Popen(command, stdout=near, stderr=near, stdin=near, env=environment)
    os.close(near)
    parts = []
    with contextlib.suppress(OSError):  # Linux says that the other end is closed
        while part := os.read(far, 1 << 16):
            parts.append(part.decode())
    os.close(far)
    assert child.wait(60) == 0, "".join(parts)
    return "".join(parts)


def test_a_real_terminal_shows_rate_loss_and_time_left_and_says_that_it_compiles():
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", in_a_terminal(COMPILING))
    assert "compiling (once)" in said
    assert said.index("compiling (once)") < said.index("loss 1.")
    bar = r"epoch 1/2  loss \d\.\d{4}  lr 0\.01 [^\n]*\d/18 +left [-\d]"
    assert re.search(bar, said), said
    assert said.count("train loss") == 2


def test_the_loss_is_read_only_when_the_bar_is_drawn(monkeypatch):
    learn, n_read = learner(), []
    update = progress.SmoothedLoss.update
    monkeypatch.setattr(
        progress.SmoothedLoss, "update", lambda *args: n_read.append(1) or update(*args)
    )
    monkeypatch.setattr(progress, "REFRESH_S", 3600.0)
    learn.fit(2, 0.01)
    assert len(n_read) <= 3  # the first step, and the end of each epoch


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_gets_one_output():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PROGRAM)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert len(outputs) == 1
    html = outputs[0]["data"]["text/html"]
    assert html.count("train loss") == 3
    assert "<progress" not in html  # the bar is gone at the end


def test_a_notebook_shows_a_bar_while_training(monkeypatch):
    shown = []

    def show(text):
        shown.append(text)
        return shown.append

    monkeypatch.setattr(progress, "choose_display", lambda: progress.NotebookDisplay(show))
    learner().fit(2, 0.01)
    assert any('<progress value="36" max="72"' in text for text in shown)
    bar = next(text for text in shown if 'value="36" max="72"' in text)
    assert re.search(r"epoch 1/2  loss \d\.\d{4}  lr 0\.01, step 36 of 72, 0:\d\d:\d\d left", bar)
    assert shown[-1].count("train loss") == 2
    assert "<progress" not in shown[-1]


def test_the_line_of_an_epoch():
    epoch = Epoch(1, 10, 19, 0.25, None, {"accuracy": 0.5, "error": 0.125}, 2.04)
    assert epoch_line(epoch, 3) == (
        "epoch 2/3  train loss 0.2500  accuracy 50.00%  error 0.1250  2.0 s"
    )


@pytest.mark.slow  # test_cli_process has a command without one
def test_a_program_without_an_output_trains_and_records(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM)
    python = shlex.quote(sys.executable)
    command = f"mkdir closed; {python} train.py | head -1; cd closed; {python} ../train.py >&- 2>&-"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Progress cannot be shown ([Errno 32]") == 1
    for folder in (tmp_path, tmp_path / "closed"):
        assert (folder / "done").read_text() == "3"
        with cl.open_run(folder / "run") as run:
            assert (run.meta["status"], len(run.epochs)) == ("finished", 3)


def full():
    return open("/dev/full", "w")


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def broken_terminal():
    """A pipe that says it is a terminal, so that rich writes to it."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = type("Terminal", (io.TextIOWrapper,), {"isatty": lambda self: True})
    return stream(os.fdopen(writer, "wb"))


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def closed_terminal():
    far, near = pty.openpty()
    os.close(far)
    return os.fdopen(near, "w")


@pytest.fixture(params=[full, broken_pipe, broken_terminal, closed, closed_terminal])
def failing(request):
    if request.param is full and not Path("/dev/full").exists():
        pytest.skip("only Linux has /dev/full")
    stream = request.param()
    yield stream
    with contextlib.suppress(OSError):
        stream.close()


@pytest.mark.parametrize("saying", ["a warning", "an error", "nothing"])
def test_an_output_that_fails_ends_no_training(failing, saying, monkeypatch):
    """Nor does saying so, where warnings are errors or standard error fails too."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", failing)
    learn = learner()
    with warnings.catch_warnings(record=saying == "a warning") as caught:
        warnings.simplefilter("error" if saying == "an error" else "always")
        if saying == "nothing":
            monkeypatch.setattr(
                warnings, "showwarning", lambda m, *rest: print(m, file=failing, flush=True)
            )
        learn.fit(2, 0.01)
    assert len(learn.recorder.epochs) == 2
    assert sys.stdout is failing  # rich puts itself before it while it shows a bar
    if saying == "a warning":
        assert [w.category for w in caught] == [cl.ConvlensWarning]
        assert str(caught[0].message).startswith("Progress cannot be shown (")


class Failing:
    """A display that fails at its n-th call."""

    def __init__(self, n, error):
        self.n, self.error, self.calls = n, error, []

    def __getattr__(self, name):
        def call(*args):
            self.calls.append(name)
            if len(self.calls) == self.n:
                raise self.error

        return call


@pytest.mark.parametrize("n", [1, 2, 20])
def test_a_display_that_fails_is_given_up(monkeypatch, n):
    display = Failing(n, RuntimeError("no kernel"))
    monkeypatch.setattr(progress, "REFRESH_S", 0.0)
    monkeypatch.setattr(progress, "choose_display", lambda: display)
    learn = learner()
    with pytest.warns(
        cl.ConvlensWarning, match=r"cannot be shown \(no kernel\); training continues"
    ):
        learn.fit(1, 0.01)
    assert len(learn.recorder.epochs) == 1
    assert display.calls[n:] == ["stop"]


def test_an_interrupt_while_showing_stops_the_training(monkeypatch):
    display = Failing(5, KeyboardInterrupt())
    monkeypatch.setattr(progress, "REFRESH_S", 0.0)
    monkeypatch.setattr(progress, "choose_display", lambda: display)
    with pytest.raises(KeyboardInterrupt):
        learner().fit(1, 0.01)
