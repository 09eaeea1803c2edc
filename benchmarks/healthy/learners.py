"""The chapter's own examples on MNIST in small, through `convlens.Learner`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

import convlens as cl
from healthy.common import LearnerProgram

BAR = 0.6
"""Six times what guessing gives."""


def _digits(seed: int, *, batch_size: int = 64, n: int = 2048) -> cl.DataLoaders:
    """The first images of the embedded MNIST, 500 of them for validation."""
    whole = cl.mnist(batch_size=n, device="cpu", seed=seed)
    assert whole.valid is not None
    x, y = next(iter(whole.train))
    xv, yv = next(iter(whole.valid))
    return cl.from_arrays(
        x, y, layout="NCHW", valid=(xv[:500], yv[:500]), batch_size=batch_size,
        device="cpu", seed=seed, normalize=False,
    )  # fmt: skip


def _learner(
    path: Path,
    seed: int,
    model: nn.Module,
    *,
    batch_size: int = 64,
    n: int = 2048,
    **options: object,
) -> cl.Learner:
    return cl.Learner(
        _digits(seed, batch_size=batch_size, n=n),
        model,
        metrics=[cl.accuracy],
        callbacks=[cl.ActivationStats(), cl.GradientStats(), cl.UpdateStats()],
        seed=seed,
        run=path,
        progress=False,
        **options,  # type: ignore[arg-type]
    )


def learner_one_cycle(seed: int) -> LearnerProgram:
    """README's demo: batch normalization, one-cycle to 0.1."""
    model = cl.simple_cnn(1, 10, norm="batch")
    return LearnerProgram(
        lambda path: _learner(path, seed, model),
        lambda learn: learn.fit_one_cycle(3, lr_max=0.1),
        "README's demo in small",
        BAR,
    )


def learner_fit_sgd(seed: int) -> LearnerProgram:
    model = cl.simple_cnn(1, 10)
    return LearnerProgram(
        lambda path: _learner(path, seed, model, optimizer=SGD, batch_size=32),
        lambda learn: learn.fit(6, lr=0.1),
        "the chapter's first network, SGD",
        BAR,
    )


def learner_one_cycle_plain(seed: int) -> LearnerProgram:
    """Without batch normalization, as the chapter does before it."""
    model = cl.simple_cnn(1, 10)
    return LearnerProgram(
        lambda path: _learner(path, seed, model, batch_size=64),
        lambda learn: learn.fit_one_cycle(4, lr_max=0.01),
        "one-cycle, no normalization",
        BAR,
    )


def learner_fit_twice(seed: int) -> LearnerProgram:
    """The record is that of the second fit, which begins with a good network."""

    def train(learn: cl.Learner) -> None:
        learn.fit(2, lr=5e-3)
        learn.run = learn.run_path.parent / "second" if learn.run_path is not None else None
        learn.fit(2, lr=1e-3)

    model = cl.simple_cnn(1, 10, norm="batch")
    return LearnerProgram(
        lambda path: _learner(path, seed, model), train, "fit, and fit again", BAR
    )


def learner_mlp_without_watching(seed: int) -> LearnerProgram:
    """A multilayer perceptron and losses only: no layer is watched."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))

    def make(path: Path) -> cl.Learner:
        return cl.Learner(
            _digits(seed), model, metrics=[cl.accuracy], seed=seed, run=path, progress=False
        )

    return LearnerProgram(make, lambda learn: learn.fit(3, lr=2e-3), "losses only", BAR)


def learner_label_smoothing(seed: int) -> LearnerProgram:
    loss = partial(F.cross_entropy, label_smoothing=0.1)
    model = cl.simple_cnn(1, 10, norm="batch")
    return LearnerProgram(
        lambda path: _learner(path, seed, model, loss=loss, optimizer=torch.optim.AdamW),
        lambda learn: learn.fit(3, lr=4e-3),
        "label smoothing",
        BAR,
    )
