"""Structures: generative networks, segmentation, freezing, normalization, precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from healthy.common import (
    Program,
    accuracy_of,
    classifier,
    clusters,
    discs,
    generator,
    loader,
    loaders,
    mlp,
    pictures,
    r2_of,
    regressor,
    small_cnn,
    surface,
)

BAR = 0.5
"""Guessing is right in 20 or 25 %."""


def _ring(n: int, seed: int) -> Tensor:
    g = generator(seed)
    angle = 6.28 * torch.rand(n, generator=g)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    return 2 * points + 0.1 * torch.randn(n, 2, generator=g)


def _gan(seed: int, watched: str) -> Program:
    """Judged by how far the generated points are from the ring; at first about 1.7.

    A batch begins with what the watched network takes: noise, or real points.
    """
    torch.manual_seed(seed)
    maker, critic = mlp(4, 64, 64, 2), mlp(2, 64, 64, 1, act=nn.Tanh)
    to_make = torch.optim.Adam(maker.parameters(), lr=1e-3, betas=(0.5, 0.99))
    to_tell = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.99))
    loss_fn = F.binary_cross_entropy_with_logits

    def step(batch: Sequence[Tensor]) -> float:
        start, real = batch if watched == "maker" else reversed(batch)
        yes, no = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        made = maker(start)
        to_tell.zero_grad()
        loss = loss_fn(critic(real), yes) + loss_fn(critic(made.detach()), no)
        loss.backward()
        to_tell.step()
        to_make.zero_grad()
        made_loss = loss_fn(critic(made), yes)
        made_loss.backward()
        to_make.step()
        return (made_loss if watched == "maker" else loss).item()

    def evaluate() -> dict[str, float]:
        with torch.no_grad():
            made = maker(torch.randn(500, 4, generator=generator(1)))
        return {"distance": float((made.norm(dim=1) - 2).abs().mean())}

    noise = torch.randn(1000, 4, generator=generator(1001 + seed))
    train = loader(noise, _ring(1000, 1000 + seed), batch=64, seed=seed)
    if watched == "critic":
        train = [(real, start) for start, real in train]
    model, opt = (maker, to_make) if watched == "maker" else (critic, to_tell)
    return Program(
        model, None, opt, train, None, step, evaluate, 700, f"GAN, the {watched} is watched",
        0.5, metric="distance", higher_is_better=False,
    )  # fmt: skip


def gan_generator(seed: int) -> Program:
    return _gan(seed, "maker")


def gan_discriminator(seed: int) -> Program:
    return _gan(seed, "critic")


def autoencoder(seed: int) -> Program:
    """Pictures without much noise; the share of their variance that is given back."""
    x, _ = pictures(800, 1010 + seed, size=16, channels=1, noise=0.1)
    xv, _ = pictures(200, 6010 + seed, size=16, channels=1, noise=0.1)
    model = nn.Sequential(nn.Flatten(), *mlp(256, 64, 12, 64, 256), nn.Unflatten(1, (1, 16, 16)))
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    data = loader(x, x, seed=seed), [(xv, xv)]
    return regressor(model, opt, data, 250, "autoencoder", bar=0.4)


class VariationalAutoencoder(nn.Module):
    """Returns (reconstruction, mean, log variance)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(256, 64, 16), mlp(8, 64, 256)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (logvar / 2).exp() if self.training else mean
        return self.decoder(z), mean, logvar


def variational_autoencoder(seed: int) -> Program:
    x, _ = pictures(800, 1020 + seed, size=16, channels=1, noise=0.1)
    xv, _ = pictures(200, 6020 + seed, size=16, channels=1, noise=0.1)
    x, xv = x.flatten(1), xv.flatten(1)
    model = VariationalAutoencoder()
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss_fn(out: tuple[Tensor, Tensor, Tensor], y: Tensor) -> Tensor:
        said, mean, logvar = out
        divergence = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1).mean()
        return F.mse_loss(said, y, reduction="none").sum(1).mean() + divergence

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        opt.zero_grad()
        loss = loss_fn(model(batch[0]), batch[1])
        loss.backward()
        opt.step()
        return loss.item()

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            out = model(xv)
        r2 = 1 - ((out[0] - xv) ** 2).mean() / xv.var()
        return {"loss": float(loss_fn(out, xv)), "r2": float(r2)}

    train = loader(x, x, seed=seed)
    return Program(
        model, loss_fn, opt, train, [(xv, xv)], step, evaluate, 250, "VAE", 0.3, metric="r2"
    )


