"""Checks of what a `Learner` is given, before they can fail in the middle of a training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence

from torch import nn
from torch.optim import Optimizer

from convlens.core.wording import function_name, type_name
from convlens.data import DataLoaders
from convlens.errors import ArgumentError
from convlens.geometry import Summary
from convlens.train.callbacks.base import Callback


def check_arguments(
    dls: object,
    model: object,
    loss: object,
    optimizer: object,
    metrics: object,
    callbacks: object,
) -> None:
    """Raises ArgumentError for arguments that would fail during a training."""
    if not isinstance(dls, DataLoaders):
        raise ArgumentError(
            "dls must be DataLoaders, from cl.mnist, cl.from_arrays or cl.DataLoaders(train, "
            f"valid), got {type_name(dls)}."
        )
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type_name(model)}.")
    _check_functions(loss, optimizer)
    for name, values, wanted in (
        ("metrics", metrics, "functions of (output, y), torchmetrics objects or names such as "
         "'accuracy'"),
        ("callbacks", callbacks, "callbacks, such as cl.ActivationStats()"),
    ):  # fmt: skip
        if (
            not isinstance(values, Sequence)
            or isinstance(values, str)
            or not all(_fits(name, value) for value in values)
        ):
            raise ArgumentError(f"{name} must be a list of {wanted}, got {values!r}.")


def _check_functions(loss: object, optimizer: object) -> None:
    if isinstance(loss, type):
        raise ArgumentError(f"loss={loss.__name__} is a class; give an object, {loss.__name__}().")
    if loss is not None and not isinstance(loss, str) and not callable(loss):
        raise ArgumentError(f"loss must be a function of (output, y) or a name, got {loss!r}.")
    if isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise ArgumentError(
            f"optimizer is an object of class {kind}; give the class, torch.optim.{kind}, or "
            "a function of (parameters, lr): the Learner calls it at the first fit."
        )
    if not callable(optimizer) and not isinstance(optimizer, str):
        raise ArgumentError(
            "optimizer must be a name, such as 'adamw', or a function of (parameters, lr), such as "
            f"torch.optim.AdamW, got {optimizer!r}."
        )


def _fits(name: str, value: object) -> bool:
    if name == "callbacks":
        return isinstance(value, Callback)
    return isinstance(value, str) or (callable(value) and not isinstance(value, type))


def make_optimizer(
    factory: Callable[..., Optimizer], parameters: Iterable[nn.Parameter], lr: float
) -> Optimizer:
    """The optimizer that a factory makes.

    Raises:
        ArgumentError: if it makes none, or one whose step needs a closure.
    """
    name = function_name(factory)
    try:
        optimizer = factory(parameters, lr=lr)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"optimizer={name} cannot be called with the model's parameters and lr={lr:g}: {error}"
        ) from error
    kind = type(optimizer).__name__
    if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "step"):
        raise ArgumentError(
            f"optimizer={name} must return a torch.optim.Optimizer, it returned a {kind}."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ArgumentError(
            f"optimizer={name} makes a {kind}, whose step needs a closure, which a Learner does "
            "not give; watch a loop of your own with cl.watch."
        )
    return optimizer


def count_batches(batches: object, argument: str) -> int:
    """The number of batches in an epoch.

    Raises:
        ArgumentError: if they have no length, as those of an ``IterableDataset``, or are none.
    """
    try:
        n = len(batches)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise ArgumentError(
            f"{argument} ({type_name(batches)}) has no length; the schedule needs the number of "
            "batches, so give the loader, or its IterableDataset, a __len__."
        ) from error
    if n == 0:
        raise ArgumentError(f"{argument} has no batches; give it at least one.")
    return n


def check_bfloat16(table: Callable[[], Summary]) -> None:
    """Refuse convolutions whose weight gradients torch computes wrongly in bfloat16 on a CPU.

    With torch 2.14 and oneDNN these are convolutions with a stride over an input of one pixel:
    their gradients are memory that nobody wrote to. float16, and inputs of two pixels, are right.

    Args:
        table: gives the model's summary for one image; where it fails, nothing is checked.

    Raises:
        ArgumentError: if there is one, naming the layer.
    """
    try:
        rows = table().rows
    except Exception:  # the model cannot be followed, or the size of the images is not known
        return
    for row in rows:
        if not row.kernel_size or not row.stride or not row.channels:
            continue
        one_pixel = math.prod(row.output_shape[2:]) == 1 and row.outputs_before == row.channels[0]
        if one_pixel and max(row.kernel_size) > 1 and max(row.stride) > 1:
            raise ArgumentError(
                f"precision='bf16' cannot be used on the CPU with the layer {row.name!r}: its "
                "input has one pixel and its stride is more than 1, for which torch's gradients in "
                "bfloat16 are wrong. Give larger images, fewer layers with a stride, or "
                "precision='fp32'."
            )
