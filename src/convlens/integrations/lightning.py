"""`WatchCallback`: watches the model that a Lightning ``Trainer`` trains."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from convlens.errors import MissingLibraryError
from convlens.integrations.watched_fit import ShowsFit, WatchedFit
from convlens.watching.layer_selection import Layers

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    # Lightning has two names whose classes do not mix: take the one that is already imported.
    try:
        if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
            from pytorch_lightning import Callback
        else:
            from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise MissingLibraryError(
                "convlens.integrations.lightning needs Lightning, which cannot be imported "
                f"({error}); install it with: pip install lightning"
            ) from error


class WatchCallback(ShowsFit, Callback):
    """Records statistics of each layer's output at every optimizer step of a ``Trainer``, exactly.

        watch = WatchCallback(run="auto")
        Trainer(callbacks=[watch]).fit(model, loader)
        watch.stats["model.conv1"].near_zero   # one array over the steps

    A step is one of ``trainer.global_step``: all batches whose gradients it accumulates are one
    column. Everything that a training batch runs is counted, whether ``training_step`` calls the
    module or parts of it; validation, sanity check, test and prediction are not. With manual
    optimization, a batch belongs to the step that ``global_step`` shows when it begins. A callback
    holds one fit: the next begins anew. What could not be seen is in ``stats.notes``, with one
    warning.

    The loss that ``training_step`` returns, the learning rates, and at each epoch's end the metrics
    that the module logs are recorded too: ``self.log("val_loss", …)`` is the validation loss.

    With ``gradients=True`` a step has the gradient that the optimizer gets: accumulated, clipped
    and without the scale of mixed precision. A compiled module is compiled again after the first
    step, which finds the layers before a ReLU.

    With several processes each rank watches its own part of the batch. ``stats`` is this rank's;
    reading the run adds all ranks up.

    Args:
        layers: ``"trainable"``, ``"all"``, or names, modules and module classes.
        module: the qualified name of the submodule to watch, such as ``"model"``; layers are named
            from there. None watches the whole ``LightningModule``.
        run: None keeps everything in memory; ``"auto"`` records to a new directory
            ``runs/watch-0001``; a path names the directory. It is closed as finished when training
            ends, as stopped by Ctrl-C or SIGTERM, as failed by any other exception.
        options: further options of `convlens.watch`, such as ``eps`` and ``every``.

    Attributes:
        run_path: the run's directory, None without one.

    Raises:
        TypeError: if `convlens.watch` has no such option.
        ArgumentError: if ``options`` has ``mode``.
    """

    def __init__(
        self,
        layers: Layers = "trainable",
        *,
        module: str | None = None,
        run: str | Path | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        self._fit, self._module = WatchedFit("WatchCallback", layers, run, options), module
        self._losses: tuple[int, Tensor | float] = -1, 0.0  # of a step: what was added up so far
        self._validation: AbstractContextManager[None] | None = None
        self._was_validated, self._step = False, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Attach the hooks."""
        root = pl_module if self._module is None else pl_module.get_submodule(self._module)
        self._losses, self._was_validated = (-1, 0.0), False
        self._fit.begin(root)

    def on_train_batch_start(self, trainer: Trainer, *_: object, **__: object) -> None:
        """Say which step the batch belongs to; the same step again adds to its column."""
        self._step = trainer.global_step
        self.stats.step(self._step)
        self.stats.enter()

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        *_: object,
        **__: object,
    ) -> None:
        """Count nothing that runs between batches, and log the batch's loss."""
        self.stats.leave()
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            step, before = self._losses
            if step == self._step and pl_module.automatic_optimization:
                loss = before + loss.detach()  # Lightning has divided it by their number
            self._losses = self._step, loss
        self._fit.log(loss, batch)

    def on_validation_start(self, trainer: Trainer, *_: object, **__: object) -> None:
        """Count what runs from here on as a validation."""
        if not trainer.sanity_checking and self._fit.has_begun:
            self._validation = self.stats.validation()
            self._validation.__enter__()

    def on_validation_end(self, *_: object, **__: object) -> None:
        """End that."""
        self._was_validated = self._validation is not None
        self._end_validation()

    def on_train_epoch_end(self, trainer: Trainer, *_: object, **__: object) -> None:
        """Log the epoch's metrics; a batch that the module skipped has no end, but this."""
        self.stats.leave()
        found = {name: v for name, v in trainer.callback_metrics.items() if _is_of_epoch(name)}
        if not self._was_validated:  # those of an earlier epoch
            found = {name: v for name, v in found.items() if not name.startswith("val")}
        self._was_validated = False
        self._fit.log_epoch(found)

    def on_train_end(self, *_: object, **__: object) -> None:
        """Remove the hooks and write what is left."""
        self._detach(None)

    def teardown(self, *_: object, **__: object) -> None:
        """The same if training ended without `on_train_end`, as in Lightning's tuner."""
        self._detach(None)

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        """The same, and close the run as failed or stopped."""
        self._detach(exception)

    def _detach(self, error: BaseException | None) -> None:
        self._end_validation()
        self._fit.end(error)

    def _end_validation(self) -> None:
        if self._validation is not None:
            self._validation.__exit__(None, None, None)
            self._validation = None


def _is_of_epoch(name: str) -> bool:
    """Whether Lightning's metric is one of the whole epoch: of a batch's there is the loss."""
    return not name.endswith("_step")
