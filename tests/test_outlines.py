"""Columns without bucket counts: everything else to the last bit."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from convlens.errors import RunError
from convlens.outlines import Outline, decode_outlines, outline
from convlens.packets import pack, unpack
from convlens.sketch import BucketLayout, Columns, coarsen, concatenate, encode

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


def test_chunks_of_the_first_format_come_back() -> None:
    chunk = columns(0)
    arrays = unpack(encode(chunk))
    del arrays["finite"]
    old = {f.name: arrays[f.name] for f in fields(Columns)} | {"shape": arrays["shape"]}
    found = decode_outlines([encode(columns(1)), pack(old), encode(columns(2))], LAYOUT.size)
    for one, expected in zip(found, [columns(1), chunk, columns(2)], strict=True):
        assert_same(one, outline(expected))


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
