"""Text as a terminal, a pipe or a file can take it."""

from __future__ import annotations

import sys
import unicodedata

PLAIN = {
    "×": "x",
    "·": "*",
    "−": "-",
    "–": "-",
    "—": "-",
    "─": "-",
    "…": "...",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "‖": "||",
    "²": "^2",
    "∞": "inf",
    "Δ": "delta ",
    "β": "beta",
    "█": "#",
}
"""Replacements of non-ASCII characters for encodings that lack them."""


def printable(text: str) -> str:
    r"""Text in one line that cannot steer a terminal, whatever a file or a record says.

    Control characters (escape, newline), marks that reverse the direction of writing, and bytes of
    file names that are no text are written as escapes.

        >>> printable("a\x1b[2Jb\nc")
        'a\\x1b[2Jb\\nc'
    """
    if text.isprintable():
        return text
    return "".join(_escaped(char) if _is_control(char) else char for char in text)


def encodable(text: str, encoding: str) -> str:
    """Text with what an encoding does not have in plain signs: × as x, → as ->, others as escapes.

    >>> encodable("8→16, 3×3", "ascii")
    '8->16, 3x3'
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(
            char if char.encode(encoding, "ignore") else PLAIN.get(char, _escaped(char))
            for char in text
        )
    return text


def say(text: str) -> None:
    """Write lines to standard output, whatever its encoding; nothing where it is closed.

    >>> say("3×3")
    3×3
    """
    if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison] - closed at the start
        sys.stdout.write(encodable(text + "\n", sys.stdout.encoding or "utf-8"))
        sys.stdout.flush()


def _is_control(char: str) -> bool:
    return not char.isprintable() and unicodedata.category(char) != "Zs"


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # what Python makes of a byte that is no text
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
