"""The curves of a training: one value per step, one record per epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from convlens.core.records import Epoch
from convlens.core.steps import StepCurves, StepSeries, cut_steps, sum_up
from convlens.core.wording import plural

POINTS = 4096
"""Curves of more steps are drawn downsampled: no screen shows more."""


class TrainingCurves(ABC):
    """The steps and epochs of a training, live or recorded."""

    @property
    @abstractmethod
    def steps(self) -> StepSeries:
        """What was recorded at every optimizer step."""

    @property
    @abstractmethod
    def epochs(self) -> Sequence[Epoch]:
        """The finished epochs; may be empty."""

    def curves(
        self, points: int = POINTS, first: int | None = None, last: int | None = None
    ) -> StepCurves:
        """The steps downsampled to at most ``points`` entries: lowest, highest and mean of each.

        Args:
            points: the most entries, at least 1.
            first: the first step of interest, None for the first of all.
            last: the last one.

        Raises:
            ArgumentError: if ``points`` is not positive.
        """
        return sum_up(cut_steps(self.steps, first, last), points)

    def __repr__(self) -> str:
        n_steps, n_epochs = plural(len(self.steps), "step"), plural(len(self.epochs), "epoch")
        return f"Recorder({n_steps}, {n_epochs})"
