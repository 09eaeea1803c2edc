"""`OptimizerFacts`: the optimizers that made steps, and which parameters they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import get_ident
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

LISTED = 50
"""Entries of a list in the facts at most."""

KEPT = 1_000
"""Optimizers that are told apart at most; a loop may make a new one for each step."""


class KnownOptimizer:
    """An optimizer, as it was seen at its last step.

    Attributes:
        members: the ids of its parameters.
        n: how many they are.
        n_own: how many of them are the model's.
        steps: how many steps it has made.
        checked, kept: steps before which it was seen whether gradients were reset, and were not.
    """

    def __init__(self, optimizer: Optimizer, own: set[int], shapes: Sequence[torch.Size]) -> None:
        self.of: Callable[[], Optimizer | None] = ref(optimizer)
        self.kind, self.steps = type(optimizer).__name__, 0
        self.checked = self.kept = 0
        self.read(optimizer, own, shapes)

    def __getstate__(self) -> dict[str, Any]:
        """Without the optimizer, in a copy of the watcher."""
        return {**vars(self), "of": _gone}

    def read(self, optimizer: Optimizer, own: set[int], shapes: Sequence[torch.Size]) -> None:
        """Read its parameters anew, as a group may have been added."""
        found = list(parameters_of(optimizer))
        self.members = {id(p) for p in found}
        self.n, self.n_own = len(found), len(self.members & own)
        self.like_model = not self.n_own and [p.shape for p in found] == list(shapes)

    def facts(self) -> dict[str, Any]:
        """What a run's facts say of it."""
        return {
            "class": self.kind,
            "parameters": self.n,
            "of_model": self.n_own,
            "like_model": self.like_model,
            "steps": self.steps,
            "resets_checked": self.checked,
            "steps_without_reset": self.kept,
        }


class OptimizerFacts:
    """Counts the steps of all optimizers; one that steps inside another's step is a part of it.

    Args:
        model: whose parameters are its own.

    Attributes:
        steps: steps of optimizers with a parameter of the model.
        foreign_steps: steps of other ones.
        held: the ids of the model's parameters that were in an optimizer which made a step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[int, KnownOptimizer] = {}
        self._outermost: dict[int, int] = {}  # by thread, the id of an optimizer in its step
        self._own = {id(p) for p in model.parameters()}
        self.steps = self.foreign_steps = 0
        self.held = set[int]()

    def begins(self, optimizer: Optimizer) -> KnownOptimizer | None:
        """A step begins; None if it is inside another one."""
        if self._outermost.setdefault(get_ident(), id(optimizer)) != id(optimizer):
            return None
        known = self._known.get(id(optimizer))
        groups: list[dict[str, Any]] = optimizer.param_groups
        if known is None or known.of() is not optimizer:
            known = self._add(optimizer)
        elif known.n != sum(len(group["params"]) for group in groups):
            known.read(optimizer, self._own, self._shapes())
        return known

    def ends(self, optimizer: Optimizer) -> KnownOptimizer | None:
        """A step was made; None if it was inside another one, or did not begin."""
        if self._outermost.get(get_ident()) != id(optimizer):
            return None
        del self._outermost[get_ident()]
        known = self._known.get(id(optimizer))
        if known is not None:
            known.steps += 1
            self.steps += known.n_own > 0
            self.foreign_steps += not known.n_own
            if known.steps == 1 or not known.members & self._own <= self.held:
                self.held |= known.members & self._own
        return known

    def between_steps(self) -> None:
        """This thread is in no step: one that has not ended has raised."""
        self._outermost.pop(get_ident(), None)

    @property
    def members(self) -> set[int]:
        """The ids of all parameters of optimizers that are known, also of those of other models."""
        return {i for one in self._known.values() for i in one.members}

    def update(self, parameters: Sequence[Tensor]) -> None:
        """The model has other parameters now."""
        self._own = {id(p) for p in parameters}
        for known in self._known.values():
            optimizer = known.of()
            if optimizer is not None:
                known.read(optimizer, self._own, self._shapes())
                if known.steps:
                    self.held |= known.members & self._own

    def _add(self, optimizer: Optimizer) -> KnownOptimizer:
        if len(self._known) >= KEPT:
            self._known = {i: one for i, one in self._known.items() if one.of() is not None}
        if len(self._known) >= KEPT:
            del self._known[next(iter(self._known))]
        known = KnownOptimizer(optimizer, self._own, self._shapes())
        self._known[id(optimizer)] = known
        return known

    def _shapes(self) -> list[torch.Size]:
        return [p.shape for p in self._model.parameters() if not is_lazy(p)]

    def facts(self) -> list[dict[str, Any]]:
        """Those that are known, the first ones first."""
        return [one.facts() for one in list(self._known.values())[:LISTED]]


def _gone() -> None:
    """What a reference to an optimizer that is no more returns."""


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """The parameters of all groups."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    for group in groups:
        yield from group["params"]
