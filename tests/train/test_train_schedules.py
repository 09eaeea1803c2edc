"""Schedules as pure functions, against torch where they agree."""

import math
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

import convlens as cl
from convlens.train.schedules import Constant, OneCycle, read_hypers, set_hypers


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


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_very_short_trainings(n_steps):
    for step in range(n_steps):
        lr, momentum = OneCycle(0.1)(step, n_steps)
        assert 0 < lr <= 0.1
        assert 0.85 <= momentum <= 0.95


def test_constant():
    assert Constant(0.06)(17, 100) == (0.06, None)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: OneCycle(0), r"lr_max=0 is not a positive number; try lr_max=0.01"),
        (lambda: OneCycle(math.inf), r"lr_max=inf is not a positive number"),
        (lambda: OneCycle(0.1, div=-1), r"div=-1 is not a positive number"),
        (lambda: OneCycle(0.1, pct_start=1), r"pct_start=1 is not a share of the steps"),
        (lambda: OneCycle(0.1, moms=(1, 2, 3)), r"moms=\(1, 2, 3\) is not three momenta"),
        (lambda: OneCycle(0.1, moms=(0.9, 0.8)), r"moms=\(0.9, 0.8\) is not three momenta"),
        (lambda: Constant(-1), r"lr=-1 is not a positive number"),
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
        set_hypers(optimizer, 0.02, 0.5)
    assert read_hypers(adam.param_groups[0]).items() >= {
        "lr": 0.02, "momentum": 0.5, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01
    }.items()  # fmt: skip
    assert read_hypers(sgd.param_groups[0])["momentum"] == 0.5
    assert "momentum" not in read_hypers(adagrad.param_groups[0])
    set_hypers(sgd, 0.03, None)
    assert read_hypers(sgd.param_groups[0])["momentum"] == 0.5
