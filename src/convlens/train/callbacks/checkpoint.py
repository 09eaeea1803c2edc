"""`Checkpoint`: saves weights and optimizer after every epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convlens.core.background import Notices
from convlens.errors import ConvlensError
from convlens.runs import RunWriter
from convlens.runs.checkpoints import save_checkpoint
from convlens.train.callbacks.base import Callback

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class Checkpoint(Callback):
    """Saves weights and optimizer after every epoch; the newest replaces the one before.

    It saves before the validation, so that an error there does not cost the epoch.
    """

    order = -90  # before callbacks that validate with other weights, such as a running mean

    def __init__(self) -> None:
        self._notices = Notices()

    def before_validation(self, learn: Learner) -> None:
        """Save to the run's folder ``checkpoints``."""
        self._save(learn)

    def after_epoch(self, learn: Learner) -> None:
        """Save where there is no validation."""
        if learn.dls.valid is None:
            self._save(learn)

    def _save(self, learn: Learner) -> None:
        if learn.sink is None or learn.run_path is None:
            return
        folder = learn.run_path / "checkpoints"
        if isinstance(learn.sink, RunWriter) and not learn.sink.is_in_place:
            self._notices.say("moved", f"No checkpoint is saved in {str(folder)!r}: it is gone.")
            return
        facts = {"epoch": learn.epoch, "step": learn.step}
        try:
            save_checkpoint(folder, learn.model, learn.optimizer, facts, keep=1)
        except ConvlensError as error:
            self._notices.say(
                "failed", f"The checkpoint of epoch {learn.epoch} is not saved. {error}"
            )
        else:
            self._notices.over(f"Checkpoints are saved in {str(folder)!r} again.")
