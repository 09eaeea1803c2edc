"""Operators that put the same elements elsewhere: views, slices, flips, concatenation."""

from __future__ import annotations

from math import prod

import numpy as np
from torch import Tensor

from convlens.geometry import reach, taps
from convlens.geometry.effects.calls import Call, over, through
from convlens.geometry.memory import Place, box_within
from convlens.geometry.reach import Ints, Known, Reach
from convlens.geometry.taps import Taps


def same(call: Call) -> Known:
    """The same elements in the same shape."""
    return call.field(call.input)


def copied(call: Call) -> Known:
    """What ``self`` held is overwritten by ``src``."""
    if not call.sees("src"):
        return None
    return reach.union([(call.field("src"), call.shape_of("src"))], call.shape)


def viewed(call: Call) -> Known:
    """The same elements, in the same order, in another shape."""
    old, field = call.shape_of("self"), call.field("self")
    return field if old == call.shape else reach.reshape(field, old, call.shape)


def restrided(call: Call) -> Known:
    """Another look at the memory of a tensor, where it is a part of that tensor."""
    entry = call.entry(call["self"])
    offset = call.arguments.get("storage_offset")
    there = Place(
        tuple(call["size"]), tuple(call["stride"]), entry.place.offset if offset is None else offset
    )
    box = box_within(there, entry.place)
    if box is None or not isinstance(entry.known, tuple):
        return call.unknown()
    return box.cut(entry.known, entry.shape)


def permuted(call: Call) -> Known:
    """Axes in another order: ``permute``, ``transpose`` and ``t``."""
    rank = len(call.shape_of("self"))
    order = list(range(rank))
    if "dims" in call.arguments:
        order = [d % rank for d in call["dims"]]
    elif rank > 1:
        a, b = call.arguments.get("dim0", 0) % rank, call.arguments.get("dim1", 1) % rank
        order[a], order[b] = order[b], order[a]
    return reach.permute(call.field("self"), order)


def expanded(call: Call) -> Known:
    """Axes of one position repeated."""
    return reach.union([(call.field("self"), call.shape_of("self"))], call.shape)


def repeated(call: Call) -> Known:
    """The whole tensor several times along each axis."""
    lead = (1,) * (len(call.shape) - len(call.shape_of("self")))
    shape = (*lead, *call.shape_of("self"))
    field = reach.union([(call.field("self"), call.shape_of("self"))], shape)
    again = {
        dim: taps.picked(n, np.arange(n * times) % n)
        for dim, (n, times) in enumerate(zip(shape, call["repeats"], strict=True))
        if times > 1 < n
    }
    field = through(field, shape, again)
    grown = tuple(out if n == 1 else n for n, out in zip(shape, call.shape, strict=True))
    once = tuple(n if n == 1 else out for n, out in zip(shape, call.shape, strict=True))
    return field if grown == once else reach.union([(field, once)], call.shape)


def sliced(call: Call) -> Known:
    """Positions start, start + step, … of one axis."""
    shape, dim = call.shape_of("self"), call.dim()
    start = call["start"] or 0
    start = min(max(start + shape[dim] if start < 0 else start, 0), shape[dim])
    part = taps.strided(shape[dim], call.shape[dim], [start], call["step"])
    return tuple(reach.narrow(seen, dim, shape[dim], part) for seen in call.field("self"))


def selected(call: Call) -> Known:
    """One position of one axis, which goes."""
    shape, dim = call.shape_of("self"), call.dim()
    return tuple(
        reach.pick(seen, dim, shape[dim], call["index"] % shape[dim]) for seen in call.field("self")
    )


def unbound(call: Call) -> list[Known]:
    """All positions of one axis, each by itself."""
    shape, dim = call.shape_of("self"), call.dim()
    return [
        tuple(reach.pick(seen, dim, shape[dim], i) for seen in call.field("self"))
        for i in range(shape[dim])
    ]


def split(call: Call) -> list[Known]:
    """One axis cut into parts of given sizes."""
    shape, dim = call.shape_of("self"), call.dim()
    sizes = call.arguments.get("split_sizes")
    if sizes is None:
        size = call["split_size"]
        sizes = [min(size, shape[dim] - start) for start in range(0, shape[dim], size)]
    parts = [taps.strided(shape[dim], n, [sum(sizes[:i])]) for i, n in enumerate(sizes)]
    return [
        tuple(reach.narrow(seen, dim, shape[dim], part) for seen in call.field("self"))
        for part in parts
    ]


