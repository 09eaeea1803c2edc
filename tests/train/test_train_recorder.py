"""The recorder's memory: grows by blocks, is read without a copy, and never forgets a column."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields

import numpy as np
import pytest

from convlens.core.steps import StepSeries, join_steps
from convlens.train.recorder import BLOCK, _History


def block(first: int, count: int = BLOCK, **widths: int) -> StepSeries:
    step = np.arange(first, first + count)
    rng = np.random.default_rng(first)
    hypers = {name: rng.random((count, width)) for name, width in widths.items()}
    return StepSeries(step, step // 100, rng.random(count), step * 0.1, hypers)


def assert_same(found: StepSeries, expected: StepSeries) -> None:
    for f in fields(StepSeries):
        if f.name != "hypers":
            one, other = getattr(found, f.name), getattr(expected, f.name)
            np.testing.assert_array_equal(one, other, f.name)
    assert sorted(found.hypers) == sorted(expected.hypers)
    for name, values in expected.hypers.items():
        np.testing.assert_array_equal(found.hypers[name], values, name)


def test_blocks_of_any_size_and_hyperparameters_are_joined() -> None:
    blocks = [block(0, lr=1), block(64, 10, lr=1), block(74, lr=2, momentum=1), block(138, 3, lr=1)]
    blocks += [block(141 + 64 * k, lr=2) for k in range(20)]
    history = _History()
    for position, one in enumerate(blocks):
        history.add(one)
        assert_same(history.series, join_steps(blocks[: position + 1]))


def test_an_open_block_is_seen_and_added_once() -> None:
    history, whole = _History(), block(0, 200, lr=1)
    for count in (1, 30, 200):
        assert_same(history.with_block(block_of(whole, count)), block_of(whole, count))
        assert len(history.series) == 0
    history.add(whole)
    assert_same(history.series, whole)


def block_of(whole: StepSeries, count: int) -> StepSeries:
    hypers = {name: values[:count] for name, values in whole.hypers.items()}
    one, two = whole.step[:count], whole.epoch[:count]
    return StepSeries(one, two, whole.loss[:count], whole.wall_s[:count], hypers)


def test_what_was_read_stays_as_it_was_and_cannot_be_written_to() -> None:
    history, first = _History(), block(0, lr=1)
    history.add(first)
    seen = history.series
    for k in range(1, 100):
        history.add(block(64 * k, lr=1))
    assert_same(seen, first)
    with pytest.raises(ValueError, match="read-only"):
        seen.loss[0] = 1.0


def test_reading_costs_no_memory_and_a_step_costs_what_its_numbers_take() -> None:
    tracemalloc.start()
    history, n = _History(), 0
    for k in range(1000):
        history.add(block(64 * k, lr=1))
        n += BLOCK
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for _ in range(100):
        history.series.loss[-1000:].mean()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2.2 * n * 5 * 8
    assert peak - held < 20_000
