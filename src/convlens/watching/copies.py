"""Copies and pickles of a watched model are without its hooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)
GETSTATE = "__getstate__"


class LeftOutOfCopies:
    """Has modules leave hooks out of what ``copy.deepcopy`` and ``pickle`` take of them.

    Both ask an object for ``__getstate__``, on the object itself before its class. While a module
    is watched it has one of its own, which is in no copy either.
    """

    def __init__(self) -> None:
        self._hooks: dict[nn.Module, set[int]] = {}

    def add(self, module: nn.Module, handle: RemovableHandle) -> None:
        """Leave this hook of the module out of copies."""
        if module not in self._hooks:
            whole: Callable[[], dict[str, Any]] = partial(_own_state, module)
            hooks = self._hooks[module] = set[int]()
            vars(module)[GETSTATE] = partial(_without, whole, hooks)
        self._hooks[module].add(handle.id)

    def clear(self) -> None:
        """Copies are as they were before."""
        for module in self._hooks:
            vars(module).pop(GETSTATE, None)
        self._hooks.clear()


def _own_state(module: nn.Module) -> dict[str, Any]:
    """What the module's class would give, its attribute ``__getstate__`` included."""
    state: Any = type(module).__getstate__(module)
    return dict(state) if isinstance(state, dict) else dict(vars(module))


def _without(whole: Callable[[], dict[str, Any]], hooks: set[int]) -> dict[str, Any]:
    state = whole()
    state.pop(GETSTATE, None)
    for name in HOOKS:
        if name in state:
            kept = type(state[name])()
            kept.update((key, hook) for key, hook in state[name].items() if key not in hooks)
            state[name] = kept
    return state
