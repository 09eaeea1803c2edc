"""What a convolution sees of an image, and the convolution as a matrix, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convlens.errors import ArgumentError
from convlens.plots.canvas import BLUE, GREY, ORANGE, figure_of, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Ints = NDArray[np.int64]
Array = NDArray[np.floating]

MOST_CELLS = 400
"""A matrix with more rows or columns cannot be read as a picture."""

FEW_COLUMNS = 40
"""Up to so many columns, values are written into their cells."""


def show_matrix(
    rows: Ints,
    columns: Ints,
    tied: Ints,
    values: Array,
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
    if ax is None:
        cell = min(0.3, 9.0 / shape[1], 7.0 / shape[0])
        ax = new_axes(max(4.0, shape[1] * cell + 0.6), max(2.5, shape[0] * cell + 1.0))
    picture = np.ones((*shape, 3))
    picture[rows, columns] = _weight_colours(n_weights)[tied]
    ax.imshow(picture, interpolation="nearest")
    if shape[1] <= FEW_COLUMNS:
        for row, column, value in zip(rows, columns, values, strict=True):
            word = f"{value:.2g}".replace("-", "−")
            ax.text(column, row, word, ha="center", va="center", fontsize=6.5)
    # Thin lines between the image's rows, thicker ones between channels.
    for line, n, sizes in ((ax.axhline, shape[0], blocks[0]), (ax.axvline, shape[1], blocks[1])):
        channel, row = prod(sizes[1:]), prod(sizes[2:])
        for place in range(row, n, row):
            line(place - 0.5, color=GREY, lw=0.5 if place % channel else 1.4)
    ax.set_xlabel(f"pixels of the image, {'×'.join(map(str, blocks[1]))}")
    ax.set_ylabel(f"pixels of the output, {'×'.join(map(str, blocks[0]))}")
    ax.set_title(f"{len(values)} entries, {len(np.unique(tied))} weights, the rest zeros")
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def _weight_colours(n: int) -> Array:
    """(n or more, 3): a light colour for each weight, as distinct as their number permits."""
    import matplotlib as mpl

    if n > 20:
        return mpl.colormaps["hsv"](np.linspace(0, 0.92, n))[:, :3] * 0.55 + 0.45
    palette = np.asarray(mpl.colormaps["tab20"].colors)  # pyright: ignore[reportAttributeAccessIssue]
    return np.concatenate([palette[1::2], palette[::2] * 0.6 + 0.4])


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
    from matplotlib.patches import Rectangle

    if share.ndim != 2:
        raise ArgumentError(f"share has {share.ndim} axes; only two can be drawn, (H, W).")
    ax = ax or new_axes(4.6, 4.8)
    most = float(share.max())
    norm = LogNorm(most / 1000, most, clip=True) if log else Normalize(0, most)
    ax.imshow(share, cmap="magma", norm=norm, interpolation="nearest")
    row, column = center
    # Names stand inside the squares, that of the whole field below it.
    squares = [(f"{name} %", half, "white", "-", -half) for name, half in radius.items()]
    if theoretical is not None:
        squares.append(("whole", theoretical, "#9a9a9a", "--", theoretical))
    for name, half, color, style, place in squares:
        corner = column - half, row - half
        box = Rectangle(corner, 2 * half, 2 * half, fill=False, edgecolor=color, lw=1.6, ls=style)
        ax.add_patch(box)
        ax.annotate(
            name, (column, row + place), textcoords="offset points", xytext=(0, -3),
            ha="center", va="top", fontsize=7.5, color="white",
        )  # fmt: skip
    reach = 1.16 * max(half for _, half, *_ in squares)
    ax.set_xlim(column - reach, column + reach)
    ax.set_ylim(row + reach, row - reach)
    ax.set_facecolor("black")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title)
    return ax


def show_rectangle(
    image: Array,
    rectangle: Sequence[tuple[int, int]] | None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw an image with a rectangle on it, such as a unit's receptive field.

    Args:
        image: (H, W) grey or (H, W, 3), from 0 to 1.
        rectangle: ((top, bottom), (left, right)), pixels, both inclusive; None draws none.
        title: above it.
        ax: where to draw; a new figure if None.
    """
    from matplotlib.patches import Rectangle

    ax = ax or _image_axes(image.shape[0] / image.shape[1])
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if rectangle is not None:
        (top, bottom), (left, right) = rectangle
        height, width = bottom - top + 1, right - left + 1
        shade = np.zeros((*image.shape[:2], 4))
        shade[..., 3] = 0.55
        shade[top : bottom + 1, left : right + 1, 3] = 0.0
        ax.imshow(shade, interpolation="nearest")
        for color, line in (("white", 4.0), (ORANGE, 2.0)):
            corner = left - 0.5, top - 0.5
            ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, lw=line))
    ax.set_xlim(-0.5, image.shape[1] - 0.5)
    ax.set_ylim(image.shape[0] - 0.5, -0.5)
    ax.set_title(title, fontsize=_title_size(ax, title), parse_math=False)
    return ax


