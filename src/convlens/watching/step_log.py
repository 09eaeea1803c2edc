"""`StepLog`: the numbers that a loop of one's own logs, by step and by epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convlens.core.layer_histories import LayerHistories
from convlens.core.records import HANDOVER_S, LOOP, LOSS_AT_EVERY_STEP, Epoch, RecordSink
from convlens.core.steps import StepSeries, join_steps
from convlens.core.training_curves import TrainingCurves
from convlens.errors import ArgumentError
from convlens.plots import CurvePlots, LayerPlots
from convlens.watching.loop_facts import LoopFacts
from convlens.watching.notes import CannotSketchError, Notes, described
from convlens.watching.optimizer_hooks import Closure, step_hooks
from convlens.watching.outputs import is_capturing

Hypers = Mapping[str, list[float | Tensor]]

BLOCK = 64  # steps whose tensors stay on their device before they are read together


@dataclass
class _Row:
    """What was logged of one step; tensors are on their device until the row is read."""

    step: int
    epoch: int
    hypers: Hypers
    wall_s: float = 0.0
    numbers: dict[str, float | Tensor] = field(default_factory=dict[str, float | Tensor])


class StepLog(CurvePlots, TrainingCurves):
    """Logged numbers, kept in memory and written to a sink.

    Numbers on a GPU are read together, after `BLOCK` steps or about a second.

    Each step that something was logged of also gets the newest learning rates and momentums of all
    optimizers with a parameter of the model, in the order of their first steps.

    Args:
        model: whose optimizers.
        notes: where to say what could not be recorded.
        clock: returns the current step, -1 before the first, and the seconds since the first one.
        flush_sink: flush the sink after each write.

    Attributes:
        optimizer_steps: how many steps these optimizers have made.
        loop: whose facts are written with them.
        rates: keep the learning rates of each optimizer step also where nothing was ever logged.
        run_closed: whether there was a sink and nothing can be written to it any more.
    """

    def __init__(
        self,
        model: nn.Module,
        notes: Notes,
        clock: Callable[[], tuple[int, float]],
        *,
        flush_sink: bool,
    ) -> None:
        self._sink: RecordSink | None = None
        self.loop: LoopFacts | None = None
        self.run_closed = self.rates = False
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._notes, self._clock, self._flush_sink = notes, clock, flush_sink
        self._rows: list[_Row] = []  # not read yet; the newest may still get numbers
        self._parts: list[StepSeries] = []
        self._epochs: list[Epoch] = []
        self._losses: list[float] = []  # of the current epoch's rows that were read
        self._optimizers: dict[int, tuple[set[int], Hypers]] = {}  # by id; ids of parameters
        self._hypers: Hypers = {}  # of all optimizers
        self._loss_at_every_step = True
        self._logged = self._attached = False
        self.optimizer_steps = 0
        self._flushed_at, self._epoch_wall_s, self._first_step = time.monotonic(), 0.0, 0

    @property
    def sink(self) -> RecordSink | None:
        """Where steps and epochs are written to besides memory; None in a fork of its process."""
        inherited = self._sink is not None and self._sink.background.is_inherited
        return None if inherited else self._sink

    @sink.setter
    def sink(self, sink: RecordSink | None) -> None:
        self._sink = sink

    def attach(self) -> None:
        """Listen to optimizers."""
        step_hooks().add(self)
        self._attached = True

    @property
    def has_numbers(self) -> bool:
        """Whether anything was logged of a step."""
        return self._logged

    @property
    def steps(self) -> StepSeries:
        """Every step that something was logged of; other names than ``loss`` are in ``hypers``."""
        self._parts = [join_steps(self._parts)]
        return join_steps([*self._parts, *([_series(self._rows)] if self._rows else [])])

    @property
    def epochs(self) -> list[Epoch]:
        """The finished epochs."""
        return self._epochs

    def log(self, numbers: Mapping[str, object]) -> None:
        """Add numbers to the current step; see `LoggingHistories.log`."""
        with self._guarded():
            if self.loop is not None and "target" in numbers:
                self.loop.target(numbers["target"])
            values = {n: _number(n, value) for n, value in numbers.items() if n != "target"}
            if not values or self._is_closed():
                return
            step, wall_s = self._clock()
            if not self._logged:  # the loop says itself which steps have numbers
                self._rows = [row for row in self._rows if row.step == step]
                self._logged = True
            row = self._row(max(step, 0))
            row.wall_s = wall_s
            row.numbers |= values
            self._flush_if_due()

    def _row(self, step: int) -> _Row:
        if not self._rows or self._rows[-1].step != step:
            self._rows.append(_Row(step, len(self._epochs), self._hypers))
        return self._rows[-1]

    def _flush_if_due(self) -> None:
        if len(self._rows) > BLOCK or time.monotonic() > self._flushed_at + HANDOVER_S:
            self._flush()

    def log_epoch(self, numbers: Mapping[str, object]) -> None:
        """End an epoch; see `LoggingHistories.log_epoch`."""
        with self._guarded():
            if "loss" in numbers:
                raise ArgumentError("log_epoch takes no loss; use train_loss or valid_loss.")
            metrics = {name: float(_number(name, value)) for name, value in numbers.items()}
            if self._is_closed():
                return
            self._flush()
            last, wall_s = self._clock()
            last = max([last, *(row.step for row in self._rows)])
            losses = [*self._losses, *(loss for row in self._rows for loss in self._loss_of(row))]
            mean = float(np.mean(losses)) if losses else None
            epoch = Epoch(
                epoch=len(self._epochs),
                first_step=self._first_step,
                last_step=last,
                train_loss=metrics.pop("train_loss", mean),
                valid_loss=metrics.pop("valid_loss", None),
                metrics=metrics,
                wall_s=wall_s - self._epoch_wall_s,
            )
            self._epochs.append(epoch)
            self._losses, self._epoch_wall_s, self._first_step = [], wall_s, last + 1
            if self.sink is not None:
                self.sink.write_epoch(epoch)
                self._flush_sink_too()

    def _is_closed(self) -> bool:
        if self.run_closed:
            self._notes.say("closed", why="the run was closed when watching ended")
        return self.run_closed

    def flush(self) -> None:
        """Read the logged tensors, and write the steps to the sink."""
        with self._guarded():
            self._flush()

    def _flush(self, *, ended: bool = False) -> None:
        """Write the steps; ``ended`` says that the newest one gets no more numbers."""
        if is_capturing():  # nothing can be read now
            return
        self._flushed_at = time.monotonic()
        if self.sink is not None and self.loop is not None:
            facts = self._notes.guard(self.loop.facts)
            if facts is not None:
                self.sink.write_meta({LOOP: facts})
        if not self._rows:
            return
        rows, done, self._rows = self._rows, self._rows[:-1], self._rows[-1:]
        if done:
            self._losses += [loss for row in done for loss in self._loss_of(row)]
            self._parts.append(_series(done))
        self._say_if_losses_lack(rows if ended else done)
        if self.sink is not None:
            # The newest step is written again if it gets more numbers: the sink replaces it.
            wait = self._loss_at_every_step and "loss" not in rows[-1].numbers
            self.sink.write_steps(_series(done if wait else rows))
            self._flush_sink_too()

    def _say_if_losses_lack(self, rows: Sequence[_Row]) -> None:
        """Say in the run, once, that a loss of NaN may be one that was not logged."""
        if self._loss_at_every_step and any("loss" not in row.numbers for row in rows):
            self._loss_at_every_step = False
            if self.sink is not None:
                self.sink.write_meta({LOSS_AT_EVERY_STEP: False})

    def meta(self) -> dict[str, Any]:
        """The facts that a run has of the steps logged so far."""
        facts = {} if self.loop is None else {LOOP: self.loop.facts()}
        all_have = all("loss" in row.numbers for row in self._rows[:-1])
        newest = self._rows[-1:] if self.run_closed or not self._attached else []
        all_have = all_have and all("loss" in row.numbers for row in newest)
        return facts | {LOSS_AT_EVERY_STEP: self._loss_at_every_step and all_have}

    @contextmanager
    def _guarded(self) -> Generator[None]:
        """Only a wrong argument ends the user's step; what else fails is noted."""
        try:
            yield
        except ArgumentError:
            raise
        except Exception as error:
            self._notes.say("log", why=described(error))

    def close(self) -> None:
        """Write everything, and stop listening to optimizers."""
        step_hooks().remove(self)
        self._attached = False
        with self._guarded():
            self._flush(ended=True)

    def _flush_sink_too(self) -> None:
        if self.sink is not None and self._flush_sink:
            self.sink.flush()

    def _loss_of(self, row: _Row) -> list[float]:
        """The loss of a row of the current epoch, if one was logged."""
        loss = row.numbers.get("loss")
        return [] if loss is None or row.epoch != len(self._epochs) else [float(loss)]

    # ---- the optimizer's step -------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:  # noqa: ARG002
        """Change nothing; `StepListener`."""
        return closure

    def after_step(self, optimizer: Optimizer) -> None:
        """Read the learning rate and momentum of each parameter group; `StepListener`.

        Steps that were logged of before the first optimizer step get those of that one.
        """
        try:
            groups: list[dict[str, Any]] = optimizer.param_groups
            if not any(id(p) in self._parameters for group in groups for p in group["params"]):
                return
            self.optimizer_steps += 1
            found = {
                "lr": [group.get("lr", math.nan) for group in groups],
                "momentum": [g.get("momentum", g.get("betas", (math.nan,))[0]) for g in groups],
                "weight_decay": [group.get("weight_decay", math.nan) for group in groups],
            }
            hypers = {n: [_number(n, v) for v in values] for n, values in found.items()}
            parameters = self._parameters_of(optimizer)
            self._optimizers[id(optimizer)] = parameters, hypers
            every = [own for _, own in self._optimizers.values()]
            self._hypers = {name: [v for own in every for v in own[name]] for name in found}
            step, wall_s = self._clock()
            step = max(step, 0)
            if self.rates and not self._logged and not self.run_closed:
                self._row(step).wall_s = wall_s
            for row in self._rows:
                if row.step == step or not row.hypers:
                    row.hypers = self._hypers
            self._flush_if_due()
        except Exception as error:
            self._notes.say("log", why=described(error))

    def _parameters_of(self, optimizer: Optimizer) -> set[int]:
        """The ids of an optimizer's parameters; forgets others that had any of them."""
        if id(optimizer) in self._optimizers:
            return self._optimizers[id(optimizer)][0]
        groups: list[dict[str, Any]] = optimizer.param_groups
        own = {id(parameter) for group in groups for parameter in group["params"]}
        self._optimizers = {i: one for i, one in self._optimizers.items() if not own & one[0]}
        return own


