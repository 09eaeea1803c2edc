"""When a training hands over what it has, and when those who follow it look: on one beat.

Whoever looked at times of their own would look more often to be as early, or find half of what was
handed over. The beat is that of the clock, so that processes need not know of each other.
"""

from __future__ import annotations

import time

BEAT_S = 0.6
"""Seconds between two beats."""


def beat() -> int:
    """Which beat it is: another number from one beat to the next."""
    return int(time.time() / BEAT_S)


def until_beat(late_s: float = 0.0) -> float:
    """Seconds until the next time that a beat is ``late_s`` past, which is below `BEAT_S`."""
    return BEAT_S - (time.time() - late_s) % BEAT_S


def beat_for(next_s: float) -> int:
    """The beat that something must be handed over for, if the next will be there in ``next_s``.

    It is the coming one if the next will be too late for it, else the one that has been.
    """
    return beat() + (until_beat() < next_s)
