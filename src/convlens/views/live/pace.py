"""How often what costs much is done: so that the server takes a small share of a core."""

from __future__ import annotations

import time

SHARE = 0.025
"""Of a core, for all pages together."""

LONGEST_S = 4.0
"""What costs much is put off so long at most."""


class Pace:
    """Puts costly work off until the server's thread has rested enough since the last time.

    What is counted is all that the thread did since then: reading, drawing and sending, for every
    page that is open.
    """

    def __init__(self) -> None:
        self._at, self._used = time.monotonic(), time.thread_time()

    def due(self) -> bool:
        """Whether it is to be done now; then it counts as done."""
        now, used = time.monotonic(), time.thread_time()
        passed = now - self._at
        if used - self._used > SHARE * passed and passed < LONGEST_S:
            return False
        self._at, self._used = now, used
        return True
