"""Batches from a loader or one that is given, with the loader left as it was."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from convlens.core.wording import type_name
from convlens.errors import ArgumentError
from convlens.execution import same_random

MOST = 8
"""Batches that are taken from a loader."""


@contextmanager
def untouched(data: object) -> Generator[None]:
    """Restore the random generators and plain attributes of a loader and its samplers."""
    parts = [data]
    for name in ("sampler", "batch_sampler"):
        part = getattr(data, name, None)
        parts += [part, getattr(part, "sampler", None)]
    own = {id(part): part for part in parts if hasattr(part, "__dict__")}
    generators = [
        g for p in own.values() if isinstance(g := getattr(p, "generator", None), torch.Generator)
    ]
    with ExitStack() as stack:
        stack.enter_context(same_random((), generators))
        for part in own.values():
            stack.callback(_restore, part, dict(vars(part)))
        yield


def _restore(part: object, state: Mapping[str, object]) -> None:
    vars(part).clear()
    vars(part).update(state)


def batches_of(data: object, seconds: float) -> list[Any]:
    """The first batches of a loader, or the one batch that was given.

    Raises:
        ArgumentError: if it is an iterator, which can be read only once, or empty.
    """
    if is_batch(data):
        return [data]
    if isinstance(data, Iterator):
        raise ArgumentError(
            f"data is {type_name(data)}, an iterator that can be read only once; give a batch, "
            "next(iterator), or the loader itself."
        )
    if not isinstance(data, Iterable):
        raise ArgumentError(
            f"data must be a batch (x, y) or a loader of batches, got {data!r:.60}."
        )
    found, until = list[Any](), time.perf_counter() + seconds
    for batch in cast("Iterable[Any]", data):
        found.append(batch)
        if len(found) == MOST or time.perf_counter() > until:
            break
    if not found:
        raise ArgumentError("data is a loader without a batch; is its dataset empty?")
    return found


def is_batch(data: object) -> bool:
    """Whether it is one batch: a tensor, a mapping, or a tuple or list that begins with one."""
    if isinstance(data, Tensor | Mapping):
        return True
    return isinstance(data, tuple | list) and bool(data) and isinstance(data[0], Tensor | Mapping)


def split(batch: Any) -> tuple[Any, Any]:  # noqa: ANN401 — whatever a loader gives
    """Inputs and targets of a batch; None without targets.

    The last entry of a tuple is the targets; of a mapping ``labels``, ``label``, ``target`` or
    ``targets``.
    """
    if isinstance(batch, Mapping):
        whole = cast("Mapping[str, Any]", batch)
        names = [n for n in ("labels", "label", "targets", "target", "y") if n in whole]
        if not names:
            return whole, None
        return {k: v for k, v in whole.items() if k != names[0]}, whole[names[0]]
    if isinstance(batch, tuple | list):
        parts = cast("Sequence[Any]", batch)
        if len(parts) == 1:
            return parts[0], None
        return (parts[0] if len(parts) == 2 else tuple(parts[:-1])), parts[-1]
    return batch, None


def call(model: torch.nn.Module, x: Any) -> Any:  # noqa: ANN401
    """The model's output for the inputs of a batch."""
    if isinstance(x, Mapping):
        return model(**cast("Mapping[str, Any]", x))
    return model(*x) if isinstance(x, tuple) else model(x)


def first_items(value: Any, n: int) -> Any:  # noqa: ANN401
    """The first items of a batch."""
    if isinstance(value, Tensor):
        return value[:n]
    if isinstance(value, Mapping):
        return {k: first_items(v, n) for k, v in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, tuple | list):
        parts = [first_items(v, n) for v in cast("Sequence[Any]", value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def on_device(value: Any, device: torch.device) -> Any:  # noqa: ANN401
    """The same on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {k: on_device(v, device) for k, v in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, tuple | list):
        parts = [on_device(v, device) for v in cast("Sequence[Any]", value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def size_of(value: Any) -> int:  # noqa: ANN401
    """How many items a batch has, 0 if that cannot be said."""
    if isinstance(value, Tensor):
        return len(value) if value.ndim else 0
    if isinstance(value, Mapping):
        return max(map(size_of, cast("Mapping[str, Any]", value).values()), default=0)
    if isinstance(value, tuple | list):
        return max(map(size_of, cast("Sequence[Any]", value)), default=0)
    return 0
