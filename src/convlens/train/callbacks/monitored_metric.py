"""`MonitoredMetric`: the number by which callbacks judge an epoch, and which of two is better."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NoReturn

from convlens.core.wording import closest, without_classes
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from convlens.train.learner import Learner

TRAIN, VALID = "train_loss", "valid_loss"
_SMALLER = {"loss", "error", "mae", "mse", "rmse", "nll", "ece", "brier", "perplexity"}
_LARGER = {
    *("accuracy", "acc", "f1", "auroc", "auc", "precision", "recall", "sensitivity", "specificity"),
    *("map", "iou", "dice", "kappa", "mcc", "r2", "psnr", "ssim"),
}


class MonitoredMetric:
    """A metric's name, its direction, and its best value so far.

    Args:
        metric: ``"valid_loss"`` or ``"loss"``, ``"train_loss"``, or the name of a metric.
        mode: ``"min"`` if smaller is better, ``"max"`` if larger is; None for what is known of the
            name.
        min_delta: a value is better only if it is so by more than this.

    Attributes:
        name: the metric's name.
        best: the best value, None before the first.
        epoch: the epoch of the best value, -1 before the first.

    Raises:
        ArgumentError: if an argument cannot work, or the direction is not known.
    """

    def __init__(self, metric: str, mode: str | None = None, min_delta: float = 0.0) -> None:
        if not isinstance(metric, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(f"metric must be a name such as 'valid_loss', got {metric!r}.")
        if not (0 <= min_delta < math.inf):
            raise ArgumentError(f"min_delta must be a number of at least 0, got {min_delta!r}.")
        self.name = VALID if metric == "loss" else metric
        self._sign = -1.0 if _mode_of(self.name, mode) == "min" else 1.0
        self._min_delta = min_delta
        self.best: float | None = None
        self.epoch = -1

    def start(self, learn: Learner) -> None:
        """Forget the best value, and check that the fit will have the metric.

        Raises:
            ArgumentError: if it will not.
        """
        self.best, self.epoch = None, -1
        validated = [VALID, *(metric.name for metric in learn.measured)]
        known = [TRAIN, *(validated if learn.dls.valid is not None else [])]
        name = self.name.partition("[")[0]  # of one class, which is known after a validation
        if name in known:
            return
        if name in validated:
            raise ArgumentError(
                f"metric={self.name!r} is measured on validation data, but dls.valid is None; give "
                f"metric={TRAIN!r} or data with a validation part."
            )
        self._refuse(known)

    def update(self, learn: Learner) -> bool:
        """Take the value of the epoch that has ended; whether it is the best. NaN never is.

        Raises:
            ArgumentError: if the epoch has no such value.
        """
        values = {TRAIN: learn.recorder.epochs[-1].train_loss, VALID: learn.validation.get("loss")}
        measured = without_classes(learn.validation) | learn.validation
        value = (values | measured).get(self.name)
        if value is None:
            self._refuse([TRAIN, VALID, *(name for name in learn.validation if name != "loss")])
        if math.isnan(value):
            return False
        if self.best is not None and self._sign * (value - self.best) <= self._min_delta:
            return False
        self.best, self.epoch = float(value), learn.epoch
        return True

    def _refuse(self, known: list[str]) -> NoReturn:
        raise ArgumentError(
            f"metric={self.name!r} is not measured in this fit; known are "
            f"{', '.join(map(repr, known))}. Others are given to the Learner as "
            f"metrics.{closest(self.name, known)}"
        )


def _mode_of(name: str, mode: str | None) -> str:
    if mode in ("min", "max"):
        return mode
    if mode is not None:
        raise ArgumentError(f"mode must be 'min', 'max' or None, got {mode!r}.")
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & _SMALLER:
        return "min"
    if words & _LARGER or any(re.fullmatch(r"top\d*", word) for word in words):
        return "max"
    raise ArgumentError(
        f"whether a larger {name!r} is better is not known; give mode='max' or mode='min', or a "
        f"metric that is known.{closest(name, [VALID, TRAIN, *_LARGER, *_SMALLER])}"
    )
