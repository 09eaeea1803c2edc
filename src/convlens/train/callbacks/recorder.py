"""`Recorder`: every step's loss and hyperparameters, every epoch's metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from convlens.core.records import HANDOVER_S, Epoch
from convlens.core.steps import StepSeries, join_steps
from convlens.core.training_curves import TrainingCurves
from convlens.core.wording import plural
from convlens.plots import CurvePlots
from convlens.train.callbacks.base import Callback
from convlens.train.schedules import read_hypers

if TYPE_CHECKING:
    from convlens.train.learner import Learner

BLOCK = 64  # steps whose losses stay on the device before they are read in one go


class Recorder(Callback, CurvePlots, TrainingCurves):
    """Records loss and hyperparameters of every step, and loss and metrics of every epoch.

    Losses stay on the device and are read a block at a time, so that no step waits for them. What
    is recorded is kept in memory and written to the run, if there is one, about once a second.
    It holds one fit: the next fit begins anew.

        >>> x, y = torch.randn(8, 1, 4, 4), torch.tensor([0, 1] * 4)
        >>> dls = cl.DataLoaders([(x, y)] * 3)
        >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
        >>> learn.fit(2)
        >>> learn.recorder.steps.loss.shape
        (6,)
    """

    order = -100  # first, so that a step is recorded even if another callback cancels after it

    def __init__(self) -> None:
        self._blocks: list[StepSeries] = []
        self._epochs: list[Epoch] = []
        self._rows: list[tuple[float, int, list[dict[str, float]]]] = []
        self._losses = torch.zeros(BLOCK)
        self._sizes: list[int] = []

    def __repr__(self) -> str:
        steps = plural(sum(map(len, self._blocks)) + len(self._rows), "step")
        return f"Recorder({steps}, {plural(len(self._epochs), 'epoch')})"

    @property
    def steps(self) -> StepSeries:
        """All steps of the last fit so far."""
        self._blocks = [join_steps(self._blocks)]
        return join_steps([*self._blocks, self._block()]) if self._rows else self._blocks[0]

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The finished epochs of the last fit."""
        return tuple(self._epochs)

    def before_fit(self, learn: Learner) -> None:
        """Forget the last fit and start the clock."""
        self._blocks, self._epochs, self._rows = [], [], []
        self._losses = torch.zeros(BLOCK, device=learn.device)
        self._fit_start = self._committed = time.perf_counter()

    def before_epoch(self, learn: Learner) -> None:
        """Start the epoch's clock."""
        self._close_block(learn)  # what a cancelled epoch has left belongs to that epoch
        self._sizes = []
        self._epoch, self._first_step = learn.epoch, learn.step
        self._epoch_start = time.perf_counter()

    def after_step(self, learn: Learner) -> None:
        """Keep the loss and the hyperparameters that this step was made with."""
        stepper = learn.stepper
        self._losses[len(self._rows)] = stepper.loss
        hypers = [read_hypers(group) for group in learn.optimizer.param_groups]
        now = time.perf_counter()
        self._rows.append((now - self._fit_start, learn.step, hypers))
        self._sizes.append(0 if stepper.skipped else stepper.n_items)
        if learn.sink is not None and now - self._committed > HANDOVER_S:
            self._commit(learn)
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
        if not any(self._sizes):
            return float("nan")
        losses, sizes = self.steps.loss[-len(self._sizes) :], np.array(self._sizes)
        made = sizes > 0  # the loss of a step that fp16 skipped may not be finite
        return float(np.average(losses[made], weights=sizes[made]))

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
        self._blocks.append(block)
        if learn.sink is not None:
            learn.sink.write_steps(block)

    def _commit(self, learn: Learner) -> None:
        self._close_block(learn)
        self._committed = time.perf_counter()
        if learn.sink is not None:
            learn.sink.flush()
