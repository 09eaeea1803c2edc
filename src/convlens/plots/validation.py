"""What a validation found: the confusion matrix, and the images of the largest losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import Confusion, Mistakes, recall_of
from convlens.errors import ArgumentError
from convlens.plots.canvas import say_empty
from convlens.plots.pictures import show_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_CLASSES = 20
"""With more classes there is no room for numbers in the cells."""

MOST_NAMES = 40
"""With more classes only some are named along the axes."""

LONGEST_NAME = 18
SHADES = (0.02, 0.75)  # of matplotlib's Oranges: black numbers can be read on all of them
FONT_PT = 9.0
NOTHING = "no {} was recorded: train a classifier\nwith validation data and the callback Pictures"


def plot_confusion(
    confusion: Confusion | NDArray[np.integer] | Sequence[Sequence[int]] | None,
    classes: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draw which class was taken for which, and the recall of each class.

    A row is a true class, a column what it was taken for. The mistakes are orange, by log(1 +
    count), so that a single one is seen beside thousands; the diagonal is blue, by recall, which is
    the share of a row that lies there. Beyond 20 classes the counts are not written.

    Args:
        confusion: (K, K) counts, or a recorded confusion; None says that there is none.
        classes: K names; if empty, those of the recorded confusion, or numbers from 0.
        ax: where to draw, a new figure if None.

    Raises:
        ArgumentError: if the counts are not (K, K) whole numbers of at least 0, or the names are
            not K.
    """
    title = "Confusion matrix"
    if isinstance(confusion, Confusion):
        title += ", before training" if confusion.epoch < 0 else f", epoch {confusion.epoch + 1}"
        confusion, classes = confusion.counts, classes or confusion.classes
    counts = np.zeros((0, 0), np.int64) if confusion is None else _checked(confusion)
    k = len(counts)
    if classes and len(classes) != k:
        raise ArgumentError(f"classes has {len(classes)} names for {k} classes; give one for each.")
    names = [_short(name) for name in (classes or [str(i) for i in range(k)])]
    ax = ax or _new_axes(k, max(map(len, names), default=0))
    ax.set_title(title)
    if not counts.any():
        say_empty(ax, NOTHING.format("confusion matrix"))
        return ax
    recall = recall_of(counts)
    ax.imshow(_colours(counts, recall), interpolation="nearest")
    if k <= FEW_CLASSES:
        _write_counts(ax, counts, recall)
    else:
        _add_colour_bar(ax, _most_wrong(counts))
    _name_classes(ax, names, recall)
    right, n = int(np.trace(counts)), int(counts.sum())
    ax.set_title(f"{title}\n{right:,} of {n:,} right ({_percent(right / n, 2)})")
    return ax


