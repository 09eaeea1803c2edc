"""What the positions of a tensor see of the input, axis by axis: exact integer arithmetic.

A `Span` says for one spatial axis of the model's input which of its positions the units at each
position of a tensor see: the first and the last, counted over all channels and all positions of
the other axes. The arrays hold what real units see; padding contributes nothing. Beside them
`Affine` carries what the kernel arithmetic gives when the input's edge is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
NOTHING_FIRST = 2**60  # a position that sees nothing: first > last, neutral in a union
NOTHING_LAST = -(2**60)


class InseparableError(Exception):
    """The span of one axis would depend on more than one axis of the tensor. Never leaves here."""


@dataclass(frozen=True)
class Affine:
    """A field that is the same everywhere but for its place, unclipped by the input's edge.

    Attributes:
        size: input positions from the first to the last one seen.
        jump: input positions between the fields of neighbours; 0 where all see the same, None
            where the steps are uneven.
        start: first input position seen by position 0; negative in the padding.
    """

    size: int
    jump: int | None
    start: int


@dataclass(frozen=True)
class Span:
    """What is seen along one axis of the input.

    Attributes:
        dim: the tensor's axis along which it moves, None when all positions see the same.
        first: (n,) first input position seen by each position of ``dim``; n = 1 without ``dim``.
        last: (n,) last input position seen. Nothing is seen where first > last.
        affine: the unclipped field, None where its size differs from position to position.
    """

    dim: int | None
    first: Ints
    last: Ints
    affine: Affine | None

    def __len__(self) -> int:
        return len(self.first)

    @property
    def sees_nothing(self) -> bool:
        """Whether no position sees anything."""
        return bool((self.first > self.last).all())


@dataclass(frozen=True)
class Field:
    """The spans of a tensor, one for each spatial axis of the model's input.

    Attributes:
        spans: one per input axis.
        uneven: where units of one position see different things, so that a part of the tensor
            cannot be said to see what the whole does: between ``"channels"`` (axis 1) after a
            concatenation, or ``"somewhere"``.
    """

    spans: tuple[Span, ...]
    uneven: Literal["no", "channels", "somewhere"] = "no"


@dataclass(frozen=True)
class Unknown:
    """What a tensor sees is not known, since this operator made it or a tensor before it."""

    operator: str


def input_field(shape: Sequence[int]) -> Field:
    """The field of the model's input (N, C, *spatial): each position sees itself."""
    spans: list[Span] = []
    for axis, n in enumerate(shape[2:]):
        positions = np.arange(n, dtype=np.int64)
        spans.append(Span(2 + axis, positions, positions, Affine(1, 1, 0)))
    return Field(tuple(spans))


def gather(span: Span, index: Ints, affine: Affine | None) -> Span:
    """Positions ``index`` of a span, one after the other; outside the span nothing is seen."""
    inside = (index >= 0) & (index < len(span))
    safe = np.where(inside, index, 0)
    first = np.where(inside, span.first[safe], NOTHING_FIRST)
    return Span(span.dim, first, np.where(inside, span.last[safe], NOTHING_LAST), affine)


def slide(
    span: Span, kernel: int, stride: int, padding: int, dilation: int, n_out: int
) -> Span:
    """What a sliding window sees: position o takes o·stride − padding + t·dilation, t < kernel.

    Unclipped: r ← r + (k − 1)·dilation·jump and jump ← jump·stride (Araujo, Norris and Sim,
    "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019).
    """
    affine = span.affine
    if (kernel, stride, padding) != (1, 1, 0) and affine is not None:
        affine = _slide_affine(affine, kernel, stride, padding, dilation)
    origin = np.arange(n_out, dtype=np.int64) * stride - padding
    taps = [gather(span, origin + t * dilation, affine) for t in range(kernel)]
    return _hull_of(taps, affine)


def _slide_affine(
    field: Affine, kernel: int, stride: int, padding: int, dilation: int
) -> Affine | None:
    jump = field.jump
    if jump is None:
        return None
    size = field.size + (kernel - 1) * dilation * jump
    return Affine(size, jump * stride, field.start - padding * jump)


