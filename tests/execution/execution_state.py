"""Everything of a model that looking must not change, written down so that it can be compared."""

from __future__ import annotations

import gc
import random
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


def state_of(model: nn.Module) -> dict[str, Any]:
    """Modules, attributes, containers in them, tensors (identity and value), modes, RNG."""
    seen: dict[int, str] = {}
    found: dict[str, Any] = {}
    waiting: deque[tuple[str, Any]] = deque([("model", model)])
    while waiting:
        path, thing = waiting.popleft()
        if isinstance(thing, Tensor):
            grad = _value(thing.grad if thing.is_leaf else None)
            found[path] = (id(thing), _value(thing), grad, thing.requires_grad)
            continue
        if id(thing) in seen:
            found[path] = seen[id(thing)]
            continue
        if isinstance(thing, torch.jit.ScriptModule):
            seen[id(thing)] = path
            found[path] = (getattr(thing, "training", None),)
            found |= {f"{path}/{n}": _value(t) for n, t in thing.state_dict().items()}
        elif isinstance(thing, nn.Module):
            seen[id(thing)] = path
            waiting.append((f"{path}.vars", vars(thing)))
        elif isinstance(thing, dict):
            seen[id(thing)] = path
            found[path] = (id(thing), list(map(repr, thing)))
            waiting.extend((f"{path}[{key!r}]", value) for key, value in thing.items())
        elif isinstance(thing, list | tuple | deque):
            seen[id(thing)] = path
            found[path] = (id(thing), len(thing))
            waiting.extend((f"{path}[{i}]", value) for i, value in enumerate(thing))
        elif isinstance(thing, int | float | str | bool | None):
            found[path] = thing
        else:
            found[path] = id(thing)
    found["random"] = (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002
    )
    return found


def _value(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    kind = (type(tensor).__name__, str(tensor.dtype), tuple(tensor.shape))
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
        return kind
    plain = tensor.detach().contiguous().view(-1)
    return kind, plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise with the paths that differ."""
    paths = [path for path in before | after if before.get(path) != after.get(path)]
    assert not paths, f"changed: {paths[:10]}"


def fakes() -> set[int]:
    """The fake tensors that something in the process still holds."""
    gc.collect()
    return {id(thing) for thing in gc.get_objects() if type(thing) is FakeTensor}
