"""Error messages for batches, models, losses and labels that do not fit each other."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convlens.core.wording import function_name, type_name
from convlens.errors import ConvlensError, TrainingError, warn
from convlens.execution import shapes, unwrapped
from convlens.watching.layer_selection import BatchNorm

_CLASS_LOSSES = {
    *("cross_entropy", "nll_loss", "multi_margin_loss"),
    *("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss"),
}
"""Losses of torch that take scores (N, K, …) and labels (N, …)."""

_VALUE_LOSSES = {
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits"),
    *("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "BCELoss", "BCEWithLogitsLoss"),
}
"""Losses of torch that compare outputs and labels of one shape, number by number."""

_Conv = nn.modules.conv._ConvNd  # pyright: ignore[reportPrivateUsage]
_Norm = nn.modules.batchnorm._NormBase  # pyright: ignore[reportPrivateUsage]

Loss = Callable[[Tensor, Tensor], Tensor]


# ---- the model and its input ---------------------------------------------------------------------


def explain_forward(error: Exception, model: nn.Module, x: Tensor) -> None:
    """Explain an error of the model's forward pass.

    Raises:
        TrainingError: if a layer of torch's cannot take its input. Any other error, which may be
            the model's own, gets a note with the batch's shape.
    """
    batch = f"The batch x is {_named(x)}, {_dtype(x)}."
    layer, given, is_torchs = _failed_layer(error)
    why = None if layer is None or given is None else _why(layer, given)
    if why is None and given is not None and is_torchs:
        why = f"cannot take its input {_named(given)}: {_first_line(error)}"
    if why is None or isinstance(error, ConvlensError) or _is_of_memory(error):
        error.add_note(batch)
        return
    names = unwrapped(model).named_modules()
    name = next((name for name, module in names if module is layer), "")
    raise TrainingError(f"Layer {name!r} ({type(layer).__name__}) {why} {batch}") from error


def _is_of_memory(error: Exception) -> bool:
    """Whether the device is at fault, not the shapes; loops catch these to try smaller batches."""
    kinds = (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


def _failed_layer(error: Exception) -> tuple[nn.Module | None, Tensor | None, bool]:
    """The innermost module in the traceback, its input, and whether its forward is torch's own."""
    found: tuple[nn.Module | None, Tensor | None, bool] = (None, None, False)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        code, local = frame.f_code, frame.f_locals
        module = local.get("self")
        if isinstance(module, nn.Module) and code.co_name.endswith("forward"):
            arguments = [local.get(name) for name in code.co_varnames[1 : code.co_argcount]]
            given = next((value for value in arguments if isinstance(value, Tensor)), None)
            found = module, given, str(frame.f_globals.get("__name__")).startswith("torch.nn.")
    return found


def _why(layer: nn.Module, given: Tensor) -> str | None:
    """Why a convolution, a linear layer or a batch normalization cannot take an input."""
    kinds = ((_Conv, "in_channels", 1), (nn.Linear, "in_features", -1), (_Norm, "num_features", 1))
    known = [(int(getattr(layer, n)), axis) for kind, n, axis in kinds if isinstance(layer, kind)]
    if not known or given.ndim < 2:
        return None
    wanted, axis = known[0]
    kernel: Sequence[int] | None = getattr(layer, "kernel_size", None)
    if isinstance(layer, _Conv) and kernel is not None and given.ndim != len(kernel) + 2:
        return (
            f"takes ({shapes.LETTERS[len(kernel) + 2]}), but its input has shape "
            f"{tuple(given.shape)}; add a missing channel axis with x.unsqueeze(1)."
        )
    if given.shape[axis] != wanted:
        what = f"C = {wanted} channels" if axis == 1 else f"{wanted} features"
        return f"takes {what}, but its input is {_named(given)}."
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and weight.dtype != given.dtype:
        by = " / 255" if given.dtype == torch.uint8 else ""
        return (
            f"has weights of {_dtype(weight)}, but its input is {_dtype(given)}; convert the "
            f"images in the data set or its transform with x.to({weight.dtype}){by}."
        )
    if isinstance(layer, BatchNorm) and layer.training and given.numel() // wanted < 2:
        return (
            f"is batch normalization, which in training needs more than one value per channel, but "
            f"its input is {_named(given)}. Leave out a last batch of one image with "
            "drop_last=True, or choose another batch_size."
        )
    return None


# ---- the loss, the output and the labels ---------------------------------------------------------


def check_output(loss: Loss, output: object, y: Tensor, classes: Sequence[str]) -> None:
    """Check that an output fits labels and classes, where the loss is one of torch's.

    Torch accepts some wrong ones silently: more outputs than classes, and values (N, 1) and (N,),
    which are broadcast. A custom loss may want such outputs, so there it is a warning.

    Raises:
        TrainingError: if the output does not fit.
    """
    problem = _unfit(loss, output, y, classes)
    if problem is not None:
        raise TrainingError(problem)
    if not _is_torchs(loss) and isinstance(output, Tensor) and _are_classes(output, y):
        n = output.shape[1]
        if classes and n != len(classes):
            warn(
                f"The model gives {n} outputs for each image, but there are {len(classes)} "
                "classes; predict needs one for each class."
            )


def checking_loss(loss: Loss, classes: Sequence[str]) -> Loss:
    """The loss, with the errors of `check_output`, `explain_loss` and `check_loss`."""
    return partial(_checked, loss, tuple(classes))


