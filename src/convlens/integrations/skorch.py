# pyright: basic, reportIncompatibleMethodOverride=false
"""`WatchCallback`: watches the module that a skorch ``NeuralNet`` trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlens.errors import MissingLibraryError
from convlens.integrations.watched_fit import WatchedFit
from convlens.watching import ActivationWatch
from convlens.watching.layer_selection import Layers

try:
    from skorch.callbacks import Callback
except ImportError as error:
    raise MissingLibraryError(
        f"convlens.integrations.skorch needs skorch, which cannot be imported ({error}); install "
        "it with: pip install skorch"
    ) from error

if TYPE_CHECKING:
    from skorch import NeuralNet


class WatchCallback(Callback):
    """Records every training batch of ``net.fit``: layers, loss, rates, and the epochs' metrics.

        watch = WatchCallback(run="auto")
        NeuralNetClassifier(Net, callbacks=[watch]).fit(x, y)
        print(cl.diagnose(watch))

    The metrics are those of ``net.history``. Each fit begins anew. skorch tells its callbacks of no
    exception: the run of a fit that raised is closed as failed when the next begins, else it is
    one that crashed.

    Args:
        layers, run, eps, every, sample, gradients, updates: see `convlens.watch`.

    Attributes:
        run_path: the last fit's run, None without one.
    """

    def __init__(
        self,
        layers: Layers = "trainable",
        run: str | Path | None = None,
        eps: float = 0.05,
        every: int = 1,
        sample: float = 1.0,
        gradients: bool = False,
        updates: bool = False,
    ) -> None:
        self.layers, self.run, self.eps, self.every = layers, run, eps, every
        self.sample, self.gradients, self.updates = sample, gradients, updates
        self._fit_: WatchedFit | None = None  # skorch takes other names for parameters

    def __getstate__(self) -> dict[str, Any]:
        """Without the watcher, so that the net can be copied and pickled."""
        return {**vars(self), "_fit_": None}

    @property
    def stats(self) -> ActivationWatch:
        """The watcher of the last fit; an `ArgumentError` if there was none."""
        return self._watched().stats

    @property
    def run_path(self) -> Path | None:
        """The last fit's run, None without one."""
        return None if self._fit_ is None else self._fit_.run_path

    def _watched(self) -> WatchedFit:
        if self._fit_ is None:
            names = ("eps", "every", "sample", "gradients", "updates")
            options = {name: getattr(self, name) for name in names}
            self._fit_ = WatchedFit("WatchCallback", self.layers, self.run, options)
        return self._fit_

    def on_train_begin(self, net: NeuralNet, **_: object) -> None:
        """Attach the hooks."""
        self._watched().begin(net.module_)

    def on_batch_begin(self, net: NeuralNet, training: bool = False, **_: object) -> None:  # noqa: ARG002
        """Begin a step."""
        if training:
            self.stats.step()

    def on_batch_end(
        self,
        net: NeuralNet,  # noqa: ARG002
        batch: object = None,
        training: bool = False,
        loss: object = None,
        **_: object,
    ) -> None:
        """Log the batch's loss."""
        if training:
            self._watched().log(loss, batch)

    def on_epoch_end(self, net: NeuralNet, **_: object) -> None:
        """Log the epoch's numbers."""
        newest: Any = net.history[-1]
        row = {name: v for name, v in newest.items() if not _is_kept_apart(name)}
        self._watched().log_epoch(row)

    def on_train_end(self, net: NeuralNet, **_: object) -> None:  # noqa: ARG002
        """Remove the hooks and write what is left."""
        self._watched().end()


def _is_kept_apart(name: str) -> bool:
    """Whether a column of skorch's history is no metric."""
    return name in ("epoch", "dur", "batches") or name.endswith(("_best", "_batch_count"))
