"""Leaves a watcher's hooks out of copies and pickles of the watched model."""

from __future__ import annotations

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
    """Leaves hooks out of what ``copy.deepcopy`` and ``pickle`` take of modules.

    Both ask for ``__getstate__``, on the object before its class. A watched module has one of its
    own, which leaves out itself too; several watchers share it.
    """

    def __init__(self) -> None:
        self._hooks: dict[nn.Module, set[int]] = {}

    def add(self, module: nn.Module, handle: RemovableHandle) -> None:
        """Leave this hook of the module out of copies."""
        own = vars(module).get(GETSTATE)
        if not isinstance(own, _StateWithoutHooks):
            own = vars(module)[GETSTATE] = _StateWithoutHooks(module)
        own.hooks.add(handle.id)
        self._hooks.setdefault(module, set()).add(handle.id)

    def clear(self) -> None:
        """Copies are as before; the hooks of other watchers are still left out."""
        for module, hooks in self._hooks.items():
            own = vars(module).get(GETSTATE)
            if isinstance(own, _StateWithoutHooks):
                own.hooks -= hooks
                if not own.hooks:
                    del vars(module)[GETSTATE]
        self._hooks.clear()


class _StateWithoutHooks:
    """A module's ``__getstate__`` that leaves out itself and some hooks, by their ids."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.hooks = set[int]()

    def __call__(self) -> dict[str, Any]:
        state = _own_state(self._module)
        state.pop(GETSTATE, None)
        for name in HOOKS:
            if name in state:
                kept = type(state[name])()
                kept.update((k, hook) for k, hook in state[name].items() if k not in self.hooks)
                state[name] = kept
        return state


def _own_state(module: nn.Module) -> dict[str, Any]:
    """What the module's class would give, its attribute ``__getstate__`` included."""
    state: Any = type(module).__getstate__(module)
    return dict(state) if isinstance(state, dict) else dict(vars(module))
