"""Following a run: at every moment what `Run` reads, however little of it was read anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs_data import (
    SMALL,
    assert_same,
    make_columns,
    make_epoch,
    make_steps,
    put,
)

from convlens.histories import FIGURES, LayerHistory, LayerInfo
from convlens.records import StepCurves
from convlens.runs import Run, create_run, join_run, open_run
from convlens.runs.follow import RunFollower
from convlens.sketch import CHUNK_BITS, Columns, coarsen
from convlens.watching.ledger import Ledger, chunk_of

LAYERS = [LayerInfo(0, "a", "Conv2d", True), LayerInfo(1, "b", "Linear")]


def at_steps(seed: int, first: int, stop: int, width: int = 1, channels: int = 5) -> Columns:
    """A column for every ``width`` steps, drawn by its seed."""
    start = np.arange(first, stop, width)
    columns = make_columns(10_000 * seed + first, len(start), channels=channels, layout=SMALL)
    last = np.append(start[1:], stop) - 1
    return replace(columns, first_step=start, last_step=last, calls=last - start + 1)


def expected_figures(history: LayerHistory) -> dict[str, np.ndarray]:
    channels = history.channels or np.nan
    return {
        "mean": history.mean,
        "std": history.std,
        "near_zero": history.near_zero,
        "near_zero_after_relu": history.near_zero_after_relu,
        "dead": history.dead_channels / channels,
        "silent": history.silent_channels / channels,
        "norm": history.norm,
        "nonfinite": history.nonfinite,
    }


def assert_figures(follower: RunFollower, run: Run, quantity: str = "activation") -> None:
    """Each series' figures stand where its columns are, and nothing stands anywhere else."""
    found = follower.figures(quantity)
    assert list(found.layers) == run.series(quantity)
    assert set(found.values) == set(FIGURES)
    histories = [run.history(info.index, quantity) for info in found.layers]
    assert np.all(found.first_step <= found.last_step)
    assert np.all(found.last_step[:-1] < found.first_step[1:])
    if len(found):
        seen = [history for history in histories if len(history)]
        assert found.first_step[0] == min(history.first_step[0] for history in seen)
        assert found.last_step[-1] == max(history.last_step[-1] for history in seen)
    for i, history in enumerate(histories):
        at = np.searchsorted(found.first_step, history.first_step, "right") - 1
        assert np.all(found.last_step[at] >= history.last_step)
        for name, values in expected_figures(history).items():
            row = found.values[name][i]
            np.testing.assert_allclose(row[at], values, rtol=1e-6, err_msg=name)
            assert np.isnan(np.delete(row, at)).all()


def assert_curves(found: StepCurves, expected: StepCurves) -> None:
    assert found.width == expected.width
    np.testing.assert_array_equal(found.first_step, expected.first_step)
    np.testing.assert_array_equal(found.loss.mean, expected.loss.mean)
    np.testing.assert_array_equal(found.hypers["lr"].high, expected.hypers["lr"].high)


def assert_follows(follower: RunFollower, run: Run) -> None:
    """Everything that can be asked for is what `Run` reads now, to the last bit."""
    for info in run.layers:
        found, expected = follower.history(info.index), run.history(info.index)
        assert found.layer == expected.layer
        assert_same(found.columns, expected.columns)
    assert_figures(follower, run)
    assert list(follower.epochs) == run.epochs
    assert dict(follower.meta) == run.meta
    if len(run.steps):
        assert_curves(follower.curves(10), run.curves(10))


