"""One forward pass on fake tensors, which have shapes and no values.

The model is restored by `preserved`. Only parameters, buffers and inputs are fake. Tensors made
without them, such as a positional table in a global cache, are real, so that no fake tensor stays
behind in a cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from convlens.errors import ArgumentError
from convlens.execution import shapes
from convlens.execution.inputs import Inputs
from convlens.execution.modules import named_layers
from convlens.execution.preserve import copy_of, preserved, unwrapped


class Observer(Protocol):
    """Is told what happens during a forward pass; subclasses override what they need."""

    def begin(self, tensor: Tensor) -> None:
        """A pass on this input begins; what was seen of an earlier one counts no more."""

    def enter(self, name: str, module: nn.Module, given: Sequence[Tensor]) -> None:
        """A module is about to run on some tensors."""

    def operator(
        self,
        function: OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: object,
        layer: str,
    ) -> None:
        """An operator has run inside ``layer``, the innermost module."""

    def leave(self, name: str, module: nn.Module, output: object) -> None:
        """A module has run."""


@runtime_checkable
class ConstantsObserver(Protocol):
    """An observer that is told which fake tensor stands for which parameter or buffer."""

    def constant(self, fake: Tensor, real: Tensor) -> None:
        """A parameter or buffer, and the fake tensor in its place."""


@dataclass(frozen=True)
class Traced:
    """The result of `trace`.

    Attributes:
        n: number of images: 1, or all that were given if the model does not take one.
        notes: remarks, usually none.
    """

    n: int
    notes: tuple[str, ...] = ()


def trace(model: nn.Module, inputs: Inputs, observers: Sequence[Observer]) -> Traced:
    """Run ``model`` once in evaluation, on fake tensors, for one image.

    A model that does not take one image alone gets as many as were given. A model that decides by
    values, or has an operator without a fake implementation, is run on numbers: on given tensors,
    else on zeros.

    Args:
        model: any module.
        inputs: the inputs.
        observers: are told what happens.

    Raises:
        ArgumentError: if the input does not fit the model, if parameters are uninitialized, or if
            a model on the meta device decides by values.
    """
    shapes.check_model(model)
    model = unwrapped(model)
    _refuse_lazy(model)
    try:
        return _trace(model, inputs, 1, observers)
    except ArgumentError as error:
        if inputs.n == 1:
            raise
        try:
            traced = _trace(model, inputs, inputs.n, observers)
        except ArgumentError:
            raise error from error.__cause__
    note = f"numbers are for all {inputs.n} given: the model does not take one image alone."
    return Traced(traced.n, (note, *traced.notes))


def _trace(model: nn.Module, inputs: Inputs, n: int, observers: Sequence[Observer]) -> Traced:
    try:
        run_on_fake(model, inputs, n, observers, [torch.no_grad(), _composed()])
    except ValuesNeededError as error:
        if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
            raise ArgumentError(
                f"model cannot be followed: {error}, and its parameters have no values either; "
                "give a model that is not on the meta device."
            ) from error.__cause__
        with torch.no_grad(), _composed(), preserved(model, copy_of) as stands:
            like = inputs.like([stand for _, stand in stands.values()])
            _Pass(model, observers, _OperatorMode(None)).run(inputs.make(n, like), stands)
        note = f"run on an image of zeros, since {error}: other images may go another way."
        return Traced(n, (note,))
    return Traced(n)


def run_on_fake(
    model: nn.Module,
    inputs: Inputs,
    n: int,
    observers: Sequence[Observer],
    contexts: Sequence[AbstractContextManager[Any]] = (),
    *,
    training: bool = False,
) -> None:
    """Run ``model`` once on fake tensors.

    Args:
        model: any module; it is restored.
        inputs: the inputs.
        n: number of images.
        observers: are told what happens.
        contexts: context managers around the pass.
        training: whether to run in training mode.

    Raises:
        ArgumentError: if the input does not fit the model.
        ValuesNeededError: if the model needs values.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def stand_in(tensor: Tensor) -> Tensor:
        try:
            return _fake(fake, tensor)
        except (UnsupportedFakeTensorException, NotImplementedError):  # a quantized one, and such
            return tensor

    with ExitStack() as stack:
        stands = stack.enter_context(preserved(model, stand_in, training=training))
        for context in contexts:
            stack.enter_context(context)
        stack.enter_context(_without_tracebacks())
        with fake:
            arguments = inputs.make(n, inputs.like([stand for _, stand in stands.values()]))
        _Pass(model, observers, _OperatorMode(fake)).run(arguments, stands)


