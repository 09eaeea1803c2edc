"""Functions that join folders which do not import each other, such as watching and runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from convlens.core.wording import type_name
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

    from convlens.core.records import Findings, RunRecord
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
    """Watch a model in your own training loop.

    >>> model = cl.simple_cnn(1, 10)
    >>> loss_fn = torch.nn.CrossEntropyLoss()
    >>> with cl.watch(model) as stats:
    ...     for x, y in [(torch.rand(8, 1, 28, 28), torch.arange(8))] * 3:
    ...         loss = loss_fn(model(x), y)
    ...         stats.log(loss=loss)  # any other number too; stats.log_epoch ends an epoch
    >>> stats["0.0"].near_zero.shape  # one value for each step
    (3,)

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
        count_forwards: a step is a forward of ``model`` in training mode; if False, it lasts from
            one call of ``stats.step()`` to the next.
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
        rates=True,
    )
    if run is not None:
        from convlens.runs.watched_run import record_watch

        record_watch(stats, run)
    return stats


class HasRun(Protocol):
    """An object that records to a run: a `Learner`, a watcher, a Lightning callback."""

    @property
    def run_path(self) -> Path | None:
        """The run's directory, None without one."""
        ...


def run_of(run: Run | HasRun | str | Path) -> Run:
    """Open the run of an object or a path; an opened run is returned as it is.

    Raises:
        ArgumentError: if the object has no run.
        RunError: if there is no readable run at its path.
    """
    from convlens.runs import Run, open_run

    if isinstance(run, Run):
        return run
    if isinstance(run, str | os.PathLike):
        return open_run(run)
    if not hasattr(run, "run_path"):
        raise ArgumentError(
            f"run must be a run, its path, a Learner or a watcher; got {type_name(run)}."
        )
    if run.run_path is None:
        hint = (
            "cl.watch(model, run='auto')"
            if hasattr(run, "log_epoch")
            else "fit(…) first, with run='auto'"
        )
        raise ArgumentError(f"This {type_name(run)} records no run. Call {hint}.")
    return open_run(run.run_path)


class HasRecord(Protocol):
    """An object that can be judged from memory: a `Learner`, a watcher, an opened run."""

    def record(self) -> RunRecord:
        """Everything recorded so far."""
        ...


def record_of(run: Run | HasRun | HasRecord | str | Path | RunRecord) -> RunRecord:
    """The record of a run or a path, else of what an object without a run has in memory.

    Raises:
        ArgumentError: if the object has neither.
        RunError: if there is no readable run at its path.
    """
    from convlens.core.records import RunRecord

    if isinstance(run, RunRecord):
        return run
    without_run = getattr(run, "run_path", "") is None
    stats: Any = getattr(run, "stats", run) if without_run else run  # of an integration's callback
    if without_run and hasattr(stats, "record"):
        return stats.record()
    return run_of(run).record()  # pyright: ignore[reportArgumentType]


def diagnose(run: Run | HasRun | HasRecord | str | Path | RunRecord) -> Findings:
    """Say what is wrong with a run, and what to try: findings in words, worst first.

    It is never empty: a run without steps, one that is too short to judge and one with nothing
    wrong say so.

    >>> model = cl.simple_cnn(1, 10)
    >>> with cl.watch(model, run="auto") as stats:
    ...     out = model(torch.rand(8, 1, 28, 28))
    >>> [(finding.severity, finding.kind) for finding in cl.diagnose(stats.run_path)]
    [('note', 'too-short')]

    Printed, it is a line for each finding. What keeps everything in memory is judged from there:

    >>> with cl.watch(model) as stats:
    ...     for x, y in [(torch.rand(8, 1, 28, 28), torch.arange(8))] * 25:
    ...         stats.log(loss=torch.nn.functional.cross_entropy(model(x), y))
    >>> cl.diagnose(stats) == cl.diagnose(stats.record())
    True

    Args:
        run: an opened run, the path of a run's directory, an object that records to one or in
            memory (a `Learner`, the result of `watch`, an integration's callback), or a record.

    Raises:
        ArgumentError: if it has no run.
        RunError: if there is no readable run at its path.
    """
    from convlens import doctor
    from convlens.core.records import Findings

    return Findings(doctor.diagnose(record_of(run)))


def report(run: Run | HasRun | str | Path, out: str | Path | None = None) -> Path:
    """Write a run's report: one HTML file that opens offline.

    >>> model = cl.simple_cnn(1, 10)
    >>> with cl.watch(model, run="auto") as stats:
    ...     out = model(torch.rand(8, 1, 28, 28))
    >>> cl.report(stats.run_path).name
    'report.html'

    Args:
        run: an opened run, the path of a run's directory, or an object that records to one (a
            `Learner`, the result of `watch`).
        out: where to write it; ``report.html`` in the run's directory if None.

    Returns:
        The file's path.

    Raises:
        ArgumentError: if it has no run.
        RunError: if there is no readable run, or the file cannot be written.
    """
    from convlens.web.report import write_report

    return write_report(run_of(run), None if out is None else Path(out))


def view(
    path: Run | HasRun | str | Path = "runs",
    *,
    iframe: bool = False,
    port: int = 0,
    height: int = 800,
) -> None:
    """Show a run, or the runs in a folder: in a notebook's cell, else in the browser.

    In a notebook, a run's findings, numbers and pictures are put in the cell. They stay there when
    the notebook is opened again. ``iframe=True`` shows the whole page, which works as long as the
    notebook's kernel runs on the browser's machine. Outside of a notebook, the page is served
    until the process ends, and its address is printed.

    >>> model = cl.simple_cnn(1, 10)
    >>> with cl.watch(model, run="auto") as stats:
    ...     out = model(torch.rand(8, 1, 28, 28))
    >>> cl.view(stats.run_path)
    The page is at http://127.0.0.1:.../ until this process ends.

    Args:
        path: a folder of runs, a run's directory, an opened run, or an object that records to one.
        iframe: in a notebook, whether the whole page is shown, from a server in this process.
        port: the server's port; 0 for a free one.
        height: of the frame in pixels.

    Raises:
        ArgumentError: if an argument has a value that cannot work.
        RunError: if there is no such folder, or no readable run.
    """
    from convlens.core.argument_checks import check_path
    from convlens.web.notebook import show

    known = isinstance(path, str | os.PathLike)
    place = check_path("path", path) if known else run_of(path).path
    show(place, iframe=iframe, port=port, height=height)
