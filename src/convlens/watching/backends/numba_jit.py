"""`njit`: `numba.njit` that caches machine code where it can, and says when it compiles."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config, event


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:  # noqa: ANN401
    """`numba.njit` with a cache on disk.

    The cache is a temporary folder if neither the package's folder nor the user's cache is
    writable, and in this process only if there is none.
    """

    def compiled(function: Callable[..., Any]) -> Any:  # noqa: ANN401
        _announcing()
        dispatcher: Any = numba.njit(**options)(function)
        try:
            dispatcher.enable_caching()
        except RuntimeError:  # no locator available
            _keep_in(_temporary_folder(), dispatcher)
        return dispatcher

    return compiled


def _keep_in(folder: Path | None, dispatcher: Any) -> None:  # noqa: ANN401
    if folder is None:
        return
    settings: Any = config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(folder)
    try:
        with suppress(RuntimeError):
            dispatcher.enable_caching()
    finally:
        settings.CACHE_DIR = before


@cache
def _temporary_folder() -> Path | None:
    """A folder that only this user can write to, as machine code is loaded from it."""
    try:
        user = os.getuid()
        folder = Path(tempfile.gettempdir(), f"convlens-{user}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except (OSError, AttributeError):  # no such folder can be made; no users, on Windows
        return None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o077
    return folder if own else None


class _Announcer(event.Listener):
    """Says on stderr that a function of convlens is being compiled."""

    def __init__(self) -> None:
        self._depth = 0  # Numba compiles what a function calls inside its own compilation

    def on_start(self, event: Any) -> None:  # noqa: ANN401
        """Numba begins to compile."""
        self._depth += 1
        with suppress(Exception):
            function = event.data["dispatcher"].py_func
            if self._depth == 1 and function.__module__.startswith("convlens."):
                said = f"convlens: compiling {function.__name__} (once on this machine) …"
                print(said, file=sys.stderr, flush=True)  # noqa: T201

    def on_end(self, event: Any) -> None:  # noqa: ANN401, ARG002
        """Numba has compiled it."""
        self._depth -= 1


@cache
def _announcing() -> None:
    event.register("numba:compile", _Announcer())
