"""Classic kernels, as float32 tensors (H, W), for `torch.nn.functional.conv2d`.

Torch's convolution is a cross-correlation: the kernel lies on the image as it is printed, without
a flip. ``top_edge`` is therefore large where the image is dark above and bright below. Reshape to
(1, 1, H, W) to use one as a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor


def top_edge() -> Tensor:
    """Rows −1, 0, 1: bright under dark (the chapter's first kernel; Prewitt, 1970)."""
    return _kernel([[-1, -1, -1], [0, 0, 0], [1, 1, 1]])


def bottom_edge() -> Tensor:
    """Rows 1, 0, −1: dark under bright."""
    return _kernel([[1, 1, 1], [0, 0, 0], [-1, -1, -1]])


def left_edge() -> Tensor:
    """Columns −1, 0, 1: bright to the right of dark."""
    return _kernel([[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]])


def right_edge() -> Tensor:
    """Columns 1, 0, −1: dark to the right of bright."""
    return _kernel([[1, 0, -1], [1, 0, -1], [1, 0, -1]])


def diagonal_edge() -> Tensor:
    """Dark above and left of the diagonal from bottom left to top right, bright under it."""
    return _kernel([[-1, -1, 0], [-1, 0, 1], [0, 1, 1]])


def antidiagonal_edge() -> Tensor:
    """Dark above and right of the diagonal from top left to bottom right, bright under it."""
    return _kernel([[0, -1, -1], [1, 0, -1], [1, 1, 0]])


def sobel_rows() -> Tensor:
    """Change from row to row, smoothed along the rows (Sobel and Feldman, 1968)."""
    return _kernel([[-1, -2, -1], [0, 0, 0], [1, 2, 1]])


def sobel_columns() -> Tensor:
    """Change from column to column, smoothed along the columns (Sobel and Feldman, 1968)."""
    return _kernel([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])


def laplacian() -> Tensor:
    """Sum of the four neighbours less four times the pixel: second derivative."""
    return _kernel([[0, 1, 0], [1, -4, 1], [0, 1, 0]])


def blur() -> Tensor:
    """Mean of nine pixels."""
    return _kernel([[1, 1, 1], [1, 1, 1], [1, 1, 1]]) / 9


def sharpen() -> Tensor:
    """The pixel less the Laplacian: sums to 1, so that even areas stay as they are."""
    return _kernel([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])


def classic() -> Mapping[str, Tensor]:
    """All of them by name, new tensors at each call; the mapping is read-only."""
    makers = (
        top_edge,
        bottom_edge,
        left_edge,
        right_edge,
        diagonal_edge,
        antidiagonal_edge,
        sobel_rows,
        sobel_columns,
        laplacian,
        blur,
        sharpen,
    )
    return MappingProxyType({make.__name__: make() for make in makers})


def _kernel(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)  # (H, W)
