"""`PixelScale`: normalizes pixels, and makes pictures of normalized images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PixelScale:
    """How raw pixel values were normalized: ``x = (raw − mean) / std``, per channel.

    Raw values are those of the arrays that were given: 0 to 255 for uint8, unchanged for floats.

        >>> from convlens.data import PixelScale
        >>> scale = PixelScale(torch.tensor([0.4]), torch.tensor([0.2]), black=0.0, white=1.0)
        >>> scale
        PixelScale(mean=[0.4], std=[0.2], black=0, white=1)
        >>> scale.from_unit(torch.tensor([0.4, 0.8]).view(2, 1, 1, 1)).flatten().round(decimals=3)
        tensor([0., 2.])

    Attributes:
        mean: (C,) float32, in raw pixel values.
        std: (C,) float32, in raw pixel values, nowhere 0.
        black: the raw value that a picture shows as 0.
        white: the raw value that a picture shows as 255.
    """

    mean: Tensor
    std: Tensor
    black: float
    white: float

    def __repr__(self) -> str:
        mean, std = (
            [float(f"{v:.4g}") for v in values.tolist()] for values in (self.mean, self.std)
        )
        return f"PixelScale(mean={mean}, std={std}, black={self.black:g}, white={self.white:g})"

    @property
    def is_known(self) -> bool:
        """Whether the raw values of black and white are known: 0 and 1, or 0 and 255.

        For floats in any other range ``black`` and ``white`` are the smallest and the largest value
        of the training images, which is good enough to draw them.
        """
        return (self.black, self.white) in ((0.0, 1.0), (0.0, 255.0))

    @property
    def highest(self) -> float:
        """The largest value of a normalized image: that of white, in its brightest channel."""
        return float(((self.white - self.mean) / self.std).max())

    def normalize_(self, raw: Tensor) -> Tensor:
        """Normalize float32 images (N, C, H, W) in place."""
        return raw.sub_(_per_channel(self.mean, raw)).div_(_per_channel(self.std, raw))

    def from_uint8(self, pictures: Tensor) -> Tensor:
        """Pictures (N, C, H, W), uint8, as the network gets them: the inverse of `to_uint8`."""
        factor, shift = self.factors(255.0, pictures.device)
        return pictures.to(torch.float32, copy=True).mul_(factor).add_(shift)

    def from_unit(self, pixels: Tensor) -> Tensor:
        """Float pixels (N, C, H, W) from 0 (black) to 1 (white), as the network gets them."""
        factor, shift = self.factors(1.0, pixels.device)
        return pixels.to(torch.float32, copy=True).mul_(factor).add_(shift)

    def factors(self, white: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """What pixels from 0 to ``white`` are multiplied by, and what is then added: (1, C, 1, 1).

        The same as to scale them to raw values, subtract the mean and divide by the deviation, in
        two operations for each pixel instead of four.
        """
        factor = (self.white - self.black) / (white * self.std.double())
        shift = (self.black - self.mean.double()) / self.std.double()
        return tuple(one.float().to(device).view(1, -1, 1, 1) for one in (factor, shift))  # pyright: ignore[reportReturnType]

    def to_uint8(self, x: Tensor) -> NDArray[np.uint8]:
        """The picture of normalized images (N, C, H, W): (N, H, W, 3) if C is 3, else (N, H, W).

        With another number of channels than 1 or 3, their mean is shown; NaN is black.
        """
        raw = x.detach().float() * _per_channel(self.std, x) + _per_channel(self.mean, x)
        grey = (raw - self.black) * (255.0 / (self.white - self.black))
        image = grey.clamp(0, 255)
        image = image.movedim(1, 3) if image.shape[1] == 3 else image.mean(1)
        return image.nan_to_num(0.0).round().to(torch.uint8).cpu().numpy()


def measure_scale(raw: Tensor, black: float, white: float) -> PixelScale:
    """The scale that gives these images (N, C, H, W) mean 0 and deviation 1 per channel.

    A constant channel is only centred.
    """
    std, mean = torch.std_mean(raw, dim=(0, 2, 3), correction=0)
    return PixelScale(mean, torch.where(std > 0, std, 1.0), black, white)


def plain_scale(channels: int, black: float, white: float, unit: float = 1.0) -> PixelScale:
    """The scale that only divides by ``unit``."""
    return PixelScale(torch.zeros(channels), torch.full((channels,), unit), black, white)


def center_cut(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle (…, h, w) of images (…, H, W): a view."""
    top, left = ((n - m) // 2 for n, m in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def range_scale(x: Tensor) -> PixelScale:
    """A scale to draw images of unknown normalization: from the smallest to the largest value."""
    values = x.detach().float()
    finite = values[values.isfinite()]
    low, high = (float(v) for v in torch.aminmax(finite)) if len(finite) else (0.0, 1.0)
    return plain_scale(x.shape[1], low, high if high > low else low + 1.0)


def _per_channel(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device).view(1, -1, 1, 1)
