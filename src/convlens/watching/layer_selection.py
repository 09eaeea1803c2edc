"""Which modules are watched, and which axis their channels are on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from convlens.core.layers import find_layer
from convlens.errors import ArgumentError
from convlens.execution import has_children, layer_kind, named_layers, own_parameters

BatchNorm = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]

_SPATIAL = r"(?:Lazy)?(?:Conv|ConvTranspose|InstanceNorm)(\d)d"

Layers = str | Sequence[str | nn.Module | type[nn.Module]]


def choose_layers(model: nn.Module, layers: Layers) -> list[tuple[str, nn.Module]]:
    """The modules to watch, with their qualified names, in the order of ``model.named_modules()``.

    Args:
        model: any module.
        layers: ``"trainable"``, every module that owns parameters itself (see `owns_parameters`);
            ``"all"``, every module without children; or a sequence of qualified names, kinds such
            as ``"last conv"``, modules and module classes.

    Raises:
        ArgumentError: if nothing is chosen, or ``layers`` is or holds something else.
        LayerNotFoundError: if the model has no module of a given name.
    """
    named = [(name or "(root)", module) for name, module in model.named_modules()]
    shown = [(name or "(root)", module) for name, module in named_layers(model)]
    if layers == "trainable":
        chosen = [pair for pair in shown if owns_parameters(pair[1])]
    elif layers == "all":
        chosen = [pair for pair in shown if not has_children(pair[1])]
    elif isinstance(layers, str | nn.Module | type) or not isinstance(
        layers,
        Iterable,  # pyright: ignore[reportUnnecessaryIsInstance]
    ):
        raise ArgumentError(
            f"layers={layers!r} is not known; use 'trainable', 'all', or a list of module names, "
            "modules or module classes."
        )
    else:
        chosen = _named_by_user(model, named, layers)
    if not chosen:
        raise ArgumentError(
            f"layers={layers!r} chooses none of the {len(named)} modules of "
            f"{type(model).__name__}; name at least one of them."
        )
    return chosen


def other_names(model: nn.Module, chosen: Sequence[tuple[str, nn.Module]]) -> dict[str, str]:
    """All names under which the chosen modules are registered, and the one each is watched by."""
    watched = {module: name for name, module in chosen}
    every = model.named_modules(remove_duplicate=False)
    return {name: watched[module] for name, module in every if module in watched}


def owns_parameters(module: nn.Module) -> bool:
    """Whether a module has parameters of its own, parametrized ones among them.

    Not so the last layer of `torch.nn.MultiheadAttention`, of which only the weight is used.
    """
    unused = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return not unused and any(True for _ in own_parameters(module))


def _named_by_user(
    model: nn.Module,
    named: list[tuple[str, nn.Module]],
    layers: Iterable[str | nn.Module | type[nn.Module]],
) -> list[tuple[str, nn.Module]]:
    known = {name or "(root)": m for name, m in model.named_modules(remove_duplicate=False)}
    names, present = list(known), {id(module) for _, module in named}
    named_kinds = list(map(layer_kind, known.values()))
    wanted: set[int] = set()
    kinds: list[type[nn.Module]] = []
    for layer in layers:
        if isinstance(layer, str):  # any of the names of a module that has several
            wanted.add(id(known[names[find_layer(layer, names, named_kinds)]]))
        elif isinstance(layer, type):
            kinds.append(layer)
        elif id(layer) in present:
            wanted.add(id(layer))
        else:
            raise ArgumentError(
                f"layers has {layer!r}, which is none of the {len(named)} modules of "
                f"{type(model).__name__}; give names, modules of this model, or module classes."
            )
    wanted |= {id(m) for _, m in named_layers(model) if isinstance(m, tuple(kinds))}
    return [pair for pair in named if id(pair[1]) in wanted]


def channel_rule(module: nn.Module) -> int | None:
    """The axis of a module's output with the channels, negative from the end; None if unknown.

    Convolutions and instance normalization: the axis before their spatial axes, (N, C, H, W) or
    (C, H, W). Other normalizations over channels: axis 1. Linear, layer normalization, embedding
    and attention: the last axis.
    """
    for kind in type(module).__mro__:  # of a subclass too, such as one with parametrizations
        spatial = re.fullmatch(_SPATIAL, kind.__name__)
        if spatial:
            return -1 - int(spatial[1])
    if isinstance(module, BatchNorm | nn.GroupNorm | nn.PReLU):
        return 1
    last = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.Bilinear)
    return -1 if isinstance(module, last) else None


def channel_axis(rule: int | None, ndim: int) -> int | None:
    """A `channel_rule` as an axis from 0 for ``ndim`` dimensions, None if there is none."""
    if rule is None:
        return None
    axis = rule if rule >= 0 else ndim + rule
    return axis if 0 <= axis < ndim else None


def known_channels(module: nn.Module) -> int | None:
    """How many channels a module's output will have, None if only the output tells."""
    names = ("out_channels", "num_features", "num_channels", "out_features", "embed_dim")
    more = ("embedding_dim", "num_parameters")
    channels = next((vars(module)[n] for n in (*names, *more) if n in vars(module)), None)
    shape = getattr(module, "normalized_shape", None)
    if channels is None and shape:
        channels = shape[-1]
    if channel_rule(module) is None:
        return 0
    return channels if isinstance(channels, int) and channels > 0 else None
