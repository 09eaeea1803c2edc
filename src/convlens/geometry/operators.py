"""How each operator of torch changes what its output sees of the model's input.

One rule per operator. An operator without a rule makes its output unknown, by its name: what is not
known is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch

from convlens.geometry import reshaping, spans
from convlens.geometry.spans import Field, InseparableError, Span, Unknown

Seen = Field | Unknown | None  # None: does not depend on the input at all
Args = Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Attributes:
        args: its arguments by the names of its schema, defaults filled in.
        outputs: the tensors it returned.
        seen: what a tensor argument sees; `Unknown` ones are dealt with before any rule is asked.
    """

    args: Args
    outputs: Sequence[torch.Tensor]
    seen: Callable[[object], Field | None]

    def field(self, name: str) -> Field | None:
        """What the argument ``name`` sees, None for one that is constant or absent."""
        return self.seen(self.args.get(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor argument ``name``."""
        return tuple(self.args[name].shape)

    def ints(self, name: str, n: int) -> list[int]:
        """The argument ``name`` as n integers; torch repeats a single one."""
        values = [int(value) for value in self.args[name]]
        return values * n if len(values) == 1 else values

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return tuple(self.outputs[0].shape)


Rule = Callable[[Call], "Field | Sequence[Field] | None"]


def see(func: torch._ops.OpOverload, call: Call) -> list[Seen]:
    """What each output of an operator sees: one entry per output tensor."""
    rule = _rule_of(func)
    name = str(func.overloadpacket)
    if rule is None:
        return [Unknown(name)] * len(call.outputs)
    try:
        result = rule(call)
    except InseparableError:
        return [Unknown(name)] * len(call.outputs)
    if result is None or isinstance(result, Field):
        same = [tuple(out.shape) == call.output_shape for out in call.outputs]
        return [_tidy(result) if shared else Unknown(name) for shared in same]
    return [_tidy(field) for field in result]


def _tidy(field: Field | None) -> Field | None:
    """A tensor of which no unit sees anything along some axis is a constant."""
    if field is None or any(span.sees_nothing for span in field.spans):
        return None
    return field


def _rule_of(func: torch._ops.OpOverload) -> Rule | None:
    name = str(func.overloadpacket).removeprefix("aten.")
    plain = name.removesuffix("_") if not name.startswith("_") else name
    rule = RULES.get(name) or RULES.get(plain)
    if rule is None and torch.Tag.pointwise in func.tags:
        return _pointwise
    return rule


def _tensors(values: object) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        items = cast("Sequence[object]", values)
        return [tensor for item in items for tensor in _tensors(item)]
    return []


def _pointwise(call: Call) -> Field | None:
    """Unit by unit: what any of the tensors sees, repeated where torch repeats them."""
    tensors = [t for value in call.args.values() for t in _tensors(value)]
    fields = [
        reshaping.broadcast(field, tuple(tensor.shape), call.output_shape)
        for tensor in tensors
        if (field := call.seen(tensor)) is not None
    ]
    return reshaping.join(fields) if fields else None


def _same(call: Call) -> Field | None:
    return next((call.seen(v) for v in call.args.values() if isinstance(v, torch.Tensor)), None)


def _constant(_: Call) -> None:
    return None


def _copy(call: Call) -> Field | None:
    field = call.field("src")
    return field and reshaping.broadcast(field, call.shape("src"), call.output_shape)


def _fill(call: Call) -> None:
    if call.seen(call.args.get("value")) is not None:
        raise InseparableError


# --- windows -----------------------------------------------------------------------------------


def _over_windows(
    call: Call, field: Field, name: str, move: Callable[[Span, int, int], Span]
) -> Field:
    """Apply ``move(span, axis, n_out)`` to the spans along the last axes, which windows cover."""
    n_axes = len(call.output_shape) - 2
    first_dim = 2
    result: list[Span] = []
    for span in field.spans:
        if span.dim is not None and span.dim >= first_dim:
            result.append(move(span, span.dim - first_dim, call.output_shape[span.dim]))
        else:
            result.append(span)
    homes = {span.dim for span in field.spans}
    for axis in range(n_axes):
        if first_dim + axis not in homes:
            _need_no_empty_window(call, name, axis, move)
    return replace(field, spans=tuple(result))


def _need_no_empty_window(
    call: Call, name: str, axis: int, move: Callable[[Span, int, int], Span]
) -> None:
    """A window of padding alone sees nothing, which no span would say here."""
    n = call.shape(name)[2 + axis]
    zeros = np.zeros(n, dtype=np.int64)
    probe = move(Span(2 + axis, zeros, zeros, None), axis, call.output_shape[2 + axis])
    if (probe.first > probe.last).any():
        raise InseparableError


def _convolution(call: Call) -> Field | None:
    field = call.field("input")
    if call.field("weight") is not None or call.field("bias") is not None:
        raise InseparableError
    if field is None:
        return None
    weight, groups = call.shape("weight"), int(call.args["groups"])
    n = len(weight) - 2
    stride, padding = call.ints("stride", n), call.ints("padding", n)
    dilation = call.ints("dilation", n)
    slide = spans.spread if call.args["transposed"] else spans.slide

    def move(span: Span, axis: int, n_out: int) -> Span:
        kernel = weight[2 + axis]
        return slide(span, kernel, stride[axis], padding[axis], dilation[axis], n_out)

    result = _over_windows(call, _mix_channels(field, groups), "input", move)
    cleared = groups == 1 and field.uneven == "channels"
    return replace(result, uneven="no") if cleared else result


def _mix_channels(field: Field, groups: int) -> Field:
    """A convolution reads all channels of its group at once."""
    if not any(span.dim == 1 for span in field.spans):
        return field
    if groups > 1:
        raise InseparableError
    return replace(
        field, spans=tuple(spans.collapse(s) if s.dim == 1 else s for s in field.spans)
    )


def _pool(call: Call) -> Field | None:
    field = call.field("self")
    if field is None:
        return None
    n = len(call.args["kernel_size"])
    n = max(n, _pooled_axes(call))
    kernel = call.ints("kernel_size", n)
    stride = call.ints("stride", n) if call.args["stride"] else kernel
    padding = call.ints("padding", n)
    dilation = call.ints("dilation", n) if "dilation" in call.args else [1] * n
    _need_batched(call, n)

    def move(span: Span, axis: int, n_out: int) -> Span:
        return spans.slide(span, kernel[axis], stride[axis], padding[axis], dilation[axis], n_out)

    return _over_windows(call, field, "self", move)


def _pooled_axes(call: Call) -> int:
    return len(call.output_shape) - 2


def _need_batched(call: Call, n: int) -> None:
    """(C, H, W) without a batch axis is not handled: its axes mean something else here."""
    if len(call.output_shape) != n + 2:
        raise InseparableError


def _adaptive_pool(call: Call) -> Field | None:
    field = call.field("self")
    if field is None:
        return None
    _need_batched(call, len(call.args["output_size"]))

    def move(span: Span, _axis: int, n_out: int) -> Span:
        n = len(span)
        if n_out == 1:
            return replace(spans.collapse(span), dim=span.dim)
        starts = [i * n // n_out for i in range(n_out)]
        ends = [-((-(i + 1) * n) // n_out) for i in range(n_out)]
        return spans.windows(span, starts, ends)

    return _over_windows(call, field, "self", move)


def _pad(call: Call) -> Field | None:
    """A constant around the tensor; a negative amount cuts."""
    field = call.field("self")
    if field is None:
        return None
    shape, amounts = call.shape("self"), [int(v) for v in call.args["pad"]]
    before = dict(zip(range(len(shape) - 1, -1, -1), amounts[::2], strict=False))
    after = dict(zip(range(len(shape) - 1, -1, -1), amounts[1::2], strict=False))
    homes = {span.dim for span in field.spans}
    touched = {d for d in before if before[d] or after[d]} - homes
    if touched - {1} or (min(amounts, default=0) < 0 and field.uneven != "no"):
        raise InseparableError
    padded: list[Span] = []
    for span in field.spans:
        dim = span.dim
        if dim is None or not before.get(dim, 0) and not after.get(dim, 0):
            padded.append(span)
        else:
            padded.append(spans.slide(span, 1, 1, before[dim], 1, call.output_shape[dim]))
    uneven = "channels" if touched and field.uneven == "no" else field.uneven
    return Field(tuple(padded), uneven)


# --- over whole axes ---------------------------------------------------------------------------


def _dims(call: Call, name: str, rank: int) -> list[int]:
    value = call.args.get(name)
    if value is None or value == []:
        return list(range(rank))
    values = [value] if isinstance(value, int) else value
    return [int(dim) % rank for dim in values]


def _reduce(call: Call) -> Field | None:
    """A mean, sum or maximum over axes: global along them."""
    field = call.field("self")
    if field is None:
        return None
    rank = len(call.shape("self"))
    dims = _dims(call, "dim", rank)
    kept = [d for d in range(rank) if d not in dims]
    keepdim = bool(call.args.get("keepdim", False))
    collapsed = _collapse(field, dims, keepdim)
    return collapsed if keepdim else reshaping.map_dims(collapsed, kept.index)


def _collapse(field: Field, dims: Sequence[int], keepdim: bool) -> Field:
    return replace(
        field,
        spans=tuple(
            replace(spans.collapse(s), dim=s.dim if keepdim else None) if s.dim in dims else s
            for s in field.spans
        ),
    )


def _with_all(field: Field | None, dims: Sequence[int]) -> Field | None:
    """Each unit sees its own field and that of all positions along ``dims``, as in a softmax."""
    return field and reshaping.join([field, _collapse(field, dims, keepdim=True)])


def _softmax(call: Call) -> Field | None:
    return _with_all(call.field("self"), _dims(call, "dim", len(call.shape("self"))))


def _batch_norm(call: Call) -> Field | None:
    """Local with running statistics; over N and all positions with those of the batch."""
    _need_constant(call, "weight", "bias", "running_mean", "running_var")
    field = call.field("input")
    if not call.args.get("training", False):
        return field
    return _with_all(field, [0, *range(2, len(call.shape("input")))])


def _group_norm(call: Call) -> Field | None:
    _need_constant(call, "weight", "bias")
    return _with_all(call.field("input"), range(1, len(call.shape("input"))))


def _layer_norm(call: Call) -> Field | None:
    _need_constant(call, "weight", "bias")
    rank = len(call.shape("input"))
    return _with_all(call.field("input"), range(rank - len(call.args["normalized_shape"]), rank))


def _need_constant(call: Call, *names: str) -> None:
    if any(call.field(name) is not None for name in names):
        raise InseparableError


def _product(call: Call) -> Field | None:
    """A matrix product (…, i, k) × (…, k, j): all of k at once."""
    left, right = ("mat1", "mat2") if "mat1" in call.args else ("self", "mat2")
    if "batch1" in call.args:
        left, right = "batch1", "batch2"
    rank = len(call.output_shape)
    fields: list[Field] = []
    for name, contracted in ((left, rank - 1), (right, rank - 2)):
        if (field := call.field(name)) is not None:
            parts = _collapse(field, [contracted], keepdim=False)
            uneven = "no" if field.uneven == "no" else "somewhere"
            fields.append(replace(parts, uneven=uneven))
    if left != "self" and (added := call.field("self")) is not None:
        fields.append(reshaping.broadcast(added, call.shape("self"), call.output_shape))
    return reshaping.join(fields) if fields else None


# --- moving, cutting, joining --------------------------------------------------------------------


def _view(call: Call) -> Field | None:
    field = call.field("self")
    return field and reshaping.reshape(field, call.shape("self"), call.output_shape)


def _permute(call: Call) -> Field | None:
    field = call.field("self")
    rank = len(call.shape("self"))
    if "dims" in call.args:
        order = [int(d) % rank for d in call.args["dims"]]
    else:  # transpose and t
        a, b = (int(call.args.get(name, d)) % rank for name, d in (("dim0", 0), ("dim1", rank - 1)))
        order = list(range(rank))
        order[a], order[b] = order[b], order[a]
    return field and reshaping.map_dims(field, order.index)


def _expand(call: Call) -> Field | None:
    field = call.field("self")
    return field and reshaping.broadcast(field, call.shape("self"), call.output_shape)


def _cut_each(
    call: Call, field: Field, dim: int, parts: Sequence[Sequence[int]]
) -> list[Field]:
    n = call.shape("self")[dim]
    whole = [list(part) == list(range(n)) for part in parts]
    return [
        field if same else reshaping.cut(field, dim, np.array(part, dtype=np.int64))
        for same, part in zip(whole, parts, strict=True)
    ]


def _slice(call: Call) -> Field | None:
    field = call.field("self")
    if field is None:
        return None
    dim = int(call.args["dim"]) % len(call.shape("self"))
    n = call.shape("self")[dim]
    part = range(n)[slice(call.args["start"], call.args["end"], int(call.args["step"]))]
    return _cut_each(call, field, dim, [part])[0]


def _split(call: Call) -> list[Field] | None:
    field = call.field("self")
    if field is None:
        return None
    dim = int(call.args["dim"]) % len(call.shape("self"))
    ends = np.cumsum([out.shape[dim] for out in call.outputs]).tolist()
    starts = [0, *ends[:-1]]
    return _cut_each(call, field, dim, [range(a, b) for a, b in zip(starts, ends, strict=True)])


def _select(call: Call) -> Field | None:
    field = call.field("self")
    if field is None:
        return None
    rank = len(call.shape("self"))
    dim = int(call.args["dim"]) % rank
    index = int(call.args["index"]) % call.shape("self")[dim]
    one = _cut_each(call, field, dim, [[index]])[0]
    return reshaping.reshape(
        replace(one, spans=tuple(replace(s, dim=None) if s.dim == dim else s for s in one.spans)),
        tuple(1 if d == dim else size for d, size in enumerate(call.shape("self"))),
        call.output_shape,
    )


def _flip(call: Call) -> Field | None:
    field = call.field("self")
    for dim in _dims(call, "dims", len(call.shape("self"))):
        n = call.shape("self")[dim]
        if field is not None and any(span.dim == dim for span in field.spans):
            field = reshaping.cut(field, dim, np.arange(n - 1, -1, -1))
    return field


def _cat(call: Call) -> Field | None:
    """Along an axis of positions: one after the other. Along any other: what any part sees."""
    tensors = _tensors(call.args["tensors"])
    rank = len(call.output_shape)
    dim = int(call.args["dim"]) % rank
    fields = [call.seen(tensor) for tensor in tensors]
    known = [field for field in fields if field is not None]
    if not known:
        return None
    if any(span.dim == dim for field in known for span in field.spans):
        if len(known) < len(fields):
            raise InseparableError
        return _cat_positions(known, dim)
    joined = reshaping.join(known)
    if len(known) == len(fields) and all(equal(field, known[0]) for field in known):
        return joined
    if dim != 1:
        raise InseparableError
    return replace(joined, uneven="channels" if joined.uneven != "somewhere" else "somewhere")


def _cat_positions(fields: Sequence[Field], dim: int) -> Field:
    if any(field.uneven != "no" for field in fields):
        raise InseparableError
    result: list[Span] = []
    for column in zip(*(field.spans for field in fields), strict=True):
        if all(span.dim == dim for span in column):
            first = np.concatenate([span.first for span in column])
            last = np.concatenate([span.last for span in column])
            result.append(Span(dim, first, last, None))
        elif all(_equal_span(span, column[0]) for span in column):
            result.append(column[0])
        else:
            raise InseparableError
    return Field(tuple(result))


def equal(a: Field, b: Field) -> bool:
    """Whether two fields are the same, axis by axis."""
    pairs = zip(a.spans, b.spans, strict=True)
    return a.uneven == b.uneven and all(_equal_span(x, y) for x, y in pairs)


def _equal_span(a: Span, b: Span) -> bool:
    arrays = np.array_equal(a.first, b.first) and np.array_equal(a.last, b.last)
    return arrays and a.dim == b.dim and a.affine == b.affine


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "convolution": _convolution,
        **dict.fromkeys(
            ("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"),
            _pool,
        ),
        **dict.fromkeys(
            (
                "_adaptive_avg_pool2d",
                "_adaptive_avg_pool3d",
                "adaptive_max_pool2d",
                "adaptive_max_pool3d",
            ),
            _adaptive_pool,
        ),
        **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
        **dict.fromkeys(("_softmax", "_log_softmax"), _softmax),
        **dict.fromkeys(
            (
                "native_batch_norm",
                "_native_batch_norm_legit",
                "_native_batch_norm_legit_no_training",
                "cudnn_batch_norm",
            ),
            _batch_norm,
        ),
        "native_group_norm": _group_norm,
        "native_layer_norm": _layer_norm,
        **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
        **dict.fromkeys(
            ("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "_reshape_alias"), _view
        ),
        **dict.fromkeys(("permute", "transpose", "t"), _permute),
        **dict.fromkeys(("clone", "_to_copy", "detach", "alias", "lift_fresh"), _same),
        **dict.fromkeys(("native_dropout", "hardswish", "sigmoid", "logit"), _pointwise),
        "_prelu_kernel": _pointwise,
        **dict.fromkeys(
            (
                "zeros_like",
                "ones_like",
                "full_like",
                "empty_like",
                "rand_like",
                "randn_like",
                "new_zeros",
                "new_ones",
                "new_full",
                "new_empty",
                "zero",
            ),
            _constant,
        ),
        "fill": _fill,
        "copy": _copy,
        "expand": _expand,
        "slice": _slice,
        "select": _select,
        "flip": _flip,
        **dict.fromkeys(("split", "split_with_sizes"), _split),
        "cat": _cat,
        "constant_pad_nd": _pad,
    }
)
