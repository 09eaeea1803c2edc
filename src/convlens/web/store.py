"""The runs that the server may show, by keys that say nothing of where they lie."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue, SimpleQueue
from threading import Lock, RLock, Thread
from typing import Any, TypeVar

from convlens.core.records import Finding
from convlens.doctor import diagnose
from convlens.errors import ConvlensError, RunError
from convlens.runs import open_run
from convlens.runs.database_reader import is_record
from convlens.runs.follower import RunFollower
from convlens.web.run_data import RunData
from convlens.web.run_summary import RunSummary, SummaryCache

MAX_OPEN, MAX_OPEN_BYTES = 32, 64 << 20
"""Runs that are kept open, and what they may hold together; a long one has tens of megabytes."""

FRESH_S = 0.5
"""A run that was read within this many seconds is not read again: a page has several figures."""

MAX_FINDINGS = 2_000
"""Runs whose findings are remembered; of so many, the newest, the list asks for them."""

LIST_S = 1.0
"""The folders are looked through again after this many seconds."""

AGAIN_S, AGAIN_TIMES = 10.0, 40.0
"""The findings of a growing run are worked out anew after this many seconds, and not before as
many times the seconds that it took: the whole record is read, of long runs for a second."""

NICENESS = 3
"""How far the server's threads lower their own priority, as ``nice`` has it.

Beside two processes that compute all the time they get a third of a core; with 10 it would be a
tenth, and a page would open after half a minute.
"""

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
        self._doctor = Workers(1)

    def close(self) -> None:
        """Begin no more diagnoses."""
        self._doctor.close()

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
    def places(self) -> Sequence[str]:
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
            return self._open.setdefault(key, opened)

    def keep_within_bounds(self) -> None:
        """Forget the runs that were asked for longest ago; what is asked for now is kept."""
        with self._lock:
            held = sum(run.nbytes for run in self._open.values())
            while len(self._open) > 1 and (len(self._open) > MAX_OPEN or held > MAX_OPEN_BYTES):
                held -= self._open.popitem(last=False)[1].nbytes

    def forget(self, key: str) -> None:
        """Open this run anew when it is asked for again."""
        with self._lock:
            self._open.pop(key, None)

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
            due = known.mark != mark and (not growing or time.monotonic() > known.again)
            if due and not known.running:
                known.mark, known.running = mark, True
                self._ask_doctor(known, path)
            elif known.running and opened and not known.opened:
                self._ask_doctor(known, path)
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

    def _ask_doctor(self, diagnosis: _Diagnosis, path: Path) -> None:
        self._asked.put((diagnosis, path))
        self._doctor.submit(self._diagnose)

    def _diagnose(self) -> None:
        diagnosis, path = self._asked.get()
        if diagnosis.running:  # else it was asked for twice, and is done
            begun = time.monotonic()
            diagnosis.found = _look(path)
            took = time.monotonic() - begun
            diagnosis.again = begun + max(AGAIN_S, AGAIN_TIMES * took)
            diagnosis.running = diagnosis.opened = False


class OpenRun:
    """A run that is kept open. One thread at a time reads it.

    Attributes:
        nbytes: what it held when it was last asked.
    """

    def __init__(self, key: str, follower: RunFollower, store: RunStore) -> None:
        self._key, self._follower, self._store = key, follower, store
        self._lock, self._read_at, self.nbytes = RLock(), -float("inf"), 0
        self._known: tuple[object, RunData] | None = None

    @property
    def mark(self) -> str:
        """Differs whenever there is something new to show: record, end of the run or findings."""
        with self._lock:
            self._refresh()
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
            self._refresh()
            found = self._findings()
            if found is None and wait:
                path, mark = self._follower.run.path, self._follower.mark
                found = self._store.findings_now(self._key, path, mark)
            try:
                return question(self._data(found))
            finally:
                self.nbytes = self._follower.nbytes
                self._store.keep_within_bounds()

    def _data(self, found: Sequence[Finding] | None) -> RunData:
        """The same as for the last question if nothing is new: it keeps what was computed."""
        state = self._follower.version, found
        if self._known is None or self._known[0] != state:
            self._known = state, RunData(self._key, self._follower, found)
        return self._known[1]

    def _refresh(self) -> None:
        if time.monotonic() - self._read_at < FRESH_S:
            return
        try:
            self._follower.refresh()
        except RunError:  # it may have been deleted, or another run may lie in its place
            self._store.forget(self._key)
            raise
        self._read_at = time.monotonic()

    def _findings(self) -> Sequence[Finding] | None:
        growing = self._follower.meta.get("status") == "running"
        path, mark = self._follower.run.path, self._follower.mark
        return self._store.findings(self._key, path, mark, growing=growing, opened=True)


@dataclass
class _Diagnosis:
    """What is known of a run's findings."""

    mark: str = ""
    again: float = -float("inf")
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


class Workers:
    """Threads of low priority that end with the program, whatever they are doing.

    For those of `concurrent.futures` Ctrl-C would have to wait.

    Args:
        n: how many.
    """

    def __init__(self, n: int) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, daemon=True) for _ in range(n)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Have a job done after all others."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def close(self) -> None:
        """Take no more jobs; those that wait are still done unless they are cancelled."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        lower_priority()
        while (given := self._jobs.get()) is not None:
            future, job = given
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:
                    future.set_exception(error)
            del given, future, job  # while it waits, a thread keeps no answer


def lower_priority() -> None:
    """Let this thread give way to a training on the same machine; on Linux each has its own."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.nice(NICENESS)


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
