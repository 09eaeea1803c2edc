"""`LRFinding`: what a sweep of learning rates found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convlens.core.buckets import Floats
from convlens.plots import plot_lr_finding
from convlens.plots.canvas import as_html
from convlens.train.lr_suggestions import Suggestions, smoothed_losses, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class LRFinding:
    """The loss at each learning rate of a sweep, and the rates that it suggests.

    It is what `Learner.lr_find` returns. Printed, it gives a sentence for each suggestion, or says
    why there is none.

    Attributes:
        lrs: (S,) the rates of the S optimizer steps that were made, ascending.
        losses: (S,) the training loss of the batch after each of these steps.
        smoothed: (S,) the same without most of its noise.
        suggestions: the rates that the curve suggests, or the reason why there are none.
        ended: why the sweep ended before ``lr_max``, "" if it did not.
    """

    lrs: Floats
    losses: Floats
    smoothed: Floats
    suggestions: Suggestions
    ended: str

    @classmethod
    def of(cls, lrs: Sequence[float], losses: Sequence[float], ended: str) -> LRFinding:
        """Smooth what a sweep measured, and find what it suggests."""
        rates, values = np.array(lrs, np.float64), np.array(losses, np.float64)
        smoothed = smoothed_losses(values)
        return cls(rates, values, smoothed, suggest(rates, values, smoothed, ended), ended)

    @property
    def suggestion(self) -> float | None:
        """The recommended rate, for ``fit_one_cycle(…, lr_max)``; None if there is none.

        It is where the loss has made 95 % of its fall, but at most a fifth of the rate at
        which the loss rises again by a fifth of its fall.
        """
        return self.suggestions.recommended

    @property
    def valley(self) -> float | None:
        """The middle of the longest fall of the smoothed loss, on the logarithmic axis."""
        return self.suggestions.valley

    @property
    def steepest(self) -> float | None:
        """Where the smoothed loss falls fastest, by the logarithm of the rate."""
        return self.suggestions.steepest

    @property
    def minimum(self) -> float | None:
        """A tenth of the rate with the lowest smoothed loss."""
        return self.suggestions.minimum

    def __str__(self) -> str:
        if self.suggestion is None:
            return f"no suggestion: {self.suggestions.reason}."
        sentences = {
            "suggestion": self.suggestions.because,
            "steepest": "the loss falls fastest",
            "valley": "the middle of the longest fall",
            "minimum": f"a tenth of {10 * (self.minimum or 0):.2g}, where the loss is lowest",
        }
        lines = [
            f"{name:10s}  {getattr(self, name):.2g}: {what}." for name, what in sentences.items()
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        found = f"no suggestion: {self.suggestions.reason}"
        if self.suggestion is not None:
            found = f"suggestion={self.suggestion:.2g}"
        return f"LRFinding({len(self.lrs)} steps, {found})"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss by learning rate, with the suggestions.

        Args:
            ax: where to draw, a new figure if None.
        """
        names = ("suggestion", "steepest", "valley", "minimum")
        found: Mapping[str, float | None] = {name: getattr(self, name) for name in names}
        known = {name: rate for name, rate in found.items() if rate is not None}
        reason = self.suggestions.reason
        text = f"no suggestion: {reason}" if reason else ""
        return plot_lr_finding(self.lrs, self.losses, self.smoothed, known, text, ax)

    def _repr_html_(self) -> str:
        return as_html(self.plot(), "training loss by learning rate") + f"<pre>{self}</pre>"
