"""What a fit has recorded, from memory: the same as its run, if it has one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from convlens.core.histories import LayerHistory
from convlens.core.outcome import outcome_of
from convlens.core.records import RunRecord
from convlens.core.wording import function_name
from convlens.errors import ArgumentError
from convlens.train.callbacks.overflows import Overflows
from convlens.train.callbacks.stats import ActivationStats, GradientStats, UpdateStats
from convlens.train.schedules import schedule_facts

if TYPE_CHECKING:
    from convlens.train.learner import Learner


def record_of(learn: Learner) -> RunRecord:
    """The record of a Learner's last fit: its recorder, and what its callbacks have watched."""
    error = learn.error
    status, message = outcome_of(error) if error else ("running", None)
    if not error and (learn.epochs_done or learn.cancelled):
        status = "stopped" if learn.cancelled else "finished"
    meta: dict[str, Any] = {
        "status": status,
        "data": learn.dls.facts(),
        "n_steps": learn.n_steps,
        "loss": function_name(learn.loss_function),
        "label_smoothing": learn.label_smoothing,
    }
    if learn.schedule is not None:
        meta["schedule"] = schedule_facts(learn.schedule)
    if learn.cancelled and not error:
        message = learn.stop_reason or None
    if message is not None:
        meta["error"] = message
    overflows = next((c for c in learn.callbacks if isinstance(c, Overflows)), None)
    if overflows is not None and overflows.n:
        meta["skipped_steps"] = overflows.n
    layers: Sequence[LayerHistory] = ()
    parameters = dict[str, Sequence[LayerHistory]]()
    for callback in learn.callbacks:
        with suppress(ArgumentError):  # nothing was fitted with it yet
            if isinstance(callback, ActivationStats):
                watched = callback.watch.record()
                layers, meta["loop"] = watched.layers, watched.loop
            elif isinstance(callback, GradientStats | UpdateStats):
                for quantity in callback.watch.quantities:
                    parameters[quantity] = callback.watch.histories(quantity)
    steps, epochs = learn.recorder.steps, learn.recorder.epochs
    return RunRecord(meta, steps, epochs, layers, parameters)
