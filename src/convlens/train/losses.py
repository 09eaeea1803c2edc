"""The default loss of a `Learner`: what fits the data's targets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from convlens.data import DataLoaders
from convlens.data.items import CLASSES, LABELS
from convlens.errors import TrainingError


def default_loss(dls: DataLoaders, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy for classes, with their weights; binary cross entropy for labels; squares.

    Data that does not say what its targets are is taken for classes.
    """
    kind = getattr(dls, "kind", CLASSES)
    if kind == LABELS:
        return F.binary_cross_entropy_with_logits
    if kind != CLASSES:
        return mse_loss
    weights: Tensor | None = getattr(dls, "class_weights", None)
    return (
        F.cross_entropy if weights is None else partial(F.cross_entropy, weight=weights.to(device))
    )


def mse_loss(output: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of numbers (N,) and outputs (N,) or (N, 1), which torch's broadcasts.

    Raises:
        TrainingError: if the output has another shape.
    """
    if output.shape not in (y.shape, (*y.shape, 1)):
        raise TrainingError(
            f"The model's output has shape {tuple(output.shape)} for {len(y)} numbers; give it one "
            "output for each image, (N, 1)."
        )
    return F.mse_loss(output.reshape(y.shape), y)
