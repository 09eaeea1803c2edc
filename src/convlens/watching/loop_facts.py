"""`LoopFacts`: what a training loop does with a model, counted; the doctor judges it."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from convlens.watching.copies import LeftOutOfCopies
from convlens.watching.notes import Notes
from convlens.watching.optimizer_hooks import Closure, step_hooks
from convlens.watching.outputs import are_fake, first_tensor, in_backward, is_transformed
from convlens.watching.tensor_facts import (
    LARGEST,
    ItemFacts,
    TensorFacts,
    facts_of_gradient,
    facts_of_image,
    facts_of_output,
)

OFTEN, EVERY = 8, 64
"""Inputs, outputs and modes are looked at in the first `OFTEN` forwards, then in each 64th."""

TRACKED = 4
"""Parameters whose gradients are followed from step to step."""

SMALL = 64
"""Columns of such a parameter that are kept to see whether it changes."""

LISTED = 50
"""Names in a list at most."""

MODES = {
    (True, True): "training_forwards",
    (False, False): "evaluation_forwards",
    (True, False): "training_mode_without_gradients",
    (False, True): "evaluation_mode_with_gradients",
}
"""The name of a forward by the model's mode and whether autograd records it."""


class _Optimizer:
    """What is known of an optimizer: it is seen when it makes a step."""

    def __init__(self, optimizer: Optimizer, own: set[int], shapes: Sequence[torch.Size]) -> None:
        groups: list[dict[str, Any]] = optimizer.param_groups
        members: list[Tensor] = [p for group in groups for p in group["params"]]
        self.members = {id(p) for p in members}
        self.kind, self.n, self.n_own = type(optimizer).__name__, len(members), 0
        self.n_own = len(self.members & own)
        self.like_model = not self.n_own and [p.shape for p in members] == list(shapes)
        self.steps = 0

    def facts(self) -> dict[str, Any]:
        return {
            "class": self.kind,
            "parameters": self.n,
            "of_model": self.n_own,
            "like_model": self.like_model,
            "steps": self.steps,
        }


