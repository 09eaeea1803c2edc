"""The chosen layer in words, and whether there is anything to draw of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.wording import plural
from convlens.web.figures import layer as figures
from convlens.web.formatting import label, number, percent, plain
from convlens.web.panels.verdict import in_words

if TYPE_CHECKING:
    from convlens.web.pages import Page
    from convlens.web.run_data import RunData

FACTS = (
    "output_shape", "kernel_size", "stride", "padding", "parameters", "trainable", "frozen",
    "multiplications", "activations", "receptive_field", "jump", "inputs_per_output",
)  # fmt: skip
"""What of the model's summary is said of a layer, in this order."""

NOTHING: tuple[object, ...] = (None, "", [])

WAITING = "Waiting for the first columns."
CALL = "use the callback cl.ActivationStats(), or cl.watch(model) around a loop of your own."
NO_LAYERS = f"No layer was watched in this run. To see inside the next one, {CALL}"
MAYBE_NO_LAYERS = f"{WAITING} If none come, no layer is watched: {CALL}"
NO_COLUMNS = "Nothing of this layer was recorded: it took part in no batch."
NO_PARAMETERS = "This layer has no parameters of its own."
FROZEN = "Its parameters are frozen (requires_grad=False): they have no gradient."
UNKNOWN = (
    "No gradients of this layer's parameters were recorded: either it has none of its own, or "
    "they are frozen (requires_grad=False)."
)


def layer(page: Page) -> dict[str, Any]:
    """The layer's place, findings, newest state, and what of it can be drawn."""
    run, name = page.run, page.view.layer
    waiting = run.status == "running"
    if name not in run.names:
        return {"info": None, "sentence": MAYBE_NO_LAYERS if waiting else NO_LAYERS}
    at = run.names.index(name)
    info, history, row = run.layers[at], run.history(name), summary_row(run, name)
    around = {"previous": at - 1, "next": at + 1}
    found = [one for one in run.findings or () if one.layer == name]
    values: dict[str, Any] = {
        "info": info,
        "at": at,
        "around": {k: run.names[i] for k, i in around.items() if 0 <= i < len(run.names)},
        "findings": found,
        "in_words": in_words,
        "sentence": "",
        "facts": [(label(key), plain(row[key])) for key in FACTS if row.get(key) not in NOTHING],
    }
    if not len(history):
        return values | {"sentence": WAITING if waiting else NO_COLUMNS}
    has_gradients, has_updates, missing = parameters(run, info, row)
    n_stats = figures.n_output_stats(history) + has_gradients + has_updates
    return values | {
        "newest": newest(history),
        "nonfinite": nonfinite(history),
        "missing": missing,
        "height": figures.height(n_stats),
        "relu": info.feeds_relu,
        "has_gradients": has_gradients,
        "has_updates": has_updates,
    }


def summary_row(run: RunData, layer: str) -> dict[str, Any]:
    """The layer's row of the model's summary, empty if there is none."""
    summary: Any = run.meta.get("summary")
    rows: Any = cast("Any", summary).get("rows") if isinstance(summary, dict) else None
    for row in cast("list[Any]", rows) if isinstance(rows, list) else []:
        if isinstance(row, dict) and cast("dict[str, Any]", row).get("name") == layer:
            return cast("dict[str, Any]", row)
    return {}


def parameters(run: RunData, info: LayerInfo, row: dict[str, Any]) -> tuple[bool, bool, list[str]]:
    """Whether gradients and updates of the layer's parameters were recorded; else why not."""
    recorded = [run.follower.layers_of(quantity) for quantity in ("gradient", "update")]
    gradients, updates = (bool(figures.parameters_of(one, info.name)) for one in recorded)
    if gradients and updates:
        return True, True, []
    if row.get("parameters") == 0:
        return gradients, updates, [NO_PARAMETERS]
    missing: list[str] = []
    if not (gradients or updates) and row.get("parameters") and row.get("trainable") == 0:
        missing.append(FROZEN)
    elif recorded[0] and not gradients:
        missing.append(UNKNOWN)
    elif recorded[1] and not updates:
        missing.append("No updates of this layer's parameters were recorded.")
    for what, stats, series in (
        ("gradients", "Gradient", recorded[0]),
        ("updates", "Update", recorded[1]),
    ):
        if not series:
            missing.append(
                f"{what.capitalize()} were not recorded in this run: use the callback "
                f"cl.{stats}Stats(), or cl.watch(…, {what}=True)."
            )
    return gradients, updates, missing


def newest(history: LayerHistory) -> str:
    """The state of a layer in its last column, which may be several batches."""
    first, last = int(history.first_step[-1]), int(history.last_step[-1])
    relu, n = history.layer.feeds_relu, history.channels
    when, where = f"At step {last:,}, in this batch", "in this batch"
    if first < last:
        when = f"At steps {first:,} to {last:,}, over these batches"
        where = "in all of these batches"
    parts = [
        f"mean {number(float(history.mean[-1]))}",
        f"standard deviation {number(float(history.std[-1]))}",
        f"{percent(float(history.near_zero[-1]))} near zero",
    ]
    if relu:
        parts[-1] += f" ({percent(float(history.near_zero_after_relu[-1]))} after its ReLU)"
    if n:
        many = int((history.dead_channels if relu else history.silent_channels)[-1])
        parts.append(f"{many:,} of {plural(n, 'channel')} {'dead' if relu else 'silent'} {where}")
    return f"{when}: {' · '.join(parts)}."


def nonfinite(history: LayerHistory) -> str:
    """Where values are NaN or infinite, empty if they are nowhere."""
    where = np.flatnonzero(history.nonfinite > 0)
    if not len(where):
        return ""
    of = f"{len(where):,} of {plural(len(history), 'column')} of this layer"
    first = int(history.first_step[where[0]])
    return f"NaN or infinite values in {of}, first at step {first:,}."
