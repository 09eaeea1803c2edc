"""The operators through which compiled graphs reach the kernels.

A graph that `torch.compile` made holds tensors and constants only. So the buffers are allocated
before and passed in, the current row is in a tensor (a Python number would be a constant, and a new
one a new graph), and the operators find their watcher by a number. Each operator declares which of
its arguments it changes; the order of the graph follows from that.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from convlens.watching.compiled import CompiledHooks

NO_AXIS = -1


@cache
def watchers() -> WeakValueDictionary[int, CompiledHooks]:
    """The watchers by their numbers, which is all that an operator can be given of them."""
    return WeakValueDictionary()


def register() -> None:
    """Register ``convlens::enter_``, ``convlens::sketch_`` and ``convlens::leave_``, once."""
    with _ONE_AT_A_TIME:  # two threads that begin to watch would both register them
        watchers()
        _register()


_ONE_AT_A_TIME = Lock()


@cache
def _register() -> None:
    # Not in a CUDA graph, which would replay it without its Python.
    enter = torch.library.custom_op(
        "convlens::enter_", _enter, mutates_args=("cursors", "buffers"),
        tags=(torch.Tag.cudagraph_unsafe,),
    )  # fmt: skip
    changed = ("counts", "exact", "moments", "flags")
    sketch = torch.library.custom_op("convlens::sketch_", _sketch, mutates_args=changed)
    leave = torch.library.custom_op("convlens::leave_", _leave, mutates_args=("cursors",))
    for operator in (enter, sketch, leave):
        operator.register_fake(_no_result)


def _no_result(*args: object) -> None:
    """What an operator returns, on fake tensors too."""


def _enter(
    cursors: list[Tensor], buffers: list[Tensor], inputs: list[Tensor], watcher: int
) -> None:
    found = watchers().get(watcher)
    if found is None:
        _count_nothing(cursors)
    else:
        found.enter_compiled(cursors, buffers, inputs)


def _sketch(
    x: Tensor,
    counts: Tensor,
    exact: Tensor,
    moments: Tensor,
    flags: Tensor,
    cursor: Tensor,
    axis: int,
    watcher: int,
    slot: int,
) -> None:
    found = watchers().get(watcher)
    if found is not None:
        buffers = (counts, exact, moments, flags)
        found.sketch_compiled(slot, x, None if axis == NO_AXIS else axis, buffers, cursor)


def _leave(cursors: list[Tensor], watcher: int) -> None:
    found = watchers().get(watcher)
    if found is None:
        _count_nothing(cursors)
    else:
        found.leave_compiled(cursors)


def _count_nothing(cursors: list[Tensor]) -> None:
    for cursor in cursors:
        cursor.fill_(-1)
