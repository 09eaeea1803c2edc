"""`Mixup` and `CutMix`: images of a batch mixed with each other, and their labels likewise."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from convlens.data.color import boxes
from convlens.data.operations import Draws, Operation, check_number, per_image
from convlens.errors import ArgumentError


class Mixing(Operation):
    """An operation on images and their targets, float32 (N, K) or (N,)."""

    alpha: float

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0)
        if self.alpha == 0:
            raise ArgumentError("alpha must be above 0, got 0; leave the operation out instead.")

    @abstractmethod
    def mix(self, x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Images and targets, each mixed with those of another image in the same shares."""


@dataclass(frozen=True)
class Mixup(Mixing):
    """Add two images, and their labels, in shares that add up to 1 (Zhang et al., 2018).

        >>> from convlens.data.augmentation import Mixup
        >>> Mixup().words()
        'mixup with alpha 0.2'

    Args:
        alpha: of the Beta(alpha, alpha) distribution that an image's own share is drawn from:
            small for one image with a trace of another, 1 for all shares alike.
    """

    alpha: float = 0.2

    def words(self) -> str:
        """What it does."""
        return f"mixup with alpha {self.alpha:g}"

    def mix(self, x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Weighted means."""
        own, partners = draws.beta(self.alpha), draws.partners().to(x.device)
        others = x.index_select(0, partners)
        return others.lerp_(x, per_image(own, x)), _mixed(y, partners, own)


@dataclass(frozen=True)
class CutMix(Mixing):
    """Put a box of another image in, and mix labels by area (Yun et al., 2019).

        >>> from convlens.data.augmentation import CutMix
        >>> CutMix().words()
        'cutmix with alpha 1'

    Args:
        alpha: of the Beta(alpha, alpha) distribution that an image's own share of the area is drawn
            from, before the box is cut at the border.
    """

    alpha: float = 1.0

    def words(self) -> str:
        """What it does."""
        return f"cutmix with alpha {self.alpha:g}"

    def mix(self, x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """A box of each partner."""
        side = (1 - draws.beta(self.alpha)).sqrt()
        partners = draws.partners().to(x.device)
        heights, widths = ((side * length).round() for length in x.shape[2:])
        box, shares = boxes(heights, widths, draws, x)
        others = x.index_select(0, partners)
        return others.lerp_(x, 1 - box), _mixed(y, partners, 1 - shares)


def _mixed(y: Tensor, partners: Tensor, own: Tensor) -> Tensor:
    weight = own.to(y.device, torch.float32).view(-1, *[1] * (y.ndim - 1))
    return torch.lerp(y[partners], y, weight)
