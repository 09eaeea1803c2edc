"""A long training that is watched: bounded memory and disk, and not a value lost.

The layers put out batches drawn beforehand, so that what every column must hold is known exactly
however long the training is: how often each batch fell into it, times that batch's own counts.
"""

import gc
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import convlens as cl
from convlens.core.buckets import BucketLayout
from convlens.core.columns import level_at
from convlens.core.histories import LayerInfo
from convlens.core.steps import StepSeries
from convlens.runs import create_run
from convlens.watching.aggregator import Aggregator

LAYOUT = BucketLayout()
EPS = 0.05
N_BATCHES = 64  # drawn for each layer
CHANNELS, PLANE = 16, 64
WARM_UP = 256  # steps after which memory is what it is for any training
BLOCK = 64  # steps that are written together, as `Recorder` does


class Layers:
    """What some layers put out: at each step one of a layer's batches, drawn at random.

    The scale grows from batch to batch, so that the counts of columns differ in many buckets.
    """

    def __init__(self, n_layers, n_steps):
        generator = torch.Generator().manual_seed(0)
        scales = 2.0 ** torch.linspace(-3, 3, N_BATCHES)
        shape = N_BATCHES, CHANNELS, PLANE
        self.batches = [
            torch.randn(shape, generator=generator) * scales[:, None, None] + 0.1 * layer
            for layer in range(n_layers)
        ]
        self.drawn = np.random.default_rng(0).integers(0, N_BATCHES, n_steps, np.uint8)

    def at(self, layer, step):
        return self.batches[layer][(int(self.drawn[step]) + layer) % N_BATCHES]

    def expected(self, layer):
        """Of each column: first and last step, bucket counts, near zero, sum and sum of squares."""
        n_steps = len(self.drawn)
        level = level_at(n_steps - 1)
        column = np.arange(n_steps) >> level
        times = np.zeros((column[-1] + 1, N_BATCHES), np.int64)  # each batch in each column
        np.add.at(times, (column, (self.drawn.astype(np.int64) + layer) % N_BATCHES), 1)
        flat = self.batches[layer].reshape(N_BATCHES, -1).numpy()
        counts = np.stack([bucket_counts(values) for values in flat])
        wide = flat.astype(np.float64)
        return {
            "first_step": np.arange(column[-1] + 1) << level,
            "calls": times.sum(axis=1),
            "counts": times @ counts,
            "near_zero": times @ (np.abs(flat) <= np.float32(EPS)).sum(axis=1),
            "at_most_eps": times @ (flat <= np.float32(EPS)).sum(axis=1),
            "sum": times @ wide.sum(axis=1),
            "squares": times @ (wide**2).sum(axis=1),
        }


def bucket_counts(x):
    """By searching the edges, the definition of the layout."""
    above = np.searchsorted(LAYOUT.edges, x, side="right") - 1
    below = np.searchsorted(LAYOUT.edges, x, side="left") - 1
    bucket = np.where(x > 0, above, np.where(x < 0, below, LAYOUT.zero))
    return np.bincount(bucket, minlength=LAYOUT.size)


class Peaks:
    """The largest memory of this process and the largest record, while a block runs."""

    def __init__(self, folder):
        self._folder, self._over = Path(folder), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.disk = 0
        self.memory = self.memory_before = 0

    def __enter__(self):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self.memory_before = memory("VmRSS")
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()
        self.memory = memory("VmHWM")

    def _sample(self):
        while not self._over.wait(0.02):
            self.disk = max(self.disk, disk(self._folder))


def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def disk(folder):
    """Bytes of the database, its write-ahead log and its index."""
    total = 0
    for name in ("run.db", "run.db-wal", "run.db-shm"):
        with suppress(FileNotFoundError):
            total += (folder / name).stat().st_size
    return total


def train(aggregator, slots, writer, layers, steps):
    """What watched layers and `Recorder` do at these steps."""
    for step in steps:
        aggregator.begin(step)
        for layer, slot in enumerate(slots):
            aggregator.sketch(slot, layers.at(layer, step))
        if step % BLOCK == BLOCK - 1:
            writer.write_steps(block_of_steps(step + 1 - BLOCK, step + 1))
            writer.flush()


def block_of_steps(first, stop):
    step = np.arange(first, stop)
    loss = np.exp(-step / 1e5) + np.sin(step * 1.7) * 0.1
    hypers = {"lr": np.full((len(step), 1), 0.06), "momentum": np.full((len(step), 1), 0.9)}
    return StepSeries(step, step // 10_000, loss, step * 1e-3, hypers)


def record(folder, n_steps, n_layers):
    """A whole training; what its layers put out, and the memory and disk it took."""
    layers, writer = Layers(n_layers, n_steps), create_run(directory=folder)
    aggregator = Aggregator(EPS, sink=writer)
    slots = aggregator.open(LayerInfo(i, f"layers.{i}", "Conv1d") for i in range(n_layers))
    for slot in slots:
        slot.channel_rule = 1
    train(aggregator, slots, writer, layers, range(WARM_UP))
    with Peaks(folder) as peaks:
        train(aggregator, slots, writer, layers, range(WARM_UP, n_steps))
        aggregator.close()
        writer.close()
    return layers, peaks


def check(run, layers, n_steps):
    for index in range(len(layers.batches)):
        found, expected = run.activation_stats[index].columns, layers.expected(index)
        for name in ("first_step", "calls", "counts", "near_zero", "at_most_eps"):
            np.testing.assert_array_equal(getattr(found, name), expected[name], name)
        last = np.append(expected["first_step"][1:], n_steps) - 1
        np.testing.assert_array_equal(found.last_step, last)
        assert not found.nan.any()
        assert not found.neg_inf.any()
        assert not found.pos_inf.any()
        assert found.positive.all()
        assert found.active.all()
        n = expected["counts"].sum(axis=1)
        mean = expected["sum"] / n
        m2 = expected["squares"] - n * mean**2
        spread = np.sqrt(m2 / n)
        np.testing.assert_allclose(found.mean, mean, rtol=0, atol=1e-12 * spread.max())
        np.testing.assert_allclose(found.m2, m2, rtol=1e-10)
    assert run.steps.step.tolist() == list(range(n_steps // BLOCK * BLOCK))


def test_twenty_thousand_steps_are_all_there(tmp_path):
    folder, n_steps = tmp_path / "run", 20_000
    layers, _ = record(folder, n_steps, n_layers=5)
    run = cl.open_run(folder)
    assert len(run.activation_stats[0]) == n_steps >> level_at(n_steps - 1)
    check(run, layers, n_steps)


@pytest.mark.slow
def test_a_million_steps(tmp_path):
    folder, n_steps = tmp_path / "run", 1_000_000
    layers, peaks = record(folder, n_steps, n_layers=50)
    check(cl.open_run(folder), layers, n_steps)
    assert peaks.memory - peaks.memory_before < 400e6
    assert peaks.disk < 600e6
