"""Following a run: at every moment what `Run` reads, however little of it was read anew."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs_data import (
    LAYOUT,
    SMALL,
    assert_same,
    make_columns,
    make_epoch,
    make_steps,
    put,
    start_python,
)

from convlens.core.columns import CHUNK_BITS, Columns, chunk_of
from convlens.core.histories import FIGURES, LayerHistory, LayerInfo
from convlens.core.steps import StepCurves, StepSeries
from convlens.errors import ArgumentError, LayerNotFoundError, RunError
from convlens.runs import Run, RunWriter, create_run, join_run, open_run
from convlens.runs.column_reader import Chunk, ColumnReader
from convlens.runs.follower import SERIES, RunFollower
from convlens.runs.schema import DATABASE
from convlens.watching.column_store import ColumnStore

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
    assert list(found.layers) == run.layers_of(quantity)
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
    """What a training of some ranks writes, step by step, through stores."""

    def __init__(self, base: Path, ranks: int = 1) -> None:
        first = create_run("follow", base, ranks=ranks)
        self.writers = [first, *(join_run(first.path, rank) for rank in range(1, ranks))]
        self.stores = [ColumnStore(SMALL, 0.05, sink=writer) for writer in self.writers]
        for store in self.stores:
            store.declare(LAYERS)
        self.path = first.path

    def write(self, rank: int, first: int, stop: int, level: int, layers: tuple[int, ...]) -> None:
        """The steps' columns; closed chunks are kept, an open one is shown."""
        store, step = self.stores[rank], first
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
            (store.add if end <= stop else store.show)(level, chunk, columns)
            step = end

    def flush(self) -> None:
        for store, writer in zip(self.stores, self.writers, strict=True):
            store.wait()
            writer.flush(wait=True)

    def close(self) -> None:
        for store, writer in zip(self.stores, self.writers, strict=True):
            store.wait()
            writer.close()


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("seed", range(2))
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


@pytest.mark.parametrize("channels", [(16, 10, 14), (0, 1, 9)])
def test_layers_whose_flags_fill_the_same_bytes(tmp_path: Path, channels: tuple[int, ...]) -> None:
    """Flags of 10 and of 16 channels are two bytes both."""
    infos = [LayerInfo(i, f"layer {i}", "Conv2d") for i in range(len(channels))]
    with create_run("channels", tmp_path) as writer:
        writer.write_layers(infos, SMALL, 0.05)
        for i, n in enumerate(channels):
            put(writer, i, 0, at_steps(i, 0, 100 + i, channels=n))
        writer.flush(wait=True)
        run = open_run(writer.path)
        follower = RunFollower(run)
        assert_figures(follower, run)
        assert_follows(follower, run)
        put(writer, 0, 0, at_steps(0, 64, 128, channels=channels[0]))
        writer.flush(wait=True)
        assert follower.refresh()
        assert_follows(follower, run)


# ---- what is read, and when ---------------------------------------------------------------------


def write(writer: RunWriter, first: int, stop: int, layer: int = 0) -> None:
    put(writer, layer, 0, at_steps(layer, first, stop))
    writer.flush(wait=True)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    with create_run("follow", tmp_path) as made:
        made.write_layers(LAYERS, SMALL, 0.05)
        made.flush(wait=True)
        yield made


