"""What the page sends, when, and how often."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bokeh.document import Document
from bokeh.models import ColumnDataSource
from bokeh.protocol import Protocol
from bokeh.server.session import ServerSession
from tornado.websocket import WebSocketProtocol13
from views_data import LAYOUT, layer_infos, losses_until, normal_columns, step_series, write_columns

from convlens.core.records import Epoch
from convlens.errors import RunError
from convlens.runs import Run, RunWriter, create_run
from convlens.runs.follower import RunFollower
from convlens.views.live import pace, run_screen
from convlens.views.live.address import make_address
from convlens.views.live.server import LiveServer, _Connection, _frame
from convlens.views.live.session import Session
from convlens.views.live.store import RunStore

LONG_S = 3600.0
"""A training has gone on for long."""


class Clock:
    """A clock, and a thread that has worked for some of the time, and waited for a core."""

    def __init__(self, counted: Path) -> None:
        self.now = self.used = self.waited = 0.0
        self._counted = counted
        self.pass_by(0.0, 0.0)

    def pass_by(self, seconds: float, work_s: float, wait_s: float = 0.0) -> None:
        self.now += seconds
        self.used += work_s
        self.waited += wait_s
        self._counted.write_text(f"{round(self.used * 1e9)} {round(self.waited * 1e9)} 7\n")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    clock = Clock(tmp_path / "schedstat")
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(time, "thread_time", lambda: clock.used)
    monkeypatch.setattr(time, "process_time", lambda: clock.used)
    monkeypatch.setattr(pace, "WAITED", tmp_path / "schedstat")
    return clock


def next_due(
    paced: pace.Pace, clock: Clock, work_s: float, wait_s: float, age_s: float = LONG_S
) -> float:
    """Seconds until it is due, where the thread works and waits for so long at first."""
    clock.pass_by(0.0, work_s, wait_s)
    for tick in range(1, 10_000):
        clock.pass_by(0.01, 0.0)
        if paced.due(age_s):
            return tick * 0.01
    raise AssertionError("it was never due")


def test_costly_work_waits_until_it_is_a_small_share(clock: Clock) -> None:
    paced = pace.Pace()
    clock.pass_by(0.5, 0.001)
    assert paced.due(LONG_S)
    found = next_due(paced, clock, work_s=0.03, wait_s=0.02)
    assert found == pytest.approx(0.03 / pace.SHARE, abs=0.02)


def test_costly_work_does_not_wait_for_ever(clock: Clock) -> None:
    found = next_due(pace.Pace(), clock, work_s=1.0, wait_s=0.1)
    assert found == pytest.approx(pace.LONGEST_S, abs=0.02)


def test_where_no_core_is_free_it_is_done_seldom(clock: Clock) -> None:
    paced = pace.Pace()
    for work_s in (0.001, 0.3):
        found = next_due(paced, clock, work_s, wait_s=2 * work_s)
        assert found == pytest.approx(pace.CROWDED_S, abs=0.02)
        assert paced.crowded
    # The core is free again.
    assert next_due(paced, clock, work_s=0.03, wait_s=0.0) == pytest.approx(1.2, abs=0.02)
    assert not paced.crowded


@pytest.mark.parametrize(("age_s", "expected_s"), [(5.0, 1.2), (60.0, 12.0), (240.0, 45.0)])
def test_no_more_than_a_fifth_of_a_training_is_not_shown_yet(
    clock: Clock, age_s: float, expected_s: float
) -> None:
    """Where no core is free; never oftener than elsewhere."""
    found = next_due(pace.Pace(), clock, work_s=0.03, wait_s=0.06, age_s=age_s)
    assert found == pytest.approx(expected_s, abs=0.02)


@pytest.mark.parametrize("content", [None, "", "12 x 3", "4"])
def test_a_system_that_does_not_count_it_has_room(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    monkeypatch.setattr(pace, "WAITED", tmp_path / "other")
    if content is not None:
        (tmp_path / "other").write_text(content)
    assert next_due(pace.Pace(), clock, work_s=0.03, wait_s=9.0) == pytest.approx(1.2, abs=0.02)


@pytest.mark.skipif(not pace.WAITED.exists(), reason="the kernel does not count it")
def test_the_kernel_counts_how_long_a_thread_waits() -> None:
    first = pace._waited_s()
    until = time.monotonic() + 0.05
    while time.monotonic() < until:
        pass
    assert 0.0 < first <= pace._waited_s() < time.monotonic()


class Socket:
    """Keeps the messages."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send_message(self, message: Any) -> None:
        self.sent.append(message)


