"""`Operation`, what an augmentation is made of; the random values of a batch; checks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convlens.core.argument_checks import check_whole
from convlens.errors import ArgumentError


class Operation(ABC):
    """One operation of an augmentation; each image of a batch gets its own random values."""

    @abstractmethod
    def words(self) -> str:
        """What it does, as part of a sentence."""


@dataclass(frozen=True)
class Draws:
    """Random values for the ``n`` images of a batch, always from the same number of draws.

    They are drawn on the CPU in float64, so that they are the same on every device.
    """

    n: int
    generator: torch.Generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(n,) float64, from ``low`` to ``high``."""
        values = torch.rand(self.n, dtype=torch.float64, generator=self.generator)
        return values.mul_(high - low).add_(low)

    def whole(self, low: int, high: int) -> Tensor:
        """(n,) float64, whole numbers from ``low`` to ``high``, both included."""
        return self.uniform(low, high + 1).floor_().clamp_(max=high)

    def chance(self, p: float) -> Tensor:
        """(n,) bool, true with probability ``p``."""
        return self.uniform() < p

    def partners(self) -> Tensor:
        """(n,) int64: another image of the batch for each, in a random order."""
        return torch.randperm(self.n, generator=self.generator)

    def beta(self, alpha: float) -> Tensor:
        """(n,) float64 of the Beta(alpha, alpha) distribution.

        Torch's own takes no generator, so NumPy draws them, seeded from this one.
        """
        seed = int(torch.randint(2**62, (1,), generator=self.generator))
        return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, self.n))


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """Values (N,) as float32 (N, 1, 1, 1) on the device of images ``x``."""
    return values.to(x.device, torch.float32).view(-1, 1, 1, 1)


def height_width(size: object) -> tuple[int, int]:
    """(height, width), of one number or of the two; raises ArgumentError of anything else."""
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise ArgumentError(f"size must be a number or (height, width), got {size!r}.")
    for side in sides:  # pyright: ignore[reportUnknownVariableType]
        check_whole("size", side, 1)
    return sides  # pyright: ignore[reportReturnType, reportUnknownVariableType]


def check_number(argument: str, value: object, least: float, most: float = math.inf) -> None:
    """Raises ArgumentError if a value is not a finite number from ``least`` to ``most``."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and least <= number <= most):
        limits = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ArgumentError(f"{argument} must be a number {limits}, got {value!r}.")


def check_range(argument: str, value: object, least: float, most: float = math.inf) -> None:
    """Raises ArgumentError if it is not a pair (low, high) within ``least`` to ``most``."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ArgumentError(f"{argument} must be a pair (low, high), got {value!r}.")
    for bound in value:
        check_number(argument, bound, least, most)
    if value[0] > value[1]:
        raise ArgumentError(f"{argument} must be a pair (low, high) in this order, got {value!r}.")
