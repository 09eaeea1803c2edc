"""The convolution block that networks repeat."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from convlens.core.argument_checks import check_whole
from convlens.errors import ArgumentError

Norm = Literal["batch"]
Order = Literal["conv-act-norm", "conv-norm-act"]


def conv(
    n_in: int,
    n_out: int,
    kernel_size: int = 3,
    stride: int = 2,
    activation: bool = True,
    norm: Norm | None = None,
    order: Order = "conv-act-norm",
) -> nn.Sequential:
    """A convolution with its activation and norm: (N, n_in, H, W) → (N, n_out, H', W').

    The padding is ``kernel_size // 2``, so that H' = ceil(H / stride) for an odd kernel. The bias
    is kept also with a norm: with a ReLU between the two, the norm does not cancel it.

        >>> [type(layer).__name__ for layer in cl.models.conv(3, 8, norm="batch")]
        ['Conv2d', 'ReLU', 'BatchNorm2d']

    Args:
        n_in: channels of the input.
        n_out: channels of the output, and number of filters.
        kernel_size: height and width of the filters, in pixels.
        stride: pixels that the filter moves at a time, down and across.
        activation: whether to add a ReLU.
        norm: ``"batch"`` for batch normalization over N, H, W, or None.
        order: ``"conv-act-norm"`` as in the chapter, or ``"conv-norm-act"`` as in Ioffe and
            Szegedy, "Batch Normalization", 2015.

    Raises:
        ArgumentError: for a size below 1, an unknown norm or an unknown order.
    """
    sizes = {"n_in": n_in, "n_out": n_out, "kernel_size": kernel_size, "stride": stride}
    for name, value in sizes.items():
        check_whole(name, value, 1)
    for name, value, known in (
        ("norm", norm, (None, *get_args(Norm))),
        ("order", order, get_args(Order)),
    ):
        if value not in known:
            raise ArgumentError(f"{name} must be one of {str(known)[1:-1]}, got {value!r}.")
    layers: list[nn.Module] = [
        nn.Conv2d(n_in, n_out, kernel_size, stride=stride, padding=kernel_size // 2)
    ]
    if activation:
        layers.append(nn.ReLU())
    if norm == "batch":
        layers.insert(1 if order == "conv-norm-act" else len(layers), nn.BatchNorm2d(n_out))
    return nn.Sequential(*layers)
