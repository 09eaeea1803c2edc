"""How long a summary and its receptive fields take: `python benchmarks/summary.py`.

The best of three, in seconds; torchvision's networks with random weights, and a thousand layers.
"""

from __future__ import annotations

import time

from torch import nn
from torchvision.models import get_model

import convlens as cl

RUNS = 3


def seconds(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The shortest of some summaries."""
    times: list[float] = []
    for _ in range(RUNS):
        start = time.perf_counter()
        cl.summary(model, shape)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    for name in ("resnet18", "resnet50", "efficientnet_b0", "convnext_tiny", "vit_b_16"):
        print(f"{name:16} {seconds(get_model(name, weights=None), (1, 3, 224, 224)):.2f} s")
    deep = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(1000)))
    print(f"{'1000 layers':16} {seconds(deep, (1, 4, 64, 64)):.2f} s")


if __name__ == "__main__":
    main()
