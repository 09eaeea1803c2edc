"""What a run is, in words: its name, its state, its headline, its findings; a layer's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from convlens.core.records import Epoch, Finding
from convlens.views import words
from convlens.views.markup import duration, label, plain, text
from convlens.views.panels.elements import button, figures, note, panel
from convlens.views.tables import FIRST

QUIET_S = 60.0
"""A run that is not closed and was not written to for so long may have been cut off."""

COUNTING = ("steps", "wall time")
"""The figures at the top that change with every step."""

NO_ROW = "The run's summary says nothing about this layer."


def header(
    name: str,
    meta: Mapping[str, Any],
    epochs: Sequence[Epoch],
    n_steps: int,
    wall_s: float | None,
    last_written: datetime,
    now: datetime,
) -> str:
    """The run's name, its state in words, and its headline figures.

    Args:
        name: the run's name.
        meta: what it knows of itself.
        epochs: its finished epochs.
        n_steps: recorded optimizer steps.
        wall_s: seconds since training began, None if unknown.
        last_written: when the record last grew.
        now: the time that this is read at.
    """
    status = str(meta.get("status", ""))
    kind, state = state_of(meta, epochs, n_steps, last_written, now)
    shown = [pair for pair in words.figures(meta, epochs, n_steps, wall_s) if pair[0] != "status"]
    badge = f'<span class="status {kind}">{text(_short(status, kind))}</span>'
    title = f"<h1>{text(name)} {badge}</h1>"
    line = f'<p class="state-line" title="{text(state)}">{_counting(state, n_steps)}</p>'
    return panel("facts-top", title, line, figures(shown, counting=COUNTING))


def state_of(
    meta: Mapping[str, Any],
    epochs: Sequence[Epoch],
    n_steps: int,
    last_written: datetime,
    now: datetime,
) -> tuple[str, str]:
    """A word for the state's colour, and the state in a sentence."""
    status = str(meta.get("status", ""))
    written = f"{last_written:%Y-%m-%d at %H:%M:%S} UTC"
    ago = max((now - last_written).total_seconds(), 0.0)
    progress = _progress(meta, epochs, n_steps)
    if status == "running" and ago <= QUIET_S:
        return "busy", f"Training: {progress}; last written to {duration(ago)} ago."
    if status == "running":
        return "bad", (
            f"Nothing was written to this run for {_long(ago)}: a step takes that long, or it runs "
            "on another machine and was cut off. "
            f"{progress.capitalize()}, until {written}."
        )
    if status in ("failed", "crashed"):
        error = str(meta.get("error") or "no reason was recorded")
        crashed = f"{error} {progress.capitalize()}, until {written}."
        failed = f"Training failed on {written}: {error}"
        return "bad", crashed if status == "crashed" else failed
    if status == "stopped":
        return "still", f"Stopped before its end, on {written}: {progress}."
    if status == "finished":
        return "good", f"Finished on {written}: {progress}."
    return "still", f"No state was recorded; last written to on {written}."


def facts_of_layer(meta: Mapping[str, Any], layer: str) -> str:
    """The chosen layer's row of the model's summary: what the table has first."""
    summary = meta.get("summary")
    rows = summary.get("rows") if isinstance(summary, dict) else None
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("name") == layer:
            keys = [key for key in FIRST if row.get(key) not in (None, "", [])]
            told = ((label(key), plain(row[key])) for key in keys)
            return panel("layer-facts", figures(told, "small"))
    return panel("layer-facts", note(NO_ROW))


def findings(found: Sequence[Finding], layers: Sequence[str], live: bool = True) -> str:
    """What the doctor saw; a layer's name answers with ``layer``, and is a link in the report.

    Args:
        found: from the doctor.
        layers: names of the layers that can be opened.
        live: whether it answers.
    """

    def lead(name: str, inner: str) -> str:
        return button(inner, "layer", {"name": name}, True, "link")

    return panel("found", words.findings_list(found, layers, lead if live else None))


def _counting(state: str, n_steps: int) -> str:
    """The sentence with its number of steps where the page's script can count on."""
    count = f"{n_steps:,}"
    marked = f' <span data-figure="steps">{count}</span> steps'
    return text(state).replace(f" {count} steps", marked)


def _short(status: str, kind: str) -> str:
    if status == "running":
        return "training" if kind == "busy" else "no news"
    return words.STATUS.get(status, status or "unknown")


def _progress(meta: Mapping[str, Any], epochs: Sequence[Epoch], n_steps: int) -> str:
    planned = meta.get("n_epochs")
    of = f" of {planned}" if isinstance(planned, int) else ""
    if not n_steps:
        return "no step yet"
    return f"{len(epochs)}{of} epochs finished, {n_steps:,} steps"


def _long(seconds: float) -> str:
    days = int(seconds // 86_400)
    return duration(seconds) if days < 2 else f"{days} days"
