"""`Chance`: the loss of a network that knows nothing of its inputs, where the loss is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

AGREE = 0.02
"""A loss is believed to be what its gradient says if its first value agrees to 2 %: of large
outputs only a part of the rows is looked at."""

HARD = 1e-3
"""Labels of an entropy below this are not smoothed."""

EXACT = 0.002
"""The mean squared error is worked out from all values."""


@dataclass(frozen=True)
class Chance:
    """What guessing would cost.

    Attributes:
        of: the loss.
        level: its value for a network that gives the same, best output for every input.
        floor: the least it can be; above 0 for smoothed or mixed labels.
        words: the level in words.
        classes: that are told apart, 0 for a regression.
    """

    of: str
    level: float
    floor: float
    words: str
    classes: int = 0

    def learned(self, loss: float) -> float:
        """How far a loss has gone from guessing (0) to the least possible (1)."""
        return (self.level - loss) / (self.level - self.floor)


def chance_of(gradient: Mapping[str, Any], first_loss: float) -> Chance | None:
    """What the gradient at the outputs and the first logged loss say together.

    Args:
        gradient: see `convlens.watching.tensor_facts.facts_of_gradient`; may be empty.
        first_loss: of the first step.
    """
    return next(_candidates(gradient, first_loss), None)


def chance_by_name(meta: Mapping[str, Any], n: int) -> Chance | None:
    """What is known of a Learner's own loss of ``n`` classes.

    Its gradient may be that of a part of a step, or scaled, so that it does not tell the loss.
    """
    smoothing = meta.get("label_smoothing")
    if n < 2 or not isinstance(smoothing, int | float):
        return None
    if meta.get("loss") == "focal_loss":
        level = math.log(n) * (1 - 1 / n) ** 2
        return Chance("focal loss", level, 0.0, f"{level:.3f}, that of guessing", n)
    if meta.get("loss") != "cross_entropy":
        return None
    other, right = smoothing / n, 1 - smoothing + smoothing / n
    floor = -right * math.log(right) - (other and (n - 1) * other * math.log(other))
    return _of_classes("soft cross entropy" if smoothing else "cross entropy", n, 1.0, floor)


def _candidates(gradient: Mapping[str, Any], loss: float) -> Iterator[Chance]:
    number = _Numbers(gradient)
    classes, values = int(number("classes", 0)), number.first
    if classes >= 2 and max(number("cross_entropy", 0), number("likelihood", 0)) > 0.5:
        unit = _unit(loss, values("cross_entropy_value"), values("cross_entropy_scale"), number)
        if unit:
            yield _of_classes("cross entropy", classes, unit, 0.0)
    if classes >= 2 and number("soft_labels", 0) > 0.5:
        floor = number("soft_floor", 0)
        of = "soft cross entropy" if floor > HARD else "cross entropy"
        if _agree(loss, values("soft_value"), AGREE) and floor < 0.9 * math.log(classes):
            yield _of_classes(of, classes, 1.0, floor)
    share = number("positives", 0)
    binary = max(number("binary_cross_entropy", 0), number("binary_likelihood", 0)) > 0.5
    # Batches of one class only are sorted, or the true and generated images of a GAN in turn.
    if binary and 0 < share < 1 and number("positives_constant", 1) < 0.5:
        level = -share * math.log(share) - (1 - share) * math.log(1 - share)
        if _agree(loss, values("binary_value"), AGREE):
            words = f"{level:.3g}, that of guessing where {share:.0%} are positive"
            yield Chance("binary cross entropy", level, 0.0, words, 2)
    guess = number("squared_guess", 0)
    if guess > 0 and _agree(loss, values("squared_value"), EXACT):
        words = f"{guess:.3g}, the variance of the targets: that of always giving their mean"
        yield Chance("mean squared error", guess, 0.0, words)


def _of_classes(of: str, n: int, unit: float, floor: float) -> Chance:
    level = math.log(n) * unit
    times = "" if unit == 1 else f"{unit:.3g} · "
    return Chance(of, level, floor, f"{times}ln({n}) = {level:.3f}, that of guessing", n)


def _unit(loss: float, value: float, scale: float, number: _Numbers) -> float:
    """1 for a mean over the items, their number for a sum; 0 if the loss is something else.

    The weights of a policy's gradient differ from batch to batch, those of a sum do not. Items that
    are surely right have no gradient left, and no loss: they are missing from value and scale.
    """
    if _agree(loss, value, AGREE):
        return 1.0
    if _agree(loss, value * scale, AGREE) and _agree(scale, number.first("used"), AGREE):
        return 1.0
    same = _agree(scale, number("cross_entropy_scale"), 0.1)
    return scale if same and _agree(loss, value * scale, AGREE) else 0.0


def _agree(a: float, b: float, tolerance: float) -> bool:
    return b > 0 and abs(a - b) <= tolerance * abs(b)


class _Numbers:
    """The mean of a figure over the batches, and its value in the first."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts

    def __call__(self, name: str, default: float = math.nan) -> float:
        value = self.facts.get(name, default)
        return float(value) if isinstance(value, int | float) else default

    def first(self, name: str) -> float:
        found = self.facts.get("first")
        value = found.get(name, math.nan) if isinstance(found, dict) else math.nan
        return float(value) if isinstance(value, int | float) else math.nan
