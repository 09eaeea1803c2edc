"""The beat on which a training hands over, and pages look."""

import time

import pytest

from convlens.beat import BEAT_S, beat, beat_for, until_beat


@pytest.mark.parametrize("now", [0.0, 0.1, 1_000_000.7, 1_780_000_000.123])
@pytest.mark.parametrize("late", [0.0, 0.1, 0.5])
def test_whoever_waits_for_a_beat_comes_so_much_after_it(monkeypatch, now: float, late: float):
    monkeypatch.setattr(time, "time", lambda: now)
    wait, before = until_beat(late), beat()
    assert 0.0 < wait <= BEAT_S
    monkeypatch.setattr(time, "time", lambda: now + wait + 1e-6)
    off = (now + wait - late) % BEAT_S
    assert min(off, BEAT_S - off) < 1e-5
    assert beat() - before in (0, 1)
    monkeypatch.setattr(time, "time", lambda: now + BEAT_S)
    assert beat() == before + 1


def test_what_the_next_would_be_too_late_for_is_handed_over_now(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 100 * BEAT_S + 0.7 * BEAT_S)
    assert beat_for(0.2 * BEAT_S) == beat()
    assert beat_for(0.4 * BEAT_S) == beat() + 1
    assert beat_for(9.0) == beat() + 1


@pytest.mark.parametrize("step_s", [0.003, 0.07, 0.142, 0.29, 0.31, 0.5, 0.7, 1.3])
def test_every_step_is_looked_at_within_a_second_however_long_steps_are(monkeypatch, step_s):
    """As a training commits and a page looks, on a clock that is turned by hand."""
    late_s, now, shown, waiting, committed = 0.1, 0.013, 0, [], []
    monkeypatch.setattr(time, "time", lambda: now)
    look = now + until_beat(late_s)
    worst = commits = looks = 0
    for step in range(1, 400):
        end = 0.013 + step * step_s
        while look < end:
            now = look
            worst, committed, looks = max([worst, *(look - t for t in committed)]), [], looks + 1
            look += BEAT_S
        now = end
        waiting.append(end)
        due = beat_for(step_s)
        if due not in (shown, shown - 1):
            committed, waiting, shown, commits = committed + waiting, [], due, commits + 1
    assert worst <= BEAT_S + late_s + 1e-6
    assert commits <= max(looks, 400 * (step_s > BEAT_S)) + 1
