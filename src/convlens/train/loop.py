"""`TrainingLoop`: the loop of a `Learner`, short enough to read at one sitting."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from numbers import Integral
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convlens.checking.mismatch_errors import (
    check_loss,
    check_output,
    explain_forward,
    explain_loss,
)
from convlens.core.records import RecordSink
from convlens.data import Batches, DataLoaders
from convlens.data.batches import images_and_labels
from convlens.data.items import CLASSES
from convlens.errors import ArgumentError, TrainingError
from convlens.execution.devices import pick_device
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
from convlens.train.callbacks.overflows import Overflows
from convlens.train.callbacks.progress import Progress
from convlens.train.callbacks.recorder import Recorder
from convlens.train.callbacks.scheduler import GroupSettings, Scheduler
from convlens.train.layer_groups import Frozen, prepare_groups
from convlens.train.learner_arguments import (
    check_arguments,
    check_bfloat16,
    count_batches,
    make_optimizer,
)
from convlens.train.losses import Loss, resolve_losses
from convlens.train.metrics import Metric, Validation
from convlens.train.named_metrics import resolve_metrics
from convlens.train.optimizers import optimizer_factory
from convlens.train.run_setup import model_facts, recording
from convlens.train.schedules import Schedule
from convlens.train.stepping import Stepper, StepSettings, explain_compiling


class TrainingLoop:
    """The state of a training, and the loop that calls the callbacks; see `Learner`."""

    recorder: Recorder

    def __init__(
        self,
        dls: DataLoaders,
        model: nn.Module,
        loss: str | Loss | None = None,
        optimizer: str | Callable[..., Optimizer] = "adamw",
        metrics: Sequence[Metric] = (),
        callbacks: Sequence[Callback] = (),
        device: str | torch.device | None = None,
        seed: int | None = None,
        run: str | Path | None = "auto",
        *,
        weight_decay: float | None = None,
        label_smoothing: float = 0.0,
        precision: str = "fp32",
        accumulate: int = 1,
        clip: float | None = None,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 — torch's own name for it
        base: str | Path = "runs",
        progress: bool = True,
    ) -> None:
        check_arguments(dls, model, loss, optimizer, metrics, callbacks)
        self.dls, self.metrics = dls, tuple(metrics)
        self.device = dls.device if device is None else pick_device(device)
        found = resolve_losses(loss, label_smoothing, dls, self.device)
        self.loss_function, self.valid_loss_function = found
        own = loss is None or isinstance(loss, str)
        self.label_smoothing = label_smoothing if own else None
        weights = dls.class_weights if own and dls.kind == CLASSES else None
        self._class_weights = None if weights is None else weights.to(self.device)
        self.measured = resolve_metrics(self.metrics, dls, self.valid_loss_function)
        self.settings = StepSettings(precision, accumulate, clip, channels_last, compile)
        self.stepper = Stepper(self.settings, self.device)
        self.model = model.to(self.device)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        self._compiled: Callable[[Tensor], Any] | None = None  # the model, in a fit with compile
        self.seed, self.run, self.base = seed, run, base
        self.make_optimizer = optimizer_factory(optimizer, weight_decay)
        self.sink: RecordSink | None = None
        self.run_path: Path | None = None
        self.error: BaseException | None = None
        self.stop_reason = ""
        self.training, self.cancelled = False, False
        self.epoch = self.n_epochs = self.step = self.n_steps = self.epochs_done = 0
        self.validation: dict[str, float] = {}
        self.x = self.y = self.output = self.loss = torch.empty(0)
        self._optimizer: Optimizer | None = None
        self._groups = GroupSettings(1.0)
        self.schedule: Schedule | None = None  # of the last or running fit
        self._frozen = Frozen()
        self._checked: set[bool] = set()  # modes (training or not) whose first output was checked
        self._events: dict[str, list[Callable[[Any], None]]] = {}
        self.callbacks: list[Callback] = []
        self.active: Sequence[Callback] = ()
        guard = Overflows() if precision == "fp16" else NonFiniteGuard()
        always = [Recorder(), guard, FirstBatch(), *([Progress()] if progress else [])]
        for callback in [*always, *([Checkpoint()] if run is not None else []), *callbacks]:
            self.add_callback(callback)

    def __repr__(self) -> str:
        facts = model_facts(self.model)
        size = "?" if facts["n_parameters"] is None else f"{facts['n_parameters']:,}"
        return (
            f"Learner({facts['class']} with {size} parameters, DataLoaders {self.dls.name!r}, "
            f"{self.device}, {self.epochs_done} epochs trained)"
        )

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

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch: its batches, or groups of ``accumulate`` of them.

        Raises:
            ArgumentError: if ``dls.train`` has no length or no batches.
        """
        return -(-count_batches(self.dls.train, "dls.train") // self.settings.accumulate)

    def validate(self, batches: Batches | None = None) -> dict[str, float]:
        """Loss and metrics over all items of ``batches``, ``dls.valid`` if None.

        Returns:
            ``{"loss": …, "accuracy": …}``: means over all items (weighted, of a loss with class
            weights), metrics of torchmetrics over all items; ``"recall[cat]"`` and so on of one
            that is computed for each class.

        Raises:
            ArgumentError: if there is nothing to validate on.
            TrainingError: if model, loss or a metric does not fit the batches.
        """
        what = "dls.valid" if batches is None else "batches"
        batches = self.dls.valid if batches is None else batches
        if batches is None:
            raise ArgumentError("dls.valid is None; call validate(batches).")
        found = Validation(self.measured, self.device, self._class_weights)
        with self._mode(training=False), torch.no_grad():
            for batch in batches:
                if self._batch(*images_and_labels(batch, what)):
                    found.update(self.loss.detach(), self.output, self.y, len(self.x))
        if not found.n_items:
            raise ArgumentError(
                f"{what} has nothing to validate on: it is empty, or callbacks cancelled every "
                "batch; give at least one image."
            )
        return found.result()

    # ---- the loop -------------------------------------------------------------------------------

    def _fit(self, n_epochs: int, schedule: Schedule, callbacks: Sequence[Callback]) -> None:
        self._prepare(n_epochs, schedule)
        scheduler = Scheduler(schedule, self._groups)
        active = sorted([scheduler, *self.callbacks, *callbacks], key=lambda c: c.order)
        learn: Any = self  # a Learner, as callbacks are promised
        with recording(learn, schedule), self._mode(training=True), ExitStack() as ending:
            ending.callback(self._listen, ())
            self._listen(active)
            ending.enter_context(self._compiling())
            try:
                for callback in active:
                    ending.callback(self._end, callback)
                    callback.before_fit(learn)
                self._drop_gradients()  # of a fit that ended between backward and step
                for self.epoch in range(n_epochs):
                    self._one_epoch()
            except CancelFitError as reason:
                self.cancelled, self.stop_reason = True, str(reason)
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
        self.schedule, self.n_epochs, self.epoch, self.step = schedule, n_epochs, 0, 0
        self.n_steps = n_epochs * self.steps_per_epoch
        if self.dls.valid is not None and length_hint(self.dls.valid, 1) == 0:
            raise ArgumentError("dls.valid has no batches; give it at least one, or None.")
        self.error, self.cancelled, self.stop_reason, self.validation = None, False, "", {}
        self._checked.clear()
        if self.settings.precision == "bf16" and self.device.type == "cpu":
            learn: Any = self
            check_bfloat16(learn.summary)
        if self.seed is not None:
            torch.manual_seed(self.seed)
        if self._optimizer is None:
            lr, parameters = schedule.peak, self.model.parameters()
            self._optimizer = make_optimizer(self.make_optimizer, parameters, lr)
            self._groups = GroupSettings(lr)
        prepare_groups(self._groups, self._optimizer, schedule, self)
        self._groups.apply(self._optimizer, *schedule(0, self.n_steps))
        check_finite(self.model, self._optimizer)

    def _end(self, callback: Callback) -> None:
        """Call the callback's ``after_fit``; its error does not replace an earlier one."""
        learn: Any = self
        try:
            callback.after_fit(learn)
        except (CancelBatchError, CancelEpochError, CancelFitError):  # the fit has ended already
            pass
        except Exception as error:
            if self.error is None:
                self.error = error
                raise
            name = type(callback).__name__
            self.error.add_note(f"{name}.after_fit raised too: {type(error).__name__}: {error}")

    def _one_epoch(self) -> None:
        done = self.epochs_done + 1
        try:
            self._event("before_epoch")
            set_epoch = getattr(self.dls.train, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.epochs_done)
            for batch in self.dls.train:
                self._batch(*images_and_labels(batch, "dls.train"))
            if self.stepper.is_waiting:  # a smaller group, which ends with the epoch
                with suppress(CancelBatchError):
                    self._make_step()
            if self.dls.valid is not None:
                with self._mode(training=False):
                    self._event("before_validation")
                    self.validation = self.validate()
                    self._event("after_validation")
            self.epochs_done = done
            self._event("after_epoch")
        except CancelEpochError:
            self.epochs_done = done
            self._drop_gradients()  # it may have come between backward and step

    def _batch(self, x: Tensor, y: Tensor) -> bool:
        """Run one batch, in training with its step; False if it was cancelled."""
        self.x = self._on_device(x)
        self.y = y.to(self.device, non_blocking=True)
        done = False
        try:
            self._event("before_batch")
            with self.stepper.autocast():
                self.output = self._run_model(self.x)
            self._event("before_loss")
            with self.stepper.autocast():
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

    def _on_device(self, x: Tensor) -> Tensor:
        x = x.to(self.device, non_blocking=True)
        if self.settings.channels_last and x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def _run_model(self, x: Tensor) -> Any:  # noqa: ANN401 — a model may return anything
        try:
            return self.model(x) if self._compiled is None else self._compiled(x)
        except Exception as error:
            explain_compiling(error)
            explain_forward(error, self.model, x)
            raise

    def _compute_loss(self) -> Tensor:
        function = self.loss_function if self.training else self.valid_loss_function
        given = function, self.output, self.y, self.dls.classes
        if self.training not in self._checked:  # first batch only: reading y waits for a GPU
            check_output(*given)
            self._checked.add(self.training)
        try:
            loss = function(self.output, self.y)
        except Exception as error:
            explain_loss(error, *given)
            raise
        check_loss(loss, function)
        return loss

    def _step(self) -> None:
        self._event("before_backward")
        if not self.loss.requires_grad:
            raise TrainingError(
                "The loss depends on no parameter that needs a gradient, so there is nothing to "
                "train: all are frozen, or the output was detached or made without gradients."
            )
        self.stepper.backward(self.loss, len(self.x))
        self._event("after_backward")
        if self.stepper.is_due:
            self._make_step()

    def _make_step(self) -> None:
        self._event("before_step")
        self.stepper.step(self.optimizer)
        try:
            self._event("after_step")
        finally:  # also if a callback cancels after the step was made
            self._drop_gradients()
            self.step += 1

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad()
        self.stepper.clear()

    # ---- what surrounds it ----------------------------------------------------------------------

    def _event(self, name: str) -> None:
        for handler in self._events.get(name, ()):
            handler(self)

    @contextmanager
    def _compiling(self) -> Generator[None]:
        """Run the model through `torch.compile` if asked for; ``learn.model`` stays as it is."""
        if self.settings.compile:
            self._compiled = torch.compile(self.model)
        try:
            yield
        finally:
            self._compiled = None

    def _listen(self, callbacks: Sequence[Callback]) -> None:
        """Call the events that these callbacks define, in this order."""
        self.active = tuple(callbacks)
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
        if training:
            self._frozen.keep_modes()
        self.training = training
        try:
            yield
        finally:
            self.training = before
            for module, mode in modes:
                module.training = mode
