"""`Callback`: the events of a training, and the exceptions that leave it early."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class CancelBatchError(Exception):
    """Raise it in an event to skip the rest of the batch; ``after_batch`` still comes.

    Gradients are kept, so that skipping the step after ``after_backward`` accumulates them.

        >>> class SkipLargeLosses(cl.Callback):
        ...     def before_backward(self, learn):
        ...         if learn.loss > 10:
        ...             raise cl.CancelBatchError
    """


class CancelEpochError(Exception):
    """Raise it in an event to skip the rest of the epoch and its validation.

    Gradients that no step has used are dropped.

        >>> class FirstTenSteps(cl.Callback):
        ...     def after_step(self, learn):
        ...         if learn.step % 100 == 9:
        ...             raise cl.CancelEpochError
    """


class CancelFitError(Exception):
    """Raise it in an event to end the fit; the weights are kept and the run is closed.

    A text given to it is printed and kept in the run's metadata as the reason.

    >>> class StopEarly(cl.Callback):
    ...     def after_epoch(self, learn):
    ...         if learn.validation["loss"] < 0.1:
    ...             raise cl.CancelFitError
    """


class Callback:
    """Base class of callbacks; derive from it and define the events you need.

    Events come in this order. Those in brackets come in training only, the others in validation
    too. With ``accumulate=n`` ``before_step`` and ``after_step`` come once for n batches, and after
    the last batch of an epoch if these are fewer::

        before_fit
          before_epoch
            before_batch before_loss after_loss [before_backward after_backward
              before_step after_step] after_batch          for every batch
            before_validation … the validation's batches … after_validation
          after_epoch
        after_fit

    ``after_fit`` always comes to a callback whose ``before_fit`` came, also after an error, which
    is then ``learn.error``. Callbacks are called by ascending ``order``, then in the order in which
    they were given; ``after_fit`` in reverse.

    A `Learner` has each callback as an attribute named after its class: ``ActivationStats`` is
    ``learn.activation_stats``.

        >>> class PrintLoss(cl.Callback):
        ...     def after_epoch(self, learn):
        ...         print(learn.recorder.epochs[-1].train_loss)
        >>> PrintLoss.attribute()
        'print_loss'
    """

    order: ClassVar[int] = 0

    @classmethod
    def attribute(cls) -> str:
        """The class name in snake_case: the attribute of the `Learner` that holds the callback."""
        words = re.sub(r"([A-Z]+)([A-Z][a-z])|([a-z0-9])([A-Z])", r"\1\3_\2\4", cls.__name__)
        return words.lower()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def before_fit(self, learn: Learner) -> None:
        """Before everything else; model and data are on ``learn.device``."""

    def after_fit(self, learn: Learner) -> None:
        """At the end of the fit; ``learn.error`` is the exception that ended it, if any."""

    def before_epoch(self, learn: Learner) -> None:
        """Before the first batch of epoch ``learn.epoch``."""

    def after_epoch(self, learn: Learner) -> None:
        """After training and validation of an epoch that was not cancelled."""

    def before_batch(self, learn: Learner) -> None:
        """``learn.x`` and ``learn.y`` are set and may be replaced."""

    def after_batch(self, learn: Learner) -> None:
        """After the batch, cancelled or not."""

    def before_loss(self, learn: Learner) -> None:
        """``learn.output`` is the model's output for ``learn.x``."""

    def after_loss(self, learn: Learner) -> None:
        """``learn.loss`` is set, a scalar tensor."""

    def before_backward(self, learn: Learner) -> None:
        """``learn.loss`` may still be replaced."""

    def after_backward(self, learn: Learner) -> None:
        """The gradients of this batch are computed; in fp16 with the scale of the loss."""

    def before_step(self, learn: Learner) -> None:
        """Right before the gradients are unscaled and clipped, and the optimizer's step."""

    def after_step(self, learn: Learner) -> None:
        """Right after the optimizer's step, also one that fp16 skipped; the gradients are there."""

    def before_validation(self, learn: Learner) -> None:
        """Before the first validation batch; the model is in evaluation mode."""

    def after_validation(self, learn: Learner) -> None:
        """``learn.validation`` holds the validation's loss and metrics."""


EVENTS = tuple(name for name in vars(Callback) if name.startswith(("before_", "after_")))
