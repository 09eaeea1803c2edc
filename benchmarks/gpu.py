"""Everything watched against nothing on a CUDA device: ResNet-18 at 224 × 224, batch 128.

bfloat16 autocast, channels last, every trainable layer, every batch, every value. All sides do the
same steps on the same batch with networks of the same weights, and their time is taken on the
device. A block of columns is copied out once in a few dozen steps, which a median does not see:
the ratio of all times added up does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl
from pairs import compare, finish, verdict

STEPS = 4  # in a call, so that the host runs ahead of the device as it does in training


def resnet_steps(batch_size: int) -> tuple[nn.Module, Callable[[], None]]:
    """A few training steps on one batch that lies on the device."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18().to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(batch_size, 3, 224, 224, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    y = torch.randint(1000, (batch_size,), device="cuda")

    def steps() -> None:
        for _ in range(STEPS):
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return model, steps


class DeviceClock:
    """Seconds between two events on the device, and all of them by side."""

    def __init__(self) -> None:
        self.total_s: dict[int, float] = {}

    def __call__(self, side: Callable[[], None]) -> float:
        """Time one call; the device is idle before and after it."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        side()
        end.record()
        end.synchronize()
        seconds = start.elapsed_time(end) / 1e3
        self.total_s[id(side)] = self.total_s.get(id(side), 0.0) + seconds
        return seconds


def host_ms(side: Callable[[], None]) -> float:
    """Milliseconds a step that the host needs to queue it, the device being idle at first."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    side()
    return 1e3 * (time.perf_counter() - start) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "benchmarks/gpu.py measures on a CUDA device, and torch finds none here; "
            "run it on a machine that has one."
        )
    torch.backends.cudnn.benchmark = True
    model, watched = resnet_steps(arguments.batch_size)
    nothing = resnet_steps(arguments.batch_size)[1]
    sides = {"nothing": nothing, "A/A": resnet_steps(arguments.batch_size)[1], "watched": watched}
    clock = DeviceClock()
    title = f"ResNet-18, batch {arguments.batch_size}, {torch.cuda.get_device_name()}"
    with cl.watch(model) as stats:
        result = compare(title, sides, "nothing", 1.05, arguments.rounds, steps=STEPS, clock=clock)
        host = {name: host_ms(side) for name, side in sides.items()}
    for name in ("A/A", "watched"):
        ratio = clock.total_s[id(sides[name])] / clock.total_s[id(nothing)]
        result[f"{name}, all added up"] = round(ratio, 4)
        print(f"  {name}, all added up: ratio {ratio:.4f}")
    print("  the host queues a step in " + ", ".join(f"{n} {ms:.2f} ms" for n, ms in host.items()))
    print(f"  {verdict(result, 'watched')}; {len(stats.layers)} layers watched")
    finish([result])


if __name__ == "__main__":
    main()
