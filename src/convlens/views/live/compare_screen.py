"""The screen of two runs on one axis, layer by layer, with the step at which they part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from bokeh.document import Document

from convlens.core.histories import LayerHistory
from convlens.views.compare import TOTAL_VARIATION, CompareView, Side
from convlens.views.distances import Comparison, first_parting
from convlens.views.live.commands import Command, word
from convlens.views.live.layout import compare_body
from convlens.views.live.models import Panels, add_figure
from convlens.views.live.pace import Pace
from convlens.views.live.store import Look, RunStore
from convlens.views.markup import say, text
from convlens.views.panels import differences

WORKING = "The distances are being worked out: every histogram of both runs is read."


class CompareScreen:
    """Two runs, as one page shows them.

    Args:
        store: the runs.
        keys: which of them.
        document: what the figures are drawn in.
        panels: where HTML is put.
        asked: the address's arguments: ``layer``.
        dark: whether the page is dark.

    Raises:
        RunError: if one of them cannot be read.
    """

    body = compare_body()

    def __init__(
        self,
        store: RunStore,
        keys: tuple[str, str],
        document: Document,
        panels: Panels,
        asked: Mapping[str, str],
        dark: bool,
    ) -> None:
        self._store, self._keys, self._panels = store, keys, panels
        self._layer, self._log = asked.get("layer", ""), False
        self._looks: tuple[Look, Look] | None = None
        self._comparison: Comparison | None = None
        self._pace = Pace()
        first, second = (store.look(key).follower.run.name for key in keys)
        self._names = (first, second)
        self.title = f"{self._names[0]} and {self._names[1]} – convlens"
        self._figures = CompareView()
        panels.put("header", f"<h1>{text(self._names[0])} beside {text(self._names[1])}</h1>")
        self.tick()
        for name, root in (("overview", self._figures.overview), ("layer", self._figures.layer)):
            add_figure(document, name, root, dark)
        self._figures.on_select(self._row)

    def glance(self) -> bool:
        """Everything is shown by `tick`."""
        return False

    def tick(self) -> None:
        """Show what is new in either record, when it is due: everything of both is read."""
        if self._comparison is not None and not self._pace.due(0.0):
            return
        looks = self._store.look(self._keys[0]), self._store.look(self._keys[1])
        comparison = self._store.comparison(self._keys)
        if looks == self._looks and comparison is self._comparison:
            return
        self._looks, self._comparison = looks, comparison
        shown = comparison or Comparison([], [])
        self._figures.update(self._side(looks[0]), self._side(looks[1]), shown)
        self._panels.put("parting", self._words())
        a, b = (look.follower.meta for look in looks)
        self._panels.put("differences", differences(a, b, self._names))
        self._show_layer()

    def do(self, command: Command) -> None:
        """Choose a layer, or the axis of the losses."""
        do = command["do"]
        if do in ("log", "toggle-log"):
            self._log = bool(command["value"]) if "value" in command else not self._log
            self._figures.set_log(self._log)
        elif do in ("next-layer", "previous-layer"):
            self._by_layer(1 if do == "next-layer" else -1)
        elif do == "layer":
            self._to_layer(word(command, "name"))

    def tell(self) -> dict[str, Any]:
        """The address that leads here again, and what is shown."""
        asked = {"run": self._keys[0], "compare": self._keys[1], "layer": self._layer}
        return {
            "address": f"/?{urlencode(asked)}",
            "controls": {"log": self._log},
            "root": {"layer": self._layer, "compared": str(self._comparison is not None).lower()},
        }

    def _side(self, look: Look) -> Side:
        follower = look.follower
        return Side(follower.run.name, follower.curves(), follower.epochs)

    def _words(self) -> str:
        if self._comparison is None:
            return say(WORKING)
        parting = first_parting(self._comparison.distances)
        remarks = "".join(say(remark) for remark in self._comparison.remarks)
        return f'<p class="parting">{text(parting.sentence)}</p>{say(TOTAL_VARIATION)}{remarks}'

    def _layers(self) -> list[str]:
        return [one.name for one in self._comparison.distances] if self._comparison else []

    def _row(self, index: int) -> None:
        if index < len(self._layers()):
            self._to_layer(self._layers()[index])

    def _by_layer(self, step: int) -> None:
        layers = self._layers()
        if layers:
            at = layers.index(self._layer) if self._layer in layers else -step
            self._to_layer(layers[min(max(at + step, 0), len(layers) - 1)])

    def _to_layer(self, name: str) -> None:
        if name in self._layers():
            self._layer = name
            self._show_layer()

    def _show_layer(self) -> None:
        layers = self._layers()
        if self._layer not in layers:
            self._layer = layers[0] if layers else ""
        self._figures.select(layers.index(self._layer) if layers else None)
        if not layers or self._looks is None:
            self._figures.show_layer(None, WORKING if self._comparison is None else "No layer.")
            return
        first, second = (self._history(look) for look in self._looks)
        self._figures.show_layer((first, second))

    def _history(self, look: Look) -> LayerHistory | None:
        names = [info.name for info in look.follower.layers_of("activation")]
        if self._layer not in names:
            return None
        return look.follower.history(names.index(self._layer), "activation")
