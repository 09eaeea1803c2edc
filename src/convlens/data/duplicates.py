"""Files of the same content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Duplicates:
    """Files with the same content.

    Attributes:
        across: pairs (training file, validation file).
        within: other pairs (file, earlier file).
    """

    across: tuple[tuple[str, str], ...] = ()
    within: tuple[tuple[str, str], ...] = ()


def find_duplicates(
    files: Sequence[str], hashes: Sequence[str], train: Sequence[int], valid: Sequence[int]
) -> Duplicates:
    """Files of the same content; each repeated file once.

    Args:
        files: all files.
        hashes: one for each.
        train: positions of those to train on.
        valid: positions of those to validate on.
    """
    trained: dict[str, int] = {}
    validated: dict[str, int] = {}
    across: list[tuple[str, str]] = []
    within: list[tuple[str, str]] = []
    for i in train:
        first = trained.setdefault(hashes[i], i)
        if first != i:
            within.append((files[i], files[first]))
    for i in valid:
        first = validated.setdefault(hashes[i], i)
        if hashes[i] in trained:
            across.append((files[trained[hashes[i]]], files[i]))
        elif first != i:
            within.append((files[i], files[first]))
    return Duplicates(tuple(across), tuple(within))
