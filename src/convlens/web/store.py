"""The runs that the server may show, by keys that say nothing of where they lie."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock, RLock
from typing import TypeVar

from convlens.core.records import Finding
from convlens.doctor import diagnose
from convlens.errors import ConvlensError, RunError
from convlens.runs import open_run
from convlens.runs.database_reader import is_record
from convlens.runs.follower import RunFollower
from convlens.web.run_data import RunData
from convlens.web.run_summary import RunSummary, SummaryCache
from convlens.web.workers import Results

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
        self._listing, self._listed_at = Lock(), -float("inf")
        self._listed: dict[str, RunSummary] = {}
        self._summaries = SummaryCache()
        self._diagnoses = Results[Sequence[Finding]](
            MAX_FINDINGS, lambda took: max(AGAIN_S, AGAIN_TIMES * took)
        )

    def close(self) -> None:
        """Begin no more diagnoses."""
        self._diagnoses.close()

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
        found = {
            one.key: self.findings(one.key, one.path, one.mark, growing=one.status == "running")
            for one in runs[-MAX_FINDINGS:]
            if one.problem is None
        }
        return [(one, found.get(one.key)) for one in runs]

    @property
    def places(self) -> Sequence[str]:
        """The folders that are looked through."""
        return list(map(str, self._folders))

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
        self, key: str, path: Path, mark: str, *,
        growing: bool, opened: bool = False, wait: bool = False,
    ) -> Sequence[Finding] | None:  # fmt: skip
        """What the doctor found in a run, None until it has looked: it reads every column.

        A run that is ``opened``, by somebody who does not look at the list, comes first.
        """
        work = partial(_look, path)
        found = self._diagnoses.of(key, mark, work, growing=growing, urgent=opened)
        if wait:
            found.done.wait()
        return found.value


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
            found = repr(self._findings()).encode()
            return f"{self._follower.mark}-{hashlib.blake2b(found, digest_size=4).hexdigest()}"

    def ask(self, question: Callable[[RunData], T], *, wait: bool = False) -> T:
        """Answer a question about the run as it is now; ``wait`` until its findings are known."""
        with self._lock:
            self._refresh()
            try:
                return question(self._data(self._findings(wait)))
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

    def _findings(self, wait: bool = False) -> Sequence[Finding] | None:
        growing = self._follower.meta.get("status") == "running"
        path, mark = self._follower.run.path, self._follower.mark
        return self._store.findings(self._key, path, mark, growing=growing, opened=True, wait=wait)


def _look(path: Path) -> Sequence[Finding]:
    try:
        return diagnose(open_run(path).record(counts=False))
    except Exception as error:
        named = "" if isinstance(error, ConvlensError) else f"{type(error).__name__}: "
        text = f"The findings could not be worked out: {named}{error}"
        return [Finding("unreadable", "note", text, confidence="certain")]


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
