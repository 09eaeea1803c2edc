"""Models that change something of themselves, or of what they know, when they run."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

SEEN: list[Tensor] = []
"""A global that a hook fills, as notebooks do."""


class Block(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def two_names() -> nn.Module:
    """One convolution in two blocks."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(Block(conv), nn.ReLU(), Block(conv))


def tied() -> nn.Module:
    """Two convolutions of one weight, and a buffer that is another's."""
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, 1, 1)
    )
    model[2].weight = model[0].weight
    model[2].register_buffer("mean", model[1].running_mean)
    return model


@functools.lru_cache
def mask(h: int, w: int) -> Tensor:
    return torch.ones(h, w).tril()


class Caching(nn.Module):
    """Keeps what it computed wherever one can keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.by_shape: dict[tuple[int, ...], Tensor] = {}
        self.listed = [torch.empty(0)]
        self.outputs: tuple[Tensor, ...] = ()
        self.inside = Holder()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) * mask(*x.shape[2:])
        self.count += 1
        key = tuple(y.shape[2:])
        if key not in self.by_shape:
            self.by_shape[key] = x.new_ones(key)
        if self.listed[0].shape != key:
            self.listed[0] = torch.linspace(0, 1, key[0], device=x.device)[:, None].expand(key)
        if not hasattr(self, "position"):
            self.register_buffer("position", torch.ones_like(y[0]), persistent=False)
        self.outputs = (*self.outputs, y)
        self.inside.last = y
        self.inside.all.append(y)
        return y * self.by_shape[key] + self.listed[0] + self.position


class Holder:
    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.all: list[Tensor] = []


class Writing(nn.Module):
    """Writes into its tensors: a parameter, a buffer, a plain one, a tuple's, a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("runs", torch.zeros(()))
        self.plain = torch.zeros(3)
        self.pair = (torch.zeros(3), torch.ones(3))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.plain[1] += 1
        self.pair[0].add_(1)
        with torch.no_grad():
            self.conv.weight.mul_(0.5)  # as some weight constraints do
            self.conv.bias.data = self.conv.bias.data.clamp(-0.01, 0.01)
        noise = torch.rand(3, generator=self.generator)[:, None, None]
        return self.conv(x) + noise + torch.rand(()) + self.plain[:, None, None]


class Merging(nn.Conv2d):
    """Merges another weight into its own in evaluation, as LoRA layers do."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        if mode == self.merged:
            self.weight.data += 1 if self.merged is False else -1
            self.merged = not self.merged
        return super().train(mode)


def hooked() -> nn.Module:
    """With hooks that keep outputs in a closure, in a global, and in an object."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    kept: dict[str, Tensor] = {}
    holder = Holder()

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            kept[name] = output.detach()
            SEEN.append(output)

        return hook

    def bound(module: nn.Module, args: object, output: Tensor, to: Holder) -> None:
        to.all.append(output)

    model[0].register_forward_hook(keep("first"))
    model[2].register_forward_hook(functools.partial(bound, to=holder))
    model.kept = kept  # so that it is compared
    model.seen = SEEN
    model.holder = holder.all
    return model


def old_weight_norm() -> nn.Module:
    """Weights that a hook computes before each run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.utils.weight_norm(nn.Conv2d(3, 3, 3, padding=1))
    return nn.Sequential(old, nn.utils.spectral_norm(nn.Conv2d(3, 3, 3, padding=1)))


def scripted() -> nn.Module:
    """TorchScript inside a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        inner = torch.jit.script(
            nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))
        )
    return nn.Sequential(nn.Conv2d(3, 3, 1), inner, nn.Conv2d(3, 3, 1))


OUTSIDE: dict[str, Any] = {"total": torch.zeros(1), "losses": []}
"""What a model keeps in global variables."""


class Slots:
    __slots__ = ("last", "total")

    def __init__(self) -> None:
        self.total = torch.zeros(1)


def outside(x: Tensor) -> Tensor:
    """A function that a model calls, with a cache of its own."""
    if "ones" not in OUTSIDE:
        OUTSIDE["ones"] = x.new_ones(1)
    OUTSIDE["total"] += 1
    OUTSIDE["losses"].append(x.square().mean())
    return OUTSIDE["ones"]


class Elsewhere(nn.Module):
    """Keeps things in its class, in slots, in global variables, and far away from it."""

    masks: ClassVar[dict[int, Tensor]] = {}
    total = torch.zeros(1)
    last: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.slots, self.far = Slots(), Holder()
        self.far.inside = Holder()
        self.far.inside.inside = Holder()
        self.randoms = random.Random(0), np.random.default_rng(0), np.random.RandomState(0)
        self.array, self.bytes = np.zeros(3), bytearray(3)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        if size not in self.masks:
            self.masks[size] = x.new_ones(size)
        type(self).last = self.slots.last = self.far.inside.inside.last = x
        self.total.add_(1)
        self.slots.total += 1
        self.array += 1
        self.bytes[0] += 1
        plain, numbers, old = self.randoms
        noise = plain.random() + numbers.random() + old.rand()
        return self.conv(x) * self.masks[size] * outside(x) + noise

    def elsewhere(self) -> dict[str, Any]:
        """All of it, to be compared."""
        plain, numbers, old = self.randoms
        return {
            "class": [dict(self.masks), self.total.item(), self.last],
            "outside": [list(OUTSIDE), OUTSIDE["total"].item(), list(OUTSIDE["losses"])],
            "objects": [
                self.slots.total.item(),
                getattr(self.slots, "last", None),
                self.far.inside.inside.last,
            ],
            "random": [plain.getstate(), str(numbers.bit_generator.state), str(old.get_state())],
            "arrays": [self.array.tolist(), bytes(self.bytes)],
        }


class Slices(nn.Module):
    """Fills a tensor that it made beforehand, part by part."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 3, 5, padding=2), nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.zeros(len(x), 6, *x.shape[2:])
        both[:, :3] = self.wide(x)
        both[:, 3:] = self.narrow(x)
        return self.last(F.relu(both))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "two names": two_names,
    "tied": tied,
    "caching": Caching,
    "writing": Writing,
    "merging": lambda: nn.Sequential(Merging(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
    "hooked": hooked,
    "old weight norm": old_weight_norm,
    "parametrized": lambda: nn.Sequential(
        spectral_norm(nn.Conv2d(3, 3, 3, padding=1)), weight_norm(nn.Conv2d(3, 3, 1))
    ),
    "scripted": scripted,
    "slices": Slices,
    "frozen norm": lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3).eval()),
}
