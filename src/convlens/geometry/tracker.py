"""Follows the fields of all tensors through a run; see `tracing.Observer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from convlens.geometry.operators import Call, effect_of
from convlens.geometry.reach import Known, Unknown, input_field

Seen = Callable[[str, nn.Module, "tuple[int, ...] | None", Known], None]
"""Is told name, module, output shape (None: not one tensor) and field when a module has run."""


class FieldTracker:
    """Keeps what is known of each tensor, and says what is known of each module's output."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._ledger = _Ledger()

    def begin(self, tensor: Tensor) -> None:
        """The input sees itself."""
        self._ledger.note(tensor, input_field(tuple(tensor.shape)))

    def enter(self, name: str, module: nn.Module) -> None:
        """Nothing to do."""

    def leave(self, name: str, module: nn.Module, output: object) -> None:
        """A module has run: say what its output sees."""
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if len(tensors) != 1:
            self._seen(name, module, None, Unknown(f"an output of {len(tensors)} tensors"))
            return
        self._seen(name, module, tuple(tensors[0].shape), self._ledger.lookup(tensors[0]))

    def operator(
        self,
        function: OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: object,
        layer: str,  # noqa: ARG002
    ) -> None:
        """An operator has run: note what its outputs see."""
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        arguments = _bind(function, args, kwargs)
        inputs = [
            leaf for leaf in tree_leaves(list(arguments.values())) if isinstance(leaf, Tensor)
        ]
        for tensor in inputs:
            self._ledger.meet(tensor)
        known = self._after(function, arguments, inputs, outputs)
        written = _written(function, arguments)
        for tensor, field in zip(outputs, known, strict=True):
            if any(tensor is target for target in written):
                self._ledger.overwrite(tensor, field, str(function))
            else:
                self._ledger.note(tensor, field)
        for target in written:
            if not any(target is tensor for tensor in outputs):
                reads = any(self._ledger.lookup(tensor) is not None for tensor in inputs)
                changed = Unknown(str(function)) if reads else None
                self._ledger.overwrite(target, changed, str(function))

    def _after(
        self,
        function: OpOverload,
        arguments: Mapping[str, Any],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> list[Known]:
        fields = [self._ledger.lookup(tensor) for tensor in inputs]
        for field in fields:
            if isinstance(field, Unknown):
                return [field] * len(outputs)
        if not any(isinstance(field, tuple) for field in fields):
            return [None] * len(outputs)
        unknown = Unknown(str(function))
        effect = effect_of(function) if outputs else None
        if effect is None or any(0 in tensor.shape for tensor in [*inputs, *outputs[:1]]):
            return [unknown] * len(outputs)
        call = Call(str(function), arguments, self._ledger.lookup, tuple(outputs[0].shape))
        result = effect(call)
        if isinstance(result, list):
            return result
        return [result, *[unknown] * (len(outputs) - 1)]


class _Ledger:
    """What is known of each tensor.

    It holds every tensor until the run is over, so that no identity is used twice; fake tensors
    have no memory to hold.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Known]] = {}
        self._sharing: dict[int, list[Tensor]] = {}

    def lookup(self, tensor: Tensor) -> Known:
        """What is known of a tensor; one never met does not depend on the input."""
        return self._known[id(tensor)][1] if id(tensor) in self._known else None

    def meet(self, tensor: Tensor) -> None:
        """A tensor that no operator made, such as a parameter."""
        if id(tensor) not in self._known:
            self.note(tensor, None)

    def note(self, tensor: Tensor, field: Known) -> None:
        """A new tensor, perhaps in the memory of another."""
        self._known[id(tensor)] = (tensor, field)
        self._sharing.setdefault(_memory(tensor), []).append(tensor)

    def overwrite(self, tensor: Tensor, field: Known, operator: str) -> None:
        """A tensor was changed in place, and so were those that look at the same memory."""
        before = self.lookup(tensor)
        self._known[id(tensor)] = (tensor, field)
        if field is before:
            return
        for other in self._sharing.get(_memory(tensor), []):
            if other is not tensor:
                same = _place(other) == _place(tensor)
                changed = field if same else Unknown(f"{operator} on a part or a view")
                self._known[id(other)] = (other, changed)


def _memory(tensor: Tensor) -> int:
    return StorageWeakRef(tensor.untyped_storage()).cdata


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


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