def _checked(loss: Loss, classes: Sequence[str], output: Tensor, y: Tensor) -> Tensor:
    check_output(loss, output, y, classes)
    try:
        value = loss(output, y)
    except Exception as error:
        explain_loss(error, loss, output, y, classes)
        raise
    check_loss(value, loss)
    return value


def explain_loss(
    error: Exception, loss: Loss, output: object, y: Tensor, classes: Sequence[str]
) -> None:
    """Explain an error of the loss function.

    Raises:
        TrainingError: if the loss is torch's, or labels are out of range. Any other error, which
            may be the loss function's own, gets a note with the shapes.
    """
    both = f"the output {_described(output)} and labels y {_described(y)}"
    problem = _unfit(loss, output, y, classes)
    if problem is None and isinstance(output, Tensor) and _are_classes(output, y):
        problem = _out_of_range(loss, output, y)
    if problem is None and _is_torchs(loss):
        problem = f"The loss {function_name(loss)} cannot take {both}: {_first_line(error)}"
    if problem is None or isinstance(error, ConvlensError):
        error.add_note(f"The loss was given {both}.")
        return
    raise TrainingError(problem) from error


def _unfit(loss: Loss, output: object, y: Tensor, classes: Sequence[str]) -> str | None:
    """Why a loss of torch's cannot take an output; None for any other loss."""
    name = function_name(loss)
    if not _is_torchs(loss) or name not in _CLASS_LOSSES | _VALUE_LOSSES:
        return None
    if not isinstance(output, Tensor):
        return (
            f"The model's output is of type {type_name(output)}, and the loss {name} takes a "
            "tensor; give a loss function that takes the part that it needs."
        )
    if name in _VALUE_LOSSES:
        return _unfit_values(name, output, y)
    return _unfit_classes(loss, output, y, classes) if output.ndim >= 2 else None


def _unfit_classes(loss: Loss, output: Tensor, y: Tensor, classes: Sequence[str]) -> str | None:
    n = output.shape[1]
    if classes and n != len(classes):
        return (
            f"The model gives {n} outputs for each image (its output has shape "
            f"{tuple(output.shape)}), but there are {len(classes)} classes; give it as many. A "
            "network that ends with Flatten has more where images are larger than it was made for."
        )
    if not _are_classes(output, y):
        return None
    if y.dtype not in (torch.int64, torch.uint8):
        return (
            f"The labels y are {_dtype(y)}; the loss {function_name(loss)} takes int64: convert "
            "them with y.long()."
        )
    return _out_of_range(loss, output, y)


def _unfit_values(name: str, output: Tensor, y: Tensor) -> str | None:
    if output.shape != y.shape:
        return (
            f"The loss {name} compares outputs and labels number by number, but the output has "
            f"shape {tuple(output.shape)} and y {tuple(y.shape)}; give both one shape, with "
            "y.unsqueeze(1) or output.squeeze(1)."
        )
    if not y.is_floating_point() or y.dtype == torch.float64 != output.dtype:
        return (
            f"The labels y are {_dtype(y)}, but the output is {_dtype(output)}; the loss {name} "
            "takes both as floats of one dtype: convert y with y.float()."
        )
    return None


def _are_classes(output: Tensor, y: Tensor) -> bool:
    """Whether y holds one integer for each item, or pixel, of an output (N, K, …)."""
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    return whole and output.ndim >= 2 and y.ndim == output.ndim - 1


def _out_of_range(loss: Loss, output: Tensor, y: Tensor) -> str | None:
    given: dict[str, Any] = loss.keywords if isinstance(loss, partial) else {}
    ignored = given.get("ignore_index", getattr(loss, "ignore_index", -100))
    return out_of_range(y[y != ignored], output.shape[1])


def out_of_range(labels: Tensor, n: int) -> str | None:
    """Why a model with ``n`` outputs has none for some of the labels."""
    low, high = (int(v) for v in torch.aminmax(labels)) if len(labels) else (0, 0)
    if low >= 0 and high < n:
        return None
    return (
        f"The labels y go from {low} to {high}, but the model gives {n} outputs for each image, "
        f"for labels from 0 to {n - 1}; give the model more outputs, or renumber the labels."
    )


def check_loss(value: object, loss: Loss) -> None:
    """Raises TrainingError if a loss is not a tensor of one number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return
    found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise TrainingError(
        f"The loss {function_name(loss)} must give one number, the mean over the batch "
        f"(reduction='mean'), got {found}."
    )


def check_scores(output: object, classes: Sequence[str]) -> None:
    """Raises TrainingError if an output is not (N, K), a score for each class."""
    if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1:  # noqa: SIM102
        if not classes or output.shape[1] == len(classes):
            return
    wanted = f"K = {len(classes)}, the number of classes" if classes else "K at least 2"
    raise TrainingError(
        f"predict needs an output of scores (N, K) with {wanted}; the model's output is "
        f"{_described(output)}."
    )


def _is_torchs(loss: Loss) -> bool:
    inner: object = loss.func if isinstance(loss, partial) else loss
    owner = type(inner) if isinstance(inner, nn.Module) else inner
    return str(getattr(owner, "__module__", "")).startswith("torch.nn.")


def _named(x: Tensor) -> str:
    """The shape with the names of its axes."""
    return shapes.named(tuple(x.shape))


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"of shape {tuple(value.shape)}, {_dtype(value)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{line or type(error).__name__}."
