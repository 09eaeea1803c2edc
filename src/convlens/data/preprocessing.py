"""`Preprocessing`: one image file → the pixels that are stored."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convlens.data.image_files import (
    FORMATS,
    GREY_MODES,
    TURNED,
    as_data_error,
    check_file,
    decoding,
    orientation,
    planes,
    sixteen_bits,
    upright,
)
from convlens.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZES = ("crop", "squish", "pad")

DRAFT = 2.0
"""A JPEG is decoded at a smaller scale that leaves at least so many times the pixels a side."""

REDUCING_GAP = 3.0
"""Pillow first averages blocks down to so many times the size: its documentation calls that close
to no difference from antialiasing alone."""

PNG = b"\x89PNG\r\n\x1a\n"


class Picture(NamedTuple):
    """One image file, read.

    Attributes:
        pixels: (C, H, W) uint8.
        width: the file's own, upright.
        height: the same.
        format: Pillow's name of the file's format, such as "JPEG".
        grey: whether the file has no colours.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    format: str
    grey: bool


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes pixels of one size: decoded, turned upright, converted, scaled.

    What is converted is described at `load_image`; grey images of 16 bits get 8. Scaling is
    bilinear with antialiasing.

        >>> from PIL import Image
        >>> from convlens.data.preprocessing import Preprocessing
        >>> Image.new("RGB", (40, 20), "red").save("red.png")
        >>> Preprocessing((10, 10)).read("red.png").shape
        (3, 10, 10)
        >>> Preprocessing((28, 28), channels=1, margin=1 / 0.875).read("red.png").shape
        (1, 32, 32)

    Args:
        size: (H, W) of what the network gets; None keeps each file's size.
        resize: "crop" scales until both sides are covered and cuts the middle out; "squish" scales
            both sides, whatever the shape; "pad" scales until all of it is inside, and fills the
            rest with black: one constant is easier to learn to ignore than edges drawn into
            stripes.
        channels: 1 for grey, 3 for red, green and blue, None for those of the image.
        margin: the stored sides are this many times ``size``, at least 1, so that an augmentation
            has something to crop.

    Raises:
        ArgumentError: if an argument has a value that cannot work.
    """

    size: tuple[int, int] | None
    resize: str = "crop"
    channels: int | None = None
    margin: float = 1.0

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", _checked_size(self.size))
        if self.resize not in RESIZES:
            raise ArgumentError(f"resize must be 'crop', 'squish' or 'pad', got {self.resize!r}.")
        if self.channels not in (None, 1, 3):
            raise ArgumentError(f"channels must be 1, 3 or None, got {self.channels!r}.")
        if not 1.0 <= self.margin <= 4.0:
            raise ArgumentError(f"margin must be a number from 1 to 4, got {self.margin!r}.")

    @property
    def stored(self) -> tuple[int, int] | None:
        """(H, W) of the stored pixels; None if each file keeps its size."""
        if self.size is None:
            return None
        return round(self.size[0] * self.margin), round(self.size[1] * self.margin)

    def facts(self) -> dict[str, Any]:
        """The arguments as plain JSON: ``Preprocessing(**facts)`` is equal to this one."""
        return {**asdict(self), "size": None if self.size is None else list(self.size)}

    def read(self, path: str | Path) -> NDArray[np.uint8]:
        """The pixels of an image file, (C, H, W).

        Raises:
            ArgumentError: if there is no such file.
            DataError: if it cannot be read, is damaged, or is not an image that can be used.
        """
        file = check_file(path)
        with decoding(str(file)):
            data = file.read_bytes()
        return self.decode(data, str(file)).pixels

    def of(self, image: Image, name: str) -> NDArray[np.uint8]:
        """The pixels of a Pillow image, (C, H, W); ``name`` is for messages.

        Raises:
            DataError: if it cannot be decoded, or its white is not known.
        """
        with decoding(name):
            return self._fitted(_eight_bits(upright(image, name), name))

    def decode(self, data: bytes, name: str) -> Picture:
        """Read the bytes of an image file.

        Args:
            data: the file's content.
            name: the file's name in messages.

        Raises:
            DataError: if it is damaged, or is not an image that can be used.
        """
        from PIL import Image

        if not data:
            raise DataError(f"{name} is an empty file.")
        try:  # not `decoding`, which takes longer than the rest of this function
            if data.startswith(PNG):
                _check_png(data)
            with Image.open(BytesIO(data), formats=FORMATS) as opened:
                size, grey = opened.size, opened.mode in GREY_MODES
                self._draft(opened)
                pixels = self._fitted(_eight_bits(upright(opened, name), name))
                width, height = size[::-1] if orientation(opened) in TURNED else size
                return Picture(pixels, width, height, opened.format or "", grey)
        except DataError:
            raise
        except Exception as error:
            raise as_data_error(error, name) from error

    def _draft(self, opened: Image) -> None:
        """Let the JPEG decoder leave out what scaling down would throw away."""
        if opened.format not in ("JPEG", "MPO"):
            return
        mode, size = "L" if self.channels == 1 else None, None
        stored = self.stored
        if stored is not None:
            factor = DRAFT * max(stored) / min(opened.size)  # at least what is needed, also turned
            if factor < 1:
                size = math.ceil(opened.width * factor), math.ceil(opened.height * factor)
        if mode or size:
            opened.draft(mode, size)  # pyright: ignore[reportArgumentType] - None is taken

    def _fitted(self, image: Image) -> NDArray[np.uint8]:
        """An image of mode "L" or "RGB" in the channels and the stored size."""
        mode = {None: image.mode, 1: "L", 3: "RGB"}[self.channels]
        image = image if image.mode == mode else image.convert(mode)
        stored = self.stored
        if stored is None or stored == (image.height, image.width):
            return planes(image)
        height, width = stored
        if self.resize == "pad":
            return _padded(image, width, height)
        box = None
        if self.resize == "crop":
            scale = max(width / image.width, height / image.height)
            w, h = min(width / scale, image.width), min(height / scale, image.height)
            left, top = (image.width - w) / 2, (image.height - h) / 2
            box = (left, top, left + w, top + h)
        return planes(_scaled(image, width, height, box))


def _checked_size(size: Any) -> tuple[int, int]:  # noqa: ANN401
    good = isinstance(size, tuple | list) and len(size) == 2  # pyright: ignore[reportUnknownArgumentType]
    if not good or not all(type(n) is int and n >= 1 for n in size):
        raise ArgumentError(f"size must be (H, W), whole numbers of at least 1, got {size!r}.")
    return size[0], size[1]


def _scaled(
    image: Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Image:
    from PIL import Image as Pillow

    return image.resize(
        (width, height), Pillow.Resampling.BILINEAR, box=box, reducing_gap=REDUCING_GAP
    )


def _padded(image: Image, width: int, height: int) -> NDArray[np.uint8]:
    scale = min(width / image.width, height / image.height)
    w, h = (max(1, round(n * scale)) for n in image.size)
    inner = planes(_scaled(image, w, h))
    left, top = (width - w) // 2, (height - h) // 2
    pixels = np.zeros((len(inner), height, width), np.uint8)
    pixels[:, top : top + h, left : left + w] = inner
    return pixels


def _eight_bits(image: Image, name: str) -> Image:
    if not image.mode.startswith("I"):
        return image
    from PIL import Image as Pillow

    return Pillow.fromarray(np.rint(sixteen_bits(image, name) * 255).astype(np.uint8))


def _check_png(data: bytes) -> None:
    """Raise a ValueError if a chunk has another checksum: Pillow does not look at those of pixels.

    PNG Specification, section 5.3: length, kind, content, CRC-32 of kind and content.
    """
    view, at = memoryview(data), len(PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            return  # cut: Pillow says so
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            kind = data[at + 4 : at + 8].decode("ascii", "replace")
            raise ValueError(f"the checksum of its chunk {kind} is wrong")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end + 4