def plot_top_losses(
    mistakes: Mistakes | None,
    most: int = 16,
    columns: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the validation images of the largest losses: true class, prediction, probability, loss.

    Args:
        mistakes: what was recorded; None says that there is nothing.
        most: images to draw at most, the largest losses first.
        columns: images in a row; None for a grid about twice as wide as high.
        ax: where to draw, a new figure if None.

    Raises:
        ArgumentError: if ``most`` or ``columns`` is below 1.
    """
    if most < 1:
        raise ArgumentError(f"most={most} is the number of images to draw; give at least 1.")
    if mistakes is None:
        ax = ax or _new_axes(0, 0)
        ax.set_axis_off()
        say_empty(ax, NOTHING.format("prediction"))
        return ax
    order = np.argsort(-mistakes.loss, kind="stable")[:most]
    captions = [_caption(mistakes, int(i)) for i in order]
    return show_images(mistakes.images[order], captions, columns, ax)


def _caption(mistakes: Mistakes, i: int) -> str:
    true, said = int(mistakes.true[i]), int(mistakes.predicted[i])
    return (
        f"{mistakes.classes[true]}, predicted {mistakes.classes[said]} "
        f"({100 * mistakes.probability[i]:.1f}\N{NO-BREAK SPACE}%), loss {mistakes.loss[i]:.2f}"
    )


def _checked(counts: Any) -> NDArray[np.int64]:  # noqa: ANN401  # it checks what came
    array = np.asarray(counts)
    whole = array.dtype.kind in "iu" and array.ndim == 2 and array.shape[0] == array.shape[1]
    if not whole or (array.size and array.min() < 0):
        raise ArgumentError(
            f"confusion has shape {array.shape} and dtype {array.dtype}; expected (K, K) counts, "
            "whole numbers of at least 0: rows the true class, columns the predicted one."
        )
    return array.astype(np.int64)


def _colours(counts: NDArray[np.int64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, K, 3): white for none."""
    import matplotlib as mpl

    scaled = np.log1p(counts) / np.log1p(_most_wrong(counts))
    picture = mpl.colormaps["Oranges"](SHADES[0] + (SHADES[1] - SHADES[0]) * scaled)[..., :3]
    picture[counts == 0] = 1.0
    known = np.nan_to_num(recall)
    diagonal = np.arange(len(counts))
    picture[diagonal, diagonal] = mpl.colormaps["Blues"](0.05 + 0.45 * known)[..., :3]
    return picture


def _most_wrong(counts: NDArray[np.int64]) -> int:
    """The largest count beside the diagonal, at least 1."""
    return max(int(np.where(np.eye(len(counts), dtype=bool), 0, counts).max()), 1)


def _add_colour_bar(ax: Axes, most: int) -> None:
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import FuncNorm, ListedColormap

    shades = ListedColormap(mpl.colormaps["Oranges"](np.linspace(*SHADES, 256)))
    norm = FuncNorm((np.log1p, np.expm1), vmin=0.0, vmax=most)
    figure = ax.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(ScalarMappable(norm, shades), ax=ax, shrink=0.5, pad=0.02)
    bar.set_label("mistakes (log scale)")
    ticks = sorted({0, *(int(v) for v in np.geomspace(1, most, 4).round())})
    bar.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    bar.minorticks_off()


def _write_counts(ax: Axes, counts: NDArray[np.int64], recall: NDArray[np.float64]) -> None:
    size = _number_size(ax, counts)
    for (row, column), count in np.ndenumerate(counts):
        if count or (row == column and np.isfinite(recall[row])):
            weight = "bold" if row == column else "normal"
            ax.text(
                column, row, f"{count:,}", ha="center", va="center", fontsize=size, weight=weight
            )


def _number_size(ax: Axes, counts: NDArray[np.int64]) -> float:
    """Points that let the longest number fit into its cell."""
    longest = len(f"{counts.max():,}")
    return float(np.clip(72 * _side(ax) / len(counts) / (0.65 * (longest + 0.6)), 4.0, FONT_PT + 1))


def _side(ax: Axes) -> float:
    """About how wide and high the square of cells will be, inches."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    place = ax.get_position()
    return min(place.width * figure.get_figwidth(), place.height * figure.get_figheight())


def _write_beside(
    ax: Axes,
    text: str,
    place: tuple[float, float],
    coordinates: tuple[str, str],
    vertical: str,
    size: float,
) -> None:
    """A little right of a place at the edge of the axes."""
    ax.annotate(
        text, place, xycoords=coordinates, xytext=(5, 0), textcoords="offset points",
        ha="left", va=vertical, fontsize=size,
    )  # fmt: skip


def _name_classes(ax: Axes, names: Sequence[str], recall: NDArray[np.float64]) -> None:
    """Names along both axes, recall at the right, as many as there is room for."""
    k = len(names)
    every = -(-k // MOST_NAMES)
    shown = list(range(0, k, every))
    labels = [names[i] for i in shown]
    size = FONT_PT if k <= FEW_CLASSES else FONT_PT - 2.5
    long = max(map(len, labels)) * 0.6 * size > 0.9 * 72 * _side(ax) * every / k
    ax.set_xticks(shown, labels, fontsize=size, parse_math=False, rotation=90 if long else 0)
    ax.set_yticks(shown, labels, fontsize=size, parse_math=False)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    for i in shown:
        word = "–" if np.isnan(recall[i]) else _percent(float(recall[i]), 1)
        _write_beside(ax, word, (1.0, i), ("axes fraction", "data"), "center", size)
    _write_beside(ax, "recall", (1.0, 1.0), ("axes fraction", "axes fraction"), "bottom", size)
    ax.tick_params(length=0)
    if k <= MOST_NAMES:
        for line in np.arange(k + 1) - 0.5:
            ax.axhline(line, color="0.85", lw=0.5)
            ax.axvline(line, color="0.85", lw=0.5)


def _percent(share: float, digits: int) -> str:
    """100 % only where it is: what would be rounded to it is greater than the number below it."""
    text = f"{100 * share:.{digits}f}"
    if share < 1 and float(text) == 100.0:
        text = f">{100 - 10.0**-digits:.{digits}f}"
    return f"{text} %"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _new_axes(k: int, longest: int) -> Axes:
    import matplotlib.pyplot as plt

    side = float(np.clip(0.46 * k, 4.2, 9.0)) if k <= FEW_CLASSES else 9.0
    names_in = longest * FONT_PT * 0.55 / 72
    size = (side + names_in + 1.8, side + min(names_in, 1.4) + 0.6)
    _, ax = plt.subplots(figsize=size, layout="constrained")
    return ax
