"""An image file as a tensor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.errors import ArgumentError, ConvlensError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its name. Pillow reads more, some of it by running programs: for
EPS it starts Ghostscript."""

MOST_PIXELS = 64_000_000
"""An image has no more, which is 1.6 GB while it is read; a file of 0.3 MB can hold that many."""

TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF 6.0, section 15

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
        path: a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP file, whatever its name.
        size: (H, W) to scale to, bilinear with antialiasing; None keeps the file's.

    Raises:
        ArgumentError: if there is no such file, or ``size`` is none.
        DataError: if the file is no such image, is damaged, has more than 64 million pixels, or
            its white is not known.
    """
    if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"path={path!r} is no path; give the name of an image file.")
    file = Path(path)
    if not os.path.isfile(file):  # noqa: PTH113 - Path.is_file raises where a name is too long
        what = "does not exist" if not os.path.exists(file) else "is no file"  # noqa: PTH110
        what = "is a folder" if os.path.isdir(file) else what  # noqa: PTH112
        raise ArgumentError(f"path={str(path)!r} {what}; give an image file.")
    if size is not None and not _is_size(size):
        raise ArgumentError(
            f"size={size!r} is no size of an image; give (H, W), whole numbers of at least 1."
        )
    return scaled(torch.from_numpy(_read(file)), size)


def from_pillow(image: Image, name: str) -> Tensor:
    """A Pillow image as `load_image` gives those of files.

    Args:
        image: of any mode.
        name: what messages call it.

    Raises:
        DataError: if it cannot be decoded, or its white is not known.
    """
    from PIL import ImageOps

    _check_size(image, Path(name))
    try:
        return torch.from_numpy(_values(ImageOps.exif_transpose(image), Path(name)))
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # it is read here at the latest
        raise DataError(f"{name} is a damaged image: {error}.") from error


def scaled(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """An image (C, H, W) scaled to ``size``, bilinear with antialiasing; as it is if None."""
    if size is None or tuple(image.shape[1:]) == tuple(size):
        return image
    return torch.nn.functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[
        0
    ].clamp(0, 1)


def _read(file: Path) -> NDArray[np.float32]:
    """What a file holds, upright: (C, H, W), from 0 to 1."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with file.open("rb") as stream, Image.open(stream, formats=FORMATS) as opened:
            _check_size(opened, file)
            opened.load()
            return _values(ImageOps.exif_transpose(opened), file)
    except ConvlensError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{file} is no image that can be read; give one of {', '.join(FORMATS)}."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{file} has too many pixels to be read safely: {error}") from error
    except Exception as error:  # decoders raise nearly anything: zlib.error, struct.error, …
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{file} cannot be read ({error.strerror}).") from error
        why = str(error) or type(error).__name__
        raise DataError(f"{file} is a damaged image: {why}.") from error


def _check_size(opened: Image, file: Path) -> None:
    """Refuse what takes too much memory, by what its header says."""
    sizes = [opened.size]
    if opened.format == "TIFF":  # a tile may be larger than its image
        tags: Any = getattr(opened, "tag_v2", {})
        sizes.append((tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1)))
    for width, height in sizes:
        if width * height > MOST_PIXELS:
            raise DataError(
                f"{file} has {width:,}×{height:,} pixels; at most {MOST_PIXELS:,} are read: scale "
                "it down first."
            )


def _is_size(value: object) -> bool:
    """Whether it is (H, W)."""
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(n, int) and n >= 1 for n in value)
    )


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
        return _sixteen_bits(image, file)[None]
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    values = np.ascontiguousarray(planes).astype(np.float32)
    values /= 255
    return values


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
