"""`Recorder`: every step's loss and hyperparameters, every epoch's metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import torch

from convlens.core.beat import Beats
from convlens.core.columns import Floats
from convlens.core.records import Epoch, StepSeries, empty_steps, join_steps
from convlens.core.training_curves import TrainingCurves
from convlens.plots import CurvePlots
from convlens.train.callbacks import Callback
from convlens.train.schedules import read_hypers

if TYPE_CHECKING:
    from convlens.train.learner import Learner

BLOCK = 64  # steps whose losses stay on the device before they are read in one go


class Recorder(Callback, CurvePlots, TrainingCurves):
    """Records loss and hyperparameters of every step, and loss and metrics of every epoch.

    Losses stay on the device and are read a block at a time, so that no step waits for them. What
    is recorded is kept in memory and written to the run, if there is one, and committed with the
    last step before each beat (`convlens.core.beat`), so that a reader sees a step within a second.
    It holds one fit: the next fit begins anew.
    """

    order = -100  # first, so that a step is recorded even if another callback cancels after it

    def __init__(self) -> None:
        self._history = _History()
        self._epochs: list[Epoch] = []
        self._rows: list[tuple[float, int, list[dict[str, float]]]] = []
        self._losses = torch.zeros(BLOCK)
        self._sizes: list[int] = []

    @property
    def steps(self) -> StepSeries:
        """What was recorded at every step of the last fit so far; its arrays cannot be written to.

        It is no copy, so that it costs the same after a million steps as after one.
        """
        return self._history.with_block(self._block()) if self._rows else self._history.series

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The finished epochs of the last fit."""
        return tuple(self._epochs)

    def before_fit(self, learn: Learner) -> None:
        """Forget the last fit and start the clock."""
        self._history, self._epochs, self._rows = _History(), [], []
        self._losses = torch.zeros(BLOCK, device=learn.device)
        self._fit_start = self._ended = time.perf_counter()
        self._beats = Beats()

    def before_epoch(self, learn: Learner) -> None:
        """Start the epoch's clock."""
        self._close_block(learn)  # what a cancelled epoch has left belongs to that epoch
        self._sizes = []
        self._epoch, self._first_step = learn.epoch, learn.step
        self._epoch_start = time.perf_counter()

    def after_step(self, learn: Learner) -> None:
        """Keep the loss and the hyperparameters that this step was made with."""
        self._losses[len(self._rows)] = learn.loss.detach()
        hypers = [read_hypers(group) for group in learn.optimizer.param_groups]
        now = time.perf_counter()
        took, self._ended = now - self._ended, now
        self._rows.append((now - self._fit_start, learn.step, hypers))
        self._sizes.append(len(learn.x))
        if learn.sink is not None and self._beats.due(took):  # the next step may take as long
            self._commit(learn, took)
        elif len(self._rows) == BLOCK:
            self._close_block(learn)

    def before_validation(self, learn: Learner) -> None:
        """Commit the last steps, as validation may take its time."""
        self._commit(learn)

    def after_epoch(self, learn: Learner) -> None:
        """Record the epoch."""
        self._close_block(learn)
        validation = dict(learn.validation)
        epoch = Epoch(
            epoch=learn.epoch,
            first_step=self._first_step,
            last_step=learn.step - 1,
            train_loss=self._train_loss(),
            valid_loss=validation.pop("loss", None),
            metrics=validation,
            wall_s=time.perf_counter() - self._epoch_start,
        )
        self._epochs.append(epoch)
        if learn.sink is not None:
            learn.sink.write_epoch(epoch)
        self._commit(learn)

    def after_fit(self, learn: Learner) -> None:
        """Commit what is left of a cancelled epoch."""
        self._commit(learn)

    def _train_loss(self) -> float:
        if not self._sizes:
            return float("nan")
        losses = self._history.series.loss[-len(self._sizes) :]
        return float(np.average(losses, weights=self._sizes))

    def _block(self) -> StepSeries:
        walls, steps, hypers = zip(*self._rows, strict=True)
        names = {name: None for groups in hypers for group in groups for name in group}
        missing = float("nan")
        return StepSeries(
            step=np.array(steps, np.int64),
            epoch=np.full(len(steps), self._epoch, np.int64),
            loss=self._losses[: len(steps)].cpu().double().numpy().copy(),
            wall_s=np.array(walls),
            hypers={
                name: np.array([[group.get(name, missing) for group in row] for row in hypers])
                for name in names
            },
        )

    def _close_block(self, learn: Learner) -> None:
        if not self._rows:
            return
        block = self._block()
        self._rows = []
        self._history.add(block)
        if learn.sink is not None:
            learn.sink.write_steps(block)

    def _commit(self, learn: Learner, next_s: float = 0.0) -> None:
        self._close_block(learn)
        self._beats.done(next_s)
        if learn.sink is not None:
            learn.sink.flush()


class _History:
    """Steps that grow block by block, in arrays that double when they are full."""

    def __init__(self) -> None:
        self._held = empty_steps()
        self._length = 0

    @property
    def series(self) -> StepSeries:
        """All steps so far, as views that cannot be written to."""
        return self._first(self._length)

    def add(self, block: StepSeries) -> None:
        """Append steps."""
        end = self._length + len(block)
        if end > len(self._held) or not _has_room(self._held.hypers, block.hypers):
            self._held = join_steps([self.series, block, _blank(end)])
        else:
            _put(self._held, self._length, block)
        self._length = end

    def with_block(self, block: StepSeries) -> StepSeries:
        """All steps and those of a block that is still open; they will be added with the rest."""
        length = self._length
        self.add(block)
        self._length = length
        return self._first(length + len(block))

    def _first(self, length: int) -> StepSeries:
        held = self._held
        arrays = {
            f.name: getattr(held, f.name)[:length] for f in fields(held) if f.name != "hypers"
        }
        hypers = {name: values[:length] for name, values in held.hypers.items()}
        for array in (*arrays.values(), *hypers.values()):
            array.flags.writeable = False
        return StepSeries(**arrays, hypers=hypers)


def _blank(length: int) -> StepSeries:
    """Room for so many steps."""
    numbers, reals = np.zeros(length, np.int64), np.zeros(length)
    return StepSeries(numbers, numbers, reals, reals)


def _has_room(held: Mapping[str, Floats], hypers: Mapping[str, Floats]) -> bool:
    """Whether every hyperparameter and every group of a block has its place."""
    return all(
        name in held and values.shape[1] <= held[name].shape[1] for name, values in hypers.items()
    )


def _put(held: StepSeries, start: int, block: StepSeries) -> None:
    rows = slice(start, start + len(block))
    held.step[rows], held.epoch[rows] = block.step, block.epoch
    held.loss[rows], held.wall_s[rows] = block.loss, block.wall_s
    for name, values in held.hypers.items():
        values[rows] = np.nan
        found = block.hypers.get(name)
        if found is not None:
            values[rows, : found.shape[1]] = found
