"""The convolution as a matrix: mostly zeros, and the same weights in every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from convlens.errors import ArgumentError
from convlens.execution.shapes import LETTERS, check_count, check_tensor, named, times
from convlens.geometry.arithmetic import positions, same_padding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Sizes = int | Sequence[int]

MOST_ENTRIES = 100_000_000
"""The most entries of a matrix (2.4 GB); a larger one is refused."""


@dataclass(frozen=True, repr=False)
class ConvMatrix:
    """A convolution without bias as a matrix; ``matrix @ image.flatten()`` is the convolution.

    ``y = m @ x.flatten()`` has C_out·H'·W' numbers, ``y.reshape(m.output_shape)``. The transposed
    convolution is ``m.T @ y.flatten()``; it is not the inverse.

    Attributes:
        matrix: sparse, (C_out·H'·W', C_in·H·W), coalesced.
        tied: (n,) for each of the matrix's n entries the index of its weight in
            ``weight.flatten()``; entries of one index are learned together.
        weight_shape: (C_out, C_in / groups, kH, kW).
        input_shape: (C_in, H, W).
        output_shape: (C_out, H', W').
    """

    matrix: Tensor
    tied: Tensor
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def __repr__(self) -> str:
        rows, columns = self.matrix.shape
        weight = times(self.weight_shape)
        return f"ConvMatrix({rows}×{columns}, {len(self.tied)} entries, weight {weight})"

    @property
    def T(self) -> Tensor:  # noqa: N802 — torch's name
        """The matrix of the transposed convolution."""
        return self.matrix.t()

    def __matmul__(self, x: Tensor) -> Tensor:
        """The product with a flattened image, or with several as columns."""
        if x.shape[:1] != (prod(self.input_shape),):
            raise ArgumentError(
                f"x has shape {tuple(x.shape)}; the matrix takes a flattened image "
                f"{_letters(self.input_shape)} of {prod(self.input_shape)} numbers, or several as "
                "columns."
            )
        return self.matrix @ x

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw it: each weight in its colour, zeros white; see `plots.show_matrix`."""
        from convlens.plots import show_matrix

        rows, columns = (part.cpu().numpy() for part in self.matrix.indices())
        return show_matrix(
            rows,
            columns,
            self.tied.cpu().numpy(),
            self.matrix.values().detach().float().cpu().numpy(),
            shape=(prod(self.output_shape), prod(self.input_shape)),
            blocks=(self.output_shape, self.input_shape),
            n_weights=prod(self.weight_shape),
            ax=ax,
        )


