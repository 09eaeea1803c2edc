"""Layers around a network: for what pretrained weights expect, and for the targets' units."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convlens.errors import ArgumentError
from convlens.models.built_from import architecture_of, remember

GREY = 1, 3
"""One channel where weights expect three: the mean of theirs."""


@dataclass(frozen=True)
class Expected:
    """The mean and deviation that weights expect, per channel, of pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def for_channels(self, n_in: int) -> Expected | None:
        """That of images of ``n_in`` channels; None if it is not known."""
        if n_in == len(self.mean):
            return self
        if (n_in, len(self.mean)) != GREY:
            return None
        return Expected((sum(self.mean) / 3,), (sum(self.std) / 3,))

    def __str__(self) -> str:
        mean, std = ([float(f"{v:.4g}") for v in values] for values in (self.mean, self.std))
        return f"mean {mean} and deviation {std} of pixels from 0 to 1"


class Normalization(nn.Module):
    """Multiplies each channel by a factor and adds a shift: (N, C, H, W) → (N, C, H, W).

    Both are buffers, so they are saved with the weights.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(n_in))
        self.register_buffer("shift", torch.zeros(n_in))

    def forward(self, x: Tensor) -> Tensor:
        """The images as the weights expect them."""
        return x * self.factor.view(-1, 1, 1) + self.shift.view(-1, 1, 1)

    def extra_repr(self) -> str:
        """Number of channels."""
        return str(len(self.factor))


class OutputScale(nn.Module):
    """From outputs around 0 to the units of the targets: ``std · output + mean``, in float32.

    Networks begin with outputs around 0, from which a mean of 117 is many steps away. Both are
    buffers, so they are saved with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, (N,) or (N, 1), in the units of the data."""
        return x.float() * self.std + self.mean  # bfloat16 has no 2001, only 2000 and 2008

    def extra_repr(self) -> str:
        """Mean and deviation."""
        if self.mean.is_meta:
            return ""
        return f"mean={float(self.mean):.6g}, std={float(self.std):.6g}"


def output_scaled(network: nn.Module, targets: Tensor | None = None) -> nn.Sequential:
    """The network before a layer that brings its outputs to the mean and deviation of targets.

        >>> prices = torch.tensor([200_000.0, 300_000.0])
        >>> model = cl.models.output_scaled(cl.simple_cnn(1, 1), prices)
        >>> model.output_scale
        OutputScale(mean=250000, std=50000)

    The loss stays in the units of the targets, and the gradient of a squared error grows with their
    variance. That changes nothing for Adam; for SGD normalize the targets instead.

    Args:
        network: gives one number for each image, (N, 1) or (N,).
        targets: the numbers to train on, (N,); None for mean 0 and deviation 1.

    Raises:
        ArgumentError: if the targets are not finite numbers (N,), or the network is scaled already.
    """
    own = dict(network.named_children()) if isinstance(network, nn.Sequential) else {}
    if any(isinstance(layer, OutputScale) for layer in own.values()):
        raise ArgumentError("network has an output scale already; give the one inside, .network.")
    if isinstance(own.get("normalization"), Normalization) and "network" in own:
        scaled = output_scaled(own["network"], targets)  # in the order in which `build` does it
        model = nn.Sequential(OrderedDict(normalization=own["normalization"], network=scaled))
        return _remembered(model, scaled, "normalization")
    layer = OutputScale()
    if targets is not None:
        values = torch.as_tensor(targets).cpu().double()
        n_bad = int((~values.isfinite()).sum())
        if values.ndim != 1 or not len(values) or n_bad:
            raise ArgumentError(
                "targets must be finite numbers (N,), at least one, got shape "
                f"{tuple(values.shape)} with {n_bad} that are not finite."
            )
        layer.mean.copy_(values.mean())
        layer.std.copy_(values.std(correction=0))
        if layer.std == 0:
            layer.std.fill_(1.0)
    model = nn.Sequential(OrderedDict(network=network, output_scale=layer))
    return _remembered(model, network, "output_scale")


def normalized(network: nn.Module, n_in: int) -> nn.Sequential:
    """The network behind a `Normalization` that changes nothing yet."""
    model = nn.Sequential(OrderedDict(normalization=Normalization(n_in), network=network))
    return _remembered(model, network, "normalization")


def inner_network(model: nn.Module) -> nn.Module:
    """The network without the `Normalization` before it and the `OutputScale` after it."""
    while isinstance(model, nn.Sequential) and "network" in (own := dict(model.named_children())):
        if not any(isinstance(layer, Normalization | OutputScale) for layer in own.values()):
            break
        model = own["network"]
    return model


def _remembered(model: nn.Sequential, network: nn.Module, argument: str) -> nn.Sequential:
    """Note on the model that it is the network with a layer more."""
    architecture = architecture_of(network)
    if architecture is None:
        return model
    return remember(model, architecture.name, {**architecture.arguments, argument: True})


def convert(network: nn.Module, given: Expected, wanted: Expected) -> nn.Module:
    """The network for images that are normalized as ``given``, if it expects ``wanted``.

    The network itself if the two are equal to about float32's precision.
    """
    mean, std, own_mean, own_std = (
        torch.tensor(values, dtype=torch.float64)
        for values in (given.mean, given.std, wanted.mean, wanted.std)
    )
    factor, shift = std / own_std, (mean - own_mean) / own_std
    if torch.allclose(factor, torch.ones_like(factor), atol=1e-6) and shift.abs().max() < 1e-6:
        return network
    model = normalized(network, len(given.mean))
    layer = model[0]
    assert isinstance(layer, Normalization)
    layer.factor.copy_(factor)
    layer.shift.copy_(shift)
    return model


def expected(mean: Sequence[float], std: Sequence[float]) -> Expected:
    """As floats."""
    return Expected(tuple(map(float, mean)), tuple(map(float, std)))
