"""What a module's output is, and in what kind of run it was made."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
    is_traceable_wrapper_subclass,
)

_C: Any = torch._C  # pyright: ignore[reportPrivateUsage]
_mode_of, _FAKE = _C._get_dispatch_mode, _C._TorchDispatchModeKey.FAKE

is_transformed: Callable[[Tensor], bool] = _C._functorch.is_functorch_wrapped_tensor
"""Whether `torch.func` (``vmap``, ``grad``, ``jvp`` …) has wrapped a tensor."""


def first_tensor(output: Any) -> Tensor | None:  # noqa: ANN401 — a module may return anything
    """The first floating-point tensor of an output: in tuples, mappings and dataclasses too."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = list(output.values())
    elif is_dataclass(output):
        output = [getattr(output, field.name) for field in fields(output)]
    if isinstance(output, Sequence) and not isinstance(output, str):
        for part in output:
            found = first_tensor(part)
            if found is not None:
                return found
    return None


def in_backward() -> bool:
    """Whether this thread is executing a backward pass."""
    return _C._current_graph_task_id() != -1


def are_fake(inputs: Sequence[Any]) -> bool:
    """Whether a model is run without values, as a summary does it."""
    return _mode_of(_FAKE) is not None or any(isinstance(x, FakeTensor) for x in inputs)


def why_no_sketch(output: object) -> str:
    """What an output without a sketch is, for a note."""
    if first_tensor(output) is not None:
        return "it is inside a transform of torch.func, such as vmap"
    what = output.dtype if isinstance(output, Tensor) else type(output).__name__
    return f"it has no floating-point values ({what})"


def is_plain(x: Tensor) -> bool:
    """Whether its values can be read here, alone and without a transform.

    Not those of a distributed tensor, for which all processes would have to read, nor those of a
    parameter whose memory FSDP has given back.
    """
    return (
        (type(x) is Tensor or isinstance(x, Parameter))
        and x.layout == torch.strided
        and not (x.is_nested or x.is_meta)
        and not is_transformed(x)
        and not is_traceable_wrapper_subclass(x)
        and (x.untyped_storage().nbytes() > 0 or not x.numel())
    )


def in_transform() -> bool:
    """Whether a transform of `torch.func` is running."""
    return _C._functorch.peek_interpreter_stack() is not None


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured, in which nothing may be read."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@contextmanager
def as_if_outside(device: torch.device) -> Generator[None]:
    """Without the user's modes: default device, FLOP counters, autocast."""
    cast = torch.is_autocast_enabled(device.type) if device.type in ("cpu", "cuda") else False
    no_cast = torch.autocast(device.type, enabled=False) if cast else nullcontext()
    with _C.DisableTorchFunction(), _disable_current_modes(), no_cast, torch.no_grad():
        yield


def scores_of(output: object) -> Tensor | None:
    """The output that a loss is computed of.

    Called ``logits``, else the first floating-point tensor that is more than a number, since many
    models return the loss too.
    """
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.ndim else None
    if isinstance(output, Mapping):
        named = output.get("logits")
        return scores_of(list(output.values())) if named is None else scores_of(named)
    if is_dataclass(output):
        return scores_of([getattr(output, field.name) for field in fields(output)])
    if isinstance(output, Sequence) and not isinstance(output, str):
        found = (scores_of(part) for part in output)
        return next((x for x in found if x is not None), None)
    return None
