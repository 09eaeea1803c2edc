"""Operators that put the same elements elsewhere: views, slices, flips, concatenation."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from convlens.geometry import index_maps, spans
from convlens.geometry.index_maps import IndexMap
from convlens.geometry.operator_effects.calls import Call, through
from convlens.geometry.spans import Field, Known


def copied(call: Call) -> Known:
    """What ``self`` held is overwritten by ``src``."""
    if not call.sees("src"):
        return None
    return spans.union([(call.field("src"), call.shape_of("src"))], call.shape)


def viewed(call: Call) -> Known:
    """The same elements, in the same order, in another shape."""
    old, field = call.shape_of("self"), call.field("self")
    return field if old == call.shape else spans.reshape(field, old, call.shape)


def restrided(call: Call) -> Known:
    """`Tensor.as_strided` with the strides that the tensor has; other views are not followed."""
    entry = call.entry(call["self"])
    axes = zip(call["size"], call["stride"], entry.stride, strict=False)
    same = tuple(call["size"]) == entry.shape and all(n == 1 or a == b for n, a, b in axes)
    offset = call.arguments.get("storage_offset")
    return call.field("self") if same and offset in {None, entry.offset} else call.unknown()


def permuted(call: Call) -> Known:
    """Axes in another order: ``permute``, ``transpose`` and ``t``."""
    rank = len(call.shape_of("self"))
    order = list(range(rank))
    if "dims" in call.arguments:
        order = [d % rank for d in call["dims"]]
    elif rank > 1:
        a, b = call.arguments.get("dim0", 0) % rank, call.arguments.get("dim1", 1) % rank
        order[a], order[b] = order[b], order[a]
    return spans.permute(call.field("self"), order)


def expanded(call: Call) -> Known:
    """Axes of one position repeated."""
    return spans.union([(call.field("self"), call.shape_of("self"))], call.shape)


def repeated(call: Call) -> Known:
    """The whole tensor several times along each axis."""
    lead = (1,) * (len(call.shape) - len(call.shape_of("self")))
    shape = (*lead, *call.shape_of("self"))
    field = spans.union([(call.field("self"), call.shape_of("self"))], shape)
    again = {
        dim: index_maps.picked(n, np.arange(n * times) % n)
        for dim, (n, times) in enumerate(zip(shape, call["repeats"], strict=True))
        if times > 1 < n
    }
    once = tuple(n if n == 1 else out for n, out in zip(shape, call.shape, strict=True))
    return spans.union([(through(field, shape, again), once)], call.shape)


def sliced(call: Call) -> Known:
    """Positions start, start + step, … of one axis."""
    n, dim = call.shape_of("self")[call.dim()], call.dim()
    start = call["start"] or 0
    start = min(max(start + n if start < 0 else start, 0), n)
    return _part(call, index_maps.strided(n, call.shape[dim], [start], call["step"]))


def _part(call: Call, part: IndexMap) -> Field:
    """Some positions of the axis that the call names."""
    shape, dim = call.shape_of("self"), call.dim()
    return tuple(spans.narrow(seen, dim, shape[dim], part) for seen in call.field("self"))


def _position(call: Call, index: int) -> Field:
    """One position of the axis that the call names, without that axis."""
    shape, dim = call.shape_of("self"), call.dim()
    return tuple(spans.pick(seen, dim, shape[dim], index) for seen in call.field("self"))


def selected(call: Call) -> Known:
    """One position of one axis, without that axis."""
    return _position(call, call["index"] % call.shape_of("self")[call.dim()])


def unbound(call: Call) -> list[Known]:
    """All positions of one axis, each by itself."""
    return [_position(call, i) for i in range(call.shape_of("self")[call.dim()])]


def split(call: Call) -> list[Known]:
    """One axis cut into parts of given sizes."""
    n = call.shape_of("self")[call.dim()]
    sizes = call.arguments.get("split_sizes")
    if sizes is None:
        size = call["split_size"]
        sizes = [min(size, n - start) for start in range(0, n, size)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        _part(call, index_maps.strided(n, size, [start]))
        for size, start in zip(sizes, starts, strict=True)
    ]


def gated(call: Call) -> Known:
    """`torch.nn.GLU`: the first half of an axis times the sigmoid of the second."""
    n, half = call.shape_of("self")[call.dim()], call.shape[call.dim()]
    halves = [_part(call, index_maps.strided(n, half, [start])) for start in (0, half)]
    return spans.union([(field, call.shape) for field in halves], call.shape)


def flipped(call: Call) -> Known:
    """Positions from the last to the first."""
    shape = call.shape_of("self")
    reads = {
        dim: index_maps.strided(shape[dim], shape[dim], [shape[dim] - 1], -1)
        for dim in (given % len(shape) for given in call["dims"])
    }
    return through(call.field("self"), shape, reads)


def rolled(call: Call) -> Known:
    """Positions moved along some axes; those beyond one end come back at the other."""
    shape = call.shape_of("self")
    if not call["dims"]:
        return call.unknown()
    reads: dict[int, IndexMap] = {}
    for given, shift in zip(call["dims"], call["shifts"], strict=True):
        n = shape[given]
        reads[given % len(shape)] = index_maps.picked(n, (np.arange(n) - shift) % n)
    return through(call.field("self"), shape, reads)


def concatenated(call: Call) -> Known:
    """Tensors one after the other along an axis."""
    tensors: list[Tensor] = list(call["tensors"])
    parts = [(call.field_of(t), call.entry(t).shape) for t in tensors]
    return spans.concatenate(parts, call["dim"] % len(call.shape))


def stacked(call: Call) -> Known:
    """Tensors one after the other along a new axis."""
    tensors: list[Tensor] = list(call["tensors"])
    dim = call["dim"] % len(call.shape)
    own = tuple(1 if d == dim else n for d, n in enumerate(call.shape))
    fields = [call.field_of(t) for t in tensors]
    parts = [
        (field and spans.reshape(field, call.entry(t).shape, own), own)
        for field, t in zip(fields, tensors, strict=True)
    ]
    return spans.concatenate(parts, dim)
