"""Whether a run's writer is alive, and how a run ended whose record does not say so.

A writer keeps a small file locked as long as it lives: ``run.lock`` beside ``run.db``. It holds a
JSON object: on which machine it was written, and how the run ended where ``run.db`` could not take
that. Where the record says it, the file is removed.

A run whose record says ``"running"`` and whose file nobody has locked has status ``"crashed"``.
Where that cannot be told, as on another machine that shares the folder, it stays ``"running"``.
"""

from __future__ import annotations

import json
import os
import platform
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convlens.core.file_locks import lock_folder, lock_handle

SIZE = 4096
"""Bytes of the file, so that it can be rewritten in place where the disk is full."""

MOST_TEXT = 600
"""Characters of an error that are kept in it, so that they fit however they are escaped."""

WAIT_S = 1.0
"""Seconds that a new writer waits for readers, each of which holds the lock for an instant."""

CRASHED = (
    "The process that wrote this run ended without closing it: it was killed, it crashed, or the "
    "machine went down."
)

NO_LOG = (
    " There is no log {log!r} beside {name!r}: if the folder was copied, copy that file too, as it "
    "holds what was recorded last."
)


class WriterLock:
    """A writer's own lock file, locked until it is closed.

    Args:
        file: the record that is written.

    Raises:
        OSError: if the lock file exists or cannot be made.
    """

    def __init__(self, file: Path) -> None:
        self._path = lock_file(file)
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            self._machine = _machine() if self._hold() else []  # [] is no machine: cannot be told
            self.tell({})
        except BaseException:
            self.close(remove=True)
            raise

    def _hold(self) -> bool:
        until = time.monotonic() + WAIT_S
        while True:
            try:
                lock_handle(self._handle, exclusive=True)
            except BlockingIOError:
                if time.monotonic() > until:
                    return False
                time.sleep(0.01)
            except OSError:  # this file system has no locks
                return False
            else:
                return True

    def tell(self, facts: Mapping[str, str]) -> None:
        """Keep how the run ended. It is written to the file as it is, wherever it lies by now.

        Raises:
            OSError: if it cannot be written.
        """
        short = {name: text[:MOST_TEXT] for name, text in facts.items()}
        text = json.dumps({"machine": self._machine, **short})
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, text.encode().ljust(SIZE))

    def close(self, *, remove: bool) -> None:
        """Give the lock up; ``remove`` says that the file is where it was made and not needed."""
        with suppress(PermissionError):  # of Windows, which removes no open file
            if remove:  # before others can lock it
                self._path.unlink(missing_ok=True)
        os.close(self._handle)


@dataclass(frozen=True)
class WriterState:
    """What a reader knows of the writer of a record.

    Attributes:
        alive: whether it may still write; also True where that cannot be told.
        ended: how the run ended: ``status``, perhaps ``error``; empty if that is not kept here.
    """

    alive: bool
    ended: Mapping[str, str] = field(default_factory=dict[str, str])


def writer_of(file: Path) -> WriterState:
    """Look at the writer of a record: before the record, which then says how it ended if it did.

    Args:
        file: the record.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # if somebody made a pipe of it
    try:
        handle = os.open(lock_file(file), flags)
    except FileNotFoundError:
        return WriterState(alive=False)
    except OSError:
        return WriterState(alive=True)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return WriterState(alive=False)
        held = False
        try:
            lock_handle(handle, exclusive=False)
        except OSError:
            held = True
        facts = _facts(os.read(handle, SIZE))
    except OSError:
        return WriterState(alive=True)
    finally:
        os.close(handle)
    ended = {name: str(facts[name]) for name in ("status", "error", "lost") if name in facts}
    elsewhere = not any(name in facts.get("machine", ()) for name in _machine())
    return WriterState(alive=not ended and (held or elsewhere), ended=ended)


def how_it_ended(meta: Mapping[str, Any], writer: WriterState, file: Path) -> dict[str, str]:
    """What is to be added to the facts of a run whose record does not say how it ended.

    Args:
        meta: the record's facts.
        writer: what was known of its writer before they were read.
        file: the record.
    """
    if meta.get("status") != "running" or writer.alive:
        return {}
    if writer.ended:
        return dict(writer.ended)
    log = file.with_name(file.name + "-wal")
    missing = "" if log.exists() else NO_LOG.format(log=log.name, name=file.name)
    return {"status": "crashed", "error": CRASHED + missing}


def lock_file(file: Path) -> Path:
    """The lock file of a record."""
    return file.with_suffix(".lock")


def is_abandoned(folder: Path) -> bool:
    """Whether nobody has a folder locked by `lock_folder`; False where that cannot be told."""
    try:
        os.close(lock_folder(folder))
    except OSError:
        return False
    return True


def _facts(text: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        facts = json.loads(text)
        if isinstance(facts, dict) and isinstance(facts.get("machine", []), list):
            return facts
    return {}


def _machine() -> list[str]:
    """The names of this machine: those of its system since it was started, and in its network."""
    names = [platform.node()]
    with suppress(OSError):  # several containers on one machine have different names
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    return [name for name in names if name]
