"""Checks of arguments that many functions take."""

from __future__ import annotations

import operator

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
