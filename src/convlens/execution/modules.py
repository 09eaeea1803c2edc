"""Which modules of a model are layers, and what belongs to each.

Modules below a layer that compute its weight (`torch.nn.utils.parametrize`) or hold its packed
weight (quantized layers) are part of that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_leaves_with_path

PARTS = frozenset({"parametrizations", "_packed_params"})
"""Names of modules that are part of the layer above them."""


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each layer once, with its qualified name."""
    for name, module in model.named_modules():
        if PARTS.isdisjoint(name.split(".")):
            yield name, module


def hook_layers(
    model: nn.Module, make: Callable[[str], Callable[..., None]], names: Collection[str] = ()
) -> None:
    """Register a forward hook on each layer; inside `preserved`, which removes the hooks.

    Args:
        model: the model; TorchScript modules take no hooks.
        make: makes the hook for a layer's name.
        names: layers to hook; empty for all.
    """
    for name, module in named_layers(model):
        if (not names or name in names) and not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(make(name))


def named_tensors(name: str, output: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a layer's output: several are ``name[0]``, ``name['key']`` and so on."""
    found = [(p, t) for p, t in tree_leaves_with_path(output) if isinstance(t, Tensor)]
    for path, tensor in found:
        yield name if len(found) == 1 else name + keystr(path), tensor


def keep_outputs(model: nn.Module, outputs: dict[str, Tensor], names: Collection[str] = ()) -> None:
    """Copy the outputs of layers during the next forward pass; inside `preserved`.

    Args:
        model: the model.
        outputs: gets the copies, by the names of `named_tensors`.
        names: those to keep; empty for all.
    """

    def keeper(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: object, output: object) -> None:
            for key, tensor in named_tensors(name, output):
                outputs[key] = tensor.clone()  # a later layer may change it in place

        return keep

    hook_layers(model, keeper, [name.partition("[")[0] for name in names])


def has_children(module: nn.Module) -> bool:
    """Whether a module has layers below it."""
    return any(name not in PARTS for name, _ in module.named_children())


def own_parameters(module: nn.Module) -> Iterator[Tensor]:
    """A layer's own parameters, those that its weight is computed from, and packed ones."""
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
