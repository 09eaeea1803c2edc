"""Tracks the receptive field of every tensor during one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from convlens.execution import Observer, named_tensors, written_by
from convlens.geometry.constant_tensors import Constants
from convlens.geometry.operator_effects.calls import Call
from convlens.geometry.operators import effect_of
from convlens.geometry.spans import Known, Unknown, input_field
from convlens.geometry.tensor_fields import TensorFields

Found = tuple[str, tuple[int, ...] | None, Known]
"""Name, shape (None: not one tensor) and field of a tensor."""


class FieldTracker(Observer):
    """Tracks the receptive field of every tensor.

    Args:
        operators: whether to keep each operator's output too, as ``module:operator``.

    Attributes:
        input_shape: (N, C, …) of the input that the fields are for.
        found: each module's output. Several tensors have names such as ``name[0]`` or
            ``name['key']``; the module itself is then last, without a shape.
    """

    def __init__(self, *, operators: bool = False) -> None:
        self._operators = operators
        self.input_shape: tuple[int, ...] = ()

    def begin(self, tensor: Tensor) -> None:
        """A pass begins; an earlier one is forgotten."""
        self._fields, self._constants = TensorFields(), Constants()
        self.found: list[Found] = []
        self.input_shape = tuple(tensor.shape)
        self._fields.note(tensor, input_field(self.input_shape))

    def constant(self, fake: Tensor, real: Tensor) -> None:
        """A parameter or buffer, and the fake tensor in its place."""
        self._constants.given(fake, real)

    def leave(self, name: str, module: nn.Module, output: object) -> None:  # noqa: ARG002
        """Keep the fields of a module's output."""
        tensors = list(named_tensors(name, output))
        for key, tensor in tensors:
            self._find(key, tensor)
        if len(tensors) != 1:
            self.found.append((name, None, Unknown(f"an output of {len(tensors)} tensors")))

    def _find(self, name: str, tensor: Tensor) -> None:
        self.found.append((name, tuple(tensor.shape), self._fields.entry(tensor).known))

    def operator(
        self,
        function: OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: object,
        layer: str,
    ) -> None:
        """Note the fields of an operator's outputs."""
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        arguments = _bind(function, args, kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = self._after(function, arguments, inputs, outputs)
        if all(each is None for each in known):
            self._constants.ran(function, args, kwargs, out)
        moves = torch.Tag.inplace_view in function.tags  # such as squeeze_: only the view changes
        written = [] if moves else written_by(function, args, kwargs)
        for tensor, field in zip(outputs, known, strict=True):
            if any(tensor is target for target in written):
                self._fields.overwrite(tensor, field, str(function))
            else:
                self._fields.note(tensor, field)
            if self._operators:
                self._find(f"{layer}:{function.overloadpacket.__name__}", tensor)
        for target in written:
            if not any(target is tensor for tensor in outputs):
                reads = any(self._fields.entry(tensor).known is not None for tensor in inputs)
                changed = Unknown(str(function)) if reads else None
                self._fields.overwrite(target, changed, str(function))

    def _after(
        self,
        function: OpOverload,
        arguments: Mapping[str, Any],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> list[Known]:
        fields = [self._fields.entry(tensor).known for tensor in inputs]
        for field in fields:
            if isinstance(field, Unknown):
                return [field] * len(outputs)
        if not any(isinstance(field, tuple) for field in fields):
            return [None] * len(outputs)
        unknown = Unknown(str(function))
        effect = effect_of(function) if outputs else None
        if effect is None or any(0 in tensor.shape for tensor in [*inputs, *outputs[:1]]):
            return [unknown] * len(outputs)
        call = Call(
            str(function),
            arguments,
            self._fields.entry,
            self._constants.value,
            tuple(outputs[0].shape),
            len(outputs),
        )
        try:
            result = effect(call)
        except LookupError:  # it needs the field of an argument that has none here
            result = unknown
        if isinstance(result, list):
            return result
        return [result, *[unknown] * (len(outputs) - 1)]


def _bind(
    function: Any,  # noqa: ANN401
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Arguments by name, defaults included."""
    given = function._schema.arguments
    bound = {a.name: kwargs.get(a.name, a.default_value) for a in given[len(args) :]}
    return dict(zip([a.name for a in given], args, strict=False)) | bound
