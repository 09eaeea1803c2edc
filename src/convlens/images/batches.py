"""What a batch is, and how to look at a loader's first one without changing what comes next."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convlens.errors import ArgumentError


def images_and_labels(batch: Any, argument: str) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """The two tensors of a batch.

    Args:
        batch: what a loader gave; a tuple or list (x, y) is right.
        argument: the loader's name, for the message.

    Raises:
        ArgumentError: if it is anything else.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        x, y = batch
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return x, y
        wrong, what = ("x", x) if not isinstance(x, Tensor) else ("y", y)
        raise ArgumentError(
            f"{argument} gives batches (x, y) whose {wrong} is a {type(what).__name__}; expected "
            "tensors, images (N, C, H, W) and labels (N,)."
        )
    found = f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        found += f" with the keys {', '.join(map(repr, batch))}"
    elif isinstance(batch, tuple | list):
        found += f" of {len(batch)} things"
    raise ArgumentError(
        f"{argument} gives batches that are {found}; expected pairs (x, y) of tensors, images "
        "(N, C, H, W) and labels (N,). A DataLoader's collate_fn, or a small class that iterates "
        "over it, can make such pairs."
    )


def first_batch(batches: Iterable[Any], argument: str) -> tuple[Tensor, Tensor]:
    """The first batch; random numbers, and what the loader gives next, stay as they are.

    Raises:
        ArgumentError: if there is none, or it is no pair of tensors.
    """
    with same_random(), same_generators(batches):
        for batch in batches:
            return images_and_labels(batch, argument)
    raise ArgumentError(
        f"{argument} is a {type(batches).__name__} that gives no batches; give it at least one."
    )


@contextmanager
def same_random(devices: Iterable[torch.device] = ()) -> Generator[None]:
    """Put random numbers of torch, NumPy and Python back where they were."""
    gpus = sorted({d.index or 0 for d in devices if d.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 — what others use
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def same_generators(batches: object) -> Generator[None]:
    """The same for generators of a loader's own."""
    owners = [batches, getattr(batches, "sampler", None)]
    found = [getattr(owner, "generator", None) for owner in owners]
    states = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
