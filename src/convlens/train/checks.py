"""What a `Learner` is given, looked at before it can fail in the middle of a training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import nn
from torch.optim import Optimizer

from convlens.errors import ArgumentError
from convlens.train.callbacks import Callback
from convlens.train.metrics import metric_name


def check_arguments(
    dls: object,
    model: object,
    loss: object,
    optimizer: object,
    metrics: object,
    callbacks: object,
) -> None:
    """Raises ArgumentError for what would fail later, in the middle of a training."""
    if not hasattr(dls, "train") or not hasattr(dls, "valid"):
        raise ArgumentError(
            f"dls is a {type(dls).__name__}; give DataLoaders, from cl.mnist, cl.from_arrays or "
            "cl.DataLoaders(train, valid)."
        )
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
    _check_functions(loss, optimizer)
    for name, values, wanted in (
        ("metrics", metrics, "functions of (output, y) such as cl.accuracy"),
        ("callbacks", callbacks, "callbacks such as cl.ActivationStats()"),
    ):
        if not isinstance(values, Sequence) or not all(_fits(name, value) for value in values):
            raise ArgumentError(f"{name}={values!r} is not a list of {wanted}; give such a list.")
    assert isinstance(metrics, Sequence)
    names = ["loss", *map(metric_name, metrics)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ArgumentError(
            f"metrics has more than one {twice.pop()!r} (the loss is always one); give each "
            "function a name of its own."
        )


def make_optimizer(
    factory: Callable[..., Optimizer], parameters: Iterable[nn.Parameter], lr: float
) -> Optimizer:
    """The optimizer that a factory makes.

    Raises:
        ArgumentError: if it makes none, or one whose step needs a closure.
    """
    try:
        optimizer = factory(parameters, lr=lr)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"optimizer={_name(factory)} cannot be called with the model's parameters and "
            f"lr={lr:g}: {error}"
        ) from error
    if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "step"):
        raise ArgumentError(
            f"optimizer={_name(factory)} made a {type(optimizer).__name__}; it must return a "
            "torch.optim.Optimizer."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ArgumentError(
            f"optimizer={_name(factory)} makes a {type(optimizer).__name__}, whose step needs a "
            "closure, which a Learner does not give; watch a loop of your own with cl.watch."
        )
    return optimizer


def count_batches(batches: object, argument: str) -> int:
    """How many batches an epoch has.

    Raises:
        ArgumentError: if they have no length, as those of an ``IterableDataset``, or are none.
    """
    try:
        n = len(batches)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise ArgumentError(
            f"{argument} is a {type(batches).__name__} without a length; the schedule needs to "
            "know the number of batches, so give the loader, or its IterableDataset, a __len__."
        ) from error
    if n == 0:
        raise ArgumentError(f"{argument} has no batches: its length is 0; give it at least one.")
    return n


def _check_functions(loss: object, optimizer: object) -> None:
    if isinstance(loss, type):
        raise ArgumentError(f"loss={loss.__name__} is a class; give an object, {loss.__name__}().")
    if not callable(loss):
        raise ArgumentError(f"loss={loss!r} is not a function of (output, y); give one.")
    if isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise ArgumentError(
            f"optimizer is a {kind} object; give what makes it, torch.optim.{kind} or "
            "a function of (parameters, lr): the Learner calls it when it trains."
        )
    if not callable(optimizer):
        raise ArgumentError(
            f"optimizer={optimizer!r} is not a function of (parameters, lr); give one, such as "
            "torch.optim.AdamW."
        )


def _name(factory: object) -> str:
    inner: object = factory.func if isinstance(factory, partial) else factory
    return getattr(inner, "__name__", type(inner).__name__)


def _fits(name: str, value: object) -> bool:
    if name == "callbacks":
        return isinstance(value, Callback)
    return callable(value) and not isinstance(value, type)
