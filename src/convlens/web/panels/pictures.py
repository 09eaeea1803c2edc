"""Pictures as PNG data URIs, their colours, and the marks on them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from bokeh.palettes import viridis
from numpy.typing import NDArray
from PIL import Image

from convlens.core.snapshots import Bytes

PLUS, MINUS = (214, 57, 64), (48, 122, 196)
"""Positive and negative; 0 is transparent, so that it looks right on a light and a dark card."""

VIRIDIS = bytes.fromhex("".join(code[1:7] for code in viridis(256)))

MAX_SIDE = 288
"""Pixels of a picture's longer side at most: photographs are made smaller."""

OVERLAY_SIDE = 48
"""Pixels of a map that lies over an image."""

MAX_ASPECT = 6.0
"""A map of one row is drawn at least a sixth as high as it is wide, so that it can be clicked."""


class Mark(NamedTuple):
    """An outlined rectangle, in the pixels of what a picture shows; ``kind`` is its class."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class MarkedImage:
    """A picture of ``height`` × ``width`` pixels with marks: what the macro ``shot`` draws."""

    src: str
    alt: str
    height: int
    width: int
    marks: Sequence[Mark] = ()

    @property
    def aspect(self) -> float:
        """Width by height, as it is drawn."""
        return min(max(self.width / self.height, 1 / MAX_ASPECT), MAX_ASPECT)


def picture(pixels: Bytes, alt: str, marks: Sequence[Mark] = ()) -> MarkedImage:
    """(H, W) grey, (H, W, 3) or (H, W, 4) with marks."""
    return MarkedImage(png(pixels), alt, pixels.shape[0], pixels.shape[1], marks)


def map_picture(levels: Bytes, alt: str, marks: Sequence[Mark] = ()) -> MarkedImage:
    """(H, W) of 0 to 255 as viridis with marks."""
    return MarkedImage(map_png(levels), alt, levels.shape[0], levels.shape[1], marks)


def png(pixels: Bytes, side: int = MAX_SIDE) -> str:
    """(H, W) grey, (H, W, 3) or (H, W, 4) as a data URI, its longer side at most ``side``."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _uri(image)


def map_png(levels: Bytes, **options: int) -> str:
    """(H, W) of 0 to 255 as viridis; with a palette it takes a third of the bytes of `png`."""
    image = Image.fromarray(np.ascontiguousarray(levels))
    image.putpalette(VIRIDIS)
    return _uri(image, **options)


def overlay(maps: Bytes) -> str:
    """The style of the element around images over which maps lie: each ``.cam`` shows its ``--m``.

    Args:
        maps: (N, h, w) of 0 to 255; made larger without steps, since the image lies below.
    """
    size = (OVERLAY_SIDE, OVERLAY_SIDE)
    large = [Image.fromarray(one).resize(size, Image.Resampling.BILINEAR) for one in maps]
    strip = np.concatenate([np.asarray(one) for one in large])
    return f"--cams:url({map_png(strip)});--k:{len(maps)}"


def _uri(image: Image.Image, **options: int) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def signed(values: NDArray[Any], reach: float) -> Bytes:
    """(h, w) as red where positive and blue where negative, (h, w, 4): 0 is transparent."""
    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where(values[..., None] > 0, PLUS, MINUS)
    pixels[..., 3] = np.round(255 * np.clip(np.abs(values) / (reach or 1.0), 0, 1))
    return pixels


def box(rows: tuple[float, float], columns: tuple[float, float], kind: str = "chosen") -> Mark:
    """The outline of whole rows and columns, first and last."""
    width, height = columns[1] - columns[0] + 1, rows[1] - rows[0] + 1
    return Mark(kind, columns[0], rows[0], width, height)


def spot(place: tuple[int, int], kind: str = "chosen") -> Mark:
    """The outline of one cell or pixel."""
    return box((place[0], place[0]), (place[1], place[1]), kind)
