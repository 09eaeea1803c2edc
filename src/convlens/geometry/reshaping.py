"""What becomes of a field when a tensor's axes are moved, merged, split, cut or repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from convlens.geometry.spans import (
    Affine,
    Field,
    InseparableError,
    Ints,
    Span,
    expand,
    gather,
    union,
)

Shape = Sequence[int]


def map_dims(field: Field, new_dim: Callable[[int], int | None]) -> Field:
    """The same field where axis d of the tensor has become axis ``new_dim(d)``."""
    spans = tuple(
        span if span.dim is None else replace(span, dim=new_dim(span.dim)) for span in field.spans
    )
    return Field(spans, "no" if field.uneven == "no" else "somewhere")


def broadcast(field: Field, shape: Shape, to: Shape) -> Field:
    """The field of a tensor of ``shape`` that is repeated to the shape ``to``, as torch does it."""
    shift = len(to) - len(shape)
    if shift == 0 and tuple(shape) == tuple(to):
        return field
    moved = map_dims(field, lambda d: d + shift) if shift else field
    spans = tuple(
        span if span.dim is None else expand(span, to[span.dim]) for span in moved.spans
    )
    return Field(spans, moved.uneven)


def join(fields: Sequence[Field]) -> Field:
    """What any of several tensors of one shape sees, unit by unit.

    Raises:
        InseparableError: when they move along different axes.
    """
    result = fields[0]
    for other in fields[1:]:
        spans = tuple(union(a, b) for a, b in zip(result.spans, other.spans, strict=True))
        kinds = {result.uneven, other.uneven} - {"no"}
        uneven = "somewhere" if len(kinds) > 1 else (kinds.pop() if kinds else "no")
        result = Field(spans, uneven)
    return result


def cut(field: Field, dim: int, index: Ints) -> Field:
    """The positions ``index`` of axis ``dim``: a slice, a flip, a part of a split.

    Raises:
        InseparableError: when units of one position see different things.
    """
    if field.uneven != "no":
        raise InseparableError
    return replace(field, spans=tuple(_cut_span(span, dim, index) for span in field.spans))


def _cut_span(span: Span, dim: int, index: Ints) -> Span:
    if span.dim != dim:
        return span
    affine = span.affine
    steps = {int(step) for step in np.diff(index)} or {1}
    if affine is not None and affine.jump is not None and len(steps) == 1 and len(index):
        jump, start = affine.jump, affine.start + int(index[0]) * affine.jump
        affine = Affine(affine.size, jump * steps.pop(), start)
    else:
        affine = None
    return gather(span, index, affine)


def reshape(field: Field, shape: Shape, to: Shape) -> Field:
    """The field of a tensor of ``shape`` seen as one of the shape ``to``.

    Raises:
        InseparableError: when the span of one axis would then depend on two axes.
    """
    if tuple(shape) == tuple(to):
        return field
    groups = list(_groups(shape, to))
    spans = tuple(_reshape_span(span, shape, to, groups) for span in field.spans)
    return Field(spans, "no" if field.uneven == "no" else "somewhere")


Group = tuple[list[int], list[int]]


def _groups(shape: Shape, to: Shape) -> list[Group]:
    """Axes of either shape that hold the same elements: [([1, 2, 3], [1])] for a flatten."""
    groups: list[Group] = []
    i = j = 0
    while i < len(shape) or j < len(to):
        old, new = list(range(i, min(i + 1, len(shape)))), list(range(j, min(j + 1, len(to))))
        i, j = i + len(old), j + len(new)
        while _size(shape, old) != _size(to, new):
            if _size(shape, old) < _size(to, new):
                old.append(i)
                i += 1
            else:
                new.append(j)
                j += 1
        groups.append((old, new))
    return groups


def _size(shape: Shape, dims: Sequence[int]) -> int:
    return prod(shape[d] for d in dims)


def _reshape_span(span: Span, shape: Shape, to: Shape, groups: Sequence[Group]) -> Span:
    if span.dim is None or len(span) == 1:
        return replace(span, dim=None)
    old, new = next(group for group in groups if span.dim in group[0])
    first, last = (_regroup(values, span.dim, shape, old) for values in (span.first, span.last))
    sizes = [to[d] for d in new]
    first, last = first.reshape(sizes), last.reshape(sizes)
    moving = [axis for axis in range(len(new)) if _varies(first, axis) or _varies(last, axis)]
    if len(moving) > 1:
        raise InseparableError
    affine = span.affine
    kept = [d for d in new if to[d] > 1]
    if len(kept) == 1 and to[kept[0]] == len(span):
        return replace(span, dim=kept[0])
    axis = moving[0] if moving else 0
    line = tuple(slice(None) if a == axis else 0 for a in range(len(new)))
    if affine is not None and affine.jump != 0:
        affine = replace(affine, jump=None)
    return Span(new[axis], first[line].copy(), last[line].copy(), affine)


def _regroup(values: Ints, dim: int, shape: Shape, group: Sequence[int]) -> Ints:
    """The values of one axis repeated over all axes of its group, flattened."""
    place = [len(values) if d == dim else 1 for d in group]
    whole = np.broadcast_to(values.reshape(place), [shape[d] for d in group])
    return whole.reshape(-1)


def _varies(values: Ints, axis: int) -> bool:
    return bool((values != values.take([0], axis=axis)).any())
