"""Values of the tensors that do not depend on the input: masks, indices, positions.

Most operators need none. Where one does, what was computed so far without the input is computed
again on the real parameters and buffers, on copies of them.
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


class Constants:
    """Keeps what was computed without the input, and computes it when a value is asked for."""

    def __init__(self) -> None:
        self._given: dict[int, Tensor] = {}
        self._values: dict[int, Tensor | None] = {}
        self._waiting: list[tuple[OpOverload, Sequence[Any], Mapping[str, Any], object]] = []

    def given(self, fake: Tensor, real: Tensor) -> None:
        """A parameter or buffer, and what stands in its place in the run."""
        self._given[id(fake)] = real

    def ran(
        self, function: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: object
    ) -> None:
        """An operator has run that does not depend on the input."""
        self._waiting.append((function, args, kwargs, out))

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
            return tensor
        if id(tensor) not in self._values and id(tensor) in self._given:
            real = self._given[id(tensor)].detach()
            known = real.device.type != "meta" and not isinstance(real, FakeTensor)
            self._values[id(tensor)] = real.clone() if known else None
        return self._values.get(id(tensor))

    def _compute(
        self, function: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: object
    ) -> None:
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        shaped = not any(self._look(t) is None for t in given)
        results: list[Any] = [None] * len(outputs)
        if shaped and torch.Tag.nondeterministic_seeded not in function.tags:
            real_args, real_kwargs = tree_map_only(Tensor, self._look, (tuple(args), dict(kwargs)))
            results = [
                leaf
                for leaf in tree_leaves(function(*real_args, **real_kwargs))
                if isinstance(leaf, Tensor)
            ]
        elif _shape_only(function):
            results = [function(*_shaped(args), **kwargs)]
        for tensor, real in zip(outputs, results, strict=True):
            self._values[id(tensor)] = real


_SHAPE_ONLY = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")


def _shape_only(function: OpOverload) -> bool:
    """Whether an operator reads only the shape of its first argument, and has one value."""
    return function.overloadpacket.__name__ in _SHAPE_ONLY


def _shaped(args: Sequence[Any]) -> list[Any]:
    """The arguments with a first one that has the same shape and any values."""
    first: Tensor = args[0]
    like = torch.empty(first.shape, dtype=first.dtype, device=first.device)
    return [like, *args[1:]]
