"""Chooses the probe images that `Pictures` follows through a whole training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from convlens.data import DataLoaders
from convlens.data.batches import first_batch, generators_of
from convlens.data.loaders import ItemLoader
from convlens.execution import same_random

SEED = 0
POOL = 4
"""From a loader other than `ItemLoader`, probes are chosen among so many times as many."""


def choose_probes(dls: DataLoaders, n: int) -> tuple[Tensor, Tensor] | None:
    """Up to n images with their labels, of as many classes as possible, sorted by class.

    From the validation, or the training images where there is none. The same data gives the same
    images. Random numbers, and what the loaders give next, are not changed.

    Returns:
        x (n, C, H, W) as the loader gives them, and y; None if the training data can only be read
        by training on it.
    """
    for loader in (dls.valid, dls.train):
        if isinstance(loader, ItemLoader):
            return loader.pick(choose(loader.labels, n).to(loader.device))
        if loader is not None and loader is dls.valid:
            with same_random(generators=generators_of(loader)):
                return pick_probes(*_pool(loader, POOL * n), n)
    return None


def pick_probes(x: Tensor, y: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Up to n of these images."""
    chosen = choose(y, n)
    return x[chosen.to(x.device)], y[chosen.to(y.device)]


def choose(y: Tensor, n: int) -> Tensor:
    """Positions of up to n labels: one of each class, then a second of each, and so on."""
    order = np.random.default_rng(SEED).permutation(len(y))
    if y.ndim != 1 or y.is_floating_point():
        return torch.from_numpy(np.sort(order[:n]))
    labels = y.cpu().numpy()[order]
    by_class = np.argsort(labels, kind="stable")
    starts = np.unique(labels[by_class], return_index=True)[1]
    rank = np.empty(len(order), np.int64)  # how many of the same class come before each
    rank[by_class] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    first = np.argsort(rank, kind="stable")[:n]
    return torch.from_numpy(order[first[np.argsort(labels[first], kind="stable")]])


def _pool(batches: Iterable[tuple[Tensor, Tensor]], n: int) -> tuple[Tensor, Tensor]:
    """Images to choose from: spread over a data set in order, else the first batch."""
    if (
        isinstance(batches, DataLoader)
        and type(batches.batch_sampler) is BatchSampler
        and isinstance(batches.sampler, SequentialSampler)
    ):
        items: Any = batches.dataset
        spread = np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int)
        collate: Any = batches.collate_fn
        return collate([items[i] for i in spread.tolist()])
    return first_batch(batches, "dls.valid")
