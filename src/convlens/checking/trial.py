"""A few training steps on copies of model and optimizer, watched and recorded."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convlens.checking.batches import call, split
from convlens.core.records import RunRecord
from convlens.watching.activation_watch import ActivationWatch

STEPS = 40
"""Steps of a trial at most: on the same few items any network learns them in so many."""

Loss = Callable[[Any, Any], Tensor]
Step = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Setup:
    """What trains: a model, its optimizer or None, and how a batch becomes a loss.

    Attributes:
        model: the model.
        optimizer: its optimizer, None if none was given.
        loss: of output and targets, None if there is ``step``.
        step: of model and batch, None if there is ``loss``.
    """

    model: nn.Module
    optimizer: Optimizer | None
    loss: Loss | None
    step: Step | None

    def copied(self) -> Setup:
        """The same with copies of model and optimizer, which belong together as before."""
        made = copy.deepcopy((self.model, self.optimizer))
        if made[1] is not None:
            # A learning rate scheduler has put a step of its own there, that of the original.
            vars(made[1]).pop("step", None)
        for parameter in made[0].parameters():
            parameter.grad = None
        return Setup(made[0], made[1], self.loss, self.step)

    def loss_of(self, batch: Any) -> Tensor | None:  # noqa: ANN401
        """The loss of a batch; None without a loss function, after a forward pass."""
        if self.step is not None:
            return self.step(self.model, batch)
        x, y = split(batch)
        output = call(self.model, x)
        if self.loss is None:
            return None
        return self.loss(output, y)


def train(setup: Setup, batches: Sequence[Any], until: float, steps: int = STEPS) -> RunRecord:
    """Train a copy on batches, in turn, and record it; ends at a time, after 3 steps at least."""
    stats = ActivationWatch(setup.model, gradients=True, updates=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with stats:
            for i in range(steps):
                batch = batches[i % len(batches)]
                loss = setup.loss_of(batch)
                target = split(batch)[1]
                if loss is None:
                    if i >= 2:
                        break
                    continue
                stats.log(loss=loss.mean(), target=target)
                if loss.requires_grad:
                    loss.mean().backward()
                if setup.optimizer is not None:
                    setup.optimizer.step()
                    setup.optimizer.zero_grad()
                    _reset(setup.model)
                if i >= 2 and time.perf_counter() > until:
                    break
    return stats.record()


def _reset(model: nn.Module) -> None:
    """Also of parameters that the optimizer does not have."""
    for parameter in model.parameters():
        parameter.grad = None


def with_adam(setup: Setup) -> Setup:
    """The same with an optimizer that trains nearly everything at its usual rate."""
    trained = [p for p in setup.model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=1e-3) if trained else None
    return Setup(setup.model, adam, setup.loss, setup.step)
