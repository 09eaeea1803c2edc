"""How the sample runs are trained: with a Learner on a part of MNIST, or with a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convlens as cl
from convlens.data import DataLoaders
from convlens.runs.folder import make_numbered

Make = Callable[[Path], Path]
RUNS: dict[str, Make] = {}
"""By the name of a run without its number: makes it in a folder, and returns its directory."""


def sample(name: str) -> Callable[[Callable[[Path], object]], Make]:
    """Make a function that fills a run's directory one that makes it in a folder."""

    def register(fill: Callable[[Path], object]) -> Make:
        def make(base: Path) -> Path:
            torch.manual_seed(0)
            path = make_numbered(base, name)
            fill(path)
            return path

        RUNS[name] = make
        return make

    return register


@cache
def _mnist() -> tuple[Any, Tensor, Any, Tensor, Sequence[str]]:
    """All of MNIST, in the order of a first epoch: it is decoded once."""
    whole = cl.mnist(batch_size=60_000, device="cpu")
    assert whole.valid is not None
    (x, y), (x_valid, y_valid) = next(iter(whole.train)), next(iter(whole.valid))
    return whole.to_uint8(x), y, whole.to_uint8(x_valid), y_valid, whole.classes


def digits(
    n: int,
    batch_size: int = 50,
    n_valid: int = 200,
    classes: Sequence[str] | None = None,
    name: str = "mnist",
) -> DataLoaders:
    """A part of MNIST."""
    x, y, x_valid, y_valid, names = _mnist()
    return cl.from_arrays(
        x[:n],
        y[:n],
        layout="NHW",
        valid=(x_valid[:n_valid], y_valid[:n_valid]),
        batch_size=batch_size,
        classes=classes or names,
        device="cpu",
        name=name,
    )


def photos(n_steps: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Four made-up images, again and again."""
    return repeat((torch.randn(4, 3, 64, 64), torch.arange(4)), n_steps)


def learner(path: Path, dls: DataLoaders, model: nn.Module, *more: cl.Callback) -> cl.Learner:
    """A Learner that records everything to a directory."""
    everything = [cl.ActivationStats(), cl.GradientStats(), cl.UpdateStats(), cl.Pictures()]
    return cl.Learner(
        dls,
        model,
        metrics=[cl.accuracy],
        callbacks=[*everything, *more],
        seed=0,
        run=path,
        progress=False,
    )


class Each(cl.Callback):
    """Calls a function before each step of the optimizer."""

    def __init__(self, function: Callable[[cl.Learner], None]) -> None:
        self.function = function

    def before_step(self, learn: cl.Learner) -> None:
        self.function(learn)


def loop(
    path: Path,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    lr: float = 0.05,
    log: bool = True,
    **watching: Any,
) -> None:
    """A loop of one's own, watched; the optimizer knows nothing of frozen parameters."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr, 0.9)
    with cl.watch(model, run=path, **watching) as stats:
        for x, y in batches:
            loss = F.cross_entropy(model(x), y)
            if log:
                stats.log(loss=loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def train_until(path: Path, stop_file: Path, n: int = 2_000) -> None:
    """Train until the file is there; an epoch has ``n / 50`` steps."""

    def look(learn: cl.Learner) -> None:
        if stop_file.exists():
            raise cl.CancelFitError

    torch.manual_seed(0)
    learner(path, digits(n), cl.simple_cnn(1, 10, norm="batch"), Each(look)).fit(10_000, 0.003)
