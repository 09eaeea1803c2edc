"""Work beside a training: a thread that ends no step, and problems that are said once.

Whatever goes wrong in such a thread is no reason to end a training. It is said by
`convlens.errors.warn`, once, and once more when it is over.
"""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import time
from collections.abc import Callable

from convlens.errors import warn

BORN_S = 1.0
"""A thread that was started and did nothing in this time has died of a lack of memory."""


FAILED_S = 1.0
"""How long the thread pauses after a piece that has failed."""


class Notices:
    """Problems, each of which is said once until all are over."""

    def __init__(self) -> None:
        self._said: dict[str, None] = {}

    def say(self, kind: str, sentence: str) -> None:
        """Warn of a problem, unless one of this kind was said before."""
        if kind not in self._said:
            self._said[kind] = None
            warn(sentence)

    def over(self, sentence: str) -> None:
        """Say that it is over, if anything was said."""
        if self._said:
            self._said.clear()
            warn(sentence)


class Background:
    """A thread that lives while there is something to do.

    It is not started by `threading.Thread`, whose ``start`` waits for ever where the memory is too
    short for the new thread to say that it has begun. `work` has to bear to be called by two
    threads, so that whoever waits can do the work itself.

    Args:
        what: what the work is for, as the beginning of a sentence on its failure.
        work: does one piece, and returns in how many seconds it is to be called again, None if
            there is nothing to do.
        finish: called at the interpreter's exit if there was something to do until then.

    Attributes:
        notices: what was said of problems.
    """

    def __init__(
        self, what: str, work: Callable[[], float | None], finish: Callable[[], None]
    ) -> None:
        self._what, self._work, self._finish = what, work, finish
        self.notices = Notices()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._process = os.getpid()
        self._since: float | None = None  # when the thread was started, None if there is none
        self._born = self._again = False
        self._ended = threading.Event()
        self._ended.set()

    def wake(self) -> bool:
        """See to it that a thread works; False if there can be none, so that the caller has to."""
        if os.getpid() != self._process or not threading.main_thread().is_alive():
            return False  # a fork has no thread of its parent's, and at the exit none lives on
        with self._lock:
            self._again = True
            now = time.monotonic()
            if self._since is not None and (self._born or now - self._since < BORN_S):
                return True
            try:
                _thread.start_new_thread(self._run, ())
            except (RuntimeError, MemoryError) as error:
                self.notices.say(
                    "no thread",
                    f"{self._what} takes the training's own time, as no thread can be started "
                    f"({error}); check the limits of this process (ulimit -v, ulimit -u).",
                )
                return False
            self._since, self._born = now, False
            self._stop.clear()
            self._ended.clear()
            atexit.register(self._finish)
        return True

    def do(self) -> float | None:
        """One piece, here and now; what `work` returns. An error in it is said and ends nothing."""
        try:
            return self._work()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self.notices.say(reason, f"{self._what} failed and was left out ({reason}).")
            return FAILED_S

    def wait(self) -> None:
        """Until there is nothing to do, whoever does it."""
        while os.getpid() == self._process and not self._ended.wait(BORN_S):
            if not self._born:
                break
        while self.do() is not None:
            pass

    def stop(self) -> None:
        """Have the thread end after the piece that it is doing; it does not wait any more."""
        self._stop.set()

    def _run(self) -> None:
        self._born = True
        try:
            while not self._is_done(self._piece()):
                pass
        except BaseException:  # such as a lack of memory outside of the work: nobody waits for it
            self._since = None
            self._ended.set()
            raise

    def _piece(self) -> float | None:
        with self._lock:
            self._again = False
        pause = self.do()
        if pause:
            self._stop.wait(pause)
        return pause

    def _is_done(self, pause: float | None) -> bool:
        with self._lock:
            if (pause is not None or self._again) and not self._stop.is_set():
                return False
            self._since = None
            atexit.unregister(self._finish)
            self._ended.set()
        return True
