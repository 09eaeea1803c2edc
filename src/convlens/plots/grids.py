"""Grids of pictures: images with captions, kernels, feature maps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convlens.errors import ArgumentError
from convlens.plots.canvas import GREY, figure_of, new_axes, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.floating]

FEW_PIXELS = 16  # up to so many, a kernel's numbers are written into it
CAPTION_PT = 8.0
LINE_IN = CAPTION_PT * 1.25 / 72  # height of a line of text, inches
CHARACTER_IN = CAPTION_PT * 0.58 / 72  # mean width of a character, inches
PANEL_IN = 2.3  # width of a panel that shows a whole layer, inches
GAP = 0.1  # the gap beside an image, as a share of its width

OVERLAY = 0.6
"""Opacity of a map that lies over an image."""

MOST_LAYERS = 60
"""The most panels in one figure: with more, none could be read."""


def show_images(
    images: NDArray[np.uint8],
    captions: Sequence[str] = (),
    columns: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw images in a grid, each under its caption, all in one axes.

    Args:
        images: (N, H, W) grey or (N, H, W, 3) colour, uint8.
        captions: N texts, or none; long ones are wrapped.
        columns: images in a row; None for a grid about twice as wide as high.
        ax: where to draw, a new figure if None.

    Raises:
        ArgumentError: if the images are no such array, or the captions are not as many.
    """
    if images.dtype != np.uint8 or not _is_stack(images):
        raise ArgumentError(
            f"images has shape {images.shape} and dtype {images.dtype}; expected uint8 pictures of "
            "shape (N, H, W) or (N, H, W, 3), such as dls.to_uint8(x) gives."
        )
    columns = _columns("images", images, captions, columns)
    n, height, width = images.shape[:3]
    tile_in = 1.3 if ax is None else ax.get_window_extent().width / figure_of(ax).dpi / columns
    wrapped = [textwrap.wrap(text, max(4, int(tile_in / CHARACTER_IN))) for text in captions]
    lines = max(map(len, wrapped), default=0)
    pixels_per_in = width * (1.0 + GAP) / tile_in
    gap, above = GAP * width, lines * LINE_IN * pixels_per_in
    row, rows = height + gap + above, max(1, math.ceil(n / columns))
    ax = ax or new_axes(columns * tile_in, rows * row / pixels_per_in)
    ax.set_axis_off()
    if n == 0:
        say(ax, "no images")
        return ax
    for i, image in enumerate(images):
        left, top = (i % columns) * (width + gap), (i // columns) * row + above
        box = (left, left + width, top + height, top)
        smooth = "nearest" if width <= 64 else "antialiased"
        ax.imshow(image, cmap="gray", vmin=0, vmax=255, extent=box, interpolation=smooth)
        if captions:
            ax.text(
                left + width / 2, top - 0.3 * gap, "\n".join(wrapped[i]), ha="center", va="bottom",
                fontsize=CAPTION_PT, linespacing=1.1, parse_math=False,  # a name may hold $
            )  # fmt: skip
    ax.set_xlim(-0.5 * gap, columns * (width + gap) - 0.5 * gap)
    ax.set_ylim(rows * row - 0.5 * gap, -0.5 * gap)
    ax.set_aspect("equal")
    return ax


def show_overlays(
    images: NDArray[np.uint8],
    maps: Array,
    captions: Sequence[str] = (),
    columns: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw each image beside itself with a map laid over it: viridis, from dark blue to yellow.

    Args:
        images: (N, H, W) grey or (N, H, W, 3) colour, uint8.
        maps: (N, H, W) from 0 to 1.
        captions: N texts, or none.
        columns: pairs in a row; None for a grid about twice as wide as high.
        ax: where to draw, a new figure if None.

    Raises:
        ArgumentError: if the images are no such array, or maps or captions do not fit them.
    """
    import matplotlib as mpl

    if maps.shape != images.shape[:3]:
        raise ArgumentError(f"maps has shape {maps.shape} for images {images.shape}.")
    grey = images.ndim == 3
    colour = np.repeat(images[..., None], 3, axis=3) if grey else images
    heat = 255 * mpl.colormaps["viridis"](np.clip(maps, 0, 1))[..., :3]
    mixed = (OVERLAY * heat + (1 - OVERLAY) * colour).round().astype(np.uint8)
    return show_images(np.concatenate([colour, mixed], axis=2), captions, columns, ax)


def show_tiles(
    values: Array,
    captions: Sequence[str] = (),
    *,
    columns: int | None = None,
    signed: bool = True,
    numbers: bool | None = None,
    title: str = "",
    figure: Figure | None = None,
) -> list[Axes]:
    """Draw numbers in a grid of tiles on one scale, one for each kernel or feature map.

    Args:
        values: (N, H, W), a tile each; or (N, H, W, 3), in colour, from 0 to 1.
        captions: N texts above them, or none.
        columns: tiles in a row; None for a grid about twice as wide as high.
        signed: red above 0, blue below, white at 0; otherwise from black to white.
        numbers: whether each number is written into its pixel; None: where they are few.
        title: above all.
        figure: where to draw; a new one if None.

    Returns:
        The tiles' axes, without the colour bar's.

    Raises:
        ArgumentError: if the values are no such array, or the captions are not as many.
    """
    if not _is_stack(values):
        raise ArgumentError(
            f"values has shape {values.shape}; expected (N, H, W), or (N, H, W, 3) in colour."
        )
    columns = _columns("tiles", values, captions, columns)
    (n, height, width), colour = values.shape[:3], values.ndim == 4
    rows = max(1, math.ceil(n / columns))
    if figure is None:
        import matplotlib.pyplot as plt

        tile = max(1.15, 2.4 / columns)
        row = tile * height / width + (0.22 if captions else 0.06)
        size = (columns * tile + 0.6, rows * row + (0.35 if title else 0.1))
        figure = plt.figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes:
        ax.set_axis_off()
    if n == 0:
        say(axes[0], "nothing to show")
    if numbers is None:
        numbers = not colour and height * width <= FEW_PIXELS
    low, high = _limits(values, signed)
    colours = "RdBu_r" if signed else "gray"
    image = None
    for i, (ax, tile) in enumerate(zip(axes, values, strict=False)):
        shown = np.clip(tile, 0, 1) if colour else tile
        image = ax.imshow(shown, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        if captions:
            ax.set_title(captions[i], fontsize=CAPTION_PT, pad=3, parse_math=False)
        if numbers:
            _write_numbers(ax, tile, 0.6 * high)
    if image is not None and not colour and not numbers:
        figure.colorbar(image, ax=axes, fraction=0.12 / columns, pad=0.02, aspect=25)
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
    """Say above all panels that there are more layers than panels, if there are."""
    if n_layers > len(axes):
        text = f"the first {len(axes)} of {n_layers} layers; name a layer to see it"
        figure_of(axes[0]).suptitle(text, fontsize=CAPTION_PT + 2)


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
        top, left = i // across * (height + gap), i % across * (width + gap)
        picture[top : top + height, left : left + width] = tile
    return picture


def _limits(values: Array, signed: bool) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return -1.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if signed:
        most = max(-low, high) or 1.0
        return -most, most
    return low, high if high > low else low + 1.0


def _write_numbers(ax: Axes, tile: Array, dark: float) -> None:
    size = 9 if tile.shape[1] <= 3 else 6.5
    for (row, column), value in np.ndenumerate(tile):
        word, color = f"{value:.2g}".replace("-", "−"), "white" if abs(value) > dark else "black"
        ax.text(column, row, word, ha="center", va="center", fontsize=size, color=color)


def _is_stack(values: NDArray[Any]) -> bool:
    return values.ndim == 3 or (values.ndim == 4 and values.shape[3] == 3)


def _columns(what: str, values: NDArray[Any], captions: Sequence[str], columns: int | None) -> int:
    """Tiles in a row, as given or for a grid about twice as wide as high."""
    n, height, width = values.shape[:3]
    if captions and len(captions) != n:
        raise ArgumentError(
            f"captions has {len(captions)} texts for {n} {what}; give one for each, or none."
        )
    if columns is None:
        columns = math.ceil(math.sqrt(2.0 * max(n, 1) * height / width))
    elif columns < 1:
        raise ArgumentError(f"columns must be at least 1, got {columns}.")
    return max(1, min(n, columns))
