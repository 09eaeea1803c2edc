"""`Description`: what is in a data set, as text for a terminal and as JSON."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from convlens.core.terminal import encodable, printable
from convlens.core.wording import plural
from convlens.data.duplicates import Duplicates
from convlens.data.items import CLASSES, LABELS, NUMBERS, Skipped
from convlens.data.listing import some

BAR_WIDTH = 40

MOST_CLASSES, ENDS = 40, 10
"""Of more classes than that, only so many of the largest and of the smallest are listed."""

MOST_NAMED = 5
"""Skipped files named for each reason, and pairs of duplicates."""

IMBALANCE = 3.0
"""From this ratio of the largest class to the smallest on, it is said how to balance them."""


@dataclass(frozen=True)
class Origin:
    """What is known of images that were read from files.

    Attributes:
        source: the folder or file that was read.
        skipped: the files that were left out.
        duplicates: files of the same content.
        widths: (least, median, most) of the files' own widths.
        heights: the same of their heights.
        formats: format → number of files.
        preprocessing: how files become pixels, in words.
        normalization: how pixels are normalized, in words.
        augmentation: how training images are changed, in words; empty for not at all.
        balance: "sample", "loss" or None.
        notes: sentences on what was found.
    """

    source: str
    skipped: tuple[Skipped, ...] = ()
    duplicates: Duplicates = field(default_factory=Duplicates)
    widths: tuple[int, int, int] = (0, 0, 0)
    heights: tuple[int, int, int] = (0, 0, 0)
    formats: dict[str, int] = field(default_factory=dict[str, int])
    preprocessing: str = ""
    normalization: str = ""
    augmentation: tuple[str, ...] = ()
    balance: str | None = None
    notes: tuple[str, ...] = ()

    def recorded(self, kind: str) -> dict[str, Any]:
        """What a run's record says of it, as plain JSON."""
        return {
            "kind": kind,
            "source": self.source,
            "n_skipped": len(self.skipped),
            "preprocessing": self.preprocessing,
            "normalization": self.normalization,
            "augmentation": list(self.augmentation),
            "balance": self.balance,
        }

    def short(self, file: str) -> str:
        """A file's path relative to the source's folder, if it lies in it."""
        root = os.path.abspath(self.source)  # noqa: PTH100 - links are kept
        root = root if os.path.isdir(root) else os.path.dirname(root)  # noqa: PTH112, PTH120
        return printable(os.path.abspath(file).removeprefix(os.path.join(root, "")))  # noqa: PTH100, PTH118


@dataclass(frozen=True)
class Part:
    """The images of one split.

    Attributes:
        n: their number, None if not known.
        targets: their targets on the CPU, None if not known.
        storage: where they lie, in words.
    """

    n: int | None
    targets: Tensor | None
    storage: str

    def counts(self, kind: str, n_classes: int) -> list[int] | None:
        """The number of images of each class or label; None for numbers, or if not known."""
        if self.targets is None or kind == NUMBERS:
            return None
        if kind == LABELS:
            return self.targets.sum(0).long().tolist()
        if self.targets.ndim != 1 or self.targets.is_floating_point():
            return None
        return np.bincount(self.targets.numpy(), minlength=n_classes).tolist()

    def numbers(self) -> dict[str, float]:
        """The least, the mean and the greatest target; empty if not known."""
        if self.targets is None or not len(self.targets):
            return {}
        values = self.targets.double()
        return {"least": values.min().item(), "mean": values.mean().item(),
                "most": values.max().item()}  # fmt: skip