class SmallUNet(nn.Module):
    """Two levels, the upper one handed across."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.up, self.mix = nn.ConvTranspose2d(24, 12, 2, 2), nn.Conv2d(24, 12, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(24), nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.norm(self.down2(F.max_pool2d(a, 2))))
        return self.head(F.relu(self.mix(torch.cat([a, self.up(b)], 1))))


def _dice(model: nn.Module, valid: Iterable[Any]) -> dict[str, float]:
    model.eval()
    both = area = 0.0
    with torch.no_grad():
        for x, y in valid:
            said = (model(x) > 0).float()
            both, area = both + float((said * y).sum()), area + float(said.sum() + y.sum())
    return {"dice": 2 * both / max(area, 1.0)}


def unet_masks(seed: int) -> Program:
    """A tenth of the pixels is disc; saying no everywhere gives 0, saying yes about 0.2."""
    model = SmallUNet()
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    loss_fn = nn.BCEWithLogitsLoss()
    data = loaders(discs, 240, seed, batch=16)
    program = classifier(model, opt, data, 60, "U-Net", 0.5, loss_fn=loss_fn)
    program.evaluate, program.metric = lambda: _dice(model, data[1]), "dice"
    return program


def unet_soft_dice(seed: int) -> Program:
    """The soft Dice loss falls from 1 to 0."""
    model = SmallUNet()
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        p = out.sigmoid()
        return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)

    data = loaders(discs, 240, seed, batch=16)
    program = classifier(model, opt, data, 60, "U-Net with Dice", 0.5, loss_fn=loss_fn)
    program.evaluate, program.metric = lambda: _dice(model, data[1]), "dice"
    return program


class Siamese(nn.Module):
    """The distance of two inputs after one shared network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(16, 64, 8)

    def forward(self, pair: Tensor) -> Tensor:
        a, b = self.body(pair[:, 0]), self.body(pair[:, 1])
        return 2 - (a - b).square().sum(1)


def siamese(seed: int) -> Program:
    """Same class or not, half and half: guessing is right in 50 %."""

    def pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = clusters(4 * n, seed, noise=1.4)
        g = generator(seed)
        same = torch.rand(n, generator=g) < 0.5
        found: list[Tensor] = []
        for i in range(n):
            others = torch.where((y == y[i]) == same[i])[0]
            j = int(others[int(torch.randint(len(others), (), generator=g))])
            found.append(torch.stack([x[i], x[j]]))
        return torch.stack(found), same.float()

    model = Siamese()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss_fn = nn.BCEWithLogitsLoss()
    train, valid = loaders(pairs, 800, seed)
    program = classifier(model, opt, (train, valid), 250, "siamese", 0.65, loss_fn=loss_fn)

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            right = [((model(x) > 0) == (y > 0.5)).float().mean() for x, y in valid]
        return {"accuracy": float(torch.stack(right).mean())}

    program.evaluate = evaluate
    return program


class Shared(nn.Module):
    """One block that is run four times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(16, 48), nn.Linear(48, 48), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for _ in range(4):
            h = h + F.relu(self.block(h)) / 2
        return self.head(h)


def shared_block(seed: int) -> Program:
    model = Shared()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    return classifier(model, opt, loaders(clusters, 1200, seed), 200, "one block four times", BAR)


def volumes(seed: int) -> Program:
    """Three-dimensional convolutions; a bright cube in one of four places."""

    def cubes(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = generator(seed)
        y = torch.randint(4, (n,), generator=g)
        x = torch.randn(n, 1, 8, 8, 8, generator=g)
        for i, k in enumerate(y.tolist()):
            x[i, :, 4 * (k // 2) :, 4 * (k % 2) :][:, :4, :4, 2:6] += 1.0
        return x, y

    model = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 4),
    )  # fmt: skip
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    return classifier(model, opt, loaders(cubes, 400, seed, batch=16), 80, "3-D CNN", BAR)


def depthwise(seed: int) -> Program:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish()]
    for a, b in ((16, 24), (24, 32)):
        layers += [nn.Conv2d(a, a, 3, 2, 1, groups=a, bias=False), nn.BatchNorm2d(a), nn.ReLU6()]
        layers += [nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return classifier(model, opt, loaders(pictures, 640, seed), 150, "depth-wise", BAR)


class DeepResidual(nn.Module):
    """Twelve residual blocks with layer normalization, the last layer of each begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 48), nn.Linear(48, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 48))
            for _ in range(12)
        )
        for block in self.blocks:
            nn.init.zeros_(block[3].weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def zero_initialized_residuals(seed: int) -> Program:
    model = DeepResidual()
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return classifier(model, opt, loaders(clusters, 1200, seed), 150, "zero-initialized", BAR)


def _group_norm(seed: int, batch: int, n_steps: int) -> Program:
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(4, b), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 5))
    opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = loaders(pictures, 640, seed, batch=batch)
    return classifier(model, opt, data, n_steps, f"group norm, batches of {batch}", BAR)


