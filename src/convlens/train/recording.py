"""The run of a fit: its directory, and the metadata that is known before training."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parameter import is_lazy

from convlens.errors import ArgumentError, RunError, warn
from convlens.runs import RunWriter, create_run, join_run
from convlens.runs.checkpoints import check_state
from convlens.train.metrics import function_name
from convlens.train.schedules import Schedule, read_hypers
from convlens.watching import ActivationWatch

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
    started = time.perf_counter()
    status, error = "failed", None
    try:
        writer.write_meta(facts(learn, schedule))
        writer.flush()
        yield
        status = "stopped" if learn.cancelled else "finished"
    except KeyboardInterrupt:
        status, error = "stopped", "interrupted from the keyboard"
        raise
    except Exception as problem:
        error = str(problem)
        raise
    finally:
        learn.sink = None
        try:
            writer.write_meta({"wall_s": time.perf_counter() - started})
            writer.close(status, error)
        except RunError as problem:  # the training is over: this must not take its place
            warn(str(problem))


def record_watch(stats: ActivationWatch, run: str | Path) -> Path:
    """Give a watcher a new run of its own, which is closed when its watching ends.

    Where several processes train together (`torch.distributed` is initialized), all of them call
    this: rank 0 makes the run, the others join it, and who reads it gets their columns added up.

    Args:
        stats: a watcher that is not attached yet.
        run: ``"auto"`` for a new directory ``runs/watch-0001``, or the directory.

    Returns:
        The run's directory.

    Raises:
        ArgumentError: if ``run`` is no path.
        RunError: if the directory cannot be made.
    """
    if not isinstance(run, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"run={run!r} is no directory; give 'auto' for a new one in runs/, or a path."
        )
    together = dist.is_available() and dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    writer: RunWriter | None = None
    said: list[str | None] = [None, None]  # by rank 0 to all: the path, or what went wrong
    if rank == 0:
        try:
            writer = _create_watch_run(stats, run, ranks)
            said[0] = str(writer.path)
        except RunError as error:
            said[1] = str(error)
    if ranks > 1:
        dist.broadcast_object_list(said)
    path, problem = said
    if path is None:
        raise RunError(problem)
    if writer is None:
        writer = join_run(path, rank)
    stats.sink, stats.close_sink, stats.run_path = writer, writer.close, writer.path
    return writer.path


def _create_watch_run(stats: ActivationWatch, run: str | Path, ranks: int) -> RunWriter:
    directory = None if run == "auto" else run
    writer = create_run("watch", directory=directory, ranks=ranks)
    writer.write_meta({**environment(), "model": model_facts(stats.model)})
    writer.flush()
    return writer


def facts(learn: Learner, schedule: Schedule) -> dict[str, Any]:
    """What is known before training, as plain JSON."""
    optimizer = learn.optimizer
    return {
        **environment(),
        "device": str(learn.device),
        "seed": learn.seed,
        "data": learn.dls.facts(),
        "model": model_facts(learn.model),
        "loss": function_name(learn.loss_function),
        "optimizer": {
            "class": type(optimizer).__name__,
            "groups": [read_hypers(group) for group in optimizer.param_groups],
        },
        "schedule": {"class": type(schedule).__name__, **asdict(schedule)},
        "n_epochs": learn.n_epochs,
        "n_steps": learn.n_steps,
        "summary": _summary(learn),
    }


def model_facts(model: nn.Module) -> dict[str, Any]:
    """What a run says of its model; that of a lazy one has no number of parameters yet."""
    parameters = list(model.parameters())
    known = not any(is_lazy(p) for p in parameters)
    return {
        "class": type(model).__name__,
        "text": str(model),
        "n_parameters": sum(p.numel() for p in parameters) if known else None,
    }


def environment() -> dict[str, Any]:
    """What a run says of the machine and the versions."""
    return {
        "convlens": version("convlens"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "command": shlex.join(sys.argv),
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
