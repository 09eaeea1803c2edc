"""Locks of files and folders, which end with the process that holds them."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def lock_folder(folder: Path, *, wait: bool = False) -> int:
    """Lock a folder until the handle that is returned is closed.

    Args:
        folder: the folder; it may be renamed while it is locked.
        wait: wait until another process gives it up.

    Raises:
        BlockingIOError: if another process has it locked, without ``wait``.
        OSError: if this system locks no folders, or there is none.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock_handle(handle, exclusive=True, wait=wait)
    except BaseException:
        os.close(handle)
        raise
    return handle


def lock_handle(handle: int, *, exclusive: bool, wait: bool = False) -> None:
    """Lock an open file until it is closed.

    Raises:
        BlockingIOError: if another process has it locked, without ``wait``.
        OSError: if this system or this file system has no locks.
    """
    if sys.platform == "win32":
        raise OSError("files are not locked on Windows")
    import fcntl

    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
