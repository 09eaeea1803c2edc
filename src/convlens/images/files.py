"""An image file as a tensor."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
"""Pillow's modes without colour."""


def load_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """Read an image file as a rank-3 float tensor, from 0 (black) to 1 (white).

    Grey images, also of 1 and of 16 bits, are (1, H, W); colour images, palettes among them, are
    (3, H, W) in red, green, blue; CMYK and other colour spaces are converted. Grey images of 16
    bits keep all of them; colour images of 16 bits are read with 8. What is transparent is laid on
    white. An EXIF orientation is followed, so that up is up. Of an animation or of several pages
    it is the first. Colour profiles are not applied.

    Args:
        path: a PNG, JPEG, TIFF, GIF, WebP, BMP, … : what Pillow can read.
        size: (H, W) to scale to, bilinear with antialiasing; None keeps the file's.

    Raises:
        ArgumentError: if there is no such file, or ``size`` is none.
        DataError: if the file is no image, is damaged, or its white is not known.
    """
    from PIL import Image, UnidentifiedImageError

    if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"path={path!r} is no path; give the name of an image file.")
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ArgumentError(f"path={str(path)!r} {what}; give an image file.")
    if size is not None and not _is_size(size):
        raise ArgumentError(
            f"size={size!r} is no size of an image; give (H, W), whole numbers of at least 1."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                values = _values(_upright(opened), file)
    except UnidentifiedImageError as error:
        raise DataError(f"{file} is no image that can be read; give a PNG, JPEG, …") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{file} has too many pixels to be read safely: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what decoders raise
        raise DataError(f"{file} is a damaged image: {error}.") from error
    return scaled(torch.from_numpy(values), size)


def from_pillow(image: Image, name: str) -> Tensor:
    """A Pillow image as `load_image` gives those of files.

    Args:
        image: of any mode.
        name: what messages call it.

    Raises:
        DataError: if it cannot be decoded, or its white is not known.
    """
    try:
        return torch.from_numpy(_values(_upright(image), Path(name)))
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # it is read here at the latest
        raise DataError(f"{name} is a damaged image: {error}.") from error


def scaled(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """An image (C, H, W) scaled to ``size``, bilinear with antialiasing; as it is if None."""
    if size is None or tuple(image.shape[1:]) == tuple(size):
        return image
    return torch.nn.functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[
        0
    ].clamp(0, 1)


def _is_size(value: object) -> bool:
    """Whether it is (H, W)."""
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(n, int) and n >= 1 for n in value)
    )


def _upright(opened: Image) -> Image:
    from PIL import ImageOps

    opened.load()
    return ImageOps.exif_transpose(opened)


def _values(image: Image, file: Path) -> NDArray[np.float32]:
    """(C, H, W), from 0 to 1."""
    if image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info:
        image = _on_white(image)
    grey = image.mode in GREY_MODES
    if image.mode == "F":
        raise DataError(
            f"{file} holds floating point numbers, whose white is not known; read it with a "
            "library of its own and give the tensor."
        )
    if image.mode.startswith("I"):
        values = _sixteen_bits(image, file)
    else:
        values = np.asarray(image.convert("L" if grey else "RGB"), np.float32) / 255
    planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return np.ascontiguousarray(planes, np.float32)


def _sixteen_bits(image: Image, file: Path) -> NDArray[np.float32]:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(
            f"{file} holds whole numbers from {low} to {high}, whose white is not known: 16 bits "
            "go from 0 to 65535."
        )
    return (values / 65535).astype(np.float32)


def _on_white(image: Image) -> Image:
    from PIL import Image as Pillow

    if image.mode.startswith("I"):  # one value of 16 bits is transparent: it has a value as well
        return image
    grey = image.mode in GREY_MODES
    full = image.convert("RGBA")
    white = Pillow.new("RGBA", full.size, "white")
    return Pillow.alpha_composite(white, full).convert("L" if grey else "RGB")
