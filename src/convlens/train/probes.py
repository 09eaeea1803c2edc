"""The probe images: the same few of the validation, followed through the whole training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from convlens.data import DataLoaders
from convlens.data.batches import first_batch, generators_of
from convlens.data.loaders import TensorLoader
from convlens.execution import same_random

SEED = 0
POOL = 4
"""From so many times as many images of a foreign data set the probes are chosen."""


def choose_probes(dls: DataLoaders, n: int) -> tuple[Tensor, Tensor] | None:
    """Up to n images with their labels, of as many classes as can be, in order of the classes.

    From the validation; from the training images where there is none. The same data gives the same
    images. Random numbers, and what the loaders give next, stay as they are.

    Returns:
        x (n, C, H, W) as the loader gives them, and y; None if the training data can only be
        looked at by training on it.
    """
    if isinstance(dls.valid, TensorLoader):
        return _of_tensors(dls.valid, n)
    if dls.valid is not None:
        with same_random(generators=generators_of(dls.valid)):
            return pick_probes(*_pool(dls.valid, POOL * n), n)
    return _of_tensors(dls.train, n) if isinstance(dls.train, TensorLoader) else None


def pick_probes(x: Tensor, y: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The probes among these images."""
    chosen = choose(y, n)
    return x[chosen.to(x.device)], y[chosen.to(y.device)]


def choose(y: Tensor, n: int) -> Tensor:
    """Positions of up to n labels: one of each class, then a second of each, and so on."""
    order = np.random.default_rng(SEED).permutation(len(y))
    if y.ndim != 1 or y.is_floating_point():
        return torch.from_numpy(np.sort(order[:n]))
    labels = y.cpu().numpy()[order]
    by_class = np.argsort(labels, kind="stable")
    runs = np.unique(labels[by_class], return_index=True)[1]
    turn = np.empty(len(order), np.int64)  # how many of its class come before each
    turn[by_class] = np.arange(len(order)) - np.repeat(runs, np.diff([*runs, len(order)]))
    first = np.argsort(turn, kind="stable")[:n]
    return torch.from_numpy(order[first[np.argsort(labels[first], kind="stable")]])


def _of_tensors(loader: TensorLoader, n: int) -> tuple[Tensor, Tensor]:
    return loader.pick(choose(loader.labels, n).to(loader.device))


def _pool(batches: Iterable[tuple[Tensor, Tensor]], n: int) -> tuple[Tensor, Tensor]:
    """Images to choose from: from all over a data set in order, else the first batch."""
    if isinstance(batches, DataLoader) and _is_in_order(batches):
        items: Any = batches.dataset
        spread = np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int)
        collate: Any = batches.collate_fn
        return collate([items[i] for i in spread.tolist()])
    return first_batch(batches, "dls.valid")


def _is_in_order(loader: DataLoader[Any]) -> bool:
    return (
        type(loader.batch_sampler) is BatchSampler
        and isinstance(loader.sampler, SequentialSampler)
        and len(loader.dataset) > 0  # pyright: ignore[reportArgumentType]
    )
