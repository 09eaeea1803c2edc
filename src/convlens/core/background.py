"""A background thread that runs tasks in order; an error in a task becomes a warning."""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from convlens.errors import warn

START_S = 1.0
"""Seconds within which a thread begins to run, unless it died of a lack of memory."""

LIMIT = 1 << 26
"""Bytes that may wait for the thread: 64 MiB. Beyond it `Background.add` runs tasks itself."""


class Notices:
    """Warns of each kind of problem once, until `over` is called."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, kind: str, sentence: str) -> None:
        """Warn of a problem, unless one of this kind was said before."""
        if kind not in self._said:
            self._said.add(kind)
            warn(sentence)

    def over(self, sentence: str) -> None:
        """Warn once that the problem has ended, if one was reported."""
        if self._said:
            self._said.clear()
            warn(sentence)


class Background:
    """A queue of tasks and the thread that runs them, which lives while there is something to do.

    Where no thread can run (no memory, a forked process, the interpreter's exit) tasks are run by
    whoever adds them. The thread is not a `threading.Thread`, whose ``start`` waits for ever where
    the new thread finds no memory to say that it has begun.

    Args:
        what: what the tasks are for; it begins the sentence on a failure.
        idle: called when no task waits; the seconds until it has to be called again, None if there
            is nothing more to do.
        finish: called at the interpreter's exit if the thread is still alive; `wait` if None.

    >>> from convlens.core.background import Background
    >>> done, background = [], Background("Testing")
    >>> background.add(lambda: done.append(1))
    >>> background.wait()
    >>> done
    [1]
    """

    def __init__(
        self,
        what: str,
        idle: Callable[[], float | None] = lambda: None,
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._what, self._idle, self._finish = what, idle, finish or self.wait
        self._notices = Notices()
        self._tasks: deque[tuple[Callable[[], None], int]] = deque()
        self._n_bytes = 0
        self._running = threading.Lock()  # held while a task runs, so that they run in order
        self._runner: int | None = None  # the thread that runs it
        self._lock = threading.Lock()  # for what is below, and the number of bytes
        self._news = threading.Event()
        self._process = os.getpid()
        self._started_at: float | None = None  # None without a thread
        self._has_begun = self._is_stopped = False

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._started_at is not None

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a fork of the one that made it, and so lacks the thread.

        Another thread may have held the locks at the fork, so they must not be touched.
        """
        return os.getpid() != self._process

    def add(self, task: Callable[[], None], n_bytes: int = 0) -> None:
        """Add a task to the queue.

        Args:
            task: an error in it becomes a warning.
            n_bytes: memory that it holds while it waits.
        """
        while self._n_bytes + n_bytes > LIMIT and self._run_task():
            pass
        with self._lock:
            self._n_bytes += n_bytes
            self._tasks.append((task, n_bytes))
        if not self.wake():
            self.wait()

    def wake(self) -> bool:
        """Make sure that a thread works; False if there can be none, so that the caller has to."""
        if self.is_inherited or not threading.main_thread().is_alive():
            return False
        with self._lock:
            self._news.set()
            now = time.monotonic()
            if self._started_at is not None:
                return self._has_begun or now - self._started_at < START_S
            self._has_begun = self._is_stopped = False
            try:
                _thread.start_new_thread(self._run, ())
            except (RuntimeError, MemoryError) as error:
                self._notices.say(
                    "no thread",
                    f"{self._what} takes the training's own time, as no thread can be started "
                    f"({error}); check the limits of this process (ulimit -v, ulimit -u).",
                )
                return False
            self._started_at = now
            atexit.register(self._finish)
        return True

    def wait(self) -> None:
        """Return when every task has been run, by the thread or here."""
        while self._run_task():
            pass

    def stop(self) -> None:
        """Have the thread end as soon as no task waits, whatever `idle` asks for."""
        self._is_stopped = True
        self._news.set()

    def _run_task(self) -> bool:
        """Run the task that was added first; False if there is none, or inside of a task."""
        if self._runner == threading.get_ident():
            return False
        with self._running:
            if not self._tasks:
                return False
            task, n_bytes = self._tasks.popleft()
            try:
                self._runner = threading.get_ident()
                task()
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                self._notices.say(reason, f"{self._what} failed and was left out ({reason}).")
            finally:
                self._runner = None
                with self._lock:
                    self._n_bytes -= n_bytes
        return True

    def _run(self) -> None:
        self._has_begun = True
        try:
            while not self._is_done():
                pass
        finally:
            self._started_at = None

    def _is_done(self) -> bool:
        """Do everything there is to do, and wait for more if `idle` asks for it."""
        self._news.clear()
        self.wait()
        pause = self._idle()
        if pause is not None and not self._is_stopped:
            self._news.wait(pause)
            return False
        with self._lock:
            if self._tasks:
                return False
            self._started_at = None
            atexit.unregister(self._finish)
        return True
