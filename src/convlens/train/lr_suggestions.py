"""What a sweep of learning rates suggests: plain numbers in, rates or the reason for none out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from convlens.core.buckets import Floats

FEWEST = 20
"""Steps below which a curve suggests nothing."""

WIDTH = 2.0
"""Standard deviation of the smoothing, in steps."""

LEAST_FALL = 3.0
"""The loss has to fall by more than so many times its noise from batch to batch."""

MADE = 0.95
"""Share of the fall that is made at the recommended rate at the latest."""

RISE, MARGIN = 0.2, 5.0
"""Where the loss has risen again by this share of its fall, the rate is too high: that many times
the recommended rate, or more."""


@dataclass(frozen=True)
class Suggestions:
    """The learning rates that a sweep suggests; None where it suggests none.

    Attributes:
        recommended: where 95 % of the fall are made, but at most a fifth of the rate at
            which the loss rises again.
        because: which of both it is, in words.
        valley: the middle of the longest fall of the smoothed loss, on the logarithmic axis (the
            rule of fastai's ``valley``).
        steepest: where the smoothed loss falls fastest, by the logarithm of the rate.
        minimum: a tenth of the rate with the lowest smoothed loss.
        reason: why there are none, "" if there are.
    """

    recommended: float | None = None
    because: str = ""
    valley: float | None = None
    steepest: float | None = None
    minimum: float | None = None
    reason: str = ""


def suggest(lrs: Floats, losses: Floats, smoothed: Floats, ended: str = "") -> Suggestions:
    """The rates that a sweep suggests.

        >>> import numpy as np
        >>> from convlens.train.lr_suggestions import suggest
        >>> lrs = np.geomspace(1e-5, 1, 51)
        >>> losses = np.where(lrs < 0.1, 2 / (1 + 1000 * lrs), 5.0)
        >>> found = suggest(lrs, losses, losses)
        >>> round(found.recommended, 4), round(found.valley, 4), round(found.minimum, 4)
        (0.0158, 0.0008, 0.0079)

    Args:
        lrs: (S,) the rates, ascending by a constant factor.
        losses: (S,) the loss after the step with each, finite.
        smoothed: (S,) the same without noise.
        ended: why the sweep ended before its last rate, "" if it did not.
    """
    reason = _why_none(lrs, losses, smoothed, ended)
    if reason:
        return Suggestions(reason=reason)
    low = int(np.argmin(smoothed))
    recommended, because = _recommended(lrs, smoothed, ended)
    slopes = np.gradient(smoothed, np.log(lrs))
    return Suggestions(
        recommended=recommended,
        because=because,
        valley=float(lrs[valley_of(smoothed[: low + 1])]),
        steepest=float(lrs[int(np.argmin(slopes[: low + 1]))]),
        minimum=float(lrs[low] / 10),
    )


def _recommended(lrs: Floats, smoothed: Floats, ended: str) -> tuple[float, str]:
    low, start = int(np.argmin(smoothed)), _level(smoothed)
    fall = start - smoothed[low]
    made = lrs[np.flatnonzero(smoothed[: low + 1] <= start - MADE * fall)[0]]
    risen = np.flatnonzero(smoothed[low:] >= smoothed[low] + RISE * fall)
    if len(risen) and (bound := lrs[low + risen[0]] / MARGIN) < made:
        return float(bound), "a fifth of the rate at which the loss rises again"
    falls = low >= len(smoothed) - 1 and not ended
    hint = ", but the loss still falls at the last rate: give a higher lr_max" if falls else ""
    return float(made), f"95 % of the fall are made{hint}"


def _why_none(lrs: Floats, losses: Floats, smoothed: Floats, ended: str) -> str:
    """Why a sweep suggests no rate; "" if it does."""
    n = len(losses)
    if n < FEWEST and ended:
        return f"{ended}; give a lower lr_min, or see what learn.check() says"
    if n < FEWEST:
        return f"the sweep made {n} steps and needs at least {FEWEST}; give a larger n_steps"
    start, noise = _level(smoothed), _noise(losses)
    fall = start - float(smoothed.min())
    fall = fall if fall > 1e-6 * abs(start) else 0.0
    if fall <= LEAST_FALL * noise:
        return (
            f"at no rate from {lrs[0]:.2g} to {lrs[-1]:.2g} does the loss fall by more than its "
            f"noise (from {start:.3g} by {fall:.2g}; it differs by {noise:.2g} from batch to "
            "batch); give larger batches or more steps, or see what learn.check() says"
        )
    return ""


def _level(smoothed: Floats) -> float:
    """The loss before the rates are high enough to change it: the median of the first tenth."""
    return float(np.median(smoothed[: max(1, len(smoothed) // 10)]))


def _noise(losses: Floats) -> float:
    """The standard deviation of the loss from batch to batch, whatever the trend and some jumps."""
    return 1.4826 * float(np.median(np.abs(np.diff(losses)))) / math.sqrt(2)


def smoothed_losses(losses: Floats, width: float = WIDTH) -> Floats:
    """(S,) weighted means over the neighbours on both sides, by a Gaussian.

    The weights of the neighbours that there are add up to 1, also at both ends (bias correction).

    Args:
        losses: (S,) finite numbers.
        width: standard deviation of the Gaussian, in steps.
    """
    positions = np.arange(len(losses))
    weights = np.exp(-0.5 * ((positions[:, None] - positions) / width) ** 2)
    # Shares, not sums: the last losses of a sweep may be near the largest float.
    return (weights / weights.sum(1, keepdims=True)) @ losses


def valley_of(values: Floats) -> int:
    """The middle of the longest valley: so far before its end as half of its length.

    The longest falling subsequence is searched; its length counts its members alone, so that a long
    flat part before the valley weighs little.

        >>> import numpy as np
        >>> from convlens.train.lr_suggestions import valley_of
        >>> valley_of(np.array([6.0, 6.1, 6.0, 6.1, 6.0, 5.0, 4.0, 3.0, 9.0]))
        5
    """
    lengths = np.ones(len(values), np.int64)
    for i in range(1, len(values)):
        lengths[i] += lengths[:i].max(initial=0, where=values[:i] > values[i])
    last = int(np.argmax(lengths))
    return last - int(lengths[last]) // 2
