"""What a page knows of its run's record: the newest losses at each poll, everything when it is due.

Reading everything takes a thread that gives way to a training; until it is done the page goes on
with the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from convlens.core.records import Epoch
from convlens.core.steps import StepCurves, empty_steps, join_steps, take_steps
from convlens.runs.follower import Newest
from convlens.views.live.pace import Pace
from convlens.views.live.store import Look

MOST_NEWEST = 16_384
"""Where there are more new losses than this, everything is looked at, which sums them up."""


class Latest:
    """The losses that a page shows beyond those of its last look at everything.

    Args:
        glance: reads what came after a step; see `RunFollower.newest`.

    Attributes:
        steps: those losses.
        epochs: all finished epochs that are shown.
    """

    def __init__(self, glance: Callable[[int], Newest]) -> None:
        self._glance = glance
        self.steps = empty_steps()
        self.epochs: Sequence[Epoch] = ()
        self._since = -1
        self._known: tuple[object, object, int] | None = None

    def begin(
        self,
        curves: StepCurves,
        epochs: Sequence[Epoch],
        meta: Mapping[str, Any],
        n_layers: int,
    ) -> None:
        """Everything was looked at, a while ago: losses, epochs, facts, how many layers there are.

        What was shown since then is still to be shown, unless it is of another run.
        """
        known, self._known = self._known, (meta.get("created"), meta.get("status"), n_layers)
        self._since = int(curves.last_step[-1]) if len(curves) else -1
        same = known is not None and known[0] == self._known[0]
        self.steps = take_steps(self.steps, np.flatnonzero(same & (self.steps.step > self._since)))
        self.epochs = self.epochs if same and len(self.epochs) > len(epochs) else epochs

    @property
    def last(self) -> int:
        """The last step whose loss is shown, -1 if none is."""
        return int(self.steps.step[-1]) if len(self.steps) else self._since

    def look(self) -> Newest | None:
        """What is new, to be shown and then added; None if everything has to be looked at.

        As there are losses or layers now and were none, or the run has ended, or is another.
        """
        newest = self._glance(self.last)
        begun = self.last < 0 and len(newest.steps) > 0
        many = len(self.steps) + len(newest.steps) > MOST_NEWEST
        seen = newest.created, newest.status, newest.n_layers
        return None if begun or many or seen != self._known else newest

    def add(self, newest: Newest) -> None:
        """This is shown too."""
        self.steps, self.epochs = join_steps([self.steps, newest.steps]), newest.epochs


class Reading:
    """Has everything read when it is due, one time after the other.

    Args:
        begin: begins to read.
    """

    def __init__(self, begin: Callable[[], Future[Look]]) -> None:
        self._begin, self._pace = begin, Pace()
        self._coming: Future[Look] | None = None
        self._error: BaseException | None = None
        self._taken: Look | None = None

    def has_news(self) -> bool:
        """Whether there is something for `take`: what was read, or why it could not be."""
        coming = self._coming
        if coming is None or not coming.done() or self._error is not None:
            return self._error is not None
        if coming.exception() is None and coming.result() == self._taken:
            self._coming = None
            return False
        return True

    def take(self) -> Look | None:
        """What was read since the last time, None if nothing was.

        Raises:
            RunError: if it could not be read; again each time, until it could.
        """
        coming, look = self._coming, None
        if coming is not None and coming.done():
            self._coming, self._error = None, coming.exception()
            look = self._taken = None if self._error is not None else coming.result()
        if self._error is not None:
            self._coming = self._coming or self._begin()
            raise self._error
        return look

    @property
    def crowded(self) -> bool:
        """Whether no core is free, as far as is known."""
        return self._pace.crowded

    def begin_when_due(self, age_s: float) -> None:
        """Begin, unless that is too soon; see `Pace.due`."""
        if self._coming is None and self._pace.due(age_s):
            self._coming = self._begin()
