"""The callbacks that watch a `Learner`'s model: activations, gradients, updates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from convlens.core.histories import LayerHistory, LayerInfo, UpdateHistory
from convlens.core.layer_histories import LayerHistories, UpdateHistories
from convlens.core.records import Epoch
from convlens.core.wording import plural
from convlens.errors import ArgumentError
from convlens.plots import LayerPlots
from convlens.train.callbacks.base import Callback
from convlens.watching import ActivationWatch
from convlens.watching.arguments import check_eps, check_every, check_sample
from convlens.watching.cost import Cost
from convlens.watching.layer_selection import Layers
from convlens.watching.parameter_watch import EPS, ParameterWatch

if TYPE_CHECKING:
    from convlens.train.callbacks.recorder import Recorder
    from convlens.train.learner import Learner

W = TypeVar("W", ActivationWatch, ParameterWatch)


class _WatchCallback(Callback, Generic[W]):
    """Attaches a watcher for each fit; the last fit's remains readable."""

    order = -10

    def __init__(self) -> None:
        self._watch: W | None = None
        self._recorder: Recorder | None = None

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._watch is None:
            return f"{name}(nothing fitted yet)"
        n_layers, n_epochs = len(self.layers), len(self.epochs)
        return f"{name}({plural(n_layers, 'layer')}, {plural(n_epochs, 'epoch')})"

    @property
    @abstractmethod
    def layers(self) -> Sequence[LayerInfo]: ...

    @property
    def watch(self) -> W:
        """The watcher of the last fit.

        Raises:
            ArgumentError: if nothing has been fitted yet.
        """
        if self._watch is None:
            raise ArgumentError(
                f"{self.attribute()} holds nothing yet: call learn.fit(…) or "
                "learn.fit_one_cycle(…) first."
            )
        return self._watch

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The finished epochs, for marking them in plots."""
        return () if self._recorder is None else self._recorder.epochs

    @abstractmethod
    def _make_watch(self, learn: Learner) -> W: ...

    def _flush(self) -> None:
        self.watch.flush()

    def before_fit(self, learn: Learner) -> None:
        """Attach the hooks."""
        self._recorder = learn.recorder
        self._watch = self._make_watch(learn)
        self._watch.attach()

    def before_validation(self, learn: Learner) -> None:  # noqa: ARG002
        """Write the last columns, as validation may take long."""
        self._flush()

    def after_epoch(self, learn: Learner) -> None:  # noqa: ARG002
        """Write the finished columns."""
        self._flush()

    def after_fit(self, learn: Learner) -> None:  # noqa: ARG002
        """Remove the hooks and write what is left."""
        if self._watch is not None:
            self._watch.detach()


class ActivationStats(_WatchCallback[ActivationWatch], LayerPlots, LayerHistories):
    """Exact statistics of each layer's output at every training batch.

    ``learn.activation_stats[-2]`` is the `LayerHistory` of the last layer but one, and
    ``learn.activation_stats["0.0"]`` that of a module by its name. It holds one fit; the next fit
    starts over.

        >>> cl.ActivationStats(every=10)
        ActivationStats(nothing fitted yet)

    Args:
        layers: ``"trainable"``, ``"all"``, or names, modules and module classes.
        eps: a value with |x| ≤ eps is near zero.
        every: watch only each n-th step; 1 watches all.
        sample: look at this fraction of each batch's images only; 1 looks at all.
    """

    def __init__(
        self,
        layers: Layers = "trainable",
        *,
        eps: float = 0.05,
        every: int = 1,
        sample: float = 1.0,
    ) -> None:
        super().__init__()
        check_eps(eps)
        check_every(every)
        check_sample(sample)
        self._layers, self._eps, self._every, self._sample = layers, eps, every, sample

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """The watched layers, in order of the model's modules."""
        return self.watch.layers

    @property
    def cost(self) -> Cost:
        """The measured cost of watching in the last fit."""
        return self.watch.cost

    def history(self, index: int) -> LayerHistory:
        """Everything recorded of one layer so far."""
        return self.watch.history(index)

    def before_batch(self, learn: Learner) -> None:
        """Say which step the batch belongs to."""
        if learn.training:
            self.watch.step(learn.step)

    def before_loss(self, learn: Learner) -> None:
        """Look at the range of the targets now and then."""
        if learn.training:
            self.watch.log(target=learn.y)

    def after_step(self, learn: Learner) -> None:  # noqa: ARG002
        """Have readers of the run see the step."""
        self.watch.step_done()

    def _make_watch(self, learn: Learner) -> ActivationWatch:
        return ActivationWatch(
            learn.model,
            self._layers,
            eps=self._eps,
            every=self._every,
            sample=self._sample,
            count_forwards=False,
            sink=learn.sink,
            flush_sink=True,
        )


class _ParameterStats(_WatchCallback[ParameterWatch]):
    """Base of `GradientStats` and `UpdateStats`."""

    _gradients = _updates = False

    def __init__(self, *, every: int = 1, eps: float = EPS) -> None:
        super().__init__()
        check_every(every)
        check_eps(eps)
        self._every, self._eps = every, eps
        self._begun = -1  # the last step whose first batch was seen

    def before_fit(self, learn: Learner) -> None:
        """Attach the hooks."""
        self._begun = -1
        super().before_fit(learn)

    def before_batch(self, learn: Learner) -> None:
        """Say which step the batch belongs to."""
        if not learn.training or learn.step == self._begun:  # another batch of the same step
            return
        self._begun = learn.step
        if learn.step % self._every:
            self.watch.pause()
        else:
            self.watch.begin(learn.step)

    def _make_watch(self, learn: Learner) -> ParameterWatch:
        return ParameterWatch(
            learn.model,
            gradients=self._gradients,
            updates=self._updates,
            eps=self._eps,
            sink=learn.sink,
            flush_sink=True,
        )


class GradientStats(_ParameterStats, LayerPlots, LayerHistories):
    """Exact statistics of each parameter's gradient, right before each optimizer step.

    ``learn.gradient_stats["0.0.weight"].norm`` is the gradient's norm at each step. Gradients
    accumulated over several batches are counted once, without the scale of mixed precision. It
    holds one fit; the next fit starts over.

        >>> cl.GradientStats()
        GradientStats(nothing fitted yet)

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
    """Statistics of what each optimizer step adds to each parameter.

    ``learn.update_stats["0.0.weight"].ratio`` is ‖Δw‖/‖w‖ at each step; about 0.001 is common. It
    keeps a copy of the parameters. It holds one fit; the next fit starts over.

        >>> cl.UpdateStats(every=2)
        UpdateStats(nothing fitted yet)

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
