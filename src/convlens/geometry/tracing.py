"""One forward pass on fake tensors: which module made what, at which cost, seeing what.

Fake tensors have shapes and no data, as in `torch.utils.flop_counter`: any model that torch can
run is traced in well under a second. The model is left exactly as it was.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from convlens.geometry import operators
from convlens.geometry.inputs import explain_failure, fake_input, refuse_unbatched
from convlens.geometry.operators import Seen
from convlens.geometry.spans import Field, Unknown, input_field


@dataclass
class ModuleCall:
    """One call of one module.

    Attributes:
        name: the module's qualified name, ``""`` for the model itself.
        module: the module.
        input_shape: shape of its first tensor argument, None where it has none.
        output_shape: shape of its first output tensor, None until it has returned.
        n_outputs: tensors that it returned.
        n_values: numbers in all of them.
        flops: torch's count for what ran in this module itself, not in one of its children.
        seen: what its first output tensor sees of the model's input.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    n_outputs: int = 0
    n_values: int = 0
    flops: int = 0
    seen: Seen = None


@dataclass
class Trace:
    """What one forward pass did.

    Attributes:
        input_shape: (N, C, *spatial) of the model's input.
        calls: every call of every module, in the order in which they began.
        uncounted: names of the operators that do arithmetic and have no place in the
            multiplications, in the order of their first use.
    """

    input_shape: tuple[int, ...]
    calls: list[ModuleCall] = field(default_factory=list[ModuleCall])
    uncounted: dict[str, None] = field(default_factory=dict[str, None])


def trace(model: nn.Module, input_: object) -> Trace:
    """Run ``model`` once on fake tensors, in evaluation mode.

    Raises:
        ArgumentError: when the input is no shape and no tensor, or the model raises on it.
    """
    model = cast("nn.Module", getattr(model, "_orig_mod", model))  # of torch.compile
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    x = fake_input(mode, model, input_)
    result = Trace(tuple(x.shape))
    tracer = _Tracer(result, x)
    with _as_before(model), _hooked(model, tracer):
        _use_fakes(model, mode)
        try:
            with mode, tracer, torch.no_grad():
                model(x)
        except Exception as error:
            raise explain_failure(error, tracer.stack, tuple(x.shape)) from error
    return result


