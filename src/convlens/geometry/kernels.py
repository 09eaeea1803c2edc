"""Classic kernels, as float32 tensors (H, W), for `torch.nn.functional.conv2d`.

Torch's convolution is a cross-correlation: the kernel lies on the image as it is printed, without
a flip. ``top_edge`` is therefore large where the image is dark above and bright below. Reshape to
(1, 1, H, W) to use one as a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from convlens.errors import ArgumentError
from convlens.execution.shapes import check_tensor, times
from convlens.geometry.arithmetic import output_size

CHANNEL_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}
"""Names of an image's planes by their number."""


def top_edge() -> Tensor:
    """Rows −1, 0, 1: bright under dark (the chapter's first kernel; Prewitt, 1970).

    >>> cl.geometry.kernels.top_edge().tolist()
    [[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    return Tensor([[-1, -1, -1], [0, 0, 0], [1, 1, 1]])


def bottom_edge() -> Tensor:
    """Rows 1, 0, −1: dark under bright."""
    return -top_edge()


def left_edge() -> Tensor:
    """Columns −1, 0, 1: bright to the right of dark."""
    return top_edge().T.contiguous()


def right_edge() -> Tensor:
    """Columns 1, 0, −1: dark to the right of bright."""
    return -left_edge()


def diagonal_edge() -> Tensor:
    """Dark above and left of the diagonal from bottom left to top right, bright under it."""
    return Tensor([[-1, -1, 0], [-1, 0, 1], [0, 1, 1]])


def antidiagonal_edge() -> Tensor:
    """Dark above and right of the diagonal from top left to bottom right, bright under it."""
    return diagonal_edge().flip(1)


def sobel_rows() -> Tensor:
    """Change from row to row, smoothed along the rows (Sobel and Feldman, 1968)."""
    return Tensor([[-1, -2, -1], [0, 0, 0], [1, 2, 1]])


def sobel_columns() -> Tensor:
    """Change from column to column, smoothed along the columns (Sobel and Feldman, 1968)."""
    return sobel_rows().T.contiguous()


def laplacian() -> Tensor:
    """Sum of the four neighbours less four times the pixel: second derivative."""
    return Tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])


def blur() -> Tensor:
    """Mean of nine pixels."""
    return torch.ones(3, 3) / 9


def sharpen() -> Tensor:
    """The pixel less the Laplacian: sums to 1, so that even areas stay as they are."""
    return Tensor([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])


def classic() -> Mapping[str, Tensor]:
    """All of them by name, new tensors at each call; the mapping is read-only.

    >>> len(cl.geometry.kernels.classic())
    11
    """
    edges = (top_edge, bottom_edge, left_edge, right_edge, diagonal_edge, antidiagonal_edge)
    others = (sobel_rows, sobel_columns, laplacian, blur, sharpen)
    return MappingProxyType({make.__name__: make() for make in (*edges, *others)})


@dataclass(frozen=True, repr=False)
class Products:
    """A kernel at one place of an image, from `apply_at`; print it to see every product.

    Attributes:
        patch: (C, kH, kW), the pixels under the kernel.
        kernel: (C, kH, kW).
        products: (C, kH, kW), one for each pixel.
        channel_sums: (C,), those of each channel together.
        bias: what is added at the end.
        total: the sum of all and the bias.
    """

    patch: Tensor
    kernel: Tensor
    products: Tensor
    channel_sums: Tensor
    bias: float
    total: float

    def __repr__(self) -> str:
        return f"Products(kernel {times(self.kernel.shape)}, total {self.total:.4g})"

    def __str__(self) -> str:
        names = CHANNEL_NAMES.get(len(self.patch), range(len(self.patch)))
        lines: list[str] = []
        for name, pixels, weights, total in zip(
            names, self.patch, self.kernel, self.channel_sums.tolist(), strict=True
        ):
            rows = [
                " + ".join(f"{p:.4g}·{_in_brackets(w)}" for p, w in zip(ps, ws, strict=True))
                for ps, ws in zip(pixels.tolist(), weights.tolist(), strict=True)
            ]
            lines += [f"{name}:", *(f"  {'+ ' if i else '  '}{r}" for i, r in enumerate(rows))]
            lines.append(f"  = {_signed(total)}")
        parts = [_in_brackets(total) for total in self.channel_sums.tolist()]
        if self.bias or len(parts) > 1:
            bias = f" + bias {_in_brackets(self.bias)}" if self.bias else ""
            lines.append(f"sum: {' + '.join(parts)}{bias} = {_signed(self.total)}")
        return "\n".join(lines)


def apply_at(image: Tensor, kernel: Tensor, row: int, col: int, bias: float = 0.0) -> Products:
    """Lay a kernel on an image with its middle on one pixel, multiply and add, without a flip.

    A 3×3 kernel at (row, col) reads the rows from row − 1 to row + 1. The middle of an even kernel
    is its pixel kH // 2, kW // 2. The result is
    ``apply(image, kernel)[row - kH // 2, col - kW // 2]``.

    >>> image = torch.arange(12).reshape(3, 4)
    >>> print(cl.geometry.kernels.apply_at(image, torch.ones(1, 2), row=1, col=2))
    grey:
        5·1 + 6·1
      = 11

    Args:
        image: (C, H, W), or (H, W).
        kernel: (kH, kW), the same for every channel, or (C, kH, kW).
        row: row of the image under the kernel's middle.
        col: column of the image under the kernel's middle.
        bias: added to the sum.

    Raises:
        ArgumentError: for shapes that do not fit, or a place where the kernel leaves the image.
    """
    pixels, weights = _fit(image, kernel)
    (height, width), (tall, wide) = pixels.shape[1:], weights.shape[1:]
    for name, place, n, k in (("row", row, height, tall), ("col", col, width, wide)):
        if not isinstance(place, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(f"{name}={place!r} must be a whole number, the {name} of a pixel.")
        if not 0 <= place - k // 2 <= n - k:
            raise ArgumentError(
                f"{name}={place} lets the {times((tall, wide))} kernel leave the "
                f"{times((height, width))} image; {_room(name, n, k)}."
            )
    top, left = row - tall // 2, col - wide // 2
    patch = pixels[:, top : top + tall, left : left + wide]
    products = patch * weights
    sums = products.sum((1, 2))
    return Products(patch, weights, products, sums, bias, float(sums.sum()) + bias)


def apply(  # what the chapter calls it
    image: Tensor, kernel: Tensor, stride: int = 1, padding: int = 0, bias: float = 0.0
) -> Tensor:
    """Lay a kernel on every place of an image: torch's ``conv2d``, a sum over the channels.

    >>> cl.geometry.kernels.apply(torch.ones(5, 5), cl.geometry.kernels.blur()).shape
    torch.Size([3, 3])

    Args:
        image: (C, H, W), or (H, W).
        kernel: (kH, kW), the same for every channel, or (C, kH, kW).
        stride: pixels that the kernel moves at a time.
        padding: rows and columns of zeros added on each side.
        bias: added everywhere.

    Returns:
        (H', W'); `output_size` says how many.

    Raises:
        ArgumentError: for shapes that do not fit, or a kernel larger than the image.
    """
    pixels, weights = _fit(image, kernel)
    for size, k in zip(pixels.shape[1:], weights.shape[1:], strict=True):
        output_size(size, k, stride, padding)
    out = F.conv2d(pixels[None], weights[None], stride=stride, padding=padding)  # (1, 1, H', W')
    return out[0, 0] + bias


def _fit(image: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (C, …), floating."""
    check_tensor("image", image)
    check_tensor("kernel", kernel)
    if image.dim() not in {2, 3}:
        raise ArgumentError(
            f"image has shape {tuple(image.shape)}; expected (C, H, W) or (H, W), one image."
        )
    if kernel.dim() not in {2, 3}:
        raise ArgumentError(
            f"kernel has shape {tuple(kernel.shape)}; expected (kH, kW) or (C, kH, kW)."
        )
    pixels = image if image.dim() == 3 else image[None]
    weights = kernel if kernel.dim() == 3 else kernel.expand(len(pixels), *kernel.shape)
    if len(weights) != len(pixels):
        raise ArgumentError(
            f"kernel (C, kH, kW) = {tuple(kernel.shape)} does not fit image (C, H, W) = "
            f"{tuple(pixels.shape)}; both need the same C."
        )
    pixels = pixels if pixels.is_floating_point() else pixels.float()
    return pixels, weights.to(pixels)


def _room(name: str, n: int, k: int) -> str:
    if k > n:
        return "the kernel is larger than the image; pad the image"
    return f"give a {name} from {k // 2} to {n - k + k // 2}, or pad the image"


def _signed(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _in_brackets(value: float) -> str:
    return f"({_signed(value)})" if value < 0 else _signed(value)