class _Gradient:
    """Whether a parameter's gradient was reset between two steps of its optimizer.

    An in-place addition raises the version of the gradient's tensor by one: as long as nothing else
    has, it was not reset. ``p.grad.data.zero_()`` raises no version; `check` finds it.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.backwards = 0
        self._grad: int | None = None
        self._version = -1
        self._unbroken = False
        self._backwards_before = 0  # the last step

    def added(self, parameter: Tensor) -> None:
        """A backward pass has added to the gradient."""
        self.backwards += 1
        grad = parameter.grad
        if grad is None:
            return
        same = id(grad) == self._grad and grad._version == self._version + 1
        self._unbroken = self._unbroken and same
        self._grad, self._version = id(grad), grad._version

    def stepped(self) -> None:
        """Its optimizer has made a step, after clipping and whatever else."""
        grad = self.parameter.grad
        self._grad = None if grad is None else id(grad)
        self._version = -1 if grad is None else grad._version
        self._unbroken = grad is not None
        self._backwards_before = self.backwards

    def check(self) -> None:
        """A forward begins: a gradient of zeros was reset without raising its version."""
        grad = self.parameter.grad
        if self._unbroken and grad is not None and not grad.is_cuda and not grad.any():
            self._unbroken = False

    @property
    def kept(self) -> bool:
        """Whether it was added to without a reset since the last step."""
        return self._unbroken and self.backwards > self._backwards_before


class LoopFacts:
    """Counts forwards, backward passes and optimizer steps, and looks at inputs and outputs.

    Nothing is waited for on a GPU: numbers stay there until `facts` is called.

    Args:
        model: whose loop.
        notes: where to say what could not be recorded.
    """

    def __init__(self, model: nn.Module, notes: Notes) -> None:
        self._model, self._notes = model, notes
        self._named = {id(p): name for name, p in model.named_parameters()}
        self._shapes = [p.shape for p in model.parameters() if not is_lazy(p)]
        self._counts = dict.fromkeys(MODES.values(), 0)
        self._counts |= {"validation_forwards": 0, "validation_in_training_mode": 0}
        self._counts |= {"steps_in_evaluation_mode": 0, "foreign_steps": 0}
        self._counts["rounds_without_gradients"] = 0
        self._checked = self._kept = 0  # steps, and those whose gradients were not reset before
        self._input, self._output, self._target = TensorFacts(), TensorFacts(), TensorFacts()
        self._output_gradient, self._items = TensorFacts(), ItemFacts()
        self._seen_gradients: set[str] = set()
        self._first: list[Tensor] = []  # small parameters as they were before training
        self._looked_for_gradients = 0
        self._eval_modules: dict[str, str] = {}
        self._optimizers: dict[int, _Optimizer] = {}
        self._gradients = [_Gradient(p) for p in _spread(model)]
        self._validating = False
        self._with_gradients = True  # the forward before
        self._in_evaluation_mode = False
        self._ended: float | None = None  # the last optimizer step
        self._began: float | None = None  # the newest forward of a step
        self._waited_s = self._computed_s = 0.0
        self._handles: list[RemovableHandle] = []
        self._copies = LeftOutOfCopies()

    def attach(self, model: nn.Module) -> None:
        """Register the hooks on a model, or on its compiled form."""
        before = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        after = model.register_forward_hook(self._after_forward)
        for handle in (before, after):
            self._copies.add(model, handle)
        self._handles = [before, after]
        for one in self._gradients:
            handle = one.parameter.register_post_accumulate_grad_hook(
                partial(self._notes.guard, self._added, one)
            )
            self._handles.append(handle)
        step_hooks().add(self)

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._copies.clear()
        step_hooks().remove(self)

    @contextmanager
    def validation(self) -> Generator[None]:
        """Count the forwards inside as those of an evaluation."""
        before, self._validating = self._validating, True
        try:
            yield
        finally:
            self._validating, self._ended = before, None

    @property
    def validating(self) -> bool:
        """Whether the loop is inside `validation`."""
        return self._validating

    def target(self, value: object) -> None:
        """A batch's targets, as ``stats.log(target=…)`` gives them."""
        if isinstance(value, Tensor) and self._is_sample():
            self._target.add(value, labels=True)

    def facts(self) -> dict[str, Any]:
        """Everything counted so far, as plain JSON values."""
        own = set(self._named)
        stepped = [one for one in self._optimizers.values() if one.n_own]
        held = {i for one in self._optimizers.values() for i in one.members}
        parameters = dict(self._model.named_parameters())
        wanted = [n for n, p in parameters.items() if p.requires_grad]
        unheld = [n for n in wanted if id(parameters[n]) not in held] if stepped else []
        return {
            **self._counts,
            "backwards": max((one.backwards for one in self._gradients), default=0),
            "optimizer_steps": sum(one.steps for one in stepped),
            "optimizers": [one.facts() for one in self._optimizers.values()][:LISTED],
            "resets_checked": self._checked,
            "steps_without_reset": self._kept,
            "frozen": [n for n, p in parameters.items() if not p.requires_grad][:LISTED],
            "n_frozen": sum(not p.requires_grad for p in parameters.values()),
            "n_parameter_tensors": len(own),
            "in_no_optimizer": unheld[:LISTED],
            "n_in_no_optimizer": len(unheld),
            "changed": self._changed(),
            "without_gradient": self._without_gradient(wanted),
            "evaluation_mode_modules": dict(list(self._eval_modules.items())[:LISTED]),
            "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()}),
            "input": self._input.read(),
            "output": self._output.read(),
            "output_gradient": self._output_gradient.read(),
            "target": self._target.read(),
            "validation_items": self._items.facts(),
            "waited_s": round(self._waited_s, 4),
            "computed_s": round(self._computed_s, 4),
            "modules": module_facts(self._model),
            "unregistered": unregistered(self._model, held),
        }

    def _on_cpu(self) -> list[_Gradient]:
        """Those whose values can be read without waiting for a device."""
        return [one for one in self._gradients if one.parameter.is_cpu and one.parameter.ndim]

    def _changed(self) -> bool | None:
        """Whether any of a few parameters has changed, None if that is not known."""
        now = [one.parameter.detach()[..., :SMALL] for one in self._on_cpu()]
        if not self._first or len(now) != len(self._first):
            return None
        pairs = zip(now, self._first, strict=True)
        return any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)

    def _without_gradient(self, wanted: Sequence[str]) -> list[str]:
        if not self._looked_for_gradients:
            return []
        return [name for name in wanted if name not in self._seen_gradients][:LISTED]

    # ---- hooks ----------------------------------------------------------------------------------

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        if not torch.compiler.is_compiling() and not in_backward() and not are_fake(args):
            self._notes.guard(self._forward_begins, module, [*args, *kwargs.values()])

    def _forward_begins(self, module: nn.Module, inputs: Sequence[object]) -> None:
        grad = torch.is_grad_enabled()
        if self._validating:
            self._counts["validation_forwards"] += 1
            self._counts["validation_in_training_mode"] += module.training
        else:
            self._counts[MODES[module.training, grad]] += 1
        found = next((x for x in inputs if isinstance(x, Tensor)), None)
        found = first_tensor(list(inputs)) if found is None else found
        self._counts["rounds_without_gradients"] += not grad and self._with_gradients
        self._with_gradients = grad
        if self._validating or not grad:
            if found is not None and not is_transformed(found):
                self._items.validate(found)
            return
        self._in_evaluation_mode = not module.training
        if not self._first:
            self._first = [one.parameter.detach()[..., :SMALL].clone() for one in self._on_cpu()]
        now = time.perf_counter()
        if self._ended is not None:
            self._waited_s += now - self._ended
            self._ended = None
        if self._began is None:
            self._began = now
        if self._kept >= OFTEN or self._is_sample():
            for one in self._gradients:
                one.check()
        if self._is_sample():
            self._look_at_modes()
            if found is not None and not is_transformed(found):
                self._input.add(found, more=facts_of_image)
                self._items.train(found)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if torch.compiler.is_compiling() or in_backward() or are_fake(args):
            return
        if module.training and torch.is_grad_enabled() and not self._validating:
            self._notes.guard(self._forward_ends, output)

    def _forward_ends(self, output: object) -> None:
        found = _scores_of(output) if self._is_sample() else None
        if found is not None and not is_transformed(found):
            self._output.add(found, more=facts_of_output)
            if found.requires_grad:
                output_then = found.detach()

                def look(gradient: Tensor) -> None:
                    self._notes.guard(self._gradient_comes, gradient, output_then)

                found.register_hook(look)

    def _gradient_comes(self, gradient: Tensor, output: Tensor) -> None:
        if gradient.shape == output.shape and gradient.numel() <= LARGEST:
            self._output_gradient.add(gradient, more=partial(facts_of_gradient, output=output))

    def _is_sample(self) -> bool:
        n = self._counts["training_forwards"] + self._counts["evaluation_mode_with_gradients"]
        return n <= OFTEN or n % EVERY == 0

    def _look_at_modes(self) -> None:
        for name, module in self._model.named_modules():
            if not module.training and _differs_in_training(module):
                self._eval_modules[name] = type(module).__name__

    def _added(self, one: _Gradient, parameter: Tensor) -> None:
        one.added(parameter)

    def before_step(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        """Look at gradients; `StepListener`."""
        self._notes.guard(self._step_begins, optimizer, closure)
        return closure

    def _step_begins(self, optimizer: Optimizer, closure: Closure | None) -> None:
        known = self._known(optimizer)
        if not known.n_own:
            return
        own = [one for one in self._gradients if id(one.parameter) in known.members]
        if known.steps and own and closure is None:  # a closure may reset them itself
            self._checked += 1
            self._kept += any(one.kept for one in own)
        if self._is_sample():
            self._looked_for_gradients += 1
            for parameter in _members(optimizer):
                if parameter.grad is not None and id(parameter) in self._named:
                    self._seen_gradients.add(self._named[id(parameter)])

    def after_step(self, optimizer: Optimizer) -> None:
        """Count the step; `StepListener`."""
        self._notes.guard(self._step_ends, optimizer)

    def _step_ends(self, optimizer: Optimizer) -> None:
        known = self._known(optimizer)
        known.steps += 1
        if not known.n_own:
            self._counts["foreign_steps"] += 1
            return
        # The forward that it follows: an attack's own, before it, may well be in evaluation mode.
        self._counts["steps_in_evaluation_mode"] += self._in_evaluation_mode
        for one in self._gradients:
            if id(one.parameter) in known.members:
                one.stepped()
        self._ended = time.perf_counter()
        if self._began is not None:
            self._computed_s += self._ended - self._began
            self._began = None

    def _known(self, optimizer: Optimizer) -> _Optimizer:
        found = self._optimizers.get(id(optimizer))
        if found is None:
            found = _Optimizer(optimizer, set(self._named), self._shapes)
            self._optimizers[id(optimizer)] = found
        return found


def _scores_of(output: object) -> Tensor | None:
    """The output that is looked at: ``logits`` of a mapping that has them, else the first."""
    logits: object = output.get("logits") if isinstance(output, Mapping) else None
    return logits if isinstance(logits, Tensor) else first_tensor(output)


def _members(optimizer: Optimizer) -> Iterator[Tensor]:
    groups: list[dict[str, Any]] = optimizer.param_groups
    for group in groups:
        yield from group["params"]


def _spread(model: nn.Module) -> list[Tensor]:
    """A few parameters that need gradients, from the first to the last."""
    found = [p for p in model.parameters() if p.requires_grad and p.is_leaf and not is_lazy(p)]
    n = len(found)
    places = sorted({round(i * (n - 1) / (TRACKED - 1)) for i in range(TRACKED)}) if n else []
    return [found[place] for place in places]


def _differs_in_training(module: nn.Module) -> bool:
    """Whether a module computes something else in training mode."""
    kind = type(module).__name__
    return "Dropout" in kind or (
        "BatchNorm" in kind and getattr(module, "track_running_stats", True)
    )


def module_facts(model: nn.Module) -> list[dict[str, Any]]:
    """The modules without children: name, class, and what of them matters to the doctor."""
    found = list[dict[str, Any]]()
    for name, module in model.named_modules():
        if next(module.children(), None) is not None:
            continue
        facts: dict[str, Any] = {"name": name, "kind": type(module).__name__}
        for key in ("p", "momentum", "track_running_stats", "out_features", "dim"):
            value = getattr(module, key, None)
            if isinstance(value, bool | int | float):
                facts[key] = value
        found.append(facts)
    return found[:500]


def unregistered(model: nn.Module, held: Collection[int] = ()) -> list[str]:
    """Attributes that hold modules in a plain list or dictionary: their parameters are not seen.

    Not those that are frozen, or that an optimizer has all the same: they are hidden on purpose.
    """
    known = set(model.modules())
    found = list[str]()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            items = value.values() if isinstance(value, dict) else value
            if key.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            hidden = [m for m in items if isinstance(m, nn.Module) and m not in known]
            parameters = [p for m in hidden for p in m.parameters()]
            if any(p.requires_grad and id(p) not in held for p in parameters):
                found.append(f"{name}.{key}".lstrip("."))
    return found[:LISTED]
