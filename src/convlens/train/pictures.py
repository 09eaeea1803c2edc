"""`Pictures`: the images that a run keeps beside its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from convlens.errors import ArgumentError
from convlens.records import Picture
from convlens.train.callbacks import Callback

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class Pictures(Callback):
    """Records a batch of training images as the network gets them, and the worst predictions.

    The worst are those validation images to whose true class the model gave the least probability:
    the largest cross-entropy. They are recorded after every epoch; ``pictures`` holds the newest
    of each name.

    Args:
        n_batch: how many training images, at least 1.
        n_worst: how many of the worst predictions, at least 1.
    """

    order = 10

    def __init__(self, n_batch: int = 32, n_worst: int = 10) -> None:
        for name, value in (("n_batch", n_batch), ("n_worst", n_worst)):
            if value < 1:
                raise ArgumentError(f"{name}={value} is not a number of images; give at least 1.")
        self.n_batch, self.n_worst = n_batch, n_worst
        self.pictures: dict[str, Picture] = {}

    def before_fit(self, learn: Learner) -> None:  # noqa: ARG002
        """Forget the last fit."""
        self.pictures = {}
        self._collecting = False

    def before_loss(self, learn: Learner) -> None:
        """Keep images of the first batch, after everything that changes them."""
        if learn.training and "batch" not in self.pictures:
            x, y = learn.x[: self.n_batch], learn.y[: self.n_batch]
            labels = y.tolist() if y.ndim == 1 else [""] * len(y)
            captions = [learn.dls.label(v) if isinstance(v, int) else str(v) for v in labels]
            self._keep(learn, Picture("batch", -1, learn.dls.to_uint8(x), captions))

    def before_validation(self, learn: Learner) -> None:  # noqa: ARG002
        """Begin anew."""
        self._collecting = True
        self._worst: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def after_loss(self, learn: Learner) -> None:
        """Of each validation batch keep as many as could be among the worst of all."""
        if not self._collecting or not _is_classification(learn):
            return
        losses = F.cross_entropy(learn.output, learn.y, reduction="none")
        worst = losses.topk(min(self.n_worst, len(losses))).indices
        rows = (losses[worst], learn.output[worst], learn.y[worst], learn.x[worst])
        self._worst.append(rows)

    def after_validation(self, learn: Learner) -> None:
        """Record the worst of all batches."""
        self._collecting = False
        if not self._worst:
            return
        losses, outputs, y, x = (torch.cat(rows) for rows in zip(*self._worst, strict=True))
        worst = losses.topk(min(self.n_worst, len(losses))).indices
        probabilities, predicted = outputs[worst].softmax(dim=1).max(dim=1)
        captions = [
            f"{learn.dls.label(true)}, predicted {learn.dls.label(said)} ({share:.1%}), "
            f"loss {loss:.2f}"
            for true, said, share, loss in zip(
                y[worst].tolist(),
                predicted.tolist(),
                probabilities.tolist(),
                losses[worst].tolist(),
                strict=True,
            )
        ]
        self._keep(learn, Picture("worst", learn.epoch, learn.dls.to_uint8(x[worst]), captions))

    def _keep(self, learn: Learner, picture: Picture) -> None:
        self.pictures[picture.name] = picture
        if learn.sink is not None:
            learn.sink.write_picture(picture)


def _is_classification(learn: Learner) -> bool:
    return learn.output.ndim == 2 and learn.y.ndim == 1 and not learn.y.is_floating_point()
