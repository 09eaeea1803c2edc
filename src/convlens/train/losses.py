"""The losses of a `Learner`: what fits the data's targets, or one by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convlens.core.wording import closest
from convlens.data import DataLoaders
from convlens.data.items import CLASSES, LABELS, NUMBERS
from convlens.errors import ArgumentError, TrainingError

Loss = Callable[[Tensor, Tensor], Tensor]

LOGITS = frozenset({
    *("cross_entropy", "CrossEntropyLoss", "multi_margin_loss", "MultiMarginLoss", "focal_loss"),
    *("binary_cross_entropy_with_logits", "BCEWithLogitsLoss", "label_focal_loss"),
    *("nll_loss", "NLLLoss"),  # of logarithms of probabilities, whose softmax they are
})  # fmt: skip
"""Losses whose outputs are logits, by name: probabilities are their softmax or sigmoid."""


def focal_loss(
    output: Tensor, y: Tensor, weight: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """Cross entropy in which each item counts by (1 − p)^γ, p the probability of the right answer.

    Lin et al. (2017), "Focal loss for dense object detection", without α.

    Args:
        output: (N, K) logits, or (N, K, H, W).
        y: (N,) int64 classes, or (N, H, W); or (N, K) shares of mixed classes.
        weight: (K,) weights of the classes, None for equal ones.
        gamma: 0 is the cross entropy.

    Returns:
        The mean over the items, a scalar.
    """
    # In float32 at least, also under autocast, which on the CPU leaves it in bfloat16.
    log_p = output.log_softmax(dim=1, dtype=torch.promote_types(output.dtype, torch.float32))
    n_classes = log_p.shape[1]
    mixed = y.is_floating_point()
    target = y if mixed else F.one_hot(y, n_classes).movedim(-1, 1).to(log_p.dtype)
    if weight is not None:
        target = target * weight.reshape(-1, *[1] * (log_p.ndim - 2))
    total = -(target * (1 - log_p.exp()).pow(gamma) * log_p).sum()
    return total / (log_p.numel() / n_classes if weight is None else target.sum())


def label_focal_loss(output: Tensor, y: Tensor, gamma: float = 2.0) -> Tensor:
    """The same for several labels: output (N, K) logits, y (N, K) of 0 and 1."""
    each = F.binary_cross_entropy_with_logits(output, y, reduction="none")
    return ((1 - (-each).exp()).pow(gamma) * each).mean()


def mse_loss(output: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of numbers (N,) and outputs (N,) or (N, 1), which torch's broadcasts.

    Raises:
        TrainingError: if the output has another shape.
    """
    return F.mse_loss(same_shape(output, y), y)


def l1_loss(output: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error of numbers; see `mse_loss`."""
    return F.l1_loss(same_shape(output, y), y)


def huber_loss(output: Tensor, y: Tensor) -> Tensor:
    """Squared for errors below 1, in the units of the numbers, and linear above; see `mse_loss`."""
    return F.huber_loss(same_shape(output, y), y)


def same_shape(output: Tensor, y: Tensor) -> Tensor:
    """An output (N,) or (N, 1) in the shape of its numbers (N,).

    Raises:
        TrainingError: if the output has another shape.
    """
    if output.shape not in (y.shape, (*y.shape, 1)):
        raise TrainingError(
            f"The model's output has shape {tuple(output.shape)} for {len(y)} numbers; give it one "
            "output for each image, (N, 1)."
        )
    return output.reshape(y.shape)


LOSSES: dict[str, dict[str, Callable[..., Tensor]]] = {
    "cross_entropy": {CLASSES: F.cross_entropy},
    "focal": {CLASSES: focal_loss, LABELS: label_focal_loss},
    "bce": {LABELS: F.binary_cross_entropy_with_logits},
    "mse": {NUMBERS: mse_loss},
    "mae": {NUMBERS: l1_loss},
    "huber": {NUMBERS: huber_loss},
}
"""The losses by name and by the kind of the targets; the first that fits is the default."""


def loss_names(kind: str) -> list[str]:
    """The names that fit targets of this kind, the default first.

    >>> loss_names("labels")
    ['bce', 'focal']
    """
    default = {CLASSES: "cross_entropy", LABELS: "bce", NUMBERS: "mse"}[kind]
    return [default, *(n for n, kinds in LOSSES.items() if kind in kinds and n != default)]


def resolve_losses(
    loss: str | Loss | None, label_smoothing: float, dls: DataLoaders, device: torch.device
) -> tuple[Loss, Loss]:
    """The losses of training and of validation; the latter is without label smoothing.

    Raises:
        ArgumentError: if the name is unknown or does not fit the targets, or labels cannot be
            smoothed.
    """
    kind = dls.kind
    if loss is not None and not isinstance(loss, str):
        _check_smoothing(label_smoothing, "a loss of yours")
        return loss, loss
    name = loss_names(kind)[0] if loss is None else loss
    _check_name(name, kind)
    function, options = LOSSES[name][kind], dict[str, Any]()
    if dls.class_weights is not None and kind == CLASSES:
        options["weight"] = dls.class_weights.to(device)
    plain = partial(function, **options) if options else function
    if name != "cross_entropy":
        _check_smoothing(label_smoothing, f"the loss {name!r}")
    elif not isinstance(label_smoothing, int | float) or not 0 <= label_smoothing < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"label_smoothing must be from 0 to below 1, got {label_smoothing!r}.")
    if not label_smoothing:
        return plain, plain
    return partial(function, **options, label_smoothing=label_smoothing), plain


def _check_smoothing(label_smoothing: float, where: str) -> None:
    if label_smoothing:
        raise ArgumentError(
            f"label_smoothing={label_smoothing!r} is for the cross entropy of classes and cannot "
            f"be used with {where}; leave one of them out."
        )


def _check_name(name: str, kind: str) -> None:
    known = loss_names(kind)
    if name in known:
        return
    if name in LOSSES:
        raise ArgumentError(
            f"loss={name!r} is for {' or '.join(LOSSES[name])}, but the data has {kind}; for these "
            f"there are {', '.join(known)}."
        )
    raise ArgumentError(
        f"loss={name!r} is not known; for {kind} give one of {', '.join(known)}, or a function of "
        f"(output, y).{closest(name, known)}"
    )
