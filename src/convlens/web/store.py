"""The runs that the server may show, by keys that say nothing of where they lie."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from threading import Lock, RLock, Thread
from typing import TypeVar

from convlens.core.records import Finding
from convlens.doctor import diagnose
from convlens.errors import ConvlensError, RunError
from convlens.runs import open_run
from convlens.runs.database_reader import is_record
from convlens.runs.follower import RunFollower
from convlens.web.run_data import RunData
from convlens.web.run_summary import RunSummary, SummaryCache

MAX_OPEN = 4
"""Runs that are kept open: one may hold tens of megabytes."""

MAX_FINDINGS = 2_000
"""Runs whose findings are remembered; of so many, the newest, the list asks for them."""

LIST_S = 1.0
"""The folders are looked through again after this many seconds."""

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
        self._listing, self._listed_at = Lock(), -float("inf")
        self._listed: dict[str, RunSummary] = {}
        self._summaries = SummaryCache()
        # The run asked for last is looked at first: a list may have asked for hundreds before.
        self._asked: LifoQueue[tuple[_Diagnosis, Path]] = LifoQueue()
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

    def list(self) -> dict[str, RunSummary]:
        """Every run by its key, oldest first; of those that did not change nothing is read.

        Raises:
            RunError: if a folder may not be read.
        """
        with self._listing:
            if time.monotonic() - self._listed_at > LIST_S:
                found = self._summaries.read(self._paths())
                self._listed = {one.key: one for one in found}
                self._listed_at = time.monotonic()
            return self._listed

    def listed(self) -> Sequence[tuple[RunSummary, Sequence[Finding] | None]]:
        """The runs of `list`, each with its findings or None until they are known."""
        runs = list(self.list().values())
        asked = {one.key for one in runs[-MAX_FINDINGS:] if one.problem is None}
        return [(one, self._findings_of(one) if one.key in asked else None) for one in runs]

    @property
    def places(self) -> list[str]:
        """The folders that are looked through."""
        return list(map(str, self._folders))

    def _findings_of(self, run: RunSummary) -> Sequence[Finding] | None:
        return self.findings(run.key, run.path, run.mark, growing=run.status == "running")

    def _paths(self) -> dict[str, tuple[str, Path]]:
        """Folder and directory of every run by its key; the runs are not read."""
        found = {key_of(path): (str(path.parent), path) for path in self._single}
        for folder in self._folders:
            for path, real in _inside(folder):
                found[key_of(real)] = (str(folder), path)
        return found

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
        _, path = self._paths().get(key, ("", None))
        if path is None:
            raise RunError("There is no such run here; go back to the list of runs.")
        opened = OpenRun(key, RunFollower(open_run(path)), self)
        with self._lock:
            found = self._open.setdefault(key, opened)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return found

    def findings(
        self, key: str, path: Path, mark: str, *, growing: bool, opened: bool = False
    ) -> Sequence[Finding] | None:
        """What the doctor found in a run, None until it has looked: it reads every column.

        Args:
            key: the run's key.
            path: its directory.
            mark: of its state; another one has it looked at again.
            growing: whether it still grows; then older findings are returned meanwhile.
            opened: whether somebody looks at this run, not at the list: then it comes first.
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
            elif known.running and opened and not known.opened:
                self._asked.put((known, path))
            known.opened = known.running and (opened or known.opened)
            return known.found

    def findings_now(self, key: str, path: Path, mark: str) -> Sequence[Finding]:
        """What the doctor found in a run; unlike `findings` it waits for the doctor."""
        found = self.findings(key, path, mark, growing=True)
        if found is None:
            found = _look(path)
            with self._lock:
                known = self._findings.setdefault(key, _Diagnosis(mark))
                known.found, known.running = found, False
        return found

    def _diagnose(self) -> None:
        lower_priority()
        while True:
            diagnosis, path = self._asked.get()
            if diagnosis.running:  # else it was asked for twice, and is done
                diagnosis.found = _look(path)
                diagnosis.running = diagnosis.opened = False


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

    def ask(self, question: Callable[[RunData], T], *, wait: bool = False) -> T:
        """Answer a question about the run as it is now.

        Args:
            question: what is asked.
            wait: whether the findings must be known.
        """
        with self._lock:
            self._follower.refresh()
            found = self._findings()
            if found is None and wait:
                path, mark = self._follower.run.path, self._follower.mark
                found = self._store.findings_now(self._key, path, mark)
            return question(RunData(self._key, self._follower, found))

    def _findings(self) -> Sequence[Finding] | None:
        growing = self._follower.meta.get("status") == "running"
        path, mark = self._follower.run.path, self._follower.mark
        return self._store.findings(self._key, path, mark, growing=growing, opened=True)


@dataclass
class _Diagnosis:
    """What is known of a run's findings."""

    mark: str = ""
    begun: float = -float("inf")
    running: bool = False
    opened: bool = False
    found: Sequence[Finding] | None = None


def _look(path: Path) -> Sequence[Finding]:
    try:
        return diagnose(open_run(path).record(counts=False))
    except Exception as error:
        return [_unreadable(error)]


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


def _inside(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The runs that lie in the folder itself, not those that a link leads out to."""
    root = folder.resolve()
    try:
        entries = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise RunError(
            f"path={str(folder)!r} cannot be read ({error.strerror}); give a folder that you may "
            "read."
        ) from error
    for path in entries:
        if is_record(path) and (real := path.resolve()).parent == root:
            yield path, real
