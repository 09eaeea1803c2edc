"""`Checkpoint`: saves weights and optimizer after every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from convlens.core.background import Notices
from convlens.errors import ConvlensError
from convlens.runs import RunWriter
from convlens.runs.checkpoints import CHECKPOINTS, save_checkpoint
from convlens.train.callbacks.base import Callback

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class FolderOfRun:
    """A folder of the run that keeps one checkpoint; what goes wrong is warned of, once.

    Args:
        name: of the folder.
    """

    def __init__(self, name: str) -> None:
        self._name, self._notices = name, Notices()

    def save(
        self,
        learn: Learner,
        optimizer: Optimizer | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Path | None:
        """Replace the checkpoint by the model as it is; None if there is no run or it failed."""
        if learn.sink is None or learn.run_path is None:
            return None
        folder = learn.run_path / self._name
        if isinstance(learn.sink, RunWriter) and not learn.sink.is_in_place:
            self._notices.say("moved", f"No checkpoint is saved in {str(folder)!r}: it is gone.")
            return None
        facts = {"epoch": learn.epoch, "step": learn.step, **(facts or {})}
        try:
            path = save_checkpoint(folder, learn.model, optimizer, facts, keep=1)
        except ConvlensError as error:
            self._notices.say(
                "failed", f"The checkpoint of epoch {learn.epoch} is not saved. {error}"
            )
            return None
        self._notices.over(f"Checkpoints are saved in {str(folder)!r} again.")
        return path


class Checkpoint(Callback):
    """Saves weights and optimizer after every epoch; the newest replaces the one before.

    It saves before the validation, so that an error there does not cost the epoch.
    """

    order = -90  # before callbacks that validate with other weights, such as a running mean

    def __init__(self) -> None:
        self._folder = FolderOfRun(CHECKPOINTS)

    def before_validation(self, learn: Learner) -> None:
        """Save to the run's folder ``checkpoints``."""
        self._folder.save(learn, learn.optimizer)

    def after_epoch(self, learn: Learner) -> None:
        """Save where there is no validation."""
        if learn.dls.valid is None:
            self._folder.save(learn, learn.optimizer)
