"""What a batch is: its inputs and targets, its items, and copies of parts of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

TARGETS = ("labels", "label", "targets", "target", "y")
"""The keys under which mappings have their targets."""


def is_batch(data: object) -> bool:
    """Whether it is one batch: a tensor, a mapping, a tuple, or a list that begins with a tensor.

    A list of mappings or of pairs is a list of batches.
    """
    if isinstance(data, Tensor | Mapping | tuple):
        return not isinstance(data, tuple) or bool(data)
    if not isinstance(data, list) or not data:
        return False
    parts = cast("list[object]", data)
    return isinstance(parts[0], Tensor) or (
        isinstance(parts[0], Mapping) and isinstance(parts[-1], Tensor)
    )


def split(batch: Any) -> tuple[Any, Any]:  # noqa: ANN401 — whatever a loader gives
    """Inputs and targets of a batch; None without targets.

    The last entry of a tuple is the targets; of a mapping that with one of the keys `TARGETS`.
    """
    if isinstance(batch, Mapping):
        whole = cast("Mapping[str, Any]", batch)
        name = next((n for n in TARGETS if n in whole), None)
        if name is None:
            return whole, None
        return {k: v for k, v in whole.items() if k != name}, whole[name]
    if isinstance(batch, tuple | list):
        parts = cast("Sequence[Any]", batch)
        if len(parts) == 1:
            return parts[0], None
        return (parts[0] if len(parts) == 2 else tuple(parts[:-1])), parts[-1]
    return batch, None


def call(model: nn.Module, x: Any) -> Any:  # noqa: ANN401
    """The model's output for the inputs of a batch; several are its arguments."""
    if isinstance(x, Mapping):
        return model(**cast("Mapping[str, Any]", x))
    return model(*x) if isinstance(x, tuple) else model(x)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """The same with each tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: mapped(v, change) for k, v in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, tuple | list):
        return _like(value, [mapped(v, change) for v in cast("Sequence[Any]", value)])
    return value


def cloned(value: Any, device: torch.device | None = None) -> Any:  # noqa: ANN401
    """A copy, since a model may write into its input; on another device if one is given."""

    def clone(tensor: Tensor) -> Tensor:
        copy = tensor.detach().clone()
        copy = copy if device is None else copy.to(device)
        return copy.requires_grad_(tensor.requires_grad)

    if isinstance(value, Tensor | Mapping | tuple | list):
        return mapped(value, clone)
    move = getattr(value, "to", None)  # of a batch of graphs, say
    return value if device is None or move is None else move(device)


def n_items(batch: Any) -> int:  # noqa: ANN401
    """How many items a batch has: the length of its targets, else of its first tensor; or 0."""
    x, y = split(batch)
    return _length(y) or _length(x)


def has_items(batch: Any) -> bool:  # noqa: ANN401
    """Whether its items can be taken apart: every tensor in it has one entry for each."""
    lengths = set[int]()
    mapped(batch, lambda tensor: (lengths.add(len(tensor) if tensor.ndim else 0), tensor)[1])
    return lengths == {n_items(batch)}


def first_items(value: Any, n: int, size: int) -> Any:  # noqa: ANN401
    """The first ``n`` of the ``size`` items of a batch."""
    if isinstance(value, Tensor):
        return value[:n]
    if isinstance(value, Mapping):
        return {k: first_items(v, n, size) for k, v in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, tuple | list):
        parts = cast("Sequence[Any]", value)
        if len(parts) == size and not any(isinstance(part, Tensor) for part in parts):
            return _like(value, list(parts[:n]))  # file names, say
        return _like(value, [first_items(part, n, size) for part in parts])
    return value


def _length(value: Any) -> int:  # noqa: ANN401
    found = list[int]()
    mapped(value, lambda tensor: (found.append(len(tensor) if tensor.ndim else 0), tensor)[1])
    return found[0] if found else 0


def _like(value: Any, parts: list[Any]) -> Any:  # noqa: ANN401
    """A list, tuple or named tuple of these parts."""
    make: Any = getattr(type(value), "_make", tuple if isinstance(value, tuple) else list)
    return make(parts)
