"""Grids of images with a caption each."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convlens.errors import ArgumentError
from convlens.plots.canvas import say_empty

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT_PT = 8.0
LINE_IN = FONT_PT * 1.25 / 72  # height of a line of text, inches
CHARACTER_IN = FONT_PT * 0.58 / 72  # mean width of a character, inches
TILE_IN = 1.3  # width of an image and the gap beside it in a new figure, inches
GAP = 0.1  # the gap beside an image, as a share of its width


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
    _check(images, captions, columns)
    n, height, width = images.shape[:3]
    if columns is None:
        columns = math.ceil(math.sqrt(2.0 * n * height / width))
    columns = max(1, min(n, columns))
    tile_in = TILE_IN if ax is None else ax.get_window_extent().width / ax.figure.dpi / columns
    wrapped = [textwrap.wrap(text, max(4, int(tile_in / CHARACTER_IN))) for text in captions]
    lines = max((len(text) for text in wrapped), default=0)
    pixels_per_in = width * (1.0 + GAP) / tile_in
    pitch = (
        height + (GAP * width) + lines * LINE_IN * pixels_per_in,  # rows
        width * (1.0 + GAP),
    )
    rows = max(1, math.ceil(n / columns))
    if ax is None:
        ax = _new_axes(columns * tile_in, rows * pitch[0] / pixels_per_in)
    ax.set_axis_off()
    if n == 0:
        say_empty(ax, "no images")
        return ax
    _draw(ax, images, wrapped, columns, pitch)
    ax.set_xlim(-0.5 * GAP * width, columns * pitch[1] - 0.5 * GAP * width)
    ax.set_ylim(rows * pitch[0] - 0.5 * GAP * width, -0.5 * GAP * width)
    ax.set_aspect("equal")
    return ax


def _draw(
    ax: Axes,
    images: NDArray[np.uint8],
    captions: Sequence[Sequence[str]],
    columns: int,
    pitch: tuple[float, float],
) -> None:
    height, width = images.shape[1:3]
    lines = max((len(text) for text in captions), default=0)
    # The room of one row: captions above, the image at its lower end.
    above = pitch[0] - height - GAP * width if lines else 0.0
    for i, image in enumerate(images):
        left, top = (i % columns) * pitch[1], (i // columns) * pitch[0] + above
        ax.imshow(
            image,
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=(left, left + width, top + height, top),
            interpolation="nearest" if width <= 64 else "antialiased",
        )
        if i < len(captions):
            ax.text(
                left + width / 2,
                top - GAP * width * 0.3,
                "\n".join(captions[i]),
                ha="center",
                va="bottom",
                fontsize=FONT_PT,
                linespacing=1.1,
                parse_math=False,  # a class may have dollar signs in its name
            )


def _new_axes(width_in: float, height_in: float) -> Axes:
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width_in, height_in), layout="constrained")
    return ax


def _check(images: NDArray[np.uint8], captions: Sequence[str], columns: int | None) -> None:
    shape = images.shape
    if images.dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        raise ArgumentError(
            f"images has shape {shape} and dtype {images.dtype}; expected uint8 pictures of shape "
            "(N, H, W) or (N, H, W, 3), such as dls.to_uint8(x) gives."
        )
    if captions and len(captions) != len(images):
        raise ArgumentError(
            f"captions has {len(captions)} texts for {len(images)} images; give one for each, or "
            "none at all."
        )
    if columns is not None and columns < 1:
        raise ArgumentError(f"columns={columns} is the number of images in a row; give at least 1.")