class LoggingHistories(LayerPlots, LayerHistories):
    """Histories of a loop of one's own, which logs its numbers."""

    _log: StepLog

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The epochs that `log_epoch` has ended."""
        return self._log.epochs

    @property
    def recorder(self) -> TrainingCurves:
        """What `log` and `log_epoch` were given, as ``learn.recorder`` of a Learner has it."""
        return self._log

    def log(self, *unnamed: object, **numbers: float | Tensor) -> None:
        """Record numbers of the current step: that of the last counted forward.

        Forwards in another mode than ``mode`` do not count. ``loss`` is the curve that plots, page
        and report show. Before any forward the step is 0. Several calls in one step are merged; of
        one name the last value is kept. Tensors on a GPU are read together about once a second. The
        step also gets the learning rates and momentums of the optimizers of ``model``.

        Args:
            unnamed: none: every number needs a name.
            numbers: by name; numbers, or tensors of one element. ``target``, the batch's targets
                (a tensor of any shape), is not recorded as a number: its range is.

        Raises:
            ArgumentError: if one is neither or has no name.

        Example:
            >>> import torch
            >>> import convlens as cl
            >>> model = torch.nn.Linear(4, 1)
            >>> with cl.watch(model) as stats:
            ...     for _ in range(3):
            ...         loss = model(torch.ones(8, 4)).mean()
            ...         stats.log(loss=loss, batch_size=8)
            >>> stats.recorder.steps.step.tolist(), stats.recorder.steps.hypers["batch_size"].shape
            ([0, 1, 2], (3, 1))
        """
        _check_named("log(loss=loss)", unnamed)
        self._log.log(numbers)

    @contextmanager
    def validation(self) -> Generator[None]:
        """Count the forwards inside as those of a validation, whatever the model's mode.

        They begin no step. Also says whether the model was left in training mode there.

        Example:
            >>> import torch
            >>> import convlens as cl
            >>> model = torch.nn.Linear(4, 1)
            >>> with cl.watch(model) as stats:
            ...     with stats.validation():
            ...         loss = model(torch.ones(8, 4)).mean()
            ...     stats.log_epoch(valid_loss=loss)
            >>> len(stats["last linear"])
            0
        """
        loop = self._log.loop
        with nullcontext() if loop is None else loop.validation():
            yield

    def log_epoch(self, *unnamed: object, **numbers: float | Tensor) -> None:
        """End an epoch at the current step; epochs are numbered from 0.

        An epoch without a step, such as a validation before training, has a ``last_step`` that is
        one less than its ``first_step``.

        Args:
            unnamed: none: every number needs a name.
            numbers: by name: ``valid_loss``, ``train_loss`` (the mean of the epoch's logged losses
                if it is not given, None if there are none), and metrics, such as ``accuracy``.

        Raises:
            ArgumentError: if one is neither a number nor a tensor of one element, has no name, or
                is named ``loss``.

        Example:
            >>> import torch
            >>> import convlens as cl
            >>> model = torch.nn.Linear(4, 1)
            >>> with cl.watch(model) as stats:
            ...     for epoch in range(2):
            ...         stats.log(loss=model(torch.ones(8, 4)).mean())
            ...         stats.log_epoch(valid_loss=0.5, accuracy=0.75)
            >>> [(e.epoch, e.last_step, e.valid_loss) for e in stats.epochs]
            [(0, 0, 0.5), (1, 1, 0.5)]
        """
        _check_named("log_epoch(valid_loss=loss)", unnamed)
        self._log.log_epoch(numbers)


def _check_named(call: str, unnamed: tuple[object, ...]) -> None:
    """Raise an `ArgumentError` if there are numbers without a name."""
    if unnamed:
        raise ArgumentError(
            f"every number needs a name, as in stats.{call}, got {unnamed[0]!r:.60}."
        )


def _number(name: str, value: object) -> float | Tensor:
    """A number, or a tensor without dimensions on another device than the CPU, not yet read."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        if value.is_meta:
            raise CannotSketchError("it is on the meta device and has no value")
        value = value.detach().reshape(())
        return float(value) if value.device.type == "cpu" else value.clone()
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, Real):
        return float(value)
    got = (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor | np.ndarray)
        else f"{value!r:.60}"
    )
    raise ArgumentError(f"{name} must be a number or a tensor of one element, got {got}.")


