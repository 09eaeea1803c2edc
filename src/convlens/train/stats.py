"""`ActivationStats`: the callback that watches every layer of a `Learner`'s model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from convlens.errors import ArgumentError
from convlens.plots import LayerHistories
from convlens.records import Epoch, LayerHistory, LayerInfo
from convlens.train.callbacks import Callback
from convlens.train.recorder import Recorder
from convlens.watching import ActivationWatch
from convlens.watching.probes import Layers

if TYPE_CHECKING:
    from convlens.train.learner import Learner


class ActivationStats(Callback, LayerHistories):
    """Statistics of what each layer puts out, at every training batch, exact.

    ``learn.activation_stats[-2]`` is the `LayerHistory` of the last layer but one, and
    ``learn.activation_stats["0.0"]`` that of a module by its name. It holds one fit: the next fit
    begins anew.

    Args:
        layers: ``"trainable"``, ``"all"``, or names, modules and module classes.
        eps: a value with |x| ≤ eps is near zero.
        every: watch only each n-th step; 1 watches all.
    """

    order = -10

    def __init__(self, layers: Layers = "trainable", *, eps: float = 0.05, every: int = 1) -> None:
        self._layers, self._eps, self._every = layers, eps, every
        self._watch: ActivationWatch | None = None
        self._recorder: Recorder | None = None

    @property
    def watch(self) -> ActivationWatch:
        """The watcher of the last fit.

        Raises:
            ArgumentError: if nothing has been fitted yet.
        """
        if self._watch is None:
            raise ArgumentError(
                "activation_stats holds nothing yet: call learn.fit(…) or "
                "learn.fit_one_cycle(…) first."
            )
        return self._watch

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """The watched layers, in order of the model's modules."""
        return self.watch.layers

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The finished epochs, for marking them in plots."""
        return () if self._recorder is None else self._recorder.epochs

    def history(self, index: int) -> LayerHistory:
        """Everything recorded of one layer so far."""
        return self.watch.history(index)

    def before_fit(self, learn: Learner) -> None:
        """Attach the hooks."""
        self._recorder = learn.recorder
        self._watch = ActivationWatch(
            learn.model,
            self._layers,
            eps=self._eps,
            every=self._every,
            count_forwards=False,
            sink=learn.sink,
        ).attach()

    def before_batch(self, learn: Learner) -> None:
        """Say which step the batch belongs to."""
        if learn.training:
            self.watch.step(learn.step)

    def after_epoch(self, learn: Learner) -> None:
        """Write the finished columns."""
        self.watch.flush()
        if learn.sink is not None:
            learn.sink.flush()

    def after_fit(self, learn: Learner) -> None:  # noqa: ARG002
        """Remove the hooks and write what is left."""
        if self._watch is not None:
            self._watch.detach()
