"""What the server keeps of the runs that its pages show."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from views_data import write_healthy

from convlens.views.live import store as module
from convlens.views.live.store import AGAIN_S, KEEP_S, POINTS, RunStore, key_of


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    write_healthy(tmp_path)
    write_healthy(tmp_path)
    store = RunStore([tmp_path])
    yield store
    store.close()


def test_all_pages_of_a_run_share_what_was_read(store: RunStore):
    key = next(iter(store.list()))
    assert store.look(key).follower is store.look(key).follower


def test_a_run_that_is_alone_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_healthy(tmp_path)
    store = RunStore([tmp_path])
    (key,) = store.list()

    asyncio.run(store.read_ahead())

    monkeypatch.delattr(module, "open_run")  # it is open
    follower = store.look(key).follower
    monkeypatch.setattr(type(follower), "_read", None)  # nothing of it is left to read
    assert follower.figures("activation").layers
    assert len(follower.curves(POINTS))
    assert len(follower.series(0).first_step)
    store.close()


def test_of_several_runs_none_is_read_ahead(store: RunStore):
    asyncio.run(store.read_ahead())

    assert store._open == {}


def test_a_damaged_run_is_left_to_its_page(tmp_path: Path):
    run = write_healthy(tmp_path)
    (run.path / "run.db").write_bytes(b"SQLite format 3\0" + bytes(200))
    store = RunStore([tmp_path])

    asyncio.run(store.read_ahead())

    assert store._open == {}
    store.close()


def test_what_no_page_shows_is_let_go(store: RunStore, clock: Clock):
    gone, shown = store.list()
    old = weakref.ref(store.look(gone).follower)
    follower = store.look(shown).follower
    clock.now += 0.9 * KEEP_S
    assert store.look(shown).follower is follower
    gc.collect()
    assert old() is not None
    clock.now += 0.9 * KEEP_S
    assert store.look(shown).follower is follower
    gc.collect()
    assert old() is None
    assert store.look(gone).follower.epochs  # and read anew when it is asked for


def test_work_that_fails_is_told_once_and_begun_anew_later(
    store: RunStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    def fail(record: object) -> None:
        raise ValueError("of the doctor")

    key = next(iter(store.list()))
    with monkeypatch.context() as patch:
        patch.setattr(module, "diagnose", fail)
        assert store.findings(key) is None
        store._workers.submit(int).result()  # there is one worker: the work before is done
    with pytest.raises(ValueError, match="of the doctor"):
        store.findings(key)
    assert store.findings(key) is None
    clock.now += 1.1 * AGAIN_S
    assert store.findings(key) is None
    store._workers.submit(int).result()
    assert store.findings(key)


def test_a_key_says_nothing_of_the_path(tmp_path: Path):
    assert key_of(tmp_path).isalnum()
    assert key_of(tmp_path) == key_of(tmp_path / "x" / "..")
    assert key_of(tmp_path) != key_of(tmp_path / "x")
