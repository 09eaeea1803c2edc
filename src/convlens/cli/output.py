"""What the commands share when they print and when they are interrupted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from convlens.core.terminal import printable
from convlens.errors import ArgumentError


def print_line(line: str, stream: TextIO | None = None) -> None:
    """Print one line; control characters in names are escaped."""
    print(printable(line), file=stream or sys.stdout, flush=True)


def check_out(path: Path, option: str = "--out") -> None:
    """Raise ArgumentError if no file can be made at ``path``."""
    if path.is_dir():
        raise ArgumentError(f"{option} {path} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise ArgumentError(
            f"{option} {path} lies in a folder that does not exist; make it, or give another name."
        )


@contextmanager
def interruptible() -> Generator[None]:
    """Make the first Ctrl-C a KeyboardInterrupt, so that an open run is closed.

    A second one ends the process at once.
    """
    before = signal.getsignal(signal.SIGINT)

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt

    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
