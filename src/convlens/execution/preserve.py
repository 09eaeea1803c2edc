"""`preserved`: runs a model and restores it afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from convlens.execution.reachable import ContainerState, Reachable


@contextmanager
def preserved(
    model: nn.Module, stand_in: Callable[[Tensor], Tensor], *, training: bool | None = False
) -> Generator[dict[int, tuple[Tensor, Tensor]]]:
    """Restore a model after the block, also after an error.

    A forward pass may write into parameters and buffers, fill caches in attributes, containers,
    objects, classes and global variables, register buffers, append to a list in a hook's closure,
    and draw random numbers; ``train()`` may do anything. Inside the block, stand-ins replace the
    model's tensors, autocast is off, compiled modules run eagerly, and watchers of convlens are not
    called. Afterwards everything that the model refers to is restored in place: parameters,
    buffers, caches, hooks, modes, and the random states of torch, NumPy, Python and of generators
    that the model owns.

    Not restored: iterators, and what is more than a few objects away from the model. No other
    thread may run the model meanwhile.

    Args:
        model: any module.
        stand_in: makes the stand-in of a tensor, of the same shape.
        training: whether to run in training mode; None keeps the modes.

    Yields:
        By ``id``, each tensor of the model and its stand-in.
    """
    found = Reachable(model)
    devices = {tensor.device for tensor in found.tensors}
    states = [ContainerState(container) for container in found.containers]
    with ExitStack() as stack:
        stack.enter_context(same_random(devices))
        stack.callback(found.restore_states)
        stack.enter_context(_scripted_preserved(model))
        for each in states:
            stack.callback(each.restore)
        stands = {id(tensor): (tensor, stand_in(tensor)) for tensor in found.tensors}
        for each in states:
            each.replace(stands)
        _remove_watchers(model)
        if training is not None:
            model.train(training)
        if _is_compiled(model):  # hooks run in no graph that was made without them
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for kind in {device.type for device in devices} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(mode=False))
        yield stands


@contextmanager
def restored(model: nn.Module, *others: object) -> Generator[None]:
    """Train a model in place in the block, and restore it bit for bit, also after an error.

    What `preserved` restores is restored here, and so is what ``others`` refer to: an optimizer's
    ``vars()``, a loss. Tensors stay the same objects, so that an optimizer finds its parameters;
    their values are put back from copies in main memory. Gradients are set aside meanwhile.
    Compiled modules run compiled, unless they are watched. A Ctrl-C while things are put back comes
    through after they are.

    Args:
        model: any module, without parameters that are still uninitialized.
        others: what else the block may change.
    """
    found = Reachable([model, *others])
    tensors = [t for t in found.tensors if not (t.is_meta or is_lazy(t))]
    values = [(t, t.detach().to("cpu", copy=True)) for t in tensors]
    gradients = [(t, t.grad) for t in tensors if t.is_leaf]
    states = [ContainerState(container) for container in found.containers]

    def put_back() -> None:
        for each in states:
            each.restore()
        found.restore_states()
        with torch.inference_mode(mode=False), torch.no_grad():
            for tensor, value in values:
                _put_back(tensor, value)
        for tensor, gradient in gradients:
            tensor.grad = gradient

    with ExitStack() as stack:
        stack.enter_context(same_random({t.device for t in tensors}))
        stack.callback(surely, put_back)
        stack.enter_context(_scripted_preserved(model))
        if _remove_watchers(model) and _is_compiled(model):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for tensor, _ in gradients:
            tensor.grad = None
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        yield


def surely(action: Callable[[], None]) -> None:
    """Call a function to its end: once more if Ctrl-C came meanwhile, which is raised then."""
    try:
        action()
    except KeyboardInterrupt:
        action()
        raise


def _put_back(tensor: Tensor, value: Tensor) -> None:
    """Put a value back; what is unchanged is not written to, it may be read-only."""
    plain = tensor.layout == torch.strided and not tensor.is_quantized
    if plain and tensor.shape != value.shape:
        tensor.data = value.to(tensor.device)
    elif not plain or not torch.equal(_bits(tensor), _bits(value).to(tensor.device)):
        tensor.copy_(value)


def _bits(tensor: Tensor) -> Tensor:
    """Numbers that are equal where the bits are; -0.0 equals 0.0, and NaN not itself."""
    tensor = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    return tensor.view(_INTEGERS[tensor.itemsize]) if tensor.is_floating_point() else tensor


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def copy_of(tensor: Tensor) -> Tensor:
    """A copy, as a stand-in for a pass on numbers."""
    return tensor.detach().clone()


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, ``DataParallel`` and ``DistributedDataParallel``."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(cast("nn.Module", model.module))
    inner = getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def _remove_watchers(model: nn.Module) -> bool:
    """Remove the hooks of convlens; the dictionaries that hold them are restored afterwards.

    Returns:
        Whether there were any.
    """
    found = False
    for module in model.modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            hooks: dict[int, object] = vars(module).get(kind, {})
            for key in [key for key, hook in hooks.items() if _is_watcher(hook)]:
                del hooks[key]
                found = True
    return found


def _is_watcher(hook: object) -> bool:
    function = hook.func if isinstance(hook, partial) else hook
    return str(getattr(function, "__module__", "")).startswith("convlens.watching")


def _is_compiled(model: nn.Module) -> bool:
    return any(
        hasattr(module, "_orig_mod") or vars(module).get("_compiled_call_impl") is not None
        for module in model.modules()
    )


@contextmanager
def same_random(
    devices: Iterable[torch.device] = (), generators: Iterable[torch.Generator] = ()
) -> Generator[None]:
    """Restore the random states of torch, NumPy and Python."""
    gpus = sorted({d.index or 0 for d in devices if d.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 — what others use
    states = [(generator, generator.get_state()) for generator in generators]
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for generator, state in states:
            generator.set_state(state)


@contextmanager
def _scripted_preserved(model: nn.Module) -> Generator[None]:
    """Restore TorchScript modules, whose modes and tensors no Python object holds."""
    scripted = [m for m in model.modules() if isinstance(m, torch.jit.ScriptModule)]
    modes = [(m, m.training) for m in scripted if hasattr(m, "training")]  # a frozen one has none
    tensors = [t for m in scripted for t in (*m.parameters(False), *m.buffers(False))]
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for tensor, value in before:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
