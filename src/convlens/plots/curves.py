"""The curves of a training: loss, learning rate and momentum by optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from convlens.errors import ArgumentError
from convlens.plots.canvas import (
    BLUE,
    GREEN,
    ORANGE,
    label_axes,
    mark_epochs,
    mark_nonfinite,
    marker,
    say_empty,
    scale_values,
    take_axes,
)
from convlens.records import Epoch, StepSeries
from convlens.sketch import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_loss(
    steps: StepSeries,
    epochs: Sequence[Epoch] = (),
    ax: Axes | None = None,
    smooth: float = 0.98,
) -> Axes:
    """Draw the training loss by step, raw and smoothed, and the validation loss of each epoch.

    Args:
        steps: the recorded steps.
        epochs: the finished epochs, marked where they end.
        ax: where to draw, a new figure if None.
        smooth: how much of its weight the exponential mean keeps from each step to the next, at
            least 0 (no smoothing) and below 1. It looks both ways, so that it does not lag behind
            as a running mean does, and over no more than a fortieth of the steps to either side.
            On a logarithmic axis it is the mean of the logarithms.

    Raises:
        ArgumentError: if ``smooth`` is out of its range.
    """
    if not 0.0 <= smooth < 1.0:
        raise ArgumentError(
            f"smooth={smooth} is the weight that a mean keeps from step to step; give at least 0 "
            "(no smoothing) and less than 1."
        )
    (ax,) = take_axes(None if ax is None else [ax], 1, (7.5, 4.2))
    label_axes(ax, "Loss", "loss")
    if not len(steps) and not epochs:
        say_empty(ax, "no steps were recorded yet")
        return ax
    measured = [(e.last_step, e.valid_loss) for e in epochs if e.valid_loss is not None]
    x, y = np.array(measured, np.float64).reshape(-1, 2).T
    scale_values(ax, np.append(steps.loss, y))
    _draw_training_loss(ax, steps, smooth)
    if measured:
        ax.plot(x, y, "o-", color=ORANGE, lw=1.2, zorder=3.5, label="validation, each epoch")
    mark_epochs(ax, epochs)
    ax.grid(axis="y", alpha=0.25)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper right")
    return ax


def _draw_training_loss(ax: Axes, steps: StepSeries, smooth: float) -> None:
    finite = np.isfinite(steps.loss)
    loss = np.where(finite, steps.loss, np.nan)
    many = len(steps) > 2 and smooth > 0
    if finite.any():
        ax.plot(
            steps.step,
            loss,
            color=BLUE,
            lw=0.7 if many else 1.4,
            alpha=0.4 if many else 1.0,
            marker=marker(loss),
            ms=3.5,
            label="training, each batch",
        )
        if many:
            weight = min(smooth, max(0.0, 1.0 - 40.0 / len(steps)))
            # One loss of a million must not lift its neighbours by decades.
            logs = ax.get_yscale() == "log"
            mean = np.exp(smoothed(np.log(loss), weight)) if logs else smoothed(loss, weight)
            ax.plot(steps.step, mean, color=BLUE, lw=2, label="training, smoothed")
    mark_nonfinite(ax, steps.step, np.ones(len(steps), np.int64), ~finite)


def plot_sched(
    steps: StepSeries, epochs: Sequence[Epoch] = (), axes: Sequence[Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw the learning rate and the momentum of every parameter group by step.

    Args:
        steps: the recorded steps, with the hyperparameters "lr" and "momentum".
        epochs: the finished epochs, marked where they end.
        axes: where to draw, two axes; a new figure if None.

    Raises:
        ArgumentError: if another number of axes is given.
    """
    rate, momentum = take_axes(axes, 2, (10.5, 3.8))
    _draw_hyper(rate, steps, epochs, "lr", "learning rate")
    _draw_hyper(momentum, steps, epochs, "momentum", "momentum (β₁ for Adam)")
    return rate, momentum


def _draw_hyper(
    ax: Axes, steps: StepSeries, epochs: Sequence[Epoch], name: str, label: str
) -> None:
    word = label.partition(" (")[0]
    label_axes(ax, word.capitalize(), label)
    values = steps.hypers.get(name)
    if values is None or not np.isfinite(values).any():
        say_empty(ax, f"no {word} was recorded" + ("" if len(steps) else " yet"))
        return
    # Groups that always agree are one line: which of them is drawn cannot be seen.
    distinct = np.unique(values, axis=1, return_index=True)[1]
    for position, group in enumerate(sorted(distinct.tolist())):
        color = (BLUE, ORANGE, GREEN)[position % 3]
        style = ("-", "--", ":")[(position // 3) % 3]
        ax.plot(
            steps.step,
            values[:, group],
            style,
            color=color,
            lw=2,
            marker=marker(values[:, group]),
            ms=4,
            label=f"parameter group {group}",
        )
    ax.grid(axis="y", alpha=0.25)
    mark_epochs(ax, epochs)
    if len(distinct) > 1:
        ax.legend()


def smoothed(values: Floats, weight: float) -> Floats:
    """Mean of all finite values, each weighing ``weight ** distance`` in steps, to both sides.

    NaN where the value itself is not finite.
    """
    finite = np.isfinite(values)
    known, ones = np.where(finite, values, 0.0), finite.astype(np.float64)
    total, mass = (_both_ways(series, weight) for series in (known, ones))
    return np.divide(total, mass, out=np.full(len(values), np.nan), where=finite)


def _both_ways(values: Floats, weight: float) -> Floats:
    return _decayed(values, weight) + _decayed(values[::-1], weight)[::-1] - values


def _decayed(values: Floats, weight: float) -> Floats:
    """Sums of all values so far, each shrunk by ``weight`` per step."""
    sums, total = np.empty(len(values)), 0.0
    for i, value in enumerate(values.tolist()):
        total = weight * total + value
        sums[i] = total
    return sums
