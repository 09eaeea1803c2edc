"""The run of a fit: its directory, what is known of it beforehand, and its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from convlens.core.background import Notices
from convlens.core.records import outcome_of
from convlens.errors import ConvlensError, RunError, warn
from convlens.runs import RunWriter, create_run
from convlens.runs.checkpoints import check_state, save_checkpoint
from convlens.runs.watched_run import environment, model_facts
from convlens.train.callbacks import Callback
from convlens.train.schedules import Schedule, read_hypers

if TYPE_CHECKING:
    from convlens.train.learner import Learner


@contextmanager
def recording(learn: Learner, schedule: Schedule) -> Generator[None]:
    """Give ``learn`` a new run to write to, and close it however the fit ends."""
    if learn.run is None:
        learn.run_path = None
        yield
        return
    directory = None if learn.run == "auto" else learn.run
    check_state(learn.model)  # what cannot be saved after an epoch is said before it
    writer = create_run(learn.dls.name, learn.base, directory)
    learn.sink, learn.run_path = writer, writer.path
    started, status, error = time.perf_counter(), "finished", None
    try:
        writer.write_meta(facts(learn, schedule))
        writer.flush()
        yield
        status = "stopped" if learn.cancelled else "finished"
    except BaseException as problem:
        status, error = outcome_of(problem)
        raise
    finally:
        learn.sink = None
        try:
            writer.write_meta({"wall_s": time.perf_counter() - started})
            writer.close(status, error)
        except RunError as problem:  # the training is over: this must not take its place
            warn(str(problem))


def facts(learn: Learner, schedule: Schedule) -> dict[str, Any]:
    """What is known before training, as plain JSON."""
    optimizer = learn.optimizer
    return {
        **environment(),
        "device": str(learn.device),
        "seed": learn.seed,
        "data": learn.dls.facts(),
        "model": model_facts(learn.model),
        "loss": getattr(learn.loss_function, "__name__", type(learn.loss_function).__name__),
        "optimizer": {
            "class": type(optimizer).__name__,
            "groups": [read_hypers(group) for group in optimizer.param_groups],
        },
        "schedule": {"class": type(schedule).__name__, **asdict(schedule)},
        "n_epochs": learn.n_epochs,
        "n_steps": learn.n_steps,
        "summary": _summary(learn),
    }


def _summary(learn: Learner) -> dict[str, Any]:
    """The summary table; a model that fake tensors cannot follow has none, and says why."""
    if learn.dls.facts()["input_shape"] is None:
        why = "the shape of the images is not known beforehand"
    else:
        try:
            return learn.summary().to_dict()
        except Exception as error:
            why = str(error)
    return {"rows": [], "totals": {}, "input_shape": [], "notes": [f"No summary: {why}."]}


class Checkpoint(Callback):
    """Saves weights and optimizer after every epoch; the newest replaces the one before.

    It does so before the validation, so that an error there does not cost the epoch. The figures
    of the validation are in the run's record.
    """

    order = -90  # before callbacks that validate with other weights, such as their running mean

    def __init__(self) -> None:
        self._notices = Notices()

    def before_validation(self, learn: Learner) -> None:
        """Save to the run's folder ``checkpoints``."""
        self._save(learn)

    def after_epoch(self, learn: Learner) -> None:
        """Save where there is no validation."""
        if learn.dls.valid is None:
            self._save(learn)

    def _save(self, learn: Learner) -> None:
        if learn.sink is None or learn.run_path is None:
            return
        folder = learn.run_path / "checkpoints"
        if isinstance(learn.sink, RunWriter) and not learn.sink.is_in_place:
            self._notices.say("moved", f"No checkpoint is saved in {str(folder)!r}: it is gone.")
            return
        facts = {"epoch": learn.epoch, "step": learn.step}
        try:
            save_checkpoint(folder, learn.model, learn.optimizer, facts, keep=1)
        except ConvlensError as error:
            self._notices.say(
                "failed", f"The checkpoint of epoch {learn.epoch} is not saved. {error}"
            )
        else:
            self._notices.over(f"Checkpoints are saved in {str(folder)!r} again.")