def _series(rows: Sequence[_Row]) -> StepSeries:
    """Rows as arrays; what a row lacks is NaN."""
    _read(rows)
    width: dict[str, int] = {}
    merged = [{**row.hypers, **{n: [v] for n, v in row.numbers.items()}} for row in rows]
    for row in merged:
        for name, values in row.items():
            width[name] = max(width.get(name, 1), len(values))
    arrays = {name: np.full((len(rows), n), np.nan) for name, n in {"loss": 1, **width}.items()}
    for index, row in enumerate(merged):
        for name, values in row.items():
            arrays[name][index, : len(values)] = values
    return StepSeries(
        step=np.array([row.step for row in rows], np.int64),
        epoch=np.array([row.epoch for row in rows], np.int64),
        loss=arrays.pop("loss")[:, 0],
        wall_s=np.array([row.wall_s for row in rows]),
        hypers=arrays,
    )


def _read(rows: Sequence[_Row]) -> None:
    """Replace tensors by their numbers, with one copy from each device."""
    waiting: dict[torch.device, list[tuple[_Row, str, Tensor]]] = {}
    for row in rows:
        row.hypers = {name: [float(v) for v in values] for name, values in row.hypers.items()}
        for name, value in row.numbers.items():
            if isinstance(value, Tensor):
                waiting.setdefault(value.device, []).append((row, name, value))
    for entries in waiting.values():
        read = torch.stack([value.float() for _, _, value in entries]).tolist()
        for (row, name, _), value in zip(entries, read, strict=True):
            row.numbers[name] = value