def conv_matrix(
    weight: Tensor,
    input_shape: Sequence[int],
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> ConvMatrix:
    """Write the convolution of one image with ``weight`` as a sparse matrix.

    The same as torch's ``conv1d``, ``conv2d`` or ``conv3d``, by the number of axes of the weight.
    Gradients flow to ``weight``.

    >>> cl.conv_matrix(torch.rand(1, 1, 2, 2), (1, 3, 3))
    ConvMatrix(4×9, 16 entries, weight 1×1×2×2)

    Args:
        weight: (C_out, C_in / groups, kH, kW), or with one or three axes in place of kH, kW.
        input_shape: (C_in, H, W) of one image; a batch axis before them is left out.
        stride: pixels that the kernel moves at a time, for all axes or for each.
        padding: zeros added on both sides of all axes or of each; or "valid" or "same".
        dilation: distance between the kernel's pixels, for all axes or for each.
        groups: groups of channels that do not mix.

    Raises:
        ArgumentError: if the shapes do not fit each other, an argument has another number of axes,
            the kernel does not fit into the padded image, or the matrix would be too large.
    """
    image = _image_shape(weight, input_shape, groups)
    axes = [  # for each axis (positions, kernel), the pixels read
        torch.tensor(positions(*sizes))
        for sizes in zip(
            image[1:],
            weight.shape[2:],
            _each("stride", stride, weight),
            _paddings(weight, image, stride, padding, dilation),
            _each("dilation", dilation, weight),
            strict=True,
        )
    ]
    output = (weight.shape[0], *(len(places) for places in axes))
    n_entries = prod(output) * prod(weight.shape[1:])
    if n_entries > MOST_ENTRIES:
        raise ArgumentError(
            f"input_shape={tuple(input_shape)} would give a matrix of {n_entries:,} entries; give "
            f"a smaller image: at most {MOST_ENTRIES:,} fit."
        )
    rows, columns, tied = _entries(weight, image, output, axes, groups)
    matrix = torch.sparse_coo_tensor(
        torch.stack([rows, columns]),
        weight.flatten()[tied],
        (prod(output), prod(image)),
        is_coalesced=True,
        check_invariants=True,
    )
    return ConvMatrix(matrix, tied, tuple(weight.shape), image, output)


def _entries(
    weight: Tensor,
    image: tuple[int, ...],
    output: tuple[int, ...],
    axes: Sequence[Tensor],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and weight of each entry, in the order of rows and columns.

    All are built over (C_out, *output, C_in / groups, *kernel), the order of the entries.
    """
    n_axes, (n_out, n_in) = len(axes), weight.shape[:2]
    device = weight.device
    full = (n_out, *output[1:], n_in, *weight.shape[2:])

    def along(values: Tensor, *dims: int) -> Tensor:
        shape = [1] * len(full)
        for dim, size in zip(dims, values.shape, strict=True):
            shape[dim] = size
        return values.reshape(shape)

    channel = torch.arange(n_in, device=device)
    filters = torch.arange(n_out, device=device)
    rows = torch.arange(prod(output), device=device).reshape(output)
    columns = along(filters // (n_out // groups) * n_in, 0) + along(channel, 1 + n_axes)
    inside = torch.ones((), dtype=torch.bool, device=device)
    for axis, places in enumerate(axes):
        pixel = along(places.to(device), 1 + axis, 2 + n_axes + axis)
        inside = inside & (pixel >= 0) & (pixel < image[1 + axis])
        columns = columns * image[1 + axis] + pixel
    weights = torch.arange(weight.numel(), device=device).reshape(weight.shape)
    tied = along(weights, 0, *range(1 + n_axes, len(full)))
    inside = inside.expand(full)
    parts = (along(rows, *range(1 + n_axes)), columns, tied)
    row, column, tie = (part.expand(full)[inside] for part in parts)
    return row, column, tie


def _paddings(
    weight: Tensor, image: tuple[int, ...], stride: Sizes, padding: Sizes | str, dilation: Sizes
) -> list[tuple[int, int]]:
    if not isinstance(padding, str):
        return [(p, p) for p in _each("padding", padding, weight, least=0)]
    if padding == "valid":
        return [(0, 0)] * (weight.dim() - 2)
    if padding != "same":
        raise ArgumentError(
            f"padding={padding!r} is not known; give pixels, or one of 'valid', 'same'."
        )
    if set(_each("stride", stride, weight)) != {1}:
        raise ArgumentError(
            f"padding='same' with stride={stride} is not defined in torch; give the pixels, such "
            "as same_padding finds them."
        )
    dilations = _each("dilation", dilation, weight)
    return [
        same_padding(size, kernel, 1, step)
        for size, kernel, step in zip(image[1:], weight.shape[2:], dilations, strict=True)
    ]


def _each(name: str, value: Sizes, weight: Tensor, least: int = 1) -> tuple[int, ...]:
    n_axes = weight.dim() - 2
    sizes = (value,) * n_axes if isinstance(value, int) else tuple(value)
    whole = all(isinstance(s, int) and not isinstance(s, bool) for s in sizes)  # pyright: ignore[reportUnnecessaryIsInstance]
    if len(sizes) != n_axes or not whole or min(sizes) < least:
        raise ArgumentError(
            f"{name}={value!r} must be a whole number of at least {least}, or {n_axes} of them, "
            f"one for each axis of the kernel."
        )
    return sizes


def _image_shape(weight: Tensor, input_shape: Sequence[int], groups: int) -> tuple[int, ...]:
    """(C_in, H, W), checked against the weight."""
    check_tensor("weight", weight)
    if weight.dim() not in {3, 4, 5}:
        raise ArgumentError(
            f"weight has shape {tuple(weight.shape)}; expected (C_out, C_in / groups, kH, kW), or "
            "one or three axes in place of kH, kW."
        )
    shape = tuple(input_shape)
    image = shape[1:] if len(shape) == weight.dim() else shape
    letters = LETTERS[weight.dim()].removeprefix("N, ")
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in image)  # pyright: ignore[reportUnnecessaryIsInstance]
    if len(image) != weight.dim() - 1 or not whole:
        raise ArgumentError(
            f"input_shape must be ({letters}) in whole numbers of at least 1, for a weight of "
            f"shape {tuple(weight.shape)}, got {shape}."
        )
    check_count("groups", groups, 1)
    if weight.shape[0] % groups:
        raise ArgumentError(f"groups={groups} must divide C_out = {weight.shape[0]}.")
    if image[0] != weight.shape[1] * groups:
        raise ArgumentError(
            f"input_shape ({letters}) = {image} does not fit: weight (C_out, C_in / groups, …) = "
            f"{tuple(weight.shape)} with groups = {groups} expects C = {weight.shape[1] * groups}."
        )
    return image


def _letters(shape: Sequence[int]) -> str:
    return named((1, *shape)).replace("(N, ", "(").replace("(1, ", "(")
