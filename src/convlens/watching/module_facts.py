"""What is known of a model's modules before any forward."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

MODULES = 500
"""Modules without children that are described at most: about 40 KB in the run's facts."""

LOOKED_AT = 1_000
"""Items of a list or dictionary that are looked at for modules."""

LISTED = 50


def module_facts(model: nn.Module) -> list[dict[str, Any]]:
    """The modules without children: name, class, and what of them matters to the doctor."""
    found = list[dict[str, Any]]()
    for name, module in model.named_modules():
        if next(module.children(), None) is not None:
            continue
        facts: dict[str, Any] = {"name": name, "kind": type(module).__name__}
        if differs_in_training(module):
            facts["differs_in_training"] = True
        for key in ("p", "momentum"):
            value = getattr(module, key, None)
            if isinstance(value, bool | int | float):
                facts[key] = value
        found.append(facts)
        if len(found) == MODULES:
            break
    return found


def unregistered(model: nn.Module, held: Collection[int] = ()) -> list[str]:
    """Attributes that hold modules in a plain list or dictionary: their parameters are not seen.

    Not those that are frozen, or that an optimizer has all the same (``held``: the ids of its
    parameters): they are hidden on purpose.
    """
    known = {id(module) for module in model.modules()}
    found = list[str]()
    for name, module in model.named_modules():
        for key, value in list(vars(module).items()):
            if key.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            items = value.values() if isinstance(value, dict) else value
            hidden = [m for m in islice(items, LOOKED_AT) if isinstance(m, nn.Module)]
            hidden = [m for m in hidden if id(m) not in known]
            parameters = [p for m in hidden for p in m.parameters()]
            if any(p.requires_grad and id(p) not in held for p in parameters):
                found.append(f"{name}.{key}".lstrip("."))
    return found[:LISTED]


def differs_in_training(module: nn.Module) -> bool:
    """Whether a module computes something else in training mode."""
    kind = type(module).__name__
    if "Dropout" in kind:
        return bool(getattr(module, "p", True))
    return "BatchNorm" in kind and bool(getattr(module, "track_running_stats", True))


def is_trained(model: nn.Module, name: str, held: Collection[int]) -> bool:
    """Whether a module has parameters that need a gradient and are in ``held``, by their ids.

    A module without any, such as a dropout, belongs to the smallest one around it that has some.
    """
    parameters = list(model.get_submodule(name).parameters())
    while name and not parameters:
        name = name.rpartition(".")[0]
        parameters = list(model.get_submodule(name).parameters())
    return any(p.requires_grad and id(p) in held for p in parameters)


def only_part(model: nn.Module) -> nn.Module | None:
    """The child that has all of a model's parameters, if there is one.

    A loop that calls parts of a module, as Lightning's ``training_step`` does, calls this one.
    """
    if next(model.parameters(recurse=False), None) is not None:
        return None
    having = [child for child in model.children() if next(child.parameters(), None) is not None]
    return having[0] if len(having) == 1 and not isinstance(model, nn.Sequential) else None


def evenly_spread(parameters: Sequence[Tensor], n: int) -> list[Tensor]:
    """A few parameters that need gradients, from the first to the last."""
    found = [p for p in parameters if p.requires_grad and p.is_leaf and not is_lazy(p)]
    last = len(found) - 1
    places = sorted({round(i * last / (n - 1)) for i in range(n)}) if found else []
    return [found[place] for place in places]
