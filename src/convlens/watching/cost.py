"""What watching costs, as it measured itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Cost:
    """Seconds that watching has taken of a training.

    Attributes:
        kernel_s: in the kernels, measured around every call. On a GPU that is the time to launch
            them: they run beside the host. The first call in a process also compiles them, or loads
            them from Numba's cache.
        hooks_s: in Python around them: the number of calls times the measured cost of one.
        handover_s: handing finished columns to the thread that compresses and writes them.
        training_s: from the first step to now, or to the end of watching.

    Example:
        >>> from convlens.watching.cost import Cost
        >>> Cost(kernel_s=0.3, hooks_s=0.1, handover_s=0.1, training_s=4.0).share
        0.125
    """

    kernel_s: float
    hooks_s: float
    handover_s: float
    training_s: float

    @property
    def watching_s(self) -> float:
        """All that watching took of the training's own thread."""
        return self.kernel_s + self.hooks_s + self.handover_s

    @property
    def share(self) -> float:
        """The part of the training's time that was watching; NaN before the first step."""
        return self.watching_s / self.training_s if self.training_s else float("nan")

    def __str__(self) -> str:
        if not self.training_s:
            return "nothing was watched yet, so it has cost nothing"
        return (
            f"watching took {self.watching_s:.2f} s of {self.training_s:.2f} s "
            f"({self.share:.1%}): kernels {self.kernel_s:.2f} s, hooks {self.hooks_s:.2f} s, "
            f"handing over {self.handover_s:.2f} s"
        )


@cache
def hook_seconds(watch: Callable[[nn.Module, str], Any]) -> float:
    """What one hook takes besides its kernel, on this machine: the least of several tries.

    Args:
        watch: `ActivationWatch`, which imports this module.
    """
    layers = [nn.Identity() for _ in range(32)]
    model = nn.Sequential(*layers)
    x = torch.zeros(1)
    plain = _forward_seconds(model, x)
    stats = watch(model, "all")
    kernel, stats.aggregator.kernel = stats.aggregator.kernel, _no_kernel
    with stats:
        watched = _forward_seconds(model, x)
        stats.aggregator.kernel = kernel
        model(x)  # or a note would say that nothing was recorded
    return max(watched - plain, 0.0) / len(layers)


def _no_kernel(*args: object) -> None:
    """A kernel that takes no time."""


def _forward_seconds(model: nn.Module, x: torch.Tensor) -> float:
    times: list[float] = []
    for _ in range(60):
        start = time.perf_counter()
        model(x)
        times.append(time.perf_counter() - start)
    return min(times)
