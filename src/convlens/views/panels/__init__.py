"""Panels: what a run keeps beside its numbers, as HTML; for the live page and for the report.

Pure functions from snapshots and records to strings. With ``live`` an element that answers has
``data-do`` with a command's name, and its other ``data-*`` values go with it; without, nothing asks
to be clicked, and what a click would show is laid out as far as it helps. The styles are those of
``panels.css``. Every text of a run is escaped.
"""

from __future__ import annotations

from convlens.views.panels.choice import Choice, cell_of_unit, settle
from convlens.views.panels.confusion import confusion
from convlens.views.panels.differences import differences
from convlens.views.panels.facts import COUNTING, facts_of_layer, findings, header
from convlens.views.panels.features import features, through_time
from convlens.views.panels.kernels import kernels
from convlens.views.panels.mistakes import mistakes
from convlens.views.panels.runs import runs, sorted_runs
from convlens.views.panels.unit import unit
from convlens.views.panels.window import window

__all__ = [
    "COUNTING",
    "Choice",
    "cell_of_unit",
    "confusion",
    "differences",
    "facts_of_layer",
    "features",
    "findings",
    "header",
    "kernels",
    "mistakes",
    "runs",
    "settle",
    "sorted_runs",
    "through_time",
    "unit",
    "window",
]
