"""The callbacks that watch a `Learner`'s model: activations, gradients, updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from convlens.core.histories import LayerHistory, LayerInfo, UpdateHistory
from convlens.core.records import Epoch
from convlens.errors import ArgumentError
from convlens.plots import LayerHistories, UpdateHistories
from convlens.train.callbacks import Callback
from convlens.train.recorder import Recorder
from convlens.watching import ActivationWatch
from convlens.watching.arguments import check_eps, check_every, check_sample
from convlens.watching.cost import Cost
from convlens.watching.layer_selection import Layers
from convlens.watching.parameters import EPS, ParameterWatch

if TYPE_CHECKING:
    from convlens.train.learner import Learner

NOTHING_YET = "{} holds nothing yet: call learn.fit(…) or learn.fit_one_cycle(…) first."


class ActivationStats(Callback, LayerHistories):
    """Statistics of what each layer puts out, at every training batch, exact.

    ``learn.activation_stats[-2]`` is the `LayerHistory` of the last layer but one, and
    ``learn.activation_stats["0.0"]`` that of a module by its name. It holds one fit: the next fit
    begins anew.

    Args:
        layers: ``"trainable"``, ``"all"``, or names, modules and module classes.
        eps: a value with |x| ≤ eps is near zero.
        every: watch only each n-th step; 1 watches all.
        sample: look at this fraction of each batch's images only; 1 looks at all.
    """

    order = -10

    def __init__(
        self,
        layers: Layers = "trainable",
        *,
        eps: float = 0.05,
        every: int = 1,
        sample: float = 1.0,
    ) -> None:
        check_eps(eps)
        check_every(every)
        check_sample(sample)
        self._layers, self._eps, self._every, self._sample = layers, eps, every, sample
        self._watch: ActivationWatch | None = None
        self._recorder: Recorder | None = None

    @property
    def watch(self) -> ActivationWatch:
        """The watcher of the last fit.

        Raises:
            ArgumentError: if nothing has been fitted yet.
        """
        if self._watch is None:
            raise ArgumentError(NOTHING_YET.format("activation_stats"))
        return self._watch

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """The watched layers, in order of the model's modules."""
        return self.watch.layers

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The finished epochs, for marking them in plots."""
        return () if self._recorder is None else self._recorder.epochs

    @property
    def cost(self) -> Cost:
        """What watching has cost in the last fit, measured in it."""
        return self.watch.cost

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
            sample=self._sample,
            count_forwards=False,
            sink=learn.sink,
            flush_sink=True,
        ).attach()

    def before_batch(self, learn: Learner) -> None:
        """Say which step the batch belongs to."""
        if learn.training:
            self.watch.step(learn.step)

    def after_step(self, learn: Learner) -> None:  # noqa: ARG002
        """Have readers of the run see the step."""
        self.watch.step_done()

    def before_validation(self, learn: Learner) -> None:  # noqa: ARG002
        """Write the last columns, as validation may take its time."""
        self.watch.flush()

    def after_epoch(self, learn: Learner) -> None:  # noqa: ARG002
        """Write the finished columns."""
        self.watch.flush()

    def after_fit(self, learn: Learner) -> None:  # noqa: ARG002
        """Remove the hooks and write what is left."""
        if self._watch is not None:
            self._watch.detach()


class _ParameterStats(Callback):
    """What `GradientStats` and `UpdateStats` share: a watcher of parameters for each fit."""

    order = -10
    _gradients = _updates = False

    def __init__(self, *, every: int = 1, eps: float = EPS) -> None:
        check_every(every)
        check_eps(eps)
        self._every, self._eps = every, eps
        self._watch: ParameterWatch | None = None
        self._recorder: Recorder | None = None

    @property
    def watch(self) -> ParameterWatch:
        """The watcher of the last fit.

        Raises:
            ArgumentError: if nothing has been fitted yet.
        """
        if self._watch is None:
            raise ArgumentError(NOTHING_YET.format(self.attribute()))
        return self._watch

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The finished epochs, for marking them in plots."""
        return () if self._recorder is None else self._recorder.epochs

    def before_fit(self, learn: Learner) -> None:
        """Listen to the optimizer."""
        self._recorder = learn.recorder
        self._watch = ParameterWatch(
            learn.model,
            gradients=self._gradients,
            updates=self._updates,
            eps=self._eps,
            sink=learn.sink,
            flush_sink=True,
        )
        self._watch.attach()

    def before_batch(self, learn: Learner) -> None:
        """Say which step the batch belongs to."""
        if not learn.training:
            return
        if learn.step % self._every:
            self.watch.pause()
        else:
            self.watch.begin(learn.step)

    def before_validation(self, learn: Learner) -> None:  # noqa: ARG002
        """Write the last columns, as validation may take its time."""
        self.watch.flush()

    def after_epoch(self, learn: Learner) -> None:  # noqa: ARG002
        """Write the finished columns."""
        self.watch.flush()

    def after_fit(self, learn: Learner) -> None:  # noqa: ARG002
        """Listen no longer and write what is left."""
        if self._watch is not None:
            self._watch.detach()


class GradientStats(_ParameterStats, LayerHistories):
    """Statistics of each parameter's gradient, right before each optimizer's step, exact.

    ``learn.gradient_stats["0.0.weight"].norm`` is the gradient's length at each step. Gradients
    that several batches add up are counted once, without the scale of mixed precision. It holds one
    fit: the next fit begins anew.

    Args:
        every: look only at each n-th step; 1 looks at all.
        eps: a gradient with |g| ≤ eps is near zero.
    """

    _gradients = True

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """The parameters that need a gradient, in the model's order."""
        return self.watch.gradients.layers

    def history(self, index: int) -> LayerHistory:
        """Everything recorded of one parameter's gradient so far."""
        return self.watch.gradients.history(index)


class UpdateStats(_ParameterStats, UpdateHistories):
    """What each optimizer's step adds to each parameter, and the parameter before it.

    ``learn.update_stats["0.0.weight"].ratio`` is ‖Δw‖/‖w‖ at each step; a thousandth is a common
    size. It keeps a copy of the parameters. It holds one fit: the next fit begins anew.

    Args:
        every: look only at each n-th step; 1 looks at all.
        eps: a change with |Δw| ≤ eps is near zero.
    """

    _updates = True

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """The parameters that need a gradient, in the model's order."""
        return self.watch.updates.layers

    def history(self, index: int) -> UpdateHistory:
        """Everything recorded of one parameter's updates so far."""
        return self.watch.updates.history(index)