def spread(
    span: Span, kernel: int, stride: int, padding: int, dilation: int, n_out: int
) -> Span:
    """What a transposed convolution sees: o takes every i with o = i·stride − padding + t·dilation.

    With a stride the positions see fewer or more inputs in turn, so that the size is often not
    one number; the arrays are exact all the same.
    """
    affine = _spread_affine(span.affine, kernel, stride, padding, dilation)
    out = np.arange(n_out, dtype=np.int64)
    taps: list[Span] = []
    for t in range(kernel):
        numerator = out + padding - t * dilation
        index = np.where(numerator % stride == 0, numerator // stride, -1)
        taps.append(gather(span, index, affine))
    return _hull_of(taps, affine)


def _spread_affine(
    field: Affine | None, kernel: int, stride: int, padding: int, dilation: int
) -> Affine | None:
    if field is None or field.jump is None:
        return None
    hulls: list[tuple[int, int]] = []
    for phase in range(stride):
        steps = [phase + padding - t * dilation for t in range(kernel)]
        inputs = [step // stride for step in steps if step % stride == 0]
        if not inputs:
            return None
        hulls.append((min(inputs), max(inputs)))
    widths = {last - first for first, last in hulls}
    if len(widths) > 1:
        return None
    jump = field.jump if stride == 1 or field.jump == 0 else None
    size = field.size + widths.pop() * field.jump
    return Affine(size, jump, field.start + hulls[0][0] * field.jump)


def windows(span: Span, starts: Sequence[int], ends: Sequence[int]) -> Span:
    """What windows of differing sizes see: position o takes starts[o] to ends[o] − 1."""
    widths = {end - start for start, end in zip(starts, ends, strict=True)}
    steps = {b - a for a, b in zip(starts, starts[1:], strict=False)}
    if len(widths) == 1 and len(steps) == 1:
        return slide(span, widths.pop(), steps.pop(), -starts[0], 1, len(starts))
    pairs = list(zip(starts, ends, strict=True))
    first = np.array([span.first[a:b].min() for a, b in pairs], dtype=np.int64)
    last = np.array([span.last[a:b].max() for a, b in pairs], dtype=np.int64)
    return Span(span.dim, first, last, None)


def collapse(span: Span) -> Span:
    """All positions together, as one: what a mean or a product over the axis sees.

    One position is left as it is. Of several the result is global: it lies where it lies, and is
    clipped to the input, since an operation over all positions has no size of its own.
    """
    if len(span) == 1:
        return replace(span, dim=None)
    first, last = span.first.min(keepdims=True), span.last.max(keepdims=True)
    return Span(None, first, last, Affine(int(last[0] - first[0]) + 1, 0, int(first[0])))


def expand(span: Span, n: int) -> Span:
    """A single position repeated n times: all of them see the same."""
    if len(span) == n:
        return span
    affine = span.affine and replace(span.affine, jump=0)
    return Span(span.dim, np.repeat(span.first, n), np.repeat(span.last, n), affine)


def union(a: Span, b: Span) -> Span:
    """What either sees, position by position; both along the same axis of the tensor.

    Raises:
        InseparableError: when they move along different axes.
    """
    a, b = _on_one_axis(a, b)
    n = max(len(a), len(b))
    a, b = expand(a, n), expand(b, n)
    first, last = np.minimum(a.first, b.first), np.maximum(a.last, b.last)
    return Span(a.dim, first, last, _union_affine(a, b, first, last))


def _on_one_axis(a: Span, b: Span) -> tuple[Span, Span]:
    if a.dim == b.dim:
        return a, b
    if a.dim is None:
        return replace(a, dim=b.dim), b
    if b.dim is None:
        return a, replace(b, dim=a.dim)
    if is_uniform(a):
        return replace(one_of(a), dim=b.dim), b
    if is_uniform(b):
        return a, replace(one_of(b), dim=a.dim)
    raise InseparableError


def _union_affine(a: Span, b: Span, first: Ints, last: Ints) -> Affine | None:
    if a.affine is None or b.affine is None:
        return None
    if a.affine == b.affine:
        same = a.affine.jump is not None or np.array_equal(a.first, b.first)
        return a.affine if same else None
    if a.affine.jump == b.affine.jump and a.affine.jump is not None:
        start = min(a.affine.start, b.affine.start)
        end = max(a.affine.start + a.affine.size, b.affine.start + b.affine.size)
        return Affine(end - start, a.affine.jump, start)
    constant = (first == first[0]).all() and (last == last[0]).all()
    if 0 in {a.affine.jump, b.affine.jump} and constant:
        return Affine(int(last[0] - first[0]) + 1, 0, int(first[0]))
    return None


def is_uniform(span: Span) -> bool:
    """Whether all positions see the same."""
    return bool((span.first == span.first[0]).all() and (span.last == span.last[0]).all())


def one_of(span: Span) -> Span:
    """One position in place of many that see the same."""
    keeps = len(span) == 1 or (span.affine is not None and span.affine.jump == 0)
    return Span(None, span.first[:1], span.last[:1], span.affine if keeps else None)


def _hull_of(parts: Sequence[Span], affine: Affine | None) -> Span:
    first = np.minimum.reduce([part.first for part in parts])
    last = np.maximum.reduce([part.last for part in parts])
    return Span(parts[0].dim, first, last, affine)
