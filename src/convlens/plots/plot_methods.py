"""Plot methods, mixed into whatever holds the numbers: a watcher, a callback, a recorded run.

Each mixin says in a protocol what it needs of the class that it is mixed into.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, overload

from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.layer_histories import position_of
from convlens.core.records import Epoch
from convlens.core.snapshots import Calibration, Confusion, Mistakes, S
from convlens.core.steps import StepCurves
from convlens.core.training_curves import POINTS
from convlens.errors import ArgumentError, LayerNotFoundError, RunError
from convlens.plots.canvas import as_html
from convlens.plots.curves import plot_loss, plot_sched
from convlens.plots.grids import MOST_LAYERS
from convlens.plots.interpretation import Interpretation
from convlens.plots.many_layers import color_dim_all, plot_layer_stats_all
from convlens.plots.one_layer import color_dim, plot_layer_stats
from convlens.plots.validation import plot_confusion, plot_top_losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_LAYERS = 8
"""Number of layers in an object's HTML representation in a notebook."""


class HasLayers(Protocol):
    """What `LayerPlots` needs; see `convlens.core.layer_histories.LayerHistories`."""

    @property
    def layers(self) -> Sequence[LayerInfo]: ...  # noqa: D102
    @property
    def epochs(self) -> Sequence[Epoch]: ...  # noqa: D102
    def history(self, index: int) -> LayerHistory: ...  # noqa: D102


class HasCurves(Protocol):
    """What `CurvePlots` needs; see `convlens.core.training_curves.TrainingCurves`."""

    @property
    def epochs(self) -> Sequence[Epoch]: ...  # noqa: D102
    def curves(self, points: int = POINTS) -> StepCurves: ...  # noqa: D102


class HasSnapshots(Protocol):
    """What `ValidationPlots` needs: what was kept after each epoch."""

    def snapshot(self, kind: type[S], layer: str = "", epoch: int | None = None) -> S | None:
        """The newest snapshot of a kind at or before an epoch, None if there is none."""
        ...


