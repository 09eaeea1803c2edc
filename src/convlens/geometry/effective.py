"""The effective receptive field: how much each input pixel really moves a unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convlens.errors import ArgumentError
from convlens.execution import copy_of, keep_outputs, preserved, shapes, unwrapped
from convlens.geometry.fields import LayerField, ReceptiveFields, receptive_field

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Places = tuple[tuple[int, ...], ...]

SHARES = (50, 90, 99)
"""Percentages whose radius is given."""

BLOCK = 3
"""Units along each axis that are averaged over if no unit is given."""


@dataclass(frozen=True, repr=False)
class EffectiveField:
    """How much the pixels around a unit's centre move it, averaged over images and units.

    Attributes:
        layer: the module's name.
        units: places on the layer's grid that were averaged over.
        share: share of the gradient's magnitude of each pixel, an array with the image's axes; sums
            to 1. Pixels are counted from the field's centre.
        center: place of the field's centre in ``share``; may lie between two pixels.
        radius: by percentage (50, 90, 99), half the side of the square around the centre that holds
            so much of the gradient, in pixels.
        theoretical: the same for the whole receptive field without edges; None if unknown.
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

    __repr__ = __str__

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

    A unit is the sum of all channels at one place of the layer's output; magnitudes are summed over
    the input's channels. With random weights the field is much smaller than the receptive field and
    fades like a Gaussian; training makes it grow (Luo et al., "Understanding the Effective
    Receptive Field in Deep Convolutional Neural Networks", 2016, arXiv:1701.04128). The model runs
    in evaluation.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 4, 3))
    >>> found = cl.effective_receptive_field(model, torch.rand(2, 1, 16, 16), "1")
    >>> found.theoretical, found.radius[50] < found.radius[99]
    (2.5, True)

    Args:
        model: any module that takes one tensor; it stays as it is.
        images: (N, C, H, W), or with one or three axes in place of H, W; on the model's device.
        layer: a module's name, an index among the modules that run, or ``"last conv"``.
        unit: a place on the layer's grid, such as (row, column). None averages over three units
            along each axis in the middle of the grid, each from its own centre.

    Raises:
        LayerNotFoundError: if there is no such layer, with the closest names.
        ArgumentError: if the images do not fit, the layer's output has no grid or does not depend
            on the images, the unit lies outside it, or no pixel moves it.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() < 3:  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = f" of {images.dtype}" if isinstance(images, Tensor) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
        what = f"{tuple(images.shape)}{kind}" if kind else shapes.brief(images)
        raise ArgumentError(
            f"images must be a floating tensor (N, C, H, W), as the model gets it, got {what}."
        )
    model = unwrapped(model)
    fields = receptive_field(model, images)
    field = fields[layer]
    units = _units(field, images, unit)
    found = _measure(model, images, {field.name: (field, units)})
    if not found:
        raise ArgumentError(
            f"layer={field.name!r} has no finite gradient with respect to images: no pixel moves "
            f"unit {units[0]}, or the weights are not finite; take other images or another unit."
        )
    return found[field.name]


def center_fields(
    model: nn.Module, images: Tensor, fields: ReceptiveFields, layers: Sequence[str]
) -> dict[str, EffectiveField]:
    """The effective field of the unit in the middle of each layer, from one forward pass.

    As `effective_receptive_field` with ``unit=(H // 2, W // 2)``.

    Args:
        model: any module that takes one tensor.
        images: (N, C, H, W).
        fields: the model's receptive fields for such images.
        layers: names of modules. The first of several output tensors counts, and the last run.

    Returns:
        By layer, without those that no image moves, whose gradient is not finite, or whose output
        does not have the images' axes.
    """
    asked: dict[str, tuple[LayerField, Places]] = {}
    for name in layers:
        field = fields.layers.get(f"{name}[0]") or fields[name]
        if len(field.output_shape) == images.dim():
            asked[name] = field, (tuple(n // 2 for n in field.output_shape[2:]),)
    return _measure(model, images, asked)


def _measure(
    model: nn.Module, images: Tensor, asked: Mapping[str, tuple[LayerField, Places]]
) -> dict[str, EffectiveField]:
    """The effective fields of some units of some layers, without those that no pixel moves."""
    outputs: dict[str, Tensor] = {}
    found: dict[str, EffectiveField] = {}
    with preserved(model, copy_of), torch.enable_grad():
        keep_outputs(model, outputs, [field.name for field, _ in asked.values()])
        x = images.detach().clone().requires_grad_()
        model(x.clone())  # which the model may change in place
        for name, (field, units) in asked.items():
            output = outputs.get(field.name)
            if output is None or not output.requires_grad:
                continue
            maps = [_magnitude(output, unit, x) for unit in units]
            share, center = _aligned(maps, [_center(field, x, unit) for unit in units])
            if share.sum() > 0 and np.isfinite(share).all():
                share /= share.sum()
                radius, whole = _radii(share, center), _theoretical(field)
                found[name] = EffectiveField(field.name, units, share, center, radius, whole)
    return found


def _magnitude(output: Tensor, unit: tuple[int, ...], x: Tensor) -> NDArray[np.float64]:
    """The magnitude of one unit's gradient at each pixel, summed over images and channels."""
    total = output[(slice(None), slice(None), *unit)].sum()
    (gradient,) = torch.autograd.grad(total, x, retain_graph=True, materialize_grads=True)
    return gradient.abs().sum((0, 1), dtype=torch.float64).cpu().numpy()


def _theoretical(field: LayerField) -> float | None:
    known = [size for size in field.size if size is not None]
    return max(known) / 2 if known and len(known) == len(field.size) else None


def _units(field: LayerField, images: Tensor, unit: Sequence[int] | None) -> Places:
    if len(field.output_shape) != images.dim():
        raise ArgumentError(
            f"layer={field.name!r} gives {shapes.named(field.output_shape)}, which has no grid "
            f"like that of images {shapes.named(images.shape)}; take a layer before it."
        )
    grid = field.output_shape[2:]
    if unit is None:
        middle = [range(max(0, (n - BLOCK + 1) // 2), (n + BLOCK + 1) // 2)[:n] for n in grid]
        return tuple(product(*middle))
    return (shapes.within("unit", unit, grid, f"grid of layer {field.name!r}"),)


def _center(field: LayerField, images: Tensor, unit: tuple[int, ...]) -> tuple[float, ...]:
    """The middle of a unit's field; if unknown, the unit's place in proportion."""
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
    """The mean of maps with their centres aligned, each pixel over the maps that have it."""
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
    """Half the sides of the squares that hold the shares; a pixel's is spread over its area."""
    lines = [np.abs(np.arange(n) - c) for n, c in zip(share.shape, center, strict=True)]
    distance = np.maximum.reduce(np.meshgrid(*lines, indexing="ij"))
    steps, where = np.unique(distance, return_inverse=True)
    within = np.cumsum(np.bincount(where.ravel(), share.ravel()))
    edges = np.concatenate([[0.0], steps + 0.5])
    held = np.concatenate([[0.0], within / within[-1]])
    return {s: float(np.interp(s / 100, held, edges)) for s in SHARES}
