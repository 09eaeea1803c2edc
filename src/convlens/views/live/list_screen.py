"""The screen of all runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convlens.runs import RunInfo
from convlens.views import panels as shown
from convlens.views.live.commands import Command, word
from convlens.views.live.layout import list_body
from convlens.views.live.models import Panels
from convlens.views.live.store import RunStore, key_of

EVERY = 4
"""The folders are looked through at every fourth look: a new run is seen after some 2.4 s."""


class ListScreen:
    """All runs in the folders that are served.

    Args:
        store: the runs.
        panels: where HTML is put.
        asked: the address's arguments: ``sort`` and ``order``.
    """

    title = "Runs – convlens"
    body = list_body()

    def __init__(self, store: RunStore, panels: Panels, asked: Mapping[str, str]) -> None:
        self._store, self._panels = store, panels
        self._column = asked.get("sort", "created")
        self._descending = asked.get("order", "down") == "down"
        self._compared: list[str] = []
        self._ticks = 0
        panels.put("header", "")
        self._show()

    def glance(self) -> bool:
        """Everything is shown by `tick`."""
        return False

    def tick(self) -> None:
        """Look for new runs."""
        self._ticks += 1
        if self._ticks % EVERY == 0:
            self._show()

    def do(self, command: Command) -> None:
        """Sort, or choose a run to compare."""
        if command["do"] == "sort":
            column = word(command, "column")
            self._descending = not self._descending if column == self._column else True
            self._column = column
        elif command["do"] == "compare":
            ident = word(command, "id")
            if ident in self._compared:
                self._compared.remove(ident)
            elif self._store.knows(ident):
                self._compared = [*self._compared[-1:], ident]
        self._show()

    def tell(self) -> dict[str, Any]:
        """What the script has to know."""
        return {"root": {"sort": self._column, "compared": " ".join(self._compared)}}

    def _show(self) -> None:
        infos = self._store.list()

        def ident(info: RunInfo) -> str:
            return key_of(info.path)

        html = shown.runs(
            list(infos.values()), ident, self._column, self._descending, self._compared
        )
        self._panels.put("runs", f"<h1>Runs</h1>{html}")
