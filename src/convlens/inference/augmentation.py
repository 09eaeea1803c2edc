"""Test-time augmentation: several views of each image, whose answers are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convlens.data.items import CLASSES, LABELS
from convlens.errors import ArgumentError

TTA = ("flip",)
"""The known ones: "flip" is each image and its mirror image, left and right exchanged."""


def check_tta(tta: object) -> None:
    """Raises ArgumentError if it is neither None nor a known test-time augmentation."""
    if tta is not None and tta not in TTA:
        raise ArgumentError(f"tta must be {', '.join(map(repr, TTA))} or None, got {tta!r}.")


def views(x: Tensor, tta: str | None) -> list[Tensor]:
    """The views of a batch (N, C, H, W) whose outputs are averaged."""
    return [x] if tta is None else [x, x.flip(-1)]


def averaged(outputs: Sequence[Tensor], kind: str) -> Tensor:
    """Scores whose softmax, or sigmoid for labels, is the mean of those of the views.

        >>> from convlens.inference.augmentation import averaged
        >>> views = [torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]])]
        >>> mean = sum(view.softmax(1) for view in views) / 2
        >>> torch.allclose(averaged(views, "classes").softmax(1), mean)
        True

    Args:
        outputs: of each view, (N, K) scores; (N,) or (N, 1) for numbers, whose mean is taken.
        kind: "classes", "labels" or "numbers".
    """
    if len(outputs) == 1:
        return outputs[0]
    stacked = torch.stack([output.float() for output in outputs])
    if kind == CLASSES:
        return stacked.log_softmax(2).logsumexp(0) - math.log(len(outputs))
    if kind == LABELS:  # log of the means of p and of 1 − p; their difference is the logit
        yes, no = (torch.nn.functional.logsigmoid(sign * stacked).logsumexp(0) for sign in (1, -1))
        return yes - no
    return stacked.mean(0)