def gated(call: Call) -> Known:
    """`torch.nn.GLU`: the first half of an axis times the sigmoid of the second."""
    shape, dim = call.shape_of("self"), call.dim()
    half = shape[dim] // 2
    cut = tuple(half if d == dim else n for d, n in enumerate(shape))
    halves = [taps.strided(shape[dim], half, [start]) for start in (0, half)]
    return reach.union(
        [
            (tuple(reach.narrow(s, dim, shape[dim], part) for s in call.field("self")), cut)
            for part in halves
        ],
        call.shape,
    )


def flipped(call: Call) -> Known:
    """Positions from the last to the first."""
    shape = call.shape_of("self")
    dims = [dim % len(shape) for dim in call["dims"]]
    return through(call.field("self"), shape, {dim: _reversed(shape[dim]) for dim in dims})


def _reversed(n: int) -> Taps:
    return taps.strided(n, n, [n - 1], -1)


def rolled(call: Call) -> Known:
    """Positions moved along some axes, those that fall off put at the other end."""
    shape, dims, field = call.shape_of("self"), list(call["dims"]), call.field("self")
    if not dims:  # all elements in a row
        row = (prod(shape),)
        moved = through(
            reach.reshape(field, shape, row), row, {0: _turned(*row, call["shifts"][0])}
        )
        return reach.reshape(moved, row, shape)
    reads = {
        dim % len(shape): _turned(shape[dim], shift)
        for dim, shift in zip(dims, call["shifts"], strict=True)
    }
    return through(field, shape, reads)


def _turned(n: int, shift: int) -> Taps:
    return taps.picked(n, (np.arange(n) - shift) % n)


def quarters(call: Call) -> Known:
    """Quarter turns of two axes: `torch.rot90`."""
    shape, field = call.shape_of("self"), call.field("self")
    one, two = (dim % len(shape) for dim in call["dims"])
    k = call["k"] % 4
    ends = {0: (), 1: (two,), 2: (one, two), 3: (one,)}[k]
    field = through(field, shape, {dim: _reversed(shape[dim]) for dim in ends})
    order = list(range(len(shape)))
    if k % 2:
        order[one], order[two] = two, one
    return reach.permute(field, order)


def as_real(call: Call) -> Known:
    """Complex numbers as pairs, along a new last axis."""
    shape = call.shape_of("self")
    pairs = reach.reshape(call.field("self"), shape, (*shape, 1))
    return reach.union([(pairs, (*shape, 1))], call.shape)


def as_complex(call: Call) -> Known:
    """Pairs along the last axis as complex numbers."""
    shape = call.shape_of("self")
    last = len(shape) - 1
    field = over(call.field("self"), shape, (last,))
    return tuple(reach.without_axes(seen, (last,)) for seen in field)


def concatenated(call: Call) -> Known:
    """Tensors one after the other along an axis."""
    tensors: list[Tensor] = list(call["tensors"])
    fields = [call.field_of(t) for t in tensors]
    n_axes = max(len(field) for field in fields if field is not None)
    shapes = [call.entry(t).shape for t in tensors]
    dim = call["dim"] % len(call.shape)
    return reach.concatenate(list(zip(fields, shapes, strict=True)), dim, n_axes)


def stacked(call: Call) -> Known:
    """Tensors one after the other along an axis of their own."""
    tensors: list[Tensor] = list(call["tensors"])
    dim = call["dim"] % len(call.shape)
    own = tuple(1 if d == dim else n for d, n in enumerate(call.shape))
    fields = [call.field_of(t) for t in tensors]
    n_axes = max(len(field) for field in fields if field is not None)
    parts = [
        (f and reach.reshape(f, call.entry(t).shape, own), own)
        for f, t in zip(fields, tensors, strict=True)
    ]
    return reach.concatenate(parts, dim, n_axes)


def diagonal(call: Call) -> Known:
    """The diagonal of two axes, which go; it becomes the last axis."""
    shape = call.shape_of("self")
    rank = len(shape)
    one, two = call["dim1"] % rank, call["dim2"] % rank

    def along(seen: Reach) -> Reach:
        rest = [1 if d not in (one, two) else n for d, n in enumerate(shape)]
        full = np.broadcast_shapes(seen.first.shape, tuple(rest))

        def cut(array: Ints) -> Ints:
            whole = np.broadcast_to(array, full)
            return np.diagonal(whole, call["offset"], one, two)

        return seen.map(cut).with_rule(None, None)

    return tuple(along(seen) for seen in call.field("self"))
