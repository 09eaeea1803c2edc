"""The run's curves with their controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convlens.plots.curves import SMOOTH
from convlens.web.figures import curves as figures

if TYPE_CHECKING:
    from convlens.web.pages import Page


def curves(page: Page) -> dict[str, Any]:
    """Heights and the state of the controls."""
    names = figures.metric_names(page)
    height = figures.LOSS + figures.SCHEDULE + (figures.METRIC if names else 0)
    smooth = SMOOTH if page.view.smooth is None else page.view.smooth
    return {"height": height, "log": figures.is_log(page), "smooth": smooth, "metrics": names}
