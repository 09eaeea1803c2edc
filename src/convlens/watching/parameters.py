"""Gradients and updates of parameters, looked at right before and after an optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from convlens.errors import ArgumentError
from convlens.histories import LayerHistory, LayerInfo, UpdateHistory
from convlens.plots import LayerHistories, UpdateHistories
from convlens.records import Epoch, RecordSink
from convlens.watching.book import Sketchbook, Slot

GRADIENT, PARAMETER, UPDATE = "gradient", "parameter", "update"

EPS = 1e-7
"""A gradient, weight or update this near zero is lost in float32 beside a weight of size one."""


class ParameterWatch:
    """Sketches of each parameter's gradient and of what each optimizer's step adds to it.

    It listens to every optimizer's step, whoever makes it, so a gradient that several backward
    passes have added up is counted once. `torch.amp.GradScaler` has divided the gradients by its
    scale by then, except for fused optimizers, which are given the scale and divide themselves;
    those are divided here. A step that the scaler skips is not counted, as none is made; a fused
    optimizer skips on its device, so its step counts, with gradients that are not finite and
    updates of zero. Of optimizers that call each other only the outermost one's step is counted.

    Where only each n-th forward is watched, its gradients are those of the next optimizer's step,
    be that some forwards later, so that accumulation and watching some of the steps go together.

    Args:
        model: whose parameters; those that need no gradient, and complex ones, are left out.
        gradients: whether to look at gradients.
        updates: whether to look at updates; this keeps a copy of every parameter.
        eps: bound of near zero.
        sink: where columns are written to besides memory.
        flush_sink: whether nobody else flushes the sink.

    Attributes:
        book: where the sketches go, and which says the step that they belong to.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        gradients: bool,
        updates: bool,
        eps: float = EPS,
        sink: RecordSink | None = None,
        flush_sink: bool = False,
    ) -> None:
        book = self.book = Sketchbook(eps, sink=sink, flush_sink=flush_sink)
        self._wants_gradients, self._wants_updates = gradients, updates
        named = [
            (name, p)
            for name, p in model.named_parameters()
            if p.requires_grad and p.is_floating_point()
        ]
        self._index: dict[Tensor, int] = {
            parameter: index for index, (_, parameter) in enumerate(named)
        }
        self._slots: dict[str, list[Slot]] = {}
        for quantity, wanted in ((GRADIENT, gradients), (PARAMETER, updates), (UPDATE, updates)):
            infos = [LayerInfo(i, n, _kind(p), quantity=quantity) for i, (n, p) in enumerate(named)]
            self._slots[quantity] = book.open(infos) if wanted else []
        self._before: dict[Tensor, Tensor] = {}
        self._stepping: Optimizer | None = None  # the outermost one that is
        self._pause_after = False  # it has stepped
        self._due = False  # no optimizer has stepped since `begin`
        self._handles: list[RemovableHandle] = []

    @property
    def gradients(self) -> LayerHistories:
        """By the parameters' names; an `ArgumentError` if they were not asked for."""
        if not self._wants_gradients:
            raise ArgumentError(
                "gradients were not watched; say so beforehand: cl.watch(model, gradients=True), "
                "or callbacks=[cl.GradientStats()] for a Learner."
            )
        return Gradients(self.book, self._slots[GRADIENT])

    @property
    def updates(self) -> UpdateHistories:
        """By the parameters' names; an `ArgumentError` if they were not asked for."""
        if not self._wants_updates:
            raise ArgumentError(
                "updates were not watched; say so beforehand: cl.watch(model, updates=True), "
                "or callbacks=[cl.UpdateStats()] for a Learner."
            )
        return Updates(self.book, self._slots[UPDATE], self._slots[PARAMETER])

    @property
    def wanted(self) -> bool:
        """Whether there is anything to look at."""
        return self._wants_gradients or self._wants_updates

    def attach(self) -> None:
        """Listen to optimizers."""
        if self.wanted:
            self._handles.append(register_optimizer_step_pre_hook(self._before_step))
            self._handles.append(register_optimizer_step_post_hook(self._after_step))

    def detach(self) -> None:
        """Listen no longer, and write what is still open."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._before.clear()
        self._stepping = None
        self.book.close()

    def begin(self, step: int) -> None:
        """The next optimizer's step belongs to this number."""
        self.book.begin(step)
        self._due, self._pause_after = True, False

    def pause(self) -> None:
        """Look at no optimizer's step until the next `begin`, once one was looked at."""
        if self._stepping is not None:  # a closure's forward
            self._pause_after = True
        elif not self._due:
            self.book.pause()

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG002
        parameters = self._parameters(optimizer)
        if self.book.row < 0 or not parameters or self._stepping not in (None, optimizer):
            return
        self._stepping, self._due = optimizer, False
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)  # of a fused optimizer
        for parameter in parameters:
            index, gradient = self._index[parameter], parameter.grad
            if self._wants_gradients and gradient is not None:
                dense = gradient.coalesce().values() if gradient.is_sparse else gradient
                unscaled = dense if scale is None else dense / scale.to(dense.device)
                self.book.sketch_whole(self._slots[GRADIENT][index], unscaled)
            if self._wants_updates:
                self.book.sketch_whole(self._slots[PARAMETER][index], parameter.detach())
                self._keep(parameter)

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG002
        if self._stepping is not optimizer:
            return
        self._stepping = None
        for parameter in self._parameters(optimizer) if self._wants_updates else ():
            before = self._before.get(parameter)
            if before is not None:
                update = torch.sub(parameter.detach(), before, out=before)
                self.book.sketch_whole(self._slots[UPDATE][self._index[parameter]], update)
        self.book.step_done()
        if self._pause_after:
            self._pause_after = False
            self.book.pause()

    def _keep(self, parameter: Tensor) -> None:
        """Copy a parameter to where its copy of the last step was."""
        kept = self._before.get(parameter)
        if kept is None or kept.device != parameter.device or kept.shape != parameter.shape:
            self._before[parameter] = parameter.detach().clone()
        else:
            kept.copy_(parameter.detach())

    def _parameters(self, optimizer: Optimizer) -> list[Tensor]:
        groups: list[dict[str, Any]] = optimizer.param_groups
        return [p for group in groups for p in group["params"] if p in self._index]


