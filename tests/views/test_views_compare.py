from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bokeh.events import DoubleTap, Tap
from views_data import (
    LAYOUT,
    epochs_of,
    healthy_loss,
    layer_infos,
    normal_columns,
    step_series,
)

from convlens.core.buckets import BucketLayout
from convlens.core.columns import Columns, coarsen
from convlens.core.histories import LayerHistory
from convlens.core.steps import empty_steps, sum_up
from convlens.errors import ArgumentError
from convlens.views.compare import CompareView, Side
from convlens.views.distances import (
    Comparison,
    compare,
    first_parting,
    layer_distance,
    total_variation,
)
from convlens.views.layer_view import CHOOSE, NO_COLUMNS


def columns(n: int = 20, std: float = 1.0, first_step: int = 0) -> Columns:
    return normal_columns(np.zeros(n), np.full(n, std), 1000, 4, first_step=first_step)


def layer(of: Columns, index: int = 0) -> LayerHistory:
    return LayerHistory(layer_infos()[index], of, LAYOUT)


def moved(of: Columns, column: int, n: int) -> Columns:
    """The same but for ``n`` values, which become NaN in one column."""
    counts, nan = of.counts.copy(), of.nan.copy()
    fullest = counts[column].argmax()
    assert counts[column, fullest] >= n
    counts[column, fullest] -= n
    nan[column] += n
    return replace(of, counts=counts, nan=nan)


