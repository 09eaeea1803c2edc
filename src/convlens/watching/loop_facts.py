"""`LoopFacts`: what a training loop does with a model, counted; the doctor judges it."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from convlens.watching.copies import LeftOutOfCopies
from convlens.watching.gradient_resets import GradientResets
from convlens.watching.module_facts import (
    differs_in_training,
    evenly_spread,
    is_trained,
    module_facts,
    only_part,
    unregistered,
)
from convlens.watching.notes import Notes
from convlens.watching.optimizer_facts import LISTED, KnownOptimizer, OptimizerFacts, parameters_of
from convlens.watching.optimizer_hooks import Closure, step_hooks
from convlens.watching.outputs import (
    are_fake,
    as_if_outside,
    first_tensor,
    in_backward,
    in_transform,
    is_capturing,
    is_plain,
    scores_of,
)
from convlens.watching.tensor_facts import (
    LARGEST,
    ItemFacts,
    TensorFacts,
    facts_of_gradient,
    facts_of_image,
    facts_of_output,
)

OFTEN, EVERY, OCTAVES = 8, 64, 4
"""Inputs, outputs and modes are looked at in the first `OFTEN` forwards, then in each 64th; from
2^10 on in 8 of each doubling: a look at a batch takes as long as the rest of hundreds of steps."""

TRACKED = 2
"""Parameters whose gradients are followed from step to step."""

MODES = {
    (True, True): "training_forwards",
    (False, False): "evaluation_forwards",
    (True, False): "training_mode_without_gradients",
    (False, True): "evaluation_mode_with_gradients",
}
"""The name of a forward by the model's mode and whether autograd records it."""

OF_A_STEP = 0.5
"""Forwards without gradients that come in more than half of the steps are a part of the step, as
the generator's in a GAN, and no validation, which comes once in many steps."""


