"""The server's threads, and answers that take long, worked out in the background."""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, LifoQueue, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, Generic, TypeVar

NICENESS = 3
"""How far the server's threads lower their own priority, as ``nice`` has it.

Beside two processes that compute all the time they get a third of a core; with 10 it would be a
tenth, and a page would open after half a minute.
"""

CLOSING_S = 0.3
"""So long the end of the server waits for what its threads are doing."""

T = TypeVar("T")


class Workers:
    """Threads of low priority that end with the program, whatever they are doing.

    For those of `concurrent.futures` Ctrl-C would have to wait.

    Args:
        n: how many.
        newest_first: whether the newest job is done first, else the oldest.
    """

    def __init__(self, n: int, *, newest_first: bool = False) -> None:
        self._jobs: Any = LifoQueue() if newest_first else SimpleQueue()
        self._threads = [Thread(target=self._work, daemon=True) for _ in range(n)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Have a job done."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def close(self) -> None:
        """Cancel the jobs that wait, and give those that are being done a moment.

        A thread that the end of the program stops within SQLite may hold a lock for ever.
        """
        with suppress(Empty):
            while True:
                self._jobs.get_nowait()[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        until = time.monotonic() + CLOSING_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        if sys.platform == "linux":  # where each thread has a priority of its own
            with suppress(OSError):
                os.nice(NICENESS)
        while (given := self._jobs.get()) is not None:
            future, job = given
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:
                    future.set_exception(error)
            del given, future, job  # while it waits, a thread keeps no answer


@dataclass
class Result(Generic[T]):
    """What was worked out, the state that it is of, and the state that was asked for."""

    value: T | None = None
    mark: str | None = None
    asked: str | None = None
    again: float = -float("inf")
    urgent: bool = False
    done: Event = field(default_factory=Event)


class Results(Generic[T]):
    """Answers that one thread works out, the newest question first; older ones are kept meanwhile.

    Args:
        most: answers that are remembered; those asked for longest ago are forgotten.
        pause: seconds from the begin of one answer to that of the next, by those that it took.
    """

    def __init__(self, most: int, pause: Callable[[float], float]) -> None:
        self._most, self._pause = most, pause
        self._results: OrderedDict[Hashable, Result[T]] = OrderedDict()
        self._lock, self._worker = Lock(), Workers(1, newest_first=True)

    def of(
        self, key: Hashable, mark: str, work: Callable[[], T], *,
        growing: bool = True, urgent: bool = False, wait_s: float = 0.0,
    ) -> Result[T]:  # fmt: skip
        """What is known under a key; it is worked out again where the state has changed.

        Args:
            key: of the answer.
            mark: of the state; another one has it worked out again.
            work: works it out, without an exception.
            growing: whether the state goes on changing; then there is a pause before the next time.
            urgent: whether it comes before all that was asked for until now.
            wait_s: so long the first request waits for the answer.
        """
        with self._lock:
            result = self._results.setdefault(key, Result())
            self._results.move_to_end(key)
            while len(self._results) > self._most:
                self._results.popitem(last=False)
            first, running = result.asked is None, result.asked != result.mark
            if not running and result.mark != mark:
                running = not growing or time.monotonic() > result.again
                if running:
                    result.asked = mark
                    self._worker.submit(lambda: self._run(result, work))
            elif running and urgent and not result.urgent:
                self._worker.submit(lambda: self._run(result, work))
            result.urgent = running and (urgent or result.urgent)
        if first:
            result.done.wait(wait_s)
        return result

    def close(self) -> None:
        """Begin nothing any more."""
        self._worker.close()

    def _run(self, result: Result[T], work: Callable[[], T]) -> None:
        if result.asked != result.mark:  # else it was asked for twice, and is done
            begun = time.monotonic()
            result.value = work()
            result.again = begun + self._pause(time.monotonic() - begun)
            result.mark, result.urgent = result.asked, False
            result.done.set()