class _Tracer(TorchDispatchMode):
    """Counts each operator and says what its outputs see."""

    def __init__(self, result: Trace, x: torch.Tensor) -> None:
        super().__init__()
        self.result = result
        self.stack: list[ModuleCall] = []
        self.seen: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.seen[x] = input_field(tuple(x.shape))
        self.by_storage: dict[int, list[weakref.ref[torch.Tensor]]] = {}
        self._remember_storage(x)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return self._opaque(func, args, kwargs)
        if func.overloadpacket not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        if outputs:
            self._count(func, args, kwargs, result)
            self._look(func, args, kwargs, outputs)
        return result

    def _opaque(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A higher-order operator: its inside is not looked at."""
        result = func(*args, **kwargs)
        self.result.uncounted[str(func)] = None
        for out in _tensors(result):
            self.seen[out] = Unknown(str(func))
        return result

    def _count(self, func: torch._ops.OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None and self.stack:
            self.stack[-1].flops += int(formula(*args, **kwargs, out_val=result))
        elif formula is None and not func.is_view and _name(func) not in NO_ARITHMETIC:
            self.result.uncounted[_name(func).removesuffix("_").removeprefix("_")] = None

    def _look(
        self, func: torch._ops.OpOverload, args: Any, kwargs: Any, outputs: list[torch.Tensor]
    ) -> None:
        bound = _bind(func, args, kwargs)
        before = [self.seen.get(tensor) for tensor in _tensors(list(bound.values()))]
        unknown = next((seen for seen in before if isinstance(seen, Unknown)), None)
        found: list[Seen]
        if unknown is not None:
            found = [unknown] * len(outputs)
        elif all(seen is None for seen in before):
            found = [None] * len(outputs)
        else:
            call = operators.Call(bound, outputs, self._field)
            found = operators.see(func, call)
        for out, seen in zip(outputs, found, strict=True):
            self._write(func, out, seen)

    def _field(self, value: object) -> Field | None:
        seen = self.seen.get(value) if isinstance(value, torch.Tensor) else None
        return seen if isinstance(seen, Field) else None

    def _write(self, func: torch._ops.OpOverload, out: torch.Tensor, seen: Seen) -> None:
        """Keep what ``out`` sees; where it was changed in place, its other views are unknown."""
        changed = func._schema.is_mutable and not _same(self.seen.get(out), seen)
        self.seen[out] = seen
        if changed:
            for other in self._sharing(out):
                if other is not out:
                    self.seen[other] = Unknown(f"{func.overloadpacket} in place through a view")
        self._remember_storage(out)

    def _remember_storage(self, tensor: torch.Tensor) -> None:
        known = self.by_storage.setdefault(_storage(tensor), [])
        known[:] = [ref for ref in known if ref() is not None]
        if all(ref() is not tensor for ref in known):
            known.append(weakref.ref(tensor))

    def _sharing(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        refs = self.by_storage.get(_storage(tensor), [])
        return [other for ref in refs if (other := ref()) is not None]


NO_ARITHMETIC = frozenset(
    "empty zeros ones full zeros_like ones_like empty_like full_like new_zeros new_empty new_ones "
    "new_full clone _to_copy copy_ cat stack fill_ zero_ arange lift_fresh _unsafe_view "
    "constant_pad_nd device scalar_tensor".split()
)


def _name(func: torch._ops.OpOverload) -> str:
    return str(func.overloadpacket).split(".")[-1]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _same(a: Seen, b: Seen) -> bool:
    if isinstance(a, Field) and isinstance(b, Field):
        return operators.equal(a, b)
    return a == b if not isinstance(a, Field) and not isinstance(b, Field) else False


def _bind(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of the operator's schema."""
    bound: dict[str, Any] = {}
    for i, argument in enumerate(func._schema.arguments):
        given = args[i] if i < len(args) else argument.default_value
        bound[argument.name] = kwargs.get(argument.name, given)
    return bound


def _tensors(value: object) -> list[torch.Tensor]:
    """Every tensor in a value, its lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(cast("dict[Any, object]", value).values())
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        return [tensor for item in items for tensor in _tensors(item)]
    return []


@contextmanager
def _hooked(model: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """Tell the tracer which module is at work; the hooks are removed whatever happens."""
    handles: list[Any] = []

    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        shapes = [tuple(tensor.shape) for tensor in _tensors([args, kwargs])]
        call = ModuleCall(name, module, input_shape=shapes[0] if shapes else None)
        tracer.stack.append(call)
        tracer.result.calls.append(call)
        refuse_unbatched(call, tracer.result.input_shape)

    def leave(module: nn.Module, output: Any) -> None:
        while tracer.stack and tracer.stack[-1].module is not module:
            tracer.stack.pop()  # a call that raised and was caught by the model
        call = tracer.stack.pop()
        outputs = _tensors(output)
        if outputs:
            call.output_shape, call.seen = tuple(outputs[0].shape), tracer.seen.get(outputs[0])
        call.n_outputs, call.n_values = len(outputs), sum(out.numel() for out in outputs)

    try:
        for name, module in model.named_modules():
            before = lambda m, a, k, name=name: enter(name, m, a, k)  # noqa: E731
            handles.append(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(lambda m, _, out: leave(m, out)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _use_fakes(model: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors in the place of weights and buffers, for as long as `_as_before` lasts."""
    fakes: dict[int, torch.Tensor] = {}
    for module in model.modules():
        module.training = False
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in fakes:
                        fakes[id(tensor)] = mode.from_tensor(tensor)
                    cast("dict[str, Any]", tensors)[name] = fakes[id(tensor)]
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Afterwards weights, buffers, flags, attributes and random states are what they were."""
    modules = list(model.modules())
    saved = [
        (dict(module.__dict__), dict(module._parameters), dict(module._buffers))
        for module in modules
    ]
    numpy_state = np.random.get_state()  # noqa: NPY002 - a model may draw from it
    python_state = random.getstate()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator that nobody counts
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for module, (attributes, parameters, buffers) in zip(modules, saved, strict=True):
            _restore(module.__dict__, attributes)
            _restore(module._parameters, parameters)
            _restore(module._buffers, buffers)


def _restore(target: dict[str, Any], saved: dict[str, Any]) -> None:
    """Same keys in the same order; untouched where nothing changed."""
    same = target.keys() == saved.keys() and all(target[key] is saved[key] for key in saved)
    if not same:
        target.clear()
        target.update(saved)
