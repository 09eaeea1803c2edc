"""Which input positions an axis' positions see, on an input without edges.

Far from the edges every operation of a convolutional network repeats itself: what position o sees
returns, shifted by `rise` input positions, at o + P. For a plain stack of convolutions P = 1, and
the rule is the well-known triple of size, jump and start; after a transposed convolution of stride
2, P = 2. (Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks",
Distill 2019, has the case P = 1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm


@dataclass(frozen=True)
class Rule:
    """Position o sees the input positions first(o) … last(o), and nothing outside them.

    Attributes:
        first: (P,) first input position seen by the positions 0 … P − 1.
        last: (P,) last input position seen by them.
        rise: input positions by which both grow from o to o + P; 0 where all see the same.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    rise: int

    @property
    def period(self) -> int:
        """P, after how many positions the rule repeats itself."""
        return len(self.first)

    @property
    def size(self) -> int | None:
        """How many input positions lie between first and last, None where that differs."""
        sizes = {last - first + 1 for first, last in zip(self.first, self.last, strict=True)}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def jump(self) -> int | None:
        """Input positions from one field to the next, None where that differs."""
        steps = {self.at(o + 1)[k] - self.at(o)[k] for o in range(self.period) for k in (0, 1)}
        return steps.pop() if len(steps) == 1 else None

    @property
    def start(self) -> int | None:
        """First input position that position 0 sees, negative in the padding; None as `jump`."""
        return None if self.jump is None else self.first[0]

    def at(self, position: int) -> tuple[int, int]:
        """First and last input position that one position sees."""
        turns, rest = divmod(position, self.period)
        return self.first[rest] + turns * self.rise, self.last[rest] + turns * self.rise

    def window(self, offsets: Sequence[int], stride: int = 1) -> Rule:
        """The rule after an operation whose position o reads the positions o·stride + offset."""
        period = self.period // gcd(self.period, stride)
        seen = [[self.at(o * stride + offset) for offset in offsets] for o in range(period)]
        return _rule(seen, self.rise * stride * period // self.period)

    def spread(self, kernel: int, stride: int, padding: int, dilation: int) -> Rule | None:
        """The rule after a transposed convolution; None where some positions read nothing."""
        period = self.period * stride
        seen = [
            [self.at(i) for i in transposed_taps(o, kernel, stride, padding, dilation)]
            for o in range(period)
        ]
        return _rule(seen, self.rise) if all(seen) else None

    def union(self, other: Rule) -> Rule | None:
        """What sees both; None where the two move at different speeds."""
        if self.rise * other.period != other.rise * self.period:
            return None
        period = lcm(self.period, other.period)
        return _rule(
            [[self.at(o), other.at(o)] for o in range(period)], self.rise * period // self.period
        )

    def collapsed(self, count: int) -> Rule:
        """What sees all of the positions 0 … count − 1 at once."""
        seen = [self.at(o) for o in range(count)]
        return Rule((min(f for f, _ in seen),), (max(last for _, last in seen),), 0)


IDENTITY = Rule((0,), (0,), 1)
"""The input itself: position o is input position o."""


def transposed_taps(
    position: int, kernel: int, stride: int, padding: int, dilation: int
) -> list[int]:
    """Positions that position o of a transposed convolution reads: (o + p − k·d) / s if whole."""
    shifted = (position + padding - k * dilation for k in range(kernel))
    return [place // stride for place in shifted if place % stride == 0]


def _rule(seen: Sequence[Sequence[tuple[int, int]]], rise: int) -> Rule:
    first = tuple(min(f for f, _ in fields) for fields in seen)
    last = tuple(max(last for _, last in fields) for fields in seen)
    long = Rule(first, last, rise)
    step = long.jump
    return Rule(first[:1], last[:1], step) if step is not None else long
