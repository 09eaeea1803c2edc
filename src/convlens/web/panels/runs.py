"""The list of runs: sorted, filtered and grouped by folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from convlens.core.records import Finding
from convlens.web import formatting
from convlens.web.panels.verdict import badge
from convlens.web.run_summary import RunSummary
from convlens.web.view import View

MOST_SHOWN = 500

WIDTH, HEIGHT = 120, 28
"""Of the small curve of the loss, in pixels."""

KINDS = {"running": "busy", "failed": "problem", "crashed": "problem", "unreadable": "problem"}

Listed = tuple[RunSummary, Sequence[Finding] | None]

# Per column: its head, how a run is sorted by it, and whether the largest comes first.
COLUMNS: Mapping[str, tuple[str, Callable[[Listed], Any], bool]] = {
    "name": ("name", lambda one: one[0].path.name.casefold() or None, False),
    "verdict": ("verdict", lambda one: _rank(one[1]), True),
    "status": ("status", lambda one: one[0].status or None, False),
    "accuracy": ("accuracy", lambda one: one[0].last, True),
    "loss": ("validation loss", lambda one: one[0].valid_loss, False),
    "rate": ("learning rate", lambda one: one[0].rate, True),
    "model": ("model", lambda one: one[0].model.casefold() or None, False),
    "started": ("started (UTC)", lambda one: _moment(one[0].created), True),
    "time": ("time", lambda one: one[0].wall_s, True),
}


def runs(listed: Sequence[Listed], places: Sequence[str], view: View) -> dict[str, Any]:
    """The rows that are shown, by folder.

    Args:
        listed: every run, with its findings if they are known.
        places: the folders that are looked through.
        view: how they are sorted and filtered.
    """
    column = view.order.removeprefix("-")
    if column not in COLUMNS:
        column, view = "started", view.but(order="-started")
    words = view.filter.casefold().split()
    found = [one for one in listed if all(word in _words(one) for word in words)]
    chosen = _sorted(found, COLUMNS[column][1], view.order.startswith("-"))[:MOST_SHOWN]
    grouped: dict[str, list[dict[str, Any]]] = {}
    for one in chosen:
        grouped.setdefault(one[0].folder, []).append(_row(*one))
    return {
        "heads": [_head(name, column, view) for name in COLUMNS],
        "groups": sorted(grouped.items()),
        "by_folder": len({one.folder for one, _ in listed}) > 1,
        "counts": (len(chosen), len(found), len(listed)),
        "places": places,
    }


def count(findings: Sequence[Finding] | None) -> Mapping[str, int] | None:
    """How many findings there are of each severity; None if they are not known yet."""
    return None if findings is None else Counter(one.severity for one in findings)


def spark(losses: Sequence[tuple[float, float]]) -> str:
    """The path of an SVG: the loss by step, on a logarithmic scale where it spans much."""
    values = [y for _, y in losses]
    if len(values) < 2:
        return ""
    if min(values) > 0 and max(values) > 30 * min(values):
        values = [math.log(y) for y in values]
    first, width = losses[0][0], (losses[-1][0] - losses[0][0]) or 1.0
    scale = max(map(abs, values)) or 1.0  # the range of huge values may be infinite
    low, high = min(values) / scale, max(values) / scale
    points = [
        f"{1 + (x - first) / width * (WIDTH - 2):.1f},"
        f"{1 + (high - y / scale) / ((high - low) or 1.0) * (HEIGHT - 2):.1f}"
        for (x, _), y in zip(losses, values, strict=True)
    ]
    return "M" + "L".join(points)


def _row(run: RunSummary, findings: Sequence[Finding] | None) -> dict[str, Any]:
    last = formatting.metric(run.metric, run.last)
    best = last if run.best is None else formatting.metric(run.metric, run.best)
    return {
        "run": run,
        "badge": badge(findings),
        "kind": KINDS.get(run.status, ""),
        "metric": "" if run.metric.lower() == "accuracy" else run.metric,
        "accuracy": best,
        "last": last if last != best else "",
        "started": _when(run.created),
        "spark": spark(run.losses),
    }


def _head(name: str, column: str, view: View) -> dict[str, Any]:
    words, _, falling = COLUMNS[name]
    is_falling = view.order.startswith("-")
    if name == column:
        falling = not is_falling
    order = view.but(order=f"-{name}" if falling else name)
    sort = ("descending" if is_falling else "ascending") if name == column else "none"
    return {"name": name, "words": words, "href": f"/?{order.query}", "sort": sort}


def _sorted(found: list[Listed], key: Callable[[Listed], Any], falling: bool) -> list[Listed]:
    """Those without a value come last, whichever way it goes."""
    known = sorted((one for one in found if key(one) is not None), key=key, reverse=falling)
    return known + [one for one in found if key(one) is None]


def _rank(findings: Sequence[Finding] | None) -> tuple[int, int] | None:
    found = count(findings)
    return None if found is None else (found.get("problem", 0), found.get("warning", 0))


def _words(one: Listed) -> str:
    run, findings = one
    texts = (run.path.name, run.model, run.status, run.folder, badge(findings)[0])
    return " ".join(texts).casefold()


def _moment(created: str) -> float | None:
    try:
        moment = datetime.fromisoformat(created)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _when(created: str) -> str:
    moment = _moment(created)
    if moment is None:
        return formatting.short(created or formatting.NONE, 16)
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M}"