def side(name: str, n: int, loss: np.ndarray | None = None) -> Side:
    steps = step_series(healthy_loss(n) if loss is None else loss) if n else empty_steps()
    return Side(name, sum_up(steps, 1000), epochs_of(steps, (0.9,) * (n // 118)))


def test_the_same_is_zero_and_nothing_in_common_is_one():
    a, far = columns(3), normal_columns(np.full(3, 1e4), np.full(3, 1.0), 1000, 4)

    np.testing.assert_array_equal(total_variation(a, a), np.zeros(3))
    np.testing.assert_allclose(total_variation(a, far), np.ones(3), rtol=1e-12)


def test_the_distance_is_the_share_that_would_have_to_move():
    a = columns(3)
    b = moved(a, 1, 30)

    expected = [0.0, 30 / a.n[1], 0.0]
    np.testing.assert_allclose(total_variation(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(total_variation(b, a), expected, rtol=1e-12)


def test_it_does_not_depend_on_how_many_values_there_are():
    a = columns(2)
    double = replace(a, counts=2 * a.counts, nan=2 * a.nan)

    np.testing.assert_allclose(total_variation(a, double), 0.0, atol=1e-12)
    assert not layer_distance(layer(a), layer(double)).equal.any()


def test_no_values_have_no_distance():
    a = columns(2)
    none = replace(a, counts=0 * a.counts)

    assert np.isnan(total_variation(a, none)).all()


def test_narrow_counts_do_not_wrap():
    a = columns(1)
    small = replace(a, counts=a.counts.astype(np.uint16))

    assert total_variation(small, moved(a, 0, 30))[0] == pytest.approx(30 / a.n[0])


def test_wider_columns_are_met_by_adding_up():
    fine = columns(64)
    wide = coarsen(columns(64), 3)

    distance = layer_distance(layer(fine), layer(wide))

    assert distance.equal.all()
    np.testing.assert_array_equal(distance.first_step, 8 * np.arange(8))
    np.testing.assert_array_equal(distance.last_step, 8 * np.arange(8) + 7)


def test_only_equal_steps_are_compared():
    distance = layer_distance(layer(columns(20)), layer(columns(20, first_step=15)))
    unfinished = layer_distance(layer(coarsen(columns(64), 3)), layer(columns(60)))

    assert distance.first_step.tolist() == [15, 16, 17, 18, 19]
    assert unfinished.first_step.tolist() == [0, 8, 16, 24, 32, 40, 48]


def test_other_buckets_are_refused_in_words():
    other = LayerHistory(layer_infos()[0], columns(), BucketLayout(mantissa_bits=2))

    with pytest.raises(ArgumentError, match=r"'0\.0' was counted in \d+ buckets in one run and in"):
        layer_distance(layer(columns()), other)
    found = compare([layer(columns())], [other])
    assert not found.distances
    assert "cannot be compared" in found.remarks[0]


def test_layers_are_matched_by_name():
    a = [layer(columns(), 0), layer(columns(), 1), layer(columns(), 2)]
    b = [layer(columns(), 2), layer(columns(30), 0)]

    found = compare(a, b, ("mine", "other"))

    assert [distance.name for distance in found.distances] == ["0.0", "1.0"]
    assert found.remarks == [
        "Only in mine: 1 layer (0.2).",
        "The runs are not equally long: mine to step 19 and other to step 29. "
        "They are compared where both are.",
    ]


def test_nothing_in_common_is_said():
    found = compare([layer(columns(), 0)], [layer(columns(), 1)])

    assert found.remarks[0].startswith("The runs have no layer of the same name")
    assert "share no layer and step" in first_parting(found.distances).sentence
    assert found.matrix().values.shape == (0, 0)
    apart = compare([layer(columns(5))], [layer(columns(5, first_step=50))])
    assert "share no layer and step" in first_parting(apart.distances).sentence


def test_wide_columns_are_said():
    found = compare([layer(columns(64))], [layer(coarsen(columns(64), 2))])

    assert found.remarks == ["Compared in columns of up to 4 batches added up."]


def test_the_matrix_is_on_all_layers_steps():
    a = [layer(columns(4), 0), layer(columns(4, first_step=2), 1)]
    matrix = compare(a, a).matrix()

    np.testing.assert_array_equal(matrix.first_step, np.arange(6))
    expected = [[0, 0, 0, 0, np.nan, np.nan], [np.nan, np.nan, 0, 0, 0, 0]]
    np.testing.assert_array_equal(matrix.values, expected)


def test_equal_runs_never_part():
    a = [layer(columns(), 0), layer(columns(), 1)]

    parting = first_parting(compare(a, a).distances)

    assert parting.sentence == (
        "The runs never part: all counts of 2 common layers are equal, steps 0 to 19."
    )
    assert parting.first_step is None


def test_runs_part_where_the_first_count_differs():
    a = [layer(columns(), 0), layer(columns(), 1)]
    later, first = moved(columns(), 12, 30), moved(columns(), 7, 1)
    n = int(columns().n[0])
    b = [layer(later, 0), layer(first, 1)]

    parting = first_parting(compare(a, b).distances, threshold=29 / n)

    assert parting.sentence == (
        "The runs part at step 7, in layer 0.2: every count before was the same. The first with "
        f"a distance above {29 / n:g} is at step 12, in layer 0.0."
    )
    assert (parting.first_step, parting.layer) == (7, "0.2")


def test_runs_that_differ_from_the_start_but_little():
    a, b = [layer(columns())], [layer(moved(columns(), 0, 1))]

    parting = first_parting(compare(a, b).distances)

    assert parting.sentence == (
        "The runs part at step 0, in layer 0.0: they differ from the first step on. "
        "No layer ever has a distance above 0.1."
    )


def test_parting_within_a_wide_column_says_which_steps():
    a, b = columns(64), moved(columns(64), 20, 1)

    parting = first_parting(compare([layer(coarsen(a, 3))], [layer(coarsen(b, 3))]).distances)

    assert "within steps 16 to 23, in layer 0.0" in parting.sentence


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_must_be_one(threshold):
    with pytest.raises(ArgumentError, match=r"threshold must be at least 0 and less than 1, got"):
        first_parting([], threshold)


def test_both_losses_are_on_one_axis():
    view = CompareView()
    a = [layer(columns(), 0), layer(columns(), 1)]

    view.update(side("first", 300), side("second", 200, 3 * healthy_loss(200)), compare(a, a))

    assert view.axis.whole == (-0.5, 299.5)
    smooth = [lines.smooth.lines for lines in view._lines]
    assert [data["name"] for data in smooth] == [["first"], ["second"]]
    assert [len(data["xs"][0]) for data in smooth] == [300, 200]
    assert [item.label.value for item in view._entries] == ["first", "second"]
    assert view.loss.plot(False).y_range.end > 3 * healthy_loss(200).max()
    assert view.matrix_figure.plot.title.text == (
        "Layers: distance of the two runs (total variation)"
    )


def test_a_layer_of_both_runs_has_one_scale():
    view = CompareView()
    a, b = layer(columns()), layer(columns(std=5.0))
    view.update(side("first", 20), side("second", 20), compare([a], [b]))
    assert [heat.message.text for heat in view.heats] == [CHOOSE, CHOOSE]

    view.show_layer((a, b))

    tops = [heat.plot.y_range.end for heat in view.heats]
    assert tops[0] == tops[1] == max(heat.limits[1] for heat in view.heats)
    assert view.heats[1].plot.title.text == "second: layer 0.0"
    view.show_layer((a, None))
    assert view.heats[1].message.text == NO_COLUMNS
    view.show_layer(None, "Pick one.")
    assert view.heats[0].message.text == "Pick one."


def test_runs_that_have_not_begun_say_so():
    view = CompareView()

    view.update(side("a" * 80, 0), side("b", 0), Comparison([], []))

    assert view.loss.text == "Neither run has a step with a finite loss."
    assert view.matrix_figure.message.text == "The runs share no layer and step."


def test_it_is_chosen_and_zoomed_like_a_run():
    view = CompareView()
    a = [layer(columns(), 0), layer(columns(), 1)]
    view.update(side("first", 20), side("second", 20), compare(a, a))
    chosen: list[int] = []
    view.on_select(chosen.append)

    view.matrix_figure.plot._trigger_event(Tap(view.matrix_figure.plot, y=1.2))
    view.set_log(True)
    view.axis.range.update(start=2, end=4)
    log = view.loss.plot(True)
    log._trigger_event(DoubleTap(log))

    assert chosen == [1]
    assert [view.loss.plot(log).visible for log in (False, True)] == [False, True]
    assert [item.label.value for item in view._entries] == ["first", "second"] * 2
    assert view.axis.range.start == -0.5
