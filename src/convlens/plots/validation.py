"""What a validation found: the confusion matrix, calibration, images of the largest losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import Calibration, Confusion, Mistakes, recall_of
from convlens.errors import ArgumentError
from convlens.plots.canvas import BLUE, figure_of, label_colour_bar, log_norm, new_axes, say
from convlens.plots.grids import show_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_CLASSES = 20
"""Most classes for which the cells show numbers."""

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
    """Draw how often each class was predicted as which, and the recall of each class.

    A row is a true class, a column a predicted one. The mistakes are orange, by log(1 + count), so
    that a single one is seen beside thousands; the diagonal is blue, by recall, which is the share
    of a row that lies there. Beyond 20 classes the counts are not written.

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
    names = [
        name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        for name in (classes or [str(i) for i in range(k)])
    ]
    ax = ax or _square_axes(k, max(map(len, names), default=0))
    ax.set_title(title)
    if not counts.any():
        say(ax, NOTHING.format("confusion matrix"))
        return ax
    recall = recall_of(counts)
    # The largest count beside the diagonal.
    most = max(int((counts - np.diag(np.diag(counts))).max()), 1)
    ax.imshow(_colours(counts, recall, most), interpolation="nearest")
    if k <= FEW_CLASSES:
        _write_counts(ax, counts, recall)
    else:
        _add_colour_bar(ax, most)
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
        raise ArgumentError(f"most must be at least 1, got {most}; it is the number of images.")
    if mistakes is None:
        ax = ax or _square_axes(0, 0)
        ax.set_axis_off()
        say(ax, NOTHING.format("prediction"))
        return ax
    order = np.argsort(-mistakes.loss, kind="stable")[:most]
    captions = [_caption(mistakes, int(i)) for i in order]
    return show_images(mistakes.images[order], captions, columns, ax)


def plot_reliability(calibration: Calibration | None, ax: Axes | None = None) -> Axes:
    """Draw accuracy over confidence in bins, and the share of the images in each bin.

    Bars below the diagonal: the network is surer than it is right; above: less sure. Bins without
    images have no bar.

    Args:
        calibration: what was recorded; None says that there is nothing.
        ax: where to draw, a new figure if None.
    """
    ax = ax or new_axes(4.6, 4.4)
    if calibration is None:
        say(ax, NOTHING.format("calibration"))
        return ax
    confidence, accuracy = calibration.rates
    n_bins, held = len(accuracy), calibration.counts > 0
    left, share = np.arange(n_bins) / n_bins, calibration.counts / calibration.counts.sum()
    ax.bar(left, share, 1 / n_bins, align="edge", color="0.85", label="share of the images")
    for x, top in zip(left[held], accuracy[held], strict=True):
        ax.plot([x, x + 1 / n_bins], [top, top], color=BLUE, lw=2, solid_capstyle="butt")
    ax.plot(confidence[held], accuracy[held], "o", color=BLUE, ms=4, label="accuracy")
    ax.plot([0, 1], [0, 1], color="0.45", lw=1, ls="--", label="perfectly calibrated")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="probability of the predicted class")
    ax.set_ylabel("share of these images that are right")
    ax.set_title(
        f"Calibration error (ECE) {_percent(calibration.ece, 1)}, "
        f"temperature {calibration.temperature:.2f}"
    )
    ax.legend(loc="best", frameon=False, fontsize=FONT_PT)
    return ax


def _caption(mistakes: Mistakes, i: int) -> str:
    true, predicted = int(mistakes.true[i]), int(mistakes.predicted[i])
    return (
        f"{mistakes.classes[true]}, predicted {mistakes.classes[predicted]} "
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


def _colours(
    counts: NDArray[np.int64], recall: NDArray[np.float64], most: int
) -> NDArray[np.float64]:
    """(K, K, 3): white for none."""
    import matplotlib as mpl

    shades = SHADES[0] + (SHADES[1] - SHADES[0]) * np.log1p(counts) / np.log1p(most)
    picture = mpl.colormaps["Oranges"](shades)[..., :3]
    picture[counts == 0] = 1.0
    diagonal = np.arange(len(counts))
    blues = mpl.colormaps["Blues"](0.05 + 0.45 * np.nan_to_num(recall))
    picture[diagonal, diagonal] = blues[..., :3]
    return picture


def _add_colour_bar(ax: Axes, most: int) -> None:
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    shades = ListedColormap(mpl.colormaps["Oranges"](np.linspace(*SHADES, 256)))
    mapped = ScalarMappable(log_norm(most), shades)
    bar = figure_of(ax).colorbar(mapped, ax=ax, shrink=0.5, pad=0.02)
    ticks = sorted({0, *(int(v) for v in np.geomspace(1, most, 4).round())})
    label_colour_bar(bar, "mistakes (log scale)", {tick: f"{tick:,}" for tick in ticks})


def _write_counts(ax: Axes, counts: NDArray[np.int64], recall: NDArray[np.float64]) -> None:
    longest = len(f"{counts.max():,}")
    room = 72 * _side(ax) / len(counts)  # the longest number has to fit into its cell
    size = float(np.clip(room / (0.65 * (longest + 0.6)), 4.0, FONT_PT + 1))
    for (row, column), count in np.ndenumerate(counts):
        if count or (row == column and np.isfinite(recall[row])):
            weight = "bold" if row == column else "normal"
            ax.text(
                column, row, f"{count:,}", ha="center", va="center", fontsize=size, weight=weight
            )


def _side(ax: Axes) -> float:
    """About how wide and high the square of cells will be, inches."""
    figure, place = figure_of(ax), ax.get_position()
    return min(place.width * figure.get_figwidth(), place.height * figure.get_figheight())


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
        ax.annotate(
            word, (1.0, i), xycoords=("axes fraction", "data"), xytext=(5, 0),
            textcoords="offset points", ha="left", va="center", fontsize=size,
        )  # fmt: skip
    ax.annotate(
        "recall", (1.0, 1.0), xycoords="axes fraction", xytext=(5, 0),
        textcoords="offset points", ha="left", va="bottom", fontsize=size,
    )  # fmt: skip
    ax.tick_params(length=0)
    if k <= MOST_NAMES:
        for line in np.arange(k + 1) - 0.5:
            ax.axhline(line, color="0.85", lw=0.5)
            ax.axvline(line, color="0.85", lw=0.5)


def _percent(share: float, digits: int) -> str:
    """A share below 1 is never rounded to 100 %: 0.99999 is ">99.9 %"."""
    text = f"{100 * share:.{digits}f}"
    if share < 1 and float(text) == 100.0:
        text = f">{100 - 10.0**-digits:.{digits}f}"
    return f"{text} %"


def _square_axes(k: int, longest: int) -> Axes:
    side = float(np.clip(0.46 * k, 4.2, 9.0)) if k <= FEW_CLASSES else 9.0
    names_in = longest * FONT_PT * 0.55 / 72
    return new_axes(side + names_in + 1.8, side + min(names_in, 1.4) + 0.6)
