"""Beside the screen: training images, confusion and mistakes, findings, the summary, the meta."""

from __future__ import annotations

from collections.abc import Sequence

from convlens.core.records import Finding
from convlens.core.snapshots import Confusion, Mistakes
from convlens.runs.follower import RunFollower
from convlens.views import panels as shown
from convlens.views import tables
from convlens.views.gallery import gallery
from convlens.views.live.layout import SIDES
from convlens.views.live.models import Panels
from convlens.views.markup import say, text

Pair = tuple[int, int]

NO_BATCH = "No training images were kept in this run: train with the callback Pictures."
LOOKING = "The findings are being worked out."


class Beside:
    """One of several things, chosen by a row of buttons.

    Args:
        panels: where it is put.
    """

    def __init__(self, panels: Panels) -> None:
        self._panels = panels
        self.side = next(iter(SIDES))
        self.pair: Pair | None = None

    def choose(self, side: str) -> None:
        """Show another of them; a name that is none changes nothing."""
        if side in SIDES:
            self.side = side

    def show(
        self, follower: RunFollower, epoch: int | None, findings: Sequence[Finding] | None
    ) -> None:
        """Put the buttons and what was chosen."""
        buttons = "".join(
            f'<button type="button" role="tab" data-do="side" data-side="{key}" '
            f'data-key="side-{key}" aria-selected="{str(key == self.side).lower()}">'
            f"{text(word)}</button>"
            for key, word in SIDES.items()
        )
        self._panels.put("tabs", f'<div class="tabs" role="tablist">{buttons}</div>')
        self._panels.put("beside", self._body(follower, epoch, findings))

    def _body(
        self, follower: RunFollower, epoch: int | None, findings: Sequence[Finding] | None
    ) -> str:
        run = follower.run
        if self.side == "images":
            batch = run.pictures("batch")
            return gallery(batch[-1]) if batch else say(NO_BATCH)
        if self.side == "confusion":
            matrix = run.snapshot(Confusion, epoch=epoch)
            kept = run.snapshot(Mistakes, epoch=epoch)
            table = shown.confusion(matrix, run.snapshot_epochs(Confusion), self.pair)
            return f'<div class="halves">{table}{shown.mistakes(kept, self.pair, matrix)}</div>'
        if self.side == "findings":
            if findings is None:
                return say(LOOKING)
            return shown.findings(
                findings, [info.name for info in follower.layers_of("activation")]
            )
        if self.side == "summary":
            return tables.summary(follower.meta.get("summary"))
        return tables.meta(follower.meta)
