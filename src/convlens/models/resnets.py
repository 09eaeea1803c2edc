"""`resnet`: residual networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from convlens.core.argument_checks import check_whole
from convlens.errors import ArgumentError
from convlens.models.built_from import remember

DOWNSAMPLING = (1, 2, 4)


def resnet(
    n_in: int,
    n_classes: int,
    blocks: Sequence[int] = (2, 2, 2, 2),
    widths: Sequence[int] = (64, 128, 256, 512),
    bottleneck: bool = False,
    *,
    downsampling: int = 4,
) -> nn.Sequential:
    """A residual network: (N, n_in, H, W) → (N, n_classes).

    A stem of three 3×3 convolutions and a max pool, then stages of residual blocks. Each stage but
    the first halves height and width. The shortcut of a block that does so is an average pool and
    a 1×1 convolution; the last norm of each block starts at zero, so that the block starts as its
    shortcut. (He et al., "Deep Residual Learning", 2015, arXiv:1512.03385; He et al., "Bag of
    Tricks for Image Classification", 2018, arXiv:1812.01187.)

        >>> cl.models.resnet(3, 10, blocks=(1, 1), widths=(16, 32))(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])

    Args:
        n_in: channels of the images.
        n_classes: numbers in the output.
        blocks: residual blocks of each stage: (2, 2, 2, 2) is a ResNet-18, (3, 4, 6, 3) a
            ResNet-34, or with ``bottleneck`` a ResNet-50.
        widths: channels of each stage; with ``bottleneck`` its output has four times as many.
        bottleneck: whether a block is 1×1, 3×3 and 1×1 convolutions instead of two of 3×3.
        downsampling: what the stem divides height and width by: 4 for images of 128 pixels or more,
            2 (no stride in the convolutions) or 1 (no max pool either) for smaller ones.

    Raises:
        ArgumentError: for a size below 1, no stages, not one width for each, or another
            ``downsampling``.
    """
    check_whole("n_in", n_in, 1)
    check_whole("n_classes", n_classes, 1)
    if len(blocks) != len(widths) or not blocks:
        raise ArgumentError(
            f"blocks and widths must have one number for each stage, got {len(blocks)} and "
            f"{len(widths)}."
        )
    for name, values in (("blocks", blocks), ("widths", widths)):
        for i, value in enumerate(values):
            check_whole(f"{name}[{i}]", value, 1)
    if downsampling not in DOWNSAMPLING:
        raise ArgumentError(f"downsampling must be 1, 2 or 4, got {downsampling!r}.")
    model = nn.Sequential(_stem(n_in, widths[0], downsampling))
    n, stride = widths[0], 1
    for count, width in zip(blocks, widths, strict=True):
        stage = nn.Sequential()
        for i in range(count):
            stage.append(block := Residual(n, width, 1 if i else stride, bottleneck=bottleneck))
            n = block.n_out
        model.append(stage)
        stride = 2
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, n_classes)])
    arguments = {
        "n_in": n_in,
        "n_classes": n_classes,
        "blocks": list(blocks),
        "widths": list(widths),
        "bottleneck": bool(bottleneck),
        "downsampling": downsampling,
    }
    return remember(model, "resnet", arguments)


class Residual(nn.Module):
    """A residual block: ``relu(path(x) + shortcut(x))``, (N, n_in, H, W) → (N, n_out, H', W').

    Args:
        n_in: channels of the input.
        width: channels of the 3×3 convolutions.
        stride: 1, or 2 to halve height and width (rounded up).
        bottleneck: 1×1, 3×3 and 1×1 convolutions, the last with ``4 * width`` channels.
    """

    def __init__(self, n_in: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        self.n_out = 4 * width if bottleneck else width
        if bottleneck:
            layers = [
                *_conv(n_in, width, 1),
                *_conv(width, width, 3, stride),
                *_conv(width, self.n_out, 1, activation=False),
            ]
        else:
            layers = [
                *_conv(n_in, width, 3, stride),
                *_conv(width, width, 3, activation=False),
            ]
        self.path = nn.Sequential(*layers)
        nn.init.zeros_(self.path[-1].weight)  # pyright: ignore[reportArgumentType]
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        if n_in != self.n_out:
            self.shortcut.extend(_conv(n_in, self.n_out, 1, activation=False))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) → (N, n_out, H', W')."""
        return self.activation(self.path(x) + self.shortcut(x))


def _stem(n_in: int, width: int, downsampling: int) -> nn.Sequential:
    half = max(width // 2, 1)
    layers = [
        *_conv(n_in, half, 3, stride=2 if downsampling == 4 else 1),
        *_conv(half, half, 3),
        *_conv(half, width, 3),
    ]
    if downsampling > 1:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*layers)


def _conv(
    n_in: int, n_out: int, kernel_size: int, stride: int = 1, *, activation: bool = True
) -> list[nn.Module]:
    """A convolution and its norm; the norm's shift takes the place of the bias."""
    convolution = nn.Conv2d(
        n_in, n_out, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(n_out)]
    return [*layers, nn.ReLU()] if activation else layers
