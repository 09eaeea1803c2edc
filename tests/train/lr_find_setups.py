"""Eight trainings of different kinds, small enough to be repeated at a grid of learning rates."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import convlens as cl
from convlens.data import TensorLoader
from convlens.data.embedded import read_idx
from convlens.train import adamw

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10" / "cifar10-jpeg.tar.xz"
SGD = partial(torch.optim.SGD, momentum=0.9)
ADAMW = adamw
N_TRAIN, N_VALID = 6000, 4000


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST: (N, 1, 28, 28) images and (N,) labels to train on, the same to validate on."""
    parts: list[Tensor] = []
    for part, n in (("train", N_TRAIN), ("t10k", N_VALID)):
        x = torch.from_numpy(read_idx(f"{part}-images-idx3-ubyte")[:n].copy())
        y = torch.from_numpy(read_idx(f"{part}-labels-idx1-ubyte")[:n].copy())
        parts += [(x[:, None] / 255 - 0.13) / 0.31, y.long()]
    return parts[0], parts[1], parts[2], parts[3]


@cache
def objects() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """CIFAR-10, the same with (N, 3, 32, 32) images."""
    limits = {"train": N_TRAIN // 10, "test": N_VALID // 10}
    images: dict[str, list[np.ndarray]] = {name: [] for name in limits}
    labels: dict[str, list[int]] = {name: [] for name in limits}
    classes: list[str] = []
    with tarfile.open(CIFAR) as archive:
        for member in archive:
            if not member.isfile():
                continue
            part, name, file = member.name.split("/")
            if int(Path(file).stem) >= limits[part]:
                continue
            if name not in classes:
                classes.append(name)
            opened = archive.extractfile(member)
            assert opened is not None
            images[part].append(np.asarray(Image.open(io.BytesIO(opened.read())).convert("RGB")))
            labels[part].append(classes.index(name))
    parts: list[Tensor] = []
    for part in limits:
        x = torch.from_numpy(np.stack(images[part])).permute(0, 3, 1, 2)
        parts += [(x / 255 - 0.47) / 0.25, torch.tensor(labels[part])]
    return parts[0], parts[1], parts[2], parts[3]


def grey_objects() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y, valid_x, valid_y = objects()
    return x.mean(1, keepdim=True), y, valid_x.mean(1, keepdim=True), valid_y


def numbers() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The digits' values as numbers."""
    x, y, valid_x, valid_y = digits()
    return x, y.float(), valid_x, valid_y.float()


def labels() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four labels of a digit: even, above four, with a hole, prime."""
    which = torch.tensor([[d % 2 == 0, d > 4, d in (0, 6, 8, 9), d in (2, 3, 5, 7)]
                          for d in range(10)]).float()  # fmt: skip
    x, y, valid_x, valid_y = digits()
    return x, which[y], valid_x, which[valid_y]


class Flipped(TensorLoader):
    """Every image mirrored at random and moved by up to two pixels, another way in each epoch."""

    def _batches(self, order: Tensor, epoch: int):
        generator = torch.Generator().manual_seed(epoch)
        for x, y in super()._batches(order, epoch):
            flip = torch.rand(len(x), generator=generator) < 0.5
            down, across = torch.randint(-2, 3, (2,), generator=generator).tolist()
            mirrored = torch.where(flip[:, None, None, None], x.flip(3), x)
            yield mirrored.roll((down, across), (2, 3)), y


class Residual(nn.Module):
    """A block of two convolutions and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first = cl.models.conv(n_in, n_out, 3, stride, norm="batch", order="conv-norm-act")
        self.second = cl.models.conv(n_out, n_out, 3, 1, activation=False, norm="batch")
        self.shortcut = cl.models.conv(n_in, n_out, 1, stride, activation=False, norm="batch")

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def small_resnet() -> nn.Module:
    return nn.Sequential(
        cl.models.conv(3, 16, 3, 1, norm="batch", order="conv-norm-act"),
        Residual(16, 16, 2), Residual(16, 32, 2), Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def plain(n_in: int = 1, n_out: int = 10, norm: str | None = None) -> nn.Module:
    return cl.simple_cnn(n_in, n_out, norm=norm)


@dataclass(frozen=True)
class SetUp:
    """Data, network and optimizer, and how long to train."""

    data: Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]
    model: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    rates: tuple[float, ...]
    batch_size: int = 64
    n_epochs: int = 3
    kind: str = "classes"
    loader: type[TensorLoader] = TensorLoader
    constant: bool = False

    def learner(self, seed: int) -> cl.Learner:
        """A new one."""
        x, y, _, _ = self.data()
        loader = self.loader(x, y, batch_size=self.batch_size, shuffle=True, seed=seed)
        dls = cl.DataLoaders(loader, kind=self.kind)
        torch.manual_seed(seed)
        return cl.Learner(dls, self.model(), optimizer=self.optimizer, run=None, progress=False)

    def score(self, learn: cl.Learner) -> float:
        """Right answers in percent; for numbers the share of the variance that is explained, R²."""
        _, _, x, y = self.data()
        learn.model.eval()
        with torch.no_grad():
            output = torch.cat([learn.model(part) for part in x.split(500)])
        learn.model.train()
        if self.kind == "classes":
            right = output.argmax(1) == y
        elif self.kind == "labels":
            right = (output > 0) == (y > 0.5)
        else:
            return 100 * float(1 - (output.squeeze(1) - y).square().mean() / y.var())
        return 100 * float(right.float().mean())

    def trained(self, seed: int, lr: float) -> float:
        """The score after training with this rate; 0 if the loss became NaN."""
        learn = self.learner(seed)
        try:
            if self.constant:
                learn.fit(self.n_epochs, lr)
            else:
                learn.fit_one_cycle(self.n_epochs, lr)
        except cl.NonFiniteLossError:
            return 0.0
        return self.score(learn)


def half_decades(first: int, n: int = 7) -> tuple[float, ...]:
    """Rates from 10^(first / 2), each √10 times the one before."""
    return tuple(round(10 ** ((first + i) / 2), 8) for i in range(n))


ADAM_RATES, SGD_RATES = half_decades(-7), half_decades(-6)
SETUPS = {
    "digits, no norm, AdamW, 64": SetUp(digits, plain, ADAMW, ADAM_RATES),
    "digits, norm, AdamW, 512": SetUp(digits, partial(plain, norm="batch"), ADAMW, ADAM_RATES, 512),
    "digits, no norm, SGD, 64": SetUp(digits, plain, SGD, SGD_RATES),
    "digits, norm, SGD, 64, constant rate": SetUp(
        digits, partial(plain, norm="batch"), SGD, SGD_RATES, constant=True
    ),
    "numbers, norm, AdamW, 64": SetUp(
        numbers, partial(plain, 1, 1, "batch"), ADAMW, ADAM_RATES, kind="numbers"
    ),
    "labels, no norm, AdamW, 64": SetUp(
        labels, partial(plain, 1, 4), ADAMW, ADAM_RATES, kind="labels"
    ),
    "grey objects, norm, SGD, 128": SetUp(
        grey_objects, partial(plain, norm="batch"), SGD, SGD_RATES, 128
    ),
    "objects, augmented, small resnet, AdamW, 64": SetUp(
        objects, small_resnet, ADAMW, ADAM_RATES, loader=Flipped
    ),
}
