"""`Prediction`: what a classifier says of some images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """A classifier's predictions for N images.

    Attributes:
        labels: (N,) int64, the most probable class.
        names: N names of those classes.
        probabilities: (N, K) float32, softmax of the model's output.
    """

    labels: Tensor
    names: tuple[str, ...]
    probabilities: Tensor

    def __repr__(self) -> str:
        shares = self.probabilities.amax(dim=1).tolist()
        said = [f"{name} {share:.1%}" for name, share in zip(self.names, shares, strict=True)]
        more = ", …" if len(said) > 5 else ""
        return f"Prediction({len(said)} images: {', '.join(said[:5])}{more})"

    @classmethod
    def of_scores(cls, scores: Tensor, name: Callable[[int], str]) -> Prediction:
        """The prediction of a model that put out these scores.

        Args:
            scores: (N, K), on any device.
            name: of a class, by its label.
        """
        probabilities = scores.softmax(dim=1).cpu()
        labels = probabilities.argmax(dim=1)
        return cls(labels, tuple(map(name, labels.tolist())), probabilities)
