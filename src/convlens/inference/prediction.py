"""`Prediction`: what a network says of some images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convlens.core.argument_checks import check_whole
from convlens.core.terminal import printable
from convlens.data.items import CLASSES, LABELS, NUMBERS, Skipped
from convlens.errors import ArgumentError

THRESHOLD = 0.5
"""A label is said of an image if it is more probable than that."""

MOST_SHOWN = 5


@dataclass(frozen=True)
class Prediction:
    """What a network says of N images.

        >>> from convlens.inference.prediction import Prediction
        >>> said = Prediction.of_scores(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ("cat", "dog"))
        >>> said
        Prediction(2 images: cat 88.1%, dog 73.1%)
        >>> said.names, said.labels.tolist()
        (('cat', 'dog'), [0, 1])
        >>> [(name, round(share, 3)) for name, share in said.top(2)[0]]
        [('cat', 0.881), ('dog', 0.119)]

    Attributes:
        kind: what is predicted: "classes", "labels" (several for an image) or "numbers".
        labels: (N,) int64, the most probable class; (N, K) bool, the labels with a probability
            above 0.5; (N, 0) for numbers.
        names: N names of those classes; N tuples of names of those labels; none for numbers.
        probabilities: (N, K) float32, softmax of the model's output, sigmoid for labels; (N, 0)
            for numbers.
        values: (N,) float32, the numbers; (0,) for classes and labels.
        classes: K names of the classes or labels.
        files: where each image comes from, "" for those of no file.
        skipped: the files that were left out because they cannot be read, with the reason.
    """

    kind: str
    labels: Tensor
    names: tuple[str, ...] | tuple[tuple[str, ...], ...]
    probabilities: Tensor
    values: Tensor
    classes: tuple[str, ...]
    files: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = field(default=())

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __repr__(self) -> str:
        said = [printable(_said(row)) for row in self.rows(1, most=MOST_SHOWN)]
        more = ", …" if len(self) > MOST_SHOWN else ""
        left_out = f"; {len(self.skipped)} skipped" if self.skipped else ""
        return f"Prediction({len(self)} images: {', '.join(said)}{more}{left_out})"

    @classmethod
    def of_scores(
        cls,
        scores: Tensor,
        classes: Sequence[str] = (),
        kind: str = CLASSES,
        files: Sequence[str] = (),
        skipped: Sequence[Skipped] = (),
    ) -> Prediction:
        """The prediction of a model that put out these scores.

        Args:
            scores: (N, K), on any device; (N,) or (N, 1) for numbers.
            classes: names by label; empty for the labels themselves.
            kind: "classes", "labels" or "numbers".
            files: where each image comes from.
            skipped: what was left out.
        """
        scores = scores.detach().float().cpu()
        n, none = len(scores), torch.zeros(0)
        files = tuple(files) or ("",) * n
        if kind == NUMBERS:
            nothing = torch.zeros(n, 0)
            values = scores.reshape(n)
            return cls(kind, nothing.long(), (), nothing, values, (), files, tuple(skipped))
        known = tuple(classes) or tuple(map(str, range(scores.shape[1])))
        if kind == LABELS:
            probabilities = scores.sigmoid()
            labels = probabilities > THRESHOLD
            names = tuple(
                tuple(name for name, is_said in zip(known, row, strict=True) if is_said)
                for row in labels.tolist()
            )
        else:
            probabilities = scores.softmax(dim=1)
            labels = probabilities.argmax(dim=1)
            names = tuple(known[label] for label in labels.tolist())
        return cls(kind, labels, names, probabilities, none, known, files, tuple(skipped))

    def top(self, k: int = 3) -> list[list[tuple[str, float]]]:
        """The most probable classes or labels of each image with their probabilities, best first.

        Args:
            k: how many, at most all.

        Raises:
            ArgumentError: if ``k`` is below 1, or the network predicts numbers.
        """
        check_whole("k", k, 1)
        if self.kind == NUMBERS:
            raise ArgumentError("The network predicts numbers; read values.")
        best = self.probabilities.topk(min(k, len(self.classes)), dim=1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            [(self.classes[label], share) for label, share in zip(labels, shares, strict=True)]
            for labels, shares in pairs
        ]

    def rows(self, top: int = 3, most: int | None = None) -> list[dict[str, Any]]:
        """A dictionary for each image: file, class, labels or value, and the most probable ones.

        Args:
            top: how many of the most probable classes or labels.
            most: images at most; None for all.
        """
        n = len(self) if most is None else min(most, len(self))
        if self.kind == NUMBERS:
            pairs = zip(self.files[:n], self.values[:n].tolist(), strict=True)
            return [{"file": file, "value": value} for file, value in pairs]
        key = "class" if self.kind == CLASSES else "labels"
        best = self.first(n).top(top)
        return [
            {
                "file": self.files[i],
                key: names if isinstance(names, str) else list(names),
                "top": [{key.removesuffix("s") if key == "labels" else key: name,
                         "probability": share} for name, share in best[i]],
            }
            for i, names in enumerate(self.names[:n])
        ]  # fmt: skip

    def first(self, n: int) -> Prediction:
        """The prediction for the first n images."""
        parts = self.labels[:n], self.names[:n], self.probabilities[:n], self.values[:n]
        return Prediction(self.kind, *parts, self.classes, self.files[:n], self.skipped)

    def to_dict(self, top: int = 3) -> dict[str, Any]:
        """The prediction as plain JSON: kind, images with their ``top`` classes, skipped files."""
        skipped = [{"file": one.file, "why": one.why} for one in self.skipped]
        return {"kind": self.kind, "images": self.rows(top), "skipped": skipped}


def _said(row: dict[str, Any]) -> str:
    if "value" in row:
        return f"{row['value']:.6g}"
    if "labels" in row:
        return "+".join(row["labels"]) or "none"
    return f"{row['class']} {row['top'][0]['probability']:.1%}"
