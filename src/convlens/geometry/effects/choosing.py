"""Operators that go by indices and masks, followed where these are constants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convlens.geometry import index_maps, spans
from convlens.geometry.effects.calls import Call, pointwise
from convlens.geometry.spans import Field, Ints, Known, Shape, Span


def chosen(call: Call) -> Known:
    """`torch.where`: by a constant mask one or the other; else both, and what decides."""
    if call.sees("condition"):
        return pointwise(call)
    return _by_mask(call, call["condition"], call["self"], call["other"])


def masked(call: Call) -> Known:
    """A constant mask's elements are replaced by a value."""
    if call.sees("mask"):
        return pointwise(call)
    return _by_mask(call, call["mask"], call["value"], call["self"])


def _by_mask(call: Call, condition: Tensor, one: object, other: object) -> Known:
    """The field of ``one`` where the mask holds, that of ``other`` where it does not."""
    mask, shape = call.value(condition), call.shape
    if mask is None:
        return call.unknown()
    fields: list[Field | None] = []
    for side in (one, other):
        field = call.field_of(side)
        own = tuple(side.shape) if isinstance(side, Tensor) else ()
        fields.append(None if field is None else spans.union([(field, own)], shape))
    if bool(mask.all()) or not bool(mask.any()):
        return fields[0 if bool(mask.all()) else 1]
    n_axes = max(len(field) for field in fields if field)
    mask = mask.reshape((1,) * (len(shape) - mask.ndim) + mask.shape)
    pairs = zip(*(field or spans.blank(len(shape), n_axes) for field in fields), strict=True)
    return tuple(_alternative(mask, one, other) for one, other in pairs)


def _alternative(mask: NDArray[np.bool_], one: Span, other: Span) -> Span:
    first = np.where(mask, one.first, other.first)
    last = np.where(mask, one.last, other.last)
    dims = {one.dim, other.dim} - {None}
    return Span(first, last, None, dims.pop() if len(dims) == 1 else None, mixed=True)


def indexed(call: Call) -> Known:
    """``x[rows, columns]`` by constant indices or masks."""
    tensors: list[Tensor | None] = list(call["indices"])
    if not call.sees("self"):
        return _looked_up(call, tensors)
    shape, field = call.shape_of("self"), call.field("self")
    index = [slice(None) if t is None else call.value(t) for t in tensors]
    if any(each is None for each in index):
        return call.unknown()
    given = [d for d, t in enumerate(tensors) if t is not None]
    line = index[given[0]]
    if len(given) == 1 and isinstance(line, np.ndarray) and line.ndim == 1:
        places = line.nonzero()[0] if line.dtype == np.bool_ else line
        return _lined(field, shape, given[0], places)
    return tuple(
        seen.map(lambda array: np.broadcast_to(array, shape)[tuple(index)]).with_rule(None, None)
        for seen in field
    )


def embedded(call: Call) -> Known:
    """Rows of a constant table, by indices that depend on the input."""
    return call.unknown() if call.sees("weight") else _looked_up(call, [call["indices"]])


def _looked_up(call: Call, tensors: Sequence[Tensor | None]) -> Known:
    """A constant table at indices that depend on the input: what is found sees what they see."""
    found: list[tuple[Field, Shape]] = []
    rank = max(len(call.entry(t).shape) for t in tensors if t is not None)
    rest = (1,) * (len(call.shape) - rank)
    for tensor in tensors:
        if tensor is None:
            return call.unknown()
        shape = call.entry(tensor).shape
        if (field := call.field_of(tensor)) is not None:
            found.append((spans.reshape(field, shape, shape + rest), shape + rest))
    return spans.union(found, call.shape)


def selected_by(call: Call) -> Known:
    """`torch.index_select` by constant indices."""
    value = call.value(call["index"])
    if value is None:
        return call.unknown()
    places = value.reshape(-1)
    return _lined(call.field("self"), call.shape_of("self"), call.dim(), places)


def _lined(field: Field, shape: Shape, dim: int, places: Ints) -> Field:
    """Some positions of one axis; evenly spaced ones are a slice."""
    n = shape[dim]
    places = np.where(places < 0, places + n, places)
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    even = len(places) > 0 and step and bool((np.diff(places) == step).all())
    read = (
        index_maps.strided(n, len(places), [int(places[0])], step)
        if even
        else index_maps.picked(n, places)
    )
    return tuple(spans.narrow(seen, dim, n, read) for seen in field)
