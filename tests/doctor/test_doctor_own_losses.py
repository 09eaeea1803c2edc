"""Loops with a loss of their own, and with two optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convlens as cl
from convlens.core.records import Finding

CLASSES, STEPS = 4, 60


def points(seed: int = 0, n: int = 256) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(7))
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    return centres[y] + torch.randn(n, 6, generator=generator), y


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def own_loss(scores: Tensor, y: Tensor, dim: int = 1) -> Tensor:
    """A cross entropy and a Dice loss: none that the doctor knows."""
    p, t = scores.softmax(dim), F.one_hot(y, CLASSES)
    return F.nll_loss(scores.log_softmax(dim), y) + 1 - 2 * (p * t).sum() / (p + t).sum()


def diagnosed(
    accuracies: Sequence[float], loss: Callable[[Tensor, Tensor], Tensor]
) -> Sequence[Finding]:
    """Of a loop with these validation accuracies, and its targets logged."""
    model, (x, y) = network(), points()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with cl.watch(model, gradients=True, updates=True) as stats:
        for i in range(STEPS):
            take = torch.arange(16 * i, 16 * i + 16) % len(x)
            value = loss(model(x[take]), y[take])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            stats.log(loss=value, target=y[take])
            if (i + 1) % (STEPS // len(accuracies)) == 0:
                stats.log_epoch(accuracy=accuracies[i * len(accuracies) // STEPS])
    return cl.diagnose(stats)


@pytest.mark.parametrize(("first", "shifted"), [(0.2, True), (0.9, False)])
def test_an_accuracy_far_below_guessing_is_that_of_other_labels(
    first: float, shifted: bool
) -> None:
    found = diagnosed([first, 0.0], own_loss)
    assert ("labels-shifted" in [one.kind for one in found]) == shifted, found
    if shifted:
        assert "validation accuracy is 0.0%, far below guessing (1 of 4)" in found[0].evidence


def test_an_accuracy_of_guessing_tells_that_an_own_loss_has_not_learned() -> None:
    over_the_batch = diagnosed([0.25, 0.25], lambda scores, y: 4.0 + 0.01 * own_loss(scores, y, 0))
    assert (over_the_batch[0].kind, over_the_batch[0].severity) == ("nothing-learned", "problem")
    assert "the accuracy is 25.00%" in over_the_batch[0].evidence


def test_what_guessing_costs_is_not_known_of_an_own_loss() -> None:
    (found,) = diagnosed([0.9, 0.95], own_loss)
    assert (found.kind, found.confidence) == ("healthy", "likely")
    assert "Not looked at: what guessing would cost (the kind of loss was not" in found.evidence


@pytest.mark.parametrize("fixed", [True, False])
def test_the_one_of_two_optimizers_whose_gradients_are_not_reset(fixed: bool) -> None:
    model, (x, y) = network(), points()
    first, last = (torch.optim.SGD(model[i].parameters(), 1e-2) for i in (0, 2))
    with cl.watch(model) as stats:
        for i in range(STEPS):
            take = torch.arange(16 * i, 16 * i + 16) % len(x)
            loss = F.cross_entropy(model(x[take]), y[take])
            first.zero_grad()
            if fixed:
                last.zero_grad()
            loss.backward()
            first.step()
            last.step()
            stats.log(loss=loss)
    found = [one for one in cl.diagnose(stats) if one.kind == "missing-zero-grad"]
    assert len(found) == (not fixed)
    if found:
        assert "Before 59 of 59 steps of SGD, one of 2 optimizers," in found[0].evidence
        assert found[0].fix.endswith("of every optimizer.")
