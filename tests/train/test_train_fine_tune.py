"""Freezing, layer groups, rates by layer group and `fine_tune`."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

import convlens as cl
from convlens.errors import ArgumentError
from convlens.train.layer_groups import layer_groups

NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)


@functools.cache
def first_digits(n):
    dls = cl.mnist(batch_size=n, device="cpu")
    return *dls.train.peek(n), dls.classes


def digits(n=256, batch_size=64):
    """The first images of the embedded MNIST."""
    x, y, classes = first_digits(n)
    return cl.from_arrays(
        x, y, valid=(x[:64], y[:64]), layout="NCHW", classes=classes, batch_size=batch_size
    )


def network():
    return cl.simple_cnn(1, 10, norm="batch")


def learner(model=None, **options):
    options = {"run": None, "progress": False} | options
    return cl.Learner(digits(), model or network(), **options)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }


class Bits(cl.Callback):
    """What each epoch has changed, and which parameters had a gradient."""

    def __init__(self):
        self.changed, self.modes = [], []

    def before_epoch(self, learn):
        self.before = state(learn.model)

    def after_step(self, learn):
        self.modes.append(sum(m.training for m in learn.model.modules() if isinstance(m, NORMS)))
        for parameter in learn.model.parameters():
            assert (parameter.grad is None) is not parameter.requires_grad

    def after_epoch(self, learn):
        self.changed.append(changed(learn.model, self.before))


def head_of(model, prefix="4."):
    return {name for name in model.state_dict() if name.startswith(prefix)}


def test_fine_tuning_moves_the_head_alone_at_first():
    bits, model = Bits(), network()
    learn = learner(model, callbacks=[cl.ActivationStats(), cl.GradientStats(), cl.UpdateStats()])
    learn.fine_tune(1, 0.02, freeze_epochs=1, callbacks=[bits])
    assert bits.changed == [head_of(model), set(model.state_dict())]
    assert bits.modes == [1] * 4 + [5] * 4
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    rates = learn.recorder.steps.hypers["lr"]
    assert rates.shape == (8, 6)
    np.testing.assert_allclose(rates[:, 0] * 100, rates[:, 2])
    np.testing.assert_allclose(rates[:, 1] * 10, rates[:, 2])
    assert [e.epoch for e in learn.recorder.epochs] == [0, 1]
    lrs = [round(float(rate), 4) for rate in rates[:, 2]]
    assert lrs[2] > lrs[0]
    assert max(lrs[4:]) <= 0.01
    assert lrs[4] == 0.002


def test_fine_tuning_is_one_run_that_says_what_was_done(tmp_path):
    learn = learner(run=tmp_path / "tuned")
    learn.fine_tune(1, 0.01, freeze_epochs=2)
    run = cl.open_run(tmp_path / "tuned")
    assert len(run.epochs) == 3
    assert run.epochs[-1].metrics == {}
    assert {group["layers"] for group in run.meta["optimizer"]["groups"]} == {
        "first layers", "middle layers", "head",
    }  # fmt: skip
    facts = run.meta["schedule"]
    assert (facts["class"], facts["lowest"]) == ("Discriminative", 0.01)
    assert facts["schedule"]["frozen"]["lr_max"] == 0.01
    assert facts["schedule"]["unfrozen"]["lr_max"] == 0.005


def test_an_error_while_frozen_leaves_nothing_frozen():
    class Stop(cl.Callback):
        def after_step(self, learn):
            raise KeyboardInterrupt

    learn = learner()
    with pytest.raises(KeyboardInterrupt):
        learn.fine_tune(1, callbacks=[Stop()])
    assert all(p.requires_grad for p in learn.model.parameters())
    assert all(module.training for module in learn.model.modules())


def test_norms_of_a_model_in_evaluation_are_trained_after_they_were_frozen():
    bits, model = Bits(), network().eval()
    learn = learner(model)
    learn.freeze()
    learn.fine_tune(1, 0.02, freeze_epochs=1, callbacks=[bits])
    assert bits.modes == [1] * 4 + [5] * 4
    assert not any(module.training for module in model.modules())


class Diagnosed(cl.Callback):
    """What the doctor says after the first epoch: of the record in memory, and of the run."""

    order = 80

    def after_epoch(self, learn):
        if learn.epoch == 0:
            learn.sink.flush()
            self.found = list(learn.diagnose()), list(cl.diagnose(learn.run_path))


def test_layers_that_are_frozen_first_are_no_mistake(tmp_path):
    torch.manual_seed(0)
    x, y = torch.rand(120, 1, 8, 8), torch.randint(10, (120,))
    dls = cl.from_arrays(x, y, layout="NCHW", batch_size=2)
    said = Diagnosed()
    callbacks = [cl.ActivationStats(), said]
    learn = cl.Learner(dls, network(), callbacks=callbacks, run=tmp_path / "a", progress=False)
    learn.fine_tune(1, 1e-3)
    in_memory, of_run = said.found
    assert [f.kind for f in in_memory] == [f.kind for f in of_run]
    assert of_run  # labels are random
    assert "frozen-by-mistake" not in [f.kind for f in of_run]


def test_freeze_and_unfreeze_restore_what_was():
    model = network()
    model[0][0].weight.requires_grad_(False)
    model[1][2].eval()
    learn = learner(model)
    learn.freeze()
    learn.freeze()
    learn.unfreeze()
    assert [n for n, m in model.named_modules() if not m.training] == ["1.2"]
    learn.freeze()
    model.eval()  # what a user may do in between
    before = state(model)
    learn.fit(1)
    assert changed(model, before) == head_of(model)
    learn.validate()
    learn.unfreeze()
    assert not any(module.training for module in model.modules())
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["0.0.weight"]
    before = state(model)
    model.train()
    learn.fit(1)
    assert changed(model, before) == set(model.state_dict()) - {"0.0.weight"}
    learn.unfreeze()  # nothing to do


def test_rates_by_layer_group_are_geometric_and_last_one_fit():
    learn = learner(optimizer="sgd", weight_decay=0.1)
    learn.fit(1, 0.1)
    assert learn.recorder.steps.hypers["lr"].tolist() == [[0.1, 0.1]] * 4
    learn.fit(1, (1e-4, 1e-2))
    buffers = sum("momentum_buffer" in s for s in learn.optimizer.state.values())
    assert buffers == len(list(learn.model.parameters()))
    np.testing.assert_allclose(
        learn.recorder.steps.hypers["lr"], [[1e-4, 1e-3, 1e-2] * 2] * 4, rtol=1e-12
    )
    assert learn.recorder.steps.hypers["weight_decay"][0].tolist() == [0.1] * 3 + [0.0] * 3
    learn.fit_one_cycle(1, (1e-3, 1e-1))
    rates = learn.recorder.steps.hypers["lr"]
    np.testing.assert_allclose(rates[:, 0] * 100, rates[:, 2])
    learn.fit(1, 0.05)
    assert learn.recorder.steps.hypers["lr"].tolist() == [[0.05] * 6] * 4


def test_groups_of_ones_own_keep_their_ratio_in_each_layer_group():
    def make(parameters, lr):
        first, *others = parameters
        return torch.optim.SGD([{"params": [first], "lr": lr / 2}, {"params": others}], lr=lr)

    learn = learner(optimizer=make)
    learn.fit(1, (1e-4, 1e-2))
    expected = [[5e-5, 1e-4, 1e-3, 1e-2]] * 4
    np.testing.assert_allclose(learn.recorder.steps.hypers["lr"], expected)
    rate, _ = learn.plot_sched(cl.OneCycle(0.1))
    assert rate.lines[0].get_ydata().max() == pytest.approx(0.05, rel=0.05)


def test_a_parameter_that_is_not_the_networks_keeps_its_rate():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, y):
            return nn.functional.cross_entropy(output * self.scale, y)

    loss = Loss()
    learn = learner(
        loss=loss, optimizer=lambda ps, lr: torch.optim.SGD([*ps, *loss.parameters()], lr=lr)
    )
    learn.fit(1, (1e-4, 1e-2))
    np.testing.assert_allclose(learn.recorder.steps.hypers["lr"], [[1e-4, 1e-3, 1e-2, 1e-2]] * 4)
    assert loss.scale.item() != 1


def names(model, groups):
    known = {id(p): name for name, p in model.named_parameters()}
    return [[known[id(p)] for p in parameters] for parameters in groups.values()]


@pytest.mark.parametrize(
    ("spec", "head", "middle"),
    [
        ("timm:test_resnet", ["fc.weight", "fc.bias"], "layer2.0.downsample"),
        (
            "torchvision:mobilenet_v3_small",
            ["classifier.3.weight", "classifier.3.bias"],
            "features",
        ),
        pytest.param(
            "resnet18", ["fc.weight", "fc.bias"], "layer3.0.conv1", marks=pytest.mark.slow
        ),
        pytest.param(
            "timm:test_vit", ["head.weight", "head.bias"], "blocks", marks=pytest.mark.slow
        ),
    ],
)
def test_layer_groups_of_libraries(spec, head, middle):
    y = [0, 1, 2] * 2
    size = 160 if spec == "timm:test_vit" else 32
    dls = cl.from_arrays(torch.rand(6, 1, size, size), y, layout="NCHW")
    model = cl.model(spec, dls)
    groups = layer_groups(model)
    assert list(groups) == ["first layers", "middle layers", "head"]
    found = names(model, groups)
    assert found[2] == head
    assert found[1][0].startswith(middle)
    assert sum(map(len, found)) == len(list(model.parameters()))


class OutOfOrder(nn.Module):
    """Its layers are made in another order than they run in, and one runs twice."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.first = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x):
        x = self.shared(self.shared(self.first(x).relu()).relu())
        return self.head(x.mean((2, 3)))


