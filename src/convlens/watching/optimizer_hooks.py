"""Tells watchers of every step that an optimizer of torch makes.

torch's hooks for all optimizers are a dictionary that a step iterates over: changing it meanwhile,
in another thread, would end that step. So one pair of hooks is registered and stays; the watchers
come and go in a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock, get_ident
from typing import Any, Protocol
from weakref import ref

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

Closure = Callable[..., Any]


class StepListener(Protocol):
    """Receives a call before and after each optimizer step; its methods must not raise."""

    def before_step(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        """A step with this closure begins; returns the closure to call instead, or the same."""
        ...

    def after_step(self, optimizer: Optimizer) -> None:
        """A step was made."""
        ...


class StepHooks:
    """The hooks, and who is told."""

    def __init__(self) -> None:
        self._listeners: tuple[ref[StepListener], ...] = ()
        self._not_told: dict[int, tuple[ref[StepListener], ...]] = {}  # by thread
        # In a step that is compiled they run between its graphs: torch breaks it there anyway.
        # Imports torch._dynamo, as making an optimizer does: so it is called before the loop.
        outside: Any = torch.compiler.disable
        register_optimizer_step_pre_hook(outside(self._before))
        register_optimizer_step_post_hook(outside(self._after))

    def add(self, listener: StepListener) -> None:
        """Tell this listener too, from the next step on."""
        with _ONE_AT_A_TIME:
            self._listeners = (*self._listeners, ref(listener))

    def remove(self, listener: StepListener) -> None:
        """Tell this listener no more."""
        with _ONE_AT_A_TIME:
            self._listeners = tuple(r for r in self._listeners if r() not in (None, listener))

    @contextmanager
    def for_new_listeners(self) -> Generator[None]:
        """Tell those that listen already of no step that this thread makes meanwhile."""
        thread = get_ident()
        before = self._not_told.get(thread, ())
        self._not_told[thread] = self._listeners
        try:
            yield
        finally:
            self._not_told[thread] = before

    def _told(self) -> Iterator[StepListener]:
        not_told = self._not_told.get(get_ident(), ())
        found = [listener() for listener in self._listeners if listener not in not_told]
        return (listener for listener in found if listener is not None)

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        by_place = len(args) > 1  # the first one is the optimizer
        given = args[1] if by_place else kwargs.get("closure")
        closure = before = given if callable(given) else None
        for listener in self._told():
            closure = listener.before_step(optimizer, closure)
        if closure is before:
            return None
        if by_place:
            return (args[0], closure, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure}

    def _after(self, optimizer: Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG002
        for listener in self._told():
            listener.after_step(optimizer)


def step_hooks() -> StepHooks:
    """Those of this process, made the first time."""
    with _ONE_AT_A_TIME:  # or two threads would each have their own
        return _made_once()


_ONE_AT_A_TIME = Lock()


@cache
def _made_once() -> StepHooks:
    return StepHooks()
