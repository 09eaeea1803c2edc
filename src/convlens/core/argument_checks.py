"""Checks of arguments that many functions take."""

from __future__ import annotations

import operator
import os
from pathlib import Path

from convlens.errors import ArgumentError


def check_whole(argument: str, value: object, least: int) -> None:
    """Raises ArgumentError if a value is not a whole number of at least ``least``.

    >>> check_whole("batch_size", 8, 1)
    """
    try:
        good = not isinstance(value, bool) and operator.index(value) >= least  # pyright: ignore[reportArgumentType]
    except TypeError:
        good = False
    if not good:
        raise ArgumentError(
            f"{argument} must be a whole number of at least {least}, got {value!r}."
        )


def check_path(argument: str, value: object) -> Path:
    """The value as a path; raises ArgumentError if it is none.

    >>> check_path("out", "report.html").suffix
    '.html'
    """
    if not isinstance(value, str | os.PathLike):
        raise ArgumentError(f"{argument} must be a path, got {value!r}.")
    return Path(value)
