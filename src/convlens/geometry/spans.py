"""Which input positions the elements of a tensor see: first and last along one axis of the input.

Two integer arrays, broadcastable to the tensor's shape, are updated by minimum and maximum at every
operation. They are exact at edges: padding sees nothing, and pixels that no window reads do not
count. `periodic.Rule` describes the same on an input without edges, for size, jump and start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from convlens.geometry.index_maps import IndexMap, Ints, strided
from convlens.geometry.periodic import IDENTITY, Rule

Shape = tuple[int, ...]

NOTHING_FIRST, NOTHING_LAST = np.int32(2**30), np.int32(-(2**30))
"""First and last position of an element that sees nothing, neutral under minimum and maximum."""


@dataclass(frozen=True)
class Span:
    """What a tensor's elements see along one axis of the input.

    Attributes:
        first: first input position; the tensor's axes, of length 1 if all elements see the same.
        last: last input position, of the same shape.
        rule: the same on an input without edges; None if there is no rule.
        dim: the tensor's axis that belongs to the input's axis; None if all positions see the same,
            or if it was merged with others.
        mixed: whether the rule is the union over channels that differ.
    """

    first: Ints
    last: Ints
    rule: Rule | None
    dim: int | None
    mixed: bool = False

    def with_rule(self, rule: Rule | None, dim: int | None) -> Span:
        """The same positions with another rule."""
        return replace(self, rule=rule, dim=dim)

    def map(self, change: Callable[[Ints], Ints]) -> Span:
        """The same rule with both arrays changed in the same way."""
        return replace(self, first=change(self.first), last=change(self.last))


@dataclass(frozen=True)
class Unknown:
    """An unknown field, because of an operator."""

    operator: str


Field = tuple[Span, ...]
"""One `Span` for each spatial axis of the input."""

Known = Field | Unknown | None
"""A field; or unknown; or None for a tensor that does not depend on the input."""


def input_field(shape: Sequence[int]) -> Field:
    """The input (N, C, …): each element sees itself."""
    rank = len(shape)

    def own(dim: int) -> Span:
        line = np.arange(shape[dim], dtype=np.int32)
        places = line.reshape([-1 if d == dim else 1 for d in range(rank)])
        return Span(places, places, IDENTITY, dim)

    return tuple(own(dim) for dim in range(2, rank))


def read(span: Span, dim: int, n_in: int, index_map: IndexMap) -> Span:
    """What an operation sees that reads an index map along axis ``dim`` of ``n_in`` positions."""
    rule = span.rule
    if rule is not None and span.dim == dim:
        rule = rule.through(index_map.pattern) if index_map.pattern else None
    if span.first.shape[dim] == 1 and bool(index_map.valid.any(axis=1).all()):
        return span.with_rule(rule, span.dim)

    def gather(array: Ints, nothing: np.int32) -> Ints:
        shape = list(array.shape)
        shape[dim] = n_in
        values = np.take(np.broadcast_to(array, shape), index_map.index, axis=dim)
        mask = index_map.valid.reshape(index_map.valid.shape + (1,) * (array.ndim - dim - 1))
        return np.where(mask, values, nothing)

    first = gather(span.first, NOTHING_FIRST).min(axis=dim + 1)
    last = gather(span.last, NOTHING_LAST).max(axis=dim + 1)
    return Span(first, last, rule, span.dim, span.mixed)


def reduce_dims(span: Span, shape: Sequence[int], dims: Sequence[int]) -> Span:
    """What sees everything along ``dims``, which are kept with length 1."""
    axes = tuple(dims)
    first = span.first.min(axis=axes, keepdims=True)
    last = span.last.max(axis=axes, keepdims=True)
    rule, dim = span.rule, span.dim
    if dim is not None and dim in axes:
        rule, dim = rule and rule.collapsed(shape[dim]), None
    mixed = span.mixed and any(n > 1 for d, n in enumerate(first.shape) if d != dim)
    return Span(first, last, rule, dim, mixed)


def without_axes(seen: Span, axes: Sequence[int]) -> Span:
    """The same without axes along which all positions see the same."""
    kept = [n for d, n in enumerate(seen.first.shape) if d not in axes]
    dim = None if seen.dim is None else seen.dim - sum(axis < seen.dim for axis in axes)
    return seen.map(lambda a: a.reshape(kept)).with_rule(seen.rule, dim)


def narrow(seen: Span, dim: int, n_in: int, part: IndexMap) -> Span:
    """Some positions of one axis. A rule for all channels may not hold for some of them."""
    cut = read(seen, dim, n_in, part)
    return cut.with_rule(None, cut.dim) if seen.mixed and dim != seen.dim else cut


def pick(seen: Span, dim: int, n_in: int, index: int) -> Span:
    """One position of one axis, without that axis."""
    one = narrow(seen, dim, n_in, strided(n_in, 1, [index]))
    if one.dim == dim:
        one = one.with_rule(one.rule and one.rule.collapsed(1), None)
    return without_axes(one, (dim,))


def permute(field: Field, order: Sequence[int]) -> Field:
    """The axes in another order: axis i is the former axis order[i]."""
    return tuple(
        seen.map(lambda a: a.transpose(order)).with_rule(
            seen.rule, None if seen.dim is None else list(order).index(seen.dim)
        )
        for seen in field
    )


def union(fields: Sequence[tuple[Field, Shape]], shape: Shape) -> Field:
    """What elements made of several tensors see, broadcast to ``shape`` as torch does."""
    aligned = [_broadcast(field, own, shape) for field, own in fields]
    return tuple(_union_of(axis, shape) for axis in zip(*aligned, strict=True))


def _broadcast(field: Field, own: Shape, shape: Shape) -> Field:
    lead = len(shape) - len(own)

    def align(span: Span) -> Span:
        rule, dim = span.rule, None if span.dim is None else span.dim + lead
        if dim is not None and own[dim - lead] != shape[dim]:
            rule, dim = rule and rule.collapsed(1), None
        return span.map(lambda a: a.reshape((1,) * lead + a.shape)).with_rule(rule, dim)

    return tuple(align(span) for span in field)


def _union_of(parts: Sequence[Span], shape: Shape) -> Span:
    if len({part.dim for part in parts}) > 1:  # along an axis of one position all see the same
        parts = [_settled(part, shape) for part in parts]
    whole = parts[0]
    for part in parts[1:]:
        rule, dim = agreed(whole, part)
        first, last = np.minimum(whole.first, part.first), np.maximum(whole.last, part.last)
        whole = Span(first, last, rule, dim, whole.mixed or part.mixed)
    return whole


def agreed(one: Span, other: Span) -> tuple[Rule | None, int | None]:
    """Rule and axis of the union of two spans."""
    if one.dim == other.dim:
        rule = one.rule.union(other.rule) if one.rule and other.rule else None
        return rule, one.dim
    running = {one.dim, other.dim} - {None}
    return None, running.pop() if len(running) == 1 else None


def _settled(span: Span, shape: Shape) -> Span:
    if span.dim is None or shape[span.dim] != 1:
        return span
    return span.with_rule(span.rule and span.rule.collapsed(1), None)


def concatenate(parts: Sequence[tuple[Field | None, Shape]], dim: int) -> Field:
    """Tensors one after the other along ``dim``; None is one that sees nothing."""
    known = [field for field, _ in parts if field is not None]

    def along(axis: int) -> Span:
        arrays = [_edges(None if f is None else f[axis], shape, dim) for f, shape in parts]
        rest = [max(first.shape[d] for first, _ in arrays) for d in range(arrays[0][0].ndim)]

        def join(which: int) -> Ints:
            full = [
                np.broadcast_to(a[which], [*rest[:dim], a[which].shape[dim], *rest[dim + 1 :]])
                for a in arrays
            ]
            return np.concatenate(full, axis=dim)

        own = [field[axis] for field in known]
        whole = own[0]
        for span in own[1:]:
            whole = whole.with_rule(*agreed(whole, span))
        equal = len(known) == len(parts) and len({(s.rule, s.dim) for s in own}) == 1
        rule = None if whole.dim == dim else whole.rule
        return Span(join(0), join(1), rule, whole.dim, not equal or any(s.mixed for s in own))

    return tuple(along(axis) for axis in range(len(known[0])))


def _edges(span: Span | None, shape: Shape, dim: int) -> tuple[Ints, Ints]:
    """First and last with all positions of one axis."""
    if span is None:
        own = [n if d == dim else 1 for d, n in enumerate(shape)]
        return np.full(own, NOTHING_FIRST), np.full(own, NOTHING_LAST)
    own = [shape[d] if d == dim else n for d, n in enumerate(span.first.shape)]
    return np.broadcast_to(span.first, own), np.broadcast_to(span.last, own)


def reshape(field: Field, old: Shape, new: Shape) -> Field:
    """The elements in the same order in another shape."""
    return tuple(_reshape(span, old, new) for span in field)


def _reshape(span: Span, old: Shape, new: Shape) -> Span:
    """One axis' span: an axis that stays alone in its group keeps its rule."""
    span = _settled(span, old)
    spread: list[int] = []
    result: list[int] = []
    rule, dim = span.rule, None
    for a, b in _groups(old, new):
        varies = any(n > 1 for n in span.first.shape[a.start : a.stop])
        spread += old[a.start : a.stop] if varies else [1] * len(a)
        result += new[b.start : b.stop] if varies else [1] * len(b)
        if span.dim is not None and span.dim in a:
            long = [d for d in b if new[d] != 1]
            alone = all(old[d] == 1 for d in a if d != span.dim)
            rule, dim = (rule, long[0]) if alone and len(long) == 1 else (None, None)
    return span.map(lambda x: np.broadcast_to(x, spread).reshape(result)).with_rule(rule, dim)


def _groups(old: Shape, new: Shape) -> list[tuple[range, range]]:
    """Smallest runs of axes of ``old`` and ``new`` that hold the same elements."""
    groups: list[tuple[range, range]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0 = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        groups.append((range(i0, i), range(j0, j)))
    return groups
