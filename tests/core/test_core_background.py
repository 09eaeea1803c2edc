"""Work beside a training: it ends no step, it is never waited for in vain, and nothing is lost."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import threading
import warnings

import pytest

from convlens.core.background import Background, Notices
from convlens.errors import ConvlensWarning


def test_tasks_are_run_in_order_in_one_thread() -> None:
    background, done, go = Background("Testing"), list[int](), threading.Event()
    threads = set[int]()
    background.add(go.wait)
    for k in range(200):
        background.add(lambda k=k: (done.append(k), threads.add(threading.get_ident())))
    go.set()
    while background.alive:
        pass
    assert done == list(range(200))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_whoever_waits_helps_and_a_task_may_add_tasks() -> None:
    background, done = Background("Testing"), list[str]()

    def outer() -> None:
        background.add(lambda: done.append("inner"))
        background.wait()  # does not wait for itself
        done.append("outer")

    background.add(outer)
    background.wait()
    assert done == ["outer", "inner"]


def test_an_error_is_said_once_and_the_rest_is_done() -> None:
    background, done = Background("Testing"), list[int]()

    def fail() -> None:
        raise ZeroDivisionError("no reason")

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for k in range(3):
            background.add(fail)
            background.add(lambda k=k: done.append(k))
        background.wait()
    assert done == [0, 1, 2]
    assert [str(warning.message) for warning in said] == [
        "Testing failed and was left out (ZeroDivisionError: no reason)."
    ]
    assert said[0].category is ConvlensWarning


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.core.background.LIMIT", 10)
    monkeypatch.setattr(_thread, "start_new_thread", lambda work, arguments: 1)  # it never comes
    background, done = Background("Testing"), list[int]()
    for k in range(10):
        background.add(lambda k=k: done.append(k), n_bytes=4)
    assert done == list(range(8)), "two of them fit"
    background.add(lambda: done.append(99), n_bytes=1000)
    background.wait()
    assert done == [*range(10), 99], "a larger one than fits is not refused"


def test_it_is_called_again_until_there_is_nothing_to_do() -> None:
    pauses, ended = [0.0, 0.001, None], threading.Event()

    def idle() -> float | None:
        pause = pauses.pop(0)
        if pause is None:
            ended.set()
        return pause

    background = Background("Testing", idle)
    background.add(lambda: None)
    assert ended.wait(60)
    while background.alive:
        pass
    stopped = Background("Testing", lambda: 3600.0)
    stopped.add(lambda: None)
    stopped.stop()
    while stopped.alive:
        pass


def test_a_thread_that_dies_as_it_is_born_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where its first lines find no memory: `threading.Thread.start` waits for ever then."""
    monkeypatch.setattr("convlens.core.background.START_S", 0.0)
    monkeypatch.setattr(_thread, "start_new_thread", lambda work, arguments: 1)
    background, done = Background("Testing"), list[int]()
    for k in range(3):
        background.add(lambda k=k: done.append(k))
    background.wait()
    assert done == [0, 1, 2]


def test_where_no_thread_can_be_started_the_caller_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    background, done = Background("Testing"), list[int]()
    with pytest.warns(ConvlensWarning, match=r"Testing takes the training's own time, .*ulimit"):
        background.add(lambda: done.append(1))
    background.add(lambda: background.add(lambda: done.append(2)))
    assert done == [1, 2]


def run_python(source: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", source],
        check=True, env=environment, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_knows_that_it_has_no_thread() -> None:
    source = """
import os, sys, time, warnings
from convlens.core.background import Background
warnings.simplefilter("ignore")
background = Background("Testing")
background.add(lambda: time.sleep(0.2))  # its thread lives on in the parent only
child = os.fork()
if child == 0:
    done, own = [], Background("Testing")
    own.add(lambda: done.append(1))
    own.wait()
    os._exit(0 if background.is_inherited and done == [1] and not own.is_inherited else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run_python(source)


def test_what_waits_at_the_exit_is_finished() -> None:
    source = """
import time
from functools import partial
from convlens.core.background import Background
background = Background("Testing")
for k in range(3):
    background.add(partial(time.sleep, 0.1))
    background.add(partial(print, k, flush=True))
"""
    assert run_python(source) == "0\n1\n2\n"


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
