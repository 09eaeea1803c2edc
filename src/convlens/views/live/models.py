"""What the page's script and the session say to each other, as Bokeh models of one document.

A panel is HTML in a column data source: the session writes it, the script puts it in its place.
Commands come the other way: what was clicked or pressed, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from bokeh.document import Document
from bokeh.models import ColumnDataSource, UIElement

from convlens.core.steps import StepSeries
from convlens.views.canvas import darken

Say = Callable[[dict[str, Any]], bool]
"""Sends the page's script something that is no change of the document; false if it cannot now."""

PANEL = "panel-"
ROOT = "root-"
COMMAND = "command"
STATE = "state"


class Panels:
    """The panels of a document, by name."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._sources: dict[str, ColumnDataSource] = {}

    def put(self, name: str, html: str) -> None:
        """Show this HTML in a panel; nothing is sent where it is there already."""
        source = self._sources.get(name)
        if source is None:
            source = ColumnDataSource({"html": [html]}, name=PANEL + name)
            self._sources[name] = source
            self._document.add_root(source)
        elif source.data["html"] != [html]:
            source.data = {"html": [html]}


class Commands:
    """Commands from the page's script: ``{"do": name, …}`` with plain texts and numbers."""

    def __init__(self, document: Document, do: Callable[[dict[str, Any]], None]) -> None:
        self._source = ColumnDataSource({"json": ["{}"]}, name=COMMAND)
        self._do = do
        self._source.on_change("data", self._came)
        document.add_root(self._source)

    def _came(self, _name: str, _old: object, new: dict[str, Any]) -> None:
        try:
            command = json.loads(new["json"][0])
        except (KeyError, IndexError, TypeError, ValueError, RecursionError):
            return  # not from our script
        if isinstance(command, dict) and isinstance(command.get("do"), str):
            self._do(command)


class State:
    """What the script has to know: the address to show, and what has been drawn."""

    def __init__(self, document: Document) -> None:
        self._source = ColumnDataSource({"json": ["{}"]}, name=STATE)
        document.add_root(self._source)

    def put(self, values: dict[str, Any]) -> None:
        """Tell the script, if it is new."""
        new = json.dumps(values, sort_keys=True)
        if self._source.data["json"] != [new]:
            self._source.data = {"json": [new]}


def added(after: int, steps: StepSeries, figures: Mapping[str, str]) -> dict[str, Any]:
    """What the page's script is told of losses that make a line longer, and no more than that.

    Args:
        after: the step that the line ends at.
        steps: those to add.
        figures: texts of the header's figures, by their names.
    """
    losses = steps.loss.tolist()
    return {"after": after, "steps": steps.step.tolist(), "losses": losses, "figures": figures}


def add_figure(document: Document, name: str, root: UIElement, dark: bool) -> None:
    """Draw a figure in the place of this name, in the page's colours."""
    root.name = ROOT + name
    if dark:
        darken(root)
    document.add_root(root)


def names_of(document: Document, start: str) -> list[str]:
    """Names of the document's roots that begin so."""
    return [root.name for root in document.roots if root.name and root.name.startswith(start)]


def panel_html(document: Document, name: str) -> str:
    """What a panel shows."""
    source = document.get_model_by_name(name)
    assert isinstance(source, ColumnDataSource)
    return source.data["html"][0]
