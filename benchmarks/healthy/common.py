"""What the healthy programs share: their form, generated data, and the usual loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convlens as cl

Loss = Callable[..., Tensor]


@dataclass
class Program:
    """A training program as its author would write it.

    Attributes:
        model: what is watched.
        loss_fn: ``loss_fn(model(x), y)``, or None where ``step`` works it out.
        optimizer: that of ``model``'s parameters; None if several share them, or none is torch's.
        train_loader: can be read again.
        valid_loader: what ``evaluate`` reads, or None.
        step: one whole training step on a batch; returns the loss.
        evaluate: the author's validation.
        n_steps: how long it trains.
        task: one line.
        bar: what ``evaluate()[metric]`` must reach for the run to count as healthy. It is set by
            what guessing gives (see the programs), not by what was measured.
        metric: the value of ``evaluate()`` that counts.
        higher_is_better: its direction.
        eval_every: steps between evaluations; four in a run without it.
        audit: an honest measure where ``evaluate`` is none.
    """

    model: nn.Module
    loss_fn: Loss | None
    optimizer: torch.optim.Optimizer | None
    train_loader: Iterable[Any]
    valid_loader: Iterable[Any] | None
    step: Callable[[Any], float]
    evaluate: Callable[[], dict[str, float]]
    n_steps: int
    task: str
    bar: float
    metric: str = "accuracy"
    higher_is_better: bool = True
    eval_every: int | None = None
    audit: Callable[[], float] | None = None


@dataclass
class LearnerProgram:
    """A training with `convlens.Learner`: judged by the run that it records.

    Attributes:
        make: a new learner that records to the directory.
        train: what its user calls.
        task: one line.
        bar: as in `Program`.
        metric: of the last epoch.
        higher_is_better: its direction.
    """

    make: Callable[[Path], cl.Learner]
    train: Callable[[cl.Learner], None]
    task: str
    bar: float
    metric: str = "accuracy"
    higher_is_better: bool = True


# ---- data -------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(
    n: int,
    seed: int,
    *,
    size: int = 32,
    classes: int = 5,
    channels: int = 3,
    noise: float = 1.0,
    distraction: float = 0.6,
) -> tuple[Tensor, Tensor]:
    """A smooth motif of the class, shifted, over a weaker one of another class, in noise."""
    coarse = torch.randn(classes, channels, 5, 5, generator=generator(77))
    motifs = F.interpolate(coarse, size=(size, size), mode="bicubic")
    motifs = motifs / motifs.std(dim=(1, 2, 3), keepdim=True)
    g = generator(seed)
    y = torch.randint(classes, (n,), generator=g)
    other = (y + torch.randint(1, classes, (n,), generator=g)) % classes
    shifts = torch.randint(-6, 7, (n, 4), generator=g).tolist()
    contrast = (0.6 + 0.8 * torch.rand(n, 2, generator=g)).tolist()
    x = torch.stack(
        [
            p * motifs[k].roll((a, b), (1, 2)) + distraction * q * motifs[m].roll((c, d), (1, 2))
            for k, m, (a, b, c, d), (p, q) in zip(
                y.tolist(), other.tolist(), shifts, contrast, strict=True
            )
        ]
    )
    return (x + noise * torch.randn(x.shape, generator=g)) / (1.5 + noise**2) ** 0.5, y


def clusters(
    n: int, seed: int, *, d: int = 16, classes: int = 4, noise: float = 2.4
) -> tuple[Tensor, Tensor]:
    """Three clouds of points for each class, standardized."""
    centres = 1.6 * torch.randn(3 * classes, d, generator=generator(78))
    g = generator(seed)
    cloud = torch.randint(3 * classes, (n,), generator=g)
    x = centres[cloud] + noise * torch.randn(n, d, generator=g)
    return x / (1.6**2 + noise**2) ** 0.5, cloud % classes


def surface(n: int, seed: int, *, d: int = 6, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """A smooth function of standardized features; targets (N, 1)."""
    g = generator(seed)
    x = torch.randn(n, d, generator=g)
    y = x[:, 0] * x[:, 1] + torch.sin(2 * x[:, 2]) + 0.7 * x[:, 3].abs() - 0.5 * x[:, 4]
    return x, (y + noise * torch.randn(n, generator=g))[:, None]


def waves(n: int, seed: int, *, length: int = 64, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """Damped oscillations (N, 1, length); the class is one of four ratios of the two tones."""
    g = generator(seed)
    y = torch.randint(4, (n,), generator=g)
    t = torch.arange(length) / length
    base = 4 + 2 * torch.rand(n, 1, generator=g)
    ratio = torch.tensor([1.5, 2.0, 3.0, 4.5])[y][:, None]
    phase = 6.28 * torch.rand(n, 1, generator=g)
    x = torch.sin(6.28 * base * t + phase) + torch.sin(6.28 * base * ratio * t)
    return (x + noise * torch.randn(n, length, generator=g))[:, None], y


def sentences(
    n: int, seed: int, *, length: int = 16, words: int = 40, classes: int = 3
) -> tuple[Tensor, Tensor]:
    """Word numbers (N, length); each class has words of its own, a quarter of the text."""
    g = generator(seed)
    y = torch.randint(classes, (n,), generator=g)
    x = torch.randint(4 * classes, words, (n, length), generator=g)
    own = torch.randint(4, (n, length), generator=g) + 4 * y[:, None]
    return torch.where(torch.rand(n, length, generator=g) < 0.25, own, x), y


def book(length: int, seed: int, *, letters: int = 20) -> Tensor:
    """A text in which each letter is followed by one of three, mostly by the first."""
    follow = torch.randint(letters, (letters, 3), generator=generator(79)).tolist()
    g = generator(seed)
    picks = torch.multinomial(torch.tensor([0.8, 0.15, 0.05]), length, True, generator=g)
    text = [0]
    for pick in picks.tolist():
        text.append(follow[text[-1]][pick])
    return torch.tensor(text)


def discs(n: int, seed: int, *, size: int = 24) -> tuple[Tensor, Tensor]:
    """A bright disc in noise, and its mask (N, 1, size, size)."""
    g = generator(seed)
    place = 5 + (size - 10) * torch.rand(n, 2, 1, 1, generator=g)
    radius = 3 + 2 * torch.rand(n, 1, 1, generator=g)
    v, u = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = ((u - place[:, 0]) ** 2 + (v - place[:, 1]) ** 2 <= radius**2).float()[:, None]
    return mask + 0.5 * torch.randn(n, 1, size, size, generator=g), mask


def loader(*tensors: Tensor, batch: int = 32, shuffle: bool = True, seed: int = 0) -> Any:  # noqa: ANN401
    return DataLoader(
        TensorDataset(*tensors), batch_size=batch, shuffle=shuffle, generator=generator(seed)
    )


def loaders(
    make: Callable[..., tuple[Tensor, Tensor]],
    n: int,
    seed: int,
    *,
    batch: int = 32,
    **options: Any,  # noqa: ANN401
) -> tuple[Any, Any]:
    """A shuffled training loader of ``n`` items and a validation loader of 200."""
    return (
        loader(*make(n, 100 + seed, **options), batch=batch, seed=seed),
        loader(*make(200, 5000 + seed, **options), batch=100, shuffle=False),
    )


# ---- the usual loop ---------------------------------------------------------------------------


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def small_cnn(channels: int = 3, classes: int = 5, *, norm: bool = True) -> nn.Sequential:
    """Three convolutions and a linear layer."""
    layers: list[nn.Module] = []
    for a, b in ((channels, 12), (12, 24), (24, 32)):
        layers += [nn.Conv2d(a, b, 3, 2, 1), *([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


def accuracy_of(model: nn.Module, data: Iterable[Any], loss_fn: Loss | None = None) -> Any:  # noqa: ANN401
    """Accuracy, and the loss if there is a function for it; leaves the model evaluating."""
    model.eval()
    right = total = loss = 0.0
    with torch.no_grad():
        for x, y in data:
            out = model(x)
            right += float((out.argmax(1) == y).sum())
            total += y.numel()
            loss += 0.0 if loss_fn is None else float(loss_fn(out, y)) * len(y)
    found = {"accuracy": right / total}
    return found if loss_fn is None else {"loss": loss / total, **found}


def r2_of(model: nn.Module, data: Iterable[Any], loss_fn: Loss | None = None) -> Any:  # noqa: ANN401
    """The share of the targets' variance that is explained: 0 is what the mean explains."""
    model.eval()
    with torch.no_grad():
        pairs = [(model(x), y) for x, y in data]
    out, y = torch.cat([o for o, _ in pairs]), torch.cat([t for _, t in pairs])
    found = {"r2": float(1 - ((out - y) ** 2).mean() / y.var(correction=0))}
    return found if loss_fn is None else {"loss": float(loss_fn(out, y)), **found}


