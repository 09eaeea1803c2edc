"""Operators that read whole axes: normalization, reductions, products of matrices, attention."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from convlens.geometry import spans
from convlens.geometry.operator_effects.calls import Call, over
from convlens.geometry.operator_effects.convolution_and_pooling import mix_channels
from convlens.geometry.spans import Field, Known, Shape

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

    Masks that hide keys, and causal attention, are not followed.
    """
    mask = call.arguments.get("attn_mask", call.arguments.get("attn_bias"))
    n_heads = {call.shape_of(name)[1] for name in ("query", "key", "value")}
    if len(n_heads) > 1 or call.arguments.get("is_causal") or _hides(call, mask):
        return call.all(call.unknown())
    parts = [_contracted(call, "query", 3)] if call.sees("query") else []
    for name in ("key", "value"):
        if call.sees(name):
            n, heads = call.shape_of(name)[:2]
            parts.append((over(call.field(name), call.shape_of(name), (2, 3)), (n, heads, 1, 1)))
    return [spans.union(parts, call.shape), *call.all(call.unknown())[1:]]


def _hides(call: Call, mask: object) -> bool:
    """Whether a mask may hide a key."""
    if not isinstance(mask, Tensor):
        return False
    value = call.value(mask)
    return value is None or not bool((value if value.dtype == np.bool_ else value != -np.inf).all())
