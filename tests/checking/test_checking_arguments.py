"""What a check takes and refuses, and how it says what it found."""

from __future__ import annotations

import time
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import convlens as cl

X, Y = torch.randn(24, 4), torch.arange(24) % 3
LOSS = nn.CrossEntropyLoss()


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))


def checked(data: object, loss: Any = LOSS, **given: Any) -> cl.CheckResult:
    model = given.pop("model", None) or mlp()
    if "optimizer" not in given:
        given["optimizer"] = torch.optim.Adam(model.parameters(), 0.01)
    optimizer = given.pop("optimizer")
    return cl.check(model, data, loss, optimizer, seconds=given.pop("seconds", 1), **given)


class Stream(IterableDataset[Any]):
    def __init__(self) -> None:
        self.lines = iter(range(9))

    def __iter__(self) -> Any:
        return ((X[i], Y[i]) for i in self.lines)


REFUSED = {
    "an iterator": (lambda: {"data": iter([(X, Y)])}, "can be read only once"),
    "a generator": (lambda: {"data": (b for b in [(X, Y)])}, "can be read only once"),
    "a stream": (lambda: {"data": DataLoader(Stream(), 3)}, "Stream.lines, an iterator"),
    "nothing": (lambda: {"data": []}, "without a batch"),
    "a number": (lambda: {"data": 3}, "must be a batch"),
    "a class": (lambda: {"data": (X, Y), "loss": nn.CrossEntropyLoss}, "is a class; give"),
    "two losses": (lambda: {"data": (X, Y), "step": LOSS}, "both given"),
    "no optimizer": (lambda: {"data": (X, Y), "optimizer": 0.1}, "optimizer must be"),
    "no time": (lambda: {"data": (X, Y), "seconds": 0.5}, "at least 1"),
    "no values": (lambda: {"data": (X, Y), "model": mlp().to("meta")}, "device 'meta'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_gets_a_sentence(name: str) -> None:
    given, words = REFUSED[name]
    with pytest.raises(cl.ArgumentError, match=words):
        checked(**given())


class Dictionary(nn.Module):
    """Takes inputs by name, and gives the loss if it gets labels, as Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, values: Tensor, mask: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        scores = self.net(values * mask)
        loss = None if labels is None else nn.functional.cross_entropy(scores, labels)
        return {"loss": loss, "scores": scores}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.net(a + b)


Pair = namedtuple("Pair", ["image", "label"])
NAMED = {"values": X, "mask": torch.ones_like(X), "labels": Y}

BATCHES: dict[str, Any] = {
    "a pair": ((X, Y), LOSS, mlp),
    "a list": ([X, Y], LOSS, mlp),
    "a named pair": (Pair(X, Y), LOSS, mlp),
    "three": ((X, X, Y), LOSS, Two),
    "nested": (((X, X), Y), LOSS, Two),
    "names": (NAMED, lambda out, y: LOSS(out["scores"], y), Dictionary),
    "own loss": (NAMED, None, Dictionary),
    "list of names": ([NAMED, NAMED], None, Dictionary),
    "targets by name": ((X, {"class": Y}), lambda out, y: LOSS(out, y["class"]), mlp),
    "file names": ((X, Y), LOSS, mlp),
    "no targets": ((X,), lambda out, _: out.square().mean(), mlp),
    "each item's": ((X, Y), nn.CrossEntropyLoss(reduction="none"), mlp),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_all_kinds(name: str) -> None:
    data, loss, make = BATCHES[name]
    result = checked(data, loss, model=make())
    assert [found.kind for found in result] == ["healthy"], result
    assert result.tried[0].endswith("24 items")


def test_a_step_of_ones_own() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        return LOSS(model(batch[0]), batch[1]) + 0.01 * model[0].weight.norm()

    assert not checked((X, Y), None, step=step).problems


def test_a_step_that_does_not_call_the_model_itself() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = mlp(), nn.Linear(3, 3)

        def training_step(self, batch: Any) -> Tensor:
            return LOSS(self.head(self.net(batch[0])), batch[1])

    found = checked((X, Y), None, model=Module(), step=lambda model, b: model.training_step(b))
    assert not found.problems
    assert any("steps on one batch with Adam (the loss went from" in one for one in found.tried)


ERRORS = {
    "range": ((X, Y + 1), LOSS, "labels-shifted", "go from 1 to 3"),
    "too few": ((X, Y * 4), LOSS, "too-few-outputs", "gives 3 outputs"),
    "shape": ((X[:, :3], Y), LOSS, "training-step-raises", "takes 4 features"),
    "dtype": ((X, Y.float()), LOSS, "training-step-raises", "CrossEntropyLoss cannot take"),
    "none": (X, LOSS, "training-step-raises", "raises"),
    "number": ((X, Y), lambda out, y: 0.5, "training-step-raises", "must return a tensor"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_step_that_raises_is_a_finding(name: str) -> None:
    data, loss, kind, words = ERRORS[name]
    found = checked(data, loss)[0]
    assert (found.kind, found.severity, found.confidence) == (kind, "problem", "certain")
    assert words in found.evidence
    assert found.fix


def test_a_backward_of_ones_own() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        loss = LOSS(model(batch[0]), batch[1])
        loss.backward()
        return loss

    found = checked((X, Y), None, step=step)[0]
    assert "without calling loss.backward()" in found.fix


def test_nothing_to_train() -> None:
    frozen = mlp().requires_grad_(requires_grad=False)
    assert checked((X, Y), model=frozen, optimizer=None)[0].kind == "frozen-by-mistake"
    none = checked((X, Y), model=nn.Flatten(), optimizer=None)[0]
    assert (none.kind, none.severity) == ("no-parameters", "problem")

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [mlp()]

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](x)

    assert checked((X, Y), model=Hidden(), optimizer=None)[0].kind == "layers-not-registered"


def test_small_batches_and_models_made_for_one_size() -> None:
    assert not checked((X[:1], Y[:1])).problems
    fixed = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (24, 4)), *mlp())
    assert [found.kind for found in checked((X, Y), model=fixed)] == ["healthy"]


def test_without_an_optimizer_nothing_is_said_of_rates() -> None:
    result = checked((X, Y), optimizer=None)
    assert not result.problems
    assert "the learning rate, as no optimizer of torch was given" in result.not_tried


def test_a_slow_network_keeps_to_the_seconds() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.03 * len(x))
            return self.net(x)

    checked((X, Y))  # what is compiled once
    began = time.perf_counter()
    result = checked((X, Y), model=Slow())
    assert time.perf_counter() - began < 2
    assert "2 items of each, as the network is slow" in result.tried
    assert any("learned by heart" in text for text in result.not_tried)
    assert not result.problems


def test_what_is_printed() -> None:
    loader = DataLoader(TensorDataset(X, Y), 8)
    broken = nn.Sequential(*mlp(), nn.Softmax(1))
    text = str(checked(loader, model=broken))
    first = text.splitlines()[0]
    assert first.startswith("problem (certain): The outputs are probabilities")
    assert "Remove the softmax" in first
    assert "3 batches of 8 items" in text
    healthy = str(checked(loader))
    assert "Nothing looks wrong" in healthy
    assert "steps on one batch with Adam" in healthy


def test_labels_are_those_of_all_items_where_few_are_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("convlens.checking.checker.STEP_SHARE", 0.0)  # as in a slow network
    torch.manual_seed(0)
    y = torch.randint(0, 3, (200,))
    y[::50] = y[1::50] = 0
    batches = [(torch.randn(50, 4), part) for part in y.split(50)]
    result = checked(batches, seconds=20)
    assert "2 items of each, as the network is slow" in result.tried
    assert not result.problems, result


@pytest.mark.parametrize(
    ("labels", "shuffle", "kind"),
    [
        (torch.arange(900) // 300, False, "data-not-shuffled"),
        (torch.arange(900) // 300, True, None),
        (torch.zeros(900).long(), False, "constant-labels"),
        ((torch.arange(900) == 899).long(), False, "constant-labels"),
    ],
)
def test_first_batches_with_one_label(labels: Tensor, shuffle: bool, kind: str | None) -> None:
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(900, 4), labels), 20, shuffle=shuffle)
    result = checked(loader, seconds=20)
    assert [found.kind for found in result.problems] == ([] if kind is None else [kind]), result


def test_a_step_that_raises_later_is_a_finding() -> None:
    class Tires(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = mlp(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 30:
                raise ValueError("after 30 steps")
            return self.net(x)

    found = checked((X, Y), model=Tires(), seconds=20)[0]
    assert (found.kind, found.severity) == ("training-step-raises", "problem")
    assert "after 30 steps" in found.evidence
