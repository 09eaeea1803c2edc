"""`Learner`: the training loop, short enough to read at one sitting; the rest are callbacks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from convlens.errors import ArgumentError, TrainingError
from convlens.geometry import Summary, summary
from convlens.images import DataLoaders
from convlens.images.arrays import pick_device
from convlens.records import RecordSink
from convlens.train.callbacks import (
    EVENTS,
    Callback,
    CancelBatchError,
    CancelEpochError,
    CancelFitError,
)
from convlens.train.checks import check_arguments, metric_name
from convlens.train.guard import NonFiniteGuard
from convlens.train.metrics import Metric
from convlens.train.progress import Progress
from convlens.train.recorder import Recorder
from convlens.train.recording import Checkpoint, recording
from convlens.train.schedules import Constant, OneCycle, Schedule, Scheduler

adamw = partial(AdamW, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01)
"""The chapter's optimizer: AdamW with β₂ 0.99, eps 1e-5, weight decay 0.01."""


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of N images.

    Attributes:
        labels: (N,) int64, the most probable class.
        names: N names of those classes.
        probabilities: (N, K) float32, softmax of the model's output.
    """

    labels: Tensor
    names: tuple[str, ...]
    probabilities: Tensor


class Learner:
    """Trains a model on data, records what happens, and calls its callbacks around every act.

    Args:
        dls: what to train and validate on.
        model: gets x (N, C, H, W), gives the output that the loss takes.
        loss: function of (output, y) that gives a scalar, the mean over the batch.
        optimizer: called with the model's parameters and ``lr=``; the chapter's AdamW by default.
        metrics: functions of (output, y) that give a batch's mean; named by their ``__name__``.
        callbacks: kept for every fit, reachable under their class names in snake_case.
        device: where to train; None for where the data lies.
        seed: seeds torch's random numbers at the beginning of every fit; None leaves them alone.
            (The order of the data has a seed of its own, given to the data.)
        run: ``"auto"`` records every fit to a new directory ``base/NAME-0001``; a path names the
            directory; None keeps everything in memory only.
        base: the folder that keeps the runs.
        progress: whether to show progress and a line per epoch.

    Raises:
        ArgumentError: if a callback's name would hide something, or an argument cannot work.
    """

    recorder: Recorder

    def __init__(
        self,
        dls: DataLoaders,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        optimizer: Callable[..., Optimizer] = adamw,
        metrics: Sequence[Metric] = (),
        callbacks: Sequence[Callback] = (),
        device: str | torch.device | None = None,
        seed: int | None = None,
        run: str | Path | None = "auto",
        *,
        base: str | Path = "runs",
        progress: bool = True,
    ) -> None:
        check_arguments(dls, model, metrics, callbacks)
        self.dls, self.loss_function, self.metrics = dls, loss, tuple(metrics)
        self.device = dls.device if device is None else pick_device(device)
        self.model = model.to(self.device)
        self.seed, self.run, self.base = seed, run, base
        self.make_optimizer = optimizer
        self.sink: RecordSink | None = None
        self.run_path: Path | None = None
        self.error: BaseException | None = None
        self.training, self.cancelled = False, False
        self.epoch = self.n_epochs = self.step = self.n_steps = self.epochs_done = 0
        self.validation: dict[str, float] = {}
        self.x = self.y = self.output = self.loss = torch.empty(0)
        self._optimizer: Optimizer | None = None
        self._events: dict[str, list[Callable[[Learner], None]]] = {}
        self.callbacks: list[Callback] = []
        always = [Recorder(), NonFiniteGuard(), *([Progress()] if progress else [])]
        for callback in [*always, *([Checkpoint()] if run is not None else []), *callbacks]:
            self.add_callback(callback)

    # ---- what a user calls ----------------------------------------------------------------------

    def fit(self, n_epochs: int, lr: float = 1e-3, *, callbacks: Sequence[Callback] = ()) -> None:
        """Train for ``n_epochs`` at a constant learning rate; momentum stays as it is.

        Raises:
            NonFiniteLossError: if the loss becomes NaN or infinite.
        """
        self._fit(n_epochs, Constant(lr), callbacks)

    def fit_one_cycle(
        self,
        n_epochs: int,
        lr_max: float = 1e-3,
        *,
        div: float = 25.0,
        div_final: float = 1e5,
        pct_start: float = 0.25,
        moms: tuple[float, float, float] = (0.95, 0.85, 0.95),
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Train for ``n_epochs`` with the 1cycle policy; see `OneCycle` for the arguments.

        Raises:
            NonFiniteLossError: if the loss becomes NaN or infinite.
        """
        self._fit(n_epochs, OneCycle(lr_max, div, div_final, pct_start, moms), callbacks)

    def validate(self, batches: Iterable[tuple[Tensor, Tensor]] | None = None) -> dict[str, float]:
        """Loss and metrics over all items of ``batches``, ``dls.valid`` if None.

        Returns:
            ``{"loss": …, "accuracy": …}``, means weighted by batch size.

        Raises:
            ArgumentError: if there is nothing to validate on.
        """
        batches = self.dls.valid if batches is None else batches
        if batches is None:
            raise ArgumentError("dls.valid is None; give validate(batches) something to look at.")
        rows: list[Tensor] = []
        sizes: list[int] = []
        with self._mode(training=False), torch.no_grad():
            for x, y in batches:
                if not self._batch(x, y):
                    continue
                values = [self.loss, *(metric(self.output, self.y) for metric in self.metrics)]
                rows.append(torch.stack([value.detach().float() for value in values]))
                sizes.append(len(self.x))
        if not rows:
            raise ArgumentError(
                "batches gave nothing to validate on: it was empty, or callbacks cancelled every "
                "batch; give at least one image."
            )
        means = np.average(torch.stack(rows).cpu().double().numpy(), axis=0, weights=sizes)
        names = ["loss", *map(metric_name, self.metrics)]
        return dict(zip(names, means.tolist(), strict=True))

    def predict(
        self, x: Tensor | NDArray[Any], batch_size: int = 512, *, normalized: bool = True
    ) -> Prediction:
        """Classify images.

        Args:
            x: (N, C, H, W) or one image (C, H, W), float or uint8. uint8 images are normalized as
                the training images were.
            batch_size: how many at a time.
            normalized: whether float images are already as the loaders give them; False for raw
                pixels, in the units of those given to `from_arrays`.

        Raises:
            ArgumentError: if ``x`` is no array of images with the right channels.
        """
        x = self._images(x, normalized)
        if batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size} is no number of images; give at least 1.")
        with self._mode(training=False), torch.no_grad():
            outputs = [self.model(part.to(self.device)) for part in x.split(batch_size)]
        probabilities = torch.cat(outputs).softmax(dim=1).cpu()
        labels = probabilities.argmax(dim=1)
        return Prediction(
            labels, tuple(self.dls.label(label) for label in labels.tolist()), probabilities
        )

    def _images(self, x: Any, normalized: bool) -> Tensor:  # noqa: ANN401 — it checks what came
        """``x`` as normalized images (N, C, H, W)."""
        if not isinstance(x, Tensor | np.ndarray) or x.ndim not in (3, 4):
            what = tuple(x.shape) if isinstance(x, Tensor | np.ndarray) else type(x).__name__
            raise ArgumentError(
                f"x is {what}; expected a tensor or array of shape (N, C, H, W), or (C, H, W) for "
                "one image."
            )
        images = torch.as_tensor(x)
        images = images if images.ndim == 4 else images[None]
        known = self.dls.facts()["input_shape"]
        if known is not None and images.shape[1] != known[0]:
            raise ArgumentError(
                f"x has shape (N, C, H, W) = {tuple(images.shape)}; the model was trained on "
                f"C = {known[0]}."
            )
        if self.dls.scale is not None and images.dtype == torch.uint8:
            return self.dls.scale.from_uint8(images)
        if self.dls.scale is not None and not normalized:
            return self.dls.scale.normalize_(images.float().clone())
        return images.float() if images.dtype in (torch.uint8, torch.float64) else images

    def summary(self) -> Summary:
        """Shapes, parameters, multiplications and receptive field of each layer, for one image."""
        shape = self.dls.facts()["input_shape"]
        if shape is None:
            x, _ = next(iter(self.dls.train))
            shape = x.shape[1:]
        return summary(self.model, (1, *shape))

    def add_callback(self, callback: Callback) -> None:
        """Keep a callback for every fit, under its class name in snake_case.

        Raises:
            ArgumentError: if the name would hide something that the Learner has.
        """
        name = callback.attribute()
        if any(kept.attribute() == name for kept in self.callbacks):
            raise ArgumentError(
                f"callbacks has two of {type(callback).__name__}; they would share the name "
                f"learn.{name}. Give one, or derive a class with a name of its own."
            )
        if name in vars(self) or hasattr(type(self), name):
            raise ArgumentError(
                f"the callback {type(callback).__name__} would hide learn.{name}; "
                "give its class another name."
            )
        self.callbacks.append(callback)
        setattr(self, name, callback)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the last or running fit; it keeps its state from fit to fit.

        Raises:
            TrainingError: before the first fit.
        """
        if self._optimizer is None:
            raise TrainingError("learn.optimizer is made by the first fit; call learn.fit(…).")
        return self._optimizer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        have = ", ".join(
            f"learn.{callback.attribute()}" for callback in vars(self).get("callbacks", ())
        )
        raise AttributeError(f"Learner has no {name!r}; callbacks of this one: {have}.")

    # ---- the loop -------------------------------------------------------------------------------

    def _fit(self, n_epochs: int, schedule: Schedule, callbacks: Sequence[Callback]) -> None:
        self._prepare(n_epochs, schedule)
        active = sorted([Scheduler(schedule), *self.callbacks, *callbacks], key=lambda c: c.order)
        with recording(self, schedule), self._mode(training=True), ExitStack() as ending:
            ending.callback(self._listen, ())
            self._listen(active)
            try:
                for callback in active:
                    ending.callback(self._end, callback)
                    callback.before_fit(self)
                for self.epoch in range(n_epochs):
                    self._one_epoch()
                    self.epochs_done += 1
            except CancelFitError:
                self.cancelled = True
            except (CancelBatchError, CancelEpochError) as error:
                self.error = TrainingError(
                    f"A callback raised {type(error).__name__} in an event where there is none to "
                    "cancel; raise it between before_batch and after_step, or before_epoch and "
                    "after_epoch, or raise CancelFitError."
                )
                raise self.error from error
            except BaseException as error:
                self.error = error
                raise

    def _prepare(self, n_epochs: int, schedule: Schedule) -> None:
        if n_epochs < 1:
            raise ArgumentError(f"n_epochs={n_epochs} is not a number of epochs; give at least 1.")
        if not hasattr(self.dls.train, "__len__"):
            raise ArgumentError(
                f"dls.train is a {type(self.dls.train).__name__} without a length; the schedule "
                "needs to know the number of batches, so give something that has len()."
            )
        self.n_epochs, self.step = n_epochs, 0
        self.n_steps = n_epochs * len(self.dls.train)  # pyright: ignore[reportArgumentType]
        self.error, self.cancelled, self.validation = None, False, {}
        if self.seed is not None:
            torch.manual_seed(self.seed)
        lr, _ = schedule(0, self.n_steps)
        if self._optimizer is None:
            self._optimizer = self.make_optimizer(self.model.parameters(), lr=lr)

    def _end(self, callback: Callback) -> None:
        with suppress(CancelBatchError, CancelEpochError, CancelFitError):  # it has ended already
            callback.after_fit(self)

    def _one_epoch(self) -> None:
        try:
            self._event("before_epoch")
            set_epoch = getattr(self.dls.train, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.epochs_done)
            for x, y in self.dls.train:
                self._batch(x, y)
            if self.dls.valid is not None:
                self._validate_epoch()
            self._event("after_epoch")
        except CancelEpochError:
            pass

    def _validate_epoch(self) -> None:
        with self._mode(training=False):
            self._event("before_validation")
            self.validation = self.validate()
            self._event("after_validation")

    def _batch(self, x: Tensor, y: Tensor) -> bool:
        """One batch, in training with its step; False if it was cancelled."""
        self.x = x.to(self.device, non_blocking=True)
        self.y = y.to(self.device, non_blocking=True)
        done = False
        try:
            self._event("before_batch")
            self.output = self.model(self.x)
            self._event("before_loss")
            self.loss = self.loss_function(self.output, self.y)
            self._event("after_loss")
            if self.training:
                self._step()
            done = True
        except CancelBatchError:
            pass
        with suppress(CancelBatchError):  # there is nothing left to skip
            self._event("after_batch")
        return done

    def _step(self) -> None:
        self._event("before_backward")
        self.loss.backward()
        self._event("after_backward")
        self._event("before_step")
        self.optimizer.step()
        try:
            self._event("after_step")
        finally:  # also a step that a callback cancels after was made
            self.optimizer.zero_grad()
            self.step += 1

    # ---- what surrounds it ----------------------------------------------------------------------

    def _event(self, name: str) -> None:
        for call in self._events.get(name, ()):
            call(self)

    def _listen(self, callbacks: Sequence[Callback]) -> None:
        """Call these callbacks from now on, in this order."""
        self._events = {
            name: [getattr(c, name) for c in callbacks if _defines(c, name)] for name in EVENTS
        }

    @contextmanager
    def _mode(self, *, training: bool) -> Generator[None]:
        """Train or evaluate, and put every module's own mode back afterwards.

        A module that was set to evaluation inside a training model stays so in training.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        before = self.training
        if self.model.training != training:
            self.model.train(training)
        self.training = training
        try:
            yield
        finally:
            self.training = before
            for module, mode in modes:
                module.training = mode


def _defines(callback: Callback, event: str) -> bool:
    return getattr(type(callback), event) is not getattr(Callback, event)
