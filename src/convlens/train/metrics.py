"""Metrics: functions of a batch's outputs and labels whose mean over the items is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convlens.core.wording import function_name
from convlens.errors import ArgumentError, TrainingError

Metric = Callable[[Tensor, Tensor], Tensor | float]


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Share of items whose largest output is that of their label.

        >>> output = torch.tensor([[0.1, 2.0], [0.3, 0.2]])
        >>> float(cl.accuracy(output, torch.tensor([1, 1])))
        0.5

    Args:
        output: (N, K), a score for each class; (N, K, H, W) for each pixel.
        y: (N,) int64 labels; (N, H, W).

    Returns:
        A scalar float32 tensor on the same device.

    Raises:
        ArgumentError: if the shapes do not fit, or there is only one class.
    """
    if output.ndim < 2 or output.shape[1] < 2 or y.shape != output.shape[:1] + output.shape[2:]:
        raise ArgumentError(
            f"accuracy needs outputs (N, K), K at least 2, and labels (N,); got output of shape "
            f"{tuple(output.shape)} and y of shape {tuple(y.shape)}."
        )
    return (output.argmax(dim=1) == y).float().mean()


def measure(metric: Metric, output: Any, y: Tensor, device: torch.device) -> Tensor:  # noqa: ANN401
    """A metric of one batch, as a float32 scalar on a device.

    An error of the metric's own gets a note with the metric's name.

    Raises:
        TrainingError: if the metric gives anything but one number.
    """
    name = function_name(metric)
    try:
        value = metric(output, y)
    except Exception as error:
        error.add_note(f"The metric {name!r} raised it.")
        raise
    try:
        return torch.as_tensor(value, dtype=torch.float32, device=device).detach().reshape(())
    except (TypeError, ValueError, RuntimeError):
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TrainingError(
            f"The metric {name!r} must give one number, the mean over the batch, got {found}."
        ) from None
