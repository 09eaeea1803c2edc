"""Two processes that train together, started by torchrun: one run, equal to one process's."""

import copy
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl
from convlens.core.columns import Columns

STEPS = 70  # more than a chunk of 64

SCRIPT = """
import datetime
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import convlens as cl

torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
rank = dist.get_rank()


def net(*, norm):
    torch.manual_seed(0)
    # Batch normalization would see half of the batch in a training.
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), norm, nn.Flatten(), nn.Linear(64, 3)]
    return DistributedDataParallel(nn.Sequential(*layers))


def batch(step):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(8, 1, 10, 10, generator=generator) + rank


model = net(norm=nn.BatchNorm2d(4))
with cl.watch(model, run="frozen"), torch.no_grad():
    for step in range(STEPS):
        model(batch(step))

model = net(norm=nn.Identity())
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
with cl.watch(model, gradients=True, updates=True, run="trained"):
    for step in range(STEPS):
        F.cross_entropy(model(batch(step)), torch.arange(8) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()

for _ in range(2):
    with cl.watch(model, run="auto"), torch.no_grad():
        model(batch(0))
        model(batch(1))

try:
    cl.watch(model, run="mine")  # a rank that hangs here runs into the time limit
except cl.RunError as error:
    Path(f"refused-{rank}.txt").write_text(str(error))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have run the script."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "mine").mkdir()
    (folder / "mine" / "mine.txt").write_text("not a run")
    (folder / "script.py").write_text(SCRIPT.replace("STEPS", str(STEPS)))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "script.py",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return folder


def net(*, trained):
    """What the script makes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(4)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))
    if trained:
        model[2] = nn.Identity()
    return model


def batch(step, rank):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(8, 1, 10, 10, generator=generator) + rank


def assert_same(found, expected, *, moments=1e-12):
    for f in fields(Columns):
        a, b = getattr(found, f.name), getattr(expected, f.name)
        if f.type == "Floats":
            np.testing.assert_allclose(a, b, rtol=moments, atol=moments, err_msg=f.name)
        else:
            np.testing.assert_array_equal(a, b, f.name)


def test_frozen_weights_give_what_one_process_counts(folder, one_thread):
    model = net(trained=False)
    statistics = [copy.deepcopy(model[2].state_dict())] * 2  # the running ones, of each rank
    with cl.watch(model, count_forwards=False) as stats, torch.no_grad():
        for step in range(STEPS):
            stats.step()
            for rank in range(2):
                model[2].load_state_dict(statistics[rank])
                model(batch(step, rank))
                statistics[rank] = copy.deepcopy(model[2].state_dict())
    run = cl.open_run(folder / "frozen")
    assert run.meta["status"] == "finished"
    assert run.meta["ranks"] == 2
    assert sorted(p.name for p in run.path.glob("*.db")) == ["rank-1.db", "run.db"]
    assert [info.name for info in run.layers] == [f"module.{i.name}" for i in stats.layers]
    assert [info.feeds_relu for info in run.layers] == [True, False, False]
    for index in (0, 1, 2):
        found = run.activation_stats[index]
        assert found.first_step.tolist() == list(range(STEPS))
        assert set(found.columns.calls.tolist()) == {2}
        assert_same(found.columns, stats[index].columns)


def close_counts(a, b, share):
    """Counts that agree but for a share of values which rounding put into the next bucket."""
    return np.abs(a - b).sum() / 2 <= share * b.sum()


def test_a_training_agrees_with_one_process_on_the_joined_batch(folder, one_thread):
    """Stated tolerance: 1 value of 1,000 in a neighbouring bucket, moments to 1e-4."""
    model = net(trained=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with cl.watch(model, gradients=True, updates=True) as stats:
        for step in range(STEPS):
            x = torch.cat([batch(step, 0), batch(step, 1)])
            F.cross_entropy(model(x), torch.cat([torch.arange(8) % 3] * 2)).backward()
            optimizer.step()
            optimizer.zero_grad()
    run = cl.open_run(folder / "trained")
    for index in range(2):
        found, expected = run.activation_stats[index], stats[index]
        np.testing.assert_array_equal(found.first_step, expected.first_step)
        np.testing.assert_array_equal(found.n, expected.n)
        np.testing.assert_allclose(found.mean, expected.mean, atol=1e-4 * expected.std.max())
        np.testing.assert_allclose(found.std, expected.std, rtol=1e-4)
        assert close_counts(found.counts, expected.counts, 1e-3)
    gradients = zip(run.gradient_stats, stats.gradients, strict=True)
    for there, here in gradients:
        assert there == f"module.{here}"
        found, expected = run.gradient_stats[there], stats.gradients[here]
        assert set(found.columns.calls.tolist()) == {1}  # rank 0's alone: they are all the same
        np.testing.assert_array_equal(found.n, expected.n)
        np.testing.assert_allclose(found.norm, expected.norm, rtol=1e-3)
        update, its = run.update_stats[there], stats.updates[here]
        assert set(update.update.columns.calls.tolist()) == {1}
        np.testing.assert_allclose(update.ratio, its.ratio, rtol=1e-3)


def test_a_run_that_cannot_be_made_is_said_on_every_rank(folder):
    said = [(folder / f"refused-{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert "'mine'" in said[0]
    assert [path.name for path in (folder / "mine").iterdir()] == ["mine.txt"]


def test_a_run_of_the_next_free_number_is_joined(folder):
    assert [info.name for info in cl.list_runs(folder / "runs")] == ["watch-0001", "watch-0002"]
    for name in ("watch-0001", "watch-0002"):
        history = cl.open_run(folder / "runs" / name).activation_stats[0]
        assert history.columns.calls.tolist() == [2, 2]
