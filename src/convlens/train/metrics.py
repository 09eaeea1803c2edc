"""Metrics: functions of a batch's outputs and labels whose mean over the items is reported."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Metric = Callable[[Tensor, Tensor], Tensor]


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Share of items whose largest output is that of their label.

    Args:
        output: (N, K), a score for each class.
        y: (N,) int64 labels.

    Returns:
        A scalar float32 tensor on the same device.
    """
    return (output.argmax(dim=1) == y).float().mean()
