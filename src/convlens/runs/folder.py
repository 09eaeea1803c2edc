"""Run directories: their names, making one, listing them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convlens.core.argument_checks import check_path
from convlens.core.wording import plural
from convlens.errors import ArgumentError, RunError
from convlens.runs.database_reader import is_record
from convlens.runs.reader import Run


@dataclass(frozen=True, repr=False)
class RunInfo:
    """One line of a list of runs.

    Attributes:
        path: the run's directory.
        name: its last part, such as ``"mnist-0001"``.
        created: when it began, ISO 8601 in UTC, empty if not recorded.
        status: ``"running"``, ``"finished"``, ``"stopped"``, ``"failed"``, ``"crashed"`` (its
            process is gone, and the run was not closed), or ``"unreadable"``.
        n_epochs: finished epochs.
        metrics: those of the last finished epoch.
        problem: why it cannot be read, None if it can.
    """

    path: Path
    name: str
    created: str
    status: str
    n_epochs: int
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    problem: str | None = None

    def __repr__(self) -> str:
        return f"RunInfo({self.name!r}, {self.status}, {plural(self.n_epochs, 'epoch')})"


def make_numbered(base: Path, name: str) -> Path:
    """Make ``base/name-0001`` or the next free number, never an existing one.

    ``mkdir`` is atomic: two processes that start together get two directories.

    Raises:
        ArgumentError: if ``name`` cannot be part of a directory's name.
        RunError: if the directory cannot be made.
    """
    _check_name(name)
    try:
        base.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(entry.name, name) for entry in base.iterdir()), default=0)
        while True:
            path = base / f"{name}-{number:04d}"
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
            else:
                return path
    except OSError as error:
        raise RunError(
            f"base={str(base)!r} cannot hold a new run ({error.strerror}); "
            "give a folder that you may write to."
        ) from error


def make_exact(directory: Path, argument: str = "directory") -> Path:
    """Make ``directory``, or take it if it exists and is empty.

    Args:
        directory: the run's directory.
        argument: the name of the caller's argument, for messages.

    Raises:
        RunError: if it holds anything, is a file, or cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        is_empty = next(directory.iterdir(), None) is None
    except OSError as error:
        raise RunError(
            f"{argument}={str(directory)!r} cannot be made ({error.strerror}); "
            "give a folder that does not exist yet in a place that you may write to."
        ) from error
    if not is_empty:
        hint = ", or run='auto'" if argument == "run" else ""
        raise RunError(
            f"{argument}={str(directory)!r} already exists and is not empty; give a new folder"
            f"{hint}."
        )
    return directory


def list_runs(base: str | Path = "runs") -> list[RunInfo]:
    """The runs in a folder, oldest first; a damaged one is listed with its problem.

    A folder that does not exist holds no runs.

    >>> import tempfile
    >>> from convlens.runs import create_run
    >>> with tempfile.TemporaryDirectory() as base:
    ...     create_run("mnist", base).close()
    ...     cl.list_runs(base)
    [RunInfo('mnist-0001', finished, 0 epochs)]

    Raises:
        ArgumentError: if ``base`` is not a path.
        RunError: if ``base`` may not be read.
    """
    base = check_path("base", base)
    try:
        entries = list(base.iterdir()) if base.is_dir() else []
    except OSError as error:
        raise RunError(
            f"base={str(base)!r} cannot be read ({error.strerror}); give a folder that you may "
            "read."
        ) from error
    found = [_describe(entry) for entry in entries if is_record(entry)]
    return sorted(found, key=lambda info: (info.created, info.name))


def _describe(path: Path) -> RunInfo:
    try:
        meta, epochs = Run(path).facts()
    except RunError as error:
        return RunInfo(path, path.name, "", "unreadable", 0, problem=str(error))
    return RunInfo(
        path,
        path.name,
        created=meta.get("created", ""),
        status=meta.get("status", ""),
        n_epochs=len(epochs),
        metrics=dict(epochs[-1].metrics) if epochs else {},
    )


def _check_name(name: str) -> None:
    separators = {"/", "\\", os.sep, "\0"}
    if not name.strip() or name in (".", "..") or separators & set(name) or not name.isprintable():
        raise ArgumentError(
            f"name={name!r} cannot be part of a folder's name; give a word without path "
            "separators or control characters, such as 'mnist', and the folder as base."
        )


def _number(entry: str, name: str) -> int:
    match = re.fullmatch(re.escape(name) + r"-(\d+)", entry)
    return int(match[1]) if match else 0
