"""One call of an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from convlens.geometry import spans
from convlens.geometry.index_maps import IndexMap
from convlens.geometry.spans import Field, Known, Shape, Unknown
from convlens.geometry.tensor_fields import Entry


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Attributes:
        operator: name, such as ``aten.add.Tensor``.
        arguments: by name, defaults included.
        entry: gives what is known of a tensor before the call.
        constant: gives the value of a tensor that does not depend on the input; None if unknown.
        shape: of the first output.
        n_outputs: number of output tensors.
    """

    operator: str
    arguments: Mapping[str, Any]
    entry: Callable[[Tensor], Entry]
    constant: Callable[[Tensor], NDArray[Any] | None]
    shape: Shape
    n_outputs: int

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        return self.arguments[name]

    @property
    def input(self) -> str:
        """The name of the first argument: torch calls it ``self``, or ``input``."""
        return next(iter(self.arguments))

    @property
    def axes(self) -> int:
        """Number of axes in an operator's name, such as ``max_pool2d``."""
        name = self.operator.split(".")[1]
        return next(int(digit) for digit in "123" if f"{digit}d" in name)

    def field(self, name: str) -> Field:
        """The field of an argument; LookupError if it has none."""
        known = self.entry(self[name]).known
        if not isinstance(known, tuple):
            raise LookupError(name)
        return known

    def field_of(self, tensor: object) -> Field | None:
        """The field of a tensor; None if it does not depend on the input, or is no tensor."""
        known = self.entry(tensor).known if isinstance(tensor, Tensor) else None
        return known if isinstance(known, tuple) else None

    def value(self, tensor: Tensor) -> NDArray[Any] | None:
        """The value of a tensor; None if it is not known, or depends on the input."""
        return self.constant(tensor) if self.field_of(tensor) is None else None

    def sees(self, *names: str) -> bool:
        """Whether one of the arguments depends on the input."""
        return any(self.field_of(self.arguments.get(name)) is not None for name in names)

    def shape_of(self, name: str) -> Shape:
        """The shape of a tensor argument, before the call."""
        return self.entry(self[name]).shape

    def dim(self, name: str = "dim") -> int:
        """An argument that names one axis of the first argument, counted from 0."""
        return int(self[name]) % max(1, len(self.shape_of(self.input)))

    def all(self, known: Known) -> list[Known]:
        """The same for all outputs."""
        return [known] * self.n_outputs

    def unknown(self) -> Unknown:
        """The result of a call that is not followed."""
        return Unknown(self.operator)


Effect = Callable[[Call], "Known | list[Known]"]
"""Gives the field of the first output, or a list with those of all outputs."""


def each(value: int | Sequence[int], axes: int) -> list[int]:
    """One number for each axis: torch takes one for all of them too."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def through(field: Field, shape: Shape, reads: Mapping[int, IndexMap]) -> Field:
    """What an operation sees that reads ``reads[dim]`` along each of some axes."""
    for dim, index_map in reads.items():
        field = tuple(spans.read(seen, dim, shape[dim], index_map) for seen in field)
    return field


def over(field: Field, shape: Shape, dims: Sequence[int]) -> Field:
    """What sees everything along some axes, which are kept with length 1."""
    return tuple(spans.reduce_dims(seen, shape, dims) for seen in field)


def pointwise(call: Call) -> Known:
    """Each element is made of the elements at its place, broadcast."""
    tensors = [t for t in call.arguments.values() if isinstance(t, Tensor)]
    fields = [(f, call.entry(t).shape) for t in tensors if (f := call.field_of(t)) is not None]
    if len(fields) == 1 and fields[0][1] == call.shape:
        return fields[0][0]
    return spans.union(fields, call.shape)


def everywhere(call: Call) -> list[Known]:
    """Pointwise with several outputs, such as ``frexp``."""
    return call.all(pointwise(call))


def valueless(_: Call) -> Known:
    """The output does not depend on the input's values."""
    return None
