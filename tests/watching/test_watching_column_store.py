"""Keeping columns beside a training: whatever goes wrong there is said and ends no step."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import convlens as cl
from convlens.core.background import Background
from convlens.errors import ConvlensWarning, RunError
from convlens.watching import ActivationWatch


class Broken:
    """A sink that fails for one layer, and takes all else."""

    def __init__(self):
        self.written, self.background = [], Background("Testing")

    def write_layers(self, layers, *rest):
        self.layers = layers

    def write_columns(self, quantity, layer, level, chunk, payload):
        if layer == 0:
            raise RunError("this layer cannot be written")
        self.written.append((layer, chunk))

    def write_meta(self, values):
        self.meta = values

    def flush(self):
        pass


@pytest.mark.filterwarnings("always::convlens.errors.ConvlensWarning")
def test_a_sink_that_fails_ends_no_step_and_costs_no_other_layer():
    model, sink = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), Broken()
    stats = ActivationWatch(model, sink=sink, flush_sink=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with stats:
            for _ in range(200):
                model(torch.randn(8, 4))
    assert {chunk for layer, chunk in sink.written if layer == 1} == {0, 1, 2, 3}
    assert [str(warning.message) for warning in said] == [
        "Writing what is watched to the run failed 1 times, so it is kept in memory only: "
        "RunError: this layer cannot be written."
    ]
    assert said[0].category is ConvlensWarning
    assert stats[0].last_step.tolist() == stats[1].last_step.tolist() == list(range(200))


def test_what_is_watched_is_complete_where_no_thread_can_be_started(monkeypatch, tmp_path):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    torch.manual_seed(0)
    model = nn.Linear(4, 4)

    def train():
        with cl.watch(model, run=tmp_path / "run") as stats:
            return stats, [model(torch.randn(8, 4)).mean().item() for _ in range(130)]

    with pytest.warns(ConvlensWarning, match="as no thread can be started"):
        stats, outputs = train()
    run = cl.open_run(tmp_path / "run")
    assert run.meta["status"] == "finished"
    np.testing.assert_allclose(run.history(0).mean, outputs, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(run.history(0).counts, stats[0].counts)


def test_a_run_and_its_watchers_share_one_thread(tmp_path, monkeypatch):
    import _thread

    started, start = [], _thread.start_new_thread

    def counted(work, arguments):
        started.append(work.__self__)
        return start(work, arguments)

    monkeypatch.setattr("_thread.start_new_thread", counted)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cl.watch(model, run=tmp_path / "run", gradients=True, updates=True):
        for _ in range(130):
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
    threads = [background for background in started if isinstance(background, Background)]
    assert threads
    assert len(set(map(id, threads))) == 1


def test_watching_a_loop_does_not_load_the_trainer(tmp_path):
    source = """
import sys, torch
import convlens as cl
model = torch.nn.Linear(2, 1)
with cl.watch(model, run=sys.argv[1]):
    model(torch.randn(4, 2))
found = [name for name in sys.modules if name.startswith("convlens.train")]
assert not found, found
assert cl.open_run(sys.argv[1]).meta["status"] == "finished"
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", source, str(tmp_path / "run")]
    subprocess.run(command, check=True, env=environment)
