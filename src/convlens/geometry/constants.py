"""Values of the tensors that do not depend on the input: masks, indices, positions.

What is made without parameters and buffers is real in the traced pass. What is computed from them
is fake, and most operators need no value of it. Where one does, what was computed so far without
the input is computed again on copies of the real parameters and buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._pytree import tree_leaves, tree_map_only

from convlens.execution import memory_of


class Constants:
    """Keeps what was computed without the input, and computes it when a value is asked for."""

    def __init__(self) -> None:
        self._given: dict[int, Tensor] = {}
        self._random: dict[int, Tensor] = {}  # real ones without a value that holds, by memory
        self._values: dict[int, Tensor | None] = {}
        self._waiting: list[tuple[OpOverload, Sequence[Any], Mapping[str, Any], object]] = []

    def given(self, fake: Tensor, real: Tensor) -> None:
        """A parameter or buffer, and what stands in its place in the run."""
        self._given[id(fake)] = real

    def ran(
        self, function: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: object
    ) -> None:
        """An operator has run that does not depend on the input."""
        given, outputs = _tensors((args, kwargs)), _tensors(out)
        if any(isinstance(t, FakeTensor) for t in (*given, *outputs)):
            self._waiting.append((function, args, kwargs, out))
        elif torch.Tag.nondeterministic_seeded not in function.tags and not any(
            memory_of(t) in self._random for t in given
        ):
            return
        # What is left is random, or a real tensor that a fake one was written into.
        self._random |= {memory_of(t): t for t in outputs if not isinstance(t, FakeTensor)}

    def value(self, tensor: Tensor) -> NDArray[Any] | None:
        """The value of a tensor that does not depend on the input; None if it is not known."""
        waiting, self._waiting = self._waiting, []
        with unset_fake_temporarily(), torch.no_grad():
            for function, args, kwargs, out in waiting:
                self._compute(function, args, kwargs, out)
            real = self._look(tensor)
            if real is None:
                return None
            real = real.detach().cpu()
            return (real.double() if real.is_floating_point() else real).numpy()

    def _look(self, tensor: Tensor) -> Tensor | None:
        """A value as it is now; operators that write in place have written into it."""
        if not isinstance(tensor, FakeTensor):
            return None if memory_of(tensor) in self._random else tensor
        if id(tensor) not in self._values and id(tensor) in self._given:
            real = self._given[id(tensor)].detach()
            known = real.device.type != "meta" and not isinstance(real, FakeTensor)
            self._values[id(tensor)] = real.clone() if known else None
        return self._values.get(id(tensor))

    def _compute(
        self, function: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: object
    ) -> None:
        outputs, given = _tensors(out), _tensors((args, kwargs))
        shaped = not any(self._look(t) is None for t in given)
        results: list[Any] = [None] * len(outputs)
        if shaped and torch.Tag.nondeterministic_seeded not in function.tags:
            real_args, real_kwargs = tree_map_only(Tensor, self._look, (tuple(args), dict(kwargs)))
            results = _tensors(function(*real_args, **real_kwargs))
        elif _shape_only(function):
            results = [function(*_shaped(args), **kwargs)]
        for tensor, real in zip(outputs, results, strict=True):
            self._values[id(tensor)] = real


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


_SHAPE_ONLY = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")


def _shape_only(function: OpOverload) -> bool:
    """Whether an operator reads only the shape of its first argument, and has one value."""
    return function.overloadpacket.__name__ in _SHAPE_ONLY


def _shaped(args: Sequence[Any]) -> list[Any]:
    """The arguments with a first one that has the same shape and any values."""
    first: Tensor = args[0]
    like = torch.empty(first.shape, dtype=first.dtype, device=first.device)
    return [like, *args[1:]]
