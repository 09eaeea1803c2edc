"""`RunData`: what pages, figures and the report ask of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np

from convlens.core.histories import LayerHistory, LayerInfo, SeriesFigures
from convlens.core.records import LOSS_AT_EVERY_STEP, SEVERITIES, Epoch, Finding, Picture
from convlens.core.snapshots import Probes, Snapshot
from convlens.core.steps import StepCurves, StepSeries, sum_up, take_steps
from convlens.runs.follower import RunFollower

POINTS = 1_500
"""Entries of the curves: more than the figures have pixels."""

S = TypeVar("S", bound=Snapshot)


class RunData:
    """One run as it was read last; made anew whenever something new was read.

    Args:
        key: the run's name in addresses.
        follower: what reads it.
        findings: what the doctor found in it, None if that is not known yet.
    """

    def __init__(
        self, key: str, follower: RunFollower, findings: Sequence[Finding] | None = None
    ) -> None:
        self.key, self.follower, self.findings = key, follower, findings
        self.run = follower.run
        self.meta: Mapping[str, Any] = follower.meta
        self.epochs: Sequence[Epoch] = follower.epochs
        self._kept: dict[tuple[type[Snapshot], str], list[int]] = {}
        self._modules: dict[type[Snapshot], list[str]] = {}

    @property
    def name(self) -> str:
        """The run's directory's own name."""
        return self.run.name

    @property
    def status(self) -> str:
        """How the run ended, ``"running"`` if it has not; see `RunInfo`."""
        return str(self.meta.get("status", ""))

    @property
    def last_written(self) -> datetime:
        """When the record last grew, UTC."""
        return self.run.last_written

    @cached_property
    def steps(self) -> StepSeries:
        """Every recorded step."""
        return self.follower.steps

    @cached_property
    def curves(self) -> StepCurves:
        """Losses of the steps that have one, in at most `POINTS` entries."""
        if self.loss_steps is self.steps:
            return self.hypers
        return sum_up(self.loss_steps, POINTS)

    @cached_property
    def hypers(self) -> StepCurves:
        """Everything recorded of all steps, in at most `POINTS` entries."""
        return sum_up(self.steps, POINTS)

    @cached_property
    def loss_steps(self) -> StepSeries:
        """The steps that a loss was recorded of."""
        if self.meta.get(LOSS_AT_EVERY_STEP, True):
            return self.steps
        return take_steps(self.steps, np.flatnonzero(~np.isnan(self.steps.loss)))

    @cached_property
    def layers(self) -> Sequence[LayerInfo]:
        """The layers whose activations were watched, in order of their index."""
        return self.follower.layers_of("activation")

    @cached_property
    def names(self) -> list[str]:
        """Their names."""
        return [info.name for info in self.layers]

    def figures(self, quantity: str = "activation") -> SeriesFigures:
        """The figures of all series of a quantity, without their histograms."""
        return self.follower.figures(quantity)

    def history(self, layer: str, quantity: str = "activation") -> LayerHistory:
        """The history of a watched layer by its name."""
        return self.follower.history(self.names.index(layer), quantity)

    def snapshot(self, kind: type[S], layer: str = "", epoch: int | None = None) -> S | None:
        """The newest snapshot of a kind taken at or before an epoch; see `Run.snapshot`."""
        return self.run.snapshot(kind, layer, epoch)

    def snapshot_of(self, kind: type[S], epoch: int) -> S | None:
        """The snapshot of the whole network that was taken at just this epoch, if there is one."""
        found = self.run.snapshot(kind, epoch=epoch)
        return found if found is not None and found.epoch == epoch else None

    def snapshot_epochs(self, kind: type[Snapshot], layer: str = "") -> list[int]:
        """The epochs of which there is a snapshot of a kind and layer."""
        key = (kind, layer)
        if key not in self._kept:
            self._kept[key] = self.run.snapshot_epochs(kind, layer)
        return self._kept[key]

    def snapshot_layers(self, kind: type[Snapshot]) -> list[str]:
        """The layers of which there is a snapshot of a kind, in the model's order."""
        if kind not in self._modules:
            self._modules[kind] = self.run.snapshot_layers(kind)
        return self._modules[kind]

    @cached_property
    def probes(self) -> Probes | None:
        """The probe images, None if there are none."""
        return self.run.snapshot(Probes)

    def pictures(self, name: str) -> list[Picture]:
        """The images kept under a name, by epoch."""
        return self.run.pictures(name)

    @cached_property
    def span(self) -> tuple[int, int]:
        """First and last step of anything that is drawn over steps."""
        watched = self.figures()
        parts = [self.steps.step, watched.first_step, watched.last_step]
        firsts = [int(part[0]) for part in parts if len(part)]
        lasts = [int(part[-1]) for part in parts if len(part)]
        firsts += [epoch.first_step for epoch in self.epochs[:1]]
        lasts += [epoch.last_step for epoch in self.epochs[-1:]]
        return min(firsts, default=0), max(lasts, default=0)

    def severity_of(self, layer: str) -> str:
        """The worst severity of the findings about a layer, empty if there are none."""
        found = {one.severity for one in self.findings or () if one.layer == layer}
        return next((severity for severity in SEVERITIES if severity in found), "")

    @property
    def wall_s(self) -> float:
        """Seconds that the training took until now; 0 where nobody knows."""
        known = self.meta.get("wall_s")
        if isinstance(known, int | float):
            return known
        spent = sum(epoch.wall_s for epoch in self.epochs)
        return max(spent, *self.steps.wall_s[-1:].tolist(), 0.0)

    @cached_property
    def first_layer(self) -> str:
        """The layer to open on: that of the worst finding about one, else the first."""
        for one in self.findings or ():
            if one.layer in self.names and one.severity in ("problem", "warning"):
                return str(one.layer)
        return self.names[0] if self.names else ""


def as_dict(value: object) -> Mapping[str, Any]:
    """A value of a record, which may hold anything, where it is a dictionary; else an empty one."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: object) -> Sequence[Any]:
    """The same for a list."""
    return cast("Sequence[Any]", value) if isinstance(value, list) else ()


def is_own_loop(run: RunData) -> bool:
    """Whether a run is of a loop of one's own, watched: only a Learner knows its epochs before."""
    return "n_epochs" not in run.meta
