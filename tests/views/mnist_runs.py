"""Real trainings on a part of MNIST, recorded with everything on."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import convlens as cl
from convlens.data import DataLoaders


def part(
    n: int = 2_000, n_valid: int = 500, batch_size: int = 100, classes: list[str] | None = None
) -> DataLoaders:
    whole = cl.mnist(batch_size=n)
    x, y = next(iter(whole.train))
    assert whole.valid is not None
    x_valid, y_valid = next(iter(whole.valid))
    return cl.from_arrays(
        whole.to_uint8(x),
        y.numpy(),
        layout="NHW",
        valid=(whole.to_uint8(x_valid)[:n_valid], y_valid.numpy()[:n_valid]),
        batch_size=batch_size,
        classes=classes or whole.classes,
        name="mnist",
    )


def train(base: Path, dls: DataLoaders, n_epochs: int = 3, *more: cl.Callback) -> Path:
    """A run with statistics of everything and pictures; its directory."""
    torch.manual_seed(0)
    watching = [cl.ActivationStats(), cl.GradientStats(), cl.UpdateStats(), cl.Pictures()]
    learn = cl.Learner(
        dls,
        cl.simple_cnn(1, len(dls.classes), norm="batch"),
        metrics=[cl.accuracy],
        callbacks=[*watching, *more],
        seed=0,
        base=base,
        progress=False,
    )
    learn.fit_one_cycle(n_epochs, 0.05)
    assert learn.run_path is not None
    return learn.run_path


class Until(cl.Callback):
    """Ends the training once a file is there."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_batch(self, learn: cl.Learner) -> None:
        if self.file.exists():
            raise cl.CancelFitError


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), part(), int(sys.argv[2]), Until(Path(sys.argv[3])))
