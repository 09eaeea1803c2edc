"""Operators that go by indices and masks, followed where these are constants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from convlens.geometry import index_maps, spans
from convlens.geometry.operator_effects.calls import Call, pointwise
from convlens.geometry.spans import Field, Ints, Known, Shape


def chosen(call: Call) -> Known:
    """`torch.where` and ``masked_fill`` by what the input says: both sides, and what decides."""
    return pointwise(call) if call.sees("condition", "mask") else call.unknown()


def indexed(call: Call) -> Known:
    """``x[:, :, rows]`` by constant indices, or a mask, along one axis."""
    tensors: list[Tensor | None] = list(call["indices"])
    if not call.sees("self"):
        return _looked_up(call, tensors)
    (dim, index), *others = [(d, t) for d, t in enumerate(tensors) if t is not None]
    line = call.value(index)
    if line is None or line.ndim != 1 or others:
        return call.unknown()
    places = line.nonzero()[0] if line.dtype == np.bool_ else line
    return _lined(call.field("self"), call.shape_of("self"), dim, places)


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
