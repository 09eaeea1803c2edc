"""Costs of each layer: parameters, multiplications, activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from convlens.execution import Observer, modules

Formula = Callable[..., int]


@dataclass
class Usage:
    """What one module did during a forward pass.

    Attributes:
        name: qualified name.
        module: the module.
        calls: number of runs.
        multiplications: those of operators for which it was the innermost module.
        activations: numbers in the outputs of all runs.
        output_shape: of the last run; empty if that gave several tensors.
        uncounted: its operators that may multiply and are not counted.
    """

    name: str
    module: nn.Module
    calls: int = 0
    multiplications: int = 0
    activations: int = 0
    output_shape: tuple[int, ...] = ()
    uncounted: set[str] = field(default_factory=set[str])


class CostCounter(Observer):
    """Counts runs, multiplications and outputs of every module.

    Multiplications are half of what the formulas of `torch.utils.flop_counter` give, which count
    one multiplication and one addition for each product. Torch has no formula for fused attention
    on the CPU; it gets that of other devices.
    """

    def __init__(self) -> None:
        self.usage: dict[str, Usage] = {}
        formulas: Mapping[Any, Formula] = FlopCounterMode(display=False).flop_registry
        attention = formulas[torch.ops.aten._scaled_dot_product_flash_attention]
        on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        self._formulas = {on_cpu: attention, **formulas}

    def begin(self, tensor: Tensor) -> None:  # noqa: ARG002
        """Forget an earlier pass."""
        self.usage.clear()

    def enter(self, name: str, module: nn.Module, given: Sequence[Tensor]) -> None:  # noqa: ARG002
        """Count a run; the order of modules is that of their first runs."""
        self.usage.setdefault(name, Usage(name, module)).calls += 1

    def operator(
        self,
        function: OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: object,
        layer: str,
    ) -> None:
        """Count the multiplications of an operator."""
        usage = self.usage[layer]
        formula = self._formulas.get(function.overloadpacket)
        if formula is not None:
            usage.multiplications += formula(*args, **kwargs, out_val=out) // 2
        elif isinstance(out, Tensor) and (weight := _filters(function, args)) is not None:
            usage.multiplications += out.numel() * weight.numel() // weight.shape[0]
        elif torch.Tag.pointwise in function.tags and isinstance(out, Tensor):
            usage.uncounted.add(function.overloadpacket.__name__.strip("_"))

    def leave(self, name: str, module: nn.Module, output: object) -> None:  # noqa: ARG002
        """Count the numbers in an output."""
        made = [leaf.shape for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        usage = self.usage[name]
        usage.output_shape = tuple(made[0]) if len(made) == 1 else ()
        usage.activations += sum(shape.numel() for shape in made)


def _filters(function: OpOverload, args: Sequence[Any]) -> Tensor | None:
    """The weight (C_out, …) of a deformable convolution, or of a quantized layer."""
    if function.name().startswith("torchvision::deform_conv2d"):
        return args[1]
    if function.namespace == "quantized" and len(args) > 1:
        unpack = getattr(args[1], "unpack", None)
        return None if unpack is None else unpack()[0]
    return None


def parameter_counts(module: nn.Module, met: dict[int, Tensor]) -> dict[str, Any]:
    """Numbers and bytes of a module's own parameters, by attribute of `Row`.

    Args:
        module: the module.
        met: by ``id``, the parameters counted before; new ones are added.
    """
    counts: dict[str, Any] = {"trainable": 0, "frozen": 0, "shared": 0, "parameter_bytes": 0}
    for parameter in modules.own_parameters(module):
        if id(parameter) in met:
            counts["shared"] += parameter.numel()
            continue
        met[id(parameter)] = parameter
        counts["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
        counts["parameter_bytes"] += parameter.numel() * parameter.element_size()
    return counts


def window(module: nn.Module) -> dict[str, Any]:
    """Kernel, stride, padding, dilation and groups of a layer, by attribute of `Row`.

    None where a layer has none; a tuple has one number for each axis.
    """
    kind = type(module).__name__
    axes = next((n for n in (1, 2, 3) if kind.endswith(f"{n}d")), 0)
    found: dict[str, Any] = dict.fromkeys(
        ("kernel_size", "stride", "padding", "dilation", "groups")
    )
    if _sizes(getattr(module, "kernel_size", None), axes) is None:
        return found
    for name in ("kernel_size", "stride", "padding", "dilation"):
        value = getattr(module, name, None)
        found[name] = value if isinstance(value, str) else _sizes(value, axes)
    groups = getattr(module, "groups", None)
    return found | {"groups": groups if isinstance(groups, int) else None}


def _sizes(value: object, axes: int) -> tuple[int, ...] | None:
    if isinstance(value, int):
        return (value,) * axes or None
    if isinstance(value, tuple) and all(isinstance(size, int) for size in value):
        return value
    return None


def inputs_per_output(module: nn.Module) -> tuple[int, int] | None:
    """How many numbers one position of a layer reads, and how many it computes from them.

    A 5×5 kernel on one grey channel reads 25 for its 8 filters. With groups, both are those of one
    group. Only for linear layers and convolutions that are not transposed.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        inputs = module.in_channels // module.groups * prod(module.kernel_size)
        return inputs, module.out_channels // module.groups
    return None


def channels(module: nn.Module) -> tuple[int, int] | None:
    """Channels or features of input and output, for a layer with a weight."""
    pairs = (
        ("in_channels", "out_channels"),
        ("in_features", "out_features"),
        ("num_features", "num_features"),  # batch and instance normalization
        ("num_channels", "num_channels"),  # group normalization
    )
    for names in pairs:
        taken, given = (getattr(module, name, None) for name in names)
        if isinstance(taken, int) and isinstance(given, int):
            return taken, given
    return None
