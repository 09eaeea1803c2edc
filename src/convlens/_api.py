"""What joins rooms that must not know each other: a watcher with a run, a run with a view."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

    from convlens.core.records import Finding, RunRecord
    from convlens.runs import Run
    from convlens.watching import ActivationWatch
    from convlens.watching.layer_selection import Layers


def watch(
    model: nn.Module,
    layers: Layers = "trainable",
    *,
    eps: float = 0.05,
    every: int = 1,
    mode: str = "train",
    sample: float = 1.0,
    gradients: bool = False,
    updates: bool = False,
    count_forwards: bool = True,
    run: str | Path | None = None,
) -> ActivationWatch:
    """Watch a model in a training loop of one's own.

        with cl.watch(model, run="auto") as stats:
            for x, y in batches:
                loss = loss_fn(model(x), y)
                stats.log(loss=loss)    # any other number too; stats.log_epoch ends an epoch
                ...  # backward, step
        stats["features.3"].near_zero   # one array over the steps
        cl.diagnose(stats)

    Args:
        model: any module.
        layers: ``"trainable"`` (every module that owns parameters), ``"all"`` (every module without
            children), or a list of names, modules and module classes.
        eps: a value with |x| ≤ eps is near zero.
        every: watch only each n-th step; 1 watches all.
        mode: the forwards that are counted: ``"train"``, those in training mode; ``"eval"``, those
            in evaluation mode; ``"both"``.
        sample: the fraction of each batch's images that is watched, the first ones; below 1 each
            figure has a `standard_error`.
        gradients: also watch each parameter's gradient before each optimizer's step:
            ``stats.gradients["features.3.weight"]``.
        updates: also watch what each optimizer's step adds to each parameter:
            ``stats.updates["features.3.weight"].ratio`` is ‖Δw‖/‖w‖.
        count_forwards: a step is a forward of ``model`` in training mode; False, it is what lies
            between two calls of ``stats.step()``.
        run: None keeps everything in memory; ``"auto"`` records to a new directory
            ``runs/watch-0001``; a path names the directory; ``stats.run_path`` says where it is.
            It is closed when watching ends, as failed if the ``with`` block raised.

    Returns:
        An `ActivationWatch`, to be used with ``with`` or ``attach()`` and ``detach()``. Its
        ``notes`` say what could not be recorded, its ``recorder`` has what was logged.

    Raises:
        ArgumentError: if an argument has a value that cannot work.
        RunError: if the run's directory cannot be made.

    Example:
        >>> import torch
        >>> import convlens as cl
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
        >>> with cl.watch(model) as stats:
        ...     for _ in range(5):
        ...         stats.log(loss=model(torch.randn(8, 1, 6, 6)).mean())
        >>> stats["0"].mean.shape, stats["0"].layer.feeds_relu, len(stats.recorder.steps)
        ((5,), True, 5)
    """
    from convlens.watching import ActivationWatch

    stats = ActivationWatch(
        model,
        layers,
        eps=eps,
        every=every,
        mode=mode,
        sample=sample,
        gradients=gradients,
        updates=updates,
        count_forwards=count_forwards,
        flush_sink=True,
    )
    if run is not None:
        from convlens.train.recording import record_watch

        record_watch(stats, run)
    return stats


class HasRun(Protocol):
    """What records to a run: a `Learner`, what `watch` gives, a Lightning callback."""

    @property
    def run_path(self) -> Path | None:
        """The run's directory, None without one."""
        ...


def run_of(run: Run | HasRun | str | Path) -> Run:
    """The run of whatever has one, opened.

    Args:
        run: an opened run, the path of a run's directory, or what records to one.

    Raises:
        ArgumentError: if it has no run.
        RunError: if there is no readable run at its path.
    """
    from convlens.runs import Run, open_run

    if isinstance(run, Run):
        return run
    path = run if isinstance(run, str | os.PathLike) else getattr(run, "run_path", None)
    if path is not None:
        return open_run(path)
    why = (
        "which has no run: it keeps everything in memory (run=None), or has not begun"
        if hasattr(run, "run_path")
        else "which records no run"
    )
    raise ArgumentError(
        f"run is a {type(run).__name__}, {why}; give a run, its path, or a Learner or a watcher "
        "that records one (run='auto')."
    )


def diagnose(run: Run | HasRun | str | Path | RunRecord) -> list[Finding]:
    """What a careful look at a run sees, in words, worst first.

    It is never empty: a run without steps, one that is too short to judge and one with nothing
    wrong say so.

    Args:
        run: an opened run, the path of a run's directory, what records to one (a `Learner`, what
            `watch` gives), or a record.

    Raises:
        ArgumentError: if it has no run.
        RunError: if there is no readable run at its path.
    """
    from convlens import doctor
    from convlens.core.records import RunRecord

    return doctor.diagnose(run if isinstance(run, RunRecord) else run_of(run).record())


def report(run: Run | HasRun | str | Path, out: str | Path | None = None) -> Path:
    """Make a run's report: one HTML file that opens offline.

    Args:
        run: an opened run, the path of a run's directory, or what records to one (a `Learner`, what
            `watch` gives).
        out: where to write it; ``report.html`` in the run's directory if None.

    Returns:
        The file's path.

    Raises:
        ArgumentError: if it has no run.
        RunError: if there is no readable run, or the file cannot be written.
    """
    from convlens.views import write_report

    return write_report(run_of(run), None if out is None else Path(out))
