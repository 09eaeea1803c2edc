"""A record that cannot be written ends no training, and what could be written is complete."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import convlens as cl
from convlens.runs.checkpoints import list_checkpoints


def learner(run, *callbacks):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(160, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, 160)
    dls = cl.from_arrays(
        x[:128], y[:128], layout="NCHW", valid=(x[128:], y[128:]), batch_size=16, name="toy"
    )
    return cl.Learner(
        dls, cl.simple_cnn(1, 3, widths=(4, 8)), metrics=[cl.accuracy], run=run, progress=False,
        callbacks=[cl.ActivationStats(), cl.Pictures(), *callbacks],
    )  # fmt: skip


class After(cl.Callback):
    """Does something to the world after an epoch, before it is recorded."""

    order = -200

    def __init__(self, **actions):
        self.actions = actions

    def after_epoch(self, learn):
        self.actions.get(f"epoch_{learn.epoch}", lambda: None)()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("convlens.runs.writer.RETRY_S", 0.01)
    monkeypatch.setattr("convlens.runs.writer.CLOSE_S", 0.1)


def said_by(work):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        work()
    assert {warning.category for warning in said} <= {cl.errors.ConvlensWarning}
    return "\n".join(str(warning.message) for warning in said)


def assert_complete(run, learn):
    assert run.meta["status"] == "finished"
    np.testing.assert_array_equal(run.steps.loss, learn.recorder.steps.loss)
    assert list(run.epochs) == list(learn.recorder.epochs)
    for name in run.activation_stats:
        found, expected = run.activation_stats[name], learn.activation_stats[name]
        np.testing.assert_array_equal(found.counts, expected.counts)


def test_a_run_folder_that_is_deleted_ends_no_training_and_is_not_made_anew(tmp_path):
    run = tmp_path / "runs" / "mine"
    learn = learner(run, After(epoch_0=lambda: shutil.rmtree(run)))
    said = said_by(lambda: learn.fit(3, 0.01))
    assert len(learn.recorder.epochs) == 3
    assert list((tmp_path / "runs").iterdir()) == []
    assert "run.db' is not there any more: its folder was deleted, renamed or replaced" in said
    assert said.count("No checkpoint is saved in ") == 1
    assert re.search(r"The record of the run lacks .*epochs: 3.*steps: \d+\.", said)


def test_a_run_folder_that_is_renamed_for_a_while_loses_nothing(tmp_path):
    run, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    learn = learner(
        run, After(epoch_0=lambda: run.rename(elsewhere), epoch_2=lambda: elsewhere.rename(run))
    )
    said = said_by(lambda: learn.fit(4, 0.01))
    assert_complete(cl.open_run(run), learn)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["checkpoint-0002"]
    assert "No checkpoint is saved in " in said
    assert "Checkpoints are saved in " in said
    assert not elsewhere.exists()


FULL = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from test_train_record_lost import After, assert_complete, cl, learner, list_checkpoints
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
def limit(n):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
learn = learner(sys.argv[2], After(epoch_0=limit(1000), epoch_2=limit(hard)))
learn.fit(4, 0.01)
run = cl.open_run(sys.argv[2])
assert_complete(run, learn)
assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["checkpoint-0002"]
"""


def test_a_disk_that_is_full_for_two_epochs_costs_neither_record_nor_checkpoint(tmp_path):
    """A limit of a file's size stands for the disk: writes fail in the same places."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(Path(__file__).parent), str(tmp_path / "run")],
        env=environment, check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "run.db' cannot be written (" in done.stderr
    assert "is written again; nothing was lost." in done.stderr
    assert "checkpoints' cannot take a checkpoint (" in done.stderr
