"""Experiments on a copy of a model: does an item change another's output, is it affine?"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from convlens.checking.batches import call
from convlens.watching.outputs import first_tensor

TOLERANCE = 1e-4
"""Float32 sums of a network differ by about 1e-6 of their size; this is far above that."""


def mixes_batch(model: nn.Module, x: Any) -> float | None:  # noqa: ANN401
    """The share of the other items whose output changes when the first item is replaced.

    In evaluation mode, where batch normalization mixes nothing. None if it cannot be said: one
    item, or an output that is not per item.
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) < 3:
        return None
    if torch.equal(x[0], x[1]) or x.shape[0] == x.shape[1]:
        return None
    other = x.clone()
    other[0] = x[1]
    before, after = _outputs(model, x, other)
    if before is None or after is None or before.ndim < 1 or len(before) != len(x):
        return None
    size = before.abs().amax().clamp(min=1e-12)
    change = (after - before).reshape(len(x), -1).abs().amax(1) / size
    if not torch.isfinite(change).all():
        return None
    return float((change[1:] > TOLERANCE).float().mean())


def is_affine(model: nn.Module, x: Any) -> bool | None:  # noqa: ANN401
    """Whether the output for the mean of two inputs is the mean of their outputs.

    Asked of the architecture, not of its weights as they are: a branch that begins at zero adds
    nothing yet, so that a deep residual network is affine before its first step.

    None if it cannot be said, as of a model with a single weight matrix, which may well be affine.
    """
    weights = [p for p in model.parameters() if p.ndim >= 2]
    if not isinstance(x, Tensor) or not x.is_floating_point() or len(x) < 2 or len(weights) < 2:
        return None
    half = len(x) // 2
    # Far apart, so that a ReLU would be in another piece: also where the inputs themselves are tiny
    # beside the biases.
    x = x / x.std().clamp(min=1e-12)
    a, b = x[:half] * 3, -x[half : 2 * half] * 2
    with _without_zeros(model):
        fa, fb = _outputs(model, a, b)
        fm, _ = _outputs(model, (a + b) / 2, b)
    if fa is None or fb is None or fm is None or fa.shape != fm.shape:
        return None
    size = max(float((fa - fb).abs().amax()), 1e-12)
    if not size > 1e-6 * max(float(fa.abs().amax()), 1e-12):
        return None  # the output does not depend on the input at all
    return float((fm - (fa + fb) / 2).abs().amax()) < TOLERANCE * size


NEXT_TO_ZERO = 1e-2
"""A parameter under this share of its usual size scales its branch down to what `TOLERANCE` does
not see, as a layer scale that begins at 1e-6."""


@contextmanager
def _without_zeros(model: nn.Module) -> Generator[None]:
    """Fill parameters that are zero, or next to it, with numbers of the usual size.

    A network without activations is affine whatever they are.
    """
    generator = torch.Generator().manual_seed(0)
    found = [p for p in model.parameters() if p.is_floating_point() and p.numel()]
    usual = [1.0 if p.ndim < 2 else 1 / math.sqrt(p[0].numel()) for p in found]
    small = [
        float(p.detach().abs().amax()) < NEXT_TO_ZERO * u for p, u in zip(found, usual, strict=True)
    ]
    before = [p.detach().clone() for p in compress(found, small)]
    try:
        with torch.no_grad():
            for p, size in compress(zip(found, usual, strict=True), small):
                p.copy_(size * torch.randn(p.shape, generator=generator))
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(compress(found, small), before, strict=True):
                p.copy_(value)


def has_recurrent(model: nn.Module) -> bool:
    """Whether there is a recurrent layer without gates."""
    return any(isinstance(module, nn.RNN) for module in model.modules())


def forgotten(model: nn.Module, x: Any) -> dict[str, float]:  # noqa: ANN401
    """By recurrent module, the gradient at the first step of its input beside that at the last."""
    found = dict[str, float]()

    def look(name: str, axis: int, gradient: Tensor) -> None:
        sizes = gradient.detach().abs().movedim(axis, 0).flatten(1).sum(1)
        if len(sizes) >= 8 and float(sizes.max()) > 0:
            found[name] = float(sizes[0] / sizes.max())

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.RNN):  # an untrained LSTM forgets too, and can learn not to

            def begin(
                module: nn.RNNBase, args: tuple[Any, ...], name: str = name
            ) -> tuple[Any, ...] | None:
                first = args[0]
                if not isinstance(first, Tensor) or first.ndim != 3:
                    return None
                given = first if first.requires_grad else first.detach().requires_grad_()
                axis = 1 if module.batch_first else 0
                given.register_hook(partial(look, name, axis))
                return (given, *args[1:])

            handles.append(module.register_forward_pre_hook(begin))
    if not handles:
        return found
    try:
        output = first_tensor(call(model, x))
        if output is not None and output.requires_grad:
            output.float().square().sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _outputs(model: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor | None, Tensor | None]:
    with torch.no_grad():
        outputs = (first_tensor(call(model, a)), first_tensor(call(model, b)))
    return outputs[0], outputs[1]
