"""The list of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from convlens.runs.folder import RunInfo
from convlens.views.markup import NONE, metric, text
from convlens.views.panels.elements import attributes, nothing, panel

NO_RUNS = (
    "There is no run here yet. Train one, for instance by the command: convlens train mnist. It "
    "appears in this list as soon as its training begins."
)

MOST_METRICS = 4

COLUMNS = ("name", "status", "created", "epochs")

HEADS = {"created": "created (UTC)"}

KINDS = {
    "finished": "good",
    "running": "busy",
    "stopped": "still",
    "failed": "bad",
    "crashed": "bad",
}


def runs(
    infos: Sequence[RunInfo],
    ident: Callable[[RunInfo], str],
    column: str = "created",
    descending: bool = True,
    compared: Sequence[str] = (),
    live: bool = True,
) -> str:
    """The runs of a folder as a table.

    A heading answers with ``sort`` (column), a check box with ``compare`` (id). A run's name leads
    to ``?run=ID``; once two are ticked, a link leads to ``?run=ID&compare=ID``.

    Args:
        infos: one for each run.
        ident: a run's id, as the page's address has it.
        column: what it is sorted by: ``"name"``, ``"status"``, ``"created"``, ``"epochs"`` or the
            name of a metric.
        descending: the greatest first.
        compared: ids of the runs that are ticked.
        live: whether it answers; without, there are no links either.
    """
    if not infos:
        return nothing("runs", NO_RUNS)
    names = list(dict.fromkeys(name for info in infos for name in info.metrics))[:MOST_METRICS]
    columns = [*COLUMNS, *names]
    heads = "".join(_head(one, one == column, descending, live) for one in columns)
    tick = '<th scope="col"><span class="hidden">compare</span></th>' if live else ""
    rows = "".join(
        _row(info, ident(info), names, ident(info) in compared, live)
        for info in sorted_runs(infos, column, descending)
    )
    inner = f"<thead><tr>{tick}{heads}</tr></thead><tbody>{rows}</tbody>"
    table = f'<table class="runs-table">{inner}</table>'
    chosen = _compare_bar(infos, ident, compared) if live else ""
    return panel("runs", chosen, f'<div class="scroll" tabindex="0">{table}</div>')


def sorted_runs(infos: Sequence[RunInfo], column: str, descending: bool) -> list[RunInfo]:
    """The runs by a column; those without a value there come last, whichever way it goes."""
    keys = {id(info): _key(info, column) for info in infos}
    known = [info for info in infos if keys[id(info)] is not None]
    others = [info for info in infos if keys[id(info)] is None]
    known.sort(key=lambda info: (keys[id(info)], info.name), reverse=descending)
    return [*known, *sorted(others, key=lambda info: info.name)]


def _key(info: RunInfo, column: str) -> str | float | None:
    if column == "epochs":
        return None if info.problem else float(info.n_epochs)
    if column in COLUMNS:
        return {"name": info.name, "status": info.status, "created": info.created}[column] or None
    value = info.metrics.get(column)
    return None if value is None or math.isnan(value) else float(value)


def _head(column: str, is_sorted: bool, descending: bool, live: bool) -> str:
    kind = "" if column in COLUMNS[:3] else ' class="number"'
    words = text(HEADS.get(column, column))
    if not live:
        return f'<th scope="col"{kind}>{words}</th>'
    order = ("descending" if descending else "ascending") if is_sorted else "none"
    sign = {"descending": "▼", "ascending": "▲", "none": ""}[order]
    return (
        f'<th scope="col"{kind} aria-sort="{order}"><button type="button" '
        f"{attributes('sort', {'column': column})}>{words} "
        f'<span aria-hidden="true">{sign}</span></button></th>'
    )


def _row(info: RunInfo, key: str, names: Sequence[str], ticked: bool, live: bool) -> str:
    name = f'<a href="?run={_quoted(key)}">{text(info.name)}</a>' if live else text(info.name)
    tick = f"<td>{_tick(info, key, ticked)}</td>" if live else ""
    badge = f'<span class="status {_kind(info)}">{text(info.status or NONE)}</span>'
    if info.problem is not None:
        shown = f'{badge} <span class="problem">{text(info.problem)}</span>'
        rest = f'<td colspan="{3 + len(names)}">{shown}</td>'
        return f'<tr>{"<td></td>" if live else ""}<th scope="row">{text(info.name)}</th>{rest}</tr>'
    values = "".join(
        f'<td class="number">{metric(n, info.metrics[n]) if n in info.metrics else NONE}</td>'
        for n in names
    )
    return (
        f'<tr>{tick}<th scope="row">{name}</th><td>{badge}</td><td>{_when(info.created)}</td>'
        f'<td class="number">{info.n_epochs:,}</td>{values}</tr>'
    )


def _tick(info: RunInfo, key: str, ticked: bool) -> str:
    state = " checked" if ticked else ""
    label = f"compare {info.name}"
    return (
        f'<input type="checkbox"{state} aria-label="{text(label)}" '
        f"{attributes('compare', {'id': key})}>"
    )


def _compare_bar(
    infos: Sequence[RunInfo], ident: Callable[[RunInfo], str], compared: Sequence[str]
) -> str:
    known = {ident(info): info.name for info in infos}
    ticked = [key for key in compared if key in known]
    if len(ticked) != 2:
        words = "Tick two runs to see them side by side."
        if len(ticked) == 1:
            words = f"{known[ticked[0]]} is ticked: tick another run to see both side by side."
        return f'<p class="compare">{text(words)}</p>'
    a, b = ticked
    words = f"Compare {text(known[a])} with {text(known[b])}"
    href = f"?run={_quoted(a)}&amp;compare={_quoted(b)}"
    return f'<p class="compare"><a class="go" href="{href}">{words}</a></p>'


def _quoted(key: str) -> str:
    """An id as part of an address."""
    return quote(key, safe="")


def _kind(info: RunInfo) -> str:
    return "bad" if info.problem else KINDS.get(info.status, "still")


def _when(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return text(created or NONE)
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M}"
