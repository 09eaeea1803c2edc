"""Small parts of sentences: counts with their nouns, names of types."""

from __future__ import annotations

from functools import partial


def plural(count: int, word: str) -> str:
    """A count and its noun.

    >>> from convlens.core.wording import plural
    >>> plural(1, "epoch"), plural(1200, "step")
    ('1 epoch', '1,200 steps')
    """
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def type_name(value: object) -> str:
    """The name of a value's type in an error message, "None" for None."""
    return "None" if value is None else type(value).__name__


def function_name(function: object) -> str:
    """The name of a metric, a loss or an optimizer factory in records, tables and messages."""
    inner: object = function.func if isinstance(function, partial) else function
    return getattr(inner, "__name__", type(inner).__name__)


def n_bytes(count: int) -> str:
    """Bytes with three digits: 1.57 kB, 102 MB."""
    if count < 1000:
        return f"{count} B"
    size, unit = float(count), ""
    for unit in ("kB", "MB", "GB", "TB", "PB"):  # noqa: B007 — the unit that was reached
        size /= 1000
        if size < 999.5:
            break
    return f"{size:.{max(0, 3 - len(str(int(size))))}f} {unit}"