def test_layer_groups_of_a_network_of_ones_own():
    model = OutOfOrder()
    assert names(model, layer_groups(model, (1, 9, 9))) == [
        ["first.weight", "first.bias"],
        ["shared.weight", "shared.bias"],
        ["head.weight", "head.bias"],
    ]
    one = nn.Sequential(nn.Flatten(), nn.Linear(81, 2))
    assert names(one, layer_groups(one, (1, 9, 9))) == [["1.weight", "1.bias"]]
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    assert names(tied, layer_groups(tied, (4,))) == [["0.bias"], ["0.weight", "2.bias"]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda learn: learn.fit(1, (1e-2, 1e-4)), r"lr must be .* \(low, high\).* got \(0.01, 0"),
        (lambda learn: learn.fit(1, (1e-4,)), "lr must be a learning rate or two"),
        (lambda learn: learn.fit_one_cycle(1, (0, 1e-2)), "lr_max must be a learning rate or two"),
        (lambda learn: learn.fine_tune(0), "n_epochs must be a whole number of at least 1"),
        (lambda learn: learn.fine_tune(1, freeze_epochs=-1), "freeze_epochs must be a whole"),
        (lambda learn: learn.fine_tune(1, lr_mult=0.5), "lr_mult must be a number of at least 1"),
        (lambda learn: learn.fine_tune(1, lr=(1e-4, 1e-2)), "lr_max must be a positive number"),
    ],
)
def test_arguments_that_cannot_work(call, words):
    with pytest.raises(ArgumentError, match=words):
        call(learner())
