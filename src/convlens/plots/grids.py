"""Grids of numbers as pictures: kernels, feature maps, planes of an image, a kernel's places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convlens.errors import ArgumentError
from convlens.plots.canvas import BLUE, GREY, ORANGE, say_empty

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.floating]

TILE_IN = 1.15  # width of a tile in a new figure, inches
FEW_PIXELS = 16  # up to so many, a kernel's numbers are written into it
CAPTION_PT = 8.0
PANEL_IN = 2.3  # width of a panel that shows a whole layer, inches

MOST_LAYERS = 60
"""So many panels one figure holds at most: with more, none of them could be read."""


def show_tiles(
    values: Array,
    captions: Sequence[str] = (),
    *,
    columns: int | None = None,
    signed: bool = True,
    shared: bool = True,
    numbers: bool | None = None,
    title: str = "",
    figure: Figure | None = None,
) -> list[Axes]:
    """Draw numbers in a grid of tiles, one for each kernel or feature map.

    Args:
        values: (N, H, W), a tile each; or (N, H, W, 3), in colour, from 0 to 1.
        captions: N texts above them, or none.
        columns: tiles in a row; None for a grid about twice as wide as high.
        signed: red above 0, blue below, white at 0; otherwise from black to white.
        shared: one scale for all tiles, with a colour bar; otherwise each has its own.
        numbers: whether each number is written into its pixel; None: where they are few.
        title: above all.
        figure: where to draw; a new one if None.

    Returns:
        The tiles' axes, without the colour bar's.

    Raises:
        ArgumentError: if the values are no such array, or the captions are not as many.
    """
    _check(values, captions, columns)
    n, height, width = values.shape[:3]
    if columns is None:
        columns = math.ceil(math.sqrt(2.0 * max(n, 1) * height / width))
    columns = max(1, min(n, columns))
    rows = max(1, math.ceil(n / columns))
    figure = figure or _new_figure(columns, rows, height / width, bool(captions), bool(title))
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes:
        ax.set_axis_off()
    if n == 0:
        say_empty(axes[0], "nothing to show")
    colour = values.ndim == 4
    low, high = _limits(values, signed)
    if numbers is None:
        numbers = not colour and height * width <= FEW_PIXELS
    image = None
    for i, (ax, tile) in enumerate(zip(axes, values, strict=False)):
        limits = (low, high) if shared else _limits(tile, signed)
        image = ax.imshow(
            np.clip(tile, 0, 1) if colour else tile,
            cmap="RdBu_r" if signed else "gray",
            vmin=limits[0],
            vmax=limits[1],
            interpolation="nearest",
        )
        if captions:
            ax.set_title(captions[i], fontsize=CAPTION_PT, pad=3, parse_math=False)
        if numbers:
            _write_numbers(ax, tile, limits)
    if image is not None and shared and not colour and not numbers:
        figure.colorbar(image, ax=axes, fraction=0.04 / columns * 3, pad=0.02, aspect=25)
    if title:
        figure.suptitle(title, fontsize=CAPTION_PT + 3, parse_math=False)
    return axes[:n] or axes[:1]


def show_mosaics(
    layers: Mapping[str, Array], *, columns: int | None = None, figure: Figure | None = None
) -> list[Axes]:
    """Draw several stacks of tiles, a panel for each: all feature maps of all layers.

    Red is above 0, blue below, white 0; each panel has its own scale, since layers differ. Tiles
    are parted by grey lines. Of more than 60 panels the first are drawn.

    Args:
        layers: by title, (N, H, W) each.
        columns: panels in a row; None for a grid about twice as wide as high.
        figure: where to draw; a new one if None.

    Raises:
        ArgumentError: if there is nothing to draw.
    """
    if not layers:
        raise ArgumentError("layers is empty; give the maps of one layer at least.")
    shown = list(layers.items())[:MOST_LAYERS]
    axes = panel_axes(len(shown), 1.0, figure, columns)
    for ax, (title, maps) in zip(axes, shown, strict=True):
        low, high = _limits(maps, signed=True)
        ax.imshow(_mosaic(maps), cmap="RdBu_r", vmin=low, vmax=high, interpolation="nearest")
        ax.set_facecolor(GREY)
        ax.set_title(title, fontsize=CAPTION_PT, pad=3, parse_math=False)
        ax.set_xticks([])
        ax.set_yticks([])
    say_left_out(axes, len(layers))
    return axes


def say_left_out(axes: Sequence[Axes], n_layers: int) -> None:
    """Above all panels, that there are more layers than panels, if there are."""
    figure = axes[0].get_figure(root=True)
    if figure is not None and n_layers > len(axes):
        text = f"the first {len(axes)} of {n_layers} layers; name a layer to see it"
        figure.suptitle(text, fontsize=CAPTION_PT + 2)


def _mosaic(maps: Array) -> Array:
    """(N, H, W) as one picture, row by row, with a line of NaN between them.

    Small tiles are enlarged, pixel by pixel, so that the line is thin beside them.
    """
    times = max(1, math.ceil(12 / maps.shape[2]))
    maps = maps.repeat(times, axis=1).repeat(times, axis=2)
    n, height, width = maps.shape
    across = max(1, math.ceil(math.sqrt(n * height / width)))
    down = math.ceil(n / across)
    gap = max(1, round(width / 24))
    picture = np.full((down * (height + gap) - gap, across * (width + gap) - gap), np.nan)
    for i, tile in enumerate(maps):
        row, column = divmod(i, across)
        top, left = row * (height + gap), column * (width + gap)
        picture[top : top + height, left : left + width] = tile
    return picture


def panel_axes(
    n: int, aspect: float, figure: Figure | None, columns: int | None = None
) -> list[Axes]:
    """``n`` axes in a grid about twice as wide as high, of a new figure if there is none.

    Args:
        n: how many, at least 1.
        aspect: height of a panel by its width.
        figure: where to make them.
        columns: panels in a row.
    """
    import matplotlib.pyplot as plt

    columns = min(n, columns or math.ceil(math.sqrt(2.0 * n * aspect)))
    rows = math.ceil(n / columns)
    if figure is None:
        size = (columns * PANEL_IN, rows * (PANEL_IN * aspect + 0.35) + 0.2)
        figure = plt.figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[n:]:
        ax.remove()
    return axes[:n]


def show_rectangle(
    image: Array,
    rectangle: Sequence[tuple[int, int]] | None,
    title: str = "",
    ax: Axes | None = None,
    pixel: tuple[float, float] | None = None,
) -> Axes:
    """Draw an image with a rectangle on it, such as a unit's receptive field.

    Args:
        image: (H, W) grey or (H, W, 3), from 0 to 1.
        rectangle: ((top, bottom), (left, right)), pixels, both inclusive; None draws none.
        title: above it.
        ax: where to draw; a new figure if None.
        pixel: (row, column) of a point to mark, such as the field's centre.
    """
    from matplotlib.patches import Rectangle

    ax = ax or _new_axes(image.shape[0] / image.shape[1])
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if rectangle is not None:
        (top, bottom), (left, right) = rectangle
        height, width = bottom - top + 1, right - left + 1
        shade = np.zeros((*image.shape[:2], 4))
        shade[..., 3] = 0.55
        shade[top : bottom + 1, left : right + 1, 3] = 0.0
        ax.imshow(shade, interpolation="nearest")
        for color, line in (("white", 4.0), (ORANGE, 2.0)):
            ax.add_patch(
                Rectangle(
                    (left - 0.5, top - 0.5), width, height, fill=False, edgecolor=color, lw=line
                )
            )
    if pixel is not None:
        ax.plot(pixel[1], pixel[0], "+", color=ORANGE, ms=10, mew=2)
    ax.set_xlim(-0.5, image.shape[1] - 0.5)
    ax.set_ylim(image.shape[0] - 0.5, -0.5)
    ax.set_title(title, fontsize=_title_size(ax, title), parse_math=False)
    return ax


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
    ax = ax or _new_axes((high[0] - low[0] + 1) / (high[1] - low[1] + 1))
    for row in range(low[0], high[0] + 1):
        for column in range(low[1], high[1] + 1):
            inside = 0 <= row < sizes[0] and 0 <= column < sizes[1]
            covered = row in read[0] and column in read[1]
            ax.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5),
                    1,
                    1,
                    facecolor="#d9d9d9" if inside else "white",
                    edgecolor=GREY if inside else "#bbbbbb",
                    lw=0.8,
                    ls="-" if inside else ":",
                    hatch="////" if inside and not covered else None,
                )
            )
    corners = [(rows[0], columns[0]), *([(rows[0], columns[1])] if len(columns) > 1 else [])]
    for (down, across), color in zip(corners, (ORANGE, BLUE), strict=False):
        box = (across[0] - 0.5, down[0] - 0.5), across[-1] - across[0] + 1, down[-1] - down[0] + 1
        ax.add_patch(Rectangle(*box, fill=False, edgecolor=color, lw=2.5, zorder=3))
    middles = [[(place[0] + place[-1]) / 2 for place in places] for places in (rows, columns)]
    across, down = np.meshgrid(middles[1], middles[0])
    ax.plot(across.ravel(), down.ravel(), "o", color="black", ms=4, zorder=4)
    ax.set_xlim(low[1] - 0.7, high[1] + 0.7)
    ax.set_ylim(high[0] + 0.7, low[0] - 0.7)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def _limits(values: Array, signed: bool) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return -1.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if signed:
        most = max(-low, high) or 1.0
        return -most, most
    return low, high if high > low else low + 1.0


def _write_numbers(ax: Axes, tile: Array, limits: tuple[float, float]) -> None:
    dark = 0.6 * limits[1]
    for (row, column), value in np.ndenumerate(tile):
        ax.text(
            column,
            row,
            f"{value:.2g}".replace("-", "−"),
            ha="center",
            va="center",
            fontsize=9 if tile.shape[1] <= 3 else 6.5,
            color="white" if abs(value) > dark else "black",
        )


def _check(values: Array, captions: Sequence[str], columns: int | None) -> None:
    if values.ndim != 3 and not (values.ndim == 4 and values.shape[3] == 3):
        raise ArgumentError(
            f"values has shape {values.shape}; expected (N, H, W), or (N, H, W, 3) in colour."
        )
    if captions and len(captions) != len(values):
        raise ArgumentError(
            f"captions has {len(captions)} texts for {len(values)} tiles; give one for each, or "
            "none at all."
        )
    if columns is not None and columns < 1:
        raise ArgumentError(f"columns={columns} is the number of tiles in a row; give at least 1.")


def _new_figure(columns: int, rows: int, aspect: float, captions: bool, title: bool) -> Figure:
    import matplotlib.pyplot as plt

    tile = max(TILE_IN, 2.4 / columns)
    height = rows * (tile * aspect + (0.22 if captions else 0.06)) + (0.35 if title else 0.1)
    return plt.figure(figsize=(columns * tile + 0.6, height), layout="constrained")


def _title_size(ax: Axes, title: str) -> float:
    """Points that let a title's longest line, such as a long layer's name, fit above its axes."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    usual = FontProperties(size=rcParams["axes.titlesize"]).get_size_in_points()
    longest = max(map(len, title.split("\n")))
    room = 72 * ax.get_position().width * ax.get_figure(root=True).get_figwidth()  # pyright: ignore[reportOptionalMemberAccess]
    return max(5.0, min(usual, room / (0.5 * max(longest, 1))))  # a letter is about half as wide


def _new_axes(aspect: float) -> Axes:
    import matplotlib.pyplot as plt

    width = 5.0
    _, ax = plt.subplots(figsize=(width, min(8.0, width * aspect + 0.4)), layout="constrained")
    return ax
