"""`EMA`: an exponential moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convlens.errors import ArgumentError
from convlens.runs.checkpoints import AVERAGED
from convlens.train.callbacks.base import Callback
from convlens.train.callbacks.checkpoint import FolderOfRun

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class EMA(Callback):
    """Averages the weights over the steps, and validates with the average.

    After step t = 0, 1, … the average moves towards the weights by 1 − d, with
    d = min(decay, (1 + t) / (10 + t)). Buffers of floats, such as the statistics of batch
    normalization, are averaged too. The model holds the average from the validation to the end of
    an epoch, and after the fit; training goes on with its own weights. After an error the model has
    the weights of the training. A run keeps the average in its folder ``averaged``.

    Source: B. T. Polyak, A. B. Juditsky, Acceleration of Stochastic Approximation by Averaging,
    1992; the warm-up of the decay is that of TensorFlow's ``ExponentialMovingAverage``.

        >>> x, y = torch.randn(8, 1, 4, 4), torch.tensor([0, 1] * 4)
        >>> dls = cl.DataLoaders([(x, y)] * 3, [(x, y)], name="noise")
        >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), callbacks=[cl.EMA(0.99)], run=None)
        >>> learn.fit(1)  # doctest: +ELLIPSIS
        epoch 1/1 ...
        >>> learn.ema
        EMA(decay=0.99)

    Args:
        decay: how much of the average is kept at each step, at least 0 and below 1.

    Raises:
        ArgumentError: if the decay is out of its range.
    """

    order = -80  # after Checkpoint, which saves the weights of the training

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ArgumentError(f"decay must be at least 0 and below 1, got {decay!r}.")
        self.decay = decay
        self._folder = FolderOfRun(AVERAGED)
        self._values: list[Tensor] = []  # of the model
        self._others: list[Tensor] = []  # the average, or what the model had while it holds it
        self._n_steps, self._in_model, self._saved = 0, False, 0

    def __repr__(self) -> str:
        return f"EMA(decay={self.decay})"

    @torch.no_grad()
    def before_fit(self, learn: Learner) -> None:
        """Start with the weights as they are."""
        self._values = _averaged_values(learn.model)
        self._others = [value.clone() for value in self._values]
        self._n_steps, self._in_model, self._saved = 0, False, 0

    def before_epoch(self, learn: Learner) -> None:  # noqa: ARG002
        """Train with the model's own weights."""
        self._hold(average=False)

    @torch.no_grad()
    def after_step(self, learn: Learner) -> None:
        """Move the average."""
        if learn.stepper.skipped:
            return
        decay = min(self.decay, (1 + self._n_steps) / (10 + self._n_steps))
        foreach: Any = torch
        foreach._foreach_lerp_(self._others, self._values, 1 - decay)  # one kernel for all on a GPU
        self._n_steps += 1

    def before_validation(self, learn: Learner) -> None:
        """Validate with the average."""
        self._hold(average=True)
        self._save(learn)

    def after_epoch(self, learn: Learner) -> None:
        """Hold the average where there is no validation."""
        self.before_validation(learn)

    def after_fit(self, learn: Learner) -> None:
        """Leave the average in the model."""
        failed = learn.error is not None and not isinstance(learn.error, KeyboardInterrupt)
        self._hold(average=not failed)
        if not failed:
            self._save(learn)
        self._values, self._others = [], []

    @torch.no_grad()
    def _hold(self, *, average: bool) -> None:
        """Have the model hold the average, or the weights of the training."""
        if self._in_model == average:
            return
        for value, other in zip(self._values, self._others, strict=True):
            kept = value.clone()
            value.copy_(other)
            other.copy_(kept)
        self._in_model = average

    def _save(self, learn: Learner) -> None:
        if self._n_steps > self._saved:
            self._saved = self._n_steps
            self._folder.save(learn)


def _averaged_values(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers of floats; a buffer with infinities, as a mask, is no average."""
    buffers = [b for b in model.buffers() if b.is_floating_point() and bool(b.isfinite().all())]
    return [p.detach() for p in model.parameters()] + buffers
