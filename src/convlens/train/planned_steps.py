"""The learning rates and momenta that a schedule would give, before a training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from convlens.core.argument_checks import check_whole
from convlens.core.records import Epoch
from convlens.core.steps import StepSeries
from convlens.core.training_curves import POINTS
from convlens.train.callbacks.scheduler import GroupSettings
from convlens.train.layer_groups import prepare_groups
from convlens.train.learner_arguments import make_optimizer
from convlens.train.schedules import Schedule, as_schedule, read_hypers

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from convlens.train.loop import TrainingLoop


def planned(
    learn: TrainingLoop, schedule: Schedule, n_epochs: int
) -> tuple[StepSeries, Sequence[Epoch]]:
    """The steps that a fit would make, without losses, and its epochs; nothing is changed.

    Of more than 4,096 steps as many are taken, evenly spaced.

    Raises:
        ArgumentError: if an argument, or one of the Learner's, cannot work.
    """
    schedule = as_schedule(schedule)
    check_whole("n_epochs", n_epochs, 1)
    each = learn.steps_per_epoch
    n_steps = n_epochs * each
    steps = np.unique(np.linspace(0, n_steps - 1, min(n_steps, POINTS)).astype(np.int64))
    optimizer, groups = _copied(learn, schedule.peak)
    prepare_groups(groups, optimizer, schedule, learn)
    rows: list[list[dict[str, float]]] = []
    for step in steps.tolist():
        groups.apply(optimizer, *schedule(step, n_steps))
        rows.append([read_hypers(group) for group in optimizer.param_groups])
    hypers = {
        name: np.array([[group.get(name, math.nan) for group in row] for row in rows])
        for name in ("lr", "momentum")
    }
    unknown = np.full(len(steps), np.nan)
    series = StepSeries(steps, steps // each, unknown, unknown, hypers)
    return series, [_epoch(i, each) for i in range(n_epochs)]


def _copied(learn: TrainingLoop, peak: float) -> tuple[Optimizer, GroupSettings]:
    """A stand-in of the optimizer with copies of its settings, and their ratios."""
    optimizer, groups = learn._optimizer, copy.deepcopy(learn._groups)  # pyright: ignore[reportPrivateUsage]
    if optimizer is None:
        optimizer = make_optimizer(learn.make_optimizer, learn.model.parameters(), peak)
        groups = GroupSettings(peak)
    settings: dict[str, Any] = {"param_groups": [dict(group) for group in optimizer.param_groups]}
    if hasattr(optimizer, "defaults"):
        settings["defaults"] = optimizer.defaults
    return cast("Optimizer", SimpleNamespace(**settings)), groups


def _epoch(i: int, n_steps: int) -> Epoch:
    return Epoch(i, i * n_steps, (i + 1) * n_steps - 1, math.nan, None, {}, 0.0)