class ValuesNeededError(Exception):
    """The model needs values; fake tensors have none."""


def _fake(fake: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A fake tensor; on the CPU for "meta", where torch chooses other operators."""
    if not tensor.is_meta:
        return fake.from_tensor(tensor if tensor.is_leaf else tensor.detach())
    with fake:
        made = torch.empty_like(tensor, device="cpu")
        return made.requires_grad_(tensor.requires_grad)


def _refuse_lazy(model: nn.Module) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in named if is_lazy(tensor)]
    if lazy:
        raise ArgumentError(
            f"model has parameters without a shape yet ({lazy[0]!r} is the first); run it once on "
            "a real input before."
        )


@contextmanager
def _composed() -> Generator[None]:
    """Let transformer layers and LSTMs run single operators instead of fused ones."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    (onednn, *_) = torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        torch.backends.mkldnn.set_flags(onednn)


@contextmanager
def _without_tracebacks() -> Generator[None]:
    """Keep torch from logging a traceback for an error that becomes a sentence."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _Pass:
    """One call of a model, and its running modules, innermost last."""

    def __init__(
        self, model: nn.Module, observers: Sequence[Observer], mode: _OperatorMode
    ) -> None:
        self.model, self.observers = model, observers
        self._running: list[tuple[str, nn.Module, list[Tensor]]] = []
        self._mode = mode
        mode.heard = self._heard

    def run(
        self,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        stands: Mapping[int, tuple[Tensor, Tensor]],
    ) -> None:
        """Call the model; `preserved` removes the hooks."""
        for name, module in named_layers(self.model):
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                module.register_forward_pre_hook(
                    self._entering(name), prepend=True, with_kwargs=True
                )
                module.register_forward_hook(self._leaving(name))
        for observer in self.observers:
            observer.begin(_image(arguments))
            if isinstance(observer, ConstantsObserver):
                for real, stand in stands.values():
                    observer.constant(stand, real)
        args, kwargs = arguments
        scripted = isinstance(self.model, torch.jit.ScriptModule)
        with self._mode, self._with_sentence():
            if scripted:
                self._entering("")(self.model, args, kwargs)
            output = self.model(*args, **kwargs)
            if scripted:
                self._leaving("")(self.model, args, output)

    def _heard(self, function: OpOverload, args: Any, kwargs: Any, out: object) -> None:  # noqa: ANN401
        layer = self._running[-1][0] if self._running else ""
        for observer in self.observers:
            observer.operator(function, args, kwargs, out, layer)

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            for tensor in given[:1]:
                shapes.refuse_unbatched(name, module, tensor.shape)
            self._running.append((name, module, given))
            for observer in self.observers:
                observer.enter(name, module, given)

        return enter

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, _: object, output: object) -> None:
            while self._running.pop()[0] != name:  # a model may catch what its layers raise
                pass
            for observer in self.observers:
                observer.leave(name, module, output)

        return leave

    @contextmanager
    def _with_sentence(self) -> Generator[None]:
        """Turn an error into a sentence with the layer and its inputs."""
        try:
            yield
        except ArgumentError:
            raise
        except Exception as error:
            if not self._running:
                raise
            name, module, given = self._running[-1]
            if (lack := _lack_of_values(error)) is not None:
                raise ValuesNeededError(f"{shapes.layer(name, module)} {lack}") from error
            got = [tuple(tensor.shape) for tensor in given]
            raise ArgumentError(shapes.misfit(name, module, got, error)) from error


def _image(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    """The input of receptive fields: the first with spatial axes."""
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return next((t for t in tensors if t.is_floating_point() and t.dim() > 2), tensors[0])


def _lack_of_values(error: Exception) -> str | None:
    """What a model needs values for; None if the error has another cause."""
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return f"decides by values ({error.func})"
    if isinstance(error, UnsupportedOperatorException):
        return f"needs values ({error.func})"
    text = " ".join(str(error).split())
    signs = ("tensor subclasses", "data pointer", "data_ptr", "FakeTensor", "'Meta' backend")
    if any(sign in text for sign in (*signs, "fake impl", "Meta tensors", "meta tensors")):
        return f"needs values ({text[:200]})"
    return None


_KEPT_WHOLE = frozenset(
    {
        torch.ops.aten._pad_circular,
        torch.ops.aten.upsample_nearest1d,
        torch.ops.aten.upsample_nearest2d,
        torch.ops.aten.upsample_nearest3d,
        torch.ops.aten._upsample_nearest_exact1d,
        torch.ops.aten._upsample_nearest_exact2d,
        torch.ops.aten._upsample_nearest_exact3d,
    }
)
"""Operators that are not decomposed."""


class _OperatorMode(TorchDispatchMode):
    """Reports every operator, decomposed as in `torch.utils.flop_counter`.

    A real tensor that a fake one was written into has no values any more: from then on a fake
    takes its place in every operator but views.

    Args:
        fake: the mode of the fake tensors; None in a pass on numbers.

    Attributes:
        heard: called with each operator.
    """

    def __init__(self, fake: FakeTensorMode | None) -> None:
        super().__init__()
        self._fake = fake
        self._valueless: dict[int, Tensor] = {}  # by memory; held so that it is not reused
        self.heard: Callable[[OpOverload, Any, Any, object], None]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is not torch.ops.prim.device.default and func.overloadpacket not in _KEPT_WHOLE:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = self._call(func, args, kwargs)
        if func is torch.ops.aten.convolution.default and 0 in out.shape:
            raise RuntimeError(  # which real tensors raise, and fake ones do not
                f"the output would be empty: {tuple(out.shape)}"
            )
        self.heard(func, args, kwargs, out)
        return out

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        fake = self._fake
        if fake is None:
            return func(*args, **kwargs)
        if func is torch.ops.aten.mkldnn_rnn_layer.default:
            *outputs, _ = func(*args, **kwargs)
            n_bytes = _rnn_workspace(args)
            with fake:
                return *outputs, torch.empty(n_bytes, dtype=torch.uint8)
        fake.cache_enabled = func.namespace == "aten"  # it cannot compare quantized weights
        for written in written_by(func, args, kwargs):
            if not isinstance(written, FakeTensor) and any(
                isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))
            ):
                self._valueless[memory_of(written)] = written
        if not self._valueless or _gives_view(func):
            return func(*args, **kwargs)
        stood: dict[int, Tensor] = {}

        def stand_in(tensor: Tensor) -> Tensor:
            if isinstance(tensor, FakeTensor) or memory_of(tensor) not in self._valueless:
                return tensor
            made = fake.from_tensor(tensor)
            stood[id(made)] = tensor
            return made

        new_args, new_kwargs = tree_map_only(Tensor, stand_in, (args, kwargs))
        out = func(*new_args, **new_kwargs)
        return tree_map_only(Tensor, lambda t: stood.get(id(t), t), out) if stood else out


def _rnn_workspace(args: Sequence[Any]) -> int:
    """Bytes that oneDNN's LSTM keeps for its backward pass; torch's fake operator says 0.

    Measured on a real pass over at most 16 steps of at most 16 sequences.
    """
    x, *rest = args
    steps, n, _ = x.shape
    few_steps, few = min(steps, 16), min(n, 16)
    *weights, hidden, cell = (torch.zeros(t.shape, dtype=t.dtype) for t in rest[:6])
    small = torch.zeros(few_steps, few, x.shape[2], dtype=x.dtype)
    run = torch.ops.aten.mkldnn_rnn_layer.default
    workspace = run(small, *weights, hidden[:few], cell[:few], *rest[6:])[-1]
    return workspace.nbytes // (few_steps * few) * steps * n


def memory_of(tensor: Tensor) -> int:
    """The identity of a tensor's memory; its own id if it has no single storage (sparse)."""
    try:
        return StorageWeakRef(tensor.untyped_storage()).cdata
    except (NotImplementedError, RuntimeError):
        return -id(tensor)


def written_by(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operator writes into."""
    positions, names = _writes(func)
    values = [args[i] for i in positions if i < len(args)]
    values += [kwargs[name] for name in names if name in kwargs]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@cache
def _writes(func: Any) -> tuple[list[int], list[str]]:  # noqa: ANN401
    """Positions and names of the arguments that an operator writes into."""
    given = func._schema.arguments
    written = [i for i, a in enumerate(given) if a.alias_info is not None and a.alias_info.is_write]
    return written, [given[i].name for i in written]


@cache
def _gives_view(func: Any) -> bool:  # noqa: ANN401
    """Whether an operator returns a view and writes nothing."""
    if torch.Tag.inplace_view in func.tags:
        return True
    aliases = [a.alias_info for a in func._schema.returns if a.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)