@dataclass(frozen=True)
class Description:
    """What is in a data set; `print` shows it, `to_dict` gives it as plain JSON.

        >>> x, y = torch.zeros(8, 1, 4, 4), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
        >>> dls = cl.from_arrays(x, y, layout="NCHW", classes=["cat", "dog"], device="cpu")
        >>> print(dls.describe())
        arrays: 8 images of 2 classes, 1×4×4 in batches
        <BLANKLINE>
                 train
          0 cat      6  ████████████████████████████████████████
          1 dog      2  █████████████
        <BLANKLINE>
        Balance        the largest class has 3 times the images of the smallest
        Storage        train: in memory: 512 B of float32

    Attributes:
        name: the name of the data.
        kind: "classes", "labels" or "numbers".
        classes: the names of classes or labels.
        input_shape: (C, H, W) of one image in a batch, None if not known.
        parts: "train" and "valid" → what is in them.
        origin: what is known of the files, None if there are none.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...] | None
    parts: dict[str, Part]
    origin: Origin | None = None

    def __str__(self) -> str:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        return encodable("\n".join(self._lines()), encoding)

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        origin = self.origin
        found: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "classes": list(self.classes),
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "splits": {name: self._part_facts(part) for name, part in self.parts.items()},
            "imbalance": self.imbalance,
        }
        if origin is None:
            return found
        return {
            **found,
            "source": origin.source,
            "width": dict(zip(("least", "median", "most"), origin.widths, strict=True)),
            "height": dict(zip(("least", "median", "most"), origin.heights, strict=True)),
            "formats": origin.formats,
            "skipped": [{"file": one.file, "why": one.why} for one in origin.skipped],
            "duplicates": {
                "across": [list(pair) for pair in origin.duplicates.across],
                "within": [list(pair) for pair in origin.duplicates.within],
            },
            "preprocessing": origin.preprocessing,
            "normalization": origin.normalization,
            "augmentation": list(origin.augmentation),
            "balance": origin.balance,
            "notes": list(origin.notes),
        }

    @property
    def imbalance(self) -> float | None:
        """Images of the largest training class for one of the smallest; None if not known."""
        counts = self.parts["train"].counts(self.kind, len(self.classes))
        if self.kind != CLASSES or not counts or not min(counts):
            return None
        return max(counts) / min(counts)

    def brief(self) -> list[str]:
        """What a person should see once when the data is read, in lines."""
        origin = self.origin
        assert origin is not None
        sides = [
            f"{part.n:,} to {verb} on"
            for (_, part), verb in zip(self.parts.items(), ("train", "validate"), strict=False)
        ]
        names = [f"{i} {name}" for i, name in enumerate(self.classes)]
        lines = [f"{self._title()}: {', '.join(sides)}"]
        if names:
            lines.append(f"  {self.kind}: {some(names, 20)}")
        if origin.skipped:
            said = [
                f"{origin.short(one.file)} ({one.why.partition(';')[0]})" for one in origin.skipped
            ]
            more = "" if len(said) <= 3 else "; dls.describe() says why"
            lines.append(f"  skipped {plural(len(said), 'file')}: {some(said, 3)}{more}")
        lines += [f"  {note}" for note in origin.notes]
        if self._needs_balance():
            lines.append(f"  {self._balance()}")
        lines.append(f"  {self.parts['train'].storage}")
        return [printable(line) for line in lines]

    def _title(self) -> str:
        known = [part.n for part in self.parts.values() if part.n is not None]
        images = plural(sum(known), "image") if len(known) == len(self.parts) else "images"
        if not self.classes and self.kind != NUMBERS:
            return f"{self.name}: {images}, names of the {self.kind} not given"
        what = {
            CLASSES: f"of {len(self.classes):,} classes",
            LABELS: f"with {plural(len(self.classes), 'label')}",
            NUMBERS: "with numbers",
        }
        return f"{self.name}: {images} {what[self.kind]}"

    def _lines(self) -> Iterator[str]:
        shape = "" if self.input_shape is None else "×".join(map(str, self.input_shape))
        yield printable(self._title() + (f", {shape} in batches" if shape else ""))
        yield ""
        yield from self._number_lines() if self.kind == NUMBERS else self._bars()
        yield ""
        for title, text in self._facts():
            yield f"{title:<15}{printable(text)}".rstrip()

    def _facts(self) -> Iterator[tuple[str, str]]:
        origin = self.origin
        if origin is not None:
            yield "Source", origin.source
            yield "Files", ", ".join(f"{name} {n:,}" for name, n in origin.formats.items())
            yield (
                "Sizes",
                (
                    "width {:,} / {:,} / {:,}, ".format(*origin.widths)
                    + "height {:,} / {:,} / {:,} (least, median, most)".format(*origin.heights)
                ),
            )
            yield from self._skipped(origin)
            yield from self._duplicates(origin)
        if self.imbalance is not None:
            yield "Balance", self._balance()
        if origin is not None:
            yield "Preprocessing", origin.preprocessing
            yield "Normalization", origin.normalization
            yield "Augmentation", "; ".join(origin.augmentation) or "none"
            yield from (("Note", note) for note in origin.notes)
        storage = [f"{name}: {part.storage}" for name, part in self.parts.items() if part.storage]
        if storage:
            yield "Storage", "; ".join(storage)

    def _bars(self) -> Iterator[str]:
        """A line for each class: its index, name, images in each split, and a bar of all."""
        columns = [part.counts(self.kind, len(self.classes)) for part in self.parts.values()]
        if not all(column is not None for column in columns):
            yield "The images of each class are not known without reading all batches."
            return
        counts = np.array(columns).T
        order = list(range(len(counts)))
        gap = None
        if len(order) > MOST_CLASSES:
            by_size = np.argsort(-counts.sum(1), kind="stable").tolist()
            order, gap = by_size[:ENDS] + by_size[-ENDS:], ENDS
        names = [f"{i} {printable(self.classes[i])}" for i in order]
        width = max(map(len, names), default=0)
        sizes = [max(len(f"{counts[:, i].max(initial=0):,}"), len(name))
                 for i, name in enumerate(self.parts)]  # fmt: skip
        heads = "  ".join(f"{name:>{n}}" for name, n in zip(self.parts, sizes, strict=True))
        yield f"  {'':{width}}  {heads}"
        most = max(1, int(counts.sum(1).max(initial=1)))
        for place, (i, name) in enumerate(zip(order, names, strict=True)):
            if place == gap:
                yield f"  … {len(counts) - 2 * ENDS:,} more …"
            cells = "  ".join(f"{n:>{size},}" for n, size in zip(counts[i], sizes, strict=True))
            share = round(BAR_WIDTH * int(counts[i].sum()) / most)
            bar = "█" * max(share, 1 if counts[i].sum() else 0)
            yield f"  {name:{width}}  {cells}  {bar}".rstrip()

    def _number_lines(self) -> Iterator[str]:
        for name, part in self.parts.items():
            facts = ", ".join(f"{what} {value:.3g}" for what, value in part.numbers().items())
            if facts:
                yield f"  {name}  {part.n:,} numbers: {facts}"

    def _skipped(self, origin: Origin) -> Iterator[tuple[str, str]]:
        by_reason: defaultdict[str, list[str]] = defaultdict(list)
        for one in origin.skipped:
            by_reason[one.why].append(origin.short(one.file))
        yield "Skipped", plural(len(origin.skipped), "file") if by_reason else "nothing"
        for why, files in by_reason.items():
            yield "", f"{why}: {some(files, MOST_NAMED)}"

    def _duplicates(self, origin: Origin) -> Iterator[tuple[str, str]]:
        found = origin.duplicates
        yield (
            "Duplicates",
            (
                f"{plural(len(found.across), 'image')} in train and in valid, "
                f"{len(found.within):,} more within one of them"
                if found.across or found.within
                else "none"
            ),
        )
        for pairs in (found.across, found.within):
            if pairs:
                said = [f"{origin.short(a)} = {origin.short(b)}" for a, b in pairs]
                yield "", some(said, MOST_NAMED)

    def _needs_balance(self) -> bool:
        balance = None if self.origin is None else self.origin.balance
        return balance is None and (self.imbalance or 1.0) >= IMBALANCE

    def _balance(self) -> str:
        if self.imbalance == 1:
            return "all classes have as many training images"
        said = f"the largest class has {self.imbalance:.3g} times the images of the smallest"
        balance = None if self.origin is None else self.origin.balance
        if balance is not None:
            return f"{said}; balance={balance!r} makes up for it"
        hint = '; balance="sample" or balance="loss" makes up for it'
        return said + (hint if self._needs_balance() and self.origin is not None else "")

    def _part_facts(self, part: Part) -> dict[str, Any]:
        facts: dict[str, Any] = {"images": part.n, "storage": part.storage}
        counts = part.counts(self.kind, len(self.classes))
        if counts is not None:
            facts["counts"] = counts
        return facts | part.numbers() if self.kind == NUMBERS else facts


def least_median_most(values: Sequence[int]) -> tuple[int, int, int]:
    """Three numbers that say how large images are."""
    return min(values), int(np.median(values)), max(values)
