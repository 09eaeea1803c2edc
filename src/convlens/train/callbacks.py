"""`Callback`: named events around everything that the loop does, and the ways to leave it early."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class CancelBatchError(Exception):
    """Raise it in an event to skip the rest of the batch; ``after_batch`` still comes.

    Gradients are kept: skipping the step after ``after_backward`` accumulates them.
    """


class CancelEpochError(Exception):
    """Raise it in an event to skip the rest of the epoch, its validation too.

    Gradients that no step has used are dropped.
    """


class CancelFitError(Exception):
    """Raise it in an event to end the fit; what was trained is kept and the run is closed."""


class Callback:
    """Something that happens around a training; derive from it and define the events you need.

    Events come in this order. Those in brackets only in training, the others in validation too::

        before_fit
          before_epoch
            before_batch before_loss after_loss [before_backward after_backward
              before_step after_step] after_batch          for every batch
            before_validation … the validation's batches … after_validation
          after_epoch
        after_fit

    ``after_fit`` always comes to a callback whose ``before_fit`` came, also after an error, which
    is then in ``learn.error``. Callbacks are called in order of their ``order``, and within it in
    the order in which they were given; ``after_fit`` in the opposite order.

    A callback given to a `Learner` is reachable there under its class name in snake_case:
    ``ActivationStats`` as ``learn.activation_stats``.
    """

    order: ClassVar[int] = 0

    @classmethod
    def attribute(cls) -> str:
        """The name under which a `Learner` has it: the class name in snake_case."""
        words = re.sub(r"([A-Z]+)([A-Z][a-z])|([a-z0-9])([A-Z])", r"\1\3_\2\4", cls.__name__)
        return words.lower()

    def before_fit(self, learn: Learner) -> None:
        """Before anything else; model and data lie on ``learn.device``."""

    def after_fit(self, learn: Learner) -> None:
        """At the end, however it came; ``learn.error`` is the exception, if there was one."""

    def before_epoch(self, learn: Learner) -> None:
        """Before the first batch of epoch ``learn.epoch``."""

    def after_epoch(self, learn: Learner) -> None:
        """After training and validation of an epoch that was not cancelled."""

    def before_batch(self, learn: Learner) -> None:
        """``learn.x`` and ``learn.y`` are there and may be replaced."""

    def after_batch(self, learn: Learner) -> None:
        """After the batch, cancelled or not."""

    def before_loss(self, learn: Learner) -> None:
        """``learn.output`` is what the model made of ``learn.x``."""

    def after_loss(self, learn: Learner) -> None:
        """``learn.loss`` is there, a scalar tensor."""

    def before_backward(self, learn: Learner) -> None:
        """``learn.loss`` may still be replaced."""

    def after_backward(self, learn: Learner) -> None:
        """The gradients of this batch are there."""

    def before_step(self, learn: Learner) -> None:
        """Right before the optimizer's step."""

    def after_step(self, learn: Learner) -> None:
        """Right after the optimizer's step; the gradients are still there."""

    def before_validation(self, learn: Learner) -> None:
        """Before the first validation batch; the model is in evaluation mode."""

    def after_validation(self, learn: Learner) -> None:
        """``learn.validation`` holds the validation's loss and metrics."""


EVENTS = tuple(name for name in vars(Callback) if name.startswith(("before_", "after_")))
