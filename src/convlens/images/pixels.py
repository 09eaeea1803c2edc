"""From pixels to what the network gets, and back to a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PixelScale:
    """How raw pixel values were normalized: ``x = (raw − mean) / std``, per channel.

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

    def normalize_(self, raw: Tensor) -> Tensor:
        """Normalize float32 images (N, C, H, W) in place."""
        return raw.sub_(_per_channel(self.mean, raw)).div_(_per_channel(self.std, raw))

    def to_uint8(self, x: Tensor) -> NDArray[np.uint8]:
        """The picture of normalized images (N, C, H, W): (N, H, W, 3) if C is 3, else (N, H, W).

        With another number of channels than 1 or 3, their mean is shown.
        """
        raw = x.detach().float() * _per_channel(self.std, x) + _per_channel(self.mean, x)
        grey = (raw - self.black) * (255.0 / (self.white - self.black))
        image = grey.round().clamp(0, 255)
        image = image.movedim(1, 3) if image.shape[1] == 3 else image.mean(1)
        return image.round().to(torch.uint8).cpu().numpy()


def measure_scale(raw: Tensor, black: float, white: float) -> PixelScale:
    """The scale that gives these images (N, C, H, W), float32, mean 0 and deviation 1 per channel.

    A constant channel has no deviation: it is only centred.
    """
    std, mean = torch.std_mean(raw, dim=(0, 2, 3), correction=0)
    return PixelScale(mean, torch.where(std > 0, std, 1.0), black, white)


def identity_scale(channels: int, black: float, white: float) -> PixelScale:
    """The scale that leaves images as they are."""
    return PixelScale(torch.zeros(channels), torch.ones(channels), black, white)


def range_scale(x: Tensor) -> PixelScale:
    """For images whose normalization is not known: their own smallest to their largest value."""
    low, high = (float(v) for v in torch.aminmax(x.detach().float()))
    return identity_scale(x.shape[1], low, high if high > low else low + 1.0)


def _per_channel(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device).view(1, -1, 1, 1)
