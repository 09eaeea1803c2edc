"""`FirstBatch`: says before the first step what is certainly wrong with model, loss and batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from convlens.checking import findings_of_batch
from convlens.errors import warn
from convlens.train.callbacks.base import Callback
from convlens.watching.outputs import first_tensor

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class FirstBatch(Callback):
    """Warns of what the first batch shows for certain, such as a softmax before the cross entropy.

    It looks at the batch's own forward and backward pass and runs nothing itself.
    """

    order = -4

    def __init__(self) -> None:
        self._waiting = False
        self._gradient: Tensor | None = None
        self._said: set[str] = set()

    def before_fit(self, learn: Learner) -> None:  # noqa: ARG002
        """Look at the next batch that is trained on."""
        self._waiting, self._gradient = True, None

    def after_loss(self, learn: Learner) -> None:
        """Keep the gradient at the output, when it comes."""
        if self._waiting and learn.training:
            output = first_tensor(learn.output)
            if output is not None and output.requires_grad:
                output.register_hook(self._keep)

    def _keep(self, gradient: Tensor) -> None:
        self._gradient = gradient.detach()

    def after_backward(self, learn: Learner) -> None:
        """Judge it, and say each kind of problem once."""
        if not self._waiting:
            return
        self._waiting = False
        if self._gradient is not None and learn.stepper.weight != 1.0:
            self._gradient = self._gradient.float() / learn.stepper.weight
        findings = findings_of_batch(
            learn.model, learn.optimizer, learn.x, learn.y, learn.output, self._gradient
        )
        self._gradient = None
        for finding in findings:
            sure = finding.severity == "problem" and finding.confidence == "certain"
            if sure and finding.kind not in self._said:
                self._said.add(finding.kind)
                warn(f"{finding.text} ({finding.kind})")
