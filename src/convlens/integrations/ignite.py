"""`WatchHandler`: watches the model that an Ignite ``Engine`` trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from convlens.errors import MissingLibraryError
from convlens.integrations.watched_fit import ShowsFit, WatchedFit, is_number
from convlens.watching.layer_selection import Layers

try:
    from ignite.engine import Engine, Events
except ImportError as error:
    raise MissingLibraryError(
        "convlens.integrations.ignite needs Ignite, which cannot be imported "
        f"({error}); install it with: pip install pytorch-ignite"
    ) from error


class WatchHandler(ShowsFit):
    """Records every iteration of a trainer: layers, loss, rates, and the evaluators' metrics.

        watch = WatchHandler(model, run="auto")
        watch.attach(trainer, evaluator)
        trainer.run(loader, max_epochs=3)
        print(cl.diagnose(watch))

    Each run of the trainer begins anew. An epoch has the metrics that the evaluators computed since
    the one before it.

    Args:
        model: the module that the trainer's process function trains.
        layers, run, options: see `convlens.watch`.
        loss_of: takes an iteration's output and returns its loss; by default a number, what a
            dictionary calls ``loss``, or the last of several.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "trainable",
        *,
        run: str | Path | None = None,
        loss_of: Callable[[Any], object] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._model, self._loss_of = model, loss_of or _loss_of
        self._fit = WatchedFit("WatchHandler", layers, run, options)

    def attach(self, trainer: Engine, *evaluators: Engine) -> None:
        """Listen to a trainer, and to the evaluators whose metrics belong to its epochs."""
        on = trainer.add_event_handler
        on(Events.STARTED, self._started)
        on(Events.EPOCH_STARTED, self._epoch_started)
        on(Events.ITERATION_STARTED, self._iteration_started)
        on(Events.ITERATION_COMPLETED, self._iteration_completed)
        on(Events.COMPLETED, self._completed)
        on(Events.TERMINATE, self._completed)
        on(Events.EXCEPTION_RAISED, self._failed)
        for evaluator in evaluators:
            evaluator.add_event_handler(Events.COMPLETED, self._evaluated)

    def _started(self, engine: Engine) -> None:  # noqa: ARG002
        self._fit.begin(self._model)

    def _epoch_started(self, engine: Engine) -> None:  # noqa: ARG002
        self._fit.end_epoch()  # only now, as evaluators run in handlers of the epoch's end
        self._fit.is_epoch_open = True

    def _iteration_started(self, engine: Engine) -> None:  # noqa: ARG002
        self.stats.step()

    def _iteration_completed(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        self._fit.log(self._loss_of(engine.state.output), batch)

    def _evaluated(self, engine: Engine) -> None:
        self._fit.evaluated(engine.state.metrics)

    def _completed(self, engine: Engine) -> None:  # noqa: ARG002
        self._fit.end_epoch()
        self._fit.end()

    def _failed(self, engine: Engine, error: BaseException) -> None:
        self._fit.end(error)
        # Ignite raises what no handler was told of, so the only one has to.
        handlers: Mapping[Any, Sequence[object]] = engine._event_handlers  # pyright: ignore[reportPrivateUsage]
        if len(handlers[Events.EXCEPTION_RAISED]) == 1:
            raise error


def _loss_of(output: object) -> object:
    if isinstance(output, Mapping):
        return output.get("loss")
    if isinstance(output, Sequence) and output and not isinstance(output, str):
        return output[-1] if is_number(output[-1]) else output[0]
    return output
