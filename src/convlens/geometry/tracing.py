"""Runs a model on fake tensors, which have shapes and no values, and lets observers look.

Nothing of the model is touched: its parameters and buffers are replaced by fake ones for the run,
every module's attributes (train or eval among them) are put back, and hooks are removed, also when
it raises. The run is that of evaluation, for one image.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convlens.errors import ArgumentError
from convlens.geometry import shapes


class Observer(Protocol):
    """Looks at a run."""

    def begin(self, tensor: Tensor) -> None:
        """A run on this input begins; what was seen of an earlier one counts no more."""
        ...

    def enter(self, name: str, module: nn.Module) -> None:
        """A module is about to run."""
        ...

    def operator(
        self,
        function: OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: object,
        layer: str,
    ) -> None:
        """An operator has run inside ``layer``, the innermost module."""
        ...

    def leave(self, name: str, module: nn.Module, output: object) -> None:
        """A module has run."""
        ...


@runtime_checkable
class ConstantsObserver(Protocol):
    """An observer that wants to know what stands in the place of parameters and buffers."""

    def constant(self, fake: Tensor, real: Tensor) -> None:
        """A parameter or buffer, and the tensor that the run has in its place."""
        ...


def trace(
    model: nn.Module, example: Sequence[int] | Tensor, observers: Sequence[Observer]
) -> tuple[str, ...]:
    """Run ``model`` once on a fake image, in evaluation.

    If its way depends on values, which fake tensors do not have, it is run on an image of zeros
    instead, on copies of its buffers.

    Args:
        model: any module that takes one tensor.
        example: a shape (N, C, …) or a tensor; of its N images one is used.
        observers: what looks at the run.

    Returns:
        What has to be said of the run: empty if it was on a fake image.

    Raises:
        ArgumentError: if the shape is none, or does not fit the model; if parameters are still
            uninitialized, or have no values and the model's way depends on values.
    """
    shapes.check_model(model)
    shape = (1, *shapes.check_input(example)[1:])
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    _refuse_lazy(tensors)
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_gpus(tensors.values())))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_composed_attention())
        run = _Run(model, modules, tensors, observers)
        try:
            run.on_fake(shape, example)
        except _ValuesNeededError as error:
            if any(tensor.is_meta for tensor in tensors.values()):
                raise ArgumentError(
                    f"model cannot be followed: {error}, and its parameters have no values either; "
                    "give a model that is not on the meta device."
                ) from error.__cause__
            run.on_zeros(shape, example)
            return (f"run on an image of zeros, since {error}: other images may go another way.",)
    return ()


class _ValuesNeededError(Exception):
    """The model needs values, which fake tensors do not have."""


def _lack_of_values(error: Exception) -> str | None:
    """What a model does that fake tensors cannot, None if that is not why it raised."""
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return f"decides by values ({error.func})"
    if isinstance(error, UnsupportedOperatorException):
        return f"needs values ({error.func})"
    if "tensor subclasses" in str(error):  # x.numpy()
        return f"needs values ({error})"
    return None


def _gpus(tensors: Iterable[Tensor]) -> list[int]:
    return sorted({t.device.index for t in tensors if t.device.type == "cuda"})


@dataclass(frozen=True)
class _Run:
    """What both ways to run a model need."""

    model: nn.Module
    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, Tensor]
    observers: Sequence[Observer]

    def on_fake(self, shape: Sequence[int], example: Sequence[int] | Tensor) -> None:
        """Run on fake tensors alone."""
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        stand_ins: dict[str, Tensor] = {
            name: fake.from_tensor(tensor) for name, tensor in self.tensors.items()
        }
        with fake:
            self._run(stand_ins, _image(shape, example, self.tensors))

    def on_zeros(self, shape: Sequence[int], example: Sequence[int] | Tensor) -> None:
        """Run on real tensors; of buffers on copies, since a model may write into them."""
        parameters = dict(self.model.named_parameters())
        stand_ins = {
            name: tensor.detach() if name in parameters else tensor.clone()
            for name, tensor in self.tensors.items()
        }
        self._run(stand_ins, _image(shape, example, self.tensors))

    def _run(self, stand_ins: Mapping[str, Tensor], image: Tensor) -> None:
        calls = _Calls(self.observers)
        with ExitStack() as stack:
            stack.enter_context(_as_before(self.modules.values()))
            calls.attach(self.modules, stack)
            for observer in self.observers:
                observer.begin(image)
                if isinstance(observer, ConstantsObserver):
                    for name, tensor in self.tensors.items():
                        observer.constant(stand_ins[name], tensor)
            stack.enter_context(_Listening(calls))
            with calls.explained():
                torch.func.functional_call(self.model, dict(stand_ins), (image,))


def _image(
    shape: Sequence[int], example: Sequence[int] | Tensor, tensors: Mapping[str, Tensor]
) -> Tensor:
    if isinstance(example, Tensor):
        return torch.zeros(shape, dtype=example.dtype, device=example.device)
    real = [t for t in tensors.values() if t.is_floating_point()]
    first = real[0] if real else torch.empty(0)
    return torch.zeros(shape, dtype=first.dtype, device=first.device)


def _refuse_lazy(tensors: Mapping[str, Tensor]) -> None:
    lazy = [name for name, t in tensors.items() if is_lazy(t)]
    if lazy:
        raise ArgumentError(
            f"model has parameters without a shape yet ({lazy[0]!r} is the first); run it once on "
            "a real input before."
        )


@contextmanager
def _as_before(modules: Iterable[nn.Module]) -> Generator[None, None, None]:
    """Evaluation inside; afterwards every attribute of every module is what it was."""
    saved = [(module, dict(vars(module))) for module in modules]
    try:
        for module, _ in saved:
            module.training = False
        yield
    finally:
        for module, attributes in saved:
            vars(module).clear()
            vars(module).update(attributes)


@contextmanager
def _composed_attention() -> Generator[None, None, None]:
    """Let torch's transformer layers call their single operators: the fused one counts nothing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Calls:
    """Which modules are running, innermost last."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = observers
        self.running: list[tuple[str, nn.Module, list[tuple[int, ...]]]] = []

    @property
    def layer(self) -> str:
        return self.running[-1][0] if self.running else ""

    def attach(self, modules: Mapping[str, nn.Module], stack: ExitStack) -> None:
        for name, module in modules.items():
            before = module.register_forward_pre_hook(
                self._entering(name), prepend=True, with_kwargs=True
            )
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(self._leaving(name)).remove)

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
            given = [tuple(t.shape) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            for shape in given[:1]:
                shapes.refuse_unbatched(name, module, shape)
            self.running.append((name, module, given))
            for observer in self.observers:
                observer.enter(name, module)

        return enter

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, _: object, output: object) -> None:
            while self.running.pop()[0] != name:  # a model may catch what its layers raise
                pass
            for observer in self.observers:
                observer.leave(name, module, output)

        return leave

    @contextmanager
    def explained(self) -> Generator[None, None, None]:
        """Say of an error which layer raised it, and on what."""
        try:
            yield
        except ArgumentError:
            raise
        except Exception as error:
            if not self.running:
                raise
            if (lack := _lack_of_values(error)) is not None:
                name, module, _ = self.running[-1]
                raise _ValuesNeededError(f"{shapes.layer(name, module)} {lack}") from error
            raise ArgumentError(shapes.misfit(*self.running[-1], error)) from error


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
"""Operators that say more of themselves than what they are composed of does."""


class _Listening(TorchDispatchMode):
    """Tells the observers of every operator, decomposed as `torch.utils.flop_counter` does it."""

    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is not torch.ops.prim.device.default and func.overloadpacket not in _KEPT_WHOLE:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if func is torch.ops.aten.convolution.default and 0 in out.shape:
            raise RuntimeError(  # which real tensors raise, and fake ones do not
                f"the output would be empty: {tuple(out.shape)}"
            )
        for observer in self.calls.observers:
            observer.operator(func, args, kwargs, out, self.calls.layer)
        return out
