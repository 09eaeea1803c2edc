"""What a `Learner` is given, looked at before it can fail in the middle of a training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from convlens.errors import ArgumentError
from convlens.train.callbacks import Callback


def check_arguments(dls: object, model: object, metrics: object, callbacks: object) -> None:
    """Raises ArgumentError for what would fail later, in the middle of a training."""
    if not hasattr(dls, "train") or not hasattr(dls, "valid"):
        raise ArgumentError(
            f"dls is a {type(dls).__name__}; give DataLoaders, from cl.mnist, cl.from_arrays or "
            "cl.DataLoaders(train, valid)."
        )
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
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


def metric_name(metric: object) -> str:
    """The name of a metric in records and tables."""
    return getattr(metric, "__name__", type(metric).__name__)


def _fits(name: str, value: object) -> bool:
    return callable(value) if name == "metrics" else isinstance(value, Callback)
