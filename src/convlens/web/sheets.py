"""Many small images as one: encoded once, shown by CSS (``static/tables.css``)."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from convlens.core.snapshots import Bytes

SIDE = 84
"""Pixels of an image's longer side on the page."""

MAX_SIDE = 96
"""Larger images are made smaller, so that a batch of photographs does not fill the page."""

MAX_PNG = 200_000
"""Bytes of pixels; more are photographs, which JPEG keeps in a tenth."""


def sheet(images: Bytes) -> str:
    """The style of the element around the images: each shows the one of its ``--i``.

    Args:
        images: (N, H, W) or (N, H, W, 3), at least one pixel.
    """
    factor = -(-max(images.shape[1:3]) // MAX_SIDE)
    height, width = (max(1, length // factor) for length in images.shape[1:3])
    cut = images[:, : height * factor, : width * factor]
    strip = Image.fromarray(np.ascontiguousarray(cut.reshape(-1, *cut.shape[2:])))
    if factor > 1:
        strip = strip.reduce((min(factor, cut.shape[2]), min(factor, cut.shape[1])))
    file, kind = io.BytesIO(), "jpeg" if len(strip.tobytes()) > MAX_PNG else "png"
    strip.save(file, kind, **({"quality": 88} if kind == "jpeg" else {"compress_level": 6}))
    uri = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    scale = SIDE / max(height, width)
    across, down = (max(1, round(length * scale)) for length in (width, height))
    return f"--sheet:url({uri});--n:{len(images)};--w:{across}px;--h:{down}px"
