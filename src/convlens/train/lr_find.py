"""The sweep of learning rates behind `Learner.lr_find`, after which everything is as before."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from convlens.checking.loaders import loader_restored, refuse_streams
from convlens.core.argument_checks import check_whole
from convlens.data import Batches, DataLoaders
from convlens.errors import ArgumentError
from convlens.execution import restored, surely
from convlens.execution.reachable import ContainerState
from convlens.train.callbacks.base import Callback, CancelFitError
from convlens.train.callbacks.nonfinite import non_finite_state
from convlens.train.lr_finding import LRFinding
from convlens.train.schedules import Exponential, check_positive
from convlens.watching.optimizer_hooks import step_hooks

if TYPE_CHECKING:
    from convlens.train.learner import Learner

DIVERGED = 4.0
"""The sweep ends where the mean loss is so many times its lowest."""

BETA = 0.8
"""How much of its weight the running mean of the loss keeps from step to step."""

SKIPS = 30
"""The sweep ends after so many steps in a row that fp16 skipped."""


class Sweep(Callback):
    """Raises the learning rate at each optimizer step and keeps the losses; it is the schedule too.

    Args:
        lr_min: the first rate.
        lr_max: the last one.
        n_steps: how many rates to try, by a constant factor.

    Attributes:
        losses: the loss before each step, with the one after the last step; the mean over the
            batches whose gradients make the step.
        lr: the rate of the last step, 0 before the first.
        ended: why the sweep ended before ``lr_max``, "" if it did not.
    """

    peak = 1e-3  # an optimizer of the sweep's own is made with the rate that `fit` has by default

    def __init__(self, lr_min: float, lr_max: float, n_steps: int) -> None:
        self._rates, self.n_steps = Exponential(lr_min, lr_max), n_steps
        self.losses: list[float] = []
        self.lr, self.ended = 0.0, ""
        self._mean, self._weight, self._lowest, self._skipped = 0.0, 0.0, math.inf, 0
        self._parts: list[tuple[Tensor, int]] = []

    @property
    def lrs(self) -> list[float]:
        """The rates that were tried, one less than losses."""
        return [self._rates(i, self.n_steps)[0] for i in range(len(self.losses) - 1)]

    def __call__(self, step: int, n_steps: int) -> tuple[float, None]:  # noqa: ARG002
        """The rate of the next step; how the fit counts steps does not matter."""
        return self._rates(len(self.losses), self.n_steps)

    def after_loss(self, learn: Learner) -> None:
        """Keep a batch's loss."""
        self._parts.append((learn.loss.detach(), len(learn.x)))

    def before_step(self, learn: Learner) -> None:  # noqa: ARG002
        """Keep the step's loss; end the sweep if it diverges, or before a step too many."""
        losses, sizes = [float(loss) for loss, _ in self._parts], [n for _, n in self._parts]
        self._parts.clear()
        with np.errstate(invalid="ignore"):  # infinities of both signs
            self.losses.append(float(np.average(losses, weights=sizes)))
        self._stop_if_diverged(self.losses[-1])
        if len(self.losses) > self.n_steps:
            raise CancelFitError

    def after_step(self, learn: Learner) -> None:
        """Keep the rate of the step, or try it again if fp16 skipped it."""
        self.lr = self._rates(len(self.losses) - 1, self.n_steps)[0]
        if not learn.stepper.skipped:
            self._skipped = 0
            return
        self.losses.pop()
        self._skipped += 1
        if self._skipped == SKIPS:
            self._end("the gradients overflowed")

    def _stop_if_diverged(self, loss: float) -> None:
        if not math.isfinite(loss):
            self.losses.pop()
            self._end(f"the loss became {loss}" if self.losses else f"the first loss is {loss}")
        self._mean = BETA * self._mean + (1 - BETA) * loss
        self._weight = BETA * self._weight + (1 - BETA)
        mean = self._mean / self._weight
        self._lowest = min(self._lowest, mean)
        fall = max(abs(self._lowest), self.losses[0] - self._lowest)
        if mean > self._lowest + (DIVERGED - 1) * fall:
            self._end("the loss diverged")

    def _end(self, reason: str) -> None:
        self.ended = reason + (f" at the rate {self.lr:.2g}" if self.lr else "")
        raise CancelFitError


