"""The pictures of docs/before-training.md; see docs/pictures.py.

Trains two small networks on the embedded MNIST, which takes about a minute on two cores. The
photograph is that of Grace Hopper which comes with matplotlib (U. S. Navy, public domain).
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import picture_files
import torch
from matplotlib.axes import Axes
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from torch import nn

import convlens as cl
from convlens.geometry import kernels
from convlens.plots import show_tiles


def save(drawn: Axes | list[Axes] | Figure, name: str) -> None:
    """Write a picture and close its figure."""
    picture_files.save(drawn, f"before-training/{name}")


def photograph(size: tuple[int, int] | None = None) -> torch.Tensor:
    """Grace Hopper, (3, 600, 512) or scaled."""
    return cl.load_image(str(get_sample_data("grace_hopper.jpg", asfileobj=False)), size)


def a_seven() -> torch.Tensor:
    """A digit, (1, 28, 28), from 0 to 1."""
    dls = cl.mnist()
    x, y = next(iter(dls.valid))
    chosen = x[y == 7][:1]
    return torch.from_numpy(dls.to_uint8(chosen)).float() / 255


def draw_kernels() -> None:
    """Every classic kernel, and what four of them find in a digit."""
    named = kernels.classic()
    tiles = torch.stack(list(named.values())).numpy()
    save(show_tiles(tiles, [n.replace("_", " ") for n in named], columns=6), "kernels")
    digit = a_seven()
    names = ["top_edge", "bottom_edge", "left_edge", "laplacian"]
    found = torch.stack([kernels.apply(digit, named[n], padding=1) for n in names])
    captions = [n.replace("_", " ") for n in names]
    save(show_tiles(found.numpy(), captions, columns=4), "edges")


def draw_positions() -> None:
    """Padding, stride, and pixels that no position reads."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
    cl.geometry.show_positions((6, 6), 3, padding=1, ax=axes[0])
    axes[0].set_title("padding 1, stride 1: 6×6 → 6×6")
    cl.geometry.show_positions((7, 7), 3, stride=2, padding=1, ax=axes[1])
    axes[1].set_title("padding 1, stride 2: 7×7 → 4×4")
    cl.geometry.show_positions((8, 8), 3, stride=2, ax=axes[2])
    axes[2].set_title("stride 2: 8×8 → 3×3, hatched: not read")
    save(figure, "positions")


def draw_field() -> None:
    """A unit of ResNet-18 on a photograph."""
    from torchvision.models import resnet18

    with torch.device("meta"):
        model = resnet18()
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.1), layout="constrained")
    image = photograph((224, 224))
    for ax, layer, unit in zip(
        axes, ("layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2"),
        ((20, 28), (10, 14), (5, 7)), strict=True,
    ):  # fmt: skip
        cl.show_field(model, image, layer, unit, ax)
        ax.set_title(ax.get_title(), fontsize=9)
        ax.set_axis_off()
    save(figure, "field")


def small_net() -> nn.Sequential:
    """A stem of stride 2 and five 3×3 convolutions: a field of 23×23, that 28×28 holds."""
    blocks = [cl.models.conv(1, 8, 3, norm="batch")]
    blocks += [cl.models.conv(8, 8, 3, stride=1, norm="batch") for _ in range(5)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def draw_effective() -> None:
    """The effective field before and after two epochs on MNIST."""
    dls = cl.mnist(batch_size=256)
    images = next(iter(dls.valid))[0][:64]
    torch.manual_seed(0)
    model = small_net()
    learn = cl.Learner(dls, model, metrics=[cl.accuracy], run=None)
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 5.0), layout="constrained")
    for ax, when in zip(axes, ("before training", "after two epochs"), strict=True):
        if when != "before training":
            learn.fit_one_cycle(2, 0.05)
        found = cl.effective_receptive_field(model, images, "5.0")
        print(when, found)  # noqa: T201 — the numbers that the page quotes
        found.plot(ax)
        radii = ", ".join(f"{share} % in ±{r:.1f}" for share, r in found.radius.items())
        ax.set_title(f"{when}\n{radii}", fontsize=10)
    save(figure, "effective")


def draw_network() -> None:
    """First-layer kernels and feature maps of the chapter's network after an epoch."""
    dls = cl.mnist(batch_size=512)
    torch.manual_seed(0)
    model = cl.simple_cnn(1, 10, norm="batch")
    cl.Learner(dls, model, run=None).fit_one_cycle(1, 0.06)
    save(cl.show_kernels(model, columns=8), "first-kernels")
    x, y = next(iter(dls.valid))
    save(cl.show_features(model, x[y == 7][0], "0.1", columns=8), "features")


def draw() -> None:
    """All of them."""
    draw_kernels()
    draw_positions()
    save(cl.show_planes(photograph()), "planes")
    weight = kernels.top_edge()[None, None]
    save(cl.conv_matrix(weight, (1, 5, 5), padding=0).plot(), "matrix")
    draw_field()
    draw_network()
    draw_effective()