def test_what_one_callback_changes_is_one_message() -> None:
    document, socket, context = Document(), Socket(), object()
    sources = [ColumnDataSource({"x": np.arange(3)}) for _ in range(4)]
    for source in sources:
        document.add_root(source)

    async def act() -> None:
        session = ServerSession("id", document)  # pyright: ignore[reportArgumentType]
        _Connection(Protocol(), socket, context, session)

        def change() -> None:
            for i, source in enumerate(sources):
                source.data = {"x": np.arange(i)}
            document.title = "changed"

        await session.with_document_locked(change)
        await session.with_document_locked(lambda: None)
        await session.with_document_locked(lambda: setattr(document, "title", "again"))

    asyncio.run(act())
    assert not any(message._buffers for message in socket.sent), "two messages more for each"
    kinds = [[event["kind"] for event in message.content["events"]] for message in socket.sent]
    assert kinds == [["ColumnDataChanged"] * 4 + ["TitleChanged"], ["TitleChanged"]]


@pytest.mark.parametrize("n", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_words_are_framed_as_tornado_frames_them(n: int) -> None:
    written: list[bytes] = []
    socket = SimpleNamespace(
        FIN=0x80,
        mask_outgoing=False,
        _wire_bytes_out=0,
        stream=SimpleNamespace(write=written.append),
    )
    text = bytes(97 + i % 26 for i in range(n))
    WebSocketProtocol13._write_frame(socket, True, 0x1, text)
    assert written == [_frame(text)]


def test_several_who_ask_at_once_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create_run(directory=tmp_path / "run") as writer:
        losses_until(writer, 10)
        store = RunStore([tmp_path])
        (key,) = store.list()
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        first = store.newest(key, 5)
        losses_until(writer, 20)
        assert store.newest(key, 5) is first
        assert len(store.newest(key, 6).steps) == 13, "of another step it knows nothing"
        clock[0] = 1.0
        assert len(store.newest(key, 5).steps) == 14
        store.close()


def test_a_page_that_nobody_sees_reads_and_shows_nothing(tmp_path: Path) -> None:
    writer = create_run(directory=tmp_path / "run")
    losses_until(writer, 10)
    store = RunStore([tmp_path])
    session = Session(Document(), store, lambda words: True)

    def last() -> str:
        return session._screen.tell()["root"]["steps"]

    assert last() == "9"
    session._do({"do": "visible", "value": False})
    losses_until(writer, 20)
    session._tick()
    assert last() == "9"
    session._do({"do": "visible", "value": True})
    assert last() == "19"
    store.close()
    writer.close()


def columns_until(writer: RunWriter, n: int) -> None:
    write_columns(writer, 0, normal_columns(np.zeros(n), np.ones(n), 1_000, 4))
    writer.flush(wait=True)


@pytest.fixture
def rested(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether costly work is due, and no look that is as good as another."""
    due = [False]
    monkeypatch.setattr(pace.Pace, "due", lambda self, age_s: due[0])
    monkeypatch.setattr("convlens.views.live.store.FRESH_S", -1.0)
    return due


def show_all(session: Session) -> None:
    """What comes of a poll at which everything is due to be read."""
    session._tick()
    reading = session._screen._reading
    wait([reading._coming])
    while session._screen.tick():  # the losses first
        pass


def test_a_loop_that_records_no_loss_is_looked_at_whole_only_when_due(
    tmp_path: Path, rested: list[bool]
) -> None:
    with create_run(directory=tmp_path / "run") as writer:
        writer.write_layers(layer_infos()[:1], LAYOUT, 0.05)
        columns_until(writer, 10)
        store = RunStore([tmp_path])
        session = Session(Document(), store, lambda words: True)
        columns_until(writer, 20)
        session._tick()
        assert session._screen.tell()["root"]["steps"] == "9"
        rested[0] = True
        show_all(session)
        assert session._screen.tell()["root"]["steps"] == "19"
        store.close()


def test_each_page_goes_on_from_what_it_shows_itself(tmp_path: Path, rested: list[bool]) -> None:
    with create_run(directory=tmp_path / "run") as writer:
        losses_until(writer, 100)
        store = RunStore([tmp_path])
        one, other = (Session(Document(), store, lambda words: True) for _ in range(2))
        losses_until(writer, 150)
        rested[0] = True
        show_all(one)
        rested[0] = False
        losses_until(writer, 160)
        for session in (one, other):
            session._tick()
            (x,) = session._screen._figures.loss._raw.lines["xs"]
            assert x.tolist() == list(range(160))
        store.close()


def test_a_run_that_stays_as_it_is_is_not_drawn_again(tmp_path: Path, rested: list[bool]) -> None:
    with create_run(directory=tmp_path / "run") as writer:
        writer.write_steps(step_series(np.ones(100)))
    store = RunStore([tmp_path])
    page = Session(Document(), store, lambda words: True)
    rested[0] = True
    show_all(page)
    for _ in range(3):
        assert page._glance()
        wait([one for one in [page._screen._reading._coming] if one is not None])
    store.close()


def test_the_end_of_a_run_is_shown_by_every_page_at_once(
    tmp_path: Path, rested: list[bool]
) -> None:
    writer = create_run(directory=tmp_path / "run")
    writer.write_layers(layer_infos()[:1], LAYOUT, 0.05)
    columns_until(writer, 10)
    losses_until(writer, 100)
    store = RunStore([tmp_path])
    pages = [Session(Document(), store, lambda words: True) for _ in range(2)]
    columns_until(writer, 20)
    writer.write_steps(step_series(np.ones(150)))
    writer.close()
    for page in pages:  # the first brings the follower up to date, which the second shares
        page._tick()
        shown = page._screen._figures.matrix_figure.source.data["value"][0][0]
        assert np.isfinite(shown).sum() == 20
        assert "Finished" in page._panels._sources["header"].data["html"][0]
    store.close()


def damaged(*_: object) -> None:
    raise RunError("It is damaged.")


def test_an_error_of_a_look_stays_until_there_is_none(
    tmp_path: Path, rested: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_run(directory=tmp_path / "run") as writer:
        losses_until(writer, 100)
        store = RunStore([tmp_path])
        page = Session(Document(), store, lambda words: True)

        rested[0] = True
        with monkeypatch.context() as patched:
            patched.setattr(RunFollower, "refresh", damaged)
            for _ in range(3):
                page._tick()
                wait([page._screen._reading._coming])
                rested[0] = False
            page._tick()
            assert "It is damaged." in page._panels._sources["trouble"].data["html"][0]
            wait([page._screen._reading._coming])
        page._tick()  # what was begun before it was mended
        wait([page._screen._reading._coming])
        page._tick()
        assert page._panels._sources["trouble"].data["html"] == [""]
        store.close()


def test_the_script_is_told_of_losses_that_only_make_a_line_longer(
    tmp_path: Path, rested: list[bool]
) -> None:
    said: list[dict[str, Any]] = []
    with create_run(directory=tmp_path / "run") as writer:
        losses_until(writer, 100)
        store = RunStore([tmp_path])
        listening = [True]

        def say(words: dict[str, Any]) -> bool:
            said.extend([words] * listening[0])
            return listening[0]

        page = Session(Document(), store, say)
        assert page._glance(), "nothing is new"
        assert said == []
        for n, alone in ((101, False), (103, True), (104, True), (300, False), (301, True)):
            losses_until(writer, n, 0.5)
            assert page._glance() is alone, n
            if not alone:  # the line is begun by the figures, and the time axis is theirs
                page._tick()
        assert [(one["after"], one["steps"]) for one in said] == [
            (100, [101, 102]),
            (102, [103]),
            (299, [300]),
        ]
        assert said[0]["losses"] == [0.5, 0.5]
        assert said[1]["figures"]["steps"] == "104"
        assert page._screen.tell()["root"]["steps"] == "300"
        page._do({"do": "again"})  # the script has missed some
        (x,) = page._screen._figures.loss._raw.lines["xs"]
        assert x.tolist() == list(range(301))
        listening[0] = False  # there is no script yet, or it does not take what is sent
        losses_until(writer, 302, 0.5)
        assert not page._glance()
        assert page._screen._latest.last == 300
        store.close()


def test_where_no_core_is_free_epochs_are_drawn_seldom(
    tmp_path: Path, rested: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    with create_run(directory=tmp_path / "run") as writer:
        writer.write_layers(layer_infos()[:1], LAYOUT, 0.05)
        columns_until(writer, 1000)
        losses_until(writer, 1000)
        store = RunStore([tmp_path])
        page = Session(Document(), store, lambda words: said.append(words) or True)
        losses_until(writer, 1001)
        page._tick()  # the line is begun

        def epoch_ends(epoch: int, crowded: bool, waits_s: float) -> tuple[bool, int]:
            n = 1002 + epoch
            writer.write_epoch(Epoch(epoch, n - 1, n - 1, 0.5, 0.4, {"accuracy": 0.9}, 1.0))
            losses_until(writer, n)
            return on_poll(crowded, waits_s)

        def on_poll(crowded: bool, waits_s: float) -> tuple[bool, int]:
            """Whether a glance shows all that it finds, and how many epochs have their metric."""
            page._screen._reading._pace.crowded = crowded
            monkeypatch.setattr(run_screen, "EPOCHS_S", waits_s)
            alone = page._glance()
            if not alone:
                page._tick()
            page._screen._show_layer()  # as when another layer is opened: they wait all the same
            return alone, sum(map(len, page._screen._figures.metric._lines.lines["xs"]))

        assert epoch_ends(0, crowded=False, waits_s=3600.0) == (False, 1)
        assert epoch_ends(1, crowded=True, waits_s=3600.0) == (True, 1)
        assert said[-1]["steps"] == [1002], "its losses are shown all the same"
        page._screen._show_header()
        header = page._panels._sources["header"].data["html"][0]
        assert "1 epochs finished" in header, "as many as the figures show"
        assert epoch_ends(2, crowded=False, waits_s=3600.0) == (False, 3)
        assert epoch_ends(3, crowded=True, waits_s=3600.0) == (True, 3)
        assert on_poll(crowded=True, waits_s=0.0) == (False, 4), "its time has come"
        assert epoch_ends(4, crowded=True, waits_s=0.0) == (False, 5)
        store.close()


def test_a_page_that_ends_at_a_poll_is_not_looked_at_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with create_run(directory=tmp_path / "run") as writer:
        losses_until(writer, 100)

    async def serve() -> None:
        store = RunStore([tmp_path])
        server = LiveServer(store, make_address(port=0))
        pages = server._pages
        ended = await pages._applications["/"].create_session_if_needed("one")
        await pages._applications["/"].create_session_if_needed("two")
        looked = list[str]()
        for name, page in zip(("one", "two"), pages._sessions, strict=True):
            page.on_poll = lambda name=name: looked.append(name)  # type: ignore[method-assign]
        pages._on_poll()
        ended.destroy()  # what was begun at this poll comes after it
        await asyncio.sleep(0)
        assert looked == ["two"]
        pages._on_poll()
        assert len(pages._sessions) == 1
        server.close()
        store.close()

    asyncio.run(serve())
    assert caplog.text == ""


def test_playing_goes_on_with_what_the_page_has_seen(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore([trained.path])
    page = Session(Document(), store, lambda words: True)

    def after(do: str) -> tuple[str, str]:
        page._do({"do": do})
        told = page._screen.tell()["root"]
        return told["epoch"], told["playing"]

    assert after("play-on") == ("newest", "false"), "nobody plays"
    assert after("play") == ("-1", "true")
    assert after("play-on") == ("0", "true")
    assert after("play") == ("0", "false"), "held"
    assert after("play-on") == ("0", "false")
    assert after("play") == ("0", "true")
    assert after("play-on") == ("newest", "false"), "the end"

    assert after("play") == ("-1", "true")
    with monkeypatch.context() as patched:
        patched.setattr(page._screen._inside, "show", damaged)
        assert after("play-on") == ("-1", "false"), "else it would wait for ever"
    assert "It is damaged." in page._panels._sources["trouble"].data["html"][0]
    assert after("play") == ("-1", "true")
    store.close()


def test_ticks_do_not_pile_up_while_a_document_is_locked(
    tmp_path: Path, rested: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_run(directory=tmp_path / "run") as writer:
        losses_until(writer, 100)
        store, called = RunStore([tmp_path]), list[object]()
        document = Document()
        page = Session(document, store, lambda words: True)
        monkeypatch.setattr(document, "add_next_tick_callback", called.append)
        for n in (200, 300, 400):
            losses_until(writer, n)
            page.on_poll()
        assert len(called) == 1
        page._tick()
        assert page._screen.tell()["root"]["steps"] == "399"
        losses_until(writer, 900)
        page.on_poll()
        assert len(called) == 2
        store.close()


def test_what_was_shown_while_everything_was_read_stays(tmp_path: Path, rested: list[bool]) -> None:
    with create_run(directory=tmp_path / "run") as writer:
        losses_until(writer, 100)
        store = RunStore([tmp_path])
        page = Session(Document(), store, lambda words: True)
        losses_until(writer, 110)
        rested[0] = True
        page._tick()
        rested[0] = False
        wait([page._screen._reading._coming])
        writer.write_steps(step_series(np.ones(115)))
        writer.write_epoch(Epoch(0, 0, 114, 0.5, 0.25, {}, 1.0))
        writer.flush(wait=True)
        while page._screen.tick():
            pass
        assert page._screen._look.follower.epochs == []
        assert len(page._screen._figures.axis.epochs) == 1
        assert "epochs finished" in page._panels._sources["header"].data["html"][0]
        assert page._screen._latest._since == 109
        assert page._screen._latest.last == 114
        (x,) = page._screen._figures.loss._raw.lines["xs"]
        assert x.tolist() == list(range(115))
        store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="priorities are of processes there")
def test_reading_gives_way_and_nothing_else_does(tmp_path: Path) -> None:
    with create_run(directory=tmp_path / "run"):
        store = RunStore([tmp_path])
        (key,) = store.list()
        store.read(key, lambda look: None).result()
        found = store._readers.submit(lambda: os.getpriority(os.PRIO_PROCESS, 0)).result()
        assert found == 19
        assert os.getpriority(os.PRIO_PROCESS, 0) < 19
        store.close()
