"""The input of a model: parsed, made fake, and named in the sentence when it does not fit."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import is_lazy

from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from convlens.geometry.tracing import ModuleCall

LETTERS = {1: "N", 2: "NC", 3: "NCL", 4: "NCHW", 5: "NCDHW"}


def fake_input(mode: FakeTensorMode, model: object, input_: object) -> torch.Tensor:
    """A fake tensor of the given shape, or like the given tensor, for ``model``.

    Raises:
        ArgumentError: for no model, no shape, or a size that cannot be.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model={model!r} is a {type(model).__name__}, not a torch.nn.Module; give a model."
        )
    tensors = [*model.parameters(), *model.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        raise ArgumentError(
            f"model={type(model).__name__} has lazy parameters whose sizes are not known yet; "
            "run it once on a real batch first."
        )
    if isinstance(input_, torch.Tensor):
        parse_shape(tuple(input_.shape))
        return mode.from_tensor(input_.detach())
    shape = parse_shape(input_)
    real = [tensor for tensor in tensors if tensor.is_floating_point()]
    dtype = real[0].dtype if real else torch.get_default_dtype()
    device = real[0].device if real else torch.device("cpu")
    with mode:
        return torch.empty(shape, dtype=dtype, device=device)


def parse_shape(shape: object) -> tuple[int, ...]:
    """(N, C, *spatial) as integers.

    Raises:
        ArgumentError: for anything but 2 to 5 whole numbers of at least 1.
    """
    expected = "give (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), such as (1, 3, 224, 224)"
    if not isinstance(shape, (tuple, list)):
        raise ArgumentError(f"input_shape={shape!r} is no shape and no tensor; {expected}.")
    sizes: list[int] = []
    for size in cast("Sequence[Any]", shape):
        try:
            sizes.append(operator.index(size))
        except TypeError:
            raise ArgumentError(
                f"input_shape={shape!r} holds {size!r}, which is not a whole number; {expected}."
            ) from None
    if not 2 <= len(sizes) <= 5:
        raise ArgumentError(
            f"input_shape={tuple(sizes)} has {len(sizes)} axes, but 2 to 5 are needed; {expected}."
        )
    if min(sizes) < 1:
        raise ArgumentError(
            f"input_shape={tuple(sizes)} holds {min(sizes)}, but every size must be at least 1; "
            f"{expected}."
        )
    return tuple(sizes)


def in_letters(shape: Sequence[int]) -> str:
    """``(N=1, C=3, H=28, W=28)``."""
    letters = LETTERS.get(len(shape))
    if letters is None:
        return str(tuple(shape))
    return "(" + ", ".join(f"{a}={n}" for a, n in zip(letters, shape, strict=True)) + ")"


def refuse_unbatched(call: ModuleCall, input_shape: tuple[int, ...]) -> None:
    """A convolution takes (C, H, W) for one image without N, and every later axis is misread.

    Raises:
        ArgumentError: for such an input.
    """
    weight = getattr(call.module, "weight", None)
    if not isinstance(call.module, nn.modules.conv._ConvNd) or weight is None:
        return
    if call.input_shape is not None and len(call.input_shape) == weight.ndim - 1:
        raise ArgumentError(
            f"input_shape={input_shape} lacks an axis: layer {call.name!r} "
            f"({type(call.module).__name__}) got {call.input_shape}, but its weight "
            f"{_weight_text(call.module)} expects {_axes(weight.ndim)}; "
            f"give the batch axis N too, such as {(1, *input_shape)}."
        )


def explain_failure(
    error: Exception, stack: Sequence[ModuleCall], input_shape: tuple[int, ...]
) -> ArgumentError:
    """The sentence for a model that raised on fake tensors of the given shape."""
    if isinstance(error, ArgumentError):
        return error
    where, got, expects = "the model", in_letters(input_shape), ""
    if stack:
        call = stack[-1]
        kind = type(call.module).__name__
        where = f"layer {call.name!r} ({kind})" if call.name else f"the model itself ({kind})"
        got = "no tensor" if call.input_shape is None else in_letters(call.input_shape)
        expects = _expectation(call.module, call.input_shape)
    reason = str(error).strip().splitlines() or [type(error).__name__]
    if type(error).__name__ in {"DataDependentOutputException", "DynamicOutputShapeException"}:
        return ArgumentError(
            f"input_shape={input_shape} cannot be traced: in {where}, which got {got}, what happens "
            f"depends on the values of a tensor ({reason[0]}), and fake tensors have none; "
            "give a part of the model that does not."
        )
    said = f"but {expects}" if expects else f"and raised {type(error).__name__}: {reason[0]}"
    return ArgumentError(
        f"input_shape={input_shape} does not fit the model: {where} got {got}, {said.rstrip('.')}; "
        "give an input of the shape that this layer expects."
    )


def _expectation(module: nn.Module, shape: tuple[int, ...] | None) -> str:
    """What a layer's weight needs, where the shape it got is not that; else nothing."""
    if shape is None:
        return ""
    if isinstance(module, nn.modules.conv._ConvNd):
        return _conv_expectation(module, shape)
    if isinstance(module, nn.Linear) and shape[-1] != module.in_features:
        weight = f"(out={module.out_features}, in={module.in_features})"
        return f"its weight {weight} expects {module.in_features} numbers on the last axis"
    if isinstance(module, nn.modules.batchnorm._NormBase):
        channels = module.num_features
        if len(shape) < 2 or shape[1] != channels:
            return f"its weight (C={channels}) expects C={channels} on the second axis"
        return f"it expects another number of axes than {len(shape)}"
    return ""


def _conv_expectation(module: nn.modules.conv._ConvNd, shape: tuple[int, ...]) -> str:
    text = f"its weight {_weight_text(module)} expects"
    if len(shape) != module.weight.ndim:
        return f"{text} {_axes(module.weight.ndim)}"
    if shape[1] != module.in_channels:
        return f"{text} C={module.in_channels}"
    reach = [(k - 1) * d + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    letters = LETTERS[module.weight.ndim][2:]
    return f"{text} at least {', '.join(f'{a}={n}' for a, n in zip(letters, reach, strict=True))} " + (
        f"with the padding {module.padding}"
    )


def _weight_text(module: nn.modules.conv._ConvNd) -> str:
    axes = [f"k{letter}" for letter in LETTERS[module.weight.ndim][2:]]
    first = ["C_in", "C_out"] if module.transposed else ["C_out", "C_in"]
    if module.groups > 1:
        first[1] += "/groups"
    names = [*first, *axes]
    return "(" + ", ".join(f"{a}={n}" for a, n in zip(names, module.weight.shape, strict=True)) + ")"


def _axes(rank: int) -> str:
    return f"{rank} axes ({', '.join(LETTERS[rank])})"
