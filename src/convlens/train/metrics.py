"""Metrics: functions of a batch's outputs and labels whose mean over the items is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convlens.errors import ArgumentError, TrainingError

Metric = Callable[[Tensor, Tensor], Tensor | float]


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Share of items whose largest output is that of their label.

    Args:
        output: (N, K), a score for each class; (N, K, H, W) for each pixel.
        y: (N,) int64 labels; (N, H, W).

    Returns:
        A scalar float32 tensor on the same device.

    Raises:
        ArgumentError: if the labels are not one for each item, or there is only one score.
    """
    if output.ndim < 2 or output.shape[1] < 2 or y.shape != output.shape[:1] + output.shape[2:]:
        raise ArgumentError(
            f"accuracy needs outputs (N, K), K at least 2, and labels (N,); got output of shape "
            f"{tuple(output.shape)} and y of shape {tuple(y.shape)}."
        )
    return (output.argmax(dim=1) == y).float().mean()


def measure(metric: Metric, output: Any, y: Tensor, device: torch.device) -> Tensor:  # noqa: ANN401
    """What a metric says of a batch, as a float32 scalar on a device.

    An error of the metric's own gets a note that names it.

    Raises:
        TrainingError: if the metric gives anything but one number.
    """
    try:
        value = metric(output, y)
    except Exception as error:
        error.add_note(f"The metric {metric_name(metric)!r} raised it.")
        raise
    try:
        number = torch.as_tensor(value, dtype=torch.float32, device=device).detach()
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number.numel() != 1:
        what = type(value).__name__ if number is None else f"shape {tuple(number.shape)}"
        raise TrainingError(
            f"The metric {metric_name(metric)!r} gave {what}; expected one number, the mean over "
            "the batch."
        )
    return number.reshape(())


def metric_name(metric: object) -> str:
    """The name of a metric in records and tables."""
    return getattr(metric, "__name__", type(metric).__name__)
