"""What is known of each tensor of a run, also where several look at the same memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from convlens.execution import memory_of
from convlens.geometry import reach, taps
from convlens.geometry.periodic import Rule, window
from convlens.geometry.reach import NOTHING_FIRST, NOTHING_LAST, Field, Known, Reach, Shape, Unknown


@dataclass(frozen=True)
class Place:
    """Where a tensor's elements lie in their memory."""

    shape: Shape
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Entry:
    """A tensor, what is known of it, and where it lies."""

    tensor: Tensor
    known: Known
    place: Place

    @property
    def shape(self) -> Shape:
        """Its shape when it was noted; operators such as ``squeeze_`` change it afterwards."""
        return self.place.shape


class Ledger:
    """What is known of each tensor.

    It holds every tensor until the run is over, so that no identity is used twice; fake tensors
    have no memory to hold.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._sharing: dict[int, list[Tensor]] = {}

    def entry(self, tensor: Tensor) -> Entry:
        """What is known of a tensor; one never met, such as a parameter, has no field."""
        found = self._entries.get(id(tensor))
        return self.note(tensor, None) if found is None else found

    def note(self, tensor: Tensor, known: Known) -> Entry:
        """A new tensor, perhaps in the memory of another; or one that now looks elsewhere."""
        entry = Entry(tensor, known, _place(tensor))
        if id(tensor) not in self._entries:
            self._sharing.setdefault(memory_of(tensor), []).append(tensor)
        self._entries[id(tensor)] = entry
        return entry

    def overwrite(self, tensor: Tensor, known: Known, operator: str) -> None:
        """A tensor was changed in place, and so were those that look at the same memory."""
        before = self.entry(tensor)
        written = self.note(tensor, known)
        if known is before.known:
            return
        others = [t for t in self._sharing[memory_of(tensor)] if t is not tensor]
        for other in others:  # the oldest, which made the memory, comes first
            seen = self._entries[id(other)]
            base = self._entries[id(self._sharing[memory_of(tensor)][0])]
            now = _after_write(seen, written, base, operator)
            if now is not seen.known:
                self._entries[id(other)] = replace(seen, known=now)


def _after_write(seen: Entry, written: Entry, base: Entry, operator: str) -> Known:
    """What is known of a tensor when another in the same memory was written."""
    if 0 in written.shape or (seen.known is None and written.known is None):
        return seen.known
    if seen.place == written.place:
        return written.known
    if not isinstance(written.known, Unknown) and seen.place.dtype == written.place.dtype:
        if (box := box_within(written.place, seen.place)) is not None:
            return _written_into(seen.known, box, written)
        mine, theirs = (box_within(each.place, base.place) for each in (seen, written))
        if mine is not None and theirs is not None:
            return seen.known if mine.apart(theirs) else _part(mine, base)
    return Unknown(f"{operator} on a part or a view")


def _written_into(known: Known, box: Box, written: Entry) -> Known:
    new = written.known if isinstance(written.known, tuple) else None
    if isinstance(known, Unknown):
        return box.paste(None, new, written.shape) if box.whole else known
    return box.paste(known, new, written.shape)


def _part(box: Box, outer: Entry) -> Known:
    return box.cut(outer.known, outer.shape) if isinstance(outer.known, tuple) else outer.known


def _place(tensor: Tensor) -> Place:
    return Place(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)


@dataclass(frozen=True)
class Box:
    """The part of an outer tensor that an inner one looks at.

    Attributes:
        parts: for each axis of the outer one, the first position, the step, and how many.
        sizes: the outer one's shape.
        order: the outer axes of those of the inner one that have several positions.
        shape: the inner one's shape.
    """

    parts: tuple[tuple[int, int, int], ...]
    sizes: Shape
    order: tuple[int, ...]
    shape: Shape

    @property
    def whole(self) -> bool:
        """Whether it is all of the outer one."""
        return all(count == n for (_, _, count), n in zip(self.parts, self.sizes, strict=True))

    def apart(self, other: Box) -> bool:
        """Whether two boxes of the same outer tensor have no element in common."""
        return any(
            a + s * (m - 1) < b or b + t * (n - 1) < a or (s == t and (a - b) % s != 0)
            for (a, s, m), (b, t, n) in zip(self.parts, other.parts, strict=True)
        )

    def cut(self, field: Field, outer: Shape) -> Field:
        """What the inner tensor sees, of what the outer one does."""
        for dim, (start, step, count) in enumerate(self.parts):
            if count != outer[dim]:
                part = taps.strided(outer[dim], count, [start], step)
                field = tuple(reach.narrow(seen, dim, outer[dim], part) for seen in field)
        single = [d for d in range(len(outer)) if d not in self.order]
        order = [*single, *self.order]
        counts = tuple(count for _, _, count in self.parts)
        return reach.reshape(
            reach.permute(field, order), tuple(counts[d] for d in order), self.shape
        )

    def paste(self, old: Field | None, new: Field | None, shape: Shape) -> Field | None:
        """What the outer tensor sees when the inner one was written; None sees nothing."""
        if new is not None:
            counts = tuple(count for _, _, count in self.parts)
            long = tuple(counts[d] for d in self.order)
            rest = [d for d in range(len(counts)) if d not in self.order]
            moved = [*self.order, *rest]
            new = reach.reshape(new, shape, (*long, *(1 for _ in rest)))
            new = reach.permute(new, [moved.index(d) for d in range(len(counts))])
        if self.whole:
            return new
        n_axes = len(new or old or ())
        olds, news = old or (None,) * n_axes, new or (None,) * n_axes
        return tuple(self._pasted(a, b) for a, b in zip(olds, news, strict=True))

    def _pasted(self, old: Reach | None, new: Reach | None) -> Reach:
        shapes = [seen.first.shape for seen in (old, new) if seen]
        partial = [d for d, (_, _, count) in enumerate(self.parts) if count != self.sizes[d]]
        full = tuple(
            n if d in partial or any(shape[d] > 1 for shape in shapes) else 1
            for d, n in enumerate(self.sizes)
        )
        at = tuple(
            slice(start, start + step * count, step) if d in partial else slice(None)
            for d, (start, step, count) in enumerate(self.parts)
        )

        def write(which: str, nothing: np.int32) -> reach.Ints:
            array = np.broadcast_to(getattr(old, which) if old else nothing, full).copy()
            array[at] = getattr(new, which) if new else nothing
            return array

        rule, dim = self._rule(old, new, partial)
        mixed = any(seen.mixed for seen in (old, new) if seen) or any(d < 2 for d in partial)
        first, last = write("first", NOTHING_FIRST), write("last", NOTHING_LAST)
        return Reach(first, last, rule, dim, mixed)

    def _rule(
        self, old: Reach | None, new: Reach | None, partial: list[int]
    ) -> tuple[Rule | None, int | None]:
        """Rule and axis of the outer tensor, as after padding, or for parts of the channels."""
        if old is None or new is None:
            known = old or new
            if known is None or old is not None or known.dim not in partial:
                return (known.rule if known and new else None), known.dim if known else None
            start, step, _ = self.parts[known.dim]
            shifted = known.rule.through(window([-start])) if known.rule and step == 1 else None
            return shifted, known.dim
        if any(d >= 2 for d in partial):
            return None, old.dim
        return reach.agreed(old, new)


def box_within(inner: Place, outer: Place) -> Box | None:
    """Where one tensor lies in another of the same memory; None if it is no box of it."""
    dims = sorted((d for d, n in enumerate(outer.shape) if n > 1), key=lambda d: -outer.stride[d])
    if 0 in inner.shape or not _nested(outer, dims):
        return None
    rest, starts = inner.offset - outer.offset, [0] * len(outer.shape)
    for d in dims:
        starts[d] = min(max(rest, 0) // outer.stride[d], outer.shape[d] - 1)
        rest -= starts[d] * outer.stride[d]
    if rest != 0:
        return None
    parts, order = [(start, 1, 1) for start in starts], list[int]()
    for n, stride in zip(inner.shape, inner.stride, strict=True):
        if n == 1:
            continue
        d = next(_fitting(n, stride, outer, starts, [d for d in dims if d not in order]), None)
        if d is None:
            return None
        parts[d] = (starts[d], stride // outer.stride[d], n)
        order.append(d)
    return Box(tuple(parts), outer.shape, tuple(order), inner.shape)


def _nested(place: Place, dims: list[int]) -> bool:
    """Whether no two elements share a place, and each axis' steps pass over the later ones'."""
    reached = 0
    for d in reversed(dims):
        if place.stride[d] <= reached:
            return False
        reached += place.stride[d] * (place.shape[d] - 1)
    return True


def _fitting(
    n: int, stride: int, outer: Place, starts: list[int], dims: list[int]
) -> Iterator[int]:
    """The axes of ``outer`` along which n positions with this stride can lie."""
    for d in dims:
        step, rest = divmod(stride, outer.stride[d])
        if step > 0 and rest == 0 and starts[d] + step * (n - 1) < outer.shape[d]:
            yield d
