"""Progress in a pipe, a terminal and a real notebook."""

import io
import sys

import nbclient
import nbformat
import numpy as np
import pytest

import convlens as cl
from convlens.records import Epoch
from convlens.train import progress
from convlens.train.progress import epoch_line

PROGRAM = """
import numpy as np, convlens as cl
x = np.random.default_rng(0).normal(size=(96, 1, 8, 8)).astype("float32")
dls = cl.from_arrays(x, np.arange(96) % 3, layout="NCHW", valid=0.25, batch_size=2, name="toy")
learn = cl.Learner(dls, cl.simple_cnn(1, 3, widths=(4, 8)), metrics=[cl.accuracy], run=None)
learn.fit(3, 0.01)
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
    assert "epoch 1/2, step 36 of 72" in "".join(shown)
    assert shown[-1].count("train loss") == 2
    assert "<progress" not in shown[-1]


def test_the_line_of_an_epoch():
    epoch = Epoch(1, 10, 19, 0.25, None, {"accuracy": 0.5, "error": 0.125}, 2.04)
    assert epoch_line(epoch, 3) == (
        "epoch 2/3  train loss 0.2500  accuracy 50.00%  error 0.1250  2.0 s"
    )
