"""What a tensor's elements see of the input, exactly: the first and last input position per axis.

Two integer arrays for each spatial axis of the input, broadcastable to the tensor's shape, follow
the tensor through every operation by minimum and maximum. They know the edges: padding sees
nothing, and pixels that no window covers are not counted. Next to them goes the rule on an input
without edges (`periodic.Rule`), which gives the field's unclipped size, jump and start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from convlens.geometry.periodic import IDENTITY, Rule
from convlens.geometry.taps import Ints, Taps, strided

Shape = tuple[int, ...]

NOTHING_FIRST, NOTHING_LAST = np.int32(2**30), np.int32(-(2**30))
"""First and last position of an element that sees no input: neutral under minimum and maximum."""


@dataclass(frozen=True)
class Reach:
    """What a tensor's elements see along one axis of the input.

    Attributes:
        first: first input position seen; as many axes as the tensor, 1 where all see the same.
        last: last input position seen, of the same shape.
        rule: the same on an input without edges; None where there is no such rule.
        dim: the tensor's axis along which the input's axis runs; None where all positions see the
            same, or where it was merged with others.
        mixed: whether the rule is the union over channels that see different things.
    """

    first: Ints
    last: Ints
    rule: Rule | None
    dim: int | None
    mixed: bool = False

    def with_rule(self, rule: Rule | None, dim: int | None) -> Reach:
        """The same positions with another rule."""
        return replace(self, rule=rule, dim=dim)

    def map(self, change: Callable[[Ints], Ints]) -> Reach:
        """The same rule with both arrays changed in the same way."""
        return replace(self, first=change(self.first), last=change(self.last))


@dataclass(frozen=True)
class Unknown:
    """Nothing is known of what the tensor's elements see, since this operator made it."""

    operator: str


Field = tuple[Reach, ...]
"""One `Reach` for each spatial axis of the input."""

Known = Field | Unknown | None
"""A field, or nothing known, or a tensor that does not depend on the input."""


def input_field(shape: Sequence[int]) -> Field:
    """The input (N, C, …): each element sees itself."""
    rank = len(shape)

    def own(dim: int) -> Reach:
        line = np.arange(shape[dim], dtype=np.int32)
        places = line.reshape([-1 if d == dim else 1 for d in range(rank)])
        return Reach(places, places, IDENTITY, dim)

    return tuple(own(dim) for dim in range(2, rank))


def blank(rank: int, n_axes: int) -> Field:
    """The field of a tensor with ``rank`` axes whose elements see nothing."""
    first, last = (np.full((1,) * rank, nothing) for nothing in (NOTHING_FIRST, NOTHING_LAST))
    return (Reach(first, last, None, None),) * n_axes


def read(reach: Reach, dim: int, n_in: int, taps: Taps) -> Reach:
    """What an operation sees that reads ``taps`` along axis ``dim`` of ``n_in`` positions."""
    rule = reach.rule
    if rule is not None and reach.dim == dim:
        rule = rule.through(taps.pattern) if taps.pattern else None
    if reach.first.shape[dim] == 1 and bool(taps.valid.any(axis=1).all()):
        return reach.with_rule(rule, reach.dim)

    def gather(array: Ints, nothing: np.int32) -> Ints:
        shape = list(array.shape)
        shape[dim] = n_in
        values = np.take(np.broadcast_to(array, shape), taps.index, axis=dim)
        mask = taps.valid.reshape(taps.valid.shape + (1,) * (array.ndim - dim - 1))
        return np.where(mask, values, nothing)

    first = gather(reach.first, NOTHING_FIRST).min(axis=dim + 1)
    last = gather(reach.last, NOTHING_LAST).max(axis=dim + 1)
    return Reach(first, last, rule, reach.dim, reach.mixed)


def reduce_dims(reach: Reach, shape: Sequence[int], dims: Sequence[int]) -> Reach:
    """What sees everything along ``dims``; they stay, with one position."""
    axes = tuple(dims)
    first = reach.first.min(axis=axes, keepdims=True)
    last = reach.last.max(axis=axes, keepdims=True)
    rule, dim = reach.rule, reach.dim
    if dim is not None and dim in axes:
        rule, dim = rule and rule.collapsed(shape[dim]), None
    mixed = reach.mixed and any(n > 1 for d, n in enumerate(first.shape) if d != dim)
    return Reach(first, last, rule, dim, mixed)


def without_axes(seen: Reach, axes: Sequence[int]) -> Reach:
    """The same without axes along which all positions see the same."""
    kept = [n for d, n in enumerate(seen.first.shape) if d not in axes]
    dim = None if seen.dim is None else seen.dim - sum(axis < seen.dim for axis in axes)
    return seen.map(lambda a: a.reshape(kept)).with_rule(seen.rule, dim)


