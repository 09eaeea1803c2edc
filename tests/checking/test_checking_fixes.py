"""A fault, what the check says of it, its advice applied: then the network trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convlens as cl


def spirals() -> tuple[Tensor, Tensor]:
    """Three classes in the plane that no line separates."""
    torch.manual_seed(0)
    y = torch.arange(240) % 3
    angle = torch.rand(240) * 2.5
    turn = angle + y * 2 * torch.pi / 3 + 0.05 * torch.randn(240)
    return torch.stack([angle * turn.cos(), angle * turn.sin()], 1), y


X, Y = spirals()


class Columns(nn.Module):
    """Softmax over one axis, in logarithms."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.log_softmax(self.dim)


class Listed(nn.Module):
    """Hidden layers in a list of a given kind."""

    def __init__(self, kind: Callable[[list[nn.Module]], Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 32), nn.Linear(32, 3)
        self.hidden = kind([nn.Linear(32, 32) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for layer in self.hidden:
            x = layer(x).relu()
        return self.last(x)


def mlp(*end: nn.Module, out: int = 3) -> nn.Sequential:
    middle = [nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
    return nn.Sequential(*middle, nn.Linear(32, out), *end)


def dead() -> nn.Sequential:
    """All weights zero."""
    model = mlp()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


@dataclass(eq=False)
class Case:
    """A training; by default one that works.

    Attributes:
        model: makes the network.
        loss: of outputs and targets.
        optimizer: of a model.
        x, y: the data.
        score: of outputs and targets, 1 if all are right.
    """

    model: Callable[[], nn.Module] = mlp
    loss: Callable[..., Tensor] = nn.functional.cross_entropy
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda model: torch.optim.Adam(
        model.parameters(), 0.01
    )
    x: Tensor = X
    y: Tensor = Y
    score: Callable[[Tensor, Tensor], Tensor] = cl.accuracy


def rate(value: float, kind: Any = torch.optim.SGD) -> Any:
    return lambda model: kind(model.parameters(), value)


def binary(output: Tensor, y: Tensor) -> Tensor:
    return ((output > 0) == (y > 0.5)).float().mean()


def explained(output: Tensor, y: Tensor) -> Tensor:
    """The share of the variance that is explained."""
    return 1 - (output.squeeze(1) - y).square().mean() / y.var()


BINARY = Case(
    model=lambda: mlp(out=1),
    loss=nn.functional.binary_cross_entropy_with_logits,
    y=(Y == 0).float().unsqueeze(1),
    score=binary,
)
VALUES = Case(
    model=lambda: mlp(out=1),
    loss=lambda output, y: nn.functional.mse_loss(output.squeeze(1), y),
    y=X.norm(dim=1),
    score=explained,
)
GOOD = Case()
MISSING = torch.where(torch.arange(240)[:, None] % 37 == 5, torch.nan, X)
TAGS = torch.stack([X[:, 0] > 0, X[:, 1] > 0, X.norm(dim=1) > 1], 1).float()

CASES: dict[str, tuple[Case, Case]] = {
    "softmax-before-cross-entropy": (replace(GOOD, model=lambda: mlp(nn.Softmax(1))), GOOD),
    "sigmoid-before-bce-with-logits": (
        replace(BINARY, model=lambda: mlp(nn.Sigmoid(), out=1)),
        BINARY,
    ),
    "activation-on-logits": (replace(GOOD, model=lambda: mlp(nn.ReLU())), GOOD),
    "wrong-axis-softmax": (
        replace(GOOD, model=lambda: mlp(Columns(0)), loss=nn.functional.nll_loss),
        replace(GOOD, model=lambda: mlp(Columns(1)), loss=nn.functional.nll_loss),
    ),
    "shape-broadcast-in-loss": (
        replace(VALUES, loss=lambda output, y: (output - y).square().mean()),
        VALUES,
    ),
    "weight-decay-too-high": (
        replace(GOOD, optimizer=lambda m: torch.optim.AdamW(m.parameters(), 0.01, weight_decay=50)),
        replace(GOOD, optimizer=lambda m: torch.optim.AdamW(m.parameters(), 0.01)),
    ),
    "learning-rate-too-low": (replace(GOOD, optimizer=rate(1e-7)), None),
    "nan-in-data": (replace(GOOD, x=MISSING), replace(GOOD, x=MISSING.nan_to_num())),
    "layers-not-registered": (
        replace(GOOD, model=lambda: Listed(list)),
        replace(GOOD, model=lambda: Listed(nn.ModuleList)),
    ),
    "optimizer-of-other-model": (
        replace(GOOD, optimizer=lambda _: torch.optim.Adam(mlp().parameters(), 0.01)),
        GOOD,
    ),
    "constant-initialization": (replace(GOOD, model=dead), GOOD),
    "wrong-loss-for-task": (
        replace(GOOD, y=TAGS, score=lambda o, y: ((o > 0) == (y > 0.5)).float().mean()),
        replace(
            GOOD,
            y=TAGS,
            loss=nn.functional.binary_cross_entropy_with_logits,
            score=lambda o, y: ((o > 0) == (y > 0.5)).float().mean(),
        ),
    ),
    "no-nonlinearity": (
        replace(GOOD, model=lambda: nn.Sequential(nn.Linear(2, 32), nn.Linear(32, 3))),
        replace(GOOD, model=lambda: nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 3))),
    ),
}


SLOWED = (
    *("softmax-before-cross-entropy", "activation-on-logits", "wrong-axis-softmax"),
    "layers-not-registered",
)
"""Faults with which so easy a task is learned all the same."""


def built(case: Case) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(1)
    model = case.model()
    loader = DataLoader(TensorDataset(case.x, case.y), 40, shuffle=True)
    return model, case.optimizer(model), loader


def trained(case: Case, steps: int = 120) -> float:
    """The score after a training."""
    model, optimizer, _ = built(case)
    for _ in range(steps):
        optimizer.zero_grad()
        case.loss(model(case.x), case.y).backward()
        optimizer.step()
    with torch.no_grad():
        return float(case.score(model(case.x), case.y))


def checked(case: Case) -> cl.CheckResult:
    model, optimizer, loader = built(case)
    return cl.check(model, loader, case.loss, optimizer, seconds=60)


def advised(case: Case, result: cl.CheckResult) -> Case:
    """With the learning rate that the finding names."""
    words = result[0].fix.replace(",", " ").split()
    value = next(float(word.rstrip(".;")) for word in words if word[0].isdigit())
    kind = type(case.optimizer(nn.Linear(1, 1)))
    return replace(case, optimizer=rate(value, kind))


@cache
def repaired(case: Case) -> tuple[cl.CheckResult, float]:
    """Its check and its score; `GOOD` is the repair of many."""
    return checked(case), trained(case)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("kind", CASES)
def test_the_fix_of_a_finding_makes_the_network_train(kind: str) -> None:
    broken, fixed = CASES[kind]
    result = checked(broken)
    assert result[0].kind == kind, result
    assert result[0].severity == "problem"
    assert result[0].fix
    after, score = repaired(fixed or advised(broken, result))
    assert not after.problems, after
    assert score > 0.9 or kind.startswith("learning-rate")
    assert kind in SLOWED or score > trained(broken) + 0.03
