"""`write`: what was recorded, as event files that TensorBoard shows. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from convlens.core.buckets import Floats, Ints, finite_edges
from convlens.core.columns import coarsen
from convlens.core.histories import LayerHistory
from convlens.core.layer_histories import LayerHistories
from convlens.core.records import Epoch
from convlens.core.steps import StepSeries, empty_steps
from convlens.errors import ArgumentError, MissingLibraryError
from convlens.runs import Run, open_run

try:
    # Protobuf makes these classes at import, where no type checker sees them.
    from tensorboard.compat.proto.event_pb2 import (
        Event,  # pyright: ignore[reportAttributeAccessIssue]
    )
    from tensorboard.compat.proto.summary_pb2 import (
        HistogramProto,  # pyright: ignore[reportAttributeAccessIssue]
        Summary,  # pyright: ignore[reportAttributeAccessIssue]
    )
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
except ImportError as problem:
    raise MissingLibraryError(
        "convlens.integrations.tensorboard needs TensorBoard, which cannot be imported "
        f"({problem}); install it with: pip install tensorboard"
    ) from problem

Events = Iterator[object]

Clock = Callable[[int], float]
"""When a step ended, in seconds since 1970."""


def write(
    source: Run | LayerHistories | str | Path, log_dir: str | Path, *, histograms: int = 64
) -> Path:
    """Write a run, or the layers of a watcher, as TensorBoard's event files.

    Of each layer, at the middle step of each of its columns: the scalars
    ``activation_mean/NAME``, ``activation_std/NAME``, ``activation_near_zero/NAME`` (a share from
    0 to 1) and, where a ReLU follows, ``activation_dead_channels/NAME`` (a number); and the
    histogram ``activation/NAME``. For gradients and other quantities the tags begin with their
    name. Of a run also ``loss/batch`` and ``hyper/lr``, ``hyper/momentum`` … (where
    parameter groups differ ``hyper/lr/0`` …) at each step. Where epochs are known, ``loss/train``,
    ``loss/valid`` and ``metric/NAME`` at each epoch's last step.

    A histogram has the sketch's own buckets with their exact counts of the finite values; adjacent
    empty buckets are joined. Its smallest and largest value are edges of buckets, the only part
    that is not exact.

    Calling it again adds another file, which TensorBoard shows over the first: write each source
    once into a folder.

    Args:
        source: a run, or its directory; or the layers of ``cl.watch(…)``,
            ``learn.activation_stats`` or an opened run.
        log_dir: the folder for TensorBoard; it is made if missing.
        histograms: the most histograms of a layer; 0 writes none. Of more columns, neighbours are
            added up, so that no value is left out.

    Returns:
        ``log_dir``.

    Raises:
        ArgumentError: if ``histograms`` is negative, or ``log_dir`` cannot be written.
        RunError: if ``source`` is a path and there is no readable run.
    """
    if histograms < 0:
        raise ArgumentError(f"histograms must be at least 0, got {histograms}; 0 writes none.")
    if isinstance(source, LayerHistories):
        layers, steps, clock = source, empty_steps(), _now()
    else:
        run = source if isinstance(source, Run) else open_run(source)
        layers, steps = run.activation_stats, run.steps
        clock = _clock(run, steps)
    with closing(_open(Path(log_dir))) as file:
        for events in (
            _step_events(steps, clock),
            _epoch_events(layers.epochs, clock),
            *(_layer_events(layers[i], histograms, clock) for i in range(len(layers))),
        ):
            for event in events:
                file.add_event(event)
    return Path(log_dir)


def _open(log_dir: Path) -> EventFileWriter:
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        return EventFileWriter(str(log_dir))
    except OSError as error:
        raise ArgumentError(
            f"log_dir={str(log_dir)!r} cannot be written ({error.strerror}); give a folder that "
            "you may write to."
        ) from error


def _now() -> Clock:
    """A watcher does not know the times of its steps."""
    now = time.time()
    return lambda _: now


def _clock(run: Run, steps: StepSeries) -> Clock:
    """The run's own time, so that TensorBoard's relative time is that of the training."""
    created = run.meta.get("created")
    if created is None or not len(steps):
        return _now()
    start = datetime.fromisoformat(created).timestamp()
    return lambda step: start + float(np.interp(step, steps.step, steps.wall_s))


def _step_events(steps: StepSeries, clock: Clock) -> Events:
    series = {"loss/batch": steps.loss}
    for name, values in steps.hypers.items():
        if np.array_equal(values, np.broadcast_to(values[:, :1], values.shape), equal_nan=True):
            series[f"hyper/{name}"] = values[:, 0]
            continue
        for group, column in enumerate(values.T):
            series[f"hyper/{name}/{group}"] = column
    return _scalars(series, steps.step, clock)


def _epoch_events(epochs: Sequence[Epoch], clock: Clock) -> Events:
    for epoch in epochs:
        losses = {"loss/train": epoch.train_loss, "loss/valid": epoch.valid_loss}
        values = {name: value for name, value in losses.items() if value is not None}
        values |= {f"metric/{name}": value for name, value in epoch.metrics.items()}
        yield _event(values, epoch.last_step, clock)


def _layer_events(history: LayerHistory, histograms: int, clock: Clock) -> Events:
    name, quantity = history.layer.name, history.layer.quantity
    series = {"mean": history.mean, "std": history.std, "near_zero": history.near_zero}
    if history.layer.feeds_relu and history.channels:
        series["dead_channels"] = history.dead_channels.astype(np.float64)
    tagged = {f"{quantity}_{what}/{name}": values for what, values in series.items()}
    yield from _scalars(tagged, _middle_step(history), clock)
    if histograms:
        yield from _histograms(f"{quantity}/{name}", _at_most(history, histograms), clock)


def _scalars(series: Mapping[str, Floats], steps: Ints, clock: Clock) -> Events:
    """One event for each of K steps, with all series, each (K,)."""
    rows = np.stack(list(series.values()), axis=1).tolist()
    for step, row in zip(steps.tolist(), rows, strict=True):
        yield _event(dict(zip(series, row, strict=True)), step, clock)


def _event(values: Mapping[str, float], step: int, clock: Clock) -> object:
    summary = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in values.items()])
    return Event(wall_time=clock(step), step=step, summary=summary)


def _histograms(tag: str, history: LayerHistory, clock: Clock) -> Events:
    edges = finite_edges(history.bucket_edges)
    n = history.columns.n_finite
    sums = n * history.mean
    squares = history.columns.m2 + sums * history.mean
    steps = _middle_step(history).tolist()
    for k in np.flatnonzero(n):
        counts = history.counts[k]
        used = np.flatnonzero(counts)
        # One empty bucket stands for each gap.
        gaps = np.flatnonzero(np.diff(used, prepend=used[0] - 1) > 1)
        proto = HistogramProto(
            min=edges[used[0]],
            max=edges[used[-1] + 1],
            num=n[k],
            sum=sums[k],
            sum_squares=squares[k],
            bucket_limit=np.insert(edges[used + 1], gaps, edges[used[gaps]]).tolist(),
            bucket=np.insert(counts[used], gaps, 0).tolist(),
        )
        summary = Summary(value=[Summary.Value(tag=tag, histo=proto)])
        yield Event(wall_time=clock(steps[k]), step=steps[k], summary=summary)


def _at_most(history: LayerHistory, n: int) -> LayerHistory:
    """The history in at most ``n`` columns, neighbours added up."""
    columns, level = history.columns, 0
    while len(columns) > n:
        level += 1
        columns = coarsen(columns, level)
    return replace(history, columns=columns)


def _middle_step(history: LayerHistory) -> Ints:
    """(K,) the whole step in the middle of each column."""
    return (history.first_step + history.last_step) // 2
