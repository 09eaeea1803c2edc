"""The curves of a training: loss, learning rate and momentum by optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from convlens.core.buckets import Floats
from convlens.core.records import Epoch
from convlens.core.steps import Band, StepCurves, StepSeries, sum_up
from convlens.core.training_curves import POINTS
from convlens.plots.canvas import (
    BLUE,
    GREEN,
    ORANGE,
    label_axes,
    mark_epochs,
    mark_nonfinite,
    marker,
    say,
    scale_values,
    take_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH = 0.98
"""How much of its weight the smoothed loss keeps from each step to the next."""

NEGLIGIBLE = 1e-3
"""Weight of a distance beyond which the smoothing does not look at how far it is to the start."""

REACH = 40.0
"""The smoothed loss takes in at most a fortieth of the run to either side."""


def plot_loss(
    steps: StepSeries | StepCurves, epochs: Sequence[Epoch] = (), ax: Axes | None = None
) -> Axes:
    """Draw the training loss by step, raw and smoothed, and the validation loss of each epoch.

    Args:
        steps: the recorded steps; more than 4,096 are drawn as a band from the lowest to the
            highest of each stretch.
        epochs: the finished epochs, marked where they end.
        ax: where to draw, a new figure if None.
    """
    (ax,) = take_axes(None if ax is None else [ax], 1, (7.5, 4.2))
    label_axes(ax, "Loss", "loss")
    curves = _downsampled(steps)
    if not len(curves) and not epochs:
        say(ax, "no steps were recorded yet")
        return ax
    measured = [(e.last_step, e.valid_loss) for e in epochs if e.valid_loss is not None]
    x, y = np.array(measured, np.float64).reshape(-1, 2).T
    scale_values(ax, np.concatenate([curves.loss.low, curves.loss.high, y]))
    if not measured and not np.isfinite(curves.loss.mean).any():
        say(
            ax,
            "no finite loss was recorded;\nin your own loop, stats.log(loss=loss) records it",
            keep_steps=True,
        )
    _draw_training_loss(ax, curves)
    if measured:
        ax.plot(x, y, "o-", color=ORANGE, lw=1.2, zorder=3.5, label="validation, each epoch")
    mark_epochs(ax, epochs)
    ax.grid(axis="y", alpha=0.25)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper right")
    return ax


def _draw_training_loss(ax: Axes, curves: StepCurves) -> None:
    loss, many = curves.loss, len(curves) > 2
    if np.isfinite(loss.mean).any():
        if curves.width > 1:
            label = f"training, lowest to highest of {curves.width:,} batches"
            _draw_band(ax, curves, loss.low, loss.high, BLUE, label)
        else:
            ax.plot(
                curves.first_step, loss.mean, color=BLUE, lw=0.7 if many else 1.4,
                alpha=0.4 if many else 1.0, marker=marker(loss.mean), ms=3.5,
                label="training, each batch",
            )  # fmt: skip
        if many or curves.width > 1:
            mean = smoothed_loss(curves, log=ax.get_yscale() == "log")
            ax.plot(curves.middle_step, mean, color=BLUE, lw=2, label="training, smoothed")
    width = curves.last_step - curves.first_step + 1
    mark_nonfinite(ax, curves.first_step, width, loss.finite < curves.n)


def _draw_band(
    ax: Axes, curves: StepCurves, low: Floats, high: Floats, color: str, label: str | None = None
) -> None:
    """From lowest to highest, each entry as wide as its steps."""
    edges = np.stack([curves.first_step - 0.5, curves.last_step + 0.5], axis=1).ravel()
    low, high = np.repeat(low, 2), np.repeat(high, 2)
    ax.fill_between(edges, low, high, color=color, alpha=0.3, lw=0.5, label=label)


def _downsampled(steps: StepSeries | StepCurves) -> StepCurves:
    return sum_up(steps, POINTS) if isinstance(steps, StepSeries) else steps


def plot_sched(
    steps: StepSeries | StepCurves,
    epochs: Sequence[Epoch] = (),
    axes: Sequence[Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Draw the learning rate and the momentum of every parameter group by step.

    Args:
        steps: the recorded steps, with the hyperparameters "lr" and "momentum"; more than 4,096 are
            drawn downsampled.
        epochs: the finished epochs, marked where they end.
        axes: where to draw, two axes; a new figure if None.

    Raises:
        ArgumentError: if another number of axes is given.
    """
    rate, momentum = take_axes(axes, 2, (10.5, 3.8))
    curves = _downsampled(steps)
    _draw_hyper(rate, curves, epochs, "lr", "learning rate")
    _draw_hyper(momentum, curves, epochs, "momentum", "momentum (β₁ for Adam)")
    return rate, momentum


