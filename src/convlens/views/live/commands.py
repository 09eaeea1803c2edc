"""Values of a command: they come from a browser, and may be anything."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

Command = Mapping[str, Any]

_WHOLE = re.compile(r"-?[0-9]{1,9}")


def whole(command: Command, name: str) -> int | None:
    """A whole number of at most nine digits, None if it is something else."""
    value = command.get(name)
    if isinstance(value, str):
        value = int(value) if _WHOLE.fullmatch(value) else None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9:
        return value
    return None


def share(command: Command, name: str) -> float | None:
    """A number from 0 to 1, None if it is something else."""
    try:
        value = float(command.get(name, math.nan))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if 0.0 <= value <= 1.0 else None


def place(command: Command) -> tuple[int, int] | None:
    """``row`` and ``col``, None unless both are there."""
    row, column = whole(command, "row"), whole(command, "col")
    return None if row is None or column is None else (row, column)


def word(command: Command, name: str) -> str:
    """A text, empty if it is something else."""
    value = command.get(name)
    return value if isinstance(value, str) else ""


def stop_of(command: Command) -> int | None:
    """The epoch that a slider's position means; its stops are the epochs that were kept."""
    stops, at = word(command, "epochs").split(","), whole(command, "value")
    if at is None or not 0 <= at < len(stops):
        return None
    return whole({"epoch": stops[at]}, "epoch")
