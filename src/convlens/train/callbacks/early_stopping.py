"""`EarlyStopping`: ends a fit when a metric has stopped improving."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convlens.core.argument_checks import check_whole
from convlens.core.wording import plural
from convlens.train.callbacks.base import Callback, CancelFitError
from convlens.train.callbacks.monitored_metric import MonitoredMetric

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class EarlyStopping(Callback):
    """Ends the fit when a metric has not improved for some epochs.

    The run's status is ``"stopped"``; the reason is printed and in its metadata. The weights are
    those of the last epoch: give `BestCheckpoint` too for those of the best.

        >>> x, y = torch.randn(8, 1, 4, 4), torch.tensor([0, 1] * 4)
        >>> dls = cl.DataLoaders([(x, y)], [(x, y)], name="noise")
        >>> stopping = cl.EarlyStopping("valid_loss", patience=1, min_delta=100.0)
        >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), callbacks=[stopping], run=None)
        >>> learn.fit(5)  # doctest: +ELLIPSIS
        epoch 1/5 ...
        epoch 2/5 ...
        stopped: valid_loss has not improved on ... (epoch 1) for 1 epoch

    Args:
        metric: ``"valid_loss"``, ``"train_loss"``, or the name of one of the Learner's metrics.
        patience: epochs without an improvement, at least 1.
        min_delta: what an improvement has to be more than.
        mode: ``"min"`` or ``"max"``; None where the name says it: losses and errors are to be
            small, accuracy, F1, AUROC and the like large.

    Raises:
        ArgumentError: if an argument cannot work; at the start of a fit if it does not measure the
            metric.
    """

    order = 90  # last: it ends the epoch for those after it

    def __init__(
        self,
        metric: str = "valid_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: str | None = None,
    ) -> None:
        check_whole("patience", patience, 1)
        self._monitored = MonitoredMetric(metric, mode, min_delta)
        self.patience, self._since = patience, 0

    def __repr__(self) -> str:
        return f"EarlyStopping({self._monitored.name!r}, patience={self.patience})"

    def before_fit(self, learn: Learner) -> None:
        """Start over."""
        self._monitored.start(learn)
        self._since = 0

    def after_epoch(self, learn: Learner) -> None:
        """Count the epochs without an improvement, and end the fit."""
        self._since = 0 if self._monitored.update(learn) else self._since + 1
        if self._since < self.patience:
            return
        best = self._monitored.best
        on = "" if best is None else f" on {best:.4g} (epoch {self._monitored.epoch + 1})"
        raise CancelFitError(
            f"{self._monitored.name} has not improved{on} for {plural(self._since, 'epoch')}"
        )
