"""Schedules as pure functions, against torch where they agree."""

import math
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import OneCycleLR

import convlens as cl
from convlens.train.callbacks.scheduler import GroupSettings
from convlens.train.schedules import NAMED, Constant, OneCycle, read_hypers, schedule_of


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("n_steps", [8, 100, 590])
@pytest.mark.parametrize("pct_start", [0.25, 0.3, 0.5])
def test_one_cycle_agrees_with_torch(n_steps, pct_start, anneal):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    theirs = OneCycleLR(
        optimizer, 0.06, total_steps=n_steps, pct_start=pct_start,
        div_factor=25, final_div_factor=1e5 / 25, base_momentum=0.85, max_momentum=0.95,
        anneal_strategy=anneal,
    )  # fmt: skip
    ours = OneCycle(0.06, pct_start=pct_start, anneal=anneal)
    for step in range(n_steps):
        lr, momentum = ours(step, n_steps)
        assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert momentum == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-9)
        optimizer.step()
        if step < n_steps - 1:
            theirs.step()


def then_cosine(optimizer, first, milestone, n_steps):
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, n_steps - 1 - milestone, eta_min=0.06 / 1e5)
    return lr_scheduler.SequentialLR(optimizer, [first, cosine], [milestone])


TORCHS = {  # for steps whose shares are whole: torch counts the parts in whole steps
    "constant": (cl.Constant(0.06), lambda o, _: lr_scheduler.ConstantLR(o, factor=1)),
    "exponential": (
        cl.Exponential(0.06, 0.002),
        lambda o, n: lr_scheduler.ExponentialLR(o, (0.002 / 0.06) ** (1 / (n - 1))),
    ),
    "flat cosine": (
        cl.FlatCosine(0.06),
        lambda o, n: then_cosine(o, lr_scheduler.ConstantLR(o, factor=1), n * 3 // 4 - 1, n),
    ),
    "cosine": (cl.WarmupCosine(0.06, 0), lambda o, n: lr_scheduler.CosineAnnealingLR(
        o, n - 1, eta_min=0.06 / 1e5)),
    "warm-up cosine": (
        cl.WarmupCosine(0.06, warmup=0.1, div=10),
        lambda o, n: then_cosine(
            o, lr_scheduler.LinearLR(o, 0.1, total_iters=n // 10 - 1), n // 10 - 1, n
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("n_steps", [20, 100, 600])
@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # torch's own call
def test_the_others_agree_with_torch(name, n_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.06)
    ours, make = TORCHS[name]
    theirs = make(optimizer, n_steps)
    for step in range(n_steps):
        lr, momentum = ours(step, n_steps)
        assert momentum is None
        assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", NAMED)
def test_any_number_of_steps_gives_rates_up_to_the_peak(name):
    schedule = schedule_of(name, 0.1)
    assert schedule.peak == 0.1
    for n_steps in (1, 2, 3, 7, 500):
        rates = [schedule(step, n_steps)[0] for step in range(n_steps)]
        assert all(0 < rate <= 0.1 * (1 + 1e-12) for rate in rates)
        if n_steps > 400:
            assert max(rates) == pytest.approx(0.1)
    assert cl.Exponential(0.001, 0.1).peak == 0.1


def test_an_unknown_name_gives_the_known_ones():
    with pytest.raises(cl.ArgumentError, match=r"schedule must be one of one-cycle, .*, exponentia"
                       r"l, got 'flat-cosin'. Closest: 'flat-cosine'"):  # fmt: skip
        schedule_of("flat-cosin", 0.1)


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
        (lambda: OneCycle(0.1, anneal="cosine"), r"anneal must be 'cos' or 'linear', got 'cosine'"),
        (lambda: cl.FlatCosine(0.1, pct_start=1), r"pct_start is a share of the steps, .* got 1"),
        (lambda: cl.WarmupCosine(0.1, warmup=5), r"warmup is a share of the steps, .* got 5"),
        (lambda: cl.Exponential(0.1, 0), r"lr_end must be a positive number, .* got 0"),
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


class Halved:
    """A schedule of one's own."""

    peak = 0.1

    def __call__(self, step, n_steps):
        return (self.peak if step < n_steps // 2 else self.peak / 2), 0.8


def test_a_schedule_of_ones_own_trains_and_is_recorded(tmp_path):
    learn = learner(torch.optim.SGD)
    learn.run = tmp_path / "run"
    learn.fit(2, Halved())
    assert rates(learn)[:, 0].tolist() == [0.1] * 4 + [0.05] * 4
    assert cl.open_run(learn.run_path).meta["schedule"] == {"class": "Halved", "peak": 0.1}
    learn.run = tmp_path / "second"
    learn.fit(1, cl.FlatCosine(0.1))
    assert cl.open_run(learn.run_path).meta["schedule"] == {
        "class": "FlatCosine", "lr": 0.1, "pct_start": 0.75, "div_final": 1e5,
    }  # fmt: skip


class Single(Halved):
    def __call__(self, step, n_steps):
        return 0.1


@pytest.mark.parametrize(
    ("lr", "sentence"),
    [
        ("0.1", r"lr must be a learning rate, such as 0.01, or a schedule.*; got '0.1'\."),
        (None, r"lr must be a learning rate"),
        (cl.OneCycle, r"lr must be .* give an object, OneCycle\(0.01\)"),
        (lambda step, n_steps: 0.1, r"an object with \.peak that is called with"),
        (Single(), r"Single\(step, n_steps\) must return a pair \(learning rate, momentum\).*0.1"),
        (-1.0, r"lr must be a positive number"),
    ],
)
def test_what_is_no_schedule(lr, sentence):
    with pytest.raises(cl.ArgumentError, match=sentence):
        learner(torch.optim.SGD).fit(1, lr)


def shown(axes):
    """The lines of both axes, by their labels."""
    return [{line.get_label(): line.get_ydata() for line in ax.lines[:2]} for ax in axes]


def test_the_plot_before_a_training_is_the_one_after_it():
    def two(parameters, lr):
        first, *rest = parameters
        own = {"params": [first], "lr": lr / 10, "momentum": 0.5}
        return torch.optim.SGD([own, {"params": rest}], lr=lr, momentum=0.9)

    learn = learner(two)
    with pytest.raises(cl.ArgumentError, match="schedule is None and nothing was trained yet"):
        learn.plot_sched()
    planned = shown(learn.plot_sched(cl.OneCycle(0.02), n_epochs=3))
    with pytest.raises(cl.TrainingError):  # no optimizer was made
        _ = learn.optimizer
    learn.fit_one_cycle(3, 0.02)
    for one, other in zip(planned, shown(learn.plot_sched()), strict=True):
        assert one.keys() == other.keys()
        for label in one:
            np.testing.assert_allclose(one[label], other[label])
    before = [dict(group) for group in learn.optimizer.param_groups]
    rate, momentum = learn.plot_sched(cl.FlatCosine(0.01), n_epochs=2)
    assert [max(line.get_ydata()) for line in rate.lines[:2]] == pytest.approx([0.001, 0.01])
    assert [set(line.get_ydata()) for line in momentum.lines[:2]] == [{0.5}, {0.95}]
    assert [dict(group) for group in learn.optimizer.param_groups] == before
    plt.close("all")
