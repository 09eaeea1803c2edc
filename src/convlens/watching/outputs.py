"""What a module's output is, and in what kind of run it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

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