class Gradients(LayerHistories):
    """The gradients recorded in a sketchbook, by the parameters' names."""

    def __init__(self, book: Sketchbook, slots: Sequence[Slot]) -> None:
        self._book, self._slots = book, slots

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """The parameters."""
        return [slot.info for slot in self._slots]

    @property
    def epochs(self) -> Sequence[Epoch]:
        """Nothing: the watcher does not know of epochs."""
        return ()

    def history(self, index: int) -> LayerHistory:
        """Everything recorded of one parameter's gradient so far."""
        return self._book.history(self._slots[index].series)


class Updates(UpdateHistories):
    """The updates recorded in a sketchbook, by the parameters' names."""

    def __init__(
        self, book: Sketchbook, updates: Sequence[Slot], parameters: Sequence[Slot]
    ) -> None:
        self._book, self._updates, self._parameters = book, updates, parameters

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """The parameters."""
        return [slot.info for slot in self._updates]

    @property
    def epochs(self) -> Sequence[Epoch]:
        """Nothing: the watcher does not know of epochs."""
        return ()

    def history(self, index: int) -> UpdateHistory:
        """Everything recorded of one parameter's updates so far."""
        slots = self._updates[index], self._parameters[index]
        return UpdateHistory(*(self._book.history(slot.series) for slot in slots))


def _kind(parameter: Tensor) -> str:
    """What the list of series says of a parameter: its shape."""
    return "×".join(map(str, parameter.shape)) or "scalar"