def spy_on_chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many chunks were read together, of each block or series."""
    found: list[int] = []
    whole = ColumnReader._read

    def counted(
        self: ColumnReader, info: LayerInfo, layout: object, chunks: list[Chunk], **more: bool
    ) -> Columns:
        found.append(len(chunks))
        return whole(self, info, layout, chunks, **more)

    monkeypatch.setattr(ColumnReader, "_read", counted)
    return found


def test_only_what_has_changed_is_read(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in range(2):
        write(writer, 0, 1000, layer)
    follower = RunFollower(open_run(writer.path))
    follower.figures()
    follower.history(0)
    read = spy_on_chunks(monkeypatch)
    write(writer, 960, 1010, 0)
    assert follower.refresh()
    assert read == [1, 1], "one chunk, for the figures and for the history"
    read.clear()
    write(writer, 1010, 1100, 1)
    assert follower.refresh()
    assert sum(read) == 3, "the open one and two more, for the figures"
    read.clear()
    writer.write_steps(make_steps(0, 5))
    writer.flush(wait=True)
    assert follower.refresh()
    assert read == []
    assert_follows(follower, open_run(writer.path))


def test_nothing_new_is_false_also_when_files_change(writer: RunWriter) -> None:
    write(writer, 0, 100)
    follower = RunFollower(open_run(writer.path))
    assert follower.refresh()
    follower.figures()
    assert not follower.refresh()
    (writer.path / "run.db-wal").touch()
    assert not follower.refresh()
    version = follower.version
    writer.write_epoch(make_epoch(0))
    writer.flush(wait=True)
    assert len(follower.epochs) == 0, "what was read last, until it is read again"
    assert follower.refresh()
    assert follower.version == version + 1
    assert len(follower.epochs) == 1


def test_files_that_did_not_change_are_not_opened(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(writer, 0, 100)
    writer.close()
    for file in writer.path.iterdir():
        os.utime(file, (1e9, 1e9))
    follower = RunFollower(open_run(writer.path))
    assert follower.refresh()
    monkeypatch.setattr(Run, "transactions", lambda self: pytest.fail("it was opened"))
    assert not follower.refresh()


def test_one_thread_may_refresh_while_another_asks(writer: RunWriter) -> None:
    follower = RunFollower(open_run(writer.path))
    n_steps, failures = [0, 0], list[BaseException]()

    def ask(index: int) -> None:
        try:
            for _ in range(30):
                follower.refresh()
                n_steps[index] = len(follower.history(index))
                follower.figures()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for stop in range(10, 200, 10):
        write(writer, 0, stop, layer=0)
        write(writer, 0, stop, layer=1)
    for thread in threads:
        thread.join()
    assert not failures
    assert min(n_steps) > 0
    follower.refresh()
    assert_follows(follower, open_run(writer.path))


def steps_until(writer: RunWriter, stop: int) -> None:
    step = np.arange(stop)
    writer.write_steps(StepSeries(step, step // 100, 1.0 / (1 + step), step * 0.5, {}))
    writer.flush(wait=True)


def test_another_run_in_the_same_place_is_met(tmp_path: Path) -> None:
    one, other = (create_run(directory=tmp_path / name) for name in ("one", "other"))
    for writer, n in ((one, 5), (other, 8)):
        steps_until(writer, n)
    place = tmp_path / "place"
    shutil.copytree(one.path, place)  # as a crash leaves it
    follower = RunFollower(open_run(place))
    marks = [follower.mark]
    assert len(follower.steps) == 5
    shutil.rmtree(place)
    with pytest.raises(RunError, match="cannot be opened"):
        follower.refresh()
    shutil.copytree(other.path, place)
    follower.refresh()
    marks.append(follower.mark)
    assert len(follower.steps) == 8
    assert len(set(marks)) == 2, "a mark belongs to one state"
    for writer in (one, other):
        writer.close()


def test_what_was_read_in_between_is_news_for_the_next_refresh(writer: RunWriter) -> None:
    follower = RunFollower(open_run(writer.path))
    follower.refresh()
    write(writer, 0, 10)
    assert len(follower.history(0)) == 10
    assert follower.refresh()


def test_a_history_stays_what_it_was_when_more_is_read(writer: RunWriter) -> None:
    write(writer, 0, 70)
    follower = RunFollower(open_run(writer.path))
    history, figures = follower.history(0), follower.figures()
    before = history.counts.copy(), figures.values["mean"].copy()
    put(writer, 0, 0, at_steps(7, 0, 70))
    writer.flush(wait=True)
    assert follower.refresh()
    np.testing.assert_array_equal(history.counts, before[0])
    np.testing.assert_array_equal(figures.values["mean"], before[1])
    assert not np.array_equal(follower.history(0).counts, before[0])


def test_a_chunk_written_again_is_seen(writer: RunWriter) -> None:
    run = open_run(writer.path)
    follower = RunFollower(run)
    for stop in (3, 4, 5):
        write(writer, 0, stop)
        assert follower.refresh()
        assert_same(follower.history(0).columns, run.history(0).columns)


def test_updates_and_gradients(writer: RunWriter) -> None:
    for quantity in ("gradient", "update", "parameter"):
        writer.write_layers([LayerInfo(0, "w", "Parameter", quantity=quantity)], SMALL, 0.05)
        put(writer, 0, 0, at_steps(len(quantity), 0, 80, channels=0), quantity)
    writer.flush(wait=True)
    run = open_run(writer.path)
    follower = RunFollower(run)
    np.testing.assert_array_equal(follower.update_history(0).ratio, run.update_history(0).ratio)
    for quantity in ("gradient", "update", "parameter"):
        assert_figures(follower, run, quantity)
        assert np.isnan(follower.figures(quantity).values["dead"]).all()
    assert_same(follower.history(-1, "gradient").columns, run.history(0, "gradient").columns)


def test_a_run_without_anything_has_nothing(tmp_path: Path) -> None:
    with create_run("empty", tmp_path) as writer:
        follower = RunFollower(open_run(writer.path))
        assert follower.refresh()
        assert (len(follower.epochs), len(follower.layers_of()), len(follower.curves(5))) == (
            0,
            0,
            0,
        )
        figures = follower.figures()
        assert (len(figures), len(figures.layers)) == (0, 0)
        assert {values.shape for values in figures.values.values()} == {(0, 0)}
        with pytest.raises(LayerNotFoundError):
            follower.history(0)
        with pytest.raises(ArgumentError, match="points must be at least 1, got 0"):
            follower.curves(0)


def test_another_run_in_the_same_folder_is_read_from_its_beginning(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    follower = None
    for seed in range(3):
        with create_run(directory=folder) as writer:
            writer.write_layers(LAYERS, SMALL, 0.05)
            put(writer, 0, 0, at_steps(seed, 0, 100 - seed))
        run = open_run(folder)
        follower = follower or RunFollower(run)
        follower.refresh()
        assert_follows(follower, run)
        kept = folder / DATABASE
        kept.rename(tmp_path / f"kept-{seed}.db")  # its number in the file system stays taken


def test_a_run_that_is_gone_is_a_sentence_and_what_was_read_stays(writer: RunWriter) -> None:
    write(writer, 0, 10)
    follower = RunFollower(open_run(writer.path))
    follower.figures()
    writer.close()
    file = writer.path / DATABASE
    file.rename(file.with_name("elsewhere.db"))
    with pytest.raises(RunError, match=r"run\.db' cannot be opened"):
        follower.refresh()
    assert len(follower.figures()) == 10
    file.with_name("elsewhere.db").rename(file)
    assert follower.refresh(), "its writer has closed it"
    assert len(follower.figures()) == 10


def test_a_writer_can_be_killed_and_can_close(tmp_path: Path) -> None:
    source = (
        "import sys; from runs_data import *; from convlens.runs import create_run\n"
        "from convlens.core.histories import LayerInfo\n"
        "writer = create_run(directory=sys.argv[1])\n"
        "writer.write_layers([LayerInfo(0, 'a', 'Conv2d')], LAYOUT, 0.05)\n"
        "for line in sys.stdin:\n"
        "    put(writer, 0, 0, make_columns(0, int(line))); writer.flush(wait=True)\n"
        "    print(flush=True)\n"
        "writer.close()\n"
    )
    for kill in (True, False):
        folder = tmp_path / f"run-{kill}"
        process = start_python(source, str(folder))
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        follower = None
        for n in (10, 100, 200):
            print(n, file=process.stdin, flush=True)
            process.stdout.readline()
            run = open_run(folder)
            follower = follower or RunFollower(run)
            follower.refresh()
            assert len(follower.history(0)) == n
            assert follower.meta["status"] == "running"
        process.kill() if kill else process.stdin.close()
        process.wait()
        follower.refresh()
        assert_follows(follower, open_run(folder))
        if not kill:
            assert sorted(p.name for p in folder.iterdir()) == [DATABASE], "closed into one file"
        process.stdin.close()
        process.stdout.close()
        process.stderr.close()


# ---- memory -------------------------------------------------------------------------------------


def kept_bytes(value: object, seen: set[int]) -> int:
    """Bytes of the arrays that an object holds."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(kept_bytes(part, seen) for part in value.values())
    if isinstance(value, (list, tuple)):
        return sum(kept_bytes(part, seen) for part in value)
    return kept_bytes(vars(value), seen) if hasattr(value, "__dict__") else 0


def test_what_is_kept_of_4096_columns_is_bounded(tmp_path: Path) -> None:
    n_layers = SERIES + 2
    infos = [LayerInfo(i, str(i), "Conv2d") for i in range(n_layers)]
    with create_run("long", tmp_path) as writer:
        writer.write_layers(infos, LAYOUT, 0.05)
        for info in infos:
            put(writer, info.index, 0, make_columns(0, 4096, channels=64))
        writer.flush(wait=True)
        follower = RunFollower(open_run(writer.path))
        follower.figures()
        assert kept_bytes(follower._state.figures, set()) < n_layers * 0.6e6
        for info in infos:
            follower.history(info.index)
        assert list(follower._state.series) == [("activation", i) for i in range(2, n_layers)]
        assert kept_bytes(follower._state.series, set()) < SERIES * 5e6, "25 MB at full width"
