"""Columns without bucket counts: everything else to the last bit."""

from __future__ import annotations

from dataclasses import fields, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convlens.core.columns import BucketLayout, Columns, coarsen, concatenate, decode, encode
from convlens.core.encoding import pack, unpack
from convlens.core.outlines import Outline, decode_outlines, outline
from convlens.errors import RunError

LAYOUT = BucketLayout()


def columns(seed: int, n: int = 64, channels: int = 9) -> Columns:
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.integers(0, LAYOUT.size, 2))
    counts = np.zeros((n, LAYOUT.size), np.int64)
    counts[:, low:high] = rng.integers(0, 10 ** rng.integers(1, 9), (n, high - low))
    whole = counts.sum(axis=1)
    step = rng.integers(0, 10**6) + np.arange(n)
    few = rng.integers(0, 5, (3, n))
    flags = rng.random((2, n, channels)) < 0.5
    mean, m2 = rng.normal(size=n), rng.random(n)
    return Columns(
        step, step, np.ones(n, np.int64), counts, *few, whole // 3, whole // 2, mean, m2, *flags
    )


def assert_same(found: Outline, expected: Outline) -> None:
    for f in fields(Outline):
        one, other = getattr(found, f.name), getattr(expected, f.name)
        np.testing.assert_array_equal(one, other, f.name)
        assert one.dtype == other.dtype, f.name


def test_many_chunks_come_back_without_their_counts() -> None:
    chunks = [columns(seed, n, c) for seed, (n, c) in enumerate([(64, 9)] * 9 + [(5, 0), (0, 3)])]
    found = decode_outlines([encode(chunk) for chunk in chunks], LAYOUT.size)
    for one, chunk in zip(found, chunks, strict=True):
        assert_same(one, outline(chunk))
        np.testing.assert_array_equal(one.n, chunk.n)


@pytest.mark.parametrize("channels", [(16, 10), (10, 12, 14), (4, 6, 8), (0, 1), (8, 9)])
def test_chunks_whose_flags_fill_the_same_bytes_are_told_apart(channels: tuple[int, ...]) -> None:
    """Flags of 10 and of 16 channels are packed into two bytes both."""
    chunks = [columns(seed, channels=c) for seed, c in enumerate(channels * 3)]
    found = decode_outlines([encode(chunk) for chunk in chunks], LAYOUT.size)
    for one, chunk in zip(found, chunks, strict=True):
        assert_same(one, outline(chunk))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=12), st.randoms())
def test_any_chunks_come_back_as_one_by_one(shapes: list[tuple[int, int]], order: Random) -> None:
    order.shuffle(shapes)
    chunks = [columns(seed, n, c) for seed, (n, c) in enumerate(shapes)]
    found = decode_outlines([encode(chunk) for chunk in chunks], LAYOUT.size)
    assert len(found) == len(chunks)
    for one, chunk in zip(found, chunks, strict=True):
        assert_same(one, outline(decode(encode(chunk))))


def test_they_join_and_merge_as_whole_columns_do() -> None:
    first, second = columns(0), columns(1, channels=4)
    second = replace(second, first_step=first.first_step + 64, last_step=first.last_step + 64)
    whole = coarsen(concatenate([first, second]), 3)
    assert_same(coarsen(concatenate([outline(first), outline(second)]), 3), outline(whole))


def test_chunks_of_other_buckets_are_a_sentence() -> None:
    payload = encode(columns(0))
    arrays = unpack(payload)
    for name in ("positive", "nan"):
        wrong = pack({name: arrays[name][:5]} | {k: v for k, v in arrays.items() if k != name})
        with pytest.raises(RunError, match=rf"cannot be decoded \({name} is .* expected"):
            decode_outlines([payload, wrong], LAYOUT.size)
    with pytest.raises(RunError, match="773 buckets where 9 are expected"):
        decode_outlines([payload], 9)
    del arrays["mean"]
    with pytest.raises(RunError, match="missing 1 required"):
        decode_outlines([pack(arrays)], LAYOUT.size)
