"""`ColorJitter` and `Cutout`: operations that change the values of pixels where they are."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from convlens.data.operations import Draws, Operation, check_number, per_image
from convlens.errors import ArgumentError

LUMA = (0.299, 0.587, 0.114)
"""How much red, green and blue say to brightness (ITU-R BT.601); 1 in all."""

YIQ = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""RGB → brightness and two axes of colour. A grey pixel has no colour: the others add up to 0."""


class PixelOperation(Operation):
    """An operation on the values of moved images."""

    @abstractmethod
    def change(self, x: Tensor, draws: Draws) -> Tensor:
        """Images (N, C, H, W) float32 from 0 to 1 → the same, changed; may be done in place."""


@dataclass(frozen=True)
class ColorJitter(PixelOperation):
    """Change brightness, contrast, saturation and hue, in this order.

    All four are one matrix an image, and what leaves 0 to 1 is cut off once, at the end.
    Brightness, contrast and saturation are torchvision's; hue is turned about the grey axis in YIQ,
    which keeps the brightness of colours (torchvision's HSV keeps their largest channel). Grey
    images (C = 1) have no saturation and no hue.

        >>> from convlens.data.augmentation import ColorJitter
        >>> ColorJitter(brightness=0.2, contrast=0.2).words()
        'brightness ±20 %, contrast ±20 %'

    Args:
        brightness: the greatest change of the factor, at least 0: 0.2 is 0.8 to 1.2.
        contrast: likewise, about the image's mean brightness.
        saturation: likewise; 0 as a factor is grey.
        hue: the greatest turn of the colour circle to either side, from 0 to 0.5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            check_number(name, getattr(self, name), 0)
        check_number("hue", self.hue, 0, 0.5)

    def words(self) -> str:
        """What it does."""
        names = ("brightness", "contrast", "saturation")
        parts = [f"{n} ±{100 * getattr(self, n):g} %" for n in names if getattr(self, n)]
        parts += [f"hue ±{360 * self.hue:g}°"] if self.hue else []
        return ", ".join(parts) or "no change of colour"

    def change(self, x: Tensor, draws: Draws) -> Tensor:
        """Each image with factors of its own."""
        amounts = (self.brightness, self.contrast, self.saturation)
        factors = [draws.uniform(max(0.0, 1 - a), 1 + a) for a in amounts]
        return adjusted(x, *factors, hue=draws.uniform(-self.hue, self.hue))


@dataclass(frozen=True)
class Cutout(PixelOperation):
    """Cover a square with the image's mean colour; its centre is anywhere in the image.

        >>> from convlens.data.augmentation import Cutout
        >>> Cutout(0.5).words()
        'a square of 50 % of the side covered'

    Args:
        share: the square's side as a share of the image's shorter one, from 0 to 1.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        check_number("share", self.share, 0, 1)

    def words(self) -> str:
        """What it does."""
        return f"a square of {100 * self.share:g} % of the side covered"

    def change(self, x: Tensor, draws: Draws) -> Tensor:
        """Each image at a place of its own."""
        height, width = x.shape[2:]
        side = torch.full((draws.n,), float(round(self.share * min(height, width))))
        covered, _ = boxes(side, side, draws, x)
        # Exact where the weight is 0 or 1, and twice as fast as `torch.where`.
        return torch.lerp(x, x.mean((2, 3), keepdim=True), covered)


def adjusted(
    x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Images (N, C, H, W) from 0 to 1 with other colours, in place where C is 1.

    Args:
        x: float32.
        brightness: (N,) factors, as contrast and saturation.
        contrast: mixes with the mean brightness of the image.
        saturation: mixes each pixel with its grey.
        hue: (N,) parts of a turn.

    Raises:
        ArgumentError: if C is neither 1 nor 3.
    """
    if x.shape[1] not in (1, 3):
        raise ArgumentError(f"ColorJitter changes images of 1 or 3 channels, got {x.shape[1]}.")
    gain = brightness * contrast
    luma = x.new_tensor(LUMA if x.shape[1] == 3 else (1.0,)).view(1, -1, 1, 1)
    mean = (x.mean((2, 3), keepdim=True) * luma).sum(1, keepdim=True)
    offset = mean * per_image((1 - contrast) * brightness, x)
    if x.shape[1] == 1:
        return x.mul_(per_image(gain, x)).add_(offset).clamp_(0, 1)
    matrix = (_colours(saturation, hue) * gain[:, None, None]).to(x.device, torch.float32)
    red, green, blue = matrix[:, :, :, None, None].unbind(2)
    # Not a matrix product, which CUDA may round to TF32. A grey offset has no colour to be changed.
    out = (x[:, :1] * red).addcmul_(x[:, 1:2], green).addcmul_(x[:, 2:], blue)
    return out.add_(offset).clamp_(0, 1)


def boxes(heights: Tensor, widths: Tensor, draws: Draws, x: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes of whole pixels, their centres anywhere in the images, cut at the border.

    Args:
        heights: (N,) of the boxes.
        widths: (N,) likewise.
        draws: two of them are taken.
        x: the images.

    Returns:
        (N, 1, H, W) float32, 1 inside and 0 elsewhere, on the images' device; and each one's share
        of the image, (N,) float64 on the CPU.
    """
    inside: list[Tensor] = []
    for length, sides in zip(x.shape[2:], (heights, widths), strict=True):
        start = (draws.whole(0, length) - sides / 2).round_()
        places = torch.arange(length, dtype=torch.float64)
        inside.append((places >= start[:, None]) & (places < (start + sides)[:, None]))
    shares = inside[0].double().mean(1) * inside[1].double().mean(1)
    rows, columns = (axis.to(x.device, torch.float32) for axis in inside)
    return (rows[:, :, None] * columns[:, None, :])[:, None], shares


def _colours(saturation: Tensor, hue: Tensor) -> Tensor:
    """(N, 3, 3) float64: both as one matrix on RGB."""
    to_yiq = torch.tensor(YIQ, dtype=torch.float64)
    angle = hue * (2 * math.pi)
    cos, sin = saturation * angle.cos(), saturation * angle.sin()
    turn = torch.zeros(len(hue), 3, 3, dtype=torch.float64)
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, sin, -sin, cos
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq
