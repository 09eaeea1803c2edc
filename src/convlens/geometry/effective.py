"""The effective receptive field: how much each input pixel really moves a unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convlens.errors import ArgumentError
from convlens.execution import copy_of, hook_layers, preserved, shapes, unwrapped
from convlens.geometry.fields import LayerField, ReceptiveFields, receptive_field

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARES = (50, 90, 99)
"""Percentages whose radius is given."""

BLOCK = 3
"""Without a unit, so many units in the middle of each axis are averaged over."""


@dataclass(frozen=True)
class EffectiveField:
    """How much the pixels around a unit's centre move it, averaged over images and units.

    Attributes:
        layer: the module's name.
        units: places on the layer's grid that were averaged over.
        share: share of the gradient's magnitude that falls on each pixel, one axis for each of the
            image's; sums to 1. Pixels are counted from the field's centre.
        center: place in ``share`` of the field's centre, which may lie between two pixels.
        radius: by percentage (50, 90, 99), half the side of the square around the centre that
            holds so much of the gradient, in pixels.
        theoretical: the same for the whole receptive field, on an input without edges; None where
            that is not one number for each axis.
    """

    layer: str
    units: tuple[tuple[int, ...], ...]
    share: NDArray[np.float64]
    center: tuple[float, ...]
    radius: Mapping[int, float]
    theoretical: float | None

    def __str__(self) -> str:
        parts = ", ".join(f"{share} % within {r:.1f}" for share, r in self.radius.items())
        whole = "" if self.theoretical is None else f", all within {self.theoretical:g}"
        return f"effective field of layer {self.layer!r}, in pixels from its centre: {parts}{whole}"

    def plot(self, ax: Axes | None = None, log: bool = False) -> Axes:
        """Draw it with the squares of its radii; see `plots.show_effective_field`."""
        from convlens.plots import show_effective_field

        return show_effective_field(
            self.share, self.center, self.radius, self.theoretical, log=log, ax=ax
        )


def effective_receptive_field(
    model: nn.Module,
    images: Tensor,
    layer: str | int,
    unit: Sequence[int] | None = None,
) -> EffectiveField:
    """Find which pixels really move a layer's units: |∂ unit / ∂ pixel|, averaged over images.

    A unit is the sum of all channels at one place of the layer's output; the magnitudes of the
    input's channels are added. In a network with random weights it is much smaller than the
    receptive field and fades like a Gaussian; training makes it grow (Luo et al., "Understanding
    the Effective Receptive Field in Deep Convolutional Neural Networks", 2016, arXiv:1701.04128).
    Batch normalization is that of evaluation.

    Args:
        model: any module that takes one tensor. Its weights, gradients and modes stay as they are.
        images: (N, C, H, W), or with one or three axes in place of H, W; on the model's device.
        layer: a module's name, an index among the modules that run, or ``"last conv"``.
        unit: a place on the layer's grid, such as (row, column). None averages over the units in
            the middle of the grid, three along each axis, each from its own centre.

    Raises:
        LayerNotFoundError: if there is no such layer, with the closest names.
        ArgumentError: if the images do not fit, the layer's output has no grid or does not depend
            on the images, the unit lies outside it, or no pixel moves it.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() < 3:  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = f" of {images.dtype}" if isinstance(images, Tensor) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
        what = f"{tuple(images.shape)}{kind}" if kind else shapes.brief(images)
        raise ArgumentError(
            f"images={what} is no floating tensor (N, C, H, W); give images as the model gets them."
        )
    model = unwrapped(model)
    fields = receptive_field(model, images)
    name = fields.find(layer)
    field = fields.layers[name]
    units = _units(field, images, unit)
    maps, offsets = _gradients(model, name, images, field, units)
    share, center = _aligned(maps, offsets)
    if not share.sum() > 0 or not np.isfinite(share).all():
        raise ArgumentError(
            f"layer={name!r} has no finite gradient with respect to images: no pixel moves unit "
            f"{units[0]}, or the weights are not finite; take other images or another unit."
        )
    share /= share.sum()
    radius = _radii(share, center)
    return EffectiveField(name, units, share, center, radius, _theoretical(field))


def center_fields(
    model: nn.Module, images: Tensor, fields: ReceptiveFields, layers: Sequence[str]
) -> dict[str, EffectiveField]:
    """The effective field of the unit in the middle of each layer: one forward run for all.

    As `effective_receptive_field` with ``unit=(H // 2, W // 2)``.

    Args:
        model: any module that takes one tensor.
        images: (N, C, H, W).
        fields: the model's receptive fields for such images.
        layers: names of modules. Of one that returns several tensors the first counts, of one that
            runs several times the last run.

    Returns:
        By layer, without those that no image moves, whose gradient is not finite, or whose output
        has not the images' axes.
    """
    totals: dict[str, tuple[tuple[int, ...], Tensor]] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, Tensor) and first.dim() == images.dim():
                unit = tuple(n // 2 for n in first.shape[2:])
                totals[name] = unit, first[(slice(None), slice(None), *unit)].sum()

        return keep

    found: dict[str, EffectiveField] = {}
    with preserved(model, copy_of), torch.enable_grad():
        hook_layers(model, keeper, layers)
        x = images.detach().clone().requires_grad_()
        model(x.clone())  # which the model may change in place
        for name, (unit, total) in list(totals.items()):
            made = _of_total(total, unit, x, fields.layers.get(f"{name}[0]") or fields[name])
            if made is not None:
                found[name] = made
    return {name: found[name] for name in layers if name in found}


def _of_total(
    total: Tensor, unit: tuple[int, ...], x: Tensor, field: LayerField
) -> EffectiveField | None:
    """The field of one unit, whose channels' and images' sum is ``total``."""
    if not total.requires_grad or len(field.output_shape) != x.dim():
        return None
    (gradient,) = torch.autograd.grad(total, x, retain_graph=True, materialize_grads=True)
    share = gradient.abs().sum((0, 1), dtype=torch.float64).cpu().numpy()
    if not share.sum() > 0 or not np.isfinite(share).all():
        return None
    share /= share.sum()
    center = _center(field, x, unit)
    return EffectiveField(
        field.name, (unit,), share, center, _radii(share, center), _theoretical(field)
    )


def _theoretical(field: LayerField) -> float | None:
    known = [size for size in field.size if size is not None]
    return max(known) / 2 if known and len(known) == len(field.size) else None


def _units(
    field: LayerField, images: Tensor, unit: Sequence[int] | None
) -> tuple[tuple[int, ...], ...]:
    if len(field.output_shape) != images.dim():
        raise ArgumentError(
            f"layer={field.name!r} gives {shapes.named(field.output_shape)}, which has no grid "
            f"like that of images {shapes.named(images.shape)}; take a layer before it."
        )
    grid = field.output_shape[2:]
    if unit is None:
        middle = [range(max(0, (n - BLOCK + 1) // 2), (n + BLOCK + 1) // 2)[:n] for n in grid]
        return tuple(
            tuple(int(i) for i in place)
            for place in np.stack(np.meshgrid(*middle, indexing="ij"), -1).reshape(-1, len(grid))
        )
    return (
        shapes.within(unit, grid, f"unit={unit!r} is no place on the grid of layer {field.name!r}"),
    )


def _gradients(
    model: nn.Module,
    name: str,
    images: Tensor,
    field: LayerField,
    units: Sequence[tuple[int, ...]],
) -> tuple[list[NDArray[np.float64]], list[tuple[float, ...]]]:
    """For each unit the magnitude at each pixel, and where its centre lies."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append(output.clone())  # as it is now: it may be changed in place

    maps: list[NDArray[np.float64]] = []
    with preserved(model, copy_of), torch.enable_grad():
        hook_layers(model, lambda _: keep, [name])
        x = images.detach().clone().requires_grad_()
        model(x)
        output = outputs[-1]
        for unit in units:
            total = output[(slice(None), slice(None), *unit)].sum()
            (gradient,) = torch.autograd.grad(total, x, retain_graph=True)
            magnitude = gradient.abs().sum((0, 1), dtype=torch.float64)
            maps.append(magnitude.cpu().numpy())
    return maps, [_center(field, images, unit) for unit in units]


def _center(field: LayerField, images: Tensor, unit: tuple[int, ...]) -> tuple[float, ...]:
    """The middle of a unit's field; where it is not known, the place in proportion."""
    grid, n_pixels = field.output_shape[2:], images.shape[2:]

    def along(axis: int) -> float:
        size, jump, start = field.size[axis], field.jump[axis], field.start[axis]
        if size is None or jump is None or start is None:
            return (unit[axis] + 0.5) * n_pixels[axis] / grid[axis] - 0.5
        return start + unit[axis] * jump + (size - 1) / 2

    return tuple(along(axis) for axis in range(len(grid)))


def _aligned(
    maps: Sequence[NDArray[np.float64]], centers: Sequence[tuple[float, ...]]
) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """The mean of maps laid with their centres upon each other, where all of them have pixels.

    A pixel that only some of them have is averaged over those.
    """
    shape = maps[0].shape
    base = [[int(np.floor(c)) for c in center] for center in centers]
    before = [max(b[axis] for b in base) for axis in range(len(shape))]
    after = [max(n - b[axis] for b in base) for axis, n in enumerate(shape)]
    total = np.zeros([b + a for b, a in zip(before, after, strict=True)])
    count = np.zeros_like(total)
    for magnitude, place in zip(maps, base, strict=True):
        window = tuple(
            slice(b - p, b - p + n) for b, p, n in zip(before, place, shape, strict=True)
        )
        total[window] += magnitude
        count[window] += 1
    fraction = [c - np.floor(c) for c in centers[0]]
    center = tuple(float(b + f) for b, f in zip(before, fraction, strict=True))
    return total / np.maximum(count, 1), center


def _radii(share: NDArray[np.float64], center: tuple[float, ...]) -> dict[int, float]:
    """Half the sides of the squares that hold so much, each pixel's share spread over its area."""
    lines = [np.abs(np.arange(n) - c) for n, c in zip(share.shape, center, strict=True)]
    distance = np.maximum.reduce(np.meshgrid(*lines, indexing="ij"))
    steps, where = np.unique(distance, return_inverse=True)
    within = np.cumsum(np.bincount(where.ravel(), share.ravel()))
    edges = np.concatenate([[0.0], steps + 0.5])
    held = np.concatenate([[0.0], within / within[-1]])
    return {s: float(np.interp(s / 100, held, edges)) for s in SHARES}
