"""Optimizers by name."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import convlens as cl
from convlens.errors import ArgumentError
from convlens.train.optimizers import NAMED


def data():
    return cl.from_arrays(torch.rand(8, 1, 9, 9), [0, 1] * 4, layout="NCHW", batch_size=4)


def learner(**options):
    model = cl.simple_cnn(1, 2, norm="batch", widths=(4, 4, 4))
    return cl.Learner(data(), model, progress=False, **({"run": None} | options))


def groups(learn):
    learn.fit(1, 1e-3)
    return [
        (group.get("name"), group["weight_decay"], len(group["params"]))
        for group in learn.optimizer.param_groups
    ]


@pytest.mark.parametrize("name", NAMED)
def test_biases_and_norms_get_no_weight_decay(name):
    learn = learner(optimizer=name, weight_decay=0.1)
    before = [p.detach().clone() for p in learn.model.parameters()]
    assert groups(learn) == [("weights", 0.1, 4), ("biases and norms", 0.0, 12)]
    matrices, others = (group["params"] for group in learn.optimizer.param_groups)
    assert all(p.ndim == 4 for p in matrices)
    assert all(p.ndim == 1 for p in others)
    pairs = zip(before, learn.model.parameters(), strict=True)
    assert sum(not torch.equal(old, new) for old, new in pairs) >= 14  # a gradient may be 0


def test_the_default_is_the_chapters_adamw():
    learn = learner(run="auto")
    assert groups(learn) == [("weights", 0.01, 4), ("biases and norms", 0.0, 12)]
    assert type(learn.optimizer).__name__ == "AdamW"
    for group in learn.optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.99), 1e-5)
    facts = cl.open_run(learn.run_path).meta["optimizer"]["groups"]
    assert [group["name"] for group in facts] == ["weights", "biases and norms"]
    assert [group["weight_decay"] for group in facts] == [0.01, 0.0]


def test_without_weight_decay_there_is_one_group():
    learn = learner(optimizer="sgd")
    assert groups(learn) == [(None, 0, 16)]
    settings = learn.optimizer.param_groups[0]
    assert (settings["momentum"], settings["nesterov"]) == (0.9, True)
    assert groups(learner(optimizer="adamw", weight_decay=0)) == [(None, 0.0, 16)]


def test_empty_groups_are_left_out():
    matrix = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(81, 2, bias=False))
    learn = cl.Learner(data(), matrix, run=None, progress=False)
    assert groups(learn) == [("weights", 0.01, 1)]


def test_a_function_is_called_as_before():
    given = []

    def make(parameters, lr):
        given.append((list(parameters), lr))
        return torch.optim.SGD(given[0][0], lr=lr, weight_decay=0.5)

    learn = learner(optimizer=make)
    assert groups(learn) == [(None, 0.5, 16)]
    assert list(map(id, given[0][0])) == list(map(id, learn.model.parameters()))
    assert given[0][1] == 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adamv"}, "optimizer='adamv' is not known; .* Closest: 'adam"),
        ({"optimizer": "lion"}, "give one of adamw, adam, sgd, rmsprop, nadam, radam, or a func"),
        ({"weight_decay": -1}, "weight_decay must be a number of at least 0, .* got -1"),
        ({"weight_decay": "0.1"}, "weight_decay must be a number of at least 0, .* got '0.1'"),
        (
            {"optimizer": partial(torch.optim.AdamW), "weight_decay": 0.1},
            "weight_decay=0.1 is for an optimizer by name",
        ),
    ],
)
def test_what_cannot_work_is_said_at_once(options, words):
    with pytest.raises(ArgumentError, match=words):
        learner(**options)