class _Repeated:
    """The training batches, epoch after epoch, as one long epoch.

    Args:
        batches: the loader; its epochs go on from ``epoch``.
        n_batches: the length to state; iterating does not end.
        epoch: the first epoch.
    """

    def __init__(self, batches: Batches, n_batches: int, epoch: int) -> None:
        self._batches = _without_kept_workers(batches)
        self._n_batches, self._epoch = n_batches, epoch
        self._open: Generator[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._open = self._iterate()
        return self._open

    def _iterate(self) -> Generator[tuple[Tensor, Tensor]]:
        some, epoch = True, self._epoch
        while some:
            some = False
            set_epoch = getattr(self._batches, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
            for batch in self._batches:
                some = True
                yield batch
            epoch += 1
        raise ArgumentError("dls.train has no batches; give it at least one.")

    def close(self) -> None:
        """End threads and processes that read ahead, also if an error still holds the iterator."""
        if self._open is not None:
            self._open.close()


def sweep(learn: Learner, lr_min: float, lr_max: float, n_steps: int) -> LRFinding:
    """Train from ``lr_min`` to ``lr_max`` and restore everything; see `Learner.lr_find`."""
    _check(learn, lr_min, lr_max, n_steps)
    callback = Sweep(lr_min, lr_max, n_steps)
    n_batches = (n_steps + 1 + SKIPS) * learn.settings.accumulate
    batches = _Repeated(learn.dls.train, n_batches, learn.epochs_done)
    with ExitStack() as stack:
        stack.enter_context(loader_restored(learn.dls.train))
        stack.enter_context(restored(learn.model, *_belongings(learn)))
        stack.callback(surely, ContainerState(vars(learn)).restore)
        stack.enter_context(closing(batches))
        stack.enter_context(step_hooks().for_new_listeners())
        learn.callbacks, learn.run, learn.dls = [], None, _only(learn.dls, batches)
        try:
            learn._fit(1, callback, [callback])  # pyright: ignore[reportPrivateUsage]
        except Exception:
            # Some losses refuse an output that is NaN.
            if len(callback.losses) < 2 or non_finite_state(learn.model) is None:
                raise
            callback.ended = "the weights became infinite or NaN"
    return LRFinding.of(callback.lrs, callback.losses[1:], callback.ended)


def _check(learn: Learner, lr_min: float, lr_max: float, n_steps: int) -> None:
    check_positive("lr_min", lr_min)
    check_positive("lr_max", lr_max)
    if lr_min >= lr_max:
        raise ArgumentError(f"lr_min must be below lr_max, got {lr_min:g} and {lr_max:g}.")
    check_whole("n_steps", n_steps, 2)
    refuse_streams(learn.dls.train)
    lazy = [name for name, value in learn.model.named_parameters() if is_lazy(value)]
    if lazy:
        raise ArgumentError(
            f"The model has parameters that get their values with the first batch ({lazy[0]!r}); "
            "run it on one before, learn.model(x)."
        )


def _belongings(learn: Learner) -> Iterable[object]:
    """What a fit changes besides the model and the Learner's own attributes."""
    yield from (learn.loss_function, learn.valid_loss_function)
    yield from _inside(learn, 2)


def _inside(thing: object, depth: int) -> Iterator[object]:
    """The attributes of the objects that an object holds: optimizer, groups, scaler."""
    for value in vars(thing).values():
        if isinstance(value, set):
            yield value
        elif hasattr(value, "__dict__") and not isinstance(
            value, type | Tensor | nn.Module | Callback | DataLoaders
        ):
            yield vars(value)
            if depth > 1:
                yield from _inside(value, depth - 1)


def _only(dls: DataLoaders, batches: Batches) -> DataLoaders:
    """The same data without validation, with these batches to train on."""
    found = copy.copy(dls)
    found.train, found.valid = batches, None
    return found


def _without_kept_workers(batches: Batches) -> Batches:
    """A copy of a `DataLoader` that starts workers of its own: those it keeps are left alone."""
    if not isinstance(batches, DataLoader):
        return batches
    alone = copy.copy(cast("DataLoader[Any]", batches))
    vars(alone).update(persistent_workers=False, _iterator=None)
    return alone
