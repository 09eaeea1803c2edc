"""Schedules as pure functions, against torch where they agree."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import convlens as cl
from convlens.train.callbacks.scheduler import GroupSettings
from convlens.train.schedules import Constant, OneCycle, read_hypers


@pytest.mark.parametrize("n_steps", [8, 100, 590])
@pytest.mark.parametrize("pct_start", [0.25, 0.3, 0.5])
def test_one_cycle_agrees_with_torch(n_steps, pct_start):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    theirs = OneCycleLR(
        optimizer, 0.06, total_steps=n_steps, pct_start=pct_start,
        div_factor=25, final_div_factor=1e5 / 25, base_momentum=0.85, max_momentum=0.95,
    )  # fmt: skip
    ours = OneCycle(0.06, pct_start=pct_start)
    for step in range(n_steps):
        lr, momentum = ours(step, n_steps)
        assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert momentum == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-9)
        optimizer.step()
        if step < n_steps - 1:
            theirs.step()


def test_momentum_moves_against_the_learning_rate():
    cycle = OneCycle(0.1)
    values = [cycle(step, 200) for step in range(200)]
    for (lr, mom), (next_lr, next_mom) in pairwise(values):
        assert (next_lr - lr) * (next_mom - mom) <= 0
    assert values[0] == pytest.approx((0.1 / 25, 0.95))
    assert max(lr for lr, _ in values) == pytest.approx(0.1)
    assert min(mom for _, mom in values) == pytest.approx(0.85)
    assert values[-1] == pytest.approx((0.1 / 1e5, 0.95))
    for n_steps in (1, 2, 3):
        for step in range(n_steps):
            lr, momentum = cycle(step, n_steps)
            assert 0 < lr <= 0.1
            assert 0.85 <= momentum <= 0.95
    assert Constant(0.06)(17, 100) == (0.06, None)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: OneCycle(0), r"lr_max must be a positive number, such as 0.01, got 0"),
        (lambda: OneCycle(math.inf), r"lr_max must be a positive number, such as 0.01, got inf"),
        (lambda: OneCycle(0.1, div=-1), r"div must be a positive number"),
        (lambda: OneCycle(0.1, pct_start=1), r"pct_start must be between 0 and 1, got 1"),
        (lambda: OneCycle(0.1, moms=(1, 2, 3)), r"moms must be three momenta .* got \(1, 2, 3\)"),
        (lambda: OneCycle(0.1, moms=(0.9, 0.8)), r"moms must be three momenta .* got \(0.9, 0.8\)"),
        (lambda: Constant("0.1"), r"lr must be a positive number, such as 0.01, got '0.1'"),
    ],
)
def test_values_that_cannot_work(make, sentence):
    with pytest.raises(cl.ArgumentError, match=sentence):
        make()


def test_hyperparameters_of_each_optimizer():
    weights = [torch.nn.Parameter(torch.zeros(1))]
    adam = torch.optim.AdamW(weights, lr=0.1, betas=(0.9, 0.99))
    sgd = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    adagrad = torch.optim.Adagrad(weights, lr=0.1)
    for optimizer in (adam, sgd, adagrad):
        GroupSettings(0.1).apply(optimizer, 0.02, 0.5)
    assert read_hypers(adam.param_groups[0]).items() >= {
        "lr": 0.02, "momentum": 0.5, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01
    }.items()  # fmt: skip
    assert read_hypers(sgd.param_groups[0])["momentum"] == 0.5
    assert "momentum" not in read_hypers(adagrad.param_groups[0])
    GroupSettings(0.1).apply(sgd, 0.03, None)
    assert read_hypers(sgd.param_groups[0])["momentum"] == 0.5


def learner(optimizer):
    x = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
    dls = cl.from_arrays(x, np.arange(40) % 4, layout="NCHW", batch_size=10)
    model = cl.simple_cnn(1, 4, widths=(4, 8))
    return cl.Learner(dls, model, optimizer=optimizer, run=None, progress=False)


def rates(learn):
    return learn.recorder.steps.hypers["lr"]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_groups_keep_the_ratio_of_their_rates_from_fit_to_fit(kind):
    def three(parameters, lr):
        first, second, *rest = parameters
        groups = [{"params": [first], "lr": lr / 10}, {"params": [second], "lr": 0.0}]
        return kind([*groups, {"params": rest}], lr=lr)

    learn = learner(three)
    frozen = [p.detach().clone() for p in learn.model.parameters()][1]
    learn.fit_one_cycle(2, lr_max=0.02)
    cycle = [cl.OneCycle(0.02)(step, 8)[0] for step in range(8)]
    expected = np.outer(cycle, [0.1, 0.0, 1.0])
    np.testing.assert_allclose(rates(learn), expected, rtol=1e-12)
    learn.fit(1, lr=0.05)
    np.testing.assert_allclose(rates(learn), [[0.005, 0.0, 0.05]] * 4, rtol=1e-12)
    assert torch.equal(list(learn.model.parameters())[1], frozen)


def test_an_absolute_rate_is_reached_at_the_schedules_highest():
    def two(parameters, lr):
        first, *rest = parameters
        return torch.optim.SGD([{"params": [first], "lr": 1e-4}, {"params": rest}], lr=lr)

    learn = learner(two)
    learn.fit_one_cycle(2, lr_max=0.1)
    np.testing.assert_allclose(rates(learn).max(0), [1e-4, 0.1], rtol=1e-6)


def test_a_group_that_is_added_later_has_a_ratio_too():
    class Thaw(cl.Callback):
        def before_epoch(self, learn):
            if learn.epoch == 1:
                late = nn.Linear(2, 2).parameters()
                learn.optimizer.add_param_group({"params": late, "lr": 0.001})

    learn = learner(torch.optim.SGD)
    learn.add_callback(Thaw())
    learn.fit(2, lr=0.1)
    np.testing.assert_allclose(rates(learn)[3:5], [[0.1, np.nan], [0.1, 0.001]])
    learn.optimizer.add_param_group({"params": nn.Linear(2, 2).parameters()})
    learn.fit(1, lr=0.2)
    np.testing.assert_allclose(rates(learn), [[0.2, 0.002, 0.2]] * 4)


def test_a_group_with_a_momentum_of_its_own_keeps_it():
    def two(parameters, lr):
        first, *rest = parameters
        own = {"params": [first], "momentum": 0.5}
        return torch.optim.SGD([own, {"params": rest}], lr=lr, momentum=0.9)

    learn = learner(two)
    learn.fit_one_cycle(1, 0.01)
    momentum = learn.recorder.steps.hypers["momentum"]
    assert momentum[:, 0].tolist() == [0.5] * 4
    np.testing.assert_allclose(momentum[:, 1], [cl.OneCycle(0.01)(s, 4)[1] for s in range(4)])
    betas = torch.optim.AdamW(
        [{"params": nn.Linear(1, 1).parameters(), "betas": (0.5, 0.9)},
         {"params": nn.Linear(1, 1).parameters()}], lr=0.1,
    )  # fmt: skip
    GroupSettings(0.1).apply(betas, 0.2, 0.7)
    assert [g["betas"] for g in betas.param_groups] == [(0.5, 0.9), (0.7, 0.999)]


def test_the_run_says_the_rates_of_the_first_step(tmp_path):
    learn = learner(torch.optim.SGD)
    learn.run = tmp_path / "run"
    learn.fit_one_cycle(2, lr_max=0.1)
    groups = cl.open_run(tmp_path / "run").meta["optimizer"]["groups"]
    assert [group["lr"] for group in groups] == [pytest.approx(0.1 / 25)]