class LayerPlots:
    """Plot methods for `LayerHistories`."""

    @overload
    def plot_layer_stats(
        self: HasLayers, layer: int | str, axes: Sequence[Axes] | None = None
    ) -> tuple[Axes, Axes, Axes]: ...

    @overload
    def plot_layer_stats(
        self: HasLayers,
        layer: None = None,
        axes: Sequence[Axes] | Sequence[Sequence[Axes]] | None = None,
        *,
        layers: Sequence[int | str] | None = None,
    ) -> list[tuple[Axes, Axes, Axes]]: ...

    def plot_layer_stats(
        self: HasLayers,
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
            history = _only(self, layer, layers)
            return plot_layer_stats(history, self.epochs, axes)  # pyright: ignore[reportArgumentType]
        chosen, left_out = _choose(self, layers, limited=axes is None)
        return plot_layer_stats_all(map(self.history, chosen), self.epochs, axes, left_out)

    @overload
    def color_dim(
        self: HasLayers,
        layer: int | str,
        ax: Axes | None = None,
        limit: float | tuple[float, float] | None = None,
        bins: int = 100,
    ) -> Axes: ...

    @overload
    def color_dim(
        self: HasLayers,
        layer: None = None,
        ax: None = None,
        limit: float | tuple[float, float] | None = None,
        bins: int = 100,
        *,
        layers: Sequence[int | str] | None = None,
        axes: Sequence[Axes] | None = None,
    ) -> list[Axes]: ...

    def color_dim(
        self: HasLayers,
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
            if axes is not None:
                raise ArgumentError("axes is for several layers; with one layer, give ax.")
            return color_dim(_only(self, layer, layers), ax, self.epochs, limit, bins)
        if ax is not None:
            raise ArgumentError("ax is for one layer; name it, or give axes, one for each layer.")
        chosen, left_out = _choose(self, layers, limited=axes is None)
        return color_dim_all(map(self.history, chosen), axes, self.epochs, limit, bins, left_out)

    def _repr_html_(self: HasLayers) -> str | None:
        try:
            chosen = range(min(len(self.layers), FEW_LAYERS))
        except ArgumentError:  # a callback before its first fit
            return None
        if not chosen:
            return None
        left_out = len(self.layers) - len(chosen)
        rows = plot_layer_stats_all(map(self.history, chosen), self.epochs, None, left_out)
        return as_html(rows[0][0], "mean, standard deviation and percentage near zero by layer")


def _only(stats: HasLayers, layer: int | str, layers: Sequence[int | str] | None) -> LayerHistory:
    if layers is not None:
        raise ArgumentError("layer and layers exclude each other; give one of them.")
    return stats.history(position_of(layer, stats.layers))


def _choose(
    stats: HasLayers, layers: Sequence[int | str] | None, *, limited: bool
) -> tuple[list[int], int]:
    """The indices to draw, and how many layers have no room."""
    if isinstance(layers, str):
        raise ArgumentError(f"layers must be a list, got {layers!r}; for one layer, give layer.")
    known = stats.layers
    if not known:
        raise LayerNotFoundError("No layers are recorded; train with watching on.")
    chosen = [position_of(x, known) for x in (range(len(known)) if layers is None else layers)]
    if not chosen:
        raise LayerNotFoundError("layers is empty; give one at least, or None for all.")
    room = MOST_LAYERS if limited else len(chosen)
    return chosen[:room], max(0, len(chosen) - room)


class CurvePlots:
    """Plot methods for `TrainingCurves`."""

    def plot_loss(self: HasCurves, ax: Axes | None = None) -> Axes:
        """Draw the training loss by step and the validation loss by epoch; `plots.plot_loss`."""
        return plot_loss(self.curves(), self.epochs, ax)

    def plot_sched(self: HasCurves, axes: Sequence[Axes] | None = None) -> tuple[Axes, Axes]:
        """Draw learning rate and momentum by step; see `plots.plot_sched`."""
        return plot_sched(self.curves(), self.epochs, axes)

    def _repr_html_(self: HasCurves) -> str:
        return as_html(plot_loss(self.curves(), self.epochs), "training and validation loss")


class ValidationPlots:
    """Numbers and plots of what the validation of each epoch left."""

    def interpret(self: HasSnapshots, epoch: int | None = None) -> Interpretation:
        """Confusion, precision and recall, top losses and calibration of an epoch, as recorded.

        Args:
            epoch: after which one, from 0; None for the newest.

        Raises:
            RunError: if no confusion matrix was recorded until then.
        """
        counted = self.snapshot(Confusion, epoch=epoch)
        if counted is None:
            when = "" if epoch is None else f" until epoch={epoch}"
            raise RunError(
                f"No confusion matrix was recorded{when}: train a classifier of single classes "
                "with validation data and callbacks=[cl.Pictures()]."
            )
        mistakes = self.snapshot(Mistakes, epoch=counted.epoch)
        calibration = self.snapshot(Calibration, epoch=counted.epoch)
        return Interpretation(
            counted,
            mistakes if mistakes is not None and mistakes.epoch == counted.epoch else None,
            calibration if calibration and calibration.epoch == counted.epoch else None,
        )

    def plot_confusion_matrix(
        self: HasSnapshots, epoch: int | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draw how often each class was predicted as which; see `plots.plot_confusion`.

        Args:
            epoch: after which one, from 0; None for the newest.
            ax: where to draw, a new figure if None.
        """
        return plot_confusion(self.snapshot(Confusion, epoch=epoch), ax=ax)

    def plot_top_losses(
        self: HasSnapshots, most: int = 16, epoch: int | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draw the images that the network was most wrong about; see `plots.plot_top_losses`.

        Args:
            most: images to draw at most.
            epoch: after which one, from 0; None for the newest.
            ax: where to draw, a new figure if None.
        """
        return plot_top_losses(self.snapshot(Mistakes, epoch=epoch), most, ax=ax)
