"""The runs that a page may show, by names that say nothing of where they lie."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from convlens.core.records import Finding
from convlens.doctor import diagnose
from convlens.errors import ConvlensError, RunError
from convlens.runs import Run, RunInfo, list_runs, open_run
from convlens.runs.follower import Newest, RunFollower
from convlens.views.distances import Comparison, compare

FRESH_S = 0.1
"""A run is looked at once in this time, however many pages show it."""

AGAIN_S = 10.0
"""What takes long is worked out anew for a growing run after this time."""

POINTS = 1_500
"""Entries of the curves: more than the figures have pixels."""

KEEP_S = 60.0
"""What no page has asked for in this time is let go: a run may hold hundreds of megabytes."""

LOWEST = 19
"""The lowest priority of a thread, as ``nice`` has it."""

T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True)
class Look:
    """A run as it was at a look.

    Attributes:
        follower: its state; the same object in every look.
        version: another number whenever something is new.
    """

    follower: RunFollower
    version: int


class RunStore:
    """The runs in some folders.

    A run's key is a digest of its path: an address can name only what was found in a folder, so
    there is nothing in it to climb out with.

    Args:
        places: folders that keep runs, and directories of runs.

    Raises:
        RunError: if one is neither.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        self._folders: list[Path] = []
        self._single: list[Path] = []
        for place in places:
            self._add(place)
        self._open: dict[str, _Followed] = {}
        self._jobs: dict[Hashable, _Job[Any]] = {}
        self._workers = ThreadPoolExecutor(1, "convlens view")
        self._readers = ThreadPoolExecutor(1, "convlens view, reading", initializer=_give_way)

    def _add(self, place: Path) -> None:
        if (place / "run.db").is_file() or place.name == "run.db":
            self._single.append(open_run(place).path)
        elif place.is_dir() or not place.exists():
            self._folders.append(place)
        else:
            raise RunError(
                f"path={str(place)!r} is a file; give the folder that keeps the runs, such as "
                "runs, or the folder of one run."
            )

    def list(self) -> dict[str, RunInfo]:
        """Every run by its key, oldest first."""
        self._let_go()
        found = [info for folder in self._folders for info in _inside(folder)]
        for path in self._single:
            found += [info for info in list_runs(path.parent) if info.path.name == path.name]
        found.sort(key=lambda info: (info.created, info.name))
        return {key_of(info.path): info for info in found}

    def knows(self, key: str) -> bool:
        """Whether there is such a run."""
        return key in self._open or key in self.list()

    def look(self, key: str) -> Look:
        """The run's state as of a moment ago.

        Raises:
            RunError: if there is no such run, or it cannot be read.
        """
        return self._followed(key).look()

    def read(self, key: str, then: Callable[[Look], None]) -> Future[Look]:
        """Begin to look, in a thread that gives way to whatever computes on this machine.

        Args:
            key: the run.
            then: what else that thread has to do; the look is the same without it.

        Raises:
            RunError: if there is no such run; the future's, if it cannot be read.
        """
        return self._readers.submit(self._followed(key).read, then)

    def newest(self, key: str, since: int) -> Newest:
        """A glance at what came after a step; see `RunFollower.newest`.

        Raises:
            RunError: if there is no such run, or it cannot be read.
        """
        return self._followed(key).newest(since)

    def _followed(self, key: str) -> _Followed:
        followed = self._open.get(key)
        if followed is None:
            info = self.list().get(key)
            if info is None:
                raise RunError("There is no such run any more; go back to the list of runs.")
            followed = self._open[key] = _Followed(open_run(info.path))
        followed.asked = time.monotonic()
        self._let_go()
        return followed

    async def read_ahead(self) -> None:
        """Read the run that the first page will show, if there is only one, in a thread."""
        with suppress(Exception):  # whatever it is, the page will meet it and say so
            runs = self.list()
            if len(runs) == 1:
                (key,) = runs
                followed = _Followed(open_run(runs[key].path))
                await asyncio.wrap_future(self._workers.submit(followed.read_ahead))
                self._open.setdefault(key, followed)

    def findings(self, key: str) -> Sequence[Finding] | None:
        """What the doctor sees in a run, None until it has looked: it reads every column."""
        look = self._followed(key).last  # as it was: this is asked at every poll
        return self._worked_out(("findings", key), (look.version,), partial(_diagnose, look))

    def comparison(self, keys: tuple[str, str]) -> Comparison | None:
        """How far two runs are apart, None until it is worked out."""
        looks = self.look(keys[0]), self.look(keys[1])
        versions = looks[0].version, looks[1].version
        return self._worked_out(("comparison", *keys), versions, partial(_compare, *looks))

    def _worked_out(self, what: Hashable, state: Hashable, work: Callable[[], T]) -> T | None:
        """The newest result of slow work; begun anew where the runs have grown since."""
        job: _Job[T] = self._jobs.setdefault(what, _Job())
        job.asked = time.monotonic()
        if job.running is not None and job.running.done():
            done, job.running = job.running, None
            if done.exception() is not None:
                job.state = None  # to be tried again
            job.result = done.result()
        due = job.state != state and time.monotonic() - job.begun > AGAIN_S
        if job.running is None and due:
            job.state, job.begun = state, time.monotonic()
            job.running = self._workers.submit(work)
        return job.result

    def _let_go(self) -> None:
        """Forget what no open page shows: each of them asks several times a second."""
        self._open, self._jobs = _asked_lately(self._open), _asked_lately(self._jobs)

    def close(self) -> None:
        """Let go of everything."""
        for pool in (self._workers, self._readers):
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Job(Generic[T]):
    """Slow work that is done beside the page."""

    state: Hashable = None
    asked: float = -float("inf")
    begun: float = -float("inf")
    running: Future[T] | None = None
    result: T | None = None


