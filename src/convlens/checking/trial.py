"""A few training steps on copies of model and optimizer, watched and recorded."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from convlens.checking.batches import split
from convlens.checking.setup import Setup
from convlens.core.records import RunRecord
from convlens.watching.activation_watch import ActivationWatch
from convlens.watching.backends.dispatch import PARALLEL_VALUES

LEAST = 3
"""Steps from which on an optimizer's steps can be judged."""

MADE = "steps_made"
"""The fact of a trial's record that holds how many steps its optimizer made."""

BROADCAST = "Using a target size"
"""How torch's losses begin their warning about outputs and targets of different shapes."""


@cache
def prepare() -> None:
    """Load, or compile once on this machine, what a watched step needs."""
    n = PARALLEL_VALUES
    model = nn.Sequential(nn.Linear(1, n), nn.BatchNorm1d(n), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    setup = Setup(model, optimizer, lambda output, _: output.mean(), None)
    train(setup, [(torch.randn(4, 1), torch.zeros(4))], Deadline(0.0, 0.0), 0.0, 1)


class Deadline:
    """When to stop, and how long the next step will take.

    Args:
        begin: when the check began.
        seconds: how long it may last.
    """

    def __init__(self, begin: float, seconds: float) -> None:
        self.begin, self.seconds = begin, seconds
        self.step_s = 0.0  # the longest of the last steps
        self.around_s = 0.0  # what watching took before and after the steps of a trial

    def left(self, share: float = 1.0) -> float:
        """Seconds until this share of the time is over."""
        return self.begin + share * self.seconds - time.perf_counter()

    def allows(self, steps: int, share: float = 1.0) -> bool:
        """Whether so many steps end before."""
        return self.left(share) > steps * self.step_s + self.around_s

    def took(self, seconds: float) -> None:
        """A step took so long; earlier ones are slowly forgotten, the first is often slow."""
        self.step_s = max(seconds, 0.5 * self.step_s)


def train(
    setup: Setup,
    batches: Sequence[Any],
    deadline: Deadline,
    share: float,
    steps: int,
) -> RunRecord:
    """Train a copy on batches, in turn, and record it.

    Args:
        setup: the copy.
        batches: of which one is taken after the other.
        deadline: when to stop; one step is always made, and `LEAST` of them unless the whole time
            is over.
        share: of the time, after which no step begins.
        steps: at most.
    """
    start, in_steps = time.perf_counter(), 0.0
    told = setup.step is not None  # it may call parts of the model, as Lightning's does
    stats = ActivationWatch(setup.model, gradients=True, updates=True, count_forwards=not told)
    setup = _told(setup, stats)
    made = 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with stats:
            for i in range(steps):
                if i and not deadline.allows(1, share if i >= LEAST else 1.0):
                    break
                began = time.perf_counter()
                batch = batches[i % len(batches)]
                target = split(batch)[1]

                def seen(loss: Tensor, target: object = target) -> None:
                    known = {"target": target} if isinstance(target, Tensor) else {}
                    stats.log(loss=loss.detach(), **known)

                setup.train_on(batch, seen)
                made += setup.optimizer is not None
                took = time.perf_counter() - began
                in_steps += took
                deadline.took(took)
    record = stats.record()
    meta = {**record.meta, MADE: made}
    texts = [str(one.message) for one in said if BROADCAST in str(one.message)]
    deadline.around_s = time.perf_counter() - start - in_steps
    if texts:
        meta["broadcast"] = texts[0]
    return replace(record, meta=meta)


def _told(setup: Setup, stats: ActivationWatch) -> Setup:
    """The same with a step that says itself where the forward pass begins and ends."""
    step = setup.step
    if step is None:
        return setup

    def entered(model: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
        stats.step()
        stats.enter()
        try:
            return step(model, batch)
        finally:
            stats.leave()

    return replace(setup, step=entered)
