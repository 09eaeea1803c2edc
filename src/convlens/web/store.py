"""The runs that the server may show, by keys that say nothing of where they lie."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, RLock, Thread
from typing import TypeVar

from convlens.core.records import Finding
from convlens.doctor import diagnose
from convlens.errors import ConvlensError, RunError
from convlens.runs import RunInfo, list_runs, open_run
from convlens.runs.follower import RunFollower
from convlens.web.run_data import RunData

MAX_OPEN = 4
"""Runs that are kept open: one may hold tens of megabytes."""

MAX_FINDINGS = 1_000
"""Runs whose findings are remembered."""

AGAIN_S = 10.0
"""The findings of a growing run are worked out anew after this many seconds."""

NICENESS = 10
"""How far the server's threads lower their own priority, as ``nice`` has it."""

T = TypeVar("T")


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
        self._lock = Lock()
        self._open: OrderedDict[str, OpenRun] = OrderedDict()
        self._findings: OrderedDict[str, _Diagnosis] = OrderedDict()
        self._asked: SimpleQueue[tuple[_Diagnosis, Path]] = SimpleQueue()
        # A daemon: looking at a long run takes seconds, and Ctrl-C ends the server at once.
        Thread(target=self._diagnose, name="convlens doctor", daemon=True).start()

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
        found = [info for folder in self._folders for info in _inside(folder)]
        for path in self._single:
            found += [info for info in list_runs(path.parent) if info.path.name == path.name]
        found.sort(key=lambda info: (info.created, info.name))
        return {key_of(info.path): info for info in found}

    def open(self, key: str) -> OpenRun:
        """The run of this key.

        Raises:
            RunError: if there is no such run, or it cannot be read.
        """
        with self._lock:
            found = self._open.get(key)
            if found is not None:
                self._open.move_to_end(key)
                return found
        info = self.list().get(key)
        if info is None:
            raise RunError("There is no such run here; go back to the list of runs.")
        opened = OpenRun(key, RunFollower(open_run(info.path)), self)
        with self._lock:
            found = self._open.setdefault(key, opened)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return found

    def findings(
        self, key: str, path: Path, mark: str, *, growing: bool
    ) -> Sequence[Finding] | None:
        """What the doctor found in a run, None until it has looked: it reads every column.

        Args:
            key: the run's key.
            path: its directory.
            mark: of its state; another one has it looked at again.
            growing: whether it still grows; then older findings are returned meanwhile.
        """
        with self._lock:
            known = self._findings.setdefault(key, _Diagnosis())
            self._findings.move_to_end(key)
            while len(self._findings) > MAX_FINDINGS:
                self._findings.popitem(last=False)
            due = known.mark != mark and (not growing or time.monotonic() - known.begun > AGAIN_S)
            if due and not known.running:
                known.mark, known.begun, known.running = mark, time.monotonic(), True
                self._asked.put((known, path))
            return known.found

    def _diagnose(self) -> None:
        lower_priority()
        while True:
            diagnosis, path = self._asked.get()
            try:
                diagnosis.found = diagnose(open_run(path).record(counts=False))
            except Exception as error:
                diagnosis.found = [_unreadable(error)]
            diagnosis.running = False


class OpenRun:
    """A run that is kept open. One thread at a time reads it."""

    def __init__(self, key: str, follower: RunFollower, store: RunStore) -> None:
        self._key, self._follower, self._store = key, follower, store
        self._lock = RLock()

    @property
    def mark(self) -> str:
        """Differs whenever there is something new to show: record, end of the run or findings."""
        with self._lock:
            self._follower.refresh()
            found = self._findings()
            told = (
                ""
                if found is None
                else hashlib.blake2b(repr(found).encode(), digest_size=4).hexdigest()
            )
            return f"{self._follower.mark}-{told}"

    def ask(self, question: Callable[[RunData], T]) -> T:
        """Answer a question about the run as it is now."""
        with self._lock:
            self._follower.refresh()
            return question(RunData(self._key, self._follower, self._findings()))

    def _findings(self) -> Sequence[Finding] | None:
        growing = self._follower.meta.get("status") == "running"
        path, mark = self._follower.run.path, self._follower.mark
        return self._store.findings(self._key, path, mark, growing=growing)


@dataclass
class _Diagnosis:
    """What is known of a run's findings."""

    mark: str = ""
    begun: float = -float("inf")
    running: bool = False
    found: Sequence[Finding] | None = None


def _unreadable(error: Exception) -> Finding:
    reason = str(error) if isinstance(error, ConvlensError) else f"{type(error).__name__}: {error}"
    text = f"The findings could not be worked out: {reason}"
    return Finding("unreadable", "note", text, confidence="certain")


def lower_priority() -> None:
    """Let this thread give way to a training on the same machine; on Linux each has its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)


def key_of(path: Path) -> str:
    """The key of a run's directory."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def _inside(folder: Path) -> list[RunInfo]:
    """The runs that lie in the folder itself, not those that a link leads out to."""
    root = folder.resolve()
    return [info for info in list_runs(folder) if info.path.resolve().parent == root]
