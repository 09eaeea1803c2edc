"""`Learner`: the training loop, short enough to read at one sitting; callbacks do the rest."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from numbers import Integral
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from convlens.checking import CheckResult, check
from convlens.checking.mismatch_errors import (
    check_loss,
    check_output,
    check_scores,
    checking_loss,
    explain_forward,
    explain_loss,
)
from convlens.core.argument_checks import check_whole
from convlens.core.records import Findings, RecordSink, RunRecord
from convlens.core.wording import function_name
from convlens.data import Batches, DataLoaders
from convlens.data.batches import first_batch, images_and_labels
from convlens.data.items import CLASSES
from convlens.data.prediction_inputs import network_inputs
from convlens.doctor import diagnose
from convlens.errors import ArgumentError, TrainingError
from convlens.execution.devices import pick_device
from convlens.geometry import Summary, summary
from convlens.train.callbacks.base import (
    EVENTS,
    Callback,
    CancelBatchError,
    CancelEpochError,
    CancelFitError,
)
from convlens.train.callbacks.checkpoint import Checkpoint
from convlens.train.callbacks.first_batch import FirstBatch
from convlens.train.callbacks.nonfinite import NonFiniteGuard, check_finite
from convlens.train.callbacks.progress import Progress
from convlens.train.callbacks.recorder import Recorder
from convlens.train.callbacks.scheduler import GroupSettings, Scheduler
from convlens.train.learner_arguments import check_arguments, count_batches, make_optimizer
from convlens.train.losses import default_loss
from convlens.train.memory_record import record_of
from convlens.train.metrics import Metric, measure
from convlens.train.prediction import Prediction
from convlens.train.run_setup import model_facts, recording
from convlens.train.schedules import Constant, OneCycle, Schedule

if TYPE_CHECKING:
    from convlens.data.prediction_inputs import Images

adamw = partial(AdamW, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01)
"""The default optimizer, the chapter's: AdamW with β₂ 0.99, eps 1e-5, weight decay 0.01."""


