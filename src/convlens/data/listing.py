"""`Listing`: the image files that were found, before any is opened. File names and their order."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convlens.core.terminal import printable
from convlens.core.wording import closest
from convlens.data.items import Items, Skipped

ENDINGS = frozenset(
    [".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
     ".tif", ".tiff", ".webp"]
)  # fmt: skip
"""What image files are called, in lower case."""

JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "icon\r"})
"""What systems leave in folders, in lower case; hidden names come on top."""


@dataclass(frozen=True)
class Listing:
    """Image files with their targets.

    Attributes:
        items: the files.
        held_out: for each file whether the source keeps it for validation; None if it does not say.
        skipped: what was found and left out, file by file.
        notes: sentences on what was found, to print.
        source: the folder or file that was read.
        groups: the group of each file, if the source says it.
    """

    items: Items
    held_out: tuple[bool, ...] | None
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    source: str
    groups: tuple[Hashable, ...] | None = None

    def take(self, indices: Sequence[int]) -> Listing:
        """The files at these positions."""
        held_out, groups = (
            None if one is None else tuple(one[i] for i in indices)
            for one in (self.held_out, self.groups)
        )
        return replace(self, items=self.items.take(indices), held_out=held_out, groups=groups)


def is_junk(name: str) -> bool:
    """Whether a name is hidden or left by a system: no class and no image.

    >>> is_junk(".DS_Store"), is_junk("Thumbs.db"), is_junk("cat.jpg")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in JUNK


def is_image_name(name: str) -> bool:
    """Whether a name ends as those of image files do.

    >>> is_image_name("CAT.JPG"), is_image_name("notes.txt")
    (True, False)
    """
    return os.path.splitext(name)[1].lower() in ENDINGS  # noqa: PTH122 - many names


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key by which numbers in names count as numbers.

    >>> sorted(["10", "2", "b", "1", "100"], key=natural)
    ['1', '2', '10', '100', 'b']
    """
    key: list[tuple[int, int, str]] = []
    for i, part in enumerate(re.split(r"(\d+)", name)):
        digits = part.lstrip("0")  # never int(): it refuses more than 4,300 digits
        if i % 2:
            key.append((0, len(digits), digits))
        elif part:
            key.append((1, 0, part.casefold()))
    return key, name


def closest_path(path: Path) -> str:
    """Such a hint for a path that does not exist: names beside it, in the part that does exist."""
    path = path.absolute()
    while not os.path.isdir(path.parent):  # noqa: PTH112 - Path.is_dir raises for long names
        path = path.parent
    try:
        known = [name for name in os.listdir(path.parent) if not is_junk(name)]  # noqa: PTH208
    except OSError:
        return ""
    hint = closest(path.name, known)
    return hint and f"{hint[:-1]} in {str(path.parent)!r}."


def some(names: Sequence[object], n: int = 10) -> str:
    """The first names with commas, and how many more there are; names of files may be anything.

    >>> some([1, 2, 3], n=2)
    '1, 2 and 1 more'
    """
    said = ", ".join(printable(str(name)) for name in names[:n])
    return f"{said} and {len(names) - n:,} more" if len(names) > n else said