class _Followed:
    """A run that some page shows."""

    def __init__(self, run: Run) -> None:
        self.follower = RunFollower(run)
        self.asked = self._at = -float("inf")
        self._glance: tuple[float, int, Newest] | None = None  # when, since which step

    def read_ahead(self) -> None:
        """Ask for what a page begins with."""
        follower = self.follower
        for quantity in ("activation", "gradient", "update", "parameter"):
            follower.figures(quantity)
        follower.curves(POINTS)
        if follower.layers_of():
            follower.series(0)
        self.asked = time.monotonic()

    def look(self) -> Look:
        now = time.monotonic()
        if now - self._at > FRESH_S:
            self.follower.refresh()
            self._at = now
        return self.last

    def read(self, then: Callable[[Look], None]) -> Look:
        if not math.isfinite(self._at):  # a page has come back to a run that was let go
            self.read_ahead()
        look = self.look()
        with suppress(ConvlensError):  # whoever shows the look will meet it
            then(look)
        return look

    def newest(self, since: int) -> Newest:
        now = time.monotonic()
        if self._glance is None or now - self._glance[0] > FRESH_S or self._glance[1] != since:
            self._glance = now, since, self.follower.newest(since)
        return self._glance[2]

    @property
    def last(self) -> Look:
        """The state as it was read last."""
        return Look(self.follower, self.follower.version)


def _give_way() -> None:
    """Let this thread run where no other wants to, or now and then.

    Where a training computes with every core, a thread of the usual priority stops one of its
    threads, for which the others wait. On Linux a thread has a priority of its own.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST)


Kept = TypeVar("Kept", _Followed, _Job[Any])


def _asked_lately(kept: dict[K, Kept]) -> dict[K, Kept]:
    now = time.monotonic()
    return {key: one for key, one in kept.items() if now - one.asked <= KEEP_S}


def key_of(path: Path) -> str:
    """The key of a run's directory."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def _inside(folder: Path) -> list[RunInfo]:
    """The runs that lie in the folder itself, not those that a link leads out to."""
    root = folder.resolve()
    return [info for info in list_runs(folder) if info.path.resolve().parent == root]


def _diagnose(look: Look) -> Sequence[Finding]:
    try:
        return diagnose(Run(look.follower.run.path).record())
    except ConvlensError:
        return []


def _compare(a: Look, b: Look) -> Comparison:
    try:
        first, second = (Run(look.follower.run.path).record() for look in (a, b))
    except ConvlensError as error:
        return Comparison([], [str(error)])
    names = a.follower.run.name, b.follower.run.name
    return compare(first.layers, second.layers, names)
