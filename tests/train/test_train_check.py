"""`learn.check`, and what the first batch of a fit shows."""

import pytest
import torch
from torch import nn

import convlens as cl

X, Y = torch.randn(24, 1, 4, 4), torch.arange(24) % 3


def learner(*end, out=3, **given):
    torch.manual_seed(0)
    dls = cl.DataLoaders([(X[:12], Y[:12]), (X[12:], Y[12:])], classes=["a", "b", "c"])
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, out), *end)
    return cl.Learner(dls, model, run=None, progress=False, **given)


def test_check_tries_what_fit_would_do():
    learn = learner()
    before = [p.clone() for p in learn.model.parameters()]
    random = torch.get_rng_state()
    result = learn.check(lr=0.01, seconds=1)
    assert [found.kind for found in result] == ["healthy"]
    assert any("with AdamW" in text for text in result.tried)
    assert all(map(torch.equal, before, learn.model.parameters()))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in learn.model.parameters())


def test_check_finds_what_a_loop_would():
    assert learner(nn.Softmax(1)).check(seconds=1)[0].kind == "softmax-before-cross-entropy"
    wrong = learner(out=5).check(seconds=1)[0]
    assert "5 outputs" in wrong.evidence
    assert "3 classes" in wrong.evidence


def test_the_first_batch_is_judged_before_the_first_step():
    learn = learner(nn.Softmax(1))
    steps = []

    class Order(cl.Callback):
        def before_step(self, learn):
            steps.append(learn.step)

    learn.add_callback(Order())
    with pytest.warns(cl.ConvlensWarning, match="softmax is applied twice") as said:
        learn.fit(1)
    assert len(said) == 1
    learn.fit(1)  # said once
    assert steps == [0, 1] * 2


def test_a_healthy_fit_says_nothing_and_is_the_same():
    ends = []
    for quiet in (False, True):
        learn = learner(nn.Dropout(0.1), seed=3)
        if quiet:
            learn.callbacks = [c for c in learn.callbacks if c.attribute() != "first_batch"]
        learn.fit(2)
        ends.append([p.clone() for p in learn.model.parameters()])
    assert all(map(torch.equal, *ends))
