"""`WatchedFit`: what the callbacks of all libraries share: a watched model, logged numbers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from convlens.checking.batches import split
from convlens.errors import ArgumentError
from convlens.runs.watched_run import record_watch
from convlens.watching import ActivationWatch
from convlens.watching.layer_selection import Layers

VALIDATION_LOSS = re.compile(r"(val|valid|validation|eval|test)[_/.]?loss", re.IGNORECASE)


class WatchedFit:
    """Watches the model of one fit after the other, and logs what the trainer says of it.

    Args:
        owner: the callback's class, for messages.
        layers, run, options: see `convlens.watch`.

    Attributes:
        run_path: the newest fit's run, None without one.
        is_epoch_open: whether there is an epoch that `end_epoch` is to end.
    """

    def __init__(
        self, owner: str, layers: Layers, run: str | Path | None, options: Mapping[str, Any]
    ) -> None:
        if "mode" in options:
            raise ArgumentError(
                f"{owner} takes no mode: it records what training batches run, in any mode."
            )
        self._options: dict[str, Any] = {
            **options,
            "count_forwards": False,
        }  # the trainer says which step begins
        inspect.signature(ActivationWatch).bind(None, layers, **self._options)
        self._owner, self._layers, self._run = owner, layers, run
        self._stats: ActivationWatch | None = None
        self._metrics: dict[str, object] = {}
        self.is_epoch_open = False
        self.run_path: Path | None = None

    def __repr__(self) -> str:
        return f"{self._owner}({self._stats or 'nothing recorded yet'}, run={self.run_path})"

    @property
    def stats(self) -> ActivationWatch:
        """The watcher of the last fit.

        Raises:
            ArgumentError: if nothing has been fitted yet.
        """
        if self._stats is None:
            raise ArgumentError(
                f"{self._owner} holds nothing yet; train with it in this process first."
            )
        return self._stats

    @property
    def has_begun(self) -> bool:
        """Whether a fit was watched."""
        return self._stats is not None

    def begin(self, model: nn.Module) -> ActivationWatch:
        """A fit begins; one that has not ended has failed."""
        self.end(RuntimeError("the fit ended with an exception that was not seen"))
        stats = ActivationWatch(model, self._layers, flush_sink=True, rates=True, **self._options)
        self.run_path = None if self._run is None else record_watch(stats, self._run)
        self._metrics, self.is_epoch_open = {}, False
        self._stats = stats.attach()
        return stats

    def end(self, error: BaseException | None = None) -> None:
        """Remove the hooks and close the run; a second time changes nothing."""
        if self._stats is not None:
            self._stats.detach(error)

    def log(self, loss: object, batch: object = None) -> None:
        """Log the current step's loss, if it is a number, and look at the batch's targets."""
        if is_number(loss):
            self.stats.log(loss=loss)  # pyright: ignore[reportArgumentType]
        target = target_of(batch)
        if target is not None:
            self.stats.log(target=target)

    def log_epoch(self, metrics: Mapping[str, object]) -> None:
        """End an epoch with those metrics that are numbers; the loss of a validation is found."""
        named = {_name(str(name)): v for name, v in metrics.items() if is_number(v)}
        self.stats.log_epoch(**named)  # pyright: ignore[reportArgumentType]

    def evaluated(self, metrics: Mapping[str, object]) -> None:
        """Keep an evaluation's metrics for `end_epoch`; its loss is that of the validation."""
        self._metrics |= {"valid_loss" if n == "loss" else n: v for n, v in metrics.items()}

    def end_epoch(self) -> None:
        """Log the open epoch, where evaluations come after its end, with their metrics."""
        if self.is_epoch_open:
            self.log_epoch(self._metrics)
        self._metrics, self.is_epoch_open = {}, False


class ShowsFit:
    """What a callback that watches has for its user."""

    _fit: WatchedFit

    def __repr__(self) -> str:
        return repr(self._fit)

    @property
    def stats(self) -> ActivationWatch:
        """The watcher of the last fit; an `ArgumentError` if there was none."""
        return self._fit.stats

    @property
    def run_path(self) -> Path | None:
        """The last fit's run, None without one."""
        return self._fit.run_path


def is_number(value: object) -> bool:
    """Whether `convlens.watch`'s log takes it; NaN is one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and not value.is_meta
    one = isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiub"
    return one or (isinstance(value, Real) and value is not True and value is not False)


def target_of(batch: object) -> Tensor | None:
    """The targets of a batch: the second of two, or what a dictionary calls so."""
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    found = split(batch)[1] if is_pair or isinstance(batch, Mapping) else None
    return found if isinstance(found, Tensor) else None


def _name(name: str) -> str:
    if VALIDATION_LOSS.fullmatch(name):
        return "valid_loss"
    return "train_loss" if name in ("loss", "train_loss_epoch", "train/loss") else name
