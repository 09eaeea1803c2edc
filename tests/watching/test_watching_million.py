"""A long training that is watched: bounded memory and disk, no step held up, and not a value lost.

The layers put out batches drawn beforehand, so that what every column must hold is known exactly
however long the training is: how often each batch fell into it, times that batch's own counts.
"""

import gc
import os
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import convlens as cl
from convlens.core.columns import BucketLayout, level_at, rebin
from convlens.core.histories import LayerInfo
from convlens.core.records import StepSeries
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


class Clock:
    """Times of every step, and the part of them that went into the record.

    Attributes:
        step_s: of each step, all of it.
        record_s: of each step, in the record: its work here, and any wait for the writer.
        queued_s: of that, what this thread was ready to run but another program had the processor.
    """

    def __init__(self, n_steps):
        self.step_s = np.zeros(n_steps, np.float32)
        self.record_s = np.zeros(n_steps, np.float32)
        self.queued_s = np.zeros(n_steps, np.float32)
        self._scheduler = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    @contextmanager
    def record(self, step):
        queued, start = self._queued(), time.perf_counter()
        yield
        self.record_s[step] += time.perf_counter() - start
        self.queued_s[step] += self._queued() - queued

    def close(self):
        os.close(self._scheduler)

    def _queued(self):
        return int(os.pread(self._scheduler, 100, 0).split()[1]) * 1e-9


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


def train(book, slots, writer, layers, steps, clock):
    """What watched layers and `Recorder` do at these steps."""
    for step in steps:
        start = time.perf_counter()
        with clock.record(step):
            book.begin(step)
        for layer, slot in enumerate(slots):
            book.sketch(slot, layers.at(layer, step))
        if step % BLOCK == BLOCK - 1:
            with clock.record(step):
                writer.write_steps(block_of_steps(step + 1 - BLOCK, step + 1))
                writer.flush()
        clock.step_s[step] = time.perf_counter() - start


def block_of_steps(first, stop):
    step = np.arange(first, stop)
    loss = np.exp(-step / 1e5) + np.sin(step * 1.7) * 0.1
    hypers = {"lr": np.full((len(step), 1), 0.06), "momentum": np.full((len(step), 1), 0.9)}
    return StepSeries(step, step // 10_000, loss, step * 1e-3, hypers)


def record(folder, n_steps, n_layers):
    """A whole training; what it took."""
    layers, clock = Layers(n_layers, n_steps), Clock(n_steps)
    writer = create_run(directory=folder)
    book = Aggregator(EPS, sink=writer)
    slots = book.open(LayerInfo(i, f"layers.{i}", "Conv1d") for i in range(n_layers))
    for slot in slots:
        slot.channel_rule = 1
    train(book, slots, writer, layers, range(WARM_UP), clock)
    with Peaks(folder) as peaks:
        train(book, slots, writer, layers, range(WARM_UP, n_steps), clock)
        book.close()
        writer.close()
    clock.close()
    return layers, clock, peaks


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


def seconds(action):
    """The least of three times."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def report(clock, peaks, folder, read_s, draw_s):
    ms, mib = 1e3, 2**20
    steps = clock.step_s[WARM_UP:]
    held = clock.record_s[WARM_UP:]
    own = held - clock.queued_s[WARM_UP:]
    print(
        f"\n{len(clock.step_s):,} steps in {clock.step_s.sum():.0f} s: "
        f"median {np.median(steps) * ms:.2f} ms, "
        f"99.9 % below {np.quantile(steps, 0.999) * ms:.1f} ms, longest {steps.max() * ms:.1f} ms"
        f"\nof a step, the record: median {np.median(held) * ms:.4f} ms, "
        f"99.9 % below {np.quantile(held, 0.999) * ms:.2f} ms, longest {held.max() * ms:.1f} ms"
        f"\nwithout what other programs took of it: longest {own.max() * ms:.1f} ms"
        f"\nmemory: {peaks.memory_before / mib:.0f} MiB before, "
        f"{peaks.memory / mib:.0f} MiB at the most"
        f"\ndisk: {peaks.disk / mib:.0f} MiB at the most, {disk(folder) / mib:.0f} MiB in the end"
        f"\nreading one layer in 100 bins: {read_s * ms:.0f} ms; drawing it: {draw_s * ms:.0f} ms"
    )


def draw(run):
    from matplotlib import pyplot as plt

    ax = run.activation_stats.color_dim(2)
    ax.figure.canvas.draw()
    plt.close(ax.figure)


def read(folder):
    history = cl.open_run(folder).activation_stats[2]
    return rebin(history.counts, LAYOUT.edges, np.linspace(-4, 4, 101))


def test_twenty_thousand_steps_are_all_there(tmp_path):
    folder, n_steps = tmp_path / "run", 20_000
    layers, _, _ = record(folder, n_steps, n_layers=5)
    run = cl.open_run(folder)
    assert len(run.activation_stats[0]) == n_steps >> level_at(n_steps - 1)
    check(run, layers, n_steps)


@pytest.mark.slow
def test_a_million_steps(tmp_path):
    folder, n_steps = tmp_path / "run", 1_000_000
    layers, clock, peaks = record(folder, n_steps, n_layers=50)
    run = cl.open_run(folder)
    read_s, draw_s = seconds(lambda: read(folder)), seconds(lambda: draw(run))
    report(clock, peaks, folder, read_s, draw_s)
    check(run, layers, n_steps)
    assert peaks.memory - peaks.memory_before < 400e6
    assert peaks.disk < 600e6
    assert (clock.record_s - clock.queued_s)[WARM_UP:].max() < 0.05
    assert read_s < 0.2
