"""The beat on which a training hands over, and pages look."""

import time

import pytest

from convlens.core.beat import BEAT_S, Beats, until_beat
from convlens.views.live.pace import LATE_S


@pytest.mark.parametrize("now", [0.0, 0.1, 1_000_000.7, 1_780_000_000.123])
@pytest.mark.parametrize("late", [0.0, 0.1, 0.5])
def test_whoever_waits_for_a_beat_comes_so_much_after_it(monkeypatch, now: float, late: float):
    monkeypatch.setattr(time, "time", lambda: now)
    wait = until_beat(late)
    assert 0.0 < wait <= BEAT_S
    off = (now + wait - late) % BEAT_S
    assert min(off, BEAT_S - off) < 1e-5


class Clock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.now = 100.2 * BEAT_S

    def __call__(self) -> float:
        return self.now

    def to(self, beats: float) -> None:
        self.now = beats * BEAT_S


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


def test_once_a_beat_something_is_due(clock: Clock) -> None:
    beats = Beats()
    clock.to(100.9)
    assert not beats.due()
    clock.to(101.1)
    assert beats.due()
    assert beats.due(), "asking changes nothing"
    beats.done()
    assert not beats.due()


def test_it_is_due_now_if_the_next_chance_is_too_late(clock: Clock) -> None:
    beats = Beats()
    clock.to(100.7)
    assert not beats.due(0.2 * BEAT_S)
    assert beats.due(0.4 * BEAT_S)
    beats.done(0.4 * BEAT_S)
    clock.to(100.8)
    assert not beats.due(0.1 * BEAT_S), "the next came sooner than it was thought to"
    clock.to(101.5)
    assert not beats.due(0.1 * BEAT_S), "it was done for this one"
    clock.to(102.1)
    assert beats.due()


def test_a_clock_that_is_set_back_is_followed(clock: Clock) -> None:
    beats = Beats()
    clock.to(50.0)
    assert beats.due()


@pytest.mark.parametrize("step_s", [0.003, 0.07, 0.142, 0.29, 0.31, 0.5, 0.7, 1.3])
def test_every_step_is_looked_at_within_a_second_however_long_steps_are(
    clock: Clock, step_s: float
) -> None:
    """As a training commits, and a page looks a tenth of a second after each beat."""
    beats, begin, waiting, committed = Beats(), clock.now, list[float](), list[float]()
    look = clock.now + until_beat(LATE_S)
    ages, commits = list[float](), 0
    for step in range(1, 400):
        clock.now = begin + step * step_s
        while look < clock.now:
            ages += [look - ended for ended in committed]
            committed.clear()
            look += BEAT_S
        waiting.append(clock.now)
        if beats.due(step_s):
            beats.done(step_s)
            committed += waiting
            waiting.clear()
            commits += 1
    assert len(ages) > 100
    assert max(ages) <= BEAT_S + LATE_S + 1e-6
    assert commits <= max(400 * step_s / BEAT_S, 400 * (step_s > BEAT_S)) + 2
