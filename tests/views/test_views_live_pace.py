"""What the page sends, when, and how often."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bokeh.document import Document
from bokeh.models import ColumnDataSource
from bokeh.protocol import Protocol
from bokeh.server.session import ServerSession
from views_data import step_series

from convlens.runs import create_run
from convlens.views.live import pace
from convlens.views.live.server import _Connection
from convlens.views.live.session import Session
from convlens.views.live.store import RunStore


class Clock:
    """A clock, and a thread that has worked for some of the time."""

    def __init__(self) -> None:
        self.now = self.used = 0.0

    def pass_by(self, seconds: float, work_s: float) -> None:
        self.now += seconds
        self.used += work_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(time, "thread_time", lambda: clock.used)
    return clock


def test_costly_work_waits_until_it_is_a_small_share(clock: Clock) -> None:
    paced = pace.Pace()
    clock.pass_by(0.5, 0.001)
    assert paced.due()
    clock.pass_by(0.5, 0.03)  # six hundredths of the time
    assert not paced.due()
    clock.pass_by(0.03 / pace.SHARE - 0.5 - 0.01, 0.0)
    assert not paced.due()
    clock.pass_by(0.02, 0.0)
    assert paced.due()


def test_costly_work_does_not_wait_for_ever(clock: Clock) -> None:
    paced = pace.Pace()
    clock.pass_by(pace.LONGEST_S - 0.01, 1.0)
    assert not paced.due()
    clock.pass_by(0.02, 0.02)
    assert paced.due()


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
    kinds = [[event["kind"] for event in message.content["events"]] for message in socket.sent]
    assert kinds == [["ColumnDataChanged"] * 4 + ["TitleChanged"], ["TitleChanged"]]


def test_a_page_that_nobody_sees_reads_and_shows_nothing(tmp_path: Path) -> None:
    writer = create_run(directory=tmp_path / "run")
    writer.write_steps(step_series(np.ones(10)))
    writer.flush(wait=True)
    store = RunStore([tmp_path])
    session = Session(Document(), store)

    def last() -> str:
        return session._screen.tell()["root"]["steps"]

    assert last() == "9"
    session._do({"do": "visible", "value": False})
    writer.write_steps(step_series(np.ones(20)))
    writer.flush(wait=True)
    session._tick()
    assert last() == "9"
    for followed in store._open.values():
        followed._at = {True: -1e9, False: -1e9}  # it was looked at long ago
    session._do({"do": "visible", "value": True})
    assert last() == "19"
    writer.close()
    store.close()
