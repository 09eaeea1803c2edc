"""What each of torch's operators does to the fields of the tensors it reads.

An operator has a function here that takes a `Call` and returns the fields of its outputs, or it is
pointwise by torch's own tag. Any other operator is unknown, and said to be so by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from convlens.geometry import reach
from convlens.geometry.reach import Field, Ints, Known, Reach, Shape, Unknown


@dataclass(frozen=True)
class Call:
    """One call of an operator: its arguments by name, what their tensors see, its first output."""

    operator: str
    arguments: Mapping[str, Any]
    lookup: Callable[[Tensor], Known]
    shape: Shape

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        return self.arguments[name]

    def field(self, name: str) -> Field:
        """The field of an argument that is known to have one."""
        known = self.lookup(self[name])
        if not isinstance(known, tuple):
            raise LookupError(name)
        return known

    def sees(self, *names: str) -> bool:
        """Whether one of the arguments depends on the input."""
        values = [self.arguments.get(name) for name in names]
        return any(isinstance(v, Tensor) and self.lookup(v) is not None for v in values)

    def shape_of(self, name: str) -> Shape:
        """The shape of a tensor argument."""
        return tuple(self[name].shape)

    def unknown(self) -> Unknown:
        """What to answer where this call is not understood."""
        return Unknown(self.operator)


Effect = Callable[[Call], "Known | list[Known]"]
"""The field of the first output (others are then unknown), or those of all outputs, in order."""


def pointwise(call: Call) -> Known:
    """Each element is made of the elements at its place, broadcast."""
    tensors = [t for t in call.arguments.values() if isinstance(t, Tensor)]
    known = [(call.lookup(t), tuple(t.shape)) for t in tensors]
    fields = [(field, shape) for field, shape in known if isinstance(field, tuple)]
    if len(fields) == 1 and fields[0][1] == call.shape:
        return fields[0][0]
    return reach.union(fields, call.shape)


def copied(call: Call) -> Known:
    """What ``self`` held is overwritten by ``src``."""
    if not call.sees("src"):
        return None
    return reach.union([(call.field("src"), call.shape_of("src"))], call.shape)


def valueless(_: Call) -> Known:
    """The output has the input's shape, and none of its values."""
    return None


def convolution(call: Call) -> Known:
    """Convolution or transposed convolution, (N, C, …) with weight (C_out, C_in / groups, …)."""
    if call.sees("weight", "bias"):
        return call.unknown()
    n_in, kernel = call.shape_of("input"), call.shape_of("weight")[2:]
    axes = len(kernel)
    stride, padding, dilation = (
        _each(call[name], axes) for name in ("stride", "padding", "dilation")
    )

    def through(axis: int, seen: Reach) -> Reach:
        dim = axis + 2
        k, s, p, d = kernel[axis], stride[axis], padding[axis], dilation[axis]
        if not call["transposed"]:
            offsets = [i * d - p for i in range(k)]
            return _windowed(seen, dim, n_in[dim], call.shape[dim], offsets, s)
        taps = reach.spread_taps(n_in[dim], call.shape[dim], k, s, p, d)
        rule = seen.rule.spread(k, s, p, d) if seen.rule and seen.dim == dim else seen.rule
        return reach.gather(seen, dim, n_in[dim], taps).with_rule(rule, seen.dim)

    def whole(seen: Reach) -> Reach:
        for axis in range(axes):
            seen = through(axis, seen)
        return _mix_channels(seen, n_in, call.shape[1], call["groups"])

    return tuple(whole(seen) for seen in call.field("input"))


def _windowed(
    seen: Reach, dim: int, n_in: int, n_out: int, offsets: Sequence[int], stride: int
) -> Reach:
    taps = reach.strided_taps(n_in, n_out, offsets, stride)
    rule = seen.rule.window(offsets, stride) if seen.rule and seen.dim == dim else seen.rule
    return reach.gather(seen, dim, n_in, taps).with_rule(rule, seen.dim)


