"""The run's curves with their controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convlens.plots.curves import SMOOTH
from convlens.web.figures import curves as figures

if TYPE_CHECKING:
    from convlens.web.pages import Page

WAITING = "Waiting for the first steps."
NO_LOSS = (
    "No loss was recorded. In a loop of your own, call stats.log(loss=loss) at every step; other "
    "numbers, such as stats.log(grad_norm=norm), are drawn too."
)
NO_STEPS = "No step was recorded."


def curves(page: Page) -> dict[str, Any]:
    """Heights, the state of the controls, and a sentence on what is missing."""
    parts, view = figures.parts(page), page.view
    return {
        "parts": parts,
        "below": figures.STEPS + figures.SMALL * len([part for part in parts if part != "loss"]),
        "least": figures.LOSS if "loss" in parts else 0,
        "log": figures.is_log([page]),
        "smooth": SMOOTH if view.smooth is None else view.smooth,
        "metrics": figures.metric_names(page.run.epochs),
        "logged": figures.logged_names(page),
        "missing": "" if "loss" in parts else _missing(page),
    }


def _missing(page: Page) -> str:
    run = page.run
    if len(run.steps) or len(run.figures().last_step):
        return NO_LOSS
    return WAITING if run.status == "running" else NO_STEPS
