"""`Setup`: a model, its optimizer and its loss; copies of them that belong together."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convlens.checking.batches import call, cloned, split
from convlens.checking.mismatch_errors import explain_forward, explain_loss
from convlens.errors import TrainingError
from convlens.execution.reachable import Reachable

Loss = Callable[[Any, Any], Tensor]
Step = Callable[[nn.Module, Any], Tensor]

OWN = ("step", "_warned_capturable_if_run_uncaptured")
"""Attributes of an optimizer that its copy must not have: a scheduler, or an optimizer wrapper, has
put a step there that belongs to the original."""


@dataclass(frozen=True)
class Setup:
    """What trains: a model, its optimizer or None, and how a batch becomes a loss.

    Attributes:
        model: the model.
        optimizer: its optimizer, None if none was given.
        loss: of output and targets; None if there is ``step``, or the model gives its loss itself.
        step: of model and batch, None if there is ``loss``.
    """

    model: nn.Module
    optimizer: Optimizer | None
    loss: Loss | None
    step: Step | None

    def copied(self) -> Setup:
        """The same with copies of model, optimizer, loss and step, which share what they shared.

        Functions are not copied, nor what they refer to.
        """
        try:
            return self._copied({})
        except RuntimeError:
            # Of tensors that were computed, such as the weight of an old spectral_norm, there is
            # no deepcopy: their values are taken.
            computed = [t for t in Reachable(self.model).tensors if not t.is_leaf]
            return self._copied({id(t): t.detach().clone() for t in computed})

    def _copied(self, memo: dict[int, Any]) -> Setup:
        model = copy.deepcopy(self.model, memo)
        optimizer = None if self.optimizer is None else _optimizer_copy(self.optimizer, memo)
        loss, step = copy.deepcopy(self.loss, memo), copy.deepcopy(self.step, memo)
        if _n_shared(model, optimizer) != _n_shared(self.model, self.optimizer):
            raise TypeError("the copies of model and optimizer have no parameters in common")
        for parameter in model.parameters():
            parameter.grad = None
        return Setup(model, optimizer, loss, step)

    @property
    def has_loss(self) -> bool:
        """Whether a loss or a step was given."""
        return self.loss is not None or self.step is not None

    def loss_of(self, batch: Any) -> Tensor | None:  # noqa: ANN401
        """The loss of a copy of a batch; None, after a forward pass, where there is no loss."""
        batch = cloned(batch)
        if self.step is not None:
            return _number(self.step(self.model, batch), "step")
        x, y = split(batch)
        if self.loss is None:
            return _own_loss(self._forward(batch if isinstance(batch, Mapping) else x))
        output = self._forward(x)
        try:
            loss = self.loss(output, y)
        except Exception as error:
            if isinstance(y, Tensor):
                explain_loss(error, self.loss, output, y, ())
            raise
        return _number(loss, "loss")

    def _forward(self, x: Any) -> Any:  # noqa: ANN401
        try:
            return call(self.model, x)
        except Exception as error:
            if isinstance(x, Tensor):
                explain_forward(error, self.model, x)
            raise

    def train_on(self, batch: Any, seen: Callable[[Tensor], object]) -> bool:  # noqa: ANN401
        """One training step; False where there is no loss.

        Args:
            batch: the batch.
            seen: called with the loss, before the backward pass.
        """

        def evaluate() -> Tensor | None:
            for parameter in parameters:
                parameter.grad = None
            loss = self.loss_of(batch)
            if loss is None:
                return None
            seen(loss)
            if loss.requires_grad:
                loss.backward()
            return loss.detach()

        optimizer = self.optimizer
        groups: list[dict[str, Any]] = [] if optimizer is None else optimizer.param_groups
        parameters: list[Tensor] = [p for group in groups for p in group["params"]]
        parameters += self.model.parameters()  # also those that the optimizer does not have
        if optimizer is None:
            return evaluate() is not None
        if _needs_closure(optimizer):
            optimizer.step(cast("Callable[[], float]", evaluate))
            return True
        found = evaluate() is not None
        if found:
            optimizer.step()
        return found

    def with_adam(self) -> Setup:
        """The same with an optimizer that trains nearly everything at its usual rate."""
        trained = [p for p in self.model.parameters() if p.requires_grad and p.is_leaf]
        adam = torch.optim.Adam(trained, lr=1e-3) if trained else None
        return Setup(self.model, adam, self.loss, self.step)


def _optimizer_copy(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """A copy with all attributes; deepcopy leaves out those of derived classes."""
    made = object.__new__(type(optimizer))
    memo[id(optimizer)] = made
    own = {name: value for name, value in vars(optimizer).items() if name not in OWN}
    vars(made).update(copy.deepcopy(own, memo))
    return made


def _n_shared(model: nn.Module, optimizer: Optimizer | None) -> int:
    """How many parameters of a model are in an optimizer; TorchScript copies its own way."""
    groups: list[dict[str, Any]] = [] if optimizer is None else optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    return sum(id(p) in held for p in model.parameters())


def _needs_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _number(loss: object, name: str) -> Tensor:
    """A loss as one number; of several their mean, and of several by name their sum."""
    if isinstance(loss, Mapping):
        found: Any = [v for v in cast("Mapping[str, Any]", loss).values() if isinstance(v, Tensor)]
        loss = sum(found[1:], found[0]) if found else None
    if not isinstance(loss, Tensor):
        raise TrainingError(
            f"{name} must return a tensor, the loss, got {type(loss).__name__}"
            + ("; give it without .item() or float()." if isinstance(loss, float) else ".")
        )
    return loss.mean()


def _own_loss(output: object) -> Tensor | None:
    """The loss that a model returned which was given the targets, as those of Hugging Face do."""
    fields: Any = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    loss = fields.get("loss")
    return loss.mean() if isinstance(loss, Tensor) else None
