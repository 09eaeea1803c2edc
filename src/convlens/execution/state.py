"""`preserved`: a model can be run inside, and is afterwards what it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from convlens.execution.reachable import Reachable, Remembered


@contextmanager
def preserved(
    model: nn.Module, stand_in: Callable[[Tensor], Tensor], *, training: bool | None = False
) -> Generator[dict[int, tuple[Tensor, Tensor]]]:
    """Let a model be run inside; afterwards it is what it was, however the run ended.

    A forward pass may write into parameters and buffers, fill caches that lie in attributes, lists,
    dictionaries, objects, classes or global variables, register buffers, append to a list that a
    hook closes over, and draw random numbers; and a module may do anything in its ``train()``.
    Inside, other tensors take the places of the model's own, autocasting is off, compiled modules
    run without their graphs, and watchers of convlens are not called. Afterwards the contents of
    everything that the model refers to are put back in place, so that each object keeps its
    identity: parameters, buffers, caches, hooks and modes; and the random states of torch, NumPy
    and Python, with those of the generators that the model owns.

    Not restored are iterators, and what is more than a few objects away from the model. No other
    thread may run the model meanwhile.

    Args:
        model: any module.
        stand_in: gives the tensor to use in place of one of the model's, of the same shape.
        training: whether to run in training mode; None leaves every module in its own.

    Yields:
        By ``id``, each tensor of the model and what stands in for it.
    """
    found = Reachable(model)
    devices = {tensor.device for tensor in found.tensors}
    remembered = [Remembered(container) for container in found.containers]
    with ExitStack() as stack:
        stack.enter_context(same_random(devices))
        stack.callback(found.restore_states)
        stack.enter_context(_scripted_preserved(model))
        for each in remembered:
            stack.callback(each.restore)
        stands = {id(tensor): (tensor, stand_in(tensor)) for tensor in found.tensors}
        for each in remembered:
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


def copy_of(tensor: Tensor) -> Tensor:
    """A stand-in for a pass on numbers: it may be written into, and needs no gradient."""
    return tensor.detach().clone()


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, ``DataParallel`` and ``DistributedDataParallel``."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(cast("nn.Module", model.module))
    inner = getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def _remove_watchers(model: nn.Module) -> None:
    """Remove the hooks of convlens; the dictionaries that hold them are restored afterwards."""
    for module in model.modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            hooks: dict[int, object] = vars(module).get(kind, {})
            for key in [key for key, hook in hooks.items() if _is_watcher(hook)]:
                del hooks[key]


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
    """Put random numbers of torch, NumPy and Python back where they were."""
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
    """The same for TorchScript modules, whose modes and tensors no Python object holds."""
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
