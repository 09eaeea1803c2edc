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
        smooth: weight of the past in the exponential mean, at least 0 (none) and below 1. The mean
            is corrected for its start as in Adam, so that it begins at the first loss; it reaches
            over at most a twentieth of the steps, so that in a short run it does not lag behind.

    Raises:
        ArgumentError: if ``smooth`` is out of its range.
    """
    if not 0.0 <= smooth < 1.0:
        raise ArgumentError(
            f"smooth={smooth} is the weight of the past in a running mean; give at least 0 "
            "(no smoothing) and less than 1."
        )
    (ax,) = take_axes(None if ax is None else [ax], 1, (7.5, 4.2))
    label_axes(ax, "Loss", "loss")
    if not len(steps) and not epochs:
        say_empty(ax, "no steps were recorded yet")
        return ax
    _draw_training_loss(ax, steps, smooth)
    measured = [(e.last_step, e.valid_loss) for e in epochs if e.valid_loss is not None]
    if measured:
        x, y = np.array(measured, np.float64).T
        ax.plot(x, y, "o-", color=ORANGE, lw=1.2, zorder=3.5, label="validation, each epoch")
    scale_values(ax, steps.loss)
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
            ax.plot(
                steps.step, smoothed(loss, smooth), color=BLUE, lw=2, label="training, smoothed"
            )
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
    """Exponential mean with this weight on the past, corrected for its start.

    Values that are not finite are passed over; the mean is NaN before the first finite one.
    """
    means = np.full(len(values), np.nan)
    mean, mass = 0.0, 0.0
    for i, value in enumerate(values.tolist()):
        if np.isfinite(value):
            mean = weight * mean + (1.0 - weight) * value
            mass = weight * mass + (1.0 - weight)
        means[i] = mean / mass if mass else np.nan
    return means
