"""Numbers that a loop of one's own logs: the right step, the same record, and no end of a step."""

import copy
import pickle
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from test_watching_watch import small_net
from torch import nn
from torch.nn import functional as F

import convlens as cl


def batches(n):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        yield torch.randn(6, 1, 12, 12, generator=generator), torch.arange(6) % 3


@pytest.mark.parametrize("recorded", [True, False])
def test_a_loop_with_epochs(tmp_path, recorded):
    """In memory and on disk: losses, learning rates, epochs, and plots of them."""
    model, losses = small_net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    with cl.watch(model, run=tmp_path / "run" if recorded else None) as stats:
        for epoch in range(3):
            for x, y in batches(50):
                loss = F.cross_entropy(model(x), y)
                stats.log(loss=loss)
                loss.backward()
                stats.log(norm=np.float32(2.0), size=len(x))
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                losses.append(loss.item())
            stats.log_epoch(valid_loss=torch.tensor([0.5]), accuracy=0.1 * epoch)
    read = [stats.recorder, cl.open_run(stats.run_path).recorder] if recorded else [stats.recorder]
    for recorder in read:
        steps, epochs = recorder.steps, recorder.epochs
        assert steps.step.tolist() == list(range(150))
        assert steps.epoch.tolist() == [0] * 50 + [1] * 50 + [2] * 50
        np.testing.assert_allclose(steps.loss, losses)
        assert (np.diff(steps.wall_s) > 0).all()
        assert sorted(steps.hypers) == ["lr", "momentum", "norm", "size", "weight_decay"]
        np.testing.assert_allclose(steps.hypers["lr"][:, 0], 0.1 * 0.99 ** np.arange(150))
        assert set(steps.hypers["momentum"][:, 0]) == {0.9}
        assert set(steps.hypers["size"][:, 0]) == {6.0}
        assert [(e.first_step, e.last_step) for e in epochs] == [(0, 49), (50, 99), (100, 149)]
        assert [e.train_loss for e in epochs] == pytest.approx(
            [np.mean(losses[i : i + 50]) for i in (0, 50, 100)]
        )
        assert [e.valid_loss for e in epochs] == [0.5] * 3
        assert [e.metrics["accuracy"] for e in epochs] == [0.0, 0.1, 0.2]
        assert len(recorder.plot_loss().lines) >= 3  # each batch, smoothed, validation
    assert [epoch.epoch for epoch in stats.epochs] == [0, 1, 2]
    assert stats.notes == ()


def test_the_report_of_a_logged_run_shows_its_loss(tmp_path):
    model = small_net()
    with cl.watch(model, run=tmp_path / "run") as stats:
        for _ in range(2):
            for x, y in batches(15):
                stats.log(loss=F.cross_entropy(model(x), y))
            stats.log_epoch(valid_loss=1.0)
    assert "no steps were recorded" not in cl.report(stats).read_text()
    assert not any(finding.kind == "too-short" for finding in cl.diagnose(stats))


def test_a_gan_whose_critic_is_called_three_times(tmp_path):
    """Numbers belong to the last counted forward; the other network's optimizer is not read."""
    generator, critic = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    of_critic = torch.optim.Adam(critic.parameters(), lr=0.01, betas=(0.5, 0.99))
    of_generator = torch.optim.SGD(generator.parameters(), lr=0.1)
    with cl.watch(critic, run=tmp_path / "run") as stats:
        for _ in range(4):
            fake = generator(torch.randn(8, 2))
            loss = critic(fake.detach()).mean() - critic(torch.randn(8, 4)).mean()
            loss.backward()
            of_critic.step()
            of_critic.zero_grad()
            of_generated = -critic(fake).mean()
            of_generated.backward()
            of_generator.step()
            stats.log(loss=loss, generator=of_generated)
    steps = cl.open_run(tmp_path / "run").steps
    assert steps.step.tolist() == [2, 5, 8, 11]
    assert np.isfinite(steps.loss).all()
    assert np.isfinite(steps.hypers["generator"]).all()
    assert set(steps.hypers["lr"][:, 0]) == {0.01}
    assert set(steps.hypers["momentum"][:, 0]) == {0.5}


