"""`WatchCallback`: watches the model that a Lightning ``Trainer`` trains."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlens.errors import ArgumentError, MissingLibraryError
from convlens.runs.watched_run import record_watch
from convlens.watching import ActivationWatch
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


class WatchCallback(Callback):
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
        if "mode" in options:
            raise ArgumentError(
                "WatchCallback takes no mode: it records what training batches run, in any mode."
            )
        options["count_forwards"] = False  # the trainer says which step begins
        inspect.signature(ActivationWatch).bind(None, layers, **options)
        self._layers, self._module, self._run, self._options = layers, module, run, options
        self._stats: ActivationWatch | None = None
        self.run_path: Path | None = None

    def __repr__(self) -> str:
        return f"WatchCallback({self._stats or 'nothing recorded yet'}, run={self.run_path})"

    @property
    def stats(self) -> ActivationWatch:
        """The watcher of the last fit.

        Raises:
            ArgumentError: if nothing has been fitted yet.
        """
        if self._stats is None:
            raise ArgumentError(
                "WatchCallback holds nothing yet; give it to a Trainer and call trainer.fit(…) in "
                "this process."
            )
        return self._stats

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Attach the hooks."""
        root = pl_module if self._module is None else pl_module.get_submodule(self._module)
        stats = ActivationWatch(root, self._layers, flush_sink=True, **self._options)
        self.run_path = None if self._run is None else record_watch(stats, self._run)
        self._stats = stats.attach()

    def on_train_batch_start(self, trainer: Trainer, *_: object, **__: object) -> None:
        """Say which step the batch belongs to; the same step again adds to its column."""
        self.stats.step(trainer.global_step)
        self.stats.enter()

    def on_train_batch_end(self, *_: object, **__: object) -> None:
        """Count nothing that runs between batches."""
        self.stats.leave()

    def on_train_epoch_end(self, *_: object, **__: object) -> None:
        """The same for a batch that the module skipped: it ends the epoch, but has no end."""
        self.stats.leave()

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
        if self._stats is not None:
            self._stats.detach(error)