def _mix_channels(seen: Reach, shape: Shape, n_out: int, groups: int) -> Reach:
    """Each group of output channels sees all input channels of its group."""
    if groups == 1:
        return reach.reduce_dims(seen, shape, (1,))
    if seen.first.shape[1] == 1:
        return seen
    rule = None if seen.mixed or seen.dim == 1 else seen.rule

    def by_group(array: Ints, least: bool) -> Ints:
        split = array.reshape(array.shape[0], groups, -1, *array.shape[2:])
        joined = split.min(axis=2) if least else split.max(axis=2)
        return joined.repeat(n_out // groups, axis=1)

    first, last = by_group(seen.first, least=True), by_group(seen.last, least=False)
    return Reach(first, last, rule, None if seen.dim == 1 else seen.dim, seen.mixed)


def pooling(call: Call) -> Known | list[Known]:
    """Max and average pooling over windows, in one, two or three axes."""
    shape = call.shape_of("self")
    axes = _pooled_axes(call.operator)
    kernel = _each(call["kernel_size"], axes)
    stride = _each(call["stride"], axes) if call["stride"] else kernel
    padding = _each(call["padding"], axes)
    dilation = _each(call.arguments.get("dilation", 1), axes)

    def whole(seen: Reach) -> Reach:
        for axis in range(axes):
            dim = len(shape) - axes + axis
            offsets = [i * dilation[axis] - padding[axis] for i in range(kernel[axis])]
            seen = _windowed(seen, dim, shape[dim], call.shape[dim], offsets, stride[axis])
        return seen

    return _with_places(call, tuple(whole(seen) for seen in call.field("self")))


def adaptive_pooling(call: Call) -> Known | list[Known]:
    """Adaptive average and max pooling: as many windows as asked for, of nearly equal size."""
    shape = call.shape_of("self")
    axes = _pooled_axes(call.operator)

    def along(seen: Reach, dim: int) -> Reach:
        n_in, n_out = shape[dim], call.shape[dim]
        if n_out == 1:
            return reach.reduce_dims(seen, shape, (dim,))
        rule = seen.rule
        if rule is not None and seen.dim == dim:
            step = n_in // n_out
            rule = rule.window(range(step), step) if n_in % n_out == 0 else None
        taps = reach.adaptive_taps(n_in, n_out)
        return reach.gather(seen, dim, n_in, taps).with_rule(rule, seen.dim)

    def whole(seen: Reach) -> Reach:
        for dim in range(len(shape) - axes, len(shape)):
            seen = along(seen, dim)
        return seen

    return _with_places(call, tuple(whole(seen) for seen in call.field("self")))


def _with_places(call: Call, field: Field) -> Known | list[Known]:
    """Max pooling returns the places of the maxima too: they depend on the same values."""
    return [field, field] if "max_pool" in call.operator else field


def _pooled_axes(operator: str) -> int:
    return int(operator[operator.index("pool") + 4])


def constant_pad(call: Call) -> Known:
    """Padding with a constant, which sees nothing; negative padding crops."""
    shape, pad = call.shape_of("self"), call["pad"]

    def whole(seen: Reach) -> Reach:
        for i in range(len(pad) // 2):
            dim = len(shape) - 1 - i
            seen = _windowed(seen, dim, shape[dim], call.shape[dim], [-pad[2 * i]], 1)
            channels = dim < 2 and (pad[2 * i], pad[2 * i + 1]) != (0, 0)
            seen = replace(seen, mixed=seen.mixed or channels)
        return seen

    return tuple(whole(seen) for seen in call.field("self"))


def batch_norm(call: Call) -> Known:
    """With running statistics each element is scaled by itself; with the batch's by its channel."""
    if call.sees("weight", "bias", "running_mean", "running_var"):
        return call.unknown()
    if not call.arguments.get("training", False):
        return call.field("input")
    shape = call.shape_of("input")
    return _over(call.field("input"), shape, [dim for dim in range(len(shape)) if dim != 1])


def layer_norm(call: Call) -> Known:
    """Sees everything over the normalized axes, the last ones."""
    if call.sees("weight", "bias"):
        return call.unknown()
    shape = call.shape_of("input")
    over = range(len(shape) - len(call["normalized_shape"]), len(shape))
    return _over(call.field("input"), shape, over)


def group_norm(call: Call) -> Known:
    """Sees every position and every channel of its group."""
    if call.sees("weight", "bias"):
        return call.unknown()
    shape, groups = call.shape_of("input"), int(call["group"])
    field = _over(call.field("input"), shape, range(2, len(shape)))
    return tuple(_mix_channels(seen, shape, shape[1], groups) for seen in field)


def softmax(call: Call) -> Known:
    """Each element is divided by the sum over its axis."""
    shape = call.shape_of("self")
    return _over(call.field("self"), shape, (call["dim"] % len(shape),))


def reduction(call: Call) -> Known:
    """Mean, sum, variance, extrema … over some axes, or all of them."""
    shape = call.shape_of("self")
    dims = call.arguments.get("dim")
    given = [dims] if isinstance(dims, int) else list(dims or range(len(shape)))
    over = sorted({dim % len(shape) for dim in given})
    field = _over(call.field("self"), shape, over)
    if call.arguments.get("keepdim", False):
        return field
    return tuple(_without_axes(seen, over) for seen in field)


def _over(field: Field, shape: Shape, dims: Sequence[int]) -> Field:
    return tuple(reach.reduce_dims(seen, shape, dims) for seen in field)


def _without_axes(seen: Reach, axes: Sequence[int]) -> Reach:
    """The same without axes along which all positions see the same."""
    kept = [n for d, n in enumerate(seen.first.shape) if d not in axes]
    dim = None if seen.dim is None else seen.dim - sum(axis < seen.dim for axis in axes)
    return seen.map(lambda a: a.reshape(kept)).with_rule(seen.rule, dim)


def matrix_product(call: Call) -> Known:
    """(…, m, k) times (…, k, n): a row of one with a column of the other, and perhaps a bias."""
    factors = next(
        pair
        for pair in (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2"))
        if all(name in call.arguments for name in pair)
    )
    parts = [
        _contracted(call, name, (axis % len(call.shape_of(name)),))
        for name, axis in zip(factors, (-1, -2), strict=True)
        if call.sees(name)
    ]
    if "self" not in factors and call.sees("self"):
        parts.append((call.field("self"), call.shape_of("self")))
    return reach.union(parts, call.shape)


def attention(call: Call) -> Known:
    """Scaled dot-product attention (N, heads, T, E): each query sees every key and value."""
    masks = [call.arguments.get(name) for name in ("is_causal", "attn_mask", "attn_bias")]
    heads = {call.shape_of(name)[1] for name in ("query", "key", "value")}
    if any(mask is not None and mask is not False for mask in masks) or len(heads) > 1:
        return call.unknown()
    parts = [
        _contracted(call, name, over)
        for name, over in (("query", (3,)), ("key", (2, 3)), ("value", (2,)))
        if call.sees(name)
    ]
    return reach.union(parts, call.shape)


def _contracted(call: Call, name: str, over: Sequence[int]) -> tuple[Field, Shape]:
    shape = call.shape_of(name)
    kept = tuple(1 if dim in over else n for dim, n in enumerate(shape))
    return _over(call.field(name), shape, over), kept


def viewed(call: Call) -> Known:
    """The same elements in another shape."""
    old, field = call.shape_of("self"), call.field("self")
    return field if old == call.shape else reach.reshape(field, old, call.shape)


def permuted(call: Call) -> Known:
    """Axes in another order: ``permute``, ``transpose`` and ``t``."""
    rank = len(call.shape_of("self"))
    order = list(range(rank))
    if "dims" in call.arguments:
        order = [d % rank for d in call["dims"]]
    elif rank > 1:
        a, b = call.arguments.get("dim0", 0) % rank, call.arguments.get("dim1", 1) % rank
        order[a], order[b] = order[b], order[a]

    def turn(seen: Reach) -> Reach:
        dim = None if seen.dim is None else order.index(seen.dim)
        return seen.map(lambda a: a.transpose(order)).with_rule(seen.rule, dim)

    return tuple(turn(seen) for seen in call.field("self"))


def expanded(call: Call) -> Known:
    """Axes of one position repeated."""
    return reach.union([(call.field("self"), call.shape_of("self"))], call.shape)


def sliced(call: Call) -> Known:
    """Positions start, start + step, … of one axis."""
    shape = call.shape_of("self")
    dim = call["dim"] % len(shape)
    start = call["start"] or 0
    start = min(max(start + shape[dim] if start < 0 else start, 0), shape[dim])
    return tuple(
        _narrowed(seen, dim, shape[dim], call.shape[dim], start, call["step"])
        for seen in call.field("self")
    )


def _narrowed(seen: Reach, dim: int, n_in: int, n_out: int, start: int, step: int = 1) -> Reach:
    """Some positions of one axis; what is true of all channels need not be so of some."""
    part = _windowed(seen, dim, n_in, n_out, [start], step)
    return part.with_rule(None, part.dim) if seen.mixed and dim != seen.dim else part


def selected(call: Call) -> Known:
    """One position of one axis, which goes."""
    shape = call.shape_of("self")
    dim = call["dim"] % len(shape)
    return tuple(
        _without_axes(_picked(seen, dim, shape[dim], call["index"] % shape[dim]), (dim,))
        for seen in call.field("self")
    )


def _picked(seen: Reach, dim: int, n_in: int, index: int) -> Reach:
    one = _narrowed(seen, dim, n_in, 1, index)
    return one.with_rule(one.rule and one.rule.collapsed(1), None) if one.dim == dim else one


def unbound(call: Call) -> list[Known]:
    """All positions of one axis, each by itself."""
    shape = call.shape_of("self")
    dim = call["dim"] % len(shape)
    return [
        tuple(_without_axes(_picked(s, dim, shape[dim], i), (dim,)) for s in call.field("self"))
        for i in range(shape[dim])
    ]


def split(call: Call) -> list[Known]:
    """One axis cut into parts of given sizes."""
    shape = call.shape_of("self")
    dim = call["dim"] % len(shape)
    sizes = call.arguments.get("split_sizes")
    if sizes is None:
        size = call["split_size"]
        sizes = [min(size, shape[dim] - start) for start in range(0, shape[dim], size)]
    return [
        tuple(_narrowed(s, dim, shape[dim], n, sum(sizes[:i])) for s in call.field("self"))
        for i, n in enumerate(sizes)
    ]


def concatenated(call: Call) -> Known:
    """Tensors one after the other along an axis."""
    tensors: list[Tensor] = list(call["tensors"])
    known = [call.lookup(t) for t in tensors]
    fields = [field if isinstance(field, tuple) else None for field in known]
    n_axes = max(len(field) for field in fields if field is not None)
    shapes = [tuple(t.shape) for t in tensors]
    dim = call["dim"] % len(call.shape)
    return reach.concatenate(list(zip(fields, shapes, strict=True)), dim, n_axes)


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    """One number for each axis: torch takes one for all of them too."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


_NAMES: tuple[tuple[Effect, str], ...] = (
    (convolution, "convolution"),
    (pooling, "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d"),
    (
        adaptive_pooling,
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d",
    ),
    (constant_pad, "constant_pad_nd"),
    (
        batch_norm,
        "native_batch_norm cudnn_batch_norm _native_batch_norm_legit"
        " _native_batch_norm_legit_no_training",
    ),
    (layer_norm, "native_layer_norm"),
    (group_norm, "native_group_norm"),
    (reduction, "mean sum amax amin var std logsumexp linalg_vector_norm"),
    (softmax, "_softmax _log_softmax"),
    (matrix_product, "mm addmm bmm baddbmm"),
    (
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"
        " _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    ),
    (viewed, "view _unsafe_view _reshape_alias squeeze unsqueeze"),
    (permuted, "permute transpose t"),
    (expanded, "expand"),
    (sliced, "slice"),
    (selected, "select"),
    (unbound, "unbind"),
    (split, "split split_with_sizes"),
    (concatenated, "cat"),
    (
        pointwise,
        "detach alias _to_copy lift_fresh hardswish hardswish_ _prelu_kernel native_dropout",
    ),
    (copied, "copy_"),
    (
        valueless,
        "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros"
        " new_ones new_full zero_ uniform_ normal_",
    ),
)

EFFECTS: Mapping[str, Effect] = MappingProxyType(
    {name: effect for effect, names in _NAMES for name in names.split()}
)
"""What each operator does, by the name that torch gives it."""

_FILLS = MappingProxyType({"bernoulli_": "float", "fill_": "Scalar"})
"""Operators that fill in place without reading anything, in this overload only."""


def effect_of(function: OpOverload) -> Effect | None:
    """What an operator does to fields, None where that is not known."""
    name, _, overload = function.name().removeprefix("aten::").partition(".")
    if overload and _FILLS.get(name) == overload:
        return valueless
    if overload == "out" or (name == "view" and overload == "dtype"):
        return None  # they write into what they are given, or make other elements
    if name in EFFECTS:
        return EFFECTS[name]
    tags: Sequence[torch.Tag] = function.tags
    random = torch.Tag.nondeterministic_seeded in tags
    return pointwise if torch.Tag.pointwise in tags and not random else None
