"""What a validation says of a classifier, held to plain NumPy."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from convlens.core.snapshots import Calibration, Confusion, Mistakes
from convlens.errors import ArgumentError
from convlens.plots import Interpretation

NAMES = ("cat", "dog", "owl")
COUNTS = np.array([[90, 9, 1], [0, 50, 0], [2, 0, 0]], np.int64)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def mistakes(n: int = 3) -> Mistakes:
    line = np.arange(n)
    reals = np.linspace(1, 3, n, dtype=np.float32)
    files = tuple(f"owl/{i}.png" for i in range(n))
    return Mistakes(
        1, "", np.zeros((n, 4, 4, 3), np.uint8), line % 3, (line + 1) % 3, reals / 4, reals, line,
        NAMES, files,
    )  # fmt: skip


def calibration(counts: list[int], confidence: list[float], correct: list[int]) -> Calibration:
    return Calibration(
        1, "", np.array(counts), np.array(confidence, np.float32), np.array(correct), 0.5, 2.0, 0.4
    )


def test_precision_and_recall_are_shares_of_columns_and_rows():
    found = Interpretation(Confusion(1, "", COUNTS, NAMES))
    np.testing.assert_allclose(found.recall, [0.9, 1.0, 0.0])
    np.testing.assert_allclose(found.precision, [90 / 92, 50 / 59, 0.0])
    nothing = Interpretation(Confusion(1, "", np.diag([1, 2, 0]), NAMES))
    assert np.isnan([nothing.recall[2], nothing.precision[2]]).all()
    assert found.accuracy == pytest.approx(140 / 152)
    assert np.isnan([found.ece, found.temperature]).all()


def test_confused_pairs_and_top_losses_are_in_order_and_named():
    found = Interpretation(Confusion(1, "", COUNTS, NAMES), mistakes())
    pairs = [(pair.true, pair.predicted, pair.count) for pair in found.most_confused(2)]
    assert pairs == [("cat", "dog", 9), ("owl", "cat", 2)]
    assert len(found.most_confused(99)) == 3
    first, second = found.top_losses(2)
    assert (first.file, first.true, first.predicted, first.item) == ("owl/2.png", "owl", "cat", 2)
    assert (first.loss, first.probability) == (3.0, 0.75)
    assert second.loss == 2.0
    assert first.image.shape == (4, 4, 3)
    assert "image" not in repr(first)


def test_the_calibration_error_is_the_mean_distance_by_images():
    kept = calibration([0, 4, 6], [0.0, 2.0, 5.4], [0, 1, 6])
    assert kept.ece == pytest.approx((4 * abs(0.5 - 0.25) + 6 * abs(0.9 - 1.0)) / 10)
    confidence, accuracy = kept.rates
    np.testing.assert_allclose(confidence, [np.nan, 0.5, 0.9], rtol=1e-6)
    np.testing.assert_allclose(accuracy, [np.nan, 0.25, 1.0])
    assert np.isnan(calibration([0], [0.0], [0]).ece)


def test_the_table_names_the_weakest_class_first():
    found = Interpretation(
        Confusion(1, "", COUNTS, NAMES), mistakes(), calibration([4], [3.0], [2])
    )
    lines = str(found).splitlines()
    assert lines[0] == "140 of 152 images right (92.11%)"
    assert [line.split()[0] for line in lines[2:5]] == ["owl", "cat", "dog"]
    assert "cat taken for dog: 9" in lines
    assert "calibration error (ECE) 25.00%; with temperature 2.00" in lines[-1]
    assert repr(found) == "Interpretation(3 classes, 152 images, accuracy 92.11%)"
    many = Interpretation(Confusion(0, "", np.eye(30, dtype=np.int64), tuple(map(str, range(30)))))
    assert "and 10 of a higher recall" in str(many)
    assert "–" in str(Interpretation(Confusion(0, "", np.zeros((2, 2), np.int64), ("a", "b"))))


def test_plots_show_what_is_known_and_say_what_is_not():
    found = Interpretation(
        Confusion(1, "", COUNTS, NAMES), mistakes(), calibration([4, 0], [1.0, 0.0], [2, 0])
    )
    assert found.plot_confusion().get_xlabel() == "predicted class"
    assert len(found.plot_top_losses(2).images) == 2
    ax = found.plot_reliability()
    assert ax.get_title() == "Calibration error (ECE) 25.0 %, temperature 2.00"
    assert [bar.get_height() for bar in ax.patches] == [1.0, 0.0]
    bare = Interpretation(Confusion(1, "", COUNTS, NAMES))
    assert "no calibration was recorded" in bare.plot_reliability().texts[0].get_text()
    assert "no prediction was recorded" in bare.plot_top_losses().texts[0].get_text()


def test_arguments_that_cannot_work_are_refused():
    found = Interpretation(Confusion(1, "", COUNTS, NAMES))
    for n in (0, -1, 1.5, True):
        with pytest.raises(ArgumentError, match="n must be a whole number of at least 1"):
            found.top_losses(n)
    with pytest.raises(ArgumentError, match="n must be at most 32, got 33"):
        found.plot_top_losses(33)
    with pytest.raises(ArgumentError, match="no images were kept of this epoch"):
        found.top_losses(1)
