"""The beat on which a training hands over, and pages look."""

import time

import pytest

from convlens.beat import BEAT_S, beat, until_beat


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
