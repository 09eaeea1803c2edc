"""`Interpretation`: what a classifier's validation says, as numbers, a table and plots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convlens.core.argument_checks import check_whole
from convlens.core.snapshots import (
    N_WORST,
    Calibration,
    Confusion,
    Mistakes,
    frequent_mistakes,
    precision_of,
    recall_of,
)
from convlens.core.terminal import printable
from convlens.errors import ArgumentError
from convlens.plots.validation import plot_confusion, plot_reliability, plot_top_losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 20
"""Classes in the table, those of the lowest recall."""

LONGEST = 24
"""Letters of a class's name in the table."""


@dataclass(frozen=True)
class TopLoss:
    """A validation image that the network was very wrong about.

    Attributes:
        file: its file, empty if that is not known.
        true: name of its class.
        predicted: name of the predicted class; ``true`` where the loss is large all the same.
        probability: what the predicted class was given, 0 to 1.
        loss: cross-entropy.
        item: its position in the validation.
        image: (H, W) or (H, W, 3) uint8, made smaller if it was large.
    """

    file: str
    true: str
    predicted: str
    probability: float
    loss: float
    item: int
    image: NDArray[np.uint8] = field(repr=False, compare=False)


@dataclass(frozen=True)
class ConfusedPair:
    """How many images of one class were taken for another."""

    true: str
    predicted: str
    count: int


@dataclass(frozen=True, repr=False)
class Interpretation:
    """What a validation says of a classifier; made by `Learner.interpret` or `Run.interpret`.

    Printed, it is a short table of the classes.

        >>> import numpy as np
        >>> from convlens.core.snapshots import Confusion
        >>> from convlens.plots.interpretation import Interpretation
        >>> counts = np.array([[8, 2], [0, 10]])
        >>> found = Interpretation(Confusion(0, "", counts, ("cat", "dog")))
        >>> found.recall, found.most_confused(3)
        (array([0.8, 1. ]), [ConfusedPair(true='cat', predicted='dog', count=2)])

    Args:
        counted: how often each class was taken for which.
        mistakes: the images of the largest losses, if they were kept.
        calibration: how well the probabilities agree with what was right, if that is known.
    """

    counted: Confusion
    mistakes: Mistakes | None = None
    calibration: Calibration | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return self.counted.classes

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(K, K) images, rows the true class, columns the predicted one."""
        return self.counted.counts

    @property
    def accuracy(self) -> float:
        """Share of the images that were classified correctly; NaN without images."""
        n = int(self.confusion.sum())
        return int(np.trace(self.confusion)) / n if n else float("nan")

    @property
    def precision(self) -> NDArray[np.float64]:
        """(K,) share of the images predicted as a class that are of it; NaN if there are none."""
        return precision_of(self.confusion)

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) share of a class's images that were recognized; NaN for a class without images."""
        return recall_of(self.confusion)

    @property
    def ece(self) -> float:
        """Expected calibration error in 15 bins, 0 to 1; NaN if it was not recorded."""
        return float("nan") if self.calibration is None else self.calibration.ece

    @property
    def temperature(self) -> float:
        """What to divide the outputs by for calibrated probabilities; NaN if not recorded.

        Above 1 the network is too sure of itself, below 1 not sure enough.
        """
        return float("nan") if self.calibration is None else self.calibration.temperature

    def top_losses(self, n: int = 9) -> list[TopLoss]:
        """The ``n`` validation images of the largest losses, the largest first; fewer if so few.

        Raises:
            ArgumentError: if ``n`` is not a whole number from 1 to 32, or no images were kept.
        """
        self._check_top(n)
        kept = self.mistakes
        if kept is None:
            raise ArgumentError(
                "top_losses: no images were kept of this epoch; ask for the last one, or call "
                "learn.interpret()."
            )
        order = np.argsort(-kept.loss, kind="stable")[:n].tolist()
        return [
            TopLoss(
                kept.files[i] if i < len(kept.files) else "",
                kept.classes[int(kept.true[i])],
                kept.classes[int(kept.predicted[i])],
                float(kept.probability[i]),
                float(kept.loss[i]),
                int(kept.item[i]),
                kept.images[i],
            )
            for i in order
        ]

    def most_confused(self, n: int = 10) -> list[ConfusedPair]:
        """The ``n`` most frequent mistakes, the most frequent first.

        Raises:
            ArgumentError: if ``n`` is not a whole number of at least 1.
        """
        check_whole("n", n, 1)
        pairs = frequent_mistakes(self.confusion, n)
        return [ConfusedPair(self.classes[a], self.classes[b], count) for a, b, count in pairs]

    def plot_confusion(self, ax: Axes | None = None) -> Axes:
        """Draw the confusion matrix; see `plots.plot_confusion`."""
        return plot_confusion(self.counted, ax=ax)

    def plot_reliability(self, ax: Axes | None = None) -> Axes:
        """Draw accuracy over confidence; see `plots.plot_reliability`."""
        return plot_reliability(self.calibration, ax)

    def plot_top_losses(self, n: int = 9, ax: Axes | None = None) -> Axes:
        """Draw the images of the ``n`` largest losses; see `plots.plot_top_losses`.

        Raises:
            ArgumentError: if ``n`` is not a whole number from 1 to 32.
        """
        self._check_top(n)
        return plot_top_losses(self.mistakes, n, ax=ax)

    @staticmethod
    def _check_top(n: int) -> None:
        check_whole("n", n, 1)
        if n > N_WORST:
            raise ArgumentError(f"n must be at most {N_WORST}, got {n}: no more images are kept.")

    def __repr__(self) -> str:
        return (
            f"Interpretation({len(self.classes):,} classes, {int(self.confusion.sum()):,} images, "
            f"accuracy {self.accuracy:.2%})"
        )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        n, right = int(self.confusion.sum()), int(np.trace(self.confusion))
        yield f"{right:,} of {n:,} images right ({self.accuracy:.2%})"
        shown = np.argsort(self.recall, kind="stable")[:FEW].tolist()  # NaN comes last
        recall, precision = self.recall.tolist(), self.precision.tolist()
        names = [printable(name)[:LONGEST] for name in self.classes]
        width = max([5, *(len(names[k]) for k in shown)])
        yield f"{'class':<{width}}  images   recall  precision"
        for k in shown:
            images = f"{int(self.confusion[k].sum()):,}"
            yield (
                f"{names[k]:<{width}}  {images:>6}  {_percent(recall[k]):>7}  "
                f"{_percent(precision[k]):>9}"
            )
        if len(names) > len(shown):
            yield f"and {len(names) - len(shown):,} of a higher recall"
        for pair in self.most_confused(5):
            yield f"{printable(pair.true)} taken for {printable(pair.predicted)}: {pair.count:,}"
        if self.calibration is not None:
            yield (
                f"calibration error (ECE) {self.ece:.2%}; with temperature "
                f"{self.temperature:.2f} the validation's negative log-likelihood is "
                f"{self.calibration.nll_scaled:.4f} instead of {self.calibration.nll:.4f}"
            )


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{share:.1%}"
