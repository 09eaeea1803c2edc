"""When a training hands over what it has, and when those who follow it look: on one beat.

Whoever looked at times of their own would look more often to be as early, or find half of what was
handed over. The beat is that of the clock, so that processes need not know of each other.
"""

from __future__ import annotations

import time

BEAT_S = 0.65
"""Seconds between two beats."""


def until_beat(late_s: float = 0.0) -> float:
    """Seconds until the next time that a beat is ``late_s`` past, which is below `BEAT_S`."""
    return BEAT_S - (time.time() - late_s) % BEAT_S


class Beats:
    """When something has to be handed over: once for each beat, as late as it can be."""

    def __init__(self) -> None:
        self.done()

    def due(self, next_s: float = 0.0) -> bool:
        """Whether it is to be handed over now, if another chance to will come in ``next_s``.

        It is if nothing was since the last beat, and also if that chance will be too late for the
        coming one.
        """
        return _for(next_s) not in (self._done, self._done - 1)

    def done(self, next_s: float = 0.0) -> None:
        """It was handed over."""
        self._done = _for(next_s)


def _for(next_s: float) -> int:
    """The beat that the next chance comes after: the one that has been, or the coming one."""
    return int(time.time() / BEAT_S + min(next_s / BEAT_S, 1.0))
