"""What is known of each tensor of a forward pass, also where several tensors share memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.execution import memory_of
from convlens.geometry import spans
from convlens.geometry.spans import NOTHING_FIRST, NOTHING_LAST, Ints, Known, Shape, Span, Unknown


@dataclass(frozen=True)
class Entry:
    """A tensor and its field.

    Shape, stride and offset are those at the time of the entry: ``squeeze_`` changes them later.
    """

    tensor: Tensor
    known: Known
    shape: Shape
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @property
    def place(self) -> tuple[object, ...]:
        """Where its elements lie in memory."""
        return self.shape, self.stride, self.offset, self.dtype


class TensorFields:
    """The field of every tensor, by identity.

    Tensors are held until the pass is over, so that no id() is reused. Fake tensors have no memory.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._sharing: dict[int, list[Tensor]] = {}

    def entry(self, tensor: Tensor) -> Entry:
        """What is known of a tensor; an unknown tensor, such as a parameter, has no field."""
        found = self._entries.get(id(tensor))
        return self.note(tensor, None) if found is None else found

    def note(self, tensor: Tensor, known: Known) -> Entry:
        """Keep the field of a tensor."""
        place = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype
        if id(tensor) not in self._entries:
            self._sharing.setdefault(memory_of(tensor), []).append(tensor)
        self._entries[id(tensor)] = Entry(tensor, known, *place)
        return self._entries[id(tensor)]

    def overwrite(self, tensor: Tensor, known: Known, operator: str) -> None:
        """A tensor was changed in place: so were all tensors in the same memory."""
        before = self.entry(tensor)
        written = self.note(tensor, known)
        if known is before.known:
            return
        for other in self._sharing[memory_of(tensor)]:
            if other is not tensor:
                seen = self._entries[id(other)]
                now = _after_write(seen, written, operator)
                self._entries[id(other)] = replace(seen, known=now)


def _after_write(seen: Entry, written: Entry, operator: str) -> Known:
    """The field of a tensor after another one in the same memory was written."""
    if seen.place == written.place:
        return written.known
    if 0 in (*seen.shape, *written.shape) or (seen.known is None and written.known is None):
        return seen.known
    if seen.dtype != written.dtype:
        return Unknown(f"{operator} on a part or a view")
    mine, theirs = _places(seen), _places(written)
    order = np.full(max(mine.max(), theirs.max()) + 1, -1)
    order[theirs.reshape(-1)] = np.arange(theirs.size)
    source = order[mine]  # for each element its place in what was written, or -1
    if bool((source < 0).all()):
        return seen.known
    known = isinstance(seen.known, tuple | None) and isinstance(written.known, tuple | None)
    return _merged(seen, written, source) if known else Unknown(f"{operator} on a part or a view")


def _merged(seen: Entry, written: Entry, source: Ints) -> Known:
    """The written field where there is a source, and else the old one."""
    new = written.known if isinstance(written.known, tuple) else None
    if np.array_equal(source.reshape(-1), np.arange(prod(written.shape))):  # all, in this order
        return new and spans.reshape(new, written.shape, seen.shape)
    old = seen.known if isinstance(seen.known, tuple) else None
    mask, spatial = source >= 0, tuple(range(2, source.ndim))
    channels = (  # whether whole channels were written, each position onto itself
        len(seen.shape) == len(written.shape)
        and (seen.shape[2:], seen.stride[2:]) == (written.shape[2:], written.stride[2:])
        and bool((mask.all(axis=spatial) == mask.any(axis=spatial)).all())
    )
    n_axes = len(new or old or ())

    def merged(one: Span | None, other: Span | None) -> Span:
        def put(which: str, nothing: np.int32) -> Ints:
            before, after = (getattr(each, which) if each else nothing for each in (one, other))
            return np.where(mask, np.broadcast_to(after, written.shape).reshape(-1)[source], before)

        rule, dim = None, one.dim if one else None
        if channels and one and other:
            rule, dim = spans.agreed(one, other)
        elif channels and (only := one or other):
            rule, dim = only.rule, only.dim
        first, last = put("first", NOTHING_FIRST), put("last", NOTHING_LAST)
        return Span(first, last, rule, dim, mixed=True)

    nothing = (None,) * n_axes
    return tuple(merged(*pair) for pair in zip(old or nothing, new or nothing, strict=True))


def _places(entry: Entry) -> NDArray[np.int64]:
    """The position in memory of each element."""
    places = np.full(entry.shape, entry.offset, dtype=np.int64)
    for dim, (n, stride) in enumerate(zip(entry.shape, entry.stride, strict=True)):
        line = np.arange(n, dtype=np.int64) * stride
        places += line.reshape([-1 if d == dim else 1 for d in range(len(entry.shape))])
    return places
