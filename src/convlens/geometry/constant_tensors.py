"""Values of tensors that do not depend on the input, such as masks and indices.

Tensors made without parameters and buffers are real during the pass. Those computed from them are
fake, and few operators need their values: when one does, they are computed from copies of the real
parameters and buffers.
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
    """Records operators that do not depend on the input; computes them when a value is needed."""

    def __init__(self) -> None:
        self._given: dict[int, Tensor] = {}
        self._random: dict[int, Tensor] = {}  # real, without a fixed value; by memory
        self._values: dict[int, Tensor | None] = {}
        self._waiting: list[tuple[OpOverload, Sequence[Any], Mapping[str, Any], object]] = []

    def given(self, fake: Tensor, real: Tensor) -> None:
        """A parameter or buffer, and the fake tensor in its place."""
        self._given[id(fake)] = real

    def ran(
        self, function: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: object
    ) -> None:
        """Record an operator that does not depend on the input."""
        given, outputs = _tensors((args, kwargs)), _tensors(out)
        if any(isinstance(t, FakeTensor) for t in (*given, *outputs)):
            self._waiting.append((function, args, kwargs, out))
        elif torch.Tag.nondeterministic_seeded not in function.tags and not any(
            memory_of(t) in self._random for t in given
        ):
            return
        # The rest is random, or a real tensor that a fake one was written into.
        self._random |= {memory_of(t): t for t in outputs if not isinstance(t, FakeTensor)}

    def value(self, tensor: Tensor) -> NDArray[Any] | None:
        """The value of a tensor that does not depend on the input; None if unknown."""
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
        """The current value."""
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
        known = not any(self._look(t) is None for t in given)
        results: list[Any] = [None] * len(outputs)
        if known and torch.Tag.nondeterministic_seeded not in function.tags:
            real_args, real_kwargs = tree_map_only(Tensor, self._look, (tuple(args), dict(kwargs)))
            results = _tensors(function(*real_args, **real_kwargs))
        elif function.overloadpacket.__name__ in _SHAPE_ONLY:
            first: Tensor = args[0]
            like = torch.empty(first.shape, dtype=first.dtype, device=first.device)
            results = [function(like, *args[1:], **kwargs)]
        for tensor, real in zip(outputs, results, strict=True):
            self._values[id(tensor)] = real


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


_SHAPE_ONLY = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
"""Operators that read only the shape of their first argument."""
