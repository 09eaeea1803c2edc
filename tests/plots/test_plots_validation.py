"""The confusion matrix and the worst predictions, as pictures."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from convlens.core.snapshots import Confusion, Mistakes
from convlens.errors import ArgumentError
from convlens.plots import ValidationPlots, plot_confusion, plot_top_losses

NAMES = ("cat", "dog", "<b>$\\frac$</b>")
COUNTS = np.array([[90, 9, 1], [0, 50, 0], [1000, 0, 0]], np.int64)
CONFUSION = Confusion(2, "", COUNTS, NAMES)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def render(ax):
    ax.get_figure(root=True).canvas.draw()


def cells(ax):
    """The numbers in the cells, by (row, column)."""
    return {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text()
        for t in ax.texts
        if not isinstance(t, mpl.text.Annotation)
    }


def recalls(ax):
    return [t.get_text() for t in ax.texts if isinstance(t, mpl.text.Annotation)]


def test_rows_are_true_classes_and_numbers_are_written():
    ax = plot_confusion(CONFUSION)
    render(ax)
    assert cells(ax) == {
        (0, 0): "90", (0, 1): "9", (0, 2): "1", (1, 1): "50", (2, 0): "1,000", (2, 2): "0"
    }  # fmt: skip
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("true class", "predicted class")
    assert [t.get_text() for t in ax.get_yticklabels()] == list(NAMES)
    assert [t.get_text() for t in ax.get_xticklabels()] == list(NAMES)
    assert recalls(ax) == ["90.0 %", "100.0 %", "0.0 %", "recall"]
    assert ax.get_title() == "Confusion matrix, epoch 3\n140 of 1,150 right (12.17 %)"


def test_one_mistake_is_seen_beside_a_thousand():
    picture = np.asarray(plot_confusion(CONFUSION).images[0].get_array())
    assert (picture[1, 0] == 1).all(), "none is white"
    shade = {count: picture[row, column, 2] for (row, column), count in np.ndenumerate(COUNTS)}
    assert 1 > shade[1] > shade[9] > shade[1000]
    assert shade[1] < 0.93
    assert (shade[1] - shade[9]) > 0.2 * (shade[9] - shade[1000])
    blue, orange = picture[0, 0], picture[2, 0]
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]


def test_a_share_is_100_percent_only_where_it_is_and_unknown_without_images():
    ax = plot_confusion(np.array([[99_999, 1], [0, 5]]))
    assert recalls(ax) == [">99.9 %", "100.0 %", "recall"]
    assert ax.get_title().endswith("100,004 of 100,005 right (>99.99 %)")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1"]
    ax = plot_confusion([[3, 1], [0, 0]], ["a", "b"])
    render(ax)
    assert recalls(ax) == ["75.0 %", "–", "recall"]
    assert cells(ax) == {(0, 0): "3", (0, 1): "1"}


@pytest.mark.parametrize("k", [1, 10, 20, 21, 150])
def test_numbers_and_names_have_room_however_many_classes_there_are(k):
    counts = np.full((k, k), 1234) + np.eye(k, dtype=int) * 99_999
    ax = plot_confusion(counts, [f"a class called {i}" for i in range(k)])
    render(ax)
    figure = ax.get_figure(root=True)
    box = ax.get_tightbbox()
    assert min(box.x0, box.y0) >= -1
    assert box.x1 <= figure.bbox.x1 + 1
    assert box.y1 <= figure.bbox.y1 + 1
    written = cells(ax)
    assert len(written) == (k * k if k <= 20 else 0)
    cell = ax.get_window_extent().width / k
    for text in ax.texts:
        if not isinstance(text, mpl.text.Annotation):
            assert text.get_window_extent().width <= cell + 1
    assert len(ax.get_yticklabels()) <= 40
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert all(left.x1 <= right.x0 + 1 for left, right in pairwise(boxes))
    bars = [other.get_ylabel() for other in figure.axes if other is not ax]
    assert bars == ([] if k <= 20 else ["mistakes (log scale)"])


def test_nothing_recorded_is_said_in_words():
    for ax in (plot_confusion(None), plot_confusion(np.zeros((3, 3), int)), plot_top_losses(None)):
        render(ax)
        assert ax.texts[0].get_text().startswith("no ")
        assert ax.texts[0].get_text().endswith("with validation data and the callback Pictures")


def test_wrong_counts_and_names_are_refused():
    for counts in (np.zeros((2, 3), int), np.zeros((2, 2)), np.array([[1, -1], [0, 1]]), [1, 2]):
        with pytest.raises(
            ArgumentError, match=r"confusion has shape .*; expected \(K, K\) counts"
        ):
            plot_confusion(counts)
    with pytest.raises(ArgumentError, match="classes has 1 names for 3 classes; give one for each"):
        plot_confusion(COUNTS, ["a"])
    with pytest.raises(ArgumentError, match="most must be at least 1, got 0"):
        plot_top_losses(mistakes(2), 0)


def mistakes(n):
    rng = np.random.default_rng(0)
    return Mistakes(
        epoch=1,
        layer="",
        images=rng.integers(0, 256, (n, 6, 5), dtype=np.uint8),
        true=np.arange(n) % 3,
        predicted=(np.arange(n) + 1) % 3,
        probability=np.linspace(0.5, 0.9, n, dtype=np.float32),
        loss=np.linspace(1, 5, n, dtype=np.float32),
        item=np.arange(n),
        classes=NAMES,
    )


def test_the_largest_losses_come_first_on_the_axes_that_are_given():
    found = mistakes(6)
    figure, (left, ax) = plt.subplots(1, 2)
    assert plot_confusion(CONFUSION, ax=left) is left
    assert plot_top_losses(found, 2, ax=ax) is ax
    assert plt.get_fignums() == [figure.number]
    render(ax)
    for drawn, i in zip(ax.images, (5, 4), strict=True):
        np.testing.assert_array_equal(drawn.get_array(), found.images[i])
    said = [" ".join(text.get_text().split()) for text in ax.texts]
    assert said[1] == "dog, predicted <b>$\\frac$</b> (82.0 %), loss 4.20"


class Kept(ValidationPlots):
    def __init__(self, *kept):
        self.kept = kept

    def snapshot(self, kind, layer="", epoch=None):
        found = [s for s in self.kept if type(s) is kind and (epoch is None or s.epoch <= epoch)]
        return found[-1] if found else None


def test_what_was_kept_draws_itself_by_epoch():
    run = Kept(Confusion(0, "", COUNTS, NAMES), CONFUSION, mistakes(20))
    assert run.plot_confusion_matrix().get_title().startswith("Confusion matrix, epoch 3\n")
    assert run.plot_confusion_matrix(epoch=1).get_title().startswith("Confusion matrix, epoch 1\n")
    assert len(run.plot_top_losses().images) == 16
    assert len(run.plot_top_losses(3).images) == 3
    assert run.plot_top_losses(epoch=0).texts[0].get_text().startswith("no prediction was recorded")
    before = Confusion(-1, "", COUNTS, NAMES)
    assert plot_confusion(before).get_title().startswith("Confusion matrix, before training\n")
