"""What can be drawn: the layers that were watched, and the curves of a training.

A live object (a watcher, a recorder) and an opened run derive from the same classes, so that both
are read and drawn by the same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from convlens.core.downsampling import cut_steps, sum_up
from convlens.core.histories import LayerHistory, LayerInfo, UpdateHistory
from convlens.core.layers import find_layer
from convlens.core.records import Epoch, StepCurves, StepSeries
from convlens.core.snapshots import Confusion, Mistakes, S
from convlens.errors import ArgumentError, LayerNotFoundError
from convlens.plots.curves import POINTS, plot_loss, plot_sched
from convlens.plots.grids import MOST_LAYERS
from convlens.plots.layers import color_dim, plot_layer_stats
from convlens.plots.multiples import color_dim_all, plot_layer_stats_all
from convlens.plots.validation import plot_confusion, plot_top_losses

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
        """One history: by an index (negative counts from the end), a name or a kind.

        ``stats["last conv"]`` is the last layer whose class name contains "conv", in any case.

        Raises:
            LayerNotFoundError: if nothing has this index, name or kind.
        """
        return self.history(self._find(layer))

    def _find(self, layer: int | str) -> int:
        layers = self.layers
        return find_layer(layer, [info.name for info in layers], [info.kind for info in layers])


class UpdateHistories(_Histories[UpdateHistory]):
    """What the optimizer did to each of several parameters, by index or by name.

    ``stats[-2]`` and ``stats["0.0.weight"]`` are `UpdateHistory` objects; iterating gives the
    names. ``layers`` are the infos of the updates.
    """


class LayerHistories(_Histories[LayerHistory]):
    """The histories of several watched layers, by index, name or kind.

    ``stats[-2]``, ``stats["0.0"]`` and ``stats["last conv"]`` are `LayerHistory` objects; iterating
    gives the names.
    """

    @overload
    def plot_layer_stats(
        self, layer: int | str, axes: Sequence[Axes] | None = None
    ) -> tuple[Axes, Axes, Axes]: ...

    @overload
    def plot_layer_stats(
        self,
        layer: None = None,
        axes: Sequence[Axes] | Sequence[Sequence[Axes]] | None = None,
        *,
        layers: Sequence[int | str] | None = None,
    ) -> list[tuple[Axes, Axes, Axes]]: ...

    def plot_layer_stats(
        self,
        layer: int | str | None = None,
        axes: Sequence[Axes] | Sequence[Sequence[Axes]] | None = None,
        *,
        layers: Sequence[int | str] | None = None,
    ) -> tuple[Axes, Axes, Axes] | list[tuple[Axes, Axes, Axes]]:
        """Draw mean, standard deviation and share near zero, by step.

        Args:
            layer: its index, name or kind, as in ``stats[layer]``; None draws all of them as small
                multiples, the first 60 if there are more.
            axes: where to draw: three axes, or three for each of several layers; None makes a new
                figure.
            layers: which ones, where no ``layer`` is given; None for all.

        Returns:
            Three axes of one layer (see `plots.plot_layer_stats`), or a list with three for each
            (see `plots.plot_layer_stats_all`).

        Raises:
            LayerNotFoundError: if there is no such layer, or none at all.
            ArgumentError: if another number of axes is given, or ``layer`` and ``layers``.
        """
        if layer is not None:
            self._check_one(layers)
            return plot_layer_stats(self[layer], self.epochs, axes)  # pyright: ignore[reportArgumentType]
        chosen, left_out = self._choose(layers, limited=axes is None)
        histories = map(self.history, chosen)
        return plot_layer_stats_all(histories, self.epochs, axes, left_out)

    @overload
    def color_dim(
        self,
        layer: int | str,
        ax: Axes | None = None,
        limit: float | tuple[float, float] | None = None,
        bins: int = 100,
    ) -> Axes: ...

    @overload
    def color_dim(
        self,
        layer: None = None,
        ax: None = None,
        limit: float | tuple[float, float] | None = None,
        bins: int = 100,
        *,
        layers: Sequence[int | str] | None = None,
        axes: Sequence[Axes] | None = None,
    ) -> list[Axes]: ...

    def color_dim(
        self,
        layer: int | str | None = None,
        ax: Axes | None = None,
        limit: float | tuple[float, float] | None = None,
        bins: int = 100,
        *,
        layers: Sequence[int | str] | None = None,
        axes: Sequence[Axes] | None = None,
    ) -> Axes | list[Axes]:
        """Draw the histogram of every batch as one coloured column.

        Args:
            layer: its index, name or kind, as in ``stats[layer]``; None draws all of them as small
                multiples, the first 60 if there are more.
            ax: where to draw one layer, a new figure if None.
            limit: the range of values drawn; see `plots.color_dim`.
            bins: rows, evenly spaced in the value.
            layers: which ones, where no ``layer`` is given; None for all.
            axes: where to draw them, one for each; a new figure if None.

        Returns:
            The axes of one layer (see `plots.color_dim`), or a list with those of each (see
            `plots.color_dim_all`).

        Raises:
            LayerNotFoundError: if there is no such layer, or none at all.
            ArgumentError: if an argument cannot work, or goes with the other case.
        """
        if layer is not None:
            self._check_one(layers)
            if axes is not None:
                raise ArgumentError("axes is for several layers; with one layer, give ax.")
            return color_dim(self[layer], ax, self.epochs, limit, bins)
        if ax is not None:
            raise ArgumentError("ax is for one layer; name it, or give axes, one for each layer.")
        chosen, left_out = self._choose(layers, limited=axes is None)
        histories = map(self.history, chosen)
        return color_dim_all(histories, axes, self.epochs, limit, bins, left_out)

    def _choose(
        self, layers: Sequence[int | str] | None, *, limited: bool
    ) -> tuple[list[int], int]:
        """The indices to draw, and how many layers have no room."""
        if isinstance(layers, str):
            raise ArgumentError(f"layers={layers!r} is one layer; give a list of them.")
        names = self.names
        if not names:
            find_layer(0, names)  # it says so
        chosen = list(range(len(names))) if layers is None else list(map(self._find, layers))
        if not chosen:
            raise LayerNotFoundError("layers is empty; give one at least, or None for all.")
        room = MOST_LAYERS if limited else len(chosen)
        return chosen[:room], max(0, len(chosen) - room)

    @staticmethod
    def _check_one(layers: Sequence[int | str] | None) -> None:
        if layers is not None:
            raise ArgumentError("layer and layers say the same twice; give one of them.")


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


class Interpretation(ABC):
    """What the validation of each epoch left: who was taken for whom, and the worst of it."""

    @abstractmethod
    def snapshot(self, kind: type[S], layer: str = "", epoch: int | None = None) -> S | None:
        """The newest snapshot of a kind at or before an epoch, None if there is none."""

    def plot_confusion_matrix(self, epoch: int | None = None, ax: Axes | None = None) -> Axes:
        """Draw which class was taken for which; see `plots.plot_confusion`.

        Args:
            epoch: after which one, from 0; None for the newest.
            ax: where to draw, a new figure if None.
        """
        return plot_confusion(self.snapshot(Confusion, epoch=epoch), ax=ax)

    def plot_top_losses(
        self, most: int = 16, epoch: int | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draw the images that the network was most wrong about; see `plots.plot_top_losses`.

        Args:
            most: images to draw at most.
            epoch: after which one, from 0; None for the newest.
            ax: where to draw, a new figure if None.
        """
        return plot_top_losses(self.snapshot(Mistakes, epoch=epoch), most, ax=ax)
