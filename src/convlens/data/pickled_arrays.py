"""CIFAR's files are pickles; here they are read as data, and nothing in them is called.

A pickle is a program for a stack machine, and Python's own machine imports and calls what the
program names. This one knows the instructions that Python 2 wrote for dictionaries, lists, numbers,
texts and uint8 arrays, and makes just those.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convlens.errors import DataError

ARRAY = "numpy.core.multiarray _reconstruct"
DTYPE = "numpy dtype"
NAMES = (ARRAY, DTYPE, "numpy ndarray")
"""The functions and classes that a pickled array names. They are only compared, never looked up."""

TEXTS = {"SHORT_BINSTRING", "BINSTRING", "BINUNICODE"}
PUSHES = {"BININT", "BININT1", "BININT2", "NONE", "NEWTRUE", "NEWFALSE", *TEXTS}
"""Instructions whose value goes on the stack as it is."""

CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def read_pickle(data: bytes, name: str) -> Any:  # noqa: ANN401
    """What a pickle of protocol 1 or 2 holds, made by Python 2: texts, numbers, uint8 arrays.

        >>> import pickle
        >>> from convlens.data.pickled_arrays import read_pickle
        >>> read_pickle(pickle.dumps({"labels": [3, 1]}, protocol=2), "test_batch")
        {'labels': [3, 1]}
        >>> read_pickle(pickle.dumps(print), "test_batch")
        Traceback (most recent call last):
        convlens.errors.DataError: test_batch ...

    Args:
        data: the whole file.
        name: the file in messages.

    Raises:
        DataError: if it is damaged or holds anything else.
    """
    try:
        return _Machine().run(data)
    except Exception as error:  # whatever a damaged program leads to
        raise DataError(
            f"{name} is damaged or not a file of CIFAR ({error}); nothing in it was run."
        ) from error


@dataclass
class _Named:
    """A name, an array or a dtype, of which only the name is kept."""

    name: str


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.steps: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _: None,
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "BINGET": lambda key: self.stack.append(self.memo[key]),
            "LONG_BINGET": lambda key: self.stack.append(self.memo[key]),
            "APPEND": lambda _: self._extend(self._last(1)),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "SETITEM": lambda _: self._set_items(self._last(2)),
            "SETITEMS": lambda _: self._set_items(self._since_mark()),
            "TUPLE": lambda _: self.stack.append(tuple(self._since_mark())),
            "TUPLE1": lambda _: self.stack.append(tuple(self._last(1))),
            "TUPLE2": lambda _: self.stack.append(tuple(self._last(2))),
            "TUPLE3": lambda _: self.stack.append(tuple(self._last(3))),
            "GLOBAL": self._name,
            "REDUCE": lambda _: self._call(),
            "BUILD": lambda _: self._build(),
        }

    def run(self, data: bytes) -> Any:  # noqa: ANN401
        """Follow the program to its end."""
        for opcode, value, _ in pickletools.genops(data):  # it ends with STOP, or raises
            if opcode.name in PUSHES:
                self.stack.append(CONSTANTS.get(opcode.name, value))
            elif opcode.name in self.steps:
                self.steps[opcode.name](value)
            elif opcode.name != "STOP":
                raise ValueError(f"it has the instruction {opcode.name}")
        return self.stack.pop()

    def _put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def _since(self, start: int) -> list[Any]:
        if start < 0:
            raise ValueError("its stack is empty")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _last(self, n: int) -> list[Any]:
        return self._since(len(self.stack) - n)

    def _since_mark(self) -> list[Any]:
        return self._since(self.marks.pop())

    def _top(self, kind: type[Any]) -> Any:  # noqa: ANN401
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"it has a {type(self.stack[-1]).__name__} in a wrong place")
        return self.stack[-1]

    def _extend(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def _set_items(self, values: list[Any]) -> None:
        self._top(dict).update(zip(values[::2], values[1::2], strict=True))

    def _name(self, name: str) -> None:
        if name not in NAMES:
            raise ValueError(f"it wants to call {name!r}")
        self.stack.append(name)

    def _call(self) -> None:
        """An array and a dtype begin as their name; what they are follows with BUILD."""
        name, arguments = self._last(2)
        if name == DTYPE and arguments[0] != "u1":
            raise ValueError(f"it has an array of {arguments[0]}; expected u1, which is uint8")
        if name not in (ARRAY, DTYPE):
            raise ValueError(f"it wants to call {name!r}")
        self.stack.append(_Named(name))

    def _build(self) -> None:
        """An array's state is (version, shape, dtype, whether in Fortran's order, its bytes)."""
        (state,) = self._last(1)
        if self._top(_Named).name == DTYPE:
            return
        _, shape, dtype, fortran, values = state
        if dtype != _Named(DTYPE):
            raise TypeError("it has an array without a dtype")
        # pickletools makes a text of the bytes, one character of each
        array = np.frombuffer(values.encode("latin-1"), np.uint8)
        self.stack[-1] = array.reshape(shape, order="F" if fortran else "C")
