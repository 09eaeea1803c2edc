"""Image files and Pillow images as tensors."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
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
"""The formats that are read, whatever a file's name. Pillow reads more, some by running programs:
for EPS it starts Ghostscript."""

MOST_PIXELS = 64_000_000
"""Larger images are refused: they take more than 1.6 GB to read, from a file of 0.3 MB."""

TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF 6.0, section 15

ORIENTATION = 0x0112
UPRIGHT = 1
TURNED = (5, 6, 7, 8)
"""The EXIF tag, the value that leaves an image as it is, and those that swap width and height."""

EXIF_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Where Pillow keeps the metadata in which it looks for an orientation."""

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
"""Pillow's modes without colour."""


def load_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """Read an image file as a rank-3 float tensor, from 0 (black) to 1 (white).

    Grey images, also of 1 and of 16 bits, are (1, H, W); colour images, palettes among them, are
    (3, H, W) in red, green, blue; CMYK and other colour spaces are converted. Grey images keep 16
    bits; colour images of 16 bits are read with 8. Transparent pixels are laid on white. An EXIF
    orientation is applied. Of an animation or several pages the first is read. Colour profiles are
    not applied.

        >>> from PIL import Image
        >>> Image.new("RGB", (40, 20), "red").save("red.png")
        >>> cl.load_image("red.png", size=(10, 20)).shape
        torch.Size([3, 10, 20])

    Args:
        path: a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP file, whatever its name.
        size: (H, W) to scale to, bilinear with antialiasing; None keeps the file's.

    Raises:
        ArgumentError: if there is no such file, or ``size`` is not (H, W).
        DataError: if the file is not such an image, is damaged, has more than 64 million pixels, or
            its white is not known.
    """
    from PIL import Image

    file = check_file(path)
    if size is not None and not (
        isinstance(size, Sequence)  # pyright: ignore[reportUnnecessaryIsInstance]
        and len(size) == 2
        and all(isinstance(n, int) and n >= 1 for n in size)  # pyright: ignore[reportUnnecessaryIsInstance]
    ):
        raise ArgumentError(f"size must be (H, W), whole numbers of at least 1, got {size!r}.")
    with (
        decoding(str(file)),
        file.open("rb") as stream,
        Image.open(stream, formats=FORMATS) as opened,
    ):
        return scaled(_values(opened, str(file)), size)


def from_pillow(image: Image, name: str) -> Tensor:
    """A Pillow image of any mode as `load_image` gives those of files.

    Args:
        image: the image.
        name: its name in messages.

    Raises:
        DataError: if it cannot be decoded, or its white is not known.
    """
    with decoding(name):
        return _values(image, name)


def check_file(path: str | Path) -> Path:
    """Raises ArgumentError if there is no such file."""
    if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"path must be the name of an image file, got {path!r}.")
    file = Path(path)
    if not os.path.isfile(file):  # noqa: PTH113 - Path.is_file raises where a name is too long
        what = "is not a file" if os.path.exists(file) else "does not exist"  # noqa: PTH110
        raise ArgumentError(f"path={str(path)!r} {what}; give an image file.")
    return file


@contextmanager
def decoding(name: str) -> Generator[None]:
    """Turn errors of Pillow's decoders into a DataError; they raise nearly anything."""
    try:
        yield
    except ConvlensError:
        raise
    except Exception as error:
        raise as_data_error(error, name) from error


def as_data_error(error: Exception, name: str) -> ConvlensError:
    """What an error of reading the image of this name means."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, ConvlensError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return DataError(
            f"{name} is not an image that can be read; give one of {', '.join(FORMATS)}."
        )
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return DataError(f"{name} has too many pixels to be read safely: {error}")
    if isinstance(error, MemoryError):
        return DataError(f"{name} cannot be read (there is not enough memory).")
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{name} cannot be read ({error.strerror}).")
    return DataError(f"{name} is a damaged image: {str(error) or type(error).__name__}.")


def scaled(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """An image (C, H, W) scaled to ``size``, bilinear with antialiasing; unchanged if None."""
    if size is None or tuple(image.shape[1:]) == tuple(size):
        return image
    return torch.nn.functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[
        0
    ].clamp(0, 1)


def _values(image: Image, name: str) -> Tensor:
    """(C, H, W) float32, upright, from 0 to 1."""
    image = upright(image, name)
    if image.mode.startswith("I"):
        return torch.from_numpy(sixteen_bits(image, name)[None])
    return torch.from_numpy(planes(image).astype(np.float32)).div_(255)


def upright(image: Image, name: str) -> Image:
    """The picture as a person sees it: turned by its EXIF orientation, transparency laid on white.

    Args:
        image: a Pillow image of any mode, perhaps not read yet; it is not changed.
        name: its name in messages.

    Returns:
        An image of the mode "L" or "RGB"; of "I" or "I;16…" if it is grey and has 16 bits.

    Raises:
        DataError: if it has too many pixels, or its white is not known.
    """
    _check_size(image, name)
    image.load()
    if orientation(image) != UPRIGHT:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    if image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info:
        image = _on_white(image)
    if image.mode == "F":
        raise DataError(
            f"{name} holds floating point numbers, whose white is not known; read it with another "
            "library and give the tensor."
        )
    if image.mode in {"L", "RGB"} or image.mode.startswith("I"):
        return image
    return image.convert("L" if image.mode in GREY_MODES else "RGB")


def orientation(image: Image) -> object:
    """The EXIF orientation of an image that is read: `UPRIGHT`, 2 to 4, or `TURNED`."""
    if image.format != "TIFF" and EXIF_KEYS.isdisjoint(image.info):
        return UPRIGHT  # what getexif would find out slowly
    return image.getexif().get(ORIENTATION, UPRIGHT)


def planes(image: Image) -> NDArray[np.uint8]:
    """The pixels of an image of mode "L" or "RGB" as (C, H, W)."""
    if image.mode == "L":
        return np.frombuffer(image.tobytes(), np.uint8).reshape(1, image.height, image.width)
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _check_size(opened: Image, name: str) -> None:
    """Refuse an image whose header says that it takes too much memory."""
    sizes = [opened.size]
    if opened.format == "TIFF":  # a tile may be larger than its image
        tags: Any = getattr(opened, "tag_v2", {})
        sizes.append((tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1)))
    for width, height in sizes:
        if width * height > MOST_PIXELS:
            raise DataError(
                f"{name} has {width:,}×{height:,} pixels; at most {MOST_PIXELS:,} are read: scale "
                "it down first."
            )


def sixteen_bits(image: Image, name: str) -> NDArray[np.float32]:
    """The pixels (H, W) of a grey image of 16 bits, from 0 to 1.

    Raises:
        DataError: if they are not numbers of 16 bits.
    """
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(
            f"{name} holds whole numbers from {low} to {high}, whose white is not known: 16 bits "
            "go from 0 to 65535."
        )
    return (values / 65535).astype(np.float32)


def _on_white(image: Image) -> Image:
    from PIL import Image as Pillow

    if image.mode.startswith("I"):  # a transparent value of 16 bits is kept as it is
        return image
    grey = image.mode in GREY_MODES
    full = image.convert("RGBA")
    white = Pillow.new("RGBA", full.size, "white")
    return Pillow.alpha_composite(white, full).convert("L" if grey else "RGB")
