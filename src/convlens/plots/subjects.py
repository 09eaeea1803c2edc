"""What can be drawn: the layers that were watched, and the curves of a training.

A live object (a watcher, a recorder) and an opened run derive from the same classes, so that both
are read and drawn by the same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from convlens.errors import find_layer
from convlens.histories import LayerHistory, LayerInfo, UpdateHistory
from convlens.plots.curves import POINTS, plot_loss, plot_sched
from convlens.plots.layers import color_dim, plot_layer_stats
from convlens.records import Epoch, StepCurves, StepSeries
from convlens.series import cut_steps, sum_up

if TYPE_CHECKING:
    from matplotlib.axes import Axes


History = TypeVar("History", LayerHistory, UpdateHistory)


class _Histories(ABC, Generic[History]):
    """Histories of several things that were watched, by index or by name."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[LayerInfo]:
        """What was watched, in order of its index."""

    @abstractmethod
    def history(self, index: int) -> History:
        """The history of what has this index, from 0 to ``len(self) - 1``."""

    @property
    @abstractmethod
    def epochs(self) -> Sequence[Epoch]:
        """The finished epochs, for marking them in plots; may be empty."""

    @property
    def names(self) -> list[str]:
        """The names, in order of the index."""
        return [layer.name for layer in self.layers]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, layer: int | str) -> History:
        """One history: by an index (negative counts from the end) or a name.

        Raises:
            LayerNotFoundError: if nothing has this index or name.
        """
        return self.history(find_layer(layer, self.names))


class UpdateHistories(_Histories[UpdateHistory]):
    """What the optimizer did to each of several parameters, by index or by name.

    ``stats[-2]`` and ``stats["0.0.weight"]`` are `UpdateHistory` objects; iterating gives the
    names. ``layers`` are the infos of the updates.
    """


class LayerHistories(_Histories[LayerHistory]):
    """The histories of several watched layers, by index or by name.

    ``stats[-2]`` and ``stats["0.0"]`` are `LayerHistory` objects; iterating gives the names.
    """

    def plot_layer_stats(
        self, layer: int | str, axes: Sequence[Axes] | None = None
    ) -> tuple[Axes, Axes, Axes]:
        """Draw mean, standard deviation and share near zero; see `plots.plot_layer_stats`."""
        return plot_layer_stats(self[layer], self.epochs, axes)

    def color_dim(
        self,
        layer: int | str,
        ax: Axes | None = None,
        limit: float | tuple[float, float] | None = None,
        bins: int = 100,
    ) -> Axes:
        """Draw the histogram of every batch as one coloured column; see `plots.color_dim`."""
        return color_dim(self[layer], ax, self.epochs, limit, bins)


class TrainingCurves(ABC):
    """The series that a training leaves behind: one value per step, one record per epoch."""

    @property
    @abstractmethod
    def steps(self) -> StepSeries:
        """What was recorded at every optimizer step."""

    @property
    @abstractmethod
    def epochs(self) -> Sequence[Epoch]:
        """The finished epochs; may be empty."""

    def curves(
        self, points: int = POINTS, first: int | None = None, last: int | None = None
    ) -> StepCurves:
        """The steps summed up in at most ``points`` entries, for drawing any number of them.

        Args:
            points: as many as can be seen, at least 1.
            first: the first step of interest, None for the first of all.
            last: the last one.

        Raises:
            ArgumentError: if ``points`` is not positive.
        """
        return sum_up(cut_steps(self.steps, first, last), points)

    def plot_loss(self, ax: Axes | None = None) -> Axes:
        """Draw the training loss by step and the validation loss by epoch; `plots.plot_loss`."""
        return plot_loss(self.curves(), self.epochs, ax)

    def plot_sched(self, axes: Sequence[Axes] | None = None) -> tuple[Axes, Axes]:
        """Draw learning rate and momentum by step; see `plots.plot_sched`."""
        return plot_sched(self.curves(), self.epochs, axes)
