"""Finds the containers and tensors that a model refers to, and restores them."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST_OBJECTS = 100_000
"""Most objects to visit; those nearest to the model come first."""

MOST_HOPS = 2
"""Most plain objects and functions in a row to follow from a module."""

ATOMS = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, np.ndarray)

Container = dict[Any, Any] | list[Any] | deque[Any] | set[Any] | types.CellType
CONTAINERS = (dict, list, deque, set, types.CellType)


class Reachable:
    """What a model refers to through attributes, containers, objects and closures of hooks.

    Objects of convlens are not followed: its watchers write in other threads.

    Attributes:
        containers: dictionaries (also of attributes), lists, sets, deques, closure cells.
        tensors: parameters, buffers and all others.
        generators: random number generators.
    """

    def __init__(self, model: nn.Module) -> None:
        self.containers: list[Container] = []
        self.tensors: list[Tensor] = []
        self.generators: list[torch.Generator] = []
        held: dict[int, Any] = {}  # by id; held so that no id() is reused
        waiting: deque[tuple[Any, int]] = deque([(model, 0)])
        while waiting and len(held) < MOST_OBJECTS:
            thing, hops = waiting.popleft()
            if not isinstance(thing, ATOMS) and id(thing) not in held:
                held[id(thing)] = thing
                waiting.extend(self._keep(thing, hops))

    def _keep(self, thing: Any, hops: int) -> Iterator[tuple[Any, int]]:  # noqa: ANN401
        """Keep a container or tensor; yield what it holds."""
        if isinstance(thing, Tensor):
            self.tensors.append(thing)
        elif isinstance(thing, torch.Generator):
            self.generators.append(thing)
        elif isinstance(thing, CONTAINERS):
            self.containers.append(thing)
            yield from ((value, hops) for value in contents(thing))
        elif isinstance(thing, tuple | frozenset):
            yield from ((value, hops) for value in thing)
        elif isinstance(thing, nn.Module):
            yield vars(thing), 0
        elif hops < MOST_HOPS and not type(thing).__module__.startswith("convlens."):
            yield from ((value, hops + 1) for value in _held_by(thing))


def _held_by(thing: Any) -> list[Any]:  # noqa: ANN401
    """What an object, a function or a method holds."""
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, types.FunctionType):
        named = (thing.__globals__.get(name) for name in thing.__code__.co_names)
        variables = [value for value in named if isinstance(value, CONTAINERS)]
        return [*(thing.__closure__ or ()), thing.__defaults__, thing.__kwdefaults__, *variables]
    attributes: object = getattr(thing, "__dict__", None)
    return [attributes] if isinstance(attributes, dict) else []


def contents(container: Container) -> list[Any]:
    """The contents of a container, in order."""
    if isinstance(container, dict):
        return list(container.values())
    if isinstance(container, types.CellType):
        try:
            return [container.cell_contents]
        except ValueError:  # not filled yet
            return []
    return list(container)


class ContainerState:
    """The contents of a container, to be restored."""

    def __init__(self, container: Container) -> None:
        self._container, self._values = container, contents(container)
        self._keys = list(container) if isinstance(container, dict) else []

    def restore(self) -> None:
        """Restore the contents in place, if anything changed."""
        container, now = self._container, contents(self._container)
        same = len(now) == len(self._values) and all(map(_is, now, self._values))
        if same and (not isinstance(container, dict) or list(container) == self._keys):
            return
        if isinstance(container, types.CellType):
            if self._values:
                container.cell_contents = self._values[0]
            return
        container.clear()
        if isinstance(container, dict):
            container.update(zip(self._keys, self._values, strict=True))
        elif isinstance(container, set):
            container.update(self._values)
        else:
            container.extend(self._values)

    def replace(self, stands: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Replace tensors by their stand-ins."""
        container = self._container
        for i, value in enumerate(self._values):
            new = _replaced(value, stands)
            if new is value or isinstance(container, set):
                continue
            if isinstance(container, dict):
                container[self._keys[i]] = new
            elif isinstance(container, types.CellType):
                container.cell_contents = new
            else:
                container[i] = new


def _is(one: object, other: object) -> bool:
    return one is other


def _replaced(value: Any, stands: Mapping[int, tuple[Tensor, Tensor]]) -> Any:  # noqa: ANN401
    """The stand-in of a tensor, or a tuple with stand-ins."""
    if isinstance(value, Tensor):
        return stands[id(value)][1] if id(value) in stands else value
    if not isinstance(value, tuple):
        return value
    items = [_replaced(item, stands) for item in value]
    if all(map(_is, items, value)):
        return value
    make: Any = getattr(type(value), "_make", type(value))  # of a named tuple
    return make(items)
