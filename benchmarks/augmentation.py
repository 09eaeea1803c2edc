"""How fast batches are augmented: `python benchmarks/augmentation.py [--rounds 20] [--threads 1]`.

The presets and a few operations against torchvision.transforms.v2 doing the same: image by image,
as in a Dataset, and on whole batches, where all images of a batch get the same random values. Both
start from uint8 images in memory and give float32 from 0 to 1. The sides take turns in an order
drawn anew in each round; a ratio is the median of the rounds' own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2

from convlens.data.augmentation import (
    ColorJitter,
    CutMix,
    Cutout,
    Mixup,
    Operation,
    augmentation_of,
    presets,
)
from pairs import machine

BILINEAR = v2.InterpolationMode.BILINEAR

Case = tuple[str, str | Operation, tuple[int, ...], int, list[object], bool]
"""Name, what we do, the stored batch, the size used, what torchvision does, and whether that works
image by image."""

CASES: list[Case] = [
    ("digits", "digits", (512, 1, 28, 28), 28,
     [v2.RandomAffine(10, (0.05, 0.05), (0.9, 1.1), 5, BILINEAR)], True),
    ("small", "small", (512, 3, 32, 32), 32,
     [v2.RandomHorizontalFlip(), v2.RandomCrop(32, 4, padding_mode="reflect")], True),
    ("photos", "photos", (32, 3, 256, 256), 224,
     [v2.RandomResizedCrop(224, (0.35, 1)), v2.RandomHorizontalFlip(),
      v2.ColorJitter(0.2, 0.2, 0.2, 0.02)], True),
    ("colour", ColorJitter(0.2, 0.2, 0.2, 0.02), (32, 3, 224, 224), 224,
     [v2.ColorJitter(0.2, 0.2, 0.2, 0.02)], True),
    ("cutout", Cutout(), (512, 3, 32, 32), 32,
     [v2.RandomErasing(1, (0.25, 0.25), (1, 1))], True),
    ("mixup", Mixup(), (512, 3, 32, 32), 32, [v2.MixUp(alpha=0.2, num_classes=10)], False),
    ("cutmix", CutMix(), (512, 3, 32, 32), 32, [v2.CutMix(num_classes=10)], False),
]  # fmt: skip


def sides_of(case: Case) -> dict[str, Callable[[], object]]:
    """One batch of each way of doing it."""
    _, augment, shape, size, transforms, single = case
    augmentation = augmentation_of(augment, size, n_classes=10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    y = torch.arange(len(x)) % 10
    to_float = v2.ToDtype(torch.float32, scale=True)
    # Mixing wants floats; everything else is faster on bytes, which are a quarter of the memory.
    theirs = v2.Compose([*transforms, to_float] if single else [to_float, *transforms])
    arguments = (x,) if single else (x, y)

    def one_by_one() -> Tensor:
        return torch.stack([theirs(image) for image in x])

    sides: dict[str, Callable[[], object]] = {
        "convlens": lambda: augmentation(x, y, generator),
        "v2 on the batch": lambda: theirs(*arguments),
    }
    return sides | ({"v2 by image": one_by_one} if single else {})


def seconds(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def measured(case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Images a second of each side, and how many times as many we do."""
    sides, rng = sides_of(case), np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name in rng.permutation(list(sides)):
            times[name].append(seconds(sides[name]))
    ours = np.array(times["convlens"])
    return {
        name: {
            "images_per_s": round(case[2][0] / float(np.median(taken))),
            "ratio": round(float(np.median(np.array(taken) / ours)), 2),
        }
        for name, taken in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    where = f"{machine()}, torchvision {torchvision.__version__}"
    print(f"images/s on the CPU, median of {options.rounds} rounds, {where}")
    print("ratio: how many times as many convlens does\n")
    print(
        f"{'':8} {'stored batch':18} {'convlens':>10} {'v2 by image':>18} {'v2 on the batch':>18}"
    )
    results: dict[str, object] = {}
    for case in CASES:
        found = results[case[0]] = measured(case, options.rounds)
        shape = "×".join(map(str, case[2]))
        line = f"{case[0]:8} {shape:18} {found['convlens']['images_per_s']:>10,}"
        for name in ("v2 by image", "v2 on the batch"):
            one = found.get(name)
            said = f"{one['images_per_s']:,} ({one['ratio']:.2f})" if one else "–"
            line += f" {said:>18}"
        print(line)
    assert {"digits", "small", "photos"} == set(presets((32, 32)))
    print(json.dumps({"machine": where, "rounds": options.rounds, "results": results}))


if __name__ == "__main__":
    main()
