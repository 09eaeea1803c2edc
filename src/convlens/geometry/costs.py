"""What each layer costs: parameters, multiplications, activations, counted during a fake run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from convlens.execution import modules

Formula = Callable[..., int]


@dataclass
class Usage:
    """What one module did in a run.

    Attributes:
        name: its qualified name.
        module: the module.
        calls: how often it ran.
        multiplications: those of the operators for which it was the innermost module.
        activations: numbers in its outputs, of all calls together.
        output_shape: of its last call; empty if that was not one tensor.
        uncounted: operators run here that may multiply and are not in ``multiplications``.
    """

    name: str
    module: nn.Module
    calls: int = 0
    multiplications: int = 0
    activations: int = 0
    output_shape: tuple[int, ...] = ()
    uncounted: set[str] = field(default_factory=set[str])


@dataclass(frozen=True)
class Parameters:
    """Numbers of a module's own parameters, each counted where it is met first.

    Attributes:
        trainable: numbers that the optimizer changes.
        frozen: numbers with ``requires_grad`` off.
        shared: numbers counted at another layer already.
        n_bytes: memory of the trainable and frozen ones.
    """

    trainable: int = 0
    frozen: int = 0
    shared: int = 0
    n_bytes: int = 0


class CostCounter:
    """Counts while a model runs; see `tracing.Observer`.

    Multiplications are half of what the formulas of `torch.utils.flop_counter` give, which count
    one multiplication and one addition for each product of a convolution or matrix product. They
    know no fused attention on the CPU; here it counts what it counts on any other device.
    """

    def __init__(self) -> None:
        self.usage: dict[str, Usage] = {}
        formulas: Mapping[Any, Formula] = FlopCounterMode(display=False).flop_registry
        attention = formulas[torch.ops.aten._scaled_dot_product_flash_attention]
        on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        self._formulas = {on_cpu: attention, **formulas}

    def begin(self, tensor: Tensor) -> None:  # noqa: ARG002
        """A run begins; what an earlier one counted before it failed is forgotten."""
        self.usage.clear()

    def enter(self, name: str, module: nn.Module, given: Sequence[Tensor]) -> None:  # noqa: ARG002
        """A module is about to run: its place in the order is that of its first run."""
        self.usage.setdefault(name, Usage(name, module)).calls += 1

    def operator(
        self,
        function: OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: object,
        layer: str,
    ) -> None:
        """An operator has run in a layer."""
        usage = self.usage[layer]
        formula = self._formulas.get(function.overloadpacket)
        if formula is not None:
            usage.multiplications += formula(*args, **kwargs, out_val=out) // 2
        elif isinstance(out, Tensor) and (weight := _filters(function, args)) is not None:
            usage.multiplications += out.numel() * weight.numel() // weight.shape[0]
        elif torch.Tag.pointwise in function.tags and isinstance(out, Tensor):
            usage.uncounted.add(function.overloadpacket.__name__.strip("_"))

    def leave(self, name: str, module: nn.Module, output: object) -> None:  # noqa: ARG002
        """A module has run."""
        made = [leaf.shape for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        usage = self.usage[name]
        usage.output_shape = tuple(made[0]) if len(made) == 1 else ()
        usage.activations += sum(shape.numel() for shape in made)


def _filters(function: OpOverload, args: Sequence[Any]) -> Tensor | None:
    """The weight (C_out, …) of an operator that is none of torch's own but multiplies as those do.

    A deformable convolution, without its interpolation; quantized convolutions and linear layers.
    """
    if function.name().startswith("torchvision::deform_conv2d"):
        return args[1]
    if function.namespace == "quantized" and len(args) > 1:
        unpack = getattr(args[1], "unpack", None)
        return None if unpack is None else unpack()[0]
    return None


def count_parameters(module: nn.Module, met: dict[int, Tensor]) -> Parameters:
    """Count a module's own parameters, without its children's.

    Args:
        module: the module.
        met: by their ``id``, the parameters counted before; those met here are added.
    """
    trainable = frozen = shared = n_bytes = 0
    for parameter in modules.own_parameters(module):
        n = parameter.numel()
        if id(parameter) in met:
            shared += n
            continue
        met[id(parameter)] = parameter
        n_bytes += n * parameter.element_size()
        if parameter.requires_grad:
            trainable += n
        else:
            frozen += n
    return Parameters(trainable, frozen, shared, n_bytes)


class Window(NamedTuple):
    """Kernel, stride, padding, dilation and groups of a convolution or pooling; None: has none."""

    kernel_size: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] | str | None = None
    dilation: tuple[int, ...] | None = None
    groups: int | None = None


def window(module: nn.Module) -> Window:
    """The window of a torch convolution or pooling layer, one number for each axis."""
    kind = type(module).__name__
    axes = next((n for n in (1, 2, 3) if kind.endswith(f"{n}d")), 0)
    sizes = [_sizes(getattr(module, name, None), axes) for name in _WINDOW]
    if sizes[0] is None:
        return Window()
    kernel, stride, padding, dilation = sizes
    words = getattr(module, "padding", None)
    groups = getattr(module, "groups", None)
    return Window(
        kernel,
        stride,
        words if isinstance(words, str) else padding,
        dilation,
        groups if isinstance(groups, int) else None,
    )


_WINDOW = ("kernel_size", "stride", "padding", "dilation")


def _sizes(value: object, axes: int) -> tuple[int, ...] | None:
    if isinstance(value, int):
        return (value,) * axes or None
    if isinstance(value, tuple) and all(isinstance(size, int) for size in value):
        return value
    return None


def inputs_per_output(module: nn.Module) -> tuple[int, int] | None:
    """How many numbers go into one position's window, and how many come out of it.

    A 5×5 kernel on one grey channel has 25 for its 8 filters. Where there are groups, both are
    those of one group. None for anything but convolutions and linear layers, and for transposed
    convolutions, whose positions differ.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        inputs = module.in_channels // module.groups * prod(module.kernel_size)
        return inputs, module.out_channels // module.groups
    return None


def channels(module: nn.Module) -> tuple[int, int] | None:
    """Channels, or features, that a layer with a weight takes and gives; None for other layers."""
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
