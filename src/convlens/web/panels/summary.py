"""The summary of the model, whatever columns its rows have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convlens.web.formatting import label, plain, short

if TYPE_CHECKING:
    from convlens.web.pages import Page

MOST_ROWS, MOST_COLUMNS, MOST_NOTES = 400, 20, 12

FIRST = (
    "name", "kind", "output_shape", "kernel_size", "stride", "padding", "parameters",
    "multiplications", "activations", "receptive_field", "jump", "inputs_per_output",
)  # fmt: skip
"""The columns that come first, in this order."""

# Columns that say nothing more where the other one stands.
TOLD_BY = {
    "channels": "output_shape", "depth": "name", "parent": "name", "folded": "name",
    "trainable": "parameters", "parameter_bytes": "parameters", "outputs_before": "ratio",
    "receptive_field_note": "receptive_field",
    "kept_fixed": "kept", "inputs": "inputs_per_output", "outputs": "inputs_per_output",
}  # fmt: skip


def summary(page: Page) -> dict[str, Any]:
    """Heads, rows and the row of totals as text, and the notes below."""
    recorded = page.run.meta.get("summary")
    facts: Mapping[str, Any] = recorded if isinstance(recorded, dict) else {}
    every = [row for row in _list(facts.get("rows")) if isinstance(row, dict) and row]
    rows = every[:MOST_ROWS]
    keys = _columns(rows) if rows else []
    totals = facts.get("totals")
    sums: Mapping[str, Any] = totals if isinstance(totals, dict) else {}
    foot = [_cell(sums[key]) if key in sums else "" for key in keys]
    return {
        "heads": [_cell(label(str(key))) for key in keys],
        "rows": [[_cell_of(row, key) for key in keys] for row in rows],
        "words": [k == keys[0] or any(isinstance(r.get(k), str) for r in rows) for k in keys],
        "foot": ["total", *foot[1:]] if any(foot) else [],
        "input": _cell(facts["input_shape"]) if rows and facts.get("input_shape") else "",
        "n": len(every),
        "notes": [short(plain(note), 400) for note in _list(facts.get("notes"))[:MOST_NOTES]],
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys worth a column: not those that every row leaves at nothing, 0 or 1."""
    known = dict.fromkeys(key for row in rows for key in row)
    ordered = [*(key for key in FIRST if key in known), *(k for k in known if k not in FIRST)]
    worth = [
        key
        for key in ordered
        if TOLD_BY.get(key) not in known and not all(_is_trivial(row.get(key)) for row in rows)
    ]
    return (worth or ordered[:1])[:MOST_COLUMNS]


def _is_trivial(value: object) -> bool:
    values: list[object] = value if isinstance(value, list) else [value]
    return all(item in (None, "", 0, 1) for item in values)


def _cell_of(row: Mapping[str, Any], key: str) -> str:
    note = row.get("receptive_field_note") if key == "receptive_field" else None
    return _cell(row.get(key)) + (f" ({_cell(note)})" if note else "")


def _cell(value: object) -> str:
    return short(plain(value), 60)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