class Recording:
    """What a training of some ranks writes, step by step, through ledgers."""

    def __init__(self, base: Path, ranks: int = 1) -> None:
        first = create_run("follow", base, ranks=ranks)
        self.writers = [first, *(join_run(first.path, rank) for rank in range(1, ranks))]
        self.ledgers = [Ledger(SMALL, 0.05, sink=writer) for writer in self.writers]
        for ledger in self.ledgers:
            ledger.declare(LAYERS)
        self.path = first.path

    def write(self, rank: int, first: int, stop: int, level: int, layers: tuple[int, ...]) -> None:
        """The steps' columns; closed chunks are kept, an open one is shown."""
        ledger, step = self.ledgers[rank], first
        while step < stop:
            chunk = chunk_of(step, level)
            end = (chunk + 1) << (level + CHUNK_BITS)
            begin = chunk << (level + CHUNK_BITS)
            columns = {
                ("activation", layer): at_steps(
                    2 * rank + layer, begin, min(end, stop), 1 << level, 5 + 4 * layer
                )
                for layer in layers
            }
            (ledger.add if end <= stop else ledger.show)(level, chunk, columns)
            step = end

    def flush(self) -> None:
        for ledger, writer in zip(self.ledgers, self.writers, strict=True):
            ledger.wait()
            writer.flush(wait=True)

    def close(self) -> None:
        for ledger, writer in zip(self.ledgers, self.writers, strict=True):
            ledger.close()
            writer.close()


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_is_read_at_every_moment(tmp_path: Path, ranks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    recording = Recording(tmp_path, ranks)
    run = open_run(recording.path)
    follower = RunFollower(run)
    at, level = [0] * ranks, 0
    for turn in range(25):
        if rng.random() < 0.15:
            level += int(rng.integers(1, 3))
            at = [-(-step // (64 << level)) * (64 << level) for step in at]
        for rank in range(ranks):
            if rng.random() < 0.7:
                stop = at[rank] + int(rng.integers(1, 200 << level))
                layers = ((0, 1), (0,), (1,))[int(rng.choice(3, p=[0.8, 0.1, 0.1]))]
                recording.write(rank, at[rank], stop, level, layers)
                at[rank] = stop
        if rng.random() < 0.5:
            recording.writers[0].write_steps(make_steps(turn * 7, 7))
        if rng.random() < 0.2:
            recording.writers[0].write_epoch(make_epoch(turn))
        recording.flush()
        if rng.random() < 0.7:
            follower.refresh()
            assert_follows(follower, run)
    recording.close()
    assert follower.refresh()
    assert_follows(follower, run)
    assert not follower.refresh()


def states(columns: Columns, level: int, rng: np.random.Generator) -> list[tuple[int, Columns]]:
    """The chunks of a span of ``64 << level`` steps: each half full, full, then merged."""
    found: list[tuple[int, Columns]] = []
    chunks = columns.first_step >> CHUNK_BITS
    for chunk in rng.permutation(np.unique(chunks)).tolist():
        whole = columns[np.flatnonzero(chunks == chunk)]
        found += [(0, whole[: (len(whole) + 1) // 2]), (0, whole)]
    return [*found, (level, coarsen(columns, level))] if rng.random() < 0.5 else found


@pytest.mark.parametrize("seed", range(8))
def test_chunks_may_be_written_in_any_order(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranks = int(rng.integers(1, 4))
    writers = [create_run("any", tmp_path, ranks=ranks)]
    writers += [join_run(writers[0].path, rank) for rank in range(1, ranks)]
    writers[0].write_layers(LAYERS, SMALL, 0.05)
    queues: list[list[tuple[int, int, int, Columns]]] = []
    for rank in range(ranks):
        for layer in range(2):
            whole = at_steps(2 * rank + layer, 0, int(rng.integers(1, 600)))
            level = int(rng.integers(1, 4))
            spans = whole.first_step >> (level + CHUNK_BITS)
            for span in np.unique(spans).tolist():
                part = whole[np.flatnonzero(spans == span)]
                queues.append([(rank, layer, *state) for state in states(part, level, rng)])
    order = rng.permutation([i for i, queue in enumerate(queues) for _ in queue])
    run = open_run(writers[0].path)
    follower = RunFollower(run)
    for i in order.tolist():
        rank, layer, level, columns = queues[i].pop(0)
        put(writers[rank], layer, level, columns)
        if rng.random() < 0.4:
            writers[rank].flush(wait=True)
            follower.refresh()
            assert_follows(follower, run)
    for writer in writers:
        writer.close()
    follower.refresh()
    assert_follows(follower, run)
