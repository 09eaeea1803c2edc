"""Grad-CAM: which places of an image speak for a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", 2017, arXiv:1610.02391. The check with random weights is that of Adebayo et al.,
"Sanity Checks for Saliency Maps", 2018, arXiv:1810.03292.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convlens.core.layers import find_layer
from convlens.errors import ArgumentError, TrainingError
from convlens.execution import copy_of, hook_layers, named_layers, preserved, unwrapped

Target = int | Sequence[int] | Tensor | None

FEWEST_UNITS = 4
"""Without a layer named, the last one with so many units along each axis is taken."""


@dataclass(frozen=True)
class ActivationMaps:
    """Grad-CAM of N images.

    Attributes:
        maps: (N, h, w) float32 on the CPU, at least 0.
        layer: the module whose output was weighted.
        targets: (N,) int64, the classes.
        probabilities: (N,) float32, what the network gave them.
        correlation: (N,) rank correlation of each map, before what is negative becomes 0, with
            that of random weights, the mean of several draws; NaN where one of the two is constant.
    """

    maps: Tensor
    layer: str
    targets: Tensor
    probabilities: Tensor
    correlation: NDArray[np.float32]


def grad_cam(
    model: nn.Module, x: Tensor, layer: str | None = None, target: Target = None
) -> Tensor:
    """Map which places of images speak for a class, by one layer's output.

    The channels of the layer's output are added up, each weighted by the mean of its gradient of
    the class's score; what is negative becomes 0. The model runs in evaluation mode, without
    autocast, and is left as it was.

    >>> from convlens.inference.grad_cam import grad_cam
    >>> grad_cam(cl.simple_cnn(1, 10), torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 4, 4])

    Args:
        model: gives scores (N, K) for images.
        x: (N, C, H, W) as the network gets them, on the model's device.
        layer: a module's name. Its output is (N, C, h, w), or (N, tokens, C) with a square grid
            of tokens, with or without a class token before them. None takes the last layer with
            at least 4 × 4 units, where there is none the last with more than one.
        target: a class, or one for each image; None for the predicted one.

    Returns:
        (N, h, w) float32 on the CPU, at least 0.

    Raises:
        LayerNotFoundError: if there is no such layer, with the closest names.
        ArgumentError: if the layer's output has no grid, or an argument cannot work.
        TrainingError: if the model's output is not (N, K), or does not depend on the layer.
    """
    return explained(model, x, layer, target, n_random=0).maps


def explained(
    model: nn.Module, x: Tensor, layer: str | None, target: Target, n_random: int
) -> ActivationMaps:
    """`grad_cam` with what belongs to it.

    Args:
        model: gives scores (N, K) for images.
        x: (N, C, H, W) on the model's device.
        layer: a module's name; None for the last one that is fine enough.
        target: a class, or one for each image; None for the predicted one.
        n_random: networks with random weights that the maps are compared with.

    Raises:
        LayerNotFoundError, ArgumentError, TrainingError: as `grad_cam`.
    """
    model, x = unwrapped(model), x.detach()
    if x.ndim != 4 or 0 in x.shape:
        raise ArgumentError(f"x must be images (N, C, H, W), at least one, got {tuple(x.shape)}.")
    with torch.inference_mode(mode=False), torch.enable_grad():
        if layer is None:
            layer = last_grid(model, x[:1])
        else:
            names = [name for name, _ in named_layers(model) if name]
            layer = names[find_layer(layer, names)]
        with preserved(model, copy_of):
            maps, scores, targets = _weighted(model, x, layer, target)
            found: list[NDArray[np.float64]] = []
            for seed in range(n_random):
                randomize(model, seed)
                found.append(rank_correlation(maps, _weighted(model, x, layer, targets)[0]))
    share = scores.softmax(dim=1).gather(1, targets[:, None])[:, 0]
    correlation = _mean(found, len(maps))
    return ActivationMaps(maps.relu(), layer, targets.cpu(), share.cpu(), correlation)


def last_grid(model: nn.Module, x: Tensor) -> str:
    """The last layer whose output is (N, C, h, w) with enough units.

    Of modules that give the same tensor, such as a block and its last layer, the first.

    Raises:
        ArgumentError: if there is none, or the network has gone over to tokens.
    """
    found: list[tuple[str, int]] = []  # each with its units along the shorter axis
    last: list[tuple[Tensor, int]] = []
    n_tokens = [0]  # outputs (N, tokens, C) since the last grid

    def make_hook(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            n_tokens[0] += output.ndim == 3
            now = output, output._version  # pyright: ignore[reportPrivateUsage]
            same = bool(last) and last[0][0] is now[0] and last[0][1] == now[1]
            if name and not same and output.shape[2:].numel() > 1 and is_grid(output, x):
                found.append((name, min(output.shape[2:])))
                last[:], n_tokens[0] = [now], 0

        return hook

    with preserved(model, copy_of), torch.no_grad():
        hook_layers(model, make_hook)
        model(x.clone())
    if not found or n_tokens[0] > len(found):
        why = "its later layers put out tokens (N, tokens, C)" if n_tokens[0] else "it has none"
        raise ArgumentError(
            f"layer=None stands for the network's last output (N, C, h, w), but {why}; name a "
            "layer whose output has a grid."
        )
    fine = [name for name, units in found if units >= FEWEST_UNITS]
    return fine[-1] if fine else found[-1][0]


def is_grid(output: Tensor, x: Tensor) -> bool:
    """Whether an output is (N, C, h, w), of about the proportions of the images (N, C, H, W).

    One with the channels last is not.
    """
    if output.ndim != 4 or len(output) != len(x) or 0 in output.shape:
        return False
    (h, w), (height, width) = output.shape[2:], x.shape[2:]
    across = w * height / width
    return abs(h - across) <= 2 or max(h, across) <= 1.5 * min(h, across)


def randomize(model: nn.Module, seed: int) -> None:
    """Draw every parameter from a normal distribution with its mean and standard deviation.

    In place, of the stand-ins inside `preserved`.
    """
    generators: dict[torch.device, torch.Generator] = {}
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point() and p.numel():
                if p.device not in generators:
                    generators[p.device] = torch.Generator(p.device).manual_seed(seed)
                noise = torch.empty_like(p).normal_(generator=generators[p.device])
                std, mean = torch.std_mean(p, correction=0)
                p.copy_(noise * std + mean)


def rank_correlation(one: Tensor, other: Tensor) -> NDArray[np.float64]:
    """(N,) Spearman's rank correlation of maps (N, h, w); NaN where one of the two is constant."""
    found = np.full(len(one), np.nan)
    for i, pair in enumerate(zip(one.flatten(1).numpy(), other.flatten(1).numpy(), strict=True)):
        a, b = map(_ranks, pair)
        spread = a.std() * b.std()
        if spread > 0:
            found[i] = ((a - a.mean()) * (b - b.mean())).mean() / spread
    return found


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The rank of each value; equal ones share the mean of theirs."""
    if not np.isfinite(values).all():
        return np.zeros(len(values))
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _mean(found: Sequence[NDArray[np.float64]], n: int) -> NDArray[np.float32]:
    """(N,) the mean of those that are known."""
    values = np.array(found).reshape(-1, n)
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _weighted(
    model: nn.Module, x: Tensor, layer: str, target: Target
) -> tuple[Tensor, Tensor, Tensor]:
    """Signed maps (N, h, w), scores (N, K) and classes (N,); inside `preserved`."""
    kept: list[Tensor] = []

    def hook(_: nn.Module, __: object, output: object) -> Tensor:
        leaf = _leaf(output, layer)
        kept[:] = [leaf]  # of a layer that runs several times, the last run
        return leaf.clone()  # which the next layer may change in place

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        scores = _scores(model(x.clone()), x)
    finally:
        handle.remove()
    if not kept:
        raise ArgumentError(f"layer={layer!r} does not run for such images; name another layer.")
    if not scores.requires_grad:
        raise TrainingError(
            f"The model's output does not depend on layer {layer!r}, or the model switches "
            "gradients off behind it; name another layer."
        )
    targets = _classes(target, scores)
    total = scores.gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(total, kept[0])
    output, gradient = (_as_grid(tensor, x, layer) for tensor in (kept[0].detach(), gradient))
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    maps = (weights * output).sum(dim=1).float().cpu()
    return maps, scores.detach().float(), targets


def _leaf(output: object, layer: str) -> Tensor:
    """The layer's output, from which the gradients are computed."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise ArgumentError(
            f"layer={layer!r} puts out a {type(output).__name__}, not one tensor of floats; name "
            "a layer whose output is (N, C, h, w)."
        )
    return output.detach().requires_grad_()


