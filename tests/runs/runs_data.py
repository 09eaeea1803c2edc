"""Columns, steps and epochs made up for the tests of runs, and how to write them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from convlens.core.buckets import BucketLayout
from convlens.core.columns import CHUNK_BITS, Columns, encode
from convlens.core.records import Epoch, RecordSink
from convlens.core.steps import StepSeries

LAYOUT = BucketLayout()
SMALL = BucketLayout(mantissa_bits=0, min_exponent=-2, max_exponent=1)


def make_columns(
    first: int, count: int, width: int = 1, channels: int = 5, layout: BucketLayout = LAYOUT
) -> Columns:
    rng = np.random.default_rng(first)
    steps = first + width * np.arange(count)
    counts = np.zeros((count, layout.size), np.int64)
    used = slice(layout.size // 3, layout.size // 2)
    counts[:, used] = rng.integers(0, 90, counts[:, used].shape)
    n = counts.sum(axis=1)
    ones = np.ones(count, np.int64)
    return Columns(
        first_step=steps,
        last_step=steps + width - 1,
        calls=ones * width,
        counts=counts,
        nan=ones * 2,
        neg_inf=ones * 0,
        pos_inf=ones,
        near_zero=n // 3,
        at_most_eps=n // 2,
        mean=rng.normal(size=count),
        m2=rng.uniform(1, 2, count) * n,
        positive=rng.random((count, channels)) < 0.8,
        active=rng.random((count, channels)) < 0.9,
    )


def put(
    sink: RecordSink, layer: int, level: int, columns: Columns, quantity: str = "activation"
) -> None:
    """Write columns of a level, chunk by chunk."""
    chunks = columns.first_step >> (level + CHUNK_BITS)
    for chunk in np.unique(chunks).tolist():
        part = columns[np.flatnonzero(chunks == chunk)]
        sink.write_columns(quantity, layer, level, chunk, encode(part))


def make_steps(first: int, count: int) -> StepSeries:
    rng = np.random.default_rng(first)
    step = np.arange(first, first + count)
    hypers = {"lr": rng.random((count, 2)), "momentum": rng.random((count, 2))}
    return StepSeries(step, step // 10, rng.random(count), step * 0.1, hypers)


def make_epoch(number: int, **changes: object) -> Epoch:
    epoch = Epoch(number, number * 10, number * 10 + 9, 0.5, 0.25, {"accuracy": 0.9}, 1.5)
    return replace(epoch, **changes)


def assert_same(found: Columns, expected: Columns) -> None:
    for f in fields(Columns):
        np.testing.assert_array_equal(getattr(found, f.name), getattr(expected, f.name), f.name)


def assert_close(found: Columns, expected: Columns) -> None:
    """The same columns, where the moments were added up in another order."""
    for f in fields(Columns):
        one, other = getattr(found, f.name), getattr(expected, f.name)
        if f.name in ("mean", "m2"):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9, err_msg=f.name)
        else:
            np.testing.assert_array_equal(one, other, f.name)


def start_python(source: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that imports what this one does, and the helpers of these tests."""
    paths = [str(Path(__file__).parent), *(p for p in sys.path if p)]
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
