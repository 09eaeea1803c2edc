"""How often what costs much is done: so that the server takes a small share of a core.

Where the training computes with every core, whatever the server does stops one of its threads, for
which the others wait: there it does little but show the newest losses. The kernel counts how long
the server's thread was ready and had to wait for a core, and on such a machine it waits longer than
it runs.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

POLL_S = 1.0
"""Seconds between two looks at a run."""

WAITED = Path("/proc/thread-self/schedstat")
"""Nanoseconds that this thread has run, and that it has waited for a core (Linux)."""


SHARE = 0.025
"""Of a core, for all pages together."""

LONGEST_S = 4.0
"""What costs much is put off so long at most."""

CROWDED_S = 45.0
"""And so long where no core is free, once a training has gone on for a while."""

BEHIND = 1 / 5
"""But no longer than this share of the training: as much of each figure is empty at the most."""


class Pace:
    """Puts costly work off until the server has rested enough since the last time.

    What is counted is all that was done since then: reading, drawing and sending, for every page
    that is open.

    Attributes:
        crowded: whether no core is free, as far as is known.
    """

    def __init__(self) -> None:
        self.crowded = False
        self._begin()

    def _begin(self) -> None:
        self._at, self._used = time.monotonic(), time.process_time()
        self._ran, self._waited = time.thread_time(), _waited_s()

    def due(self, age_s: float) -> bool:
        """Whether it is to be done now; then it counts as done.

        Args:
            age_s: how long the training has gone on for.
        """
        passed, worked = time.monotonic() - self._at, time.process_time() - self._used
        if worked > SHARE * passed and passed < LONGEST_S:
            return False
        ran, waited = time.thread_time() - self._ran, _waited_s() - self._waited
        self.crowded = waited > ran
        if self.crowded and passed < min(BEHIND * age_s, CROWDED_S):
            return False
        self._begin()
        return True


def _waited_s() -> float:
    """How long this thread has waited for a core; 0 where that is not counted."""
    with suppress(OSError, ValueError, IndexError), open(WAITED) as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0
