"""The matrix of layers by steps with its controls, and the worst layers in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from convlens.web.figures.layer_rows import (
    KINDS,
    MAX_ROWS,
    WORST,
    block_name,
    family,
    rows_of,
    short_kind,
)
from convlens.web.figures.matrix import chosen, height, shown_cells
from convlens.web.figures.quantities import QUANTITIES, layer_health

if TYPE_CHECKING:
    from convlens.web.pages import Page

HOW_TO_RECORD = {
    "gradient": "Gradients were not recorded. Give a Learner the callback cl.GradientStats(), or "
    "call cl.watch() with gradients=True.",
    "update": "Updates were not recorded. Give a Learner the callback cl.UpdateStats(), or call "
    "cl.watch() with updates=True.",
}


def matrix(page: Page) -> dict[str, Any]:
    """What the controls offer, what is not there and why, and the legend of special colours."""
    run, quantity = page.run, QUANTITIES[chosen(page)]
    if not run.layers or not len(run.figures()):
        return {"missing": _why_nothing(page)}
    rows = rows_of(run, page.view)
    cells = shown_cells(page, rows)[1]
    no_data = bool((np.isnan(cells.values) & ~cells.bad).any())
    there = len(cells.first_step) > 0
    families = {family(info.kind) for info in run.layers}
    return {
        "missing": "",
        "quantities": QUANTITIES,
        "quantity": quantity,
        "chosen": chosen(page),
        "not_recorded": "" if there else HOW_TO_RECORD.get(quantity.series, ""),
        "height": height(len(rows)),
        "deep": len(run.layers) > MAX_ROWS,
        "folded": any(len(row.layers) > 1 for row in rows),
        "families": [name for name in KINDS if name in families],
        "block": block_name(run, page.view),
        "zero": quantity.zero if bool((cells.values == 0).any()) else "",
        "bad": bool(cells.bad.any()),
        "no_data": no_data,
        "worst": [one for one in layer_health(run)[:WORST] if one.severity],
        "layers": [(info.name, short_kind(info.kind)) for info in run.layers],
    }


def _why_nothing(page: Page) -> str:
    if page.run.layers and page.run.status == "running":
        return "Waiting for the first columns."
    if page.run.layers:
        return "No batch was recorded of the watched layers."
    return (
        "No layer was watched. Give a Learner the callback cl.ActivationStats(), or call "
        'cl.watch(model, run="auto") before a loop of your own.'
    )
