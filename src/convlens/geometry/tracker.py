"""Tracks the receptive field of every tensor during one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import keystr, tree_leaves, tree_leaves_with_path

from convlens.geometry.constants import Constants
from convlens.geometry.effects.calls import Call
from convlens.geometry.memory import Ledger
from convlens.geometry.operators import effect_of
from convlens.geometry.reach import Known, Unknown, input_field

Found = tuple[str, tuple[int, ...] | None, Known]
"""Name, shape (None: not one tensor) and field of a tensor."""


class FieldTracker:
    """Tracks what is known of each tensor; see `execution.Observer`.

    Args:
        operators: whether to keep each operator's output too, as ``module:operator``.

    Attributes:
        input_shape: (N, C, …) of the input that the fields are for.
        found: each module's output; of several tensors in it by ``name[0]``, ``name['key']`` and
            so on; the module itself is then last, with no shape.
    """

    def __init__(self, *, operators: bool = False) -> None:
        self._operators = operators
        self.input_shape: tuple[int, ...] = ()

    def begin(self, tensor: Tensor) -> None:
        """A run begins, and an earlier one is forgotten; the input sees itself."""
        self._ledger, self._constants = Ledger(), Constants()
        self.found: list[Found] = []
        self.input_shape = tuple(tensor.shape)
        self._ledger.note(tensor, input_field(self.input_shape))

    def constant(self, fake: Tensor, real: Tensor) -> None:
        """A parameter or buffer, and what stands in its place."""
        self._constants.given(fake, real)

    def enter(self, name: str, module: nn.Module, given: Sequence[Tensor]) -> None:
        """Nothing to do."""

    def leave(self, name: str, module: nn.Module, output: object) -> None:  # noqa: ARG002
        """A module has run: keep what its output sees."""
        paths = [(p, t) for p, t in tree_leaves_with_path(output) if isinstance(t, Tensor)]
        for path, tensor in paths:
            self._find(name if len(paths) == 1 else name + keystr(path), tensor)
        if len(paths) != 1:
            self.found.append((name, None, Unknown(f"an output of {len(paths)} tensors")))

    def _find(self, name: str, tensor: Tensor) -> None:
        self.found.append((name, tuple(tensor.shape), self._ledger.entry(tensor).known))

    def operator(
        self,
        function: OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: object,
        layer: str,
    ) -> None:
        """An operator has run: note what its outputs see."""
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        arguments = _bind(function, args, kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = self._after(function, arguments, inputs, outputs)
        if all(each is None for each in known):
            self._constants.ran(function, args, kwargs, out)
        moves = torch.Tag.inplace_view in function.tags  # it changes where a tensor looks
        written = [] if moves else _written(function, arguments)
        for tensor, field in zip(outputs, known, strict=True):
            if any(tensor is target for target in written):
                self._ledger.overwrite(tensor, field, str(function))
            else:
                self._ledger.note(tensor, field)
            if self._operators:
                self._find(f"{layer}:{function.overloadpacket.__name__}", tensor)
        for target in written:
            if not any(target is tensor for tensor in outputs):
                reads = any(self._ledger.entry(tensor).known is not None for tensor in inputs)
                changed = Unknown(str(function)) if reads else None
                self._ledger.overwrite(target, changed, str(function))

    def _after(
        self,
        function: OpOverload,
        arguments: Mapping[str, Any],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> list[Known]:
        fields = [self._ledger.entry(tensor).known for tensor in inputs]
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
            self._ledger.entry,
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


def _written(
    function: Any,  # noqa: ANN401
    arguments: Mapping[str, Any],
) -> list[Tensor]:
    """The arguments that an operator changes."""
    names = [a.name for a in function._schema.arguments if a.alias_info and a.alias_info.is_write]
    leaves = tree_leaves([arguments[name] for name in names])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