def group_norm_pairs(seed: int) -> Program:
    return _group_norm(seed, 2, 500)


def group_norm_single(seed: int) -> Program:
    return _group_norm(seed, 1, 700)


def strong_dropout(seed: int) -> Program:
    model = nn.Sequential(
        nn.Linear(16, 256), nn.ReLU(), nn.Dropout(0.8),
        nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.8), nn.Linear(256, 4),
    )  # fmt: skip
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    return classifier(model, opt, loaders(clusters, 1200, seed), 300, "dropout 0.8", BAR)


def sampled_dropout(seed: int) -> Program:
    """Monte-Carlo dropout: besides the usual evaluation eight forwards with dropout on."""
    model = nn.Sequential(nn.Linear(16, 96), nn.ReLU(), nn.Dropout(0.3), nn.Linear(96, 4))
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    train, valid = loaders(clusters, 1200, seed)
    program = classifier(model, opt, (train, valid), 250, "Monte-Carlo dropout", BAR)

    def evaluate() -> dict[str, float]:
        found = accuracy_of(model, valid, F.cross_entropy)
        model[2].train()
        with torch.no_grad():
            spread = [torch.stack([model(x).softmax(1) for _ in range(8)]).std(0) for x, _ in valid]
        return {**found, "spread": float(torch.cat(spread).mean())}

    program.evaluate = evaluate
    return program


class Checkpointed(nn.Module):
    """Its middle is computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(16, 64), mlp(64, 64, 64, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        return self.head(F.relu(checkpoint(self.middle, h, use_reentrant=False)))


def gradient_checkpointing(seed: int) -> Program:
    model = Checkpointed()
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    return classifier(model, opt, loaders(clusters, 1200, seed), 200, "checkpointing", BAR)


def bfloat16_autocast(seed: int) -> Program:
    model = small_cnn()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = loaders(pictures, 640, seed)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        opt.step()
        return loss.item()

    return classifier(model, opt, data, 100, "bfloat16 autocast", BAR, step=step)


def double_precision(seed: int) -> Program:
    """Float64 from the data on; outputs in real units."""

    def doubles(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = surface(n, seed)
        return x.double(), y.double()

    model = mlp(6, 64, 64, 1, act=nn.SiLU).double()
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return regressor(model, opt, loaders(doubles, 800, seed), 250, "float64")


def mixture_of_experts(seed: int) -> Program:
    """Two of four experts for each item; an expert may get no item in a batch."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(6, 4)
            self.experts = nn.ModuleList(mlp(6, 32, 1) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            weight, chosen = self.gate(x).softmax(1).topk(2)
            out = torch.zeros(len(x), 1)
            for k, expert in enumerate(self.experts):
                rows, slot = torch.where(chosen == k)
                if len(rows):
                    out = out.index_add(0, rows, weight[rows, slot, None] * expert(x[rows]))
            return out

    model = Experts()
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    return regressor(model, opt, loaders(surface, 800, seed), 300, "mixture of experts")


def deep_supervision(seed: int) -> Program:
    """A list of outputs while training, one output in evaluation."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 64), nn.Linear(64, 64)
            self.side, self.head = nn.Linear(64, 1), nn.Linear(64, 1)

        def forward(self, x: Tensor) -> Any:  # noqa: ANN401
            h = F.relu(self.a(x))
            out = self.head(F.relu(self.b(h)))
            return [out, self.side(h)] if self.training else out

    def loss_fn(out: Any, y: Tensor) -> Tensor:  # noqa: ANN401
        outs = out if isinstance(out, list) else [out]
        return sum((F.mse_loss(o, y) / 2**i for i, o in enumerate(outs)), torch.zeros(()))

    model = Net()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = loaders(surface, 800, seed)
    program = regressor(model, opt, data, 250, "deep supervision", loss_fn=loss_fn)
    program.evaluate = lambda: r2_of(model, data[1], F.mse_loss)
    return program