class Learner:
    """Trains a model on data, records what happens and calls its callbacks.

        >>> x, y = torch.randn(8, 1, 4, 4), torch.tensor([0, 1] * 4)
        >>> dls = cl.DataLoaders([(x, y)] * 3, name="noise")
        >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
        >>> learn.fit_one_cycle(2, lr_max=0.01)
        >>> learn
        Learner(Sequential with 25,666 parameters, DataLoaders 'noise', cpu, 2 epochs trained)

    Args:
        dls: the batches to train and validate on.
        model: takes x (N, C, H, W) and returns the output that the loss takes.
        loss: function of (output, y) that returns a scalar, the mean over the batch. None for what
            fits ``dls.kind``: cross entropy for classes, weighted by ``dls.class_weights``, binary
            cross entropy of logits for labels, mean squared error for numbers.
        optimizer: called with the model's parameters and ``lr=``, the schedule's highest rate, at
            the first fit; the chapter's AdamW by default. Parameter groups keep the ratio of their
            rate to that one, and a momentum of their own.
        metrics: functions of (output, y) that return a batch's mean, a number or a tensor of one;
            named by their ``__name__``.
        callbacks: used in every fit, reachable under their class names in snake_case.
        device: where to train; None for the data's device.
        seed: seeds torch's random numbers at the beginning of every fit; None leaves them alone.
            (The order of the data has a seed of its own, given to the data.)
        run: ``"auto"`` records every fit to a new directory ``base/NAME-0001``; a path names the
            directory; None keeps everything in memory.
        base: the folder that keeps the runs.
        progress: whether to show progress and a line per epoch.

    Raises:
        ArgumentError: if an argument cannot work, or a callback's name would hide an attribute.
    """

    recorder: Recorder

    def __init__(
        self,
        dls: DataLoaders,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
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
        check_arguments(dls, model, loss, optimizer, metrics, callbacks)
        self.dls, self.metrics = dls, tuple(metrics)
        self.device = dls.device if device is None else pick_device(device)
        self.loss_function = default_loss(dls, self.device) if loss is None else loss
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
        self._groups = GroupSettings(1.0)
        self._checked: set[bool] = set()  # modes (training or not) whose first output was checked
        self._events: dict[str, list[Callable[[Learner], None]]] = {}
        self.callbacks: list[Callback] = []
        always = [Recorder(), NonFiniteGuard(), FirstBatch(), *([Progress()] if progress else [])]
        for callback in [*always, *([Checkpoint()] if run is not None else []), *callbacks]:
            self.add_callback(callback)

    def __repr__(self) -> str:
        facts = model_facts(self.model)
        size = "?" if facts["n_parameters"] is None else f"{facts['n_parameters']:,}"
        return (
            f"Learner({facts['class']} with {size} parameters, DataLoaders {self.dls.name!r}, "
            f"{self.device}, {self.epochs_done} epochs trained)"
        )

    # ---- what a user calls ----------------------------------------------------------------------

    def check(self, lr: float = 1e-3, *, seconds: float = 5.0) -> CheckResult:
        """Say what would go wrong in a training, before it; see `convlens.check`.

        Some steps are made on copies, with an optimizer as `fit` makes it. Nothing is changed.

            >>> dls = cl.from_arrays(torch.rand(8, 1, 9, 9), [0, 1] * 4, layout="NCHW")
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
            >>> learn.check(seconds=1).tried[0]
            '1 batch of 8 items'

        Args:
            lr: the learning rate to try, that of `fit` or the highest of a schedule.
            seconds: how long to try, at least 1.

        Raises:
            ArgumentError: if an argument, or one of the Learner's, cannot work.
        """
        optimizer = make_optimizer(self.make_optimizer, self.model.parameters(), lr)
        loss = checking_loss(self.loss_function, self.dls.classes)
        return check(self.model, self.dls.train, loss, optimizer, seconds=seconds)

    def fit(self, n_epochs: int, lr: float = 1e-3, *, callbacks: Sequence[Callback] = ()) -> None:
        """Train for ``n_epochs`` at a constant learning rate; momentum is not changed.

        Raises:
            ArgumentError: if an argument, or one of the Learner's, cannot work.
            TrainingError: if the model, its output or the loss does not fit the batches, or the
                weights are not finite before the first step.
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
            ArgumentError, TrainingError, NonFiniteLossError: as `fit`.
        """
        self._fit(n_epochs, OneCycle(lr_max, div, div_final, pct_start, moms), callbacks)

    def record(self) -> RunRecord:
        """Everything that the last fit has recorded, from memory."""
        return record_of(self)

    def diagnose(self) -> Findings:
        """Say what is wrong with the last fit, from memory; see `convlens.diagnose`."""
        return Findings(diagnose(self.record()))

    def validate(self, batches: Batches | None = None) -> dict[str, float]:
        """Loss and metrics over all items of ``batches``, ``dls.valid`` if None.

        Returns:
            ``{"loss": …, "accuracy": …}``, means weighted by batch size.

        Raises:
            ArgumentError: if there is nothing to validate on.
            TrainingError: if model, loss or a metric does not fit the batches.
        """
        what = "dls.valid" if batches is None else "batches"
        batches = self.dls.valid if batches is None else batches
        if batches is None:
            raise ArgumentError("dls.valid is None; call validate(batches).")
        rows: list[Tensor] = []
        sizes: list[int] = []
        with self._mode(training=False), torch.no_grad():
            for batch in batches:
                if not self._batch(*images_and_labels(batch, what)):
                    continue
                found = [measure(m, self.output, self.y, self.loss.device) for m in self.metrics]
                rows.append(torch.stack([self.loss.detach().float().reshape(()), *found]))
                sizes.append(len(self.x))
        if not rows:
            raise ArgumentError(
                f"{what} has nothing to validate on: it is empty, or callbacks cancelled every "
                "batch; give at least one image."
            )
        means = np.average(torch.stack(rows).cpu().double().numpy(), axis=0, weights=sizes)
        names = ["loss", *map(function_name, self.metrics)]
        return dict(zip(names, means.tolist(), strict=True))

    def predict(
        self, x: Images, batch_size: int = 512, *, normalized: bool | None = None
    ) -> Prediction:
        """Classify images.

        Image files and Pillow images are converted to the channels and the size of the training
        images. Tensors and arrays are pixels unless ``normalized`` says otherwise: uint8 from 0 to
        255, floats from 0 to 1 as `load_image` gives them, or from 0 to 255.

            >>> dls = cl.from_arrays(torch.rand(8, 9, 9), [0, 1] * 4, layout="NHW")
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
            >>> learn.predict(torch.rand(3, 1, 9, 9)).probabilities.shape
            torch.Size([3, 2])

        Args:
            x: an image file, a Pillow image, a tensor or array of one image (C, H, W) or of several
                (N, C, H, W), or (N, H, W) where the network takes one channel; or a list of files,
                of Pillow images, or of images (C, H, W).
            batch_size: images at a time.
            normalized: True for floats as the loaders give them; False for floats in the units of
                those given to `from_arrays`, where these were no pixels from 0 to 1 or to 255.

        Raises:
            ArgumentError: if ``x`` is not images with the right channels, or their normalization
                is not known.
            TrainingError: if the model cannot take them, or its output is not scores of the
                classes.
        """
        check_whole("batch_size", batch_size, 1)
        if getattr(self.dls, "kind", CLASSES) != CLASSES:
            raise ArgumentError(
                f"predict is for classes, but the data has {self.dls.kind}; call learn.model."
            )
        outputs: list[Tensor] = []
        with self._mode(training=False), torch.no_grad():
            for part in network_inputs(x, self.dls, batch_size, normalized=normalized):
                outputs.append(self._run_model(part.to(self.device)))
                check_scores(outputs[-1], self.dls.classes)
        return Prediction.of_scores(torch.cat(outputs), self.dls.label)

    def summary(self) -> Summary:
        """Shapes, parameters, multiplications and receptive field of each layer, for one image."""
        shape = self.dls.facts()["input_shape"]
        if shape is None:
            x, _ = first_batch(self.dls.train, "dls.train")
            shape = x.shape[1:]
        return summary(self.model, (1, *shape))

    def add_callback(self, callback: Callback) -> None:
        """Use a callback in every fit, reachable under its class name in snake_case.

        Raises:
            ArgumentError: if the name would hide an attribute of the Learner.
        """
        name = callback.attribute()
        if any(kept.attribute() == name for kept in self.callbacks):
            raise ArgumentError(
                f"callbacks has two of {type(callback).__name__}, which would share the name "
                f"learn.{name}; give one, or derive a class with another name."
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
        scheduler = Scheduler(schedule, self._groups)
        active = sorted([scheduler, *self.callbacks, *callbacks], key=lambda c: c.order)
        with recording(self, schedule), self._mode(training=True), ExitStack() as ending:
            ending.callback(self._listen, ())
            self._listen(active)
            try:
                for callback in active:
                    ending.callback(self._end, callback)
                    callback.before_fit(self)
                self.optimizer.zero_grad()  # of a fit that ended between backward and step
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
        """Check what can be checked before the first step, and make the optimizer."""
        if not isinstance(n_epochs, Integral) or n_epochs < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(f"n_epochs must be a whole number of at least 1, got {n_epochs!r}.")
        self.n_epochs, self.step = n_epochs, 0
        self.n_steps = n_epochs * count_batches(self.dls.train, "dls.train")
        if self.dls.valid is not None and length_hint(self.dls.valid, 1) == 0:
            raise ArgumentError("dls.valid has no batches; give it at least one, or None.")
        self.error, self.cancelled, self.validation = None, False, {}
        self._checked.clear()
        if self.seed is not None:
            torch.manual_seed(self.seed)
        if self._optimizer is None:
            lr, parameters = schedule.peak, self.model.parameters()
            self._optimizer = make_optimizer(self.make_optimizer, parameters, lr)
            self._groups = GroupSettings(lr)
        self._groups.apply(self._optimizer, *schedule(0, self.n_steps))
        check_finite(self.model, self._optimizer)

    def _end(self, callback: Callback) -> None:
        """Call the callback's ``after_fit``; its error does not replace an earlier one."""
        try:
            callback.after_fit(self)
        except (CancelBatchError, CancelEpochError, CancelFitError):  # the fit has ended already
            pass
        except Exception as error:
            if self.error is None:
                self.error = error
                raise
            name = type(callback).__name__
            self.error.add_note(f"{name}.after_fit raised too: {type(error).__name__}: {error}")

    def _one_epoch(self) -> None:
        try:
            self._event("before_epoch")
            set_epoch = getattr(self.dls.train, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.epochs_done)
            for batch in self.dls.train:
                self._batch(*images_and_labels(batch, "dls.train"))
            if self.dls.valid is not None:
                with self._mode(training=False):
                    self._event("before_validation")
                    self.validation = self.validate()
                    self._event("after_validation")
            self._event("after_epoch")
        except CancelEpochError:
            self.optimizer.zero_grad()  # it may have come between backward and step

    def _batch(self, x: Tensor, y: Tensor) -> bool:
        """Run one batch, in training with its step; False if it was cancelled."""
        self.x = x.to(self.device, non_blocking=True)
        self.y = y.to(self.device, non_blocking=True)
        done = False
        try:
            self._event("before_batch")
            self.output = self._run_model(self.x)
            self._event("before_loss")
            self.loss = self._compute_loss()
            self._event("after_loss")
            if self.training:
                self._step()
            done = True
        except CancelBatchError:
            pass
        with suppress(CancelBatchError):  # nothing is left to skip
            self._event("after_batch")
        return done

    def _run_model(self, x: Tensor) -> Any:  # noqa: ANN401 — a model may return anything
        try:
            return self.model(x)
        except Exception as error:
            explain_forward(error, self.model, x)
            raise

    def _compute_loss(self) -> Tensor:
        given = self.loss_function, self.output, self.y, self.dls.classes
        if self.training not in self._checked:  # first batch only: reading y waits for a GPU
            check_output(*given)
            self._checked.add(self.training)
        try:
            loss = self.loss_function(self.output, self.y)
        except Exception as error:
            explain_loss(error, *given)
            raise
        check_loss(loss, self.loss_function)
        return loss

    def _step(self) -> None:
        self._event("before_backward")
        if not self.loss.requires_grad:
            raise TrainingError(
                "The loss depends on no parameter that needs a gradient, so there is nothing to "
                "train: all are frozen, or the output was detached or made without gradients."
            )
        self.loss.backward()
        self._event("after_backward")
        self._event("before_step")
        self.optimizer.step()
        try:
            self._event("after_step")
        finally:  # also if a callback cancels after the step was made
            self.optimizer.zero_grad()
            self.step += 1

    # ---- what surrounds it ----------------------------------------------------------------------

    def _event(self, name: str) -> None:
        for handler in self._events.get(name, ()):
            handler(self)

    def _listen(self, callbacks: Sequence[Callback]) -> None:
        """Call the events that these callbacks define, in this order."""
        self._events = {
            name: [
                getattr(callback, name)
                for callback in callbacks
                if getattr(type(callback), name) is not getattr(Callback, name)
            ]
            for name in EVENTS
        }

    @contextmanager
    def _mode(self, *, training: bool) -> Generator[None]:
        """Switch to training or evaluation, and restore every module's own mode afterwards.

        A module set to evaluation inside a model in training stays so in training.
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
