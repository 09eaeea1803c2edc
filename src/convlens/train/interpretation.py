"""`interpret`: runs a validation of a classifier and says what it gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from convlens.data.batches import images_and_labels
from convlens.data.items import CLASSES
from convlens.errors import ArgumentError
from convlens.plots.interpretation import Interpretation
from convlens.train.callbacks import snapshot_limits as limits
from convlens.train.callbacks.misclassified import Misclassified

if TYPE_CHECKING:
    from convlens.data import Batches
    from convlens.train.loop import TrainingLoop

SIDE = 224
"""Pixels along the longer side of the images of the largest losses at most."""


def interpret(
    learn: TrainingLoop, run: Callable[[Tensor], object], batches: Batches | None
) -> Interpretation:
    """What the present weights get wrong; see `Learner.interpret`.

    Args:
        learn: whose model is in evaluation mode.
        run: runs the model on images on the Learner's device.
        batches: to validate on; None for ``dls.valid``.
    """
    what, files = ("dls.valid", learn.dls.valid_files) if batches is None else ("batches", ())
    batches = learn.dls.valid if batches is None else batches
    kind = learn.dls.kind
    if kind != CLASSES:
        raise ArgumentError(
            f"interpret is for single classes, but the data has {kind}; call learn.validate() for "
            "the metrics."
        )
    if batches is None:
        raise ArgumentError("dls.valid is None; call interpret(batches).")
    found = Misclassified(1, SIDE)
    for batch in batches:
        x, y = images_and_labels(batch, what)
        x, y = x.to(learn.device), y.to(learn.device)
        found.add(_scores(run(x), y), y, x)
    epoch, classes = learn.epochs_done - 1, tuple(map(learn.dls.label, range(found.n_classes)))
    counted = found.confusion(epoch, classes)
    if counted is None:
        raise ArgumentError(
            f"{what} has no images, or more than {limits.MOST_CLASSES:,} classes; give at least "
            "one image."
        )
    mistakes = found.mistakes(epoch, classes, learn.dls.to_uint8, files)
    return Interpretation(counted, mistakes, found.calibration(epoch))


def _scores(output: object, y: Tensor) -> Tensor:
    """The output, if it is a score for each class; raises ArgumentError if not."""
    if isinstance(output, Tensor) and output.ndim == 2 and y.ndim == 1 and _is_whole(y):
        return output
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ArgumentError(
        f"interpret needs outputs (N, K) and classes (N,) as whole numbers, got {shape} and "
        f"{tuple(y.shape)} of {y.dtype}."
    )


def _is_whole(y: Tensor) -> bool:
    return not y.is_floating_point() and y.dtype != torch.bool