def test_accumulation_and_parameter_groups():
    model = small_net()
    groups = [{"params": model[:3].parameters(), "lr": 0.2}, {"params": model[3:].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with cl.watch(model) as stats:
        for index, (x, y) in enumerate(batches(6)):
            loss = F.cross_entropy(model(x), y)
            stats.log(loss=loss)
            loss.backward()
            if index % 2:
                optimizer.step()
                optimizer.zero_grad()
    steps = stats.recorder.steps
    assert steps.step.tolist() == list(range(6))
    np.testing.assert_allclose(steps.hypers["lr"], [[0.2, 0.1]] * 6)


def test_several_optimizers_and_one_that_is_replaced():
    """All groups, in the order of first steps, also of the first step; a new optimizer replaces."""
    model = small_net()
    parts = [torch.optim.SGD(p.parameters(), lr=lr) for p, lr in ((model[:3], 0.2), (model[3:], 3))]
    with cl.watch(model) as stats:
        for index, (x, _) in enumerate(batches(4)):
            model(x).mean().backward()
            for optimizer in parts:
                optimizer.step()
            stats.log(loss=1.0)
            if index == 1:
                parts = [torch.optim.Adam(model.parameters(), lr=0.01)]
    lr = stats.recorder.steps.hypers["lr"]
    np.testing.assert_array_equal(lr, [[0.2, 3], [0.2, 3], [0.01, np.nan], [0.01, np.nan]])


def test_losses_that_are_logged_at_some_steps_only(tmp_path):
    for name, every in (("none", 1000), ("some", 5)):
        model = small_net()
        with cl.watch(model, run=tmp_path / name) as stats:
            for index, (x, _) in enumerate(batches(110)):
                model(x)
                stats.log(acc=0.5)
                if index % every == 0 and name == "some":
                    stats.log(loss=1 / (index + 1))
            stats.log_epoch(accuracy=0.5)
        run = cl.open_run(tmp_path / name)
        assert run.meta["loss_at_every_step"] is False
        assert len(run.steps) == len(stats.recorder.steps) == 110
        found = cl.diagnose(run)
        assert not any(finding.kind == "nonfinite-loss" for finding in found)
        if name == "none":
            assert found[0].text.startswith("No loss was recorded. In a loop of your own, call")
            assert run.epochs[0].train_loss is stats.epochs[0].train_loss is None
        else:
            assert found[0].kind == "healthy"
            assert 0 < run.epochs[0].train_loss < 1
        assert "The loss was NaN" not in cl.report(run).read_text()


def test_a_loop_that_logs_its_loss_late_in_each_step_logs_all(tmp_path, monkeypatch):
    monkeypatch.setattr("convlens.watching.step_log.HANDOVER_S", 0.0)
    model = small_net()
    with cl.watch(model, run=tmp_path / "run") as stats:
        for x, _ in batches(3):
            loss = model(x).mean()
            stats.log(size=len(x))
            stats.log(loss=loss)
    run = cl.open_run(tmp_path / "run")
    assert "loss_at_every_step" not in run.meta
    assert np.isfinite(run.steps.loss).all()
    assert set(run.steps.hypers["size"][:, 0]) == {6.0}


def test_a_validation_before_training_is_an_epoch_without_steps(tmp_path):
    model = small_net()
    with cl.watch(model, run=tmp_path / "run") as stats:
        stats.log_epoch(valid_loss=2.0)
        cl.report(stats)  # nothing but this epoch is in the run
        for _ in range(2):
            for x, _ in batches(3):
                stats.log(loss=model(x).mean())
            stats.log_epoch(valid_loss=1.0)
        stats.log_epoch(valid_loss=0.5)
    run = cl.open_run(tmp_path / "run")
    for epochs in (stats.epochs, run.epochs):
        ranges = [(epoch.first_step, epoch.last_step) for epoch in epochs]
        assert ranges == [(0, -1), (0, 2), (3, 5), (6, 5)]
    assert run.steps.epoch.tolist() == [1, 1, 1, 2, 2, 2]
    assert run.recorder.plot_loss()
    assert cl.report(run).exists()


def test_the_last_value_of_a_step_wins_and_others_stay():
    model = small_net()
    with cl.watch(model) as stats:
        stats.log(loss=9.0, before=1.0)  # before any forward: step 0
        for x, _ in batches(2):
            total = model(x).sum().detach()
            stats.log(loss=total, twice=1.0)
            stats.log(twice=2.0)
            total += 1e6  # what was logged stays
    steps = stats.recorder.steps
    assert steps.step.tolist() == [0, 1]
    assert (abs(steps.loss) < 1e3).all()
    assert steps.hypers["twice"][:, 0].tolist() == [2.0, 2.0]
    assert steps.hypers["before"][0, 0] == 1.0
    assert np.isnan(steps.hypers["before"][1, 0])


def test_a_step_that_was_written_early_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr("convlens.watching.step_log.HANDOVER_S", 0.0)
    model = small_net()
    with cl.watch(model, run=tmp_path / "run") as stats:
        for x, _ in batches(3):
            stats.log(loss=model(x).mean())
            stats.sink.flush(wait=True)
            assert len(cl.open_run(tmp_path / "run").steps) == len(stats.recorder.steps)
            stats.log(late=1.0)
            stats.log_epoch(accuracy=1.0)
            stats.log(later=2.0)
    steps = cl.open_run(tmp_path / "run").steps
    for name, value in (("late", 1.0), ("later", 2.0)):
        assert steps.hypers[name][:, 0].tolist() == [value] * 3
    assert np.isfinite(steps.loss).all()
    assert steps.epoch.tolist() == [0, 1, 2]
    assert [epoch.first_step for epoch in stats.epochs] == [0, 1, 2]


@pytest.mark.parametrize("error", [None, ValueError("mine"), KeyboardInterrupt()])
def test_a_loop_that_ends_early_has_all_its_steps(tmp_path, error):
    model = small_net()
    stats = cl.watch(model, run=tmp_path / "run")
    with pytest.raises(type(error)) if error else nullcontext(), stats:
        for x, _ in batches(70):
            stats.log(loss=model(x).mean())
        if error:
            raise error
    assert len(cl.open_run(tmp_path / "run").steps) == 70
    with pytest.warns(
        cl.ConvlensWarning, match="1 calls of stats.log or stats.log_epoch were not written"
    ):
        stats.log(loss=1.0)
    stats.log_epoch(valid_loss=1.0)
    assert stats.notes[-1].startswith("2 calls of stats.log or stats.log_epoch were not written")
    assert len(stats.recorder.steps) == 70
    assert not stats.epochs


def test_a_killed_loop_has_what_was_written(tmp_path):
    program = """
import os, torch, convlens as cl
model = torch.nn.Linear(4, 4)
stats = cl.watch(model, run="mine").attach()
for _ in range(130):
    stats.log(loss=model(torch.randn(8, 4)).mean())
stats.flush()
stats.sink.flush(wait=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False, timeout=120)
    assert done.returncode == -9
    assert cl.open_run(tmp_path / "mine").steps.step.tolist() == list(range(130))


def test_losses_that_are_not_finite_are_losses(tmp_path):
    model = small_net()
    with cl.watch(model, run=tmp_path / "run") as stats:
        for value, (x, _) in zip([1.0, float("nan"), float("inf")], batches(3), strict=True):
            stats.log(loss=model(x).mean() * 0 + value)
        stats.log_epoch()
    np.testing.assert_array_equal(cl.open_run(tmp_path / "run").steps.loss, [1, np.nan, np.inf])
    assert np.isnan(stats.epochs[0].train_loss)
    assert any(finding.kind == "nonfinite-loss" for finding in cl.diagnose(stats))


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("0.5", "got '0.5'"),
        (None, "got None"),
        (torch.ones(2, 3), r"got a tensor of shape \(2, 3\)"),
        (torch.ones((), dtype=torch.complex64), r"got a tensor of shape \(\)"),
        ([1.0], r"got \[1.0\]"),
    ],
)
def test_what_is_no_number(value, got):
    stats = cl.watch(small_net())
    for log, name in ((stats.log, "loss"), (stats.log_epoch, "valid_loss")):
        with pytest.raises(
            cl.ArgumentError, match=f"{name} must be a number or a tensor of one element, {got}"
        ):
            log(**{name: value})
    assert len(stats.recorder.steps) == len(stats.epochs) == 0


def test_a_value_that_cannot_be_read_ends_no_step():
    model = small_net()
    with cl.watch(model) as stats:
        model(torch.randn(6, 1, 12, 12))
        with pytest.warns(cl.ConvlensWarning, match="1 logged numbers could not be recorded"):
            stats.log(loss=torch.ones((), device="meta"))
        stats.log(loss=1.0)
    assert stats.recorder.steps.loss.tolist() == [1.0]


def test_numbers_need_names_that_fit():
    stats = cl.watch(small_net())
    for log in (stats.log, stats.log_epoch):
        with pytest.raises(cl.ArgumentError, match=r"every number needs a name, .*, got 1\.0"):
            log(1.0)
    with pytest.raises(cl.ArgumentError, match="no loss; use train_loss or valid_loss"):
        stats.log_epoch(loss=1.0)
    for name, value in (("gradients", "x"), ("updates", 3), ("count_forwards", "no")):
        with pytest.raises(cl.ArgumentError, match=f"{name} must be True or False, got {value!r}"):
            cl.watch(small_net(), **{name: value})


def test_numbers_before_the_first_step_are_kept():
    model = small_net()
    with cl.watch(model, count_forwards=False) as stats:
        for index, (x, _) in enumerate(batches(3)):
            model(x)
            stats.log(loss=float(index))
            stats.step()
    assert stats.recorder.steps.step.tolist() == [0, 1, 2]
    assert stats.recorder.steps.loss.tolist() == [0.0, 1.0, 2.0]


def test_steps_that_the_user_says_and_copies():
    model = small_net()
    with cl.watch(model, count_forwards=False, every=2) as stats:
        for number, (x, _) in enumerate(batches(4)):
            stats.step(10 * number)
            stats.log(loss=model(x).mean())
    for found in (stats, copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        assert found.recorder.steps.step.tolist() == [0, 10, 20, 30]
