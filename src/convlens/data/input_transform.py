"""`InputTransform`: how an image becomes what the network gets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from convlens.data.image_files import MOST_PIXELS
from convlens.data.pixels import PixelScale, center_cut
from convlens.data.preprocessing import Preprocessing
from convlens.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    File = str | os.PathLike[str] | Image

LARGEST = 1e6
"""The largest number, in absolute value, that the normalization in a file may have."""


@dataclass(frozen=True)
class InputTransform:
    """Decoding, scaling, cutting and normalization of images, as in validation.

    `Learner.predict`, the runs that it records, exports and `load_classifier` use this one object.

        >>> from PIL import Image
        >>> from convlens.data import PixelScale
        >>> from convlens.data.input_transform import InputTransform
        >>> from convlens.data.preprocessing import Preprocessing
        >>> scale = PixelScale(torch.tensor([0.5]), torch.tensor([0.25]), black=0.0, white=1.0)
        >>> transform = InputTransform(Preprocessing((8, 8), channels=1), (1, 8, 8), scale)
        >>> pixels = transform.read(Image.new("RGB", (40, 20), "white"), "white image")
        >>> pixels.shape, pixels.dtype
        (torch.Size([1, 8, 8]), torch.uint8)
        >>> float(transform.from_uint8(pixels[None]).mean())
        2.0
        >>> transform.facts()["normalization"]
        {'mean': [0.5], 'std': [0.25], 'black': 0.0, 'white': 1.0}

    Attributes:
        preprocessing: how image files become pixels; without a size each keeps its own.
        input_shape: (C, H, W) of what the network gets; None if not known.
        scale: how pixels are normalized; None if not known.
    """

    preprocessing: Preprocessing
    input_shape: tuple[int, int, int] | None
    scale: PixelScale | None

    @classmethod
    def of(
        cls,
        input_shape: tuple[int, int, int] | None,
        scale: PixelScale | None,
        preprocessing: Preprocessing | None,
    ) -> Self:
        """The transform of training images.

        Args:
            input_shape: (C, H, W) of what the network gets; None if not known.
            scale: how pixels were normalized; None if not known.
            preprocessing: how image files became pixels; None if the images came from no files:
                files are then scaled to the input's size, whatever their own shape.
        """
        if input_shape is None:
            known = preprocessing or Preprocessing(None)
            if known.size is not None and known.channels is not None:
                input_shape = (known.channels, *known.size)
            return cls(known, input_shape, scale)
        channels, size = input_shape[0], input_shape[1:]
        if preprocessing is None:
            preprocessing = Preprocessing(size, "squish", channels if channels in (1, 3) else None)
        elif preprocessing.size is None:
            preprocessing = replace(preprocessing, size=size)
        return cls(preprocessing, input_shape, scale)

    def read(self, file: File, name: str) -> Tensor:
        """The pixels of an image file or a Pillow image.

        Args:
            file: a path, or a Pillow image.
            name: the name of a Pillow image in messages.

        Returns:
            (C, H, W) uint8 of the input's size, where that is known.

        Raises:
            ArgumentError: if there is no such file, or the network takes neither one channel nor
                three.
            DataError: if it cannot be read.
        """
        shape = self.input_shape
        if shape is not None and shape[0] not in (1, 3):
            raise ArgumentError(
                "x is image files, which have one channel or three; the model was trained on "
                f"C = {shape[0]}: give a tensor (N, C, H, W)."
            )
        is_path = isinstance(file, str | os.PathLike)
        pixels = (
            self.preprocessing.read(Path(file)) if is_path else self.preprocessing.of(file, name)
        )
        image = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        return image if shape is None else center_cut(image, shape[1:])

    def fitted(self, image: Tensor, name: str) -> Tensor:
        """The pixels of an image (C, H, W), uint8, brought to the input's size as a file's are."""
        from PIL import Image

        array = image.movedim(0, -1).cpu().numpy()
        picture = Image.fromarray(array[..., 0] if len(image) == 1 else np.ascontiguousarray(array))
        return self.read(picture, name)

    def from_uint8(self, pixels: Tensor) -> Tensor:
        """Pixels (N, C, H, W), uint8 of the input's size, as the network gets them.

        Raises:
            ArgumentError: if the normalization is not known.
        """
        if self.scale is None or not self.scale.is_known:
            raise ArgumentError("The normalization of pixels from 0 to 255 is not known.")
        return self.scale.from_uint8(pixels)

    def facts(self) -> dict[str, Any]:
        """The transform as plain JSON; `from_facts` makes it again.

        Mean and deviation are for pixels from 0 to 1, where black and white are known.
        """
        return {
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "preprocessing": self.preprocessing.facts(),
            "normalization": None if self.scale is None else _normalization(self.scale),
        }

    @classmethod
    def from_facts(cls, facts: object) -> Self:
        """The transform that `facts` describes, which may come from anybody's file.

        Raises:
            DataError: if the facts do not describe one.
        """
        given = _mapping("input", facts, {"input_shape", "preprocessing", "normalization"})
        shape = _shape(given["input_shape"])
        preprocessing = _preprocessing(given["preprocessing"])
        if shape is not None and (
            preprocessing.size not in (None, shape[1:])
            or preprocessing.channels not in (None, shape[0])
        ):
            raise DataError(
                f"input_shape is {list(shape)}, but the preprocessing gives "
                f"{preprocessing.channels} channels of the size {preprocessing.size}."
            )
        return cls.of(shape, _scale(given["normalization"], shape), preprocessing)


def _normalization(scale: PixelScale) -> dict[str, Any]:
    unit = scale.white if scale.is_known else 1.0
    mean, std = ((values.double().cpu() / unit).tolist() for values in (scale.mean, scale.std))
    return {"mean": mean, "std": std, "black": scale.black / unit, "white": scale.white / unit}


# ---- facts that somebody else may have written ---------------------------------------------------


def _mapping(name: str, value: object, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict) or set(cast("dict[Any, Any]", value)) != keys:
        raise DataError(f"{name} must be an object with {', '.join(sorted(keys))}.")
    return cast("dict[str, Any]", value)


def _shape(value: object) -> tuple[int, int, int] | None:
    if value is None:
        return None
    sizes = cast("Sequence[Any]", value) if isinstance(value, list) else ()
    if len(sizes) != 3 or not all(type(n) is int and n >= 1 for n in sizes):
        raise DataError("input_shape must be [C, H, W], whole numbers of at least 1, or null.")
    if math.prod(sizes) > 3 * MOST_PIXELS:
        raise DataError(f"input_shape has more than {3 * MOST_PIXELS:,} numbers.")
    return sizes[0], sizes[1], sizes[2]


def _preprocessing(value: object) -> Preprocessing:
    given = _mapping("preprocessing", value, {"size", "resize", "channels", "margin"})
    if not isinstance(given["margin"], int | float) or isinstance(given["channels"], bool | float):
        raise DataError("preprocessing has a margin or channels that are no numbers.")
    try:
        made = Preprocessing(given["size"], given["resize"], given["channels"], given["margin"])
    except (ArgumentError, TypeError) as error:
        raise DataError(f"preprocessing: {str(error)[:200]}") from error
    if made.stored is not None and math.prod(made.stored) > MOST_PIXELS:
        raise DataError(f"preprocessing makes images of more than {MOST_PIXELS:,} pixels.")
    return made


def _scale(value: object, shape: tuple[int, int, int] | None) -> PixelScale | None:
    if value is None:
        return None
    given = _mapping("normalization", value, {"mean", "std", "black", "white"})
    mean, std = (_numbers(f"normalization's {key}", given[key]) for key in ("mean", "std"))
    black, white = _numbers("normalization's black and white", [given["black"], given["white"]])
    if len(mean) != len(std) or (shape is not None and len(mean) != shape[0]):
        raise DataError("normalization must have a mean and a std for each channel.")
    if min(std) <= 0 or not black < white:
        raise DataError("normalization must have a std above 0, and black below white.")
    double = torch.float64
    return PixelScale(torch.tensor(mean, dtype=double), torch.tensor(std, dtype=double),
                      black, white)  # fmt: skip


def _numbers(name: str, values: object) -> list[float]:
    given = cast("Sequence[Any]", values) if isinstance(values, list) else ()
    good = all(type(v) in (int, float) and abs(v) <= LARGEST for v in given)
    if not given or not good:  # NaN is not below
        raise DataError(f"{name} must be numbers of at most {LARGEST:g}.")
    return [float(v) for v in given]
