"""The run of a watched training loop; facts of machine, versions and model."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parameter import is_lazy

from convlens.core.records import RecordSink
from convlens.errors import ArgumentError, RunError
from convlens.runs.folder import make_exact
from convlens.runs.writer import RunWriter, create_run, join_run


class Watcher(Protocol):
    """An object that watches a model and can write to a sink."""

    model: nn.Module
    close_sink: Callable[[str, str | None], None] | None
    run_path: Path | None

    @property
    def sink(self) -> RecordSink | None:
        """The sink that it writes to."""
        ...

    @sink.setter
    def sink(self, sink: RecordSink | None) -> None: ...


def record_watch(stats: Watcher, run: str | Path) -> Path:
    """Give a watcher a new run of its own, which is closed when its watching ends.

    Where several processes train together (`torch.distributed` is initialized), all of them call
    this: rank 0 makes the run, the others join it, and readers get their columns added up.

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
        raise ArgumentError(f"run must be 'auto' or the path of a new directory, got {run!r}.")
    together = dist.is_available() and dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    writer: RunWriter | None = None
    said: list[str | None] = [None, None]  # by rank 0 to all: the path, or what went wrong
    if rank == 0:
        try:
            directory = None if run == "auto" else make_exact(Path(run), "run")
            writer = create_run("watch", directory=directory, ranks=ranks)
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
    else:
        writer.write_meta({**environment(), "model": model_facts(stats.model)})
        writer.flush()
    stats.sink, stats.close_sink, stats.run_path = writer, writer.close, writer.path
    return writer.path


def model_facts(model: nn.Module) -> dict[str, Any]:
    """The facts of a model in a run's meta; a lazy model has no number of parameters yet."""
    parameters = list(model.parameters())
    known = not any(is_lazy(p) for p in parameters)
    return {
        "class": type(model).__name__,
        "text": str(model),
        "n_parameters": sum(p.numel() for p in parameters) if known else None,
    }


def environment() -> dict[str, Any]:
    """The facts of machine and versions in a run's meta."""
    return {
        "convlens": version("convlens"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "command": shlex.join(sys.argv),
    }
