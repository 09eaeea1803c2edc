"""Gradients and updates of parameters, sketched right before and after an optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import RLock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from convlens.core.histories import LayerHistory, LayerInfo, UpdateHistory
from convlens.core.layer_histories import LayerHistories, UpdateHistories
from convlens.core.records import Epoch, RecordSink
from convlens.errors import ArgumentError
from convlens.plots import LayerPlots
from convlens.watching.aggregator import Aggregator, Slot
from convlens.watching.notes import Notes, described, named
from convlens.watching.optimizer_hooks import Closure, step_hooks

GRADIENT, PARAMETER, UPDATE = "gradient", "parameter", "update"

EPS = 1e-7
"""A gradient, weight or update this near zero is lost in float32 beside a weight of size one."""

PATIENCE = 100  # Steps without an optimizer step before a note is made.

NOT_WATCHED = (
    "{0} were not watched; ask for them with cl.watch(model, {0}=True), or with "
    "callbacks=[cl.{1}()] for a Learner."
)


class ParameterWatch:
    """Sketches of each parameter's gradient and of what each optimizer's step adds to it.

    It listens to every step of an optimizer of torch, so a gradient that several backward passes
    have added up is counted once. With a closure, the gradients are those after its first
    evaluation. `torch.amp.GradScaler` has divided them by its scale by then, except for fused
    optimizers, for which it is done here. A step that the scaler skips is not counted; a fused
    optimizer skips on its device, so its step counts, with gradients that are not finite and
    updates of zero. Of optimizers that call each other only the outermost one's step is counted.

    Where only each n-th forward is watched, its gradients are those of the next optimizer's step.
    A step belongs to the number given to `begin` last in the same thread; if another thread has
    called it since, the step is left out and noted.

    Args:
        model: whose parameters; complex ones are left out, and frozen ones while they are frozen.
        gradients: whether to sketch gradients.
        updates: whether to sketch updates; this keeps a copy of every parameter.
        eps: bound of near zero.
        sink: where columns are written to besides memory.
        flush_sink: flush the sink after each write.
        begun_by_forwards: whether forwards of the model call `begin` or `pause`, also those of a
            closure inside an optimizer's step.
        notes: where to say what could not be recorded; of its own if None.

    Attributes:
        aggregator: where the sketches go.
        notes: what could not be recorded.
        epochs: the finished epochs, for plots.
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
        begun_by_forwards: bool = False,
        notes: Notes | None = None,
    ) -> None:
        # The callbacks of a Learner write to one run: each has notes under a name of its own.
        self.notes = notes or Notes("gradient_notes" if gradients else "update_notes")
        self.notes.sink = sink
        self.aggregator = Aggregator(eps, sink=sink, flush_sink=flush_sink, notes=self.notes)
        self.epochs: Sequence[Epoch] = ()
        self._wants_gradients, self._wants_updates = gradients, updates
        self._begun_by_forwards = begun_by_forwards
        members = [(name, p) for name, p in model.named_parameters() if p.is_floating_point()]
        self._index: dict[Tensor, int] = {
            parameter: index for index, (_, parameter) in enumerate(members)
        }
        self._slots: dict[str, list[Slot]] = {}
        for quantity, wanted in ((GRADIENT, gradients), (PARAMETER, updates), (UPDATE, updates)):
            self._slots[quantity] = self.aggregator.open(
                LayerInfo(index, name, _kind(parameter), quantity=quantity)
                for index, (name, parameter) in enumerate(members if wanted else ())
            )
            for slot, (_, parameter) in zip(self._slots[quantity], members, strict=False):
                slot.listed = parameter.requires_grad
        self._before: dict[Tensor, Tensor] = {}
        self._lock = RLock()  # for what is below, and for the aggregator
        self._thread = -1  # that has begun a step last
        self._refused: set[int] = set()  # threads whose forward was left out before any was begun
        self._stepping: tuple[Optimizer, int] | None = None  # the outermost one, and its thread
        self._depth = 0  # how often it has called itself
        self._sketched = False  # whether the gradients of that step were
        self._evaluation = 0  # of that step's closure, from 1 on, while it is going on
        self._due = False  # no optimizer has stepped since `begin`
        self._n_begun = self._n_sketched = 0
        self._met: set[int] = set()  # parameters that were sketched
        self._attached = False

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have a lock of their own."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=RLock())

    @property
    def quantities(self) -> Sequence[str]:
        """What is watched of the parameters."""
        return [quantity for quantity, slots in self._slots.items() if slots]

    def histories(self, quantity: str) -> list[LayerHistory]:
        """Everything recorded of a quantity so far, without bucket counts."""
        found = [self.aggregator.history(slot.series) for slot in self._slots[quantity]]
        return [replace(one, columns=one.columns.without_counts()) for one in found]

    @property
    def gradients(self) -> Gradients:
        """By the parameters' names; an `ArgumentError` if they were not asked for."""
        if not self._wants_gradients:
            raise ArgumentError(NOT_WATCHED.format("gradients", "GradientStats"))
        return Gradients(self.aggregator, self.epochs, self._listed(GRADIENT))

    @property
    def updates(self) -> UpdateHistories:
        """By the parameters' names; an `ArgumentError` if they were not asked for."""
        if not self._wants_updates:
            raise ArgumentError(NOT_WATCHED.format("updates", "UpdateStats"))
        slots = self._listed(UPDATE), self._listed(PARAMETER)
        return Updates(self.aggregator, self.epochs, *slots)

    def _listed(self, quantity: str) -> list[Slot]:
        """The series of the parameters that need a gradient, now or when they were sketched."""
        for parameter, index in self._index.items():
            if parameter.requires_grad and not self._slots[quantity][index].listed:
                self._list(parameter, index)
        return [slot for slot in self._slots[quantity] if slot.listed]

    def _list(self, parameter: Tensor, index: int) -> None:
        for slots in self._slots.values():
            if slots:
                info = replace(slots[index].info, kind=_kind(parameter))  # it may have been lazy
                self.aggregator.describe(slots[index], info)

    @property
    def wanted(self) -> bool:
        """Whether anything is watched."""
        return self._wants_gradients or self._wants_updates

    def attach(self) -> None:
        """Listen to optimizers."""
        if self.wanted and not self._attached:
            step_hooks().add(self)
            self._attached = True

    def flush(self) -> None:
        """Hand finished columns over to be compressed and written to the sink."""
        self.aggregator.flush()

    def detach(self, error: BaseException | None = None) -> None:
        """Stop listening, write what is still open, and note what was not seen.

        Args:
            error: what ended the training early, None if nothing did.
        """
        if self._attached:
            step_hooks().remove(self)
            self._attached = False
        self._before.clear()
        self._stepping = None
        self.aggregator.close()
        if self.wanted and error is None:
            self._note_unseen()
        self.notes.write()

    def _note_unseen(self) -> None:
        slots = self._slots[GRADIENT if self._wants_gradients else UPDATE]
        if self._n_begun and not self._n_sketched:
            self.notes.say("optimizer", begun=self._n_begun)
            return
        unseen = [
            slots[i].info.name
            for parameter, i in self._index.items()
            if parameter.requires_grad
            and not slots[i].seen
            and not self.notes.left_out(slots[i].info)
        ]
        if self._n_sketched and unseen:
            self.notes.say("parameters", unseen=len(unseen), names=named(unseen))

    # ---- steps ----------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """The next optimizer's step in this thread belongs to this number."""
        with self._lock:
            if self._is_later_evaluation():
                return
            self._thread = get_ident()
            self._refused.clear()
            self.aggregator.begin(step)
            self._due = True
            self._n_begun += 1
        if self._n_begun == PATIENCE and not self._n_sketched:
            self.notes.say("optimizer", begun=self._n_begun)

    def pause(self) -> None:
        """Sketch no optimizer's step until the next `begin`, after the one that is due."""
        with self._lock:
            if not self._is_later_evaluation() and not self._due:
                self.aggregator.pause()

    def refuse(self) -> None:
        """A forward of this thread was left out, and so is the optimizer's step after it."""
        with self._lock:
            if self._thread == get_ident():
                self._thread = -1
            if not self._n_begun:
                self._refused.add(get_ident())

    def _is_later_evaluation(self) -> bool:
        """Whether a forward belongs to a closure's second or later evaluation, which is no step.

        Outside of a closure no step is going on: one that has not ended has raised, or another
        thread makes it.
        """
        me = get_ident()
        if self._stepping is not None and not self._evaluation:
            if self._stepping[1] != me and self._wants_updates:
                self.notes.say("steps")
            self._stepping = None
        return self._evaluation > 1 and self._thread == me

    def before_step(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        """Sketch the gradients now, or after the closure's first evaluation; `StepListener`."""
        try:
            with self._lock:
                parameters = list(self._parameters(optimizer))
                begins_inside = closure is not None and self._begun_by_forwards
                if not parameters:
                    return closure
                if self.aggregator.row < 0 and not begins_inside:
                    if get_ident() in self._refused:
                        self.notes.say("steps")
                    return closure
                if not self._is_outermost(optimizer):
                    return closure
                for parameter in parameters if self._wants_updates else ():
                    self._keep(parameter)
                if closure is not None:
                    return self._sketching(closure, optimizer, parameters)
                self._sketch_gradients(optimizer, parameters)
        except Exception as error:
            self.notes.say("parameter hooks", why=described(error))
        return closure

    def _is_outermost(self, optimizer: Optimizer) -> bool:
        """Begin the step, unless it is inside another one or another thread is in one."""
        stepping = optimizer, get_ident()
        if self._stepping is None:
            self._stepping, self._depth, self._sketched = stepping, 1, False
            return True
        if self._stepping == stepping:  # one that calls its base class's
            self._depth += 1
        elif self._stepping[1] != stepping[1]:
            self.notes.say("steps")
        return False

    def _sketching(
        self, closure: Closure, optimizer: Optimizer, parameters: Sequence[Tensor]
    ) -> Closure:
        """The closure, which sketches the gradients after its first evaluation."""
        evaluations = 0

        def evaluate(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            nonlocal evaluations
            evaluations += 1
            self._evaluation = evaluations
            try:
                loss = closure(*args, **kwargs)
            except BaseException:
                self._stepping = None  # the step ends here, without `after_step`
                raise
            finally:
                self._evaluation = 0
            if evaluations == 1:
                try:
                    self._sketch_gradients(optimizer, parameters)
                except Exception as error:
                    self.notes.say("parameter hooks", why=described(error))
            return loss

        return evaluate

    def _sketch_gradients(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        with self._lock:
            if self.aggregator.row < 0 or self._stepping != (optimizer, get_ident()):
                return
            if self._thread != get_ident():
                self.notes.say("steps")
                return
            self._sketched, self._due = True, False
            self._n_sketched += 1
            scale: Tensor | None = getattr(optimizer, "grad_scale", None)  # of a fused optimizer
            for parameter in parameters:
                index, gradient = self._index[parameter], parameter.grad
                if index not in self._met:
                    self._met.add(index)
                    self._list(parameter, index)
                if self._wants_gradients and gradient is not None:
                    self._sketch(GRADIENT, index, _dense, gradient, scale)

    def after_step(self, optimizer: Optimizer) -> None:
        """Sketch what the step has changed; `StepListener`."""
        with self._lock:
            if self._stepping != (optimizer, get_ident()):
                return
            self._depth -= 1
            if self._depth:
                return
            self._stepping = None
            if not self._sketched:
                return
            if self._thread != get_ident():
                self.notes.say("steps")
                return
            try:
                for parameter in self._parameters(optimizer) if self._wants_updates else ():
                    if parameter in self._before:
                        index = self._index[parameter]
                        self._sketch(PARAMETER, index, self._before.get, parameter)
                        self._sketch(UPDATE, index, self._change, parameter)
                self.aggregator.step_done()
            except Exception as error:
                self.notes.say("parameter hooks", why=described(error))

    def _sketch(
        self, quantity: str, index: int, value: Callable[..., Tensor | None], *args: object
    ) -> None:
        """Sketch what ``value`` returns for the arguments, or note that it cannot be."""
        slot, x = self._slots[quantity][index], None
        try:
            x = value(*args)
            if x is not None:
                self.aggregator.sketch(slot, x)
        except Exception as error:
            self.notes.leave_out(slot.info, error, args[0] if x is None else x)

    def _keep(self, parameter: Tensor) -> None:
        """Copy a parameter to where its copy of the last step was."""
        try:
            kept = self._before.get(parameter)
            now = parameter.detach()
            if kept is None or (kept.device, kept.shape, kept.dtype) != (
                now.device, now.shape, now.dtype
            ):  # fmt: skip
                self._before[parameter] = now.clone()
            else:
                kept.copy_(now)
        except Exception as error:
            self._before.pop(parameter, None)
            slot = self._slots[UPDATE][self._index[parameter]]
            self.notes.leave_out(slot.info, error, parameter)

    def _change(self, parameter: Tensor) -> Tensor:
        before = self._before[parameter]
        return torch.sub(parameter.detach(), before, out=before)

    def _parameters(self, optimizer: Optimizer) -> Iterator[Tensor]:
        """The parameters of an optimizer that are watched and not frozen."""
        groups: list[dict[str, Any]] = optimizer.param_groups
        for group in groups:
            for parameter in group["params"]:
                if parameter not in self._index:
                    continue
                if parameter.requires_grad:
                    yield parameter
                else:
                    self._before.pop(parameter, None)


def _dense(gradient: Tensor, scale: Tensor | None) -> Tensor:
    """The values of a gradient, without the scale of mixed precision."""
    dense = gradient.coalesce().values() if gradient.is_sparse else gradient
    return dense if scale is None else dense / scale.to(dense.device)


class _OfParameters:
    """What is recorded of parameters, by their names."""

    def __init__(
        self, aggregator: Aggregator, epochs: Sequence[Epoch], *slots: Sequence[Slot]
    ) -> None:
        self._aggregator, self._epochs, self._slots = aggregator, epochs, slots

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """The parameters."""
        return [slot.info for slot in self._slots[0]]

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The epochs that were ended."""
        return self._epochs

    def _histories(self, index: int) -> list[LayerHistory]:
        return [self._aggregator.history(slots[index].series) for slots in self._slots]


class Gradients(_OfParameters, LayerPlots, LayerHistories):
    """The recorded gradients."""

    def history(self, index: int) -> LayerHistory:
        """Everything recorded of one parameter's gradient so far."""
        return self._histories(index)[0]


class Updates(_OfParameters, UpdateHistories):
    """The recorded updates, and the parameters before them."""

    def history(self, index: int) -> UpdateHistory:
        """Everything recorded of one parameter's updates so far."""
        return UpdateHistory(*self._histories(index))


def _kind(parameter: Tensor) -> str:
    """A parameter's shape, which the list of series shows as its kind."""
    if is_lazy(parameter):
        return "uninitialized"
    return "×".join(map(str, parameter.shape)) or "scalar"
