"""Which modules of a model are layers, and what belongs to each.

The modules that `torch.nn.utils.parametrize` puts below a layer, to compute its weight, and the one
that holds a quantized layer's packed weight are part of that layer: no layers of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn

PARTS = frozenset({"parametrizations", "_packed_params"})
"""Names under which a layer keeps modules that are part of it."""


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each module once with its qualified name, as ``named_modules`` gives it, without parts."""
    for name, module in model.named_modules():
        if PARTS.isdisjoint(name.split(".")):
            yield name, module


def hook_layers(
    model: nn.Module, make: Callable[[str], Callable[..., None]], names: Collection[str] = ()
) -> None:
    """Register a forward hook on each layer; inside `preserved`, which takes them away again.

    Args:
        model: whose layers; TorchScript modules take no hooks.
        make: gives the hook for a layer's name.
        names: those to hook; empty for all.
    """
    for name, module in named_layers(model):
        if (not names or name in names) and not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(make(name))


def has_children(module: nn.Module) -> bool:
    """Whether there are layers below a module."""
    return any(name not in PARTS for name, _ in module.named_children())


def own_parameters(module: nn.Module) -> Iterator[Tensor]:
    """A layer's own parameters, those that its weight is computed from, or its packed ones."""
    yield from module.parameters(recurse=False)
    for name, part in module.named_children():
        if name in PARTS:
            yield from part.parameters()
    unpack = getattr(module, "_weight_bias", None)  # of a quantized layer
    if unpack is not None:
        yield from (tensor for tensor in unpack() if isinstance(tensor, Tensor))


def layer_kind(module: nn.Module) -> str:
    """The class name of a layer, by which `convlens.core.layers.find_layer` finds it.

    Empty for a container: a module with children and without parameters of its own.
    """
    owns = any(True for _ in own_parameters(module))
    return type(module).__name__ if owns or not has_children(module) else ""
