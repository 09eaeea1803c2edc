"""`RunSummary`: what the list of runs shows of one run, read again only when its files changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convlens.core.records import Epoch
from convlens.core.wording import without_classes
from convlens.errors import ConvlensError
from convlens.runs import Run
from convlens.runs.follower import RunFollower, files_stamp

SPARK_POINTS = 60
"""Entries of the small curve of the loss at most."""


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs; what `RunInfo` has too means the same.

    Attributes:
        folder: the folder in which it was found, as it was given.
        mark: differs whenever something was recorded, see `RunFollower.mark`.
        metric: the first accuracy, else the first metric; empty if there is none.
        last: its last value, None if that is not finite, as of all numbers here.
        best: the highest value of an accuracy, None of another metric.
        rate: the largest learning rate.
        model: the model's class.
        wall_s: seconds that the training took.
        losses: step and mean training loss of at most `SPARK_POINTS` entries.
    """

    key: str
    folder: str
    path: Path
    problem: str | None = None
    mark: str = ""
    created: str = ""
    status: str = ""
    n_epochs: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    metric: str = ""
    last: float | None = None
    best: float | None = None
    valid_loss: float | None = None
    rate: float | None = None
    model: str = ""
    parameters: int | None = None
    wall_s: float | None = None
    losses: Sequence[tuple[float, float]] = ()


_Known = tuple[object, RunFollower | None, RunSummary]  # with the stamp of the run's files


class SummaryCache:
    """The summaries that were read; not safe for several threads at once."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def read(self, paths: Mapping[str, tuple[str, Path]]) -> list[RunSummary]:
        """Of the runs whose folder and directory are given by key; oldest first."""
        known = {key: self._read(key, *place) for key, place in paths.items()}
        self._known = known
        return sorted((one for *_, one in known.values()), key=lambda s: (s.created, s.path.name))

    def _read(self, key: str, folder: str, path: Path) -> _Known:
        stamp, known = None, self._known.get(key)
        try:
            stamp = files_stamp(path)
            if known is not None and stamp is not None and stamp == known[0]:
                return known
            follower = (known and known[1]) or RunFollower(Run(path))
            follower.refresh()
            found = _summary(key, folder, path, follower)
        except Exception as error:
            name = "" if isinstance(error, ConvlensError) else f"{type(error).__name__}: "
            broken = RunSummary(key, folder, path, problem=f"{name}{error}", status="unreadable")
            return stamp, None, broken
        # A growing run is followed, so that only what is new is read.
        return stamp, follower if found.status == "running" else None, found


def _summary(key: str, folder: str, path: Path, follower: RunFollower) -> RunSummary:
    meta, epochs = follower.meta, follower.epochs
    curves = follower.curves(SPARK_POINTS)
    last = epochs[-1].metrics if epochs else {}
    means = without_classes(last)
    metric = next((n for n in means if n.lower().endswith("accuracy")), next(iter(means), ""))
    losses = zip(curves.middle_step.tolist(), curves.loss.mean.tolist(), strict=True)
    rates = curves.hypers["lr"].high if "lr" in curves.hypers else np.zeros(0)
    model = meta.get("model")
    facts: Mapping[str, Any] = model if isinstance(model, dict) else {}
    parameters, seconds = facts.get("n_parameters"), _number(meta.get("wall_s"))
    if seconds is None and len(curves):
        seconds = _number(curves.wall_s[-1].item())
    return RunSummary(
        key, folder, path,
        mark=follower.mark,
        created=meta.get("created", ""),
        status=meta.get("status", ""),
        n_epochs=len(epochs),
        metrics=dict(last),
        metric=metric,
        last=_number(means.get(metric)),
        best=_best(epochs, metric),
        valid_loss=_number(epochs[-1].valid_loss) if epochs else None,
        rate=_number(max(rates[np.isfinite(rates)].tolist(), default=None)),
        model=str(facts.get("class") or ""),
        parameters=parameters if type(parameters) is int else None,
        wall_s=seconds,
        losses=[(x, y) for x, y in losses if math.isfinite(y)],
    )  # fmt: skip


def _best(epochs: Sequence[Epoch], metric: str) -> float | None:
    if not metric.lower().endswith("accuracy"):
        return None
    found = [_number(epoch.metrics.get(metric)) for epoch in epochs]
    return max((value for value in found if value is not None), default=None)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -1e300 < value < 1e300 else None  # not NaN, nor an endless integer
