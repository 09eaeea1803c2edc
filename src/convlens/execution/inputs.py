"""The inputs of a model: shapes or tensors, one or several, by position or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from numbers import Integral
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from convlens.errors import ArgumentError
from convlens.execution import shapes

Given = Sequence[int] | Tensor | Sequence[Any] | Mapping[str, Any]
"""A shape (N, C, …), a tensor, several of them in a sequence, or by the names of arguments."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of one forward pass.

    Attributes:
        args: by position; a shape stands for zeros.
        kwargs: by name.
        shapes: of every input. Inputs with as many images as the first are batches.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, *args: Any, **kwargs: Any) -> Inputs:  # noqa: ANN401
        """Arguments as a model was called with."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return cls(args, kwargs, tuple(tuple(t.shape) for t in tensors))

    @property
    def n(self) -> int:
        """N of the first input."""
        return self.shapes[0][0]

    def shapes_for(self, n: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of every input for a batch of ``n``."""
        return tuple(self._batch(shape, n) for shape in self.shapes)

    def _batch(self, shape: tuple[int, ...], n: int) -> tuple[int, ...]:
        return (n, *shape[1:]) if shape[:1] == (self.n,) else shape

    def make(self, n: int, like: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments for a batch of ``n``: parts of the given tensors, else zeros.

        Args:
            n: images.
            like: gives the type and device of zeros for a shape.
        """

        def made(leaf: Any) -> Any:  # noqa: ANN401
            if isinstance(leaf, _Shape):
                return torch.zeros(self._batch(leaf.sizes, n), dtype=like.dtype, device=like.device)
            if not isinstance(leaf, Tensor):
                return leaf
            shape = self._batch(tuple(leaf.shape), n)
            if n <= self.n:
                return leaf.detach()[:n].clone() if shape != leaf.shape else leaf.detach().clone()
            return torch.zeros(shape, dtype=leaf.dtype, device=leaf.device)

        return tuple(tree_map(made, list(self.args))), tree_map(made, dict(self.kwargs))

    def n_bytes(self, n: int, tensors: Sequence[Tensor]) -> int:
        """Bytes of all inputs for a batch of ``n``; ``tensors`` are the model's."""
        like = self.like(tensors)
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        kinds = [t if isinstance(t, Tensor) else like for t in leaves if _is_input(t)]
        sizes = zip(kinds, self.shapes_for(n), strict=True)
        return sum(kind.element_size() * prod(shape) for kind, shape in sizes)

    def like(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor whose type zeros get: the first floating input, or else of the model's."""
        given = [t for t in tree_leaves((self.args, dict(self.kwargs))) if isinstance(t, Tensor)]
        real = [t for t in [*given, *tensors] if t.is_floating_point()]
        return real[0] if real else torch.empty(0)


class _Shape:
    """A shape among arguments; a tuple would be several arguments."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes


def read_inputs(given: object, name: str = "input_shape") -> Inputs:
    """Read a model's inputs.

    Args:
        given: a shape (N, C, …) or a tensor; a sequence of them for several inputs, a mapping for
            inputs by name. Other values in it, such as None or True, are passed on.
        name: the argument's name.

    Raises:
        ArgumentError: if there is no shape in it, or a wrong one.
    """
    if isinstance(given, Tensor) or _is_shape(given) or not isinstance(given, Sequence | Mapping):
        sizes = shapes.check_input(given, name)
        return Inputs((given if isinstance(given, Tensor) else _Shape(sizes),), {}, (sizes,))
    if isinstance(given, str | bytes) or not _holds_inputs(given):
        shapes.check_input(given, name)  # raises
    read = _read(given, name)
    leaves = filter(_is_input, tree_leaves(read))
    found = tuple(tuple(t.shape) if isinstance(t, Tensor) else t.sizes for t in leaves)
    if not found or not all(found[:1]):
        raise ArgumentError(
            f"{name}={shapes.brief(given)} holds no shape; give a shape such as (1, 3, 224, 224) "
            "or a tensor for each input."
        )
    if isinstance(given, Mapping):
        return Inputs((), read, found)
    return Inputs(tuple(read), {}, found)


def _is_input(leaf: object) -> bool:
    return isinstance(leaf, Tensor | _Shape)


def _read(value: Any, name: str) -> Any:  # noqa: ANN401
    """Replace each shape by a leaf."""
    if isinstance(value, Tensor):
        return value
    if _is_shape(value):
        return _Shape(shapes.check_input(value, name))
    if isinstance(value, Mapping):
        return {str(key): _read(item, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_read(item, name) for item in value]
    return value


def _is_shape(value: object) -> TypeGuard[Sequence[int]]:
    """Whether a value is a sequence of whole numbers."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and len(value) > 0
        and all(isinstance(size, Integral) and size is not True for size in value)
    )


def _holds_inputs(value: Sequence[Any] | Mapping[str, Any]) -> bool:
    """Whether a sequence or mapping holds a tensor or a shape, at any depth."""
    items = value.values() if isinstance(value, Mapping) else value
    return any(
        isinstance(item, Tensor)
        or _is_shape(item)
        or (isinstance(item, list | tuple | Mapping) and _holds_inputs(item))
        for item in items
    )
