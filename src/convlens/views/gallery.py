"""Images with captions, as PNG inside the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlens.core.records import Picture
from convlens.views.markup import text

MAX_IMAGES = 64

# Larger images are made smaller, so that a batch of photographs does not fill the file.
MAX_SIDE = 96

SHOWN_SIDE = 84


def gallery(picture: Picture) -> str:
    """A grid of the images with their captions; the page scales small ones up, pixel by pixel."""
    n = len(picture.images)
    shown = picture.images[:MAX_IMAGES]
    words: list[str] = []
    if n > MAX_IMAGES:
        words.append(f"The first {MAX_IMAGES} of {n:,} images.")
    if n and max(picture.images.shape[1:3]) > MAX_SIDE:
        height, width = picture.images.shape[1:3]
        words.append(f"Recorded at {height} × {width} pixels, shown smaller.")
    note = f"<p class=note>{' '.join(words)}</p>" if words else ""
    captions = [*picture.captions, *[""] * len(shown)]
    figures = (_figure(image, caption) for image, caption in zip(shown, captions, strict=False))
    return f'{note}<div class="gallery">{"".join(figures)}</div>'


def data_uri(image: NDArray[np.uint8]) -> str:
    """An image (H, W) or (H, W, 3) as a PNG data URI, its longer side at most ``MAX_SIDE``."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return png_uri(picture, optimize=True)


def png_uri(picture: Image.Image, **options: int) -> str:
    """A picture as a PNG data URI; ``options`` are those of Pillow's PNG writer."""
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _figure(image: NDArray[np.uint8], caption: str) -> str:
    height, width = image.shape[:2]
    scale = SHOWN_SIDE / max(height, width)
    size = f'width="{round(width * scale) or 1}" height="{round(height * scale) or 1}"'
    words = text(caption)
    name = words or "image without a caption"
    return (
        f'<figure><img src="{data_uri(image)}" {size} alt="{name}">'
        f"<figcaption>{words}</figcaption></figure>"
    )