class LoopFacts:
    """Counts forwards, backward passes and optimizer steps, and looks at inputs and outputs.

    Nothing is waited for on a GPU: numbers stay there until `facts` is called. What cannot be seen,
    such as forwards of compiled code and replayed CUDA graphs, is not counted.

    Args:
        model: whose loop.
        notes: where to say what could not be recorded.
        parts: whether the loop may call a part of the model only; the one that has all parameters
            stands for it then.
    """

    def __init__(self, model: nn.Module, notes: Notes, *, parts: bool = False) -> None:
        self._model, self._notes = model, notes
        self._part = only_part(model) if parts else None
        self._named = dict[int, str]()
        self._parameters = list[Tensor]()  # held, so that no id is given again
        self._gradients = list[GradientResets]()
        self._backwards_before = 0  # of parameters that the model no longer has
        self._counts = dict.fromkeys(MODES.values(), 0)
        self._counts |= {"validation_forwards": 0, "validation_in_training_mode": 0}
        self._counts |= {"steps_in_evaluation_mode": 0}
        self._without_gradients = 0  # spells of forwards in training mode without gradients
        self._is_without = False
        self._checked = self._kept = 0  # steps, and those whose gradients were not reset before
        self._told_steps = self._n_targets = self._n_looked = self._n_training = 0
        self._sampling = self._must_look = False
        self._input, self._output, self._target = TensorFacts(), TensorFacts(), TensorFacts()
        self._output_gradient, self._items = TensorFacts(), ItemFacts()
        self._looked = set[str]()  # parameters whose gradients were looked for, and found
        self._seen_gradients = set[str]()
        self._eval_modules: dict[str, str] = {}
        self._trained_in_eval: dict[str, str] = {}  # those of them that an optimizer trains
        self._optimizers = OptimizerFacts(model)
        self._validating = self._in_evaluation_mode = self._with_closure = False
        self._inside: int | None = None  # the thread of a forward of the model itself
        self._ended: float | None = None  # the last optimizer step
        self._began: float | None = None  # the newest forward of a step
        self._waited_s = self._computed_s = 0.0
        self._modules, self._unregistered = list[dict[str, Any]](), list[str]()
        self._handles: list[RemovableHandle] = []
        self._parameter_handles: list[RemovableHandle] = []
        self._copies = LeftOutOfCopies()

    def attach(self, model: nn.Module) -> None:
        """Register the hooks on a model, or on its compiled form."""
        self._keep(model, model.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        self._keep(model, model.register_forward_hook(self._after_forward, always_call=True))
        part = self._part
        if part is not None and not isinstance(part, torch.jit.ScriptModule):
            self._keep(part, part.register_forward_pre_hook(self._before_part, with_kwargs=True))
            self._keep(part, part.register_forward_hook(self._after_part))
        self._notes.guard(self._read_model)
        step_hooks().add(self)

    def _keep(self, module: nn.Module, handle: RemovableHandle) -> None:
        self._handles.append(handle)
        self._copies.add(module, handle)

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in (*self._handles, *self._parameter_handles):
            handle.remove()
        self._handles.clear()
        self._parameter_handles.clear()
        self._copies.clear()
        step_hooks().remove(self)

    def _read_model(self) -> None:
        """Find the model's parameters, if it has others than before, and follow a few of them."""
        named = dict(self._model.named_parameters())
        parameters = list(named.values())
        if self._parameters and any(map(is_traceable_wrapper_subclass, self._parameters)):
            return  # FSDP has others in their places during a forward
        if any(not isinstance(p, nn.Parameter) for p in parameters):  # pyright: ignore[reportUnnecessaryIsInstance]
            return  # torch.func.functional_call too
        self._named = {id(p): name for name, p in named.items()}
        tracked = evenly_spread(parameters, TRACKED)
        if set(map(id, parameters)) != set(map(id, self._parameters)):
            self._parameters = parameters
            self._optimizers.update(parameters)
            self._modules = module_facts(self._model)
            self._unregistered = unregistered(self._model)
        elif not tracked or any(one.parameter.requires_grad for one in self._gradients):
            return  # those that are followed are as good as any, also where they are frozen in turn
        for handle in self._parameter_handles:
            handle.remove()
        self._backwards_before = self._backwards
        old = {id(one.parameter): one for one in self._gradients}
        self._gradients = [old.get(id(p)) or GradientResets(p) for p in tracked]
        for one in self._gradients:
            one.backwards = 0
        self._parameter_handles = [one.attach(self._added) for one in self._gradients]

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
        if isinstance(value, Tensor) and is_plain(value):
            self._n_targets += 1
            if _is_sample(self._n_targets):
                with as_if_outside(value.device):
                    self._target.add(value)

    def told_step(self) -> None:
        """``stats.step()`` was called by the loop."""
        self._told_steps += 1

    # ---- what was counted -----------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Everything counted so far, as plain JSON values; waits for a GPU's numbers."""
        with as_if_outside(torch.device("cpu")):
            return self._facts()

    def _facts(self) -> dict[str, Any]:
        parameters = dict(self._model.named_parameters())
        wanted = [n for n, p in parameters.items() if p.requires_grad]
        held, steps = self._optimizers.held, self._optimizers.steps
        unheld = [n for n in wanted if id(parameters[n]) not in held] if steps else []
        zeroed = any(one.was_zeroed for one in self._gradients)
        changed = self._changed()
        on_cpu = all(p.is_cpu for p in parameters.values())
        return {
            **self._counts,
            **self._forwards_without_gradients(),
            "backwards": self._backwards,
            "optimizer_steps": steps,
            "foreign_steps": self._optimizers.foreign_steps,
            "told_steps": self._told_steps,
            "unseen_optimizer": bool(changed and not steps),
            "optimizers": self._optimizers.facts(),
            "resets_checked": 0 if zeroed else self._checked,
            "steps_without_reset": 0 if zeroed else self._kept,
            "frozen": [n for n, p in parameters.items() if not p.requires_grad][:LISTED],
            "n_frozen": len(parameters) - len(wanted),
            "n_parameter_tensors": len(parameters),
            "in_no_optimizer": unheld[:LISTED],
            "n_in_no_optimizer": len(unheld),
            "changed": changed,
            "without_gradient": [n for n in wanted if n in self._looked - self._seen_gradients][
                :LISTED
            ],
            "evaluation_mode_modules": dict(list(self._eval_modules.items())[:LISTED]),
            "trained_in_evaluation_mode": dict(list(self._trained_in_eval.items())[:LISTED]),
            "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()}),
            "input": self._input.read(),
            "output": self._output.read(),
            "output_gradient": self._output_gradient.read(),
            "target": self._target.read(),
            "validation_items": self._items.facts(),
            # On a GPU the loop's own clock says little: it waits wherever a number is read.
            "waited_s": round(self._waited_s, 4) if on_cpu else None,
            "computed_s": round(self._computed_s, 4) if on_cpu else None,
            "modules": self._modules,
            "unregistered": self._find_unregistered(),
        }

    @property
    def _backwards(self) -> int:
        now = max((one.backwards for one in self._gradients), default=0)
        return self._backwards_before + now

    def _forwards_without_gradients(self) -> dict[str, int]:
        """Those in training mode, as validation or as a part of the training step."""
        name = MODES[True, False]
        own, foreign = self._optimizers.steps, self._optimizers.foreign_steps
        in_each = self._without_gradients > max(OF_A_STEP * (own or foreign), OFTEN)
        # Where another network is trained beside it, the model makes samples, as a generator does.
        if in_each or (own and foreign > OF_A_STEP * own):
            return {name: 0, "of_steps_without_gradients": self._counts[name]}
        return {"of_steps_without_gradients": 0}

    def _find_unregistered(self) -> list[str]:
        if not self._unregistered:
            return []
        return unregistered(self._model, self._optimizers.members)

    def _changed(self) -> bool | None:
        """Whether any of a few parameters has changed, None if that is not known."""
        found = [one.has_changed() for one in self._gradients]
        return True if any(found) else None if None in found or not found else False

    # ---- forwards -------------------------------------------------------------------------------

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        if not torch.compiler.is_compiling() and not in_backward() and not are_fake(args):
            self._inside = get_ident()
            self._notes.guard(self._forward_begins, module, args, kwargs)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if torch.compiler.is_compiling() or in_backward() or are_fake(args):
            return
        self._inside = None
        if output is not None and module.training:
            self._notes.guard(self._forward_ends, output)

    def _before_part(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        if torch.compiler.is_compiling() or in_backward() or are_fake(args):
            return
        if self._inside != get_ident():
            self._notes.guard(self._forward_begins, module, args, kwargs)

    def _after_part(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if torch.compiler.is_compiling() or in_backward() or are_fake(args):
            return
        if self._inside != get_ident() and module.training:
            self._notes.guard(self._forward_ends, output)

    def _forward_begins(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        grad = torch.is_grad_enabled()
        self._count(module, grad)
        if grad and not self._validating:
            if not self._with_closure:  # a step without one has no forward inside
                self._optimizers.between_steps()
            self._in_evaluation_mode = not module.training
            self._time_begins()
            self._n_training += 1
            self._sampling = _is_sample(self._n_training)
            if not self._sampling and not self._must_look:
                return
        if not is_capturing():
            self._look(grad, args, kwargs)

    def _look(self, grad: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Look at a forward's input: of a validation, or of a sample of the training."""
        transformed = in_transform()
        inputs = [*args, *kwargs.values()]
        found = next((x for x in inputs if isinstance(x, Tensor)), None)
        found = first_tensor(inputs) if found is None else found
        if found is not None and (transformed or not is_plain(found)):
            found = None
        if self._validating or not grad:
            if found is not None and found.is_cpu:
                with as_if_outside(found.device):
                    self._items.validate(found)
            return
        if self._sampling and not transformed:
            self._sample(found, kwargs.get("labels"))
        else:
            self._look_at_gradients()

    def _count(self, module: nn.Module, grad: bool) -> None:
        if self._validating:
            self._counts["validation_forwards"] += 1
            self._counts["validation_in_training_mode"] += module.training
            return
        self._counts[MODES[module.training, grad]] += 1
        without = module.training and not grad
        self._without_gradients += without and not self._is_without
        self._is_without = without

    def _time_begins(self) -> None:
        now = time.perf_counter()
        if self._ended is not None:
            self._waited_s += now - self._ended
            self._ended = None
        if self._began is None:
            self._began = now

    def _sample(self, x: Tensor | None, labels: object) -> None:
        """Look at a training forward's input, at modes and gradients before it."""
        self._read_model()
        self._keep_values()
        self._look_at_gradients()
        for name, module in self._model.named_modules():
            if not module.training and differs_in_training(module):
                self._eval_modules[name] = type(module).__name__
                if is_trained(self._model, name, self._optimizers.held):  # it may be unfrozen later
                    self._trained_in_eval[name] = type(module).__name__
        if x is not None:
            with as_if_outside(x.device):
                self._input.add(x, more=facts_of_image)
                if x.is_cpu:
                    self._items.train(x)
        if isinstance(labels, Tensor):  # as models of transformers are given them
            self.target(labels)

    def _keep_values(self) -> None:
        with torch.no_grad():
            for one in self._gradients:
                one.keep_values()

    def _look_at_gradients(self) -> None:
        for one in self._gradients:
            one.look()
            self._must_look = self._must_look or one.found_zeros

    def _forward_ends(self, output: object) -> None:
        sample = self._sampling
        if not sample and not self._must_look:
            return
        if self._validating or not torch.is_grad_enabled() or is_capturing() or in_transform():
            return
        found = other = None
        with suppress(Exception):  # a tensor of a class of its own may refuse whatever it is asked
            found = scores_of(output)
            other = first_tensor(output) if found is None else None
        if found is not None and sample and is_plain(found):
            with as_if_outside(found.device):
                self._output.add(found, more=facts_of_output)
        found = other if found is None else found
        # A hook of the node, not of the tensor, which would warn of it when it is pickled.
        if found is not None and is_plain(found) and found.grad_fn is not None:
            kept = (found.detach(), found._version) if sample and found.ndim else None
            work = partial(self._notes.guard, self._gradient_comes, found.output_nr, kept)
            found.grad_fn.register_prehook(work)

    def _gradient_comes(
        self, place: int, kept: tuple[Tensor, int] | None, gradients: Sequence[Tensor | None]
    ) -> None:
        """A backward pass begins; ``kept`` are the output and its version then."""
        if not self._handles or is_capturing() or in_transform():
            return
        self._look_at_gradients()
        gradient = gradients[place]
        if kept is None or gradient is None or not is_plain(gradient):
            return
        output, version = kept
        same = gradient.shape == output.shape and output._version == version
        if same and gradient.numel() <= LARGEST:
            with as_if_outside(gradient.device):
                more = partial(facts_of_gradient, output=output)
                self._output_gradient.add(gradient, more=more)

    # ---- gradients and steps --------------------------------------------------------------------

    def _added(self, one: GradientResets) -> None:
        try:
            one.added()
        except Exception as error:
            self._notes.failed(error)

    def before_step(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        """Look at gradients; `StepListener`."""
        self._notes.guard(self._step_begins, optimizer, closure is not None)
        return closure

    def _step_begins(self, optimizer: Optimizer, with_closure: bool) -> None:
        known = self._optimizers.begins(optimizer)
        if known is not None:
            self._with_closure = with_closure
            if known.n_own and not with_closure:
                self._judge_gradients(optimizer, known, first=not known.steps)

    def _judge_gradients(self, optimizer: Optimizer, known: KnownOptimizer, *, first: bool) -> None:
        """See whether they were reset since the last step, and which parameters have one."""
        own = [one for one in self._gradients if id(one.parameter) in known.members]
        if not first and own:
            kept = any(one.was_kept() for one in own)
            known.checked += 1
            known.kept += kept
            self._checked += 1
            self._kept += kept
            # It may be that gradients are reset in a way that raises no version.
            self._must_look = self._must_look or self._kept >= OFTEN
        self._n_looked += 1
        if _is_sample(self._n_looked):
            for parameter in parameters_of(optimizer):
                name = self._named.get(id(parameter))
                if name is not None and parameter.requires_grad:
                    self._looked.add(name)
                    if parameter.grad is not None:
                        self._seen_gradients.add(name)

    def after_step(self, optimizer: Optimizer) -> None:
        """Count the step; `StepListener`."""
        self._notes.guard(self._step_ends, optimizer)

    def _step_ends(self, optimizer: Optimizer) -> None:
        known = self._optimizers.ends(optimizer)
        if known is None or not known.n_own:
            return
        if self._with_closure:  # which computes the gradients inside the step
            self._judge_gradients(optimizer, known, first=known.steps == 1)
        self._with_closure = self._is_without = False
        # The forward that it follows: an attack's own, before it, may well be in evaluation mode.
        self._counts["steps_in_evaluation_mode"] += self._in_evaluation_mode
        for one in self._gradients:
            if id(one.parameter) in known.members:
                one.stepped()
        self._ended = time.perf_counter()
        if self._began is not None:
            self._computed_s += self._ended - self._began
            self._began = None


def _is_sample(n: int) -> bool:
    """Whether the n-th of many is looked at."""
    return n <= OFTEN or n % max(EVERY, 1 << max(n.bit_length() - OCTAVES, 0)) == 0
