"""Receptive fields along one axis of an input without edges.

Far from the edges, what position o sees repeats, shifted by `rise` input positions, at o + P. For
convolutions P = 1, and the rule is the usual triple of size, jump and start; after a transposed
convolution of stride 2, P = 2. (Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional
Neural Networks", Distill 2019, has the case P = 1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm

LONGEST = 1024
"""Longest period of a rule."""


@dataclass(frozen=True)
class Pattern:
    """Which positions an operation reads on an axis without edges.

    Attributes:
        reads: (P, …) positions that the positions 0 … P − 1 read.
        advance: by how much these grow from o to o + P.
    """

    reads: tuple[tuple[int, ...], ...]
    advance: int

    def at(self, position: int) -> list[int]:
        """The positions that one position reads."""
        repeats, rest = divmod(position, len(self.reads))
        return [place + repeats * self.advance for place in self.reads[rest]]


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
        """P, the number of positions after which the rule repeats."""
        return len(self.first)

    @property
    def size(self) -> int | None:
        """Input positions from first to last; None if positions differ."""
        sizes = {last - first + 1 for first, last in zip(self.first, self.last, strict=True)}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def jump(self) -> int | None:
        """Input positions from one field to the next; None if positions differ."""
        steps = {self.at(o + 1)[k] - self.at(o)[k] for o in range(self.period) for k in (0, 1)}
        return steps.pop() if len(steps) == 1 else None

    @property
    def start(self) -> int | None:
        """First input position that position 0 sees, negative in the padding; None as `jump`."""
        return None if self.jump is None else self.first[0]

    def at(self, position: int) -> tuple[int, int]:
        """First and last input position that one position sees."""
        repeats, rest = divmod(position, self.period)
        return self.first[rest] + repeats * self.rise, self.last[rest] + repeats * self.rise

    def through(self, pattern: Pattern) -> Rule | None:
        """The rule after an operation; None if some positions read nothing, or P is too large."""
        repeats = self.period // gcd(self.period, pattern.advance)
        period = len(pattern.reads) * repeats
        if period > LONGEST or not all(pattern.reads):
            return None
        seen = [[self.at(place) for place in pattern.at(o)] for o in range(period)]
        return _rule(seen, self.rise * repeats * pattern.advance // self.period)

    def union(self, other: Rule) -> Rule | None:
        """The union of two rules; None if their jumps differ."""
        if self.rise * other.period != other.rise * self.period:
            return None
        period = lcm(self.period, other.period)
        if period > LONGEST:
            return None
        return _rule(
            [[self.at(o), other.at(o)] for o in range(period)], self.rise * period // self.period
        )

    def collapsed(self, count: int) -> Rule:
        """The rule of what sees all positions 0 … count − 1."""
        seen = [self.at(o) for o in range(count)]
        return Rule((min(f for f, _ in seen),), (max(last for _, last in seen),), 0)


IDENTITY = Rule((0,), (0,), 1)
"""The input itself: position o is input position o."""


def window(offsets: Sequence[int], stride: int = 1) -> Pattern:
    """Position o reads the positions o·stride + offset."""
    return Pattern((tuple(offsets),), stride)


def _rule(seen: Sequence[Sequence[tuple[int, int]]], rise: int) -> Rule:
    first = tuple(min(f for f, _ in fields) for fields in seen)
    last = tuple(max(last for _, last in fields) for fields in seen)
    for period in range(1, len(first) // 2 + 1):
        if len(first) % period == 0 and rise * period % len(first) == 0:
            step = rise * period // len(first)
            if _repeats(first, period, step) and _repeats(last, period, step):
                return Rule(first[:period], last[:period], step)
    return Rule(first, last, rise)


def _repeats(values: Sequence[int], period: int, step: int) -> bool:
    return all(values[o] - values[o - period] == step for o in range(period, len(values)))
