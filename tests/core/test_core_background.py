"""Work beside a training: it ends no step, it is never waited for in vain, and nothing is lost."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable

import pytest

from convlens.core.background import Background, Notices
from convlens.errors import ConvlensWarning


class Work:
    """Pieces that are done in order, at most one at a time."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()
        self.lock = threading.Lock()
        self.background = Background("Testing", self.next, lambda: None)

    def next(self) -> float | None:
        with self.lock:
            if not self.waiting:
                return None
            self.waiting.popleft()()
        return 0.0

    def add(self, piece: Callable[[], None]) -> None:
        self.waiting.append(piece)
        if not self.background.wake():
            self.background.wait()


def test_pieces_are_done_in_order_in_another_thread() -> None:
    work, done = Work(), list[tuple[int, bool]]()
    own = threading.get_ident()
    for k in range(200):
        work.add(lambda k=k: done.append((k, threading.get_ident() != own)))
    work.background.wait()
    assert [k for k, _ in done] == list(range(200))
    assert all(elsewhere for _, elsewhere in done)


def test_an_error_is_said_once_and_the_rest_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.core.background.FAILED_S", 0.001)
    work, done = Work(), list[int]()

    def fail() -> None:
        raise ZeroDivisionError("no reason")

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for k in range(3):
            work.add(fail)
            work.add(lambda k=k: done.append(k))
        work.background.wait()
    assert done == [0, 1, 2]
    assert [str(warning.message) for warning in said] == [
        "Testing failed and was left out (ZeroDivisionError: no reason)."
    ]
    assert said[0].category is ConvlensWarning


def test_a_thread_that_dies_as_it_is_born_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where its first lines find no memory: `threading.Thread.start` waits for ever then."""
    monkeypatch.setattr("convlens.core.background.BORN_S", 0.01)
    monkeypatch.setattr(_thread, "start_new_thread", lambda work, arguments: 1)
    work, done = Work(), list[int]()
    for k in range(3):
        work.add(lambda k=k: done.append(k))
        work.background.wait()
        assert done == list(range(k + 1))


def test_where_no_thread_can_be_started_the_caller_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    work, done = Work(), list[int]()
    with pytest.warns(ConvlensWarning, match=r"Testing takes the training's own time, .*ulimit"):
        work.add(lambda: done.append(1))
    work.add(lambda: done.append(2))
    assert done == [1, 2]


def test_a_fork_does_its_own_work() -> None:
    source = """
import os, sys, time, warnings
sys.path.insert(0, sys.argv[1])
from test_core_background import Work
warnings.simplefilter("ignore")
work = Work()
work.add(lambda: None)
work.background.wait()
work.add(lambda: time.sleep(0.2))  # its thread lives on in the parent only
child = os.fork()
if child == 0:
    work.waiting.clear()
    work.lock = __import__("threading").Lock()
    done = []
    work.add(lambda: done.append(1))
    os._exit(0 if done == [1] else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    folder = os.path.dirname(__file__)  # noqa: PTH120
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", source, folder], check=True, env=environment, timeout=60)


def test_what_waits_at_the_exit_is_finished() -> None:
    source = """
import sys, time
from convlens.core.background import Background
waiting = [1, 2, 3]
def work():
    if not waiting:
        return None
    time.sleep(0.1)
    print(waiting.pop(0), flush=True)
    return 0.0
background = Background("Testing", work, lambda: background.wait())
background.wake()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", source], check=True, env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("1\n2\n3\n", "")


def test_a_problem_is_said_once_and_once_when_it_is_over() -> None:
    notices = Notices()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        notices.over("nothing was wrong")
        for _ in range(3):
            notices.say("disk", "the disk is full")
            notices.say("lock", "it is locked")
        notices.over("it goes on")
        notices.over("it goes on")
        notices.say("disk", "the disk is full again")
    assert [str(warning.message) for warning in said] == [
        "the disk is full",
        "it is locked",
        "it goes on",
        "the disk is full again",
    ]


def test_a_problem_ends_nothing_where_warnings_are_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Notices().say("disk", "the disk is full")
