"""The sketch against NumPy on the values that it was made of."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convlens.core.buckets import (
    BucketLayout,
    count_below,
    finite_edges,
    quantile_bounds,
    quantiles,
    rebin,
)
from convlens.core.columns import (
    Columns,
    coarsen,
    concatenate,
    decode,
    empty_columns,
    encode,
    merge_runs,
)
from convlens.core.encoding import pack, unpack
from convlens.errors import RunError

LAYOUT = BucketLayout()
EPS = 0.05

quick = settings(deadline=None, max_examples=50)
numbers = st.floats(-1e5, 1e5, width=32)
batches = st.lists(
    st.lists(numbers | st.sampled_from([0.0, 0.05, np.nan, np.inf, -np.inf]), max_size=6),
    min_size=1,
    max_size=8,
)


def bucket(x: np.ndarray) -> np.ndarray:
    """The bucket of each finite value, by searching the edges."""
    above = np.searchsorted(LAYOUT.edges, x, side="right") - 1
    below = np.searchsorted(LAYOUT.edges, x, side="left") - 1
    return np.where(x > 0, above, np.where(x < 0, below, LAYOUT.zero))


def sketch(values: list[float] | np.ndarray, step: int = 0, channels: int = 2) -> Columns:
    """One column, made of the values by NumPy alone; value i belongs to channel i % channels."""
    x = np.array(values, np.float64)
    finite = x[np.isfinite(x)]
    mean = finite.mean() if len(finite) else np.nan
    by_channel = [x[c::channels] for c in range(channels)]
    return Columns(
        first_step=np.array([step]),
        last_step=np.array([step]),
        calls=np.array([1]),
        counts=np.bincount(bucket(finite), minlength=LAYOUT.size)[None],
        nan=np.array([np.isnan(x).sum()]),
        neg_inf=np.array([(x == -np.inf).sum()]),
        pos_inf=np.array([(x == np.inf).sum()]),
        near_zero=np.array([(np.abs(x) <= EPS).sum()]),
        at_most_eps=np.array([(x <= EPS).sum()]),
        mean=np.array([mean]),
        m2=np.array([((finite - mean) ** 2).sum()]),
        positive=np.array([[(v > 0).any() for v in by_channel]]).reshape(1, channels),
        active=np.array([[(np.abs(v) > EPS).any() for v in by_channel]]).reshape(1, channels),
    )


def sketches(parts: list[list[float]]) -> Columns:
    return concatenate([sketch(part, step) for step, part in enumerate(parts)])


def assert_same(found: Columns, expected: Columns, *, exact: bool = False) -> None:
    """Counts and flags equal; moments to float64 rounding, relative to the largest value."""
    for f in fields(Columns):
        a, b = getattr(found, f.name), getattr(expected, f.name)
        assert a.shape == b.shape, f.name
        assert f.name == "counts" or a.dtype == b.dtype, f.name
        if exact or f.name not in ("mean", "m2"):
            np.testing.assert_array_equal(a, b, f.name)
        else:
            scale = 1e5 if f.name == "mean" else 1e10
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13 * scale, err_msg=f.name)


# ---- the layout ---------------------------------------------------------------------------------


def test_the_standard_layout() -> None:
    edges = LAYOUT.edges
    assert LAYOUT.size == 773 == len(edges) - 1
    assert LAYOUT.zero == 386
    assert (np.diff(finite_edges(edges)) >= 0).all()
    np.testing.assert_array_equal(edges, -edges[::-1])
    assert edges[LAYOUT.zero] == edges[LAYOUT.zero + 1] == 0.0
    assert edges[LAYOUT.zero + 2] == 2.0**-32
    assert edges[-2] == 2.0**16


def test_the_middle_of_a_bucket_is_within_a_sixteenth_of_its_values() -> None:
    inside = LAYOUT.edges[LAYOUT.zero + 2 : -1]
    low, high = inside[:-1], inside[1:]
    assert ((high - low) / 2 / low).max() == 1 / 16


# ---- merging ------------------------------------------------------------------------------------


@quick
@given(batches)
def test_merging_equals_the_sketch_of_all_values(parts: list[list[float]]) -> None:
    everything = sketch([v for part in parts for v in part])
    merged = merge_runs(sketches(parts), np.array([0]))
    # Channels are dealt out per batch, so their flags are those of the batches, joined.
    flags = {n: getattr(sketches(parts), n).any(axis=0)[None] for n in ("positive", "active")}
    steps = {"calls": np.array([len(parts)]), "last_step": np.array([len(parts) - 1])}
    assert_same(merged, replace(everything, **flags, **steps))


@quick
@given(batches, st.randoms(use_true_random=False))
def test_merging_is_commutative(parts: list[list[float]], random) -> None:
    columns = sketches(parts)
    order = list(range(len(parts)))
    random.shuffle(order)
    shuffled = columns[np.array(order)]
    assert_same(merge_runs(shuffled, np.array([0])), merge_runs(columns, np.array([0])))


def test_merging_groups() -> None:
    columns = sketches([[1.0], [2.0], [3.0], [4.0], [5.0]])
    merged = merge_runs(columns, np.array([0, 2, 3]))
    assert merged.mean.tolist() == [1.5, 3.0, 4.5]
    assert merged.m2.tolist() == [0.5, 0.0, 0.5]
    assert merged.n.tolist() == [2, 1, 2]
    assert merged.calls.tolist() == [2, 1, 2]
    assert merged.first_step.tolist() == [0, 2, 3]
    assert merged.last_step.tolist() == [1, 2, 4]


def test_merging_keeps_a_small_deviation_about_a_large_mean() -> None:
    x = 1e6 + np.random.default_rng(0).normal(0, 1e-2, (500, 64))
    merged = merge_runs(concatenate([sketch(row, i) for i, row in enumerate(x)]), np.array([0]))
    assert merged.mean[0] == pytest.approx(x.mean(), rel=1e-15)
    assert merged.m2[0] / x.size == pytest.approx(x.var(), rel=1e-6)


def test_merging_no_columns() -> None:
    nothing = empty_columns(LAYOUT.size, 3)
    assert merge_runs(nothing, np.array([0])) is nothing


def test_joining_widens_the_flags_of_channels() -> None:
    joined = concatenate([sketch([1.0, 1.0], channels=1), sketch([1.0] * 3, 1, channels=3)])
    assert joined.positive.tolist() == [[True, False, False], [True, True, True]]
    with pytest.raises(ValueError, match="empty"):
        concatenate([])


# ---- coarser columns ----------------------------------------------------------------------------


def test_coarser_columns_share_the_shifted_step() -> None:
    columns = sketches([[float(i)] for i in range(11)])[3:]
    coarse = coarsen(columns, 2)
    assert coarse.first_step.tolist() == [3, 4, 8]
    assert coarse.last_step.tolist() == [3, 7, 10]
    assert coarse.mean.tolist() == [3.0, 5.5, 9.0]
    assert_same(coarsen(coarsen(columns, 1), 2), coarse)
    assert_same(coarsen(coarse, 2), coarse, exact=True)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(batches, st.data())
def test_it_does_not_matter_when_columns_are_made_coarser(
    parts: list[list[float]], data: st.DataObject
) -> None:
    """In pieces, in several strides, ranks before or after: the same columns in the end."""
    columns = sketches(parts)
    n = len(columns)
    sums = {"batch_norm": np.arange(4.0 * n).reshape(n, 4), "error": np.ones((n, 5))}
    columns = replace(columns, **sums)
    level = data.draw(st.integers(0, 4))
    whole = coarsen(columns, level)
    cut = data.draw(st.integers(0, n)) >> level << level
    halves = [coarsen(columns[:cut], level), coarsen(columns[cut:], level)]
    assert_same(concatenate(halves), whole)
    assert_same(coarsen(coarsen(columns, data.draw(st.integers(0, level))), level), whole)
    rank = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    ranks = [coarsen(columns[np.flatnonzero(rank == r)], level) for r in (True, False)]
    both = concatenate(ranks)
    added = coarsen(both[np.argsort(both.first_step >> level, kind="stable")], level)
    assert_same(added, whole)


def test_what_is_coarse_enough_is_left_alone() -> None:
    columns = sketches([[1.0], [2.0]])
    assert coarsen(columns, 0) is columns
    nothing = empty_columns(LAYOUT.size, 0)
    assert coarsen(nothing, 3) is nothing


# ---- quantiles and bins -------------------------------------------------------------------------


@quick
@given(st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=60), st.integers(0, 64))
def test_a_quantile_is_off_by_its_bucket_at_most(values: list[float], k: int) -> None:
    q = k / 64  # exact in binary, so that q times n is not rounded across a count
    exact = np.quantile(values, q, method="inverted_cdf")
    found = quantiles(sketch(values).counts, LAYOUT.edges, [q]).item()
    i = int(bucket(np.array([exact]))[0])
    assert finite_edges(LAYOUT.edges)[i] <= found <= finite_edges(LAYOUT.edges)[i + 1]


@quick
@given(st.lists(numbers, min_size=1, max_size=60), st.integers(0, 64))
def test_a_quantile_lies_within_its_bounds(values: list[float], k: int) -> None:
    exact = np.quantile(values, k / 64, method="inverted_cdf")
    ((low, high),) = quantile_bounds(sketch(values).counts, LAYOUT.edges, k / 64)
    assert low <= exact <= high


@quick
@given(
    st.lists(numbers | st.sampled_from([-1.0, 0.0, 1.0, 1.125]), min_size=1, max_size=60),
    numbers | st.sampled_from([*LAYOUT.edges[1:-1:7], -1.0, 0.0, 1.0, -1.125]),
)
def test_how_many_lie_below_a_threshold(values: list[float], threshold: float) -> None:
    counts = sketch(values).counts
    exact = sum(value < threshold for value in values)
    least, most, estimate = count_below(counts, LAYOUT.edges, threshold)
    assert least[0] <= exact <= most[0]
    assert least[0] <= estimate[0] <= most[0]
    i = int(bucket(np.array([threshold]))[0])
    assert most[0] - least[0] <= counts[0, i]
    if threshold == 0 or (threshold > 0 and threshold in LAYOUT.edges):
        assert least[0] == most[0]


def test_quantiles_beyond_the_range_and_of_nothing() -> None:
    counts = np.concatenate([sketch(v).counts for v in ([1e30], [-1e30], [np.nan], [])])
    np.testing.assert_array_equal(
        quantiles(counts, LAYOUT.edges, [0.5])[0], [2.0**16, -(2.0**16), np.nan, np.nan]
    )


@quick
@given(st.lists(st.floats(-6e4, 6e4, width=32), max_size=60), st.floats(-6e4, 6e4, width=32))
def test_a_bin_is_off_by_the_bucket_that_its_edge_cuts(values: list[float], edge: float) -> None:
    x, edges = np.array(values), LAYOUT.edges
    counts = sketch(values).counts
    below, above = rebin(counts, edges, np.array([-7e4, edge, 7e4]))[0]
    touched = counts[0, (edges[:-1] <= edge) & (edge <= edges[1:])].sum()
    assert below + above == pytest.approx(len(x))
    assert abs(below - (x < edge).sum()) <= touched + 1e-9


def test_bins_on_bucket_edges_are_exact() -> None:
    x = np.random.default_rng(0).uniform(-4, 4, 10_000)
    bins = np.array([-4.0, -2.0, -0.5, 0.0, 0.25, 1.0, 4.0])
    exact, _ = np.histogram(x, bins)
    np.testing.assert_allclose(rebin(sketch(x).counts, LAYOUT.edges, bins)[0], exact, rtol=1e-12)


def test_zeros_lie_in_the_bin_that_holds_zero() -> None:
    counts = sketch([0.0, 0.0]).counts
    for bins, expected in (([-1, 0, 1], [0, 2]), ([-1, 1], [2]), ([0, 1], [2]), ([-1, 0], [0])):
        found = rebin(counts, LAYOUT.edges, np.array(bins, np.float64))
        assert found.tolist() == [expected], bins
    assert rebin(counts, LAYOUT.edges, np.array([1.0, 2.0])).tolist() == [[0.0]]


# ---- as bytes -----------------------------------------------------------------------------------


@quick
@given(
    st.integers(0, 4),
    st.integers(0, 17),
    st.sampled_from([3, 300, 70_000, 2**33]),
    st.integers(0, 2**32 - 1),
)
def test_columns_come_back_from_bytes(n: int, channels: int, peak: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = np.zeros((n, LAYOUT.size), np.int64)
    counts[:, 300:420] = rng.integers(0, peak, (n, 120))
    integers = {
        f.name: rng.integers(0, peak, n) for f in fields(Columns) if f.type in ("Ints",)
    } | {"first_step": np.arange(n) + 2**40, "counts": counts}
    reals = {name: rng.normal(size=n) for name in ("mean", "m2")}
    reals["mean"][:1] = np.nan
    flags = {name: rng.random((n, channels)) < 0.5 for name in ("positive", "active")}
    columns = Columns(**integers, **reals, **flags)
    found = decode(encode(columns))
    assert_same(found, columns, exact=True)
    bare = columns.without_counts()
    assert bare.counts.shape == (n, 0)
    np.testing.assert_array_equal(bare.n, columns.n)
    assert_same(coarsen(bare, 1), coarsen(columns, 1).without_counts(), exact=True)
    assert_same(concatenate([bare, bare]), concatenate([columns, columns]).without_counts())


def test_columns_of_nothing_come_back() -> None:
    for columns in (empty_columns(LAYOUT.size, 0), empty_columns(LAYOUT.size, 9), sketch([])):
        assert_same(decode(encode(columns)), columns, exact=True)


def test_negative_integers_come_back() -> None:
    columns = replace(sketch([1.0]), first_step=np.array([-7]))
    assert decode(encode(columns)).first_step.tolist() == [-7]


def test_only_the_buckets_in_use_are_stored_in_narrow_integers() -> None:
    arrays = unpack(encode(sketch([1.0, 1.2, 1.9] * 100, channels=9)))
    assert arrays["counts"].shape == (1, 8)
    assert arrays["counts"].dtype == np.uint8
    assert arrays["positive"].shape == (1, 2)
    assert arrays["first_step"].dtype == np.uint8
    wide = encode(sketch([1.0] * 300))
    assert unpack(wide)["counts"].dtype == np.uint16


def test_every_damaged_byte_and_every_cut_is_found() -> None:
    payload = encode(sketches([[1.0, -2.0], [0.0, 3.0]]))
    for i in range(len(payload)):
        damaged = bytearray(payload)
        damaged[i] ^= 0x55
        try:  # some bits of a compressed text may be others
            assert unpack(bytes(damaged)).keys() == unpack(payload).keys()
            assert_same(decode(bytes(damaged)), decode(payload), exact=True)
        except RunError as error:
            assert "cannot be decoded" in str(error)  # noqa: PT017
        with pytest.raises(RunError, match="cannot be decoded"):
            decode(payload[:i])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": None}, "missing 1 required"),
        ({"shape": None}, "'shape'"),
        ({"first_step": None}, "'first_step'"),
        ({"shape": np.array([1, 2])}, "not enough values to unpack"),
        ({"shape": np.zeros((3, 1))}, ""),
        ({"shape": np.array([-1, 773, 2])}, "its buckets from -1 on are not among 773"),
        ({"shape": np.array([773, 773, 2])}, "its buckets from 773 on are not among 773"),
        ({"shape": np.array([386, 773, 9])}, r"positive is uint8 of shape \(2, 1\), expected"),
        ({"shape": np.array([386, 773, -1])}, "positive is uint8 of shape"),
        ({"shape": np.array([386, 2**40, 2])}, "columns, buckets and channels, expected at most"),
        ({"finite": np.zeros(2)}, "finite is float64"),
        ({"nan": np.zeros(3, np.int64)}, r"nan is int64 of shape \(3,\), expected \(2,\)"),
        ({"nan": np.zeros(2)}, r"nan is float64 of shape \(2,\)"),
        ({"mean": np.zeros(2, np.int64)}, "mean is int64"),
        ({"counts": np.zeros(2, np.int64)}, "counts is int64"),
        ({"counts": np.zeros((), np.int64)}, "tuple index out of range"),
        ({"first_step": np.zeros((), np.int64)}, "unsized object"),
        ({"more": np.zeros(2, np.int64)}, "unexpected keyword argument 'more'"),
    ],
)
def test_packets_that_are_no_chunk(changes: dict[str, np.ndarray | None], words: str) -> None:
    arrays = unpack(encode(sketches([[1.0, -2.0], [0.0, 3.0]]))) | changes
    payload = pack({name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(
        RunError,
        match=rf"A chunk of sketch columns \(.* cannot be decoded \(.*{words}.*Restore run",
    ):
        decode(payload)


def test_a_group_of_one_is_that_column_whatever_is_merged_beside_it() -> None:
    values = [[0.1, 0.7, 1 / 3], [1e-3, 5.0], [2.0], [0.3, 0.1]]
    columns = replace(sketches(values), first_step=np.array([0, 1, 2, 4]))
    merged = coarsen(columns, 1)
    assert merged.first_step.tolist() == [0, 2, 4]
    for name in ("mean", "m2", "counts"):
        np.testing.assert_array_equal(getattr(merged, name)[1:], getattr(columns, name)[2:])
