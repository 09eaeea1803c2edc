"""The models of the golden tables; `python tests/geometry/golden_tables.py` writes the tables anew.

Look at what `git diff` says of them before it is committed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from convlens.geometry import Summary, summary
from convlens.models import conv, simple_cnn

GOLDEN = Path(__file__).parent / "golden"


class UNet(nn.Module):
    """Down by pooling, up by transposed convolutions, both joined (Ronneberger et al., 2015)."""

    def __init__(self, n_in: int = 1, n_out: int = 2, width: int = 16, levels: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(
            self._double(a, b) for a, b in zip([n_in, *widths[:-2]], widths[:-1], strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottom = self._double(widths[-2], widths[-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1])
        )
        self.join = nn.ModuleList(self._double(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, n_out, 1)

    @staticmethod
    def _double(n_in: int, n_out: int) -> nn.Sequential:
        first, second = (conv(n, n_out, stride=1, norm="batch") for n in (n_in, n_out))
        return nn.Sequential(*first, *second)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for block in self.down:
            skipped.append(x := block(x))
            x = self.pool(x)
        x = self.bottom(x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skipped.pop(), up(x)], 1))
        return self.head(x)


def torchvision(name: str) -> Callable[[], nn.Module]:
    """One of torchvision's, without weights."""

    def make() -> nn.Module:
        from torchvision.models import get_model

        return get_model(name, weights=None)

    return make


IMAGE = (1, 3, 224, 224)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "simple_cnn_none": (lambda: simple_cnn(1, 10), (1, 1, 28, 28)),
    "simple_cnn_batch": (lambda: simple_cnn(1, 10, norm="batch"), (1, 1, 28, 28)),
    "unet": (UNet, (1, 1, 96, 128)),
    "resnet18": (torchvision("resnet18"), IMAGE),
    "resnet50": (torchvision("resnet50"), IMAGE),
    "vgg16": (torchvision("vgg16"), IMAGE),
    "mobilenet_v3_large": (torchvision("mobilenet_v3_large"), IMAGE),
    "efficientnet_b0": (torchvision("efficientnet_b0"), IMAGE),
    "convnext_tiny": (torchvision("convnext_tiny"), IMAGE),
    "vit_b_16": (torchvision("vit_b_16"), IMAGE),
}


def build(name: str) -> nn.Module:
    """The model without numbers in its weights, on "meta"."""
    with torch.device("meta"):
        return MODELS[name][0]()


def table(name: str) -> Summary:
    """Its table on the CPU, where torch chooses the operators; the memory is never written."""
    return summary(build(name).to_empty(device="cpu"), MODELS[name][1])


def main() -> None:
    """Write all tables."""
    for name in MODELS:
        (GOLDEN / f"{name}.txt").write_text(f"{table(name)}\n", "utf-8")


if __name__ == "__main__":
    main()
