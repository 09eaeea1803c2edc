"""What a report says in words: the headline figures, the state of the run, one line per layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from convlens.core.buckets import Flags, Ints
from convlens.core.histories import LayerHistory
from convlens.core.records import Epoch, Finding, RunRecord
from convlens.core.steps import StepSeries
from convlens.core.wording import plural
from convlens.views.markup import NONE, duration, loss, metric, number, percent, text
from convlens.views.timeline import Grid

STATUS = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "running",
    "crashed": "crashed",
}

NO_STEPS = "No optimizer step was recorded yet, so there are no curves to draw."
NO_EPOCHS = "No epoch was finished yet: losses by epoch and metrics appear with the first one."
NO_LAYERS = (
    "No layer was watched in this run, so there are no statistics of layers; train with watching "
    "on to see inside."
)
NO_COLUMNS = "{layers} were to be watched, but no batch of them was recorded yet."
NO_FINDINGS = "Nothing was found to remark on."
ONE_STEP = "Only one step was recorded so far: every curve is a single point."


def metric_names(epochs: Sequence[Epoch]) -> list[str]:
    """The metrics of any epoch, in the order in which they came."""
    return list(dict.fromkeys(name for epoch in epochs for name in epoch.metrics))


def headline(record: RunRecord) -> list[tuple[str, str]]:
    """The figures at the top, as label and value."""
    steps = record.steps
    wall_s = float(steps.wall_s[-1]) if len(steps) else None
    return figures(record.meta, record.epochs, len(steps), wall_s)


def figures(
    meta: Mapping[str, Any], epochs: Sequence[Epoch], n_steps: int, wall_s: float | None
) -> list[tuple[str, str]]:
    """The figures at the top of a run whose steps were only counted, as label and value."""
    shown = [(name, metric(name, v)) for name, v in (epochs[-1].metrics if epochs else {}).items()]
    if epochs and epochs[-1].valid_loss is not None:
        shown.append(("validation loss", loss(epochs[-1].valid_loss)))
    planned = meta.get("n_epochs")
    of = f" of {planned}" if isinstance(planned, int) and planned != len(epochs) else ""
    shown.append(("epochs", f"{len(epochs)}{of}"))
    shown.append(("steps", number(n_steps)))
    shown.append(("wall time", _wall_time(meta, epochs, wall_s)))
    shown.append(("parameters", _parameters(meta)))
    shown.append(("status", STATUS.get(_status(meta), _status(meta))))
    return shown


def state_notes(record: RunRecord, last_written: datetime) -> list[str]:
    """Sentences on whatever about this run is not as in a finished one."""
    status, notes = _status(record.meta), list[str]()
    if status == "running":
        notes.append(
            "This run is not closed: it is still being trained. It was last written to on "
            f"{last_written:%Y-%m-%d at %H:%M:%S} UTC; everything recorded up to then is shown."
        )
    elif status == "crashed":
        notes.append(
            f"{record.meta.get('error')} It was last written to on "
            f"{last_written:%Y-%m-%d at %H:%M:%S} UTC; everything recorded up to then is shown."
        )
    elif status == "stopped":
        notes.append("This run was stopped before its end; everything up to then is shown.")
    elif status == "failed":
        error = record.meta.get("error") or "no reason was recorded"
        notes.append(f"Training failed: {error}")
    if record.meta.get("lost"):
        notes.append(f"This record is incomplete; could not be written: {record.meta['lost']}.")
    if len(record.steps) == 1:
        notes.append(ONE_STEP)
    return notes + loss_notes(record.loss_steps)


def loss_notes(steps: StepSeries) -> list[str]:
    """A sentence if losses were not finite."""
    bad = np.flatnonzero(~np.isfinite(steps.loss))
    if not len(bad):
        return []
    first = int(steps.step[bad[0]])
    return [f"The loss was NaN or infinite at {plural(len(bad), 'step')}, first at step {first:,}."]


def layer_line(history: LayerHistory) -> str:
    """The newest state of a layer that has columns, in one line of HTML."""
    return newest_line(history) + nonfinite_line(history.first_step, history.nonfinite > 0)


def newest_line(history: LayerHistory) -> str:
    """The state of a layer in its last column."""
    parts = [
        f"mean {number(float(history.mean[-1]))}",
        f"standard deviation {number(float(history.std[-1]))}",
        f"{percent(float(history.near_zero[-1]))} near zero",
    ]
    if history.layer.feeds_relu:
        after = percent(float(history.near_zero_after_relu[-1]))
        parts[-1] += f" ({after} after its ReLU)"
    if history.channels:
        word, dead = "silent", int(history.silent_channels[-1])
        if history.layer.feeds_relu:
            word, dead = "dead", int(history.dead_channels[-1])
        parts.append(f"{dead} of {plural(history.channels, 'channel')} {word}")
    line = f"At step {int(history.last_step[-1]):,}: " + " · ".join(parts) + "."
    return text(line)


def grid_words(grid: Grid) -> str:
    """How to read a column of the heat maps."""
    what = "one batch" if grid.width == 1 else f"{grid.width:,} batches"
    return f"One column of colour is {what}"


def findings_list(
    findings: Sequence[Finding],
    names: Sequence[str],
    lead: Callable[[str, str], str] | None = None,
) -> str:
    """What the doctor saw, as HTML; a layer's name leads to its plots.

    Args:
        findings: from the doctor.
        names: of the layers that can be led to.
        lead: from a layer's name and its words in HTML to what leads there; a link to the layer's
            section of the report if None.
    """
    if not findings:
        return f"<p class=note>{NO_FINDINGS}</p>"

    def link(name: str, inner: str) -> str:
        return f'<a href="#layer-{names.index(name)}">{inner}</a>'

    items = "".join(_finding(one, names, lead or link) for one in findings)
    return f"<ul class=findings>{items}</ul>"


def _finding(finding: Finding, names: Sequence[str], lead: Callable[[str, str], str]) -> str:
    where: list[str] = []
    if finding.layer is not None:
        name = f"layer {text(finding.layer)}"
        where.append(lead(finding.layer, name) if finding.layer in names else name)
    if finding.first_step is not None:
        where.append(f"from step {finding.first_step:,}")
    place = f" <span class=where>({', '.join(where)})</span>" if where else ""
    kind = finding.severity if finding.severity in ("good", "note", "problem") else "note"
    badge = f'<span class="badge">{text(finding.severity)}</span>'
    return f'<li class="{kind}">{badge}<span>{text(finding.text)}{place}</span></li>'


def nonfinite_line(first_step: Ints, bad: Flags) -> str:
    """How many of a layer's columns have values that are NaN or infinite, empty if none."""
    where = np.flatnonzero(bad)
    if not len(where):
        return ""
    first = int(first_step[where[0]])
    share = f"{len(where):,} of {plural(len(bad), 'column')} of this layer, first at step {first:,}"
    return f" <strong>NaN or infinite values in {share}.</strong>"


def _status(meta: Mapping[str, Any]) -> str:
    return str(meta.get("status", NONE))


def _wall_time(meta: Mapping[str, Any], epochs: Sequence[Epoch], of_steps: float | None) -> str:
    recorded = meta.get("wall_s")
    if isinstance(recorded, int | float):
        return duration(recorded)
    if epochs or of_steps is not None:
        return duration(max(of_steps or 0.0, sum(epoch.wall_s for epoch in epochs)))
    return NONE


def _parameters(meta: Mapping[str, Any]) -> str:
    model = meta.get("model")
    count = model.get("n_parameters") if isinstance(model, dict) else None
    return number(count) if isinstance(count, int) else NONE
