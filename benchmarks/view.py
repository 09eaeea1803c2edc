"""What it costs to look at a run: reading it at first, keeping up with it while it grows.

The run is made up, but written as a training writes it: through `Ledger` and `RunWriter`, chunk by
chunk, levels rising, merging in its own thread. Its columns are histograms of normal distributions
whose width and mean drift, with the noise of counting, so that they compress as real ones do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from convlens.histories import LayerInfo
from convlens.records import Epoch, StepSeries
from convlens.runs import RunWriter, create_run, open_run
from convlens.runs.follow import RunFollower
from convlens.sketch import CHUNK_BITS, BucketLayout, Columns, level_at
from convlens.watching.ledger import Ledger, Series, chunk_of
from pairs import machine

LAYOUT = BucketLayout()
EPS = 0.05
CHANNELS = 64
PER_CALL = 200_000  # values of a layer in one step
N_SHAPES = 64  # distributions of a layer, from the first step to the last
CHUNK = 1 << CHUNK_BITS


class MadeUp:
    """A training that never was: what its layers, gradients and updates would have put out.

    Args:
        writer: the run to write to.
        n_steps: how long it is, for the drift.
        n_layers: watched layers; every fifth has gradients and updates too.
    """

    def __init__(self, writer: RunWriter, n_steps: int, n_layers: int) -> None:
        self.writer, self.n_steps = writer, n_steps
        self.ledger = Ledger(LAYOUT, EPS, sink=writer)
        names = [f"stage{i // 10}.conv{i % 10}" for i in range(n_layers)]
        infos = [LayerInfo(i, name, "Conv2d", i % 2 == 0) for i, name in enumerate(names)]
        for quantity in ("gradient", "update", "parameter"):
            infos += [
                LayerInfo(i, f"{name}.weight", "Parameter", False, quantity)
                for i, name in enumerate(names[::5])
            ]
        self.infos = infos
        self.rng = np.random.default_rng(0)
        normal = np.sort(np.random.default_rng(1).standard_normal(200_000))
        widths = 2.0 ** np.linspace(-1, 3, N_SHAPES)
        edges = (LAYOUT.edges[None] - 0.1) / widths[:, None]
        shares = np.diff(np.searchsorted(normal, edges) / len(normal), axis=1)
        self.means = (shares * PER_CALL).astype(np.float32)
        self.noise = np.sqrt(self.means)
        self.widths = widths
        self.ledger.declare(infos)

    def grow(self, first: int, stop: int) -> None:
        """The steps from ``first`` to ``stop``: closed chunks are kept, an open one is shown."""
        step = first
        while step < stop:
            level = level_at(step)
            chunk = chunk_of(step, level)
            begin, end = chunk << (level + CHUNK_BITS), (chunk + 1) << (level + CHUNK_BITS)
            columns = self._columns(begin, min(end, stop), level)
            if end <= stop:
                self.ledger.add(level, chunk, columns)
            else:
                self.ledger.show(level, chunk, columns)
            step = end
        self.writer.write_steps(self._steps(first, min(step, stop)))
        self.ledger.wait()
        self.writer.flush()

    def close(self) -> None:
        """What was made up is written, as finished."""
        n = self.n_steps // 10
        for epoch in range(10):
            accuracy = {"accuracy": 1 - 0.5 / (epoch + 1)}
            last = (epoch + 1) * n - 1
            loss = 2.3 / (epoch + 1)
            self.writer.write_epoch(Epoch(epoch, epoch * n, last, loss, loss, accuracy, n * 1e-3))
        self.ledger.close()
        self.writer.close()

    def _columns(self, begin: int, stop: int, level: int) -> dict[Series, Columns]:
        first = np.arange(begin, stop, 1 << level)
        last = np.append(first[1:], stop) - 1
        return {(i.quantity, i.index): self._of(i, first, last) for i in self.infos}

    def _of(self, info: LayerInfo, first: np.ndarray, last: np.ndarray) -> Columns:
        time_ = first / max(self.n_steps, 1) * (N_SHAPES - 1)
        shape = (time_.astype(np.int64) + info.index) % N_SHAPES
        calls = last - first + 1
        noise = self.rng.standard_normal((len(first), LAYOUT.size), np.float32)
        counts = self.means[shape] * calls[:, None]
        counts += noise * self.noise[shape] * np.sqrt(calls)[:, None].astype(np.float32)
        counts = np.maximum(counts, 0).astype(np.int64)
        n = counts.sum(axis=1)
        none = np.zeros(len(first), np.int64)
        channels = 0 if info.quantity in ("update", "parameter") else CHANNELS
        alive = np.arange(channels)[None] >= (shape // 8)[:, None]
        near = np.searchsorted(LAYOUT.edges, [-EPS, EPS])
        return Columns(
            first, last, calls, counts, none, none, none,
            near_zero=counts[:, near[0] : near[1]].sum(axis=1),
            at_most_eps=counts[:, : near[1]].sum(axis=1),
            mean=0.1 + self.rng.standard_normal(len(first)) * 1e-3,
            m2=n * self.widths[shape] ** 2,
            positive=alive,
            active=alive,
        )  # fmt: skip

    def _steps(self, first: int, stop: int) -> StepSeries:
        step = np.arange(first, stop)
        loss = 2.3 * np.exp(-step / 1e4) + 0.1 * self.rng.random(len(step))
        lr = np.sin(np.pi * (step + 1) / (self.n_steps + 1))[:, None]
        epoch = step // max(self.n_steps // 10, 1)
        return StepSeries(step, epoch, loss, step * 1e-3, {"lr": lr, "momentum": 0.95 - 0.1 * lr})


def make_run(path: Path, n_steps: int = 100_000, n_layers: int = 50) -> Path:
    """Write a finished run; its folder."""
    made_up = MadeUp(create_run(directory=path), n_steps, n_layers)
    block = 1 << 13
    for first in range(0, n_steps, block):
        made_up.grow(first, min(first + block, n_steps))
    made_up.close()
    return path