def narrow(seen: Reach, dim: int, n_in: int, part: Taps) -> Reach:
    """Some positions of one axis; what is true of all channels need not be so of some."""
    cut = read(seen, dim, n_in, part)
    return cut.with_rule(None, cut.dim) if seen.mixed and dim != seen.dim else cut


def pick(seen: Reach, dim: int, n_in: int, index: int) -> Reach:
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

    def align(reach: Reach) -> Reach:
        rule, dim = reach.rule, None if reach.dim is None else reach.dim + lead
        if dim is not None and own[dim - lead] != shape[dim]:
            rule, dim = rule and rule.collapsed(1), None
        return reach.map(lambda a: a.reshape((1,) * lead + a.shape)).with_rule(rule, dim)

    return tuple(align(reach) for reach in field)


def _union_of(parts: Sequence[Reach], shape: Shape) -> Reach:
    if len({part.dim for part in parts}) > 1:  # along an axis of one position all see the same
        parts = [_settled(part, shape) for part in parts]
    whole = parts[0]
    for part in parts[1:]:
        rule, dim = agreed(whole, part)
        first, last = np.minimum(whole.first, part.first), np.maximum(whole.last, part.last)
        whole = Reach(first, last, rule, dim, whole.mixed or part.mixed)
    return whole


def agreed(one: Reach, other: Reach) -> tuple[Rule | None, int | None]:
    """Rule and axis of the union of two reaches."""
    if one.dim == other.dim:
        rule = one.rule.union(other.rule) if one.rule and other.rule else None
        return rule, one.dim
    running = {one.dim, other.dim} - {None}
    return None, running.pop() if len(running) == 1 else None


def _settled(reach: Reach, shape: Shape) -> Reach:
    if reach.dim is None or shape[reach.dim] != 1:
        return reach
    return reach.with_rule(reach.rule and reach.rule.collapsed(1), None)


def concatenate(parts: Sequence[tuple[Field | None, Shape]], dim: int, n_axes: int) -> Field:
    """Tensors one after the other along ``dim``; None is one that sees nothing."""
    known = [field for field, _ in parts if field is not None]

    def along(axis: int) -> Reach:
        pieces = [_piece(None if f is None else f[axis], shape, dim) for f, shape in parts]
        others = [max(first.shape[d] for first, _ in pieces) for d in range(pieces[0][0].ndim)]

        def join(which: int) -> Ints:
            full = [
                np.broadcast_to(p[which], [*others[:dim], p[which].shape[dim], *others[dim + 1 :]])
                for p in pieces
            ]
            return np.concatenate(full, axis=dim)

        reaches = [field[axis] for field in known]
        rule, where = _joined_rule(reaches, dim)
        equal = len(known) == len(parts) and len({(r.rule, r.dim) for r in reaches}) == 1
        mixed = not equal or any(r.mixed for r in reaches)
        return Reach(join(0), join(1), rule, where, mixed)

    return tuple(along(axis) for axis in range(n_axes))


def _piece(reach: Reach | None, shape: Shape, dim: int) -> tuple[Ints, Ints]:
    if reach is None:
        own = [n if d == dim else 1 for d, n in enumerate(shape)]
        return np.full(own, NOTHING_FIRST), np.full(own, NOTHING_LAST)
    own = [shape[d] if d == dim else n for d, n in enumerate(reach.first.shape)]
    return np.broadcast_to(reach.first, own), np.broadcast_to(reach.last, own)


def _joined_rule(reaches: Sequence[Reach], dim: int) -> tuple[Rule | None, int | None]:
    whole = reaches[0]
    for reach in reaches[1:]:
        whole = whole.with_rule(*agreed(whole, reach))
    return (None if whole.dim == dim else whole.rule), whole.dim


def reshape(field: Field, old: Shape, new: Shape) -> Field:
    """The elements in the same order in another shape."""
    return tuple(_reshape(reach, old, new) for reach in field)


def _reshape(reach: Reach, old: Shape, new: Shape) -> Reach:
    """One axis' reach: an axis that stays alone in its group keeps its rule."""
    reach = _settled(reach, old)
    spread: list[int] = []
    result: list[int] = []
    rule, dim = reach.rule, None
    for a, b in _groups(old, new):
        varies = any(n > 1 for n in reach.first.shape[a.start : a.stop])
        spread += old[a.start : a.stop] if varies else [1] * len(a)
        result += new[b.start : b.stop] if varies else [1] * len(b)
        if reach.dim is not None and reach.dim in a:
            long = [d for d in b if new[d] != 1]
            alone = all(old[d] == 1 for d in a if d != reach.dim)
            rule, dim = (rule, long[0]) if alone and len(long) == 1 else (None, None)
    return reach.map(lambda x: np.broadcast_to(x, spread).reshape(result)).with_rule(rule, dim)


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
