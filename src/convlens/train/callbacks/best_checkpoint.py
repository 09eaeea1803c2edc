"""`BestCheckpoint`: keeps the weights of the epoch that was best by a metric."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from convlens.errors import ConvlensError, warn
from convlens.runs.checkpoints import BEST, load_checkpoint
from convlens.train.callbacks.base import Callback
from convlens.train.callbacks.checkpoint import FolderOfRun
from convlens.train.callbacks.ema import EMA
from convlens.train.callbacks.monitored_metric import MonitoredMetric

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class BestCheckpoint(Callback):
    """Keeps the weights of the epoch that was best by a metric, and puts them back after the fit.

    What is kept are the weights that were validated: with `EMA` the average. They are in the run's
    folder ``best``; without a run, or where that cannot be written, in memory.

        >>> x, y = torch.randn(8, 1, 4, 4), torch.tensor([0, 1] * 4)
        >>> dls = cl.DataLoaders([(x, y)] * 3, [(x, y)], name="noise")
        >>> best = cl.BestCheckpoint("accuracy")
        >>> learn = cl.Learner(
        ...     dls, cl.simple_cnn(1, 2), metrics=[cl.accuracy], callbacks=[best], run=None
        ... )
        >>> learn.fit(2)  # doctest: +ELLIPSIS
        epoch 1/2 ...
        epoch 2/2 ...
        >>> best.value == max(epoch.metrics["accuracy"] for epoch in learn.recorder.epochs)
        True

    Args:
        metric: ``"valid_loss"``, ``"train_loss"``, or the name of one of the Learner's metrics.
        mode: ``"min"`` or ``"max"``; None where the name says it: losses and errors are to be
            small, accuracy, F1, AUROC and the like large.
        restore: whether the best weights are put back at the end of the fit, unless an error ended
            it.

    Raises:
        ArgumentError: if an argument cannot work; at the start of a fit if it does not measure the
            metric.
    """

    order = -70  # after EMA has put its average into the model

    def __init__(
        self, metric: str = "valid_loss", mode: str | None = None, restore: bool = True
    ) -> None:
        self._monitored = MonitoredMetric(metric, mode)
        self.restore = restore
        self._folder = FolderOfRun(BEST)
        self._path: Path | None = None
        self._state: dict[str, Tensor] | None = None

    def __repr__(self) -> str:
        found = f", {self.value:.4g} at epoch {self.epoch + 1}" if self.value is not None else ""
        return f"BestCheckpoint({self._monitored.name!r}{found})"

    @property
    def value(self) -> float | None:
        """The best value of the last fit, None if there is none."""
        return self._monitored.best

    @property
    def epoch(self) -> int:
        """The epoch with the best value, counted from 0; -1 if there is none."""
        return self._monitored.epoch

    def before_fit(self, learn: Learner) -> None:
        """Start over."""
        self._monitored.start(learn)
        self._path = self._state = None

    def after_epoch(self, learn: Learner) -> None:
        """Keep the weights if they are the best so far."""
        if not self._monitored.update(learn):
            return
        facts = {"metric": self._monitored.name, "value": self.value}
        self._path, self._state = self._folder.save(learn, facts=facts), None
        if self._path is None and self.restore:
            state = learn.model.state_dict()
            self._state = {k: v.detach().cpu().clone() for k, v in state.items()}
        if learn.sink is not None:
            learn.sink.write_meta({"best": {**facts, "epoch": self.epoch}})

    def after_fit(self, learn: Learner) -> None:
        """Put the best weights back."""
        failed = learn.error is not None and not isinstance(learn.error, KeyboardInterrupt)
        if not self.restore or failed:
            return
        for callback in learn.active:
            if isinstance(callback, EMA):  # or its average would take their place
                callback.after_fit(learn)
        try:
            if self._path is not None:
                load_checkpoint(self._path, learn.model)
            elif self._state is not None:
                learn.model.load_state_dict(self._state)
        except ConvlensError as error:
            warn(f"The best weights are not put back; the last ones are in the model. {error}")
        self._state = None
