"""The loss by learning rate, as a sweep has measured it."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from convlens.core.buckets import Floats
from convlens.plots.canvas import BLUE, GREEN, GREY, ORANGE, say, take_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = 60
"""Characters of a line of text."""

ABOVE, BELOW = 0.35, 0.12
"""What is drawn above the first losses, and below the lowest, as shares of the fall."""


def plot_lr_finding(
    lrs: Floats,
    losses: Floats,
    smoothed: Floats,
    suggested: Mapping[str, float],
    reason: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw the loss by learning rate, and the rates that it suggests as points of the curve.

    Args:
        lrs: (S,) the rates, ascending.
        losses: (S,) the loss after the step with each.
        smoothed: (S,) the same without noise.
        suggested: rates by name, the recommended one first.
        reason: why nothing is suggested, "" if something is.
        ax: where to draw, a new figure if None.
    """
    (ax,) = take_axes(None if ax is None else [ax], 1, (7.5, 4.2))
    ax.set_title("Loss after a step at each learning rate")
    ax.set_xlabel("learning rate (log scale)")
    ax.set_ylabel("training loss")
    ax.set_xscale("log")
    if len(lrs) < 2:
        say(ax, fill(reason, LINE), keep_steps=True)
        return ax
    ax.plot(lrs, losses, color=BLUE, lw=0.8, alpha=0.4, label="each batch")
    ax.plot(lrs, smoothed, color=BLUE, lw=2, label="smoothed")
    _limit(ax, losses, smoothed)
    for position, (name, rate) in enumerate(suggested.items()):
        _mark(ax, name, rate, float(np.interp(np.log(rate), np.log(lrs), smoothed)), position)
    ax.grid(axis="y", alpha=0.25)
    title = fill(reason, LINE) or None
    ax.legend(loc="lower left", fontsize="small", title=title, alignment="left")
    return ax


def _mark(ax: Axes, name: str, rate: float, loss: float, position: int) -> None:
    """A point on the curve and its rate in the legend; the first one with a line across."""
    color = (ORANGE, GREEN, GREY, "#CC79A7")[position % 4]
    if position == 0:
        ax.axvline(rate, color=color, lw=1.2, ls=(0, (4, 3)))
    style = ("o", "s", "D", "^")[position % 4]
    ax.plot([rate], [loss], style, color=color, ms=8 if position == 0 else 6, zorder=4,
            mec="white", label=f"{name}: {rate:.2g}")  # fmt: skip


def _limit(ax: Axes, losses: Floats, smoothed: Floats) -> None:
    """Show the fall; how high a diverging loss gets does not matter."""
    start, low = float(smoothed[0]), float(smoothed.min())
    first = losses[: max(1, len(losses) // 3)]
    height = max(start - low, float(np.ptp(first)), 1e-3 * abs(start), 1e-12)
    top = max(float(first.max()), start) + ABOVE * height
    ax.set_ylim(low - BELOW * height, min(top, float(losses.max()) + BELOW * height))
