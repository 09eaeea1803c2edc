"""The convolution as a matrix, and the effective receptive field, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convlens.errors import ArgumentError
from convlens.plots.canvas import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Ints = NDArray[np.int64]

MOST_CELLS = 400
"""A matrix with more rows or columns cannot be read as a picture."""

LIGHT = "#9a9a9a"  # seen on black

FEW_COLUMNS = 40
"""Up to so many columns, values are written into their cells."""


def show_matrix(
    rows: Ints,
    columns: Ints,
    tied: Ints,
    values: NDArray[np.floating],
    shape: tuple[int, int],
    blocks: tuple[Sequence[int], Sequence[int]],
    n_weights: int,
    ax: Axes | None = None,
) -> Axes:
    """Draw a convolution's matrix: equal colours are one weight, white is zero.

    Args:
        rows: (n,) row of each entry.
        columns: (n,) its column.
        tied: (n,) the index of its weight.
        values: (n,) its number, written into the cells where there is room.
        shape: rows and columns of the matrix.
        blocks: shapes of output and input, (C, H, W); lines part channels and rows of pixels.
        n_weights: how many weights there are, for the colours.
        ax: where to draw; a new figure if None.

    Raises:
        ArgumentError: if the matrix is too large for a picture.
    """
    if max(shape) > MOST_CELLS:
        raise ArgumentError(
            f"the matrix is {shape[0]}×{shape[1]}; a picture shows at most {MOST_CELLS} rows and "
            "columns: give a smaller image."
        )
    ax = ax or _matrix_axes(shape)
    ax.imshow(_colours(rows, columns, tied, shape, n_weights), interpolation="nearest")
    if shape[1] <= FEW_COLUMNS:
        for row, column, value in zip(rows, columns, values, strict=True):
            word = f"{value:.2g}".replace("-", "−")
            ax.text(column, row, word, ha="center", va="center", fontsize=6.5)
    _part(ax, shape, blocks)
    ax.set_xlabel(f"pixels of the image, {_times(blocks[1])}")
    ax.set_ylabel(f"pixels of the output, {_times(blocks[0])}")
    ax.set_title(f"{len(values)} entries, {len(np.unique(tied))} weights, the rest zeros")
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def show_effective_field(
    share: NDArray[np.float64],
    center: Sequence[float],
    radius: Mapping[int, float],
    theoretical: float | None,
    *,
    log: bool = False,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw how much each pixel moves a unit, with the squares that hold 50, 90 and 99 % of it.

    Args:
        share: (H, W), each pixel's share.
        center: (row, column) of the centre.
        radius: half the square's side, by percentage.
        theoretical: that of the whole receptive field, drawn dashed; None draws none.
        log: logarithmic shades, over three decades.
        title: above it.
        ax: where to draw; a new figure if None.

    Raises:
        ArgumentError: if it is not a picture, but a line or a volume.
    """
    from matplotlib.colors import LogNorm, Normalize

    if share.ndim != 2:
        raise ArgumentError(f"share has {share.ndim} axes; only two can be drawn, (H, W).")
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(4.6, 4.8), layout="constrained")
    most = float(share.max())
    norm = LogNorm(most / 1000, most, clip=True) if log else Normalize(0, most)
    ax.imshow(share, cmap="magma", norm=norm, interpolation="nearest")
    shown = [(f"{name} %", r, "-") for name, r in radius.items()]
    shown += [("whole", theoretical, (0, (3, 3)))] if theoretical is not None else []
    for name, half, style in shown:
        _draw_square(ax, center, name, half, style)
    reach = 1.16 * max(half for _, half, _ in shown)
    ax.set_xlim(center[1] - reach, center[1] + reach)
    ax.set_ylim(center[0] + reach, center[0] - reach)
    ax.set_facecolor("black")
    ax.set_xticks([])
    ax.set_yticks([])
    if title:
        ax.set_title(title)
    return ax


def _draw_square(
    ax: Axes,
    center: Sequence[float],
    name: str,
    half: float,
    style: str | tuple[int, Sequence[int]],
) -> None:
    """A square around the centre, with its name: inside it, or below that of the whole field."""
    from matplotlib.patches import Rectangle

    is_whole = name == "whole"
    ax.add_patch(
        Rectangle(
            (center[1] - half, center[0] - half), 2 * half, 2 * half,
            fill=False, edgecolor=LIGHT if is_whole else "white", lw=1.6, ls=style,
        )
    )  # fmt: skip
    ax.annotate(
        name,
        (center[1], center[0] + half if is_whole else center[0] - half),
        textcoords="offset points",
        xytext=(0, -3),
        ha="center",
        va="top",
        fontsize=7.5,
        color="white",
    )


def _colours(
    rows: Ints, columns: Ints, tied: Ints, shape: tuple[int, int], n_weights: int
) -> NDArray[np.floating]:
    """(rows, columns, 3): a light colour for each weight, told apart as far as there are so few."""
    import matplotlib as mpl

    picture = np.ones((*shape, 3))
    if n_weights <= 20:
        palette = np.asarray(mpl.colormaps["tab20"].colors)  # pyright: ignore[reportAttributeAccessIssue]
        order = np.concatenate([palette[1::2], palette[::2] * 0.6 + 0.4])
    else:
        order = mpl.colormaps["hsv"](np.linspace(0, 0.92, n_weights))[:, :3] * 0.55 + 0.45
    picture[rows, columns] = order[tied]
    return picture


def _part(ax: Axes, shape: tuple[int, int], blocks: tuple[Sequence[int], Sequence[int]]) -> None:
    """Thin lines between the image's rows, thicker ones between channels."""
    for line, n, sizes in (
        (ax.axhline, shape[0], blocks[0]), (ax.axvline, shape[1], blocks[1]),
    ):  # fmt: skip
        channel, row = prod(sizes[1:]), prod(sizes[2:])
        for place in range(row, n, row):
            thick = place % channel == 0
            line(place - 0.5, color=GREY, lw=1.4 if thick else 0.5)


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _matrix_axes(shape: tuple[int, int]) -> Axes:
    import matplotlib.pyplot as plt

    cell = min(0.3, 9.0 / shape[1], 7.0 / shape[0])
    size = (max(4.0, shape[1] * cell + 0.6), max(2.5, shape[0] * cell + 1.0))
    _, ax = plt.subplots(figsize=size, layout="constrained")
    return ax
