"""The chapter's network for ten digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from convlens.core.argument_checks import check_whole
from convlens.errors import ArgumentError
from convlens.models.blocks import Norm, conv
from convlens.models.built_from import remember


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
    convolution has no ReLU; batch normalization follows it too, as in the chapter.
    (fastbook, chapter 13, ``simple_cnn``.)

        >>> cl.simple_cnn(1, 10, norm="batch")(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Args:
        n_in: channels of the images.
        n_classes: numbers in the output.
        norm: ``"batch"`` for batch normalization at the end of each block, or None.
        widths: output channels of each convolution but the last.

    Raises:
        ArgumentError: for a size below 1, an unknown norm, or no widths.
    """
    if not widths:
        raise ArgumentError("widths must have the output channels of at least one layer, got none.")
    check_whole("n_classes", n_classes, 1)
    for i, width in enumerate(widths):
        check_whole(f"widths[{i}]", width, 1)
    layers: list[nn.Module] = [conv(n_in, widths[0], kernel_size=5, norm=norm)]
    layers += [conv(a, b, norm=norm) for a, b in pairwise(widths)]
    layers += [conv(widths[-1], n_classes, activation=False, norm=norm), nn.Flatten()]
    arguments = {"n_in": n_in, "n_classes": n_classes, "norm": norm, "widths": list(widths)}
    return remember(nn.Sequential(*layers), "simple_cnn", arguments)


def widths_for(height: int, width: int) -> tuple[int, ...]:
    """Widths of a `simple_cnn` that ends at 1×1 for images of this size: its own up to 32×32.

    >>> from convlens.models.simple import widths_for
    >>> widths_for(28, 28), widths_for(100, 64)
    ((8, 16, 32, 64), (8, 16, 32, 64, 128, 256))
    """
    halvings = max(5, math.ceil(math.log2(max(height, width))))
    return tuple(min(8 * 2**i, 256) for i in range(halvings - 1))
