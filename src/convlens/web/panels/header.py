"""The run in one line: name, how it stands, the verdict, and its numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from convlens.core.records import LOSS_AT_EVERY_STEP
from convlens.core.wording import without_classes
from convlens.web import formatting
from convlens.web.panels.verdict import badge
from convlens.web.run_data import RunData, as_dict

if TYPE_CHECKING:
    from convlens.web.pages import Page

STATUS = {"running": "busy", **dict.fromkeys(("failed", "crashed", "unreadable"), "problem")}
"""Classes of statuses in style sheets; that a run is finished says nothing of how good it is."""

MAX_METRICS = 3


def header(page: Page) -> dict[str, Any]:
    """Status, verdict and the numbers of the newest epoch."""
    run = page.run
    count = as_dict(run.meta.get("model")).get("n_parameters")
    shown = [
        *_outcome(run), ("epochs", _epochs(run)), ("steps", formatting.number(_n_steps(run))),
        ("time", formatting.duration(run.wall_s or None)),
        ("parameters", formatting.number(count) if type(count) is int else ""),
    ]  # fmt: skip
    return {
        "numbers": [(name, value) for name, value in shown if value not in ("", formatting.NONE)],
        "kind": STATUS.get(run.status, ""),
        "badge": badge(run.findings),
        "ago": max(0, round((datetime.now(UTC) - run.last_written).total_seconds())),
    }


def _outcome(run: RunData) -> list[tuple[str, str]]:
    shown: list[tuple[str, str]] = []
    for newest in run.epochs[-1:]:
        metrics = list(without_classes(newest.metrics).items())[:MAX_METRICS]
        shown = [(formatting.short(name, 18), formatting.metric(name, v)) for name, v in metrics]
        if newest.valid_loss is not None:
            return [*shown, ("validation loss", formatting.loss(newest.valid_loss))]
        if newest.train_loss is not None:
            return [*shown, ("training loss", formatting.loss(newest.train_loss))]
    last = run.curves.loss.mean[-1:].tolist()
    return [*shown, *(("training loss", formatting.loss(value)) for value in last)]


def _epochs(run: RunData) -> str:
    planned, n = run.meta.get("n_epochs"), len(run.epochs)
    if type(planned) is int and planned > n:
        return f"{n} of {planned:,}"
    return f"{n}" if n else ""


def _n_steps(run: RunData) -> int:
    """Optimizer steps: those recorded, or, where a loop logs few or none, those watched."""
    if len(run.steps) and run.meta.get(LOSS_AT_EVERY_STEP, True):
        return len(run.steps)
    last = [*run.steps.step[-1:].tolist(), *run.figures().last_step[-1:].tolist()]
    return max(last, default=-1) + 1
