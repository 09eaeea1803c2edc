"""`small_vgg`: a network for small images that trains in minutes without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from convlens.core.argument_checks import check_whole
from convlens.errors import ArgumentError
from convlens.models.built_from import remember


def small_vgg(
    n_in: int, n_classes: int, widths: Sequence[int] = (32, 128, 256), *, stem: int = 24
) -> nn.Sequential:
    """3×3 convolutions and max pooling: (N, n_in, H, W) → (N, n_classes).

    For images of about 32×32. A first convolution, then stages of two. Each stage halves height and
    width right after its first convolution, before the norm and the ReLU, which then take a quarter
    of the time. At the end each channel gives its largest value. (Simonyan and Zisserman, "Very
    Deep Convolutional Networks", 2014, arXiv:1409.1556, with batch normalization.)

        >>> cl.models.small_vgg(3, 10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Args:
        n_in: channels of the images.
        n_classes: numbers in the output.
        widths: channels of each stage.
        stem: channels of the first convolution, the only one at full size before the stages.

    Raises:
        ArgumentError: for a size below 1, or no stages.
    """
    if not widths:
        raise ArgumentError("widths must have the channels of at least one stage, got none.")
    sizes = {"n_in": n_in, "n_classes": n_classes, "stem": stem}
    for name, size in (sizes | {f"widths[{i}]": n for i, n in enumerate(widths)}).items():
        check_whole(name, size, 1)
    model = nn.Sequential(nn.Sequential(_conv(n_in, stem), *_norm(stem)))
    for before, width in pairwise((stem, *widths)):
        pool = nn.MaxPool2d(2, ceil_mode=True)  # so that a single pixel stays one
        model.append(
            nn.Sequential(
                _conv(before, width), pool, *_norm(width), _conv(width, width), *_norm(width)
            )
        )
    model.extend([nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(widths[-1], n_classes)])
    arguments = {"n_in": n_in, "n_classes": n_classes, "widths": list(widths), "stem": stem}
    return remember(model, "small_vgg", arguments)


def _conv(n_in: int, n_out: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)  # the norm's shift is the bias


def _norm(n: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(n), nn.ReLU()
