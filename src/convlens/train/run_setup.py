"""The run of a fit: its directory, and the metadata that is known before training."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlens.core.argument_checks import check_path
from convlens.core.outcome import outcome_of
from convlens.core.wording import function_name
from convlens.data.input_transform import InputTransform
from convlens.errors import RunError, warn
from convlens.execution import unwrapped
from convlens.models.architecture import architecture_of
from convlens.runs import create_run
from convlens.runs.checkpoints import check_state
from convlens.runs.folder import make_exact
from convlens.runs.watched_run import environment, model_facts
from convlens.train.schedules import Schedule, read_hypers, schedule_facts

if TYPE_CHECKING:
    from convlens.train.learner import Learner


@contextmanager
def recording(learn: Learner, schedule: Schedule) -> Generator[None]:
    """Give ``learn`` a new run to write to, and close it however the fit ends."""
    if learn.run is None:
        learn.run_path = None
        yield
        return
    check_state(learn.model)  # what cannot be saved after an epoch is said before it
    directory = None if learn.run == "auto" else _own_folder(learn, check_path("run", learn.run))
    writer = create_run(learn.dls.name, learn.base, directory)
    learn.sink, learn.run_path = writer, writer.path
    started, status, error = time.perf_counter(), "finished", None
    try:
        writer.write_meta(facts(learn, schedule))
        writer.flush()
        yield
        if learn.cancelled:
            status, error = "stopped", learn.stop_reason or None
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


def _own_folder(learn: Learner, path: Path) -> Path:
    """The folder that ``run`` names, made.

    Raises:
        RunError: if it holds anything; also if that is an earlier fit of the same Learner.
    """
    if learn.run_path is not None and path == learn.run_path and path.exists():
        raise RunError(
            f"run={str(path)!r} holds the last fit of this Learner; set learn.run to a new folder, "
            "or to 'auto', before the next fit."
        )
    return make_exact(path, "run")


def facts(learn: Learner, schedule: Schedule) -> dict[str, Any]:
    """What is known before training, as plain JSON."""
    optimizer = learn.optimizer
    return {
        **environment(),
        "device": str(learn.device),
        "seed": learn.seed,
        "data": learn.dls.facts(),
        "model": model_facts(learn.model),
        **_facts_of_use(learn),
        "loss": function_name(learn.loss_function),
        "label_smoothing": learn.label_smoothing,
        "optimizer": {
            "class": type(optimizer).__name__,
            "groups": [_group(group) for group in optimizer.param_groups],
        },
        "schedule": schedule_facts(schedule),
        **learn.settings.facts(),
        "n_epochs": learn.n_epochs,
        "n_steps": learn.n_steps,
        "summary": _summary(learn),
    }


def _group(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group's settings, and which parameters it has, in words where it says so."""
    names = {key: group[key] for key in ("name", "layers") if isinstance(group.get(key), str)}
    return {**names, **read_hypers(group)}


def _facts_of_use(learn: Learner) -> dict[str, Any]:
    """What is needed to use the network on images: see `convlens.load_classifier`."""
    architecture = architecture_of(unwrapped(learn.model))
    transform: InputTransform | None = getattr(learn.dls, "input_transform", None)
    return {
        "architecture": None if architecture is None else asdict(architecture),
        "input": None if transform is None else transform.facts(),
        "classes": list(learn.dls.classes),
        "kind": learn.dls.kind,
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
