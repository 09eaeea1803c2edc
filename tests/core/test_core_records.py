"""The figures of a layer's history against numbers worked out by hand, and joined step series."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from convlens.core.buckets import BucketLayout
from convlens.core.columns import Columns, empty_columns
from convlens.core.histories import LayerHistory, LayerInfo, UpdateHistory
from convlens.core.outcome import outcome_of
from convlens.core.steps import StepSeries, empty_steps, join_steps
from convlens.errors import ArgumentError

# Buckets -8: (-inf, -2], (-2, -1], (-1, -.5], (-.5, -.25], (-.25, 0), {0}, and the same mirrored.
LAYOUT = BucketLayout(mantissa_bits=0, min_exponent=-2, max_exponent=1)

# Column 0 holds -2, -1, -0.02, 0, 0, 0.04, 0.5, 1, NaN, +inf. Column 1 holds -inf and nothing else.
FINITE = [-2.0, -1.0, -0.02, 0.0, 0.0, 0.04, 0.5, 1.0]
# Its squares add up to 6.252: variance 6.252 / 8 − 0.185² = 0.747275.
COLUMNS = Columns(
    first_step=np.array([0, 4]),
    last_step=np.array([3, 7]),
    calls=np.array([4, 1]),
    counts=np.array([[1, 1, 0, 0, 1, 2, 1, 0, 1, 1, 0], [0] * 11]),
    nan=np.array([1, 0]),
    neg_inf=np.array([0, 1]),
    pos_inf=np.array([1, 0]),
    near_zero=np.array([4, 0]),
    at_most_eps=np.array([6, 1]),
    mean=np.array([-0.185, np.nan]),
    m2=np.array([sum((x + 0.185) ** 2 for x in FINITE), 0.0]),
    positive=np.array([[True, False, True], [False, False, False]]),
    active=np.array([[True, True, False], [False, False, True]]),
)
HISTORY = LayerHistory(LayerInfo(0, "0.0", "Conv2d", feeds_relu=True), COLUMNS, LAYOUT)


def test_the_layout_is_the_one_that_the_counts_were_made_for() -> None:
    assert LAYOUT.size == 11
    assert LAYOUT.zero == 5
    edges = [-np.inf, -2, -1, -0.5, -0.25, 0, 0, 0.25, 0.5, 1, 2, np.inf]
    np.testing.assert_array_equal(HISTORY.bucket_edges, edges)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("first_step", [0, 4]),
        ("last_step", [3, 7]),
        ("calls", [4, 1]),
        ("n", [10, 1]),
        ("mean", [-0.185, np.nan]),
        ("std", [0.8644507, np.nan]),
        # sqrt(6.252 / 4): the squares of all four calls' values, shared among the calls.
        ("norm", [1.2501999, np.nan]),
        ("near_zero", [0.4, 0.0]),
        ("near_zero_after_relu", [0.6, 1.0]),
        ("zeros", [0.2, 0.0]),
        ("nonpositive", [0.5, 1.0]),
        ("nonfinite", [0.2, 1.0]),
        ("dead_channels", [1, 3]),
        ("silent_channels", [1, 2]),
    ],
)
def test_figures(name: str, expected: list[float]) -> None:
    np.testing.assert_allclose(getattr(HISTORY, name), expected, rtol=1e-6)


def test_std_is_the_populations() -> None:
    assert HISTORY.std[0] == pytest.approx(np.std(FINITE), rel=1e-12)


def test_a_channel_is_dead_only_where_a_relu_follows() -> None:
    other = replace(HISTORY, layer=LayerInfo(0, "0.0", "Conv2d", feeds_relu=False))
    assert other.dead_channels.tolist() == [0, 0]
    assert other.silent_channels.tolist() == [1, 2]
    assert other.channels == 3


def test_quantile_and_rebin_are_of_the_finite_values() -> None:
    # Half of eight values lie at or below the fourth, which is a 0.
    np.testing.assert_array_equal(HISTORY.quantile(0.5), [0.0, np.nan])
    # The value of the outermost bucket, -2, is its inner edge, and so no bin above it holds it.
    np.testing.assert_allclose(HISTORY.rebin(np.array([-1.0, 0.0, 1.0])), [[1, 4], [0, 0]])


def test_the_smallest_and_the_largest_lie_in_their_buckets() -> None:
    nothing = [np.nan, np.nan]
    # -2 belongs to the outermost bucket, whose other edge is infinite; 1 is its bucket's lower one.
    np.testing.assert_array_equal(HISTORY.min_bucket, [[-np.inf, -2.0], nothing])
    np.testing.assert_array_equal(HISTORY.max_bucket, [[1.0, 2.0], nothing])
    np.testing.assert_array_equal(HISTORY.quantile_bounds(0.5), [[0.0, 0.0], nothing])


@pytest.mark.parametrize(
    ("threshold", "share", "least", "most"),
    [
        (-3.0, 0.0, 0.0, 0.1),  # in the outermost bucket nothing says where
        (-1.5, 0.15, 0.1, 0.2),  # -2, and half of the bucket of -1
        (-1.0, 0.2, 0.1, 0.2),  # a negative bucket holds its upper edge, which is not below it
        (0.0, 0.3, 0.3, 0.3),
        (0.125, 0.55, 0.5, 0.6),
        (0.5, 0.6, 0.6, 0.6),
        (9.0, 0.8, 0.8, 0.8),  # NaN and infinity are below nothing
    ],
)
def test_the_share_below_a_threshold(
    threshold: float, share: float, least: float, most: float
) -> None:
    # The second column holds one value, negative infinity, which is below any of them.
    np.testing.assert_allclose(HISTORY.share_below(threshold), [share, 1.0])
    np.testing.assert_allclose(HISTORY.share_below_bounds(threshold), [[least, most], [1, 1]])


def test_questions_that_counts_cannot_answer() -> None:
    for q in (-0.1, 50, math.nan):
        with pytest.raises(ArgumentError, match=f"q must be a number from 0 to 1, got {q}"):
            HISTORY.quantile(q)
        with pytest.raises(ArgumentError, match=f"q must be a number from 0 to 1, got {q}"):
            HISTORY.quantile_bounds(q)
    for threshold in (math.nan, math.inf):
        with pytest.raises(ArgumentError, match=f"threshold must be finite, got {threshold}"):
            HISTORY.share_below(threshold)
        with pytest.raises(ArgumentError, match=f"threshold must be finite, got {threshold}"):
            HISTORY.share_below_bounds(threshold)
    for edges in ([1.0, 0.0], [0.0], [0.0, math.nan], [0.0, math.inf], [[0.0, 1.0]]):
        with pytest.raises(ArgumentError, match="edges must be at least two finite numbers"):
            HISTORY.rebin(edges)


def test_an_empty_history_has_empty_figures() -> None:
    history = LayerHistory(LayerInfo(0, "a", "Linear", True), empty_columns(11, 5), LAYOUT)
    assert len(history) == 0
    assert history.channels == 5
    names = ["mean", "std", "near_zero", "zeros", "nonpositive", "nonfinite", "dead_channels"]
    for name in [*names, "n", "silent_channels", "near_zero_after_relu"]:
        assert getattr(history, name).shape == (0,), name
    assert history.quantile(0.5).shape == (0,)
    assert history.rebin([0.0, 1.0]).shape == (0, 1)
    assert history.min_bucket.shape == history.max_bucket.shape == (0, 2)
    assert history.share_below(0.3).shape == (0,)
    assert history.share_below_bounds(0.3).shape == (0, 2)


def test_a_column_without_any_value_has_no_shares() -> None:
    nothing = replace(COLUMNS[1:], neg_inf=np.array([0]), at_most_eps=np.array([0]))
    history = LayerHistory(LayerInfo(0, "a", "Linear"), nothing, LAYOUT)
    assert history.n.tolist() == [0]
    for name in ("mean", "std", "near_zero", "zeros", "nonpositive", "nonfinite"):
        assert math.isnan(getattr(history, name)[0]), name


def series(first: int, count: int, **hypers: float) -> StepSeries:
    step = np.arange(first, first + count)
    values = {name: np.full((count, 2), value) for name, value in hypers.items()}
    return StepSeries(step, step // 4, step / 10, step * 0.5, values)


def test_series_are_joined_in_order() -> None:
    joined = join_steps([series(0, 3, lr=0.1), series(3, 0, lr=0.1), series(3, 2, lr=0.2)])
    assert len(joined) == 5
    assert joined.step.tolist() == [0, 1, 2, 3, 4]
    assert joined.epoch.tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(joined.loss, [0, 0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(joined.wall_s, [0, 0.5, 1, 1.5, 2])
    assert joined.hypers["lr"][:, 1].tolist() == [0.1, 0.1, 0.1, 0.2, 0.2]


def test_a_hyperparameter_that_a_part_lacks_is_nan_there() -> None:
    joined = join_steps([series(0, 2, lr=0.1), series(2, 1, momentum=0.9)])
    np.testing.assert_array_equal(joined.hypers["lr"][:, 0], [0.1, 0.1, np.nan])
    np.testing.assert_array_equal(joined.hypers["momentum"], [[np.nan] * 2] * 2 + [[0.9] * 2])


def test_no_series_at_all() -> None:
    for nothing in (join_steps([]), empty_steps()):
        assert len(nothing) == 0
        assert nothing.hypers == {}
        assert nothing.step.dtype == np.int64


def sketch_of(values: np.ndarray, calls: int) -> Columns:
    """One column with the moments of some values, in as many calls."""
    one = COLUMNS[:1]
    counts = np.zeros((1, LAYOUT.size), np.int64)
    counts[0, LAYOUT.zero] = values.size
    m2 = np.array([values.var() * values.size])
    return replace(
        one, calls=np.array([calls]), counts=counts, mean=np.array([values.mean()]), m2=m2
    )


def test_the_norm_of_one_call_is_the_l2_norm_of_its_values() -> None:
    values = np.random.default_rng(0).normal(3, 2, 500)
    history = replace(HISTORY, columns=sketch_of(values, 1))
    assert history.norm[0] == pytest.approx(np.linalg.norm(values), rel=1e-12)


def test_the_ratio_of_an_update_is_that_of_root_mean_square_norms() -> None:
    rng = np.random.default_rng(1)
    steps, weights = rng.normal(0, 1e-3, (4, 50)), rng.normal(0, 1, (4, 50))
    update = replace(HISTORY, columns=sketch_of(steps, 4))
    parameter = replace(HISTORY, columns=sketch_of(weights, 4))
    history = UpdateHistory(update, parameter)
    norms = [np.sqrt(np.mean(np.linalg.norm(x, axis=1) ** 2)) for x in (steps, weights)]
    assert history.ratio[0] == pytest.approx(norms[0] / norms[1], rel=1e-12)
    assert len(history) == 1
    zero = replace(parameter, columns=sketch_of(np.zeros(50), 1))
    assert np.isnan(UpdateHistory(update, zero).ratio).tolist() == [True]


def test_joined_series_are_as_wide_as_the_widest() -> None:
    one = StepSeries(np.array([0]), np.array([0]), np.array([1.0]), np.array([0.1]), {})
    two = replace(one, step=np.array([1]), hypers={"lr": np.array([[0.1]])})
    three = replace(one, step=np.array([2]), hypers={"lr": np.array([[0.2, 0.3]])})
    nan = np.nan
    expected = [[nan, nan], [0.1, nan], [0.2, 0.3]]
    np.testing.assert_array_equal(join_steps([one, two, three]).hypers["lr"], expected)


def test_counts_that_were_left_out_are_said_to_be() -> None:
    history = replace(HISTORY, columns=COLUMNS.without_counts())
    np.testing.assert_array_equal(history.std, HISTORY.std)
    for ask in (
        lambda: history.counts,
        lambda: history.zeros,
        lambda: history.nonpositive,
        lambda: history.quantile(0.5),
        lambda: history.rebin([0, 1]),
        lambda: history.share_below(1.0),
    ):
        with pytest.raises(ArgumentError, match=r"history of '0\.0' has no bucket counts"):
            ask()


def test_narrow_counts_do_not_overflow() -> None:
    columns = replace(COLUMNS, counts=np.full((2, 11), 200, np.uint8))
    history = LayerHistory(HISTORY.layer, columns, LAYOUT)
    assert history.counts.dtype == np.int64
    wide = LayerHistory(HISTORY.layer, replace(columns, counts=history.counts), LAYOUT)
    for name in ("n", "zeros", "nonpositive"):
        np.testing.assert_array_equal(getattr(history, name), getattr(wide, name))
    np.testing.assert_array_equal(history.quantiles([0.1, 0.9]), wide.quantiles([0.1, 0.9]))
    np.testing.assert_array_equal(history.share_below_bounds(0.3), wide.share_below_bounds(0.3))
    np.testing.assert_array_equal(history.rebin([-1, 0, 1]), wide.rebin([-1, 0, 1]))


def test_representations_are_one_line() -> None:
    shown = [repr(x) for x in (HISTORY, COLUMNS, UpdateHistory(HISTORY, HISTORY), series(3, 2))]
    assert shown == [
        "LayerHistory('0.0', Conv2d, activation, 2 columns, steps 0 to 7)",
        "Columns(2 columns (steps 0 to 7), 11 buckets, 3 channels)",
        "UpdateHistory('0.0', Conv2d, 2 columns)",
        "StepSeries(2 steps (3 to 4), hypers=[])",
    ]


class WordlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, ("finished", None)),
        (KeyError("x"), ("failed", "KeyError: 'x'")),
        (AssertionError(), ("failed", "AssertionError")),
        (WordlessError(), ("failed", "WordlessError")),
        (KeyboardInterrupt(), ("stopped", "interrupted from the keyboard")),
        (SystemExit(), ("stopped", "SystemExit")),
        (SystemExit(0), ("stopped", "SystemExit")),
        (SystemExit(3), ("failed", "SystemExit: 3")),
    ],
)
def test_how_a_run_ended(error: BaseException | None, outcome: tuple[str, str | None]) -> None:
    assert outcome_of(error) == outcome
