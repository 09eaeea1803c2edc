"""`Overflows`: counts and reports the steps that fp16 skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convlens.core.wording import plural
from convlens.errors import NonFiniteLossError, warn
from convlens.train.callbacks.base import Callback
from convlens.train.callbacks.nonfinite import find_culprit

if TYPE_CHECKING:
    from convlens.train.learner import Learner

MOST_IN_A_ROW = 30
"""After so many halvings the scale is 2⁻¹⁴ or less: the gradients themselves are not finite."""


class Overflows(Callback):
    """Counts the steps that were skipped because a gradient overflowed in fp16.

    A few are normal: they are how the scale of the losses is found, above all at the beginning. The
    first one of a fit is reported, and their number is in the run's metadata as
    ``skipped_steps``. A fit that only skips is ended.

    Attributes:
        n: skipped steps of this fit.
    """

    order = -5

    def __init__(self) -> None:
        self.n = self._in_a_row = 0

    def before_fit(self, learn: Learner) -> None:  # noqa: ARG002
        """Start counting."""
        self.n = self._in_a_row = 0

    def after_step(self, learn: Learner) -> None:
        """Count the step if it was skipped."""
        if not learn.stepper.skipped:
            self._in_a_row = 0
            return
        self.n, self._in_a_row = self.n + 1, self._in_a_row + 1
        if self.n == 1:
            warn(
                f"Step {learn.step} was skipped because a gradient overflowed in fp16; the scale "
                f"of the losses is {learn.stepper.scale:g} now. A few such steps are normal: "
                "learn.overflows.n counts them."
            )
        if self._in_a_row >= MOST_IN_A_ROW:
            raise NonFiniteLossError(
                f"The gradients were not finite in the last {self._in_a_row} steps, up to step "
                f"{learn.step} (epoch {learn.epoch}), at any scale of fp16; the loss is "
                f"{float(learn.loss.detach()):.4g}, and {find_culprit(learn)}. No step was made "
                "with them. Give precision='bf16' or 'fp32', lower the learning rate, or look for "
                "values in the data that are not finite."
            )

    def after_epoch(self, learn: Learner) -> None:
        """Write the count."""
        self._write(learn)

    def after_fit(self, learn: Learner) -> None:
        """Write the count."""
        self._write(learn)

    def _write(self, learn: Learner) -> None:
        if learn.sink is not None and self.n:
            learn.sink.write_meta({"skipped_steps": self.n})

    def __repr__(self) -> str:
        return f"Overflows({plural(self.n, 'skipped step')})"
