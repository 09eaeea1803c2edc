"""What one forward pass and the gradient at its output say, without a training step."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from convlens.checking.batches import split
from convlens.checking.setup import Setup
from convlens.core.records import LOOP, Finding, RunRecord
from convlens.core.steps import empty_steps
from convlens.doctor.diagnosis import judge_batch
from convlens.watching.module_facts import module_facts, unregistered
from convlens.watching.outputs import first_tensor
from convlens.watching.tensor_facts import (
    LARGEST,
    More,
    TensorFacts,
    facts_of_gradient,
    facts_of_image,
    facts_of_output,
)


def findings_of_batch(
    model: nn.Module,
    optimizer: Optimizer | None,
    x: object,
    y: object,
    output: object,
    gradient: Tensor | None,
) -> list[Finding]:
    """What is wrong with model, loss and data for certain, as one batch shows it.

    Args:
        model: any module.
        optimizer: its optimizer, None if it has none yet.
        x: the inputs of a batch.
        y: its targets.
        output: what the model made of the inputs.
        gradient: of the loss at the first tensor of the output.
    """
    given, made, wanted = (
        first_tensor(x),
        first_tensor(output),
        y if isinstance(y, Tensor) else None,
    )
    facts: dict[str, Any] = {
        "modules": module_facts(model),
        "unregistered": unregistered(model),
        "input": _facts(given, facts_of_image),
        "output": _facts(made, facts_of_output),
        "target": _facts(wanted),
        "output_gradient": None,
    }
    if gradient is not None and made is not None and gradient.numel() <= LARGEST:
        of_gradient = partial(facts_of_gradient, output=made.detach())
        facts["output_gradient"] = _facts(gradient, of_gradient)
    facts |= _members(model, optimizer)
    meta: dict[str, Any] = {
        LOOP: facts,
        "trial": {"batch_size": 0 if given is None else len(given)},
    }
    return judge_batch(RunRecord(meta, empty_steps(), (), ()))


def _facts(value: Tensor | None, more: More | None = None) -> object:
    if value is None:
        return None
    facts = TensorFacts()
    facts.add(value, more)
    return facts.read()


def _members(model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """Which parameters that need a gradient are in no optimizer."""
    named = dict(model.named_parameters())
    frozen = sum(not p.requires_grad for p in named.values())
    groups: list[dict[str, Any]] = [] if optimizer is None else optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    unheld = [n for n, p in named.items() if p.requires_grad and held and id(p) not in held]
    return {
        "n_parameter_tensors": len(named),
        "n_frozen": frozen,
        "in_no_optimizer": unheld[:50],
        "n_in_no_optimizer": len(unheld),
    }


def look(setup: Setup, batch: Any) -> list[Finding]:  # noqa: ANN401
    """One forward pass of a model that cannot be copied; inside `preserved`."""
    outputs, gradients = list[object](), list[Tensor]()

    def keep(module: nn.Module, args: object, output: object) -> None:  # noqa: ARG001
        outputs.append(output)

    setup.model.register_forward_hook(keep)
    loss = setup.loss_of(batch)
    made = first_tensor(outputs[0]) if outputs else None
    if loss is not None and loss.requires_grad and made is not None and made.requires_grad:
        made.register_hook(gradients.append)
        loss.backward()
    x, y = split(batch)
    return findings_of_batch(setup.model, None, x, y, made, gradients[0] if gradients else None)
