"""What all plots share: axes, epoch marks, scales, colours, a sentence in empty axes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from convlens.core.buckets import Flags, Floats, Ints
from convlens.core.histories import FORWARD, LayerHistory
from convlens.core.records import Epoch
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import FuncNorm
    from matplotlib.figure import Figure

STEP_LABEL = "batch (optimizer step)"
FORWARD_LABEL = "forward of the model"
NONFINITE_LABEL = "NaN or infinite"

# Okabe and Ito's palette: told apart with every common colour blindness.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
GREY = "#767676"

# Up to so many points are marked one by one.
FEW = 40

# Beyond these numbers, epoch lines or their names would cover what they should explain.
MAX_EPOCH_LINES = 60
MAX_EPOCH_NAMES = 12


def new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure, in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def take_axes(axes: Sequence[Axes] | None, columns: int, size: tuple[float, float]) -> list[Axes]:
    """The axes that were given, or those of a new figure of ``size`` inches, side by side.

    Raises:
        ArgumentError: if another number of axes was given than is drawn on.
    """
    if axes is None:
        import matplotlib.pyplot as plt

        _, grid = plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)
        return list(grid.ravel())
    if len(axes) != columns:
        raise ArgumentError(
            f"axes has {len(axes)} entries, but this plot draws on {columns}; "
            "give that many, or None for a new figure."
        )
    return list(axes)


def figure_of(ax: Axes) -> Figure:
    """The whole figure that holds the axes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def step_label(history: LayerHistory) -> str:
    """The step axis's label: what the steps of a history count."""
    return FORWARD_LABEL if history.counted == FORWARD else STEP_LABEL


def label_axes(ax: Axes, title: str, ylabel: str, xlabel: str = STEP_LABEL) -> None:
    """Set the title, the step axis and the value axis."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax.set_title(title, parse_math=False)  # a name may hold dollar signs
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    # Whole values at the ticks: a common factor would lie under the epochs' numbers.
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def mark_epochs(ax: Axes, epochs: Sequence[Epoch], color: str = GREY) -> None:
    """Draw a dashed line where each epoch ends, and its number, from 1, above the axes."""
    if epochs:
        ax.set_title(ax.get_title(), pad=18)  # room for the numbers
    every = -(-len(epochs) // MAX_EPOCH_NAMES)
    for position, epoch in enumerate(epochs):
        if len(epochs) <= MAX_EPOCH_LINES:
            ax.axvline(epoch.last_step + 0.5, color=color, lw=0.9, ls=(0, (3, 3)), zorder=3)
        if position % every == 0:
            middle = (epoch.first_step + epoch.last_step) / 2
            word = "epoch " if position == 0 else ""
            ax.text(
                middle, 1.015, f"{word}{epoch.epoch + 1}", transform=ax.get_xaxis_transform(),
                ha="center", va="bottom", fontsize="x-small", color=GREY,
            )  # fmt: skip


def mark_nonfinite(ax: Axes, first: Ints, width: Ints, bad: Flags) -> None:
    """Draw an orange band along the top where values are NaN or infinite.

    Args:
        ax: where to draw.
        first: (K,) first step of each column.
        width: (K,) how many steps each is wide.
        bad: (K,) whether to mark it.
    """
    if bad.any():
        ax.broken_barh(
            list(zip((first[bad] - 0.5).tolist(), width[bad].tolist(), strict=True)),
            (0.96, 0.04),
            transform=ax.get_xaxis_transform(),
            facecolor=ORANGE,
            label=NONFINITE_LABEL,
            zorder=4,
        )


def scale_values(ax: Axes, values: Floats) -> None:
    """Make the axis logarithmic where a few huge values would press all others flat.

    Where some values are not positive, it is linear around zero up to the median magnitude.
    """
    from matplotlib.ticker import SymmetricalLogLocator

    finite = values[np.isfinite(values)]
    sizes = np.abs(finite[finite != 0])
    if not len(sizes) or sizes.max() <= 300 * np.median(sizes):
        return
    if (finite > 0).all():
        ax.set_yscale("log")
        ax.set_ylabel(f"{ax.get_ylabel()} (log scale)")
        return
    linear = 10.0 ** np.ceil(np.log10(np.median(sizes)))
    decades = np.log10(sizes.max() / linear)
    # The linear part keeps a tenth of the height however many decades there are.
    ax.set_yscale("symlog", linthresh=linear, linscale=max(1.0, decades / 10))
    locator = SymmetricalLogLocator(base=10, linthresh=linear)
    locator.set_params(numticks=7)
    ax.yaxis.set_major_locator(locator)
    ax.set_ylabel(f"{ax.get_ylabel()} (log beyond ±{linear:g})")


def marker(values: Floats) -> str:
    """Mark points where they are few: a line through a single one would not be seen."""
    return "o" if np.isfinite(values).sum() <= FEW else ""


def log_norm(most: float, steepness: float = 1.0) -> FuncNorm:
    """Colours by log(1 + steepness · value), from 0 to ``most``."""
    from matplotlib.colors import FuncNorm

    def forward(value: Floats) -> Floats:
        return np.log1p(steepness * value)

    def inverse(colour: Floats) -> Floats:
        return np.expm1(colour) / steepness

    return FuncNorm((forward, inverse), vmin=0.0, vmax=most)


def label_colour_bar(bar: Colorbar, label: str, ticks: Mapping[float, str]) -> None:
    """Write the label and the ticks, by value."""
    bar.set_label(label)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.minorticks_off()


def short_count(count: int) -> str:
    """A power of ten as a label: 100, 1 k, 10 M."""
    for power, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= power:
            return f"{count // power} {letter}"
    return str(count)


def say(ax: Axes, text: str, *, keep_steps: bool = False) -> None:
    """Write a sentence in the middle of axes that have nothing to show."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.35")
    ax.set_yticks([])
    if not keep_steps:
        ax.set_xticks([])


def as_html(ax: Axes, alt: str) -> str:
    """The figure as an ``<img>`` of its own, for a notebook; the figure is closed."""
    import matplotlib.pyplot as plt

    figure, file = figure_of(ax), io.BytesIO()
    figure.savefig(file, format="png", dpi=70)
    plt.close(figure)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{data}">'
