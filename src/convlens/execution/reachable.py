"""Finds the containers and tensors that a model refers to, and restores them."""

from __future__ import annotations

import dis
import random
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST_OBJECTS = 100_000
"""Most objects to visit; those nearest to the model come first."""

MOST_HOPS = 4
"""Most plain objects and functions in a row to follow from a module."""

ATOMS = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType)

LIBRARIES = ("builtins", "collections", "convlens", "numpy", "torch", "typing")
"""Packages whose classes and functions keep nothing of a model; watchers write on meanwhile."""

STATES: Mapping[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
    np.random.RandomState: (lambda r: r.get_state(), lambda r, state: r.set_state(state)),
    np.random.Generator: (
        lambda r: r.bit_generator.state,
        lambda r, state: setattr(r.bit_generator, "state", state),
    ),
    np.ndarray: (
        np.copy,
        lambda array, before: np.copyto(array, before) if _wrote(array) else None,
    ),
    bytearray: (bytes, lambda array, before: array.__setitem__(slice(None), before)),
}
"""Of objects that a forward pass changes in place: how their state is read, and put back."""


def _wrote(array: np.ndarray[Any, Any]) -> bool:
    return array.flags.writeable


class Variables:
    """The attributes of a class, the slots of an object, or some of a module's global variables."""

    def __init__(self, owner: Any, names: Iterable[str]) -> None:  # noqa: ANN401
        self._owner, self._names = owner, tuple(names)

    def items(self) -> dict[str, Any]:
        """Those that are set."""
        if isinstance(self._owner, dict):
            return {n: self._owner[n] for n in self._names if n in self._owner}
        if isinstance(self._owner, type):
            return {n: v for n, v in vars(self._owner).items() if not _is_code(n, v)}
        return {n: getattr(self._owner, n) for n in self._names if hasattr(self._owner, n)}

    def set(self, name: str, value: object) -> None:
        """Set one."""
        if isinstance(self._owner, dict):
            self._owner[name] = value
        else:
            setattr(self._owner, name, value)

    def restore(self, before: Mapping[str, Any]) -> None:
        """Set those that differ, and remove those that were not there."""
        now = self.items()
        for name, value in before.items():
            if name not in now or now[name] is not value:
                self.set(name, value)
        for name in now.keys() - before.keys():
            if isinstance(self._owner, dict):
                del self._owner[name]
            else:
                delattr(self._owner, name)


def _is_code(name: str, value: object) -> bool:
    return name.startswith("__") or callable(value) or hasattr(type(value), "__get__")


Container = dict[Any, Any] | list[Any] | deque[Any] | set[Any] | types.CellType | Variables
CONTAINERS = (dict, list, deque, set, types.CellType, Variables)


class Reachable:
    """What a model refers to: attributes, containers, objects, classes, functions.

    Objects and functions of `LIBRARIES` are not followed.

    Args:
        root: a model, or a list of models and other objects.

    Attributes:
        containers: dictionaries (also of attributes), lists, sets, deques, closure cells, and the
            variables of classes, objects with slots and modules.
        tensors: parameters, buffers and all others.
        states: objects that are changed in place, with their state and how to restore it.
    """

    def __init__(self, root: object) -> None:
        self.containers: list[Container] = []
        self.tensors: list[Tensor] = []
        self.states: list[tuple[Any, Any, Callable[[Any, Any], Any]]] = []
        held: dict[int, Any] = {}  # by id; held so that no id() is reused
        waiting: deque[tuple[Any, int]] = deque([(root, 0)])
        while waiting and len(held) < MOST_OBJECTS:
            thing, hops = waiting.popleft()
            if not isinstance(thing, ATOMS) and id(thing) not in held:
                held[id(thing)] = thing
                waiting.extend(self._keep(thing, hops))
                if isinstance(thing, nn.Module):
                    waiting.extend((kind, 0) for kind in self._classes(type(thing), held))

    def restore_states(self) -> None:
        """Put the states of `states` back."""
        for thing, state, put_back in self.states:
            put_back(thing, state)

    def _keep(self, thing: Any, hops: int) -> Iterator[tuple[Any, int]]:  # noqa: ANN401
        """Keep a container, a tensor or a state; yield what it holds."""
        state = next((pair for kind, pair in STATES.items() if isinstance(thing, kind)), None)
        if state is not None:
            self.states.append((thing, state[0](thing), state[1]))
        elif isinstance(thing, Tensor):
            self.tensors.append(thing)
        elif isinstance(thing, CONTAINERS):
            self.containers.append(thing)
            yield from ((value, hops) for value in contents(thing))
        elif isinstance(thing, tuple | frozenset):
            yield from ((value, hops) for value in thing)
        elif isinstance(thing, nn.Module):
            yield vars(thing), 0
        elif hops < MOST_HOPS and not _of_library(thing):
            yield from ((value, hops + 1) for value in _held_by(thing))

    @staticmethod
    def _classes(kind: type, held: dict[int, Any]) -> Iterator[Any]:
        """A module's class and those that it derives from: their variables, and their functions."""
        for each in kind.__mro__:
            if not _of_library(each) and id(each) not in held:
                held[id(each)] = each
                yield Variables(each, ())
                yield from (f for f in vars(each).values() if isinstance(f, types.FunctionType))


def _of_library(thing: Any) -> bool:  # noqa: ANN401
    named = thing if isinstance(thing, type | types.FunctionType) else type(thing)
    if isinstance(thing, types.MethodType | partial):
        return False
    return str(named.__module__).partition(".")[0] in LIBRARIES


def _held_by(thing: Any) -> list[Any]:  # noqa: ANN401
    """What an object, a function or a method holds."""
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, types.FunctionType):
        used = Variables(thing.__globals__, _globals_of(thing.__code__))
        return [*(thing.__closure__ or ()), thing.__defaults__, thing.__kwdefaults__, used]
    slots = [vars(kind).get("__slots__", ()) for kind in type(thing).__mro__]
    names = [n for slot in slots for n in ([slot] if isinstance(slot, str) else slot)]
    attributes: object = getattr(thing, "__dict__", None)
    return [Variables(thing, names)] * bool(names) + [attributes] * isinstance(attributes, dict)


def _globals_of(code: types.CodeType) -> set[str]:
    """The global names that a function uses, also in its comprehensions and inner functions."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname.endswith("_GLOBAL")}
    inner = (_globals_of(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return names.union(*inner)


def contents(container: Container) -> list[Any]:
    """The contents of a container, in order."""
    if isinstance(container, dict):
        return list(container.values())
    if isinstance(container, Variables):
        return list(container.items().values())
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
        self._keys: list[Any] = []
        if isinstance(container, dict | Variables):
            self._keys = list(container if isinstance(container, dict) else container.items())

    def restore(self) -> None:
        """Restore the contents in place, if anything changed."""
        container, now = self._container, contents(self._container)
        if isinstance(container, Variables):
            container.restore(dict(zip(self._keys, self._values, strict=True)))
            return
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
            if isinstance(container, Variables):
                container.set(self._keys[i], new)
            elif isinstance(container, dict):
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
