"""`head_of`: the last layers of a network, which belong to its classes."""

from __future__ import annotations

from typing import Any

from torch import nn

from convlens.models.normalization import inner_network


def head_of(network: nn.Module) -> list[nn.Module]:
    """The modules that own the parameters of the head: a classifier and what follows it.

    Of a network of timm, what the library calls its classifier. Else the last module that owns a
    weight with two axes or more, and the norms after it.

        >>> from convlens.models.heads import head_of
        >>> [type(layer).__name__ for layer in head_of(cl.simple_cnn(1, 10, norm="batch"))]
        ['Conv2d', 'BatchNorm2d']
    """
    network = inner_network(network)
    classifier: Any = getattr(network, "get_classifier", None)
    if callable(classifier):
        found: Any = classifier()
        parts = found if isinstance(found, tuple | list) else (found,)
        modules = [m for part in parts if isinstance(part, nn.Module) for m in part.modules()]
        owners = [m for m in modules if next(m.parameters(recurse=False), None) is not None]
        if owners:
            return owners
    owners = [m for m in network.modules() if next(m.parameters(recurse=False), None) is not None]
    for i in reversed(range(len(owners))):
        if any(p.ndim > 1 for p in owners[i].parameters(recurse=False)):
            return owners[i:]
    return owners[-1:]


def head_names(network: nn.Module) -> list[str]:
    """The names of the head's parameters and buffers in the network's state."""
    head = {id(module) for module in head_of(network)}
    paths = {path for path, module in network.named_modules() if id(module) in head}
    return [name for name in network.state_dict() if name.rpartition(".")[0] in paths]