def _as_grid(output: Tensor, x: Tensor, layer: str) -> Tensor:
    """An output as (N, C, h, w); tokens (N, tokens, C) without the class token."""
    if output.ndim == 3:
        n, side = output.shape[1], math.isqrt(output.shape[1])
        if side > 1 and side * side in (n, n - 1):
            return output[:, n - side * side :].mT.unflatten(2, (side, side))
    elif is_grid(output, x):
        return output
    raise ArgumentError(
        f"layer={layer!r} puts out {tuple(output.shape)}, which has no grid (N, C, h, w) like "
        f"that of the images {tuple(x.shape)}; name another layer."
    )


def _scores(output: object, x: Tensor) -> Tensor:
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(x):
        return output
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise TrainingError(
        f"The model's output must be scores (N, K) of N = {len(x)} images, got {found}."
    )


def _classes(target: Target, scores: Tensor) -> Tensor:
    """(N,) int64, checked."""
    (n, k), device = scores.shape, scores.device
    if target is None:
        return scores.argmax(dim=1)
    try:
        classes = torch.as_tensor(target)
        whole = not classes.is_floating_point() and classes.dtype != torch.bool
    except (TypeError, ValueError, RuntimeError):
        classes, whole = torch.empty(0), False
    if not whole or classes.shape not in ((), (n,)) or classes.min() < 0 or classes.max() >= k:
        raise ArgumentError(
            f"target must be a class from 0 to {k - 1}, or one for each of the {n} images, got "
            f"{target!r}."
        )
    return classes.to(device, torch.int64).expand(n)
