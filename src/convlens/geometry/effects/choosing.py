"""Operators that go by indices and masks, followed where these are constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convlens.geometry import reach, taps
from convlens.geometry.effects.calls import Call, pointwise
from convlens.geometry.reach import Field, Ints, Known, Reach, Shape


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


def triangle(call: Call) -> Known:
    """`torch.tril` and `torch.triu`: the other elements are zero, and see nothing."""
    rows, columns = call.shape[-2:]
    lower = "tril" in call.operator
    offset = int(call["diagonal"])
    mask = np.tri(rows, columns, offset if lower else offset - 1, dtype=np.bool_)
    return _masked(mask if lower else ~mask, [(call.field("self"), call.shape), None], call.shape)


def _by_mask(call: Call, mask: Tensor, one: object, other: object) -> Known:
    value = call.value(mask)
    if value is None:
        return call.unknown()
    sides: list[tuple[Field, Shape] | None] = []
    for side in (one, other):
        field = call.field_of(side)
        sides.append(
            (field, call.entry(side).shape) if field and isinstance(side, Tensor) else None
        )
    return _masked(value, sides, call.shape)


def _masked(
    mask: NDArray[np.bool_], sides: Sequence[tuple[Field, Shape] | None], shape: Shape
) -> Known:
    """The first side where the mask holds, the second where it does not; None sees nothing."""
    fields = [None if side is None else reach.union([side], shape) for side in sides]
    if bool(mask.all()) or not bool(mask.any()):
        return fields[0 if bool(mask.all()) else 1]
    n_axes = max(len(field) for field in fields if field)
    mask = mask.reshape((1,) * (len(shape) - mask.ndim) + mask.shape)
    pairs = zip(*(field or reach.blank(len(shape), n_axes) for field in fields), strict=True)
    return tuple(_alternative(mask, one, other) for one, other in pairs)


def _alternative(mask: NDArray[np.bool_], one: Reach, other: Reach) -> Reach:
    first = np.where(mask, one.first, other.first)
    last = np.where(mask, one.last, other.last)
    dims = {one.dim, other.dim} - {None}
    return Reach(first, last, None, dims.pop() if len(dims) == 1 else None, mixed=True)


def indexed(call: Call) -> Known:
    """``x[rows, columns]`` by constant indices or masks."""
    tensors: list[Tensor | None] = list(call["indices"])
    if not call.sees("self"):
        return _looked_up(call, tensors)
    shape, field = call.shape_of("self"), call.field("self")
    given = [d for d, t in enumerate(tensors) if t is not None]
    values = [None if t is None else call.value(t) for t in tensors]
    if any(values[d] is None for d in given):
        return call.unknown()
    arrays = [None if v is None else v for v in values]
    if len(given) == 1 and (line := arrays[given[0]]) is not None and line.ndim == 1:
        places = line.nonzero()[0] if line.dtype == np.bool_ else line
        return _lined(field, shape, given[0], places)
    index = _full_index(arrays)

    def at(array: Ints) -> Ints:
        return np.broadcast_to(array, _opened(array.shape, shape, arrays))[index]

    return tuple(seen.map(at).with_rule(None, None) for seen in field)


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
            found.append((reach.reshape(field, shape, shape + rest), shape + rest))
    return reach.union(found, call.shape)


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
    read = taps.strided(n, len(places), [int(places[0])], step) if even else taps.picked(n, places)
    return tuple(reach.narrow(seen, dim, n, read) for seen in field)


def _full_index(arrays: Sequence[NDArray[Any] | None]) -> tuple[Any, ...]:
    return tuple(slice(None) if array is None else array for array in arrays)


def _opened(own: Shape, shape: Shape, arrays: Sequence[NDArray[Any] | None]) -> Shape:
    """The shape in which all indexed axes have all their positions; a mask indexes several."""
    full, dim = list(own), 0
    for array in arrays:
        n = array.ndim if array is not None and array.dtype == np.bool_ else 1
        if array is not None:
            full[dim : dim + n] = shape[dim : dim + n]
        dim += n
    return tuple(full)


def gathered(call: Call) -> Known:
    """`torch.gather` along one axis by constant indices."""
    shape, dim = call.shape_of("self"), call.dim()
    value = call.value(call["index"])
    if value is None:
        return call.unknown()
    index = value
    part = tuple(slice(0, n) for n in index.shape)

    def at(array: Ints) -> Ints:
        return np.take_along_axis(_cut(np.broadcast_to(array, shape), part, dim), index, axis=dim)

    return tuple(seen.map(at).with_rule(None, None) for seen in call.field("self"))


def _cut(array: Ints, part: tuple[slice, ...], dim: int) -> Ints:
    return array[tuple(slice(None) if d == dim else s for d, s in enumerate(part))]


def placed(call: Call) -> Known:
    """``x[rows, columns] = values`` by constant indices: `torch.index_put`."""
    tensors: list[Tensor | None] = list(call["indices"])
    values = [None if t is None else call.value(t) for t in tensors]
    if any(v is None and t is not None for v, t in zip(values, tensors, strict=True)):
        return call.unknown()
    index = _full_index([None if v is None else v for v in values])
    add = bool(call.arguments.get("accumulate"))
    return _put(call, index, call["values"], add=add)


def placed_along(call: Call) -> Known:
    """``index_copy``, ``index_add`` and ``index_fill`` along one axis by constant indices."""
    value = call.value(call["index"])
    if value is None:
        return call.unknown()
    index = (slice(None),) * call.dim() + (value.reshape(-1),)
    source = call.arguments.get("source", call.arguments.get("value"))
    return _put(call, index, source, add="index_add" in call.operator)


def scattered(call: Call) -> Known:
    """`torch.scatter` and ``scatter_add`` along one axis by constant indices."""
    value = call.value(call["index"])
    if value is None or "reduce" in call.arguments:
        return call.unknown()
    own = value
    index = [np.indices(own.shape)[d] for d in range(own.ndim)]
    index[call.dim()] = own
    source = call.arguments.get("src", call.arguments.get("value"))
    return _put(call, tuple(index), source, own.shape, add="scatter_add" in call.operator)


def _put(
    call: Call, index: tuple[Any, ...], source: object, part: Shape | None = None, *, add: bool
) -> Known:
    """The first argument with some elements replaced by those of ``source``, or added to."""
    shape = call.shape_of("self")
    field, put = call.field_of(call["self"]), call.field_of(source)
    n_axes = len(field or put or ())
    old = field or reach.blank(len(shape), n_axes)
    own = call.entry(source).shape if put and isinstance(source, Tensor) else ()
    new = put or reach.blank(len(own), n_axes)
    within = () if part is None or not own else tuple(slice(0, n) for n in part)

    def along(before: Reach, after: Reach) -> Reach:
        def write(array: Ints, values: Ints, join: np.ufunc) -> Ints:
            whole = np.broadcast_to(array, shape).copy()
            values = np.broadcast_to(values, own)[within]
            if add:
                join.at(whole, index, values)
            else:
                whole[index] = values
            return whole

        first = write(before.first, after.first, np.minimum)
        last = write(before.last, after.last, np.maximum)
        return Reach(first, last, None, before.dim, mixed=True)

    return tuple(along(before, after) for before, after in zip(old, new, strict=True))
