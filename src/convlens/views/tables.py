"""The tables of a report: epochs, the model's summary, the run's meta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convlens.core.records import Epoch
from convlens.views.markup import definitions, label, loss, metric, plain, rich, say, text

NO_SUMMARY = "No summary of the model was recorded in this run."

RUN = ("created", "status", "error", "wall_s", "seed", "command", "data", "model")
MACHINE = ("convlens", "python", "torch", "numpy", "platform", "device", "threads")
ELSEWHERE = ("summary",)

# A summary's columns come in this order as far as there are such; others follow.
FIRST = (
    "name",
    "kind",
    "output_shape",
    "kernel_size",
    "stride",
    "padding",
    "parameters",
    "multiplications",
    "activations",
    "receptive_field",
    "jump",
    "inputs_per_output",
)

# Columns that say nothing more where the other one stands.
TOLD_BY = {
    "channels": "output_shape",
    "depth": "name",
    "parent": "name",
    "folded": "name",
    "trainable": "parameters",
    "parameter_bytes": "parameters",
    "outputs_before": "ratio",
    "kept_fixed": "kept",
    "inputs": "inputs_per_output",
    "outputs": "inputs_per_output",
}


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    foot: Sequence[str] = (),
    words: Sequence[int] = (0,),
) -> str:
    """An HTML table; everything is escaped here.

    Args:
        heads: one for each column.
        rows: the cells, the first names its row.
        foot: the last row, if any.
        words: columns of words, set to the left; numbers stand to the right.
    """
    head = "".join(_cell("th scope=col", cell, i in words) for i, cell in enumerate(heads))
    body = "".join(f"<tr>{_cells(cells, words)}</tr>" for cells in rows)
    end = f"<tfoot><tr>{_cells(foot, words)}</tr></tfoot>" if foot else ""
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>{end}"
    return f'<div class="scroll" tabindex="0"><table>{inner}</table></div>'


def epochs_table(epochs: Sequence[Epoch], names: Sequence[str]) -> str:
    """Losses, metrics and seconds of every epoch."""
    heads = ["epoch", "training loss", "validation loss", *names, "seconds"]
    rows = [
        [
            str(epoch.epoch + 1),
            plain(None) if epoch.train_loss is None else loss(epoch.train_loss),
            plain(None) if epoch.valid_loss is None else loss(epoch.valid_loss),
            *(metric(n, epoch.metrics[n]) if n in epoch.metrics else plain(None) for n in names),
            f"{epoch.wall_s:,.1f}",
        ]
        for epoch in epochs
    ]
    return table(heads, rows)


def summary(recorded: object) -> str:
    """The model's summary, whatever columns its rows have."""
    facts: dict[str, Any] = recorded if isinstance(recorded, dict) else {}
    rows = [row for row in _list(facts.get("rows")) if isinstance(row, dict)]
    notes = "".join(say(note) for note in _list(facts.get("notes")))
    if not rows:
        return say(NO_SUMMARY) + notes
    shape = facts.get("input_shape")
    given = say(f"Input: {plain(shape)}") if shape else ""
    totals = facts.get("totals")
    return given + _summary_table(rows, totals if isinstance(totals, dict) else {}) + notes


def meta(values: Mapping[str, Any]) -> str:
    """Everything the run knows of itself; the model's text, which is long, comes last."""
    values = {key: value for key, value in values.items() if key not in ELSEWHERE}
    values, model_text = _without_model_text(values)
    if isinstance(values.get("pictures"), dict):
        values["pictures"] = _kept_pictures(values["pictures"])
    groups = {
        "Run": {key: values[key] for key in RUN if key in values},
        "Training": {k: v for k, v in values.items() if k not in (*RUN, *MACHINE)},
        "Versions and machine": {key: values[key] for key in MACHINE if key in values},
    }
    blocks = "".join(
        f'<div class="facts"><h3>{title}</h3>{definitions(group)}</div>'
        for title, group in groups.items()
        if group
    )
    model = f"<h3>Model</h3><pre>{text(model_text)}</pre>" if model_text else ""
    return f'<div class="meta">{blocks}</div>{model}'


def _kept_pictures(facts: Mapping[str, Any]) -> dict[str, str | list[Any]]:
    """What of the pictures' facts says something to who did not write them, in words."""
    said: dict[str, str | list[Any]] = {}
    if facts.get("n_layers") is not None:
        said["layers"] = f"{plain(facts['n_layers'])} of {plain(facts.get('n_layers_in_all'))}"
    if facts.get("effective_layers") is not None:
        said["layers with effective receptive fields"] = plain(facts["effective_layers"])
    epochs = [epoch + 1 for epoch in _list(facts.get("kept_epochs")) if isinstance(epoch, int)]
    if epochs:
        first = "before training and " if "n_layers" in facts else ""  # by whom follows probes
        said["taken"] = f"{first}after epoch {', '.join(map(str, epochs))}"
    if notes := _list(facts.get("notes")):
        said["notes"] = notes
    return said


def _without_model_text(values: dict[str, Any]) -> tuple[dict[str, Any], str]:
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("text"), str):
        return values, ""
    rest = {key: value for key, value in model.items() if key != "text"}
    return {**values, "model": rest}, model["text"]


def _summary_table(rows: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]) -> str:
    keys = _columns(rows)
    words = [
        i for i, key in enumerate(keys) if i == 0 or any(isinstance(r.get(key), str) for r in rows)
    ]
    cells = [[plain(row.get(key)) for key in keys] for row in rows]
    foot: list[str] = []
    if any(key in totals for key in keys):
        foot = [plain(totals[key]) if key in totals else "" for key in keys]
        foot[0] = foot[0] or "total"
    others = {key: value for key, value in totals.items() if key not in keys}
    more = f'<div class="facts">{rich(others)}</div>' if others else ""
    return table([label(key) for key in keys], cells, foot, words) + more


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys worth a column: not those that every row leaves at nothing, 0 or 1."""
    known = dict.fromkeys(key for row in rows for key in row)
    ordered = [*(key for key in FIRST if key in known), *(k for k in known if k not in FIRST)]
    return [
        key
        for key in ordered
        if TOLD_BY.get(key) not in known and not all(_is_trivial(row.get(key)) for row in rows)
    ] or ordered[:1]


def _is_trivial(value: object) -> bool:
    values: list[object] = value if isinstance(value, list) else [value]
    return all(item in (None, "", 0, 1) for item in values)


def _cells(cells: Sequence[str], words: Sequence[int]) -> str:
    tags = ["th scope=row", *["td"] * (len(cells) - 1)]
    pairs = enumerate(zip(tags, cells, strict=True))
    return "".join(_cell(tag, cell, i in words) for i, (tag, cell) in pairs)


def _cell(tag: str, cell: str, is_words: bool) -> str:
    style = ' class="words"' if is_words else ""
    return f"<{tag}{style}>{text(cell)}</{tag[:2]}>"


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