def usual_step(
    model: nn.Module,
    loss_fn: Loss,
    optimizer: torch.optim.Optimizer,
    scheduler: Any = None,  # noqa: ANN401
) -> Callable[[Any], float]:
    """Forward, backward, step, and the schedule after each batch."""

    def step(batch: Sequence[Tensor]) -> float:
        x, y = batch
        model.train()
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        return loss.item()

    return step


def classifier(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Any, Any],
    n_steps: int,
    task: str,
    bar: float,
    *,
    scheduler: Any = None,  # noqa: ANN401
    loss_fn: Loss = F.cross_entropy,
    step: Callable[[Any], float] | None = None,
    eval_every: int | None = None,
) -> Program:
    """A usual classifier; ``bar`` is an accuracy."""
    train, valid = data
    return Program(
        model,
        loss_fn,
        optimizer,
        train,
        valid,
        step or usual_step(model, loss_fn, optimizer, scheduler),
        lambda: accuracy_of(model, valid, loss_fn),
        n_steps,
        task,
        bar,
        eval_every=eval_every,
    )


def regressor(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Any, Any],
    n_steps: int,
    task: str,
    *,
    bar: float = 0.5,
    loss_fn: Loss = F.mse_loss,
    scheduler: Any = None,  # noqa: ANN401
    step: Callable[[Any], float] | None = None,
) -> Program:
    """A usual regression; ``bar`` is a share of explained variance."""
    train, valid = data
    return Program(
        model,
        loss_fn,
        optimizer,
        train,
        valid,
        step or usual_step(model, loss_fn, optimizer, scheduler),
        lambda: r2_of(model, valid, loss_fn),
        n_steps,
        task,
        bar,
        metric="r2",
    )


def pretrain(model: nn.Module, data: Iterable[Any], epochs: int, lr: float = 2e-3) -> None:
    """Train with Adam before anyone looks."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for _ in range(epochs):
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
