"""What a batch is, and how to read a loader's first batch without changing what it gives next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from convlens.core.wording import type_name
from convlens.errors import ArgumentError
from convlens.execution import same_random


def images_and_labels(batch: Any, argument: str) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """The two tensors of a batch, a tuple or list (x, y).

    Args:
        batch: what a loader gave.
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
            f"{argument} gives batches (x, y) whose {wrong} is of type {type_name(what)}; expected "
            "tensors, images (N, C, H, W) and labels (N,)."
        )
    found = f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        found += f" with the keys {', '.join(map(repr, batch))}"
    elif isinstance(batch, tuple | list):
        found += f" of length {len(batch)}"
    raise ArgumentError(
        f"{argument} gives batches that are {found}; expected pairs (x, y) of tensors, images "
        "(N, C, H, W) and labels (N,). A DataLoader's collate_fn, or a small class that iterates "
        "over it, can make such pairs."
    )


def first_batch(batches: Iterable[Any], argument: str) -> tuple[Tensor, Tensor]:
    """The first batch; random numbers, and what the loader gives next, are not changed.

    Raises:
        ArgumentError: if there is none, or it is not a pair of tensors.
    """
    with same_random(generators=generators_of(batches)):
        for batch in batches:
            return images_and_labels(batch, argument)
    raise ArgumentError(f"{argument} has no batches; give it at least one.")


def generators_of(batches: object) -> list[torch.Generator]:
    """The random generators that belong to a loader."""
    owners = [batches, getattr(batches, "sampler", None)]
    found = [getattr(owner, "generator", None) for owner in owners]
    return [generator for generator in found if isinstance(generator, torch.Generator)]
