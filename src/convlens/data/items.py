"""`Items`: image files and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

CLASSES, LABELS, NUMBERS = "classes", "labels", "numbers"
"""What the targets are: one class of each image, several labels at once, or numbers."""


@dataclass(frozen=True)
class Skipped:
    """A file that is left out.

    Attributes:
        file: its path.
        why: the reason, in words.
    """

    file: str
    why: str


@dataclass(frozen=True)
class Items:
    """Images in their stored order, with their sources.

    Attributes:
        files: where each image comes from: the path of a file, or a dataset's name and an index.
        targets: (N,) int64 for "classes", (N, K) float32 of 0 and 1 for "labels", (N,) float32 for
            "numbers"; on the CPU.
        classes: the names of the classes or labels; empty for numbers.
        kind: "classes", "labels" or "numbers".
    """

    files: tuple[str, ...]
    targets: Tensor
    classes: tuple[str, ...] = ()
    kind: str = CLASSES

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def take(self, indices: Sequence[int]) -> Items:
        """The items at these positions, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        files = tuple(self.files[i] for i in indices)
        return replace(self, files=files, targets=self.targets[chosen])
