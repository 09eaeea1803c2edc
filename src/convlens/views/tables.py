"""The tables of a report: epochs, the model's summary, the run's meta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convlens.records import Epoch
from convlens.views.markup import definitions, label, metric, number, plain, rich, text

NO_SUMMARY = "No summary of the model was recorded in this run."

ENVIRONMENT = ("convlens", "python", "torch", "numpy", "platform", "device", "threads")
ELSEWHERE = {"summary"}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], foot: Sequence[str] = ()) -> str:
    """An HTML table of texts that are escaped already; the first column names the row."""
    head = "".join(f"<th scope=col>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{_cells(cells)}</tr>" for cells in rows)
    end = f"<tfoot><tr>{_cells(foot)}</tr></tfoot>" if foot else ""
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>{end}"
    return f'<div class="scroll" tabindex="0"><table>{inner}</table></div>'


def epochs_table(epochs: Sequence[Epoch], names: Sequence[str]) -> str:
    """Losses, metrics and seconds of every epoch."""
    heads = ["epoch", "training loss", "validation loss", *names, "seconds"]
    rows = [
        [
            str(epoch.epoch + 1),
            number(epoch.train_loss),
            plain(epoch.valid_loss),
            *(metric(n, epoch.metrics[n]) if n in epoch.metrics else plain(None) for n in names),
            f"{epoch.wall_s:,.1f}",
        ]
        for epoch in epochs
    ]
    return table([text(h) for h in heads], [[text(cell) for cell in cells] for cells in rows])


def summary(recorded: object) -> str:
    """The model's summary, whatever columns its rows have."""
    if not isinstance(recorded, dict):
        return _say(NO_SUMMARY)
    facts: dict[str, Any] = recorded
    rows = [row for row in _list(facts.get("rows")) if isinstance(row, dict)]
    notes = "".join(_say(note) for note in _list(facts.get("notes")))
    shape = facts.get("input_shape")
    given = _say(f"Input: {plain(shape)} (channels × height × width)") if shape else ""
    totals = facts.get("totals")
    totals = totals if isinstance(totals, dict) else {}
    if not rows:
        return _say(NO_SUMMARY) + notes
    return given + _summary_table(rows, totals) + notes


def meta(values: Mapping[str, Any]) -> str:
    """Everything the run knows of itself: versions and machine, the rest, long texts last."""
    machine = {key: values[key] for key in ENVIRONMENT if key in values}
    rest = {k: v for k, v in values.items() if k not in machine and k not in ELSEWHERE}
    order = ("created", "status", "error", "wall_s", "seed", "command", "data", "model")
    first = {key: rest[key] for key in order if key in rest}
    groups = [first, {k: v for k, v in rest.items() if k not in first}, machine]
    titles = ["Run", "Training", "Versions and machine"]
    blocks = [
        f"<div class=facts><h3>{title}</h3>{definitions(group)}</div>"
        for title, group in zip(titles, groups, strict=True)
        if group
    ]
    return f"<div class=meta>{''.join(blocks)}</div>"


def _summary_table(rows: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    heads = [text(label(key)) for key in keys]
    cells = [[text(plain(row.get(key))) for key in keys] for row in rows]
    foot: list[str] = []
    if any(key in totals for key in keys):
        foot = [text(plain(totals[key])) if key in totals else "" for key in keys]
        foot[0] = foot[0] or "total"
    others = {key: value for key, value in totals.items() if key not in keys}
    more = f"<div class=facts>{rich(others)}</div>" if others else ""
    return table(heads, cells, foot) + more


def _cells(cells: Sequence[str]) -> str:
    first, rest = cells[0], cells[1:]
    return f"<th scope=row>{first}</th>" + "".join(f"<td>{cell}</td>" for cell in rest)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _say(words: object) -> str:
    return f"<p class=note>{text(words)}</p>"
