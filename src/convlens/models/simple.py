"""The chapter's network for ten digits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from convlens.errors import ArgumentError
from convlens.models.blocks import Norm, check_size, conv


def simple_cnn(
    n_in: int,
    n_classes: int,
    norm: Norm | None = None,
    widths: Sequence[int] = (8, 16, 32, 64),
) -> nn.Sequential:
    """Convolutions of stride 2 down to one pixel: (N, n_in, H, W) → (N, n_classes).

    28×28 goes to 14, 7, 4, 2 and 1. The first kernel is 5×5, because 3×3 on grey images gives
    9 inputs for 8 outputs, which leaves little to learn. With five convolutions any H and W up to
    32 end at 1×1; larger ones leave more than ``n_classes`` numbers after `nn.Flatten`. The last
    convolution has no ReLU; batch normalization follows it like the others, as in the chapter.
    (fastbook, chapter 13, ``simple_cnn``.)

    Args:
        n_in: channels of the images.
        n_classes: numbers in the output.
        norm: ``"batch"`` for batch normalization at the end of each block, or None.
        widths: output channels of each convolution but the last.

    Raises:
        ArgumentError: for a size below 1, an unknown norm, or no widths.
    """
    if not widths:
        raise ArgumentError("widths=() is empty; give the output channels of at least one layer.")
    check_size("n_classes", n_classes)
    for i, width in enumerate(widths):
        check_size(f"widths[{i}]", width)
    layers: list[nn.Module] = [conv(n_in, widths[0], kernel_size=5, norm=norm)]
    layers += [conv(a, b, norm=norm) for a, b in pairwise(widths)]
    layers += [conv(widths[-1], n_classes, activation=False, norm=norm), nn.Flatten()]
    return nn.Sequential(*layers)