def _draw_hyper(
    ax: Axes, curves: StepCurves, epochs: Sequence[Epoch], name: str, label: str
) -> None:
    word = label.partition(" (")[0]
    label_axes(ax, word.capitalize(), label)
    band = curves.hypers.get(name)
    if band is None or not band.finite.any():
        say(ax, f"no {word} was recorded" + ("" if len(curves) else " yet"))
        return
    distinct = distinct_groups(band)
    for position, group in enumerate(distinct):
        color = (BLUE, ORANGE, GREEN)[position % 3]
        style = ("-", "--", ":")[(position // 3) % 3]
        if curves.width > 1:
            _draw_band(ax, curves, band.low[:, group], band.high[:, group], color)
        mean = band.mean[:, group]
        ax.plot(
            curves.middle_step, mean, style, color=color, lw=2, marker=marker(mean), ms=4,
            label=f"parameter group {group}",
        )  # fmt: skip
    ax.grid(axis="y", alpha=0.25)
    mark_epochs(ax, epochs)
    if len(distinct) > 1:
        ax.legend()


def distinct_groups(band: Band) -> list[int]:
    """The parameter groups to draw: those that always agree are one line, the first of them."""
    values = np.concatenate([band.low, band.high, band.mean])
    return sorted(np.unique(values, axis=1, return_index=True)[1].tolist())


def smoothed_loss(curves: StepCurves, smooth: float = SMOOTH, *, log: bool) -> Floats:
    """(K,) the training loss without its noise: an exponential mean in both directions.

    It looks both ways so that it does not lag behind, as a running mean does. Near the start it
    looks no further ahead than back, so that it begins where the loss begins.

    Args:
        curves: the training's series.
        smooth: how much of its weight the mean keeps from each step to the next; 0 smooths nothing.
        log: average the logarithms, for a logarithmic axis: one loss of a million must not lift its
            neighbours by decades.
    """
    weight = min(smooth**curves.width, max(0.0, 1.0 - REACH / len(curves)))
    mean = curves.loss.mean
    return np.exp(smoothed(np.log(mean), weight)) if log else smoothed(mean, weight)


def smoothed(values: Floats, weight: float) -> Floats:
    """Mean of all finite values, each weighing ``weight ** distance`` in steps, to both sides.

    The first values are averaged over as many values after them as there are before them. NaN where
    the value itself is not finite.
    """
    finite = np.isfinite(values)
    known = np.where(finite, values, 0.0)
    total, mass = _both_ways(known, weight), _both_ways(finite.astype(np.float64), weight)
    for i in range(len(values) // 2):
        if weight**i < NEGLIGIBLE:
            break
        kernel = weight ** np.abs(np.arange(-i, i + 1))
        total[i], mass[i] = kernel @ known[: 2 * i + 1], kernel @ finite[: 2 * i + 1]
    return np.divide(total, mass, out=np.full(len(values), np.nan), where=finite)


def _both_ways(values: Floats, weight: float) -> Floats:
    return _decayed(values, weight) + _decayed(values[::-1], weight)[::-1] - values


def _decayed(values: Floats, weight: float) -> Floats:
    """Sums of all values so far, each multiplied by ``weight`` per step."""

    def add(total: float, value: float) -> float:
        return weight * total + value

    return np.array(list(accumulate(values.tolist(), add)), np.float64)