def _title_size(ax: Axes, title: str) -> float:
    """Points that let a title's longest line, such as a long layer's name, fit above its axes."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    usual = FontProperties(size=rcParams["axes.titlesize"]).get_size_in_points()
    longest = max(map(len, title.split("\n")))
    room = 72 * ax.get_position().width * figure_of(ax).get_figwidth()
    return max(5.0, min(usual, room / (0.5 * max(longest, 1))))  # a letter is about half as wide


def show_places(
    sizes: tuple[int, int],
    rows: Sequence[Sequence[int]],
    columns: Sequence[Sequence[int]],
    ax: Axes | None = None,
) -> Axes:
    """Draw the places that a kernel takes on a padded grid.

    The image's pixels are grey, or hatched where no place reads them, and the padding is white.
    Each place has a dot in its middle; the first two are outlined.

    Args:
        sizes: (H, W), pixels of the image.
        rows: for each place along the rows, the rows that the kernel reads, below 0 in the padding.
        columns: the same along the columns.
        ax: where to draw; a new figure if None.
    """
    from matplotlib.patches import Rectangle

    read = [{pixel for place in places for pixel in place} for places in (rows, columns)]
    low = [min(0, *r) for r in read]
    high = [max(n - 1, *r) for n, r in zip(sizes, read, strict=True)]
    ax = ax or _image_axes((high[0] - low[0] + 1) / (high[1] - low[1] + 1))
    for row in range(low[0], high[0] + 1):
        for column in range(low[1], high[1] + 1):
            pixel = Rectangle((column - 0.5, row - 0.5), 1, 1, lw=0.8)
            if 0 <= row < sizes[0] and 0 <= column < sizes[1]:
                covered = row in read[0] and column in read[1]
                hatch = None if covered else "////"
                pixel.set(facecolor="#d9d9d9", edgecolor=GREY, hatch=hatch)
            else:
                pixel.set(facecolor="white", edgecolor="#bbbbbb", ls=":")
            ax.add_patch(pixel)
    for across, color in zip(columns, (ORANGE, BLUE), strict=False):
        corner = across[0] - 0.5, rows[0][0] - 0.5
        size = across[-1] - across[0] + 1, rows[0][-1] - rows[0][0] + 1
        ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, lw=2.5, zorder=3))
    middles = [[(place[0] + place[-1]) / 2 for place in places] for places in (rows, columns)]
    across, down = np.meshgrid(middles[1], middles[0])
    ax.plot(across.ravel(), down.ravel(), "o", color="black", ms=4, zorder=4)
    ax.set_xlim(low[1] - 0.7, high[1] + 0.7)
    ax.set_ylim(high[0] + 0.7, low[0] - 0.7)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def _image_axes(aspect: float) -> Axes:
    return new_axes(5.0, min(8.0, 5.0 * aspect + 0.4))
