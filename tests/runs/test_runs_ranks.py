"""A run of several ranks: each writes a file of its own, and a reader adds them up."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs_data import SMALL, assert_close, make_columns, make_epoch, put

from convlens.core.columns import CHUNK_BITS, Columns, coarsen, concatenate
from convlens.core.histories import LayerInfo
from convlens.errors import ArgumentError, RunError
from convlens.runs import RunWriter, create_run, join_run, list_runs, open_run
from convlens.runs.follower import RunFollower
from convlens.runs.schema import DATABASE

LAYERS = [LayerInfo(0, "a", "Conv2d"), LayerInfo(1, "b", "Conv2d")]


def seen_by(rank: int, n_steps: int) -> Columns:
    """One column for each step from 0 on, different for each rank."""
    columns = make_columns(1000 * rank, n_steps, layout=SMALL)
    return replace(columns, first_step=np.arange(n_steps), last_step=np.arange(n_steps))


def write_ranks(base: Path, *lengths: int) -> list[RunWriter]:
    """Ranks that have come as many steps far, not closed."""
    first = create_run("ddp", base, ranks=len(lengths))
    writers = [first, *(join_run(first.path, rank) for rank in range(1, len(lengths)))]
    for rank, (writer, length) in enumerate(zip(writers, lengths, strict=True)):
        writer.write_layers(LAYERS, SMALL, 0.05)
        put(writer, 0, 0, seen_by(rank, length))
        writer.flush(wait=True)
    return writers


def added(parts: list[Columns], level: int) -> Columns:
    """What a reader must find: all columns in order of time, those of one span added up."""
    whole = concatenate(parts)
    return coarsen(whole[np.argsort(whole.first_step, kind="stable")], level)


def test_ranks_add_up_also_when_one_is_behind(tmp_path: Path) -> None:
    writers = write_ranks(tmp_path, 70, 100, 3)
    run = open_run(writers[0].path)
    expected = added([seen_by(0, 70), seen_by(1, 100), seen_by(2, 3)], 0)
    assert expected.calls.tolist() == [3] * 3 + [2] * 67 + [1] * 30
    assert_close(run.history(0).columns, expected)
    assert_close(run.activation_stats["a"].columns, expected)
    assert_close(run.record().layers[0].columns, expected)
    assert len(run.history(1)) == 0
    for writer in writers:
        writer.close()
    assert sorted(p.name for p in run.path.iterdir()) == ["rank-1.db", "rank-2.db", DATABASE]
    assert_close(run.history(0).columns, expected)


def test_all_ranks_are_brought_to_the_highest_level_of_any(tmp_path: Path) -> None:
    writers = write_ranks(tmp_path, 256, 256)
    put(writers[1], 1, 2, coarsen(seen_by(5, 256), 2))
    writers[1].flush(wait=True)
    with open_run(writers[0].path) as run:
        assert_close(run.history(0).columns, added([seen_by(0, 256), seen_by(1, 256)], 2))
        assert_close(run.history(1).columns, coarsen(seen_by(5, 256), 2))
    for writer in writers:
        writer.close()


def test_only_rank_0_says_what_the_run_is(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for rank, writer in enumerate(write_ranks(tmp_path, 1, 1)):
            stack.enter_context(writer)
            writer.write_epoch(make_epoch(rank))
            writer.write_meta({"who": rank})
    (info,) = list_runs(tmp_path)
    run = open_run(info.path)
    assert (info.n_epochs, run.meta["who"], run.meta["ranks"]) == (1, 0, 2)
    assert "rank" not in run.meta


def test_a_rank_that_has_not_joined_yet_has_seen_nothing(tmp_path: Path) -> None:
    with create_run("ddp", tmp_path, ranks=2) as writer:
        writer.write_layers(LAYERS, SMALL, 0.05)
        put(writer, 0, 0, seen_by(0, 5))
        writer.flush(wait=True)
        assert len(open_run(writer.path).history(0)) == 5


def test_the_file_of_a_rank_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    writers = write_ranks(tmp_path, 2, 2, 2)
    for writer in writers:
        writer.close()
    (writers[0].path / "rank-1.db").unlink()
    run = open_run(writers[0].path)
    assert len(run.steps) == 0
    expected = r"rank-1\.db' is missing, but 3 ranks wrote this run, each what it saw; copy"
    with pytest.raises(RunError, match=expected):
        run.history(0)
    with pytest.raises(RunError, match=expected):
        run.record()


def test_the_file_of_a_rank_that_is_damaged_is_a_sentence(tmp_path: Path) -> None:
    writers = write_ranks(tmp_path, 2, 2)
    for writer in writers:
        writer.close()
    file = writers[0].path / "rank-1.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("DROP TABLE columns")
    run = open_run(writers[0].path)
    with pytest.raises(RunError, match=r"rank-1\.db' is damaged or incomplete \(its tables are"):
        run.history(0)
    file.write_bytes(b"not SQLite at all" * 100)
    with pytest.raises(RunError, match=r"rank-1\.db' is damaged or incomplete \(file is not a"):
        run.history(0)


def test_joining_what_cannot_be_joined(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="rank must be at least 1 to join a run, got 0"):
        join_run(tmp_path, 0)
    with pytest.raises(RunError, match=r"nothing' is not there for rank 2 to join; let rank 0"):
        join_run(tmp_path / "nothing", 2)
    writers = write_ranks(tmp_path, 1, 1)
    with pytest.raises(RunError, match=r"rank-1\.db' cannot be written \(File exists\)"):
        join_run(writers[0].path, 1)
    for writer in writers:
        writer.close()


# ---- any order ----------------------------------------------------------------------------------


def states(columns: Columns, level: int, merge: bool) -> list[tuple[int, Columns]]:
    """The chunks of a span of ``64 << level`` steps as its writer leaves them, one after another.

    Each finer chunk half full, then full; in the end perhaps the chunk that they are merged into.
    """
    found: list[tuple[int, Columns]] = []
    chunks = columns.first_step >> CHUNK_BITS
    for chunk in np.unique(chunks).tolist():
        whole = columns[np.flatnonzero(chunks == chunk)]
        found += [(0, whole[: (len(whole) + 1) // 2]), (0, whole)]
    return [*found, (level, coarsen(columns, level))] if merge else found


@st.composite
def writings(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int, int, Columns]], set[int]]:
    """How far each rank comes, what is written in which order, and after which of it is flushed."""
    lengths = draw(st.lists(st.integers(1, 600), min_size=1, max_size=3))
    queues: list[list[tuple[int, int, int, Columns]]] = []
    for rank, length in enumerate(lengths):
        for layer in range(2):
            columns = seen_by(2 * rank + layer, length)
            level = draw(st.integers(1, 3))
            spans = columns.first_step >> (level + CHUNK_BITS)
            for span in np.unique(spans).tolist():
                part = columns[np.flatnonzero(spans == span)]
                merge = draw(st.booleans())
                queues.append([(rank, layer, *s) for s in states(part, level, merge)])
    turns = [i for i, queue in enumerate(queues) for _ in queue]
    order = draw(st.permutations(turns))
    written = [queues[i].pop(0) for i in order]
    return lengths, written, draw(st.sets(st.integers(0, len(written))))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(writings())
def test_what_is_read_is_the_sum_of_what_was_written_in_any_order(
    writing: tuple[list[int], list[tuple[int, int, int, Columns]], set[int]],
) -> None:
    lengths, written, flushes = writing
    with TemporaryDirectory() as base, ExitStack() as stack:
        first = stack.enter_context(create_run("ddp", base, ranks=len(lengths)))
        others = [join_run(first.path, rank) for rank in range(1, len(lengths))]
        writers = [first, *(stack.enter_context(writer) for writer in others)]
        first.write_layers(LAYERS, SMALL, 0.05)
        first.flush(wait=True)
        follower: RunFollower | None = None
        for i, (rank, layer, level, columns) in enumerate(written):
            put(writers[rank], layer, level, columns)
            if i in flushes:
                writers[rank].flush(wait=True)
                follower = follower or RunFollower(open_run(first.path))
                follower.refresh()
                assert len(follower.history(layer)) > 0
        for writer in writers:
            writer.flush(wait=True)
        run = open_run(first.path)
        highest = max(level for _, _, level, _ in written)
        for layer, history in enumerate(run.record().layers):
            seen = [seen_by(2 * rank + layer, length) for rank, length in enumerate(lengths)]
            assert_close(history.columns, added(seen, highest))
            if follower is not None:
                follower.refresh()
                assert_close(follower.history(layer).columns, history.columns)
