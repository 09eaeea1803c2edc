"""`write_report`: one offline HTML file from a run's directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from convlens.core.records import Finding, Picture, RunRecord
from convlens.core.snapshots import Confusion, Mistakes
from convlens.core.steps import StepCurves
from convlens.doctor import diagnose
from convlens.errors import RunError
from convlens.runs import Run
from convlens.views import curves, panels, tables, words
from convlens.views.album import Album, read_album
from convlens.views.canvas import embed
from convlens.views.gallery import gallery
from convlens.views.markup import say, text
from convlens.views.page import Section, page, place
from convlens.views.watched import Watched, layer_sections, matrix_section, read_watched

HYPERS = {"lr": "learning rate", "momentum": "momentum (β₁ for Adam)"}

MAX_METRICS = 8


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write what a run recorded into one HTML file that opens offline, without any request.

    Everything comes from the run's directory, whether it is finished, crashed or still growing.

    Args:
        run: an opened run.
        out: the file to write, replaced if it exists; ``report.html`` in the run's folder if None.

    Returns:
        The file.

    Raises:
        RunError: if the run cannot be read, or the file cannot be written.
    """
    out = run.path / "report.html" if out is None else Path(out)
    _write(out, render(_read(run)))
    return out


@dataclass(frozen=True)
class Contents:
    """All that a report shows.

    Attributes:
        name: the run's name.
        record: its numbers.
        curves: its steps, as many as can be drawn.
        findings: what the doctor saw in them.
        watched: its layers and parameters, brought down to what is drawn.
        album: the pictures inside its layers.
        batch: images of a training batch, None if none were kept.
        worst: the worst predictions of the newest epoch, None if none were kept.
        confusion: which class was taken for which in the newest epoch, None if not kept.
        confusion_epochs: of which that was kept.
        mistakes: what the network was most wrong about, None if not kept.
        last_written: when the record last grew, UTC.
    """

    name: str
    record: RunRecord
    curves: StepCurves
    findings: Sequence[Finding]
    watched: Watched
    album: Album
    batch: Picture | None
    worst: Picture | None
    confusion: Confusion | None
    confusion_epochs: Sequence[int]
    mistakes: Mistakes | None
    last_written: datetime


def render(contents: Contents) -> str:
    """The whole page."""
    record = contents.record
    items: dict[str, str] = {}
    watched, span = contents.watched, _span(record)
    summary = tables.summary(record.meta.get("summary"))
    matrix = matrix_section(record, watched, span, items)
    each = layer_sections(record, watched, contents.album, span, items)
    sections = [
        Section("curves", "Losses and metrics", _curves(contents, span, items), "Losses"),
        Section("schedule", "Schedule", _schedule(contents, span, items), "Schedule"),
        Section("mistakes", "What it gets wrong", _mistakes(contents), "Mistakes"),
        Section("images", "Training images", _images(contents), "Images"),
        Section("layers", "All layers at a glance", matrix, "All layers"),
        Section("summary", "Summary of the model", summary, "Summary"),
        Section("each-layer", "Every layer", each, "Every layer"),
        Section("run", "About this run", tables.meta(record.meta), "Run"),
    ]
    return page(contents.name, _top(contents), sections, items)


def _read(run: Run) -> Contents:
    record = run.record()
    batch, worst = run.pictures("batch"), run.pictures("worst")
    return Contents(
        run.name,
        record,
        run.curves(),
        diagnose(record),
        read_watched(run, record),
        read_album(run),
        batch[-1] if batch else None,
        worst[-1] if worst else None,
        run.snapshot(Confusion),
        run.snapshot_epochs(Confusion),
        run.snapshot(Mistakes),
        run.last_written,
    )


def _span(record: RunRecord) -> tuple[int, int]:
    """First and last step of anything that is drawn over steps."""
    firsts = [int(a[0]) for a in (record.steps.step, *_steps_of(record, "first_step")) if len(a)]
    lasts = [int(a[-1]) for a in (record.steps.step, *_steps_of(record, "last_step")) if len(a)]
    firsts += [epoch.first_step for epoch in record.epochs]
    lasts += [epoch.last_step for epoch in record.epochs]
    return min(firsts, default=0), max(lasts, default=0)


def _steps_of(record: RunRecord, name: str) -> list[np.ndarray]:
    return [getattr(history, name) for history in record.layers]


def _top(contents: Contents) -> str:
    cards = "".join(
        f"<div><dt>{text(label)}</dt><dd>{text(value)}</dd></div>"
        for label, value in words.headline(contents.record)
    )
    notes = "".join(
        f'<p class="state">{text(note)}</p>'
        for note in words.state_notes(contents.record, contents.last_written)
    )
    names = [history.layer.name for history in contents.record.layers]
    found = words.findings_list(contents.findings, names)
    return f'<dl class="cards">{cards}</dl>{notes}<h2 id="findings">Findings</h2>{found}'


def _curves(contents: Contents, span: tuple[int, int], items: dict[str, str]) -> str:
    record = contents.record
    names = words.metric_names(record.epochs)
    if not len(record.steps) and not record.epochs:
        return say(words.NO_STEPS)
    shown = names[:MAX_METRICS]
    items["curves"] = embed(curves.curves(contents.curves, record.epochs, shown, span))
    height = curves.LOSS_HEIGHT + curves.METRIC_HEIGHT * len(shown)
    hint = say("Drag sideways in any figure to zoom all of them; double-click to go back.")
    drawn = hint + place("curves", height, "Losses and metrics by step")
    if not record.epochs:
        return drawn + say(words.NO_EPOCHS)
    return drawn + tables.epochs_table(record.epochs, names)


def _schedule(contents: Contents, span: tuple[int, int], items: dict[str, str]) -> str:
    steps, epochs = contents.curves, contents.record.epochs
    present = {
        n: t for n, t in HYPERS.items() if n in steps.hypers and steps.hypers[n].finite.any()
    }
    missing = [t.partition(" (")[0] for n, t in HYPERS.items() if n not in present]
    note = say(f"No {' and no '.join(missing)} was recorded.") if missing else ""
    if not present:
        return note
    items["schedule"] = embed(curves.schedule(steps, epochs, present, span))
    return place("schedule", curves.SCHEDULE_HEIGHT, "Schedule by step") + note


def _mistakes(contents: Contents) -> str:
    """The confusion of classes, and the images that the network was most wrong about."""
    matrix, kept, worst = contents.confusion, contents.mistakes, contents.worst
    first = panels.confusion(matrix, contents.confusion_epochs, live=False)
    if kept is not None or worst is None:
        return first + panels.mistakes(kept, None, matrix)
    title = f"<h3>The worst predictions, after epoch {worst.epoch + 1}</h3>"
    return f'{first}<div class="inside">{title}{gallery(worst)}</div>'


def _images(contents: Contents) -> str:
    batch = contents.batch
    return gallery(batch) if batch else say("No training images were kept in this run.")


def _write(out: Path, html: str) -> None:
    """Write under a temporary name and rename: whoever reloads the page never sees half of it."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(".html", ".report-", out.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(html.encode("utf-8", "replace"))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(out)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise RunError(
            f"out={str(out)!r} cannot be written ({error.strerror}); give an HTML file in a folder "
            "that exists and that you may write to."
        ) from error
