"""Operators that read whole axes: normalization, reductions, products of matrices, attention."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convlens.geometry import spans
from convlens.geometry.effects.calls import Call, over
from convlens.geometry.effects.windows import mix_channels
from convlens.geometry.spans import NOTHING_FIRST, NOTHING_LAST, Field, Ints, Known, Shape, Span

Mask = NDArray[np.bool_]

Part = tuple[Field, Shape]
"""A field, and the shape to broadcast it from."""


def batch_norm(call: Call) -> Known:
    """With running statistics each element is scaled by itself; with the batch's by its channel."""
    if call.sees("weight", "bias", "running_mean", "running_var"):
        return call.unknown()
    if not call.arguments.get("training", False):
        return call.field("input")
    shape = call.shape_of("input")
    return over(call.field("input"), shape, [dim for dim in range(len(shape)) if dim != 1])


def layer_norm(call: Call) -> Known:
    """Layer and RMS normalization: everything over the normalized axes, the last ones."""
    if call.sees("weight", "bias"):
        return call.unknown()
    shape = call.shape_of("input")
    last = range(len(shape) - len(call["normalized_shape"]), len(shape))
    return over(call.field("input"), shape, last)


def group_norm(call: Call) -> Known:
    """Sees every position and every channel of its group."""
    if call.sees("weight", "bias"):
        return call.unknown()
    shape, groups = call.shape_of("input"), int(call["group"])
    field = over(call.field("input"), shape, range(2, len(shape)))
    return tuple(mix_channels(seen, shape, shape[1], groups) for seen in field)


def along_axis(call: Call) -> list[Known]:
    """All elements along one axis decide about each of them: softmax, sorting, the largest k."""
    dim = call.dim()
    return call.all(over(call.field(call.input), call.shape_of(call.input), (dim,)))


def reduction(call: Call) -> list[Known]:
    """Mean, sum, variance, extrema … over some axes, or all of them."""
    shape = call.shape_of(call.input)
    dims = call.arguments.get("dim")
    given = [dims] if isinstance(dims, int) else list(dims or range(len(shape)))
    axes = sorted({dim % len(shape) for dim in given}) if shape else []
    field = over(call.field(call.input), shape, axes)
    if not call.arguments.get("keepdim", False):
        field = tuple(spans.without_axes(seen, axes) for seen in field)
    return call.all(field)


def matrix_product(call: Call) -> Known:
    """(…, m, k) times (…, k, n), perhaps added to a third: a row with a column."""
    left, right = next(
        pair
        for pair in (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2"))
        if all(name in call.arguments for name in pair)
    )
    parts = [
        _contracted(call, name, len(call.shape_of(name)) + axis)
        for name, axis in ((left, -1), (right, -2))
        if call.sees(name)
    ]
    if left != "self" and call.sees("self"):  # to which addmm adds the product
        parts.append((call.field("self"), call.shape_of("self")))
    return spans.union(parts, call.shape)


def _contracted(call: Call, name: str, axis: int) -> Part:
    shape = call.shape_of(name)
    kept = tuple(1 if dim == axis else n for dim, n in enumerate(shape))
    return over(call.field(name), shape, (axis,)), kept


def attention(call: Call) -> list[Known]:
    """Scaled dot-product attention (N, heads, T, E): each query sees every key and value.

    Those that a mask hides, or that come later where ``is_causal``, it does not see.
    """
    n_heads = {call.shape_of(name)[1] for name in ("query", "key", "value")}
    allowed = _allowed(call)
    if len(n_heads) > 1 or isinstance(allowed, str):
        return call.all(call.unknown())
    queries, keys = (
        [_contracted(call, name, 3) for name in names if call.sees(name)]
        for names in (("query",), ("key", "value"))
    )
    if keys:
        n, heads, t, _ = call.shape
        shape = (n, heads, call.shape_of("key")[2], 1)
        joined = spans.union(keys, shape)
        if allowed is None:
            queries.append((over(joined, shape, (2,)), (n, heads, 1, 1)))
        else:
            seen = tuple(_attended(each, shape[2], allowed) for each in joined)
            queries.append((seen, (n, heads, t, 1)))
    first: list[Known] = [spans.union(queries, call.shape)]
    return first + call.all(call.unknown())[1:]


def _allowed(call: Call) -> Mask | str | None:
    """Which keys each query may see, (…, T, S); None if all; a word if that is not known."""
    mask = call.arguments.get("attn_mask")
    mask = call.arguments.get("attn_bias") if mask is None else mask
    allowed = None
    if isinstance(mask, Tensor):
        value = call.value(mask)
        if value is None:
            return "mask"
        allowed = value if value.dtype == np.bool_ else value != -np.inf
    if call.arguments.get("is_causal"):
        causal = np.tri(call.shape_of("query")[2], call.shape_of("key")[2], dtype=np.bool_)
        allowed = causal if allowed is None else allowed & causal
    return None if allowed is None or bool(allowed.all()) else allowed


def _attended(seen: Span, length: int, allowed: Mask) -> Span:
    """The union over the keys that each query may see: (N, heads, S, 1) to (N, heads, T, 1)."""

    def pick(array: Ints, nothing: np.int32) -> Ints:
        lines = np.broadcast_to(array, (*array.shape[:2], length, 1)).swapaxes(2, 3)
        return np.where(allowed, lines, nothing)

    first = pick(seen.first, NOTHING_FIRST).min(axis=3, keepdims=True)
    last = pick(seen.last, NOTHING_LAST).max(axis=3, keepdims=True)
    return Span(first, last, None, None, seen.mixed)
