"""One open page: which screen it shows, its commands, and what has changed since the last look."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from bokeh.document import Document

from convlens.beat import until_beat
from convlens.errors import ConvlensError
from convlens.views.canvas import THEME, dark_theme
from convlens.views.live.commands import Command
from convlens.views.live.compare_screen import CompareScreen
from convlens.views.live.layout import bar, place
from convlens.views.live.list_screen import ListScreen
from convlens.views.live.models import Commands, Panels, State
from convlens.views.live.run_screen import RunScreen
from convlens.views.live.store import RunStore
from convlens.views.markup import text

if TYPE_CHECKING:
    from bokeh.server.contexts import BokehSessionContext

LATE_S = 0.1
"""Between the beat on which a training hands over what it has, and a page's look at it.

So a page shows a batch within a second, and looks little more than once in one.
"""


class Screen(Protocol):
    """What a page shows."""

    title: str
    body: str

    def tick(self) -> None:
        """Show what is new in the record."""
        ...

    def do(self, command: Command) -> None:
        """Carry out a command of the page's script."""
        ...

    def tell(self) -> dict[str, Any]:
        """What the script has to know."""
        ...


class SorryScreen:
    """A run that cannot be read says why: it is damaged, or of a newer convlens.

    Args:
        panels: where HTML is put.
        why: the sentence.
    """

    title = "Not readable – convlens"
    body = f'{bar()}<main class="alone">{place("panel", "sorry")}</main>'

    def __init__(self, panels: Panels, why: str) -> None:
        panels.put("header", "")
        panels.put(
            "sorry",
            f'<h1>This run cannot be shown</h1><p class="state">{text(why)}</p>'
            '<p><a href="/?list=1">All runs</a></p>',
        )

    def tick(self) -> None:
        """Nothing comes of itself."""

    def do(self, command: Command) -> None:
        """There is nothing to do."""

    def tell(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class Session:
    """A page, from its request to its closing.

    Args:
        document: Bokeh's document of this session; figures and panels become its roots.
        store: the runs.
    """

    def __init__(self, document: Document, store: RunStore) -> None:
        self._store, self._document = store, document
        self._panels = Panels(document)
        self._state = State(document)
        self._commands = Commands(document, self._do)
        asked, theme = _asked(document)
        document.theme = dark_theme() if theme == "dark" else THEME
        self._panels.put("trouble", "")
        self._seen = True
        with document.models.freeze():  # else all of them are gone through for each that is added
            self._screen = self._make(asked, theme == "dark")
        document.title = self._screen.title
        document.template_variables.update(body=self._screen.body)
        self._state.put(self._screen.tell())
        self._wait()

    def _make(self, asked: Mapping[str, str], dark: bool) -> Screen:
        """The list; a run where one is asked for, or where there is only one; or two compared."""
        store, panels, document = self._store, self._panels, self._document
        key, other = asked.get("run", ""), asked.get("compare", "")
        if not key and not {"sort", "list"} & set(asked):
            runs = list(store.list())
            key = runs[0] if len(runs) == 1 else ""
        if not key:
            return ListScreen(store, panels, asked)
        try:
            if other and other != key:
                return CompareScreen(store, (key, other), document, panels, asked, dark)
            return RunScreen(store, key, document, panels, asked, dark)
        except ConvlensError as error:
            return SorryScreen(panels, str(error))

    def _wait(self) -> None:
        self._document.add_timeout_callback(self._on_beat, math.ceil(1e3 * until_beat(LATE_S)))

    def _on_beat(self) -> None:
        self._wait()
        self._tick()

    def _tick(self) -> None:
        if self._seen:
            self._guarded(self._screen.tick)

    def _do(self, command: dict[str, Any]) -> None:
        if command["do"] == "visible":  # nothing is drawn in a tab that nobody sees
            self._seen = bool(command.get("value"))
            self._tick()
        else:
            self._guarded(lambda: self._screen.do(command))

    def _guarded(self, what: Any) -> None:  # noqa: ANN401 — a call
        try:
            what()
        except ConvlensError as error:
            self._panels.put("trouble", f'<p class="state" role="alert">{text(error)}</p>')
        else:
            self._panels.put("trouble", "")
        self._state.put(self._screen.tell())


def _asked(document: Document) -> tuple[dict[str, str], str]:
    """The address's arguments, the last of each name, and the theme of the cookie."""
    context = cast("BokehSessionContext | None", document.session_context)
    if context is None or context.request is None:
        return {}, "light"
    arguments = {
        name: values[-1].decode("utf-8", "replace")
        for name, values in context.request.arguments.items()
        if values
    }
    return arguments, known_theme(context.request.cookies.get("convlens-theme"))


def known_theme(cookie: str | None) -> str:
    """The theme that a cookie says, light if it says none."""
    return cookie if cookie in ("light", "dark") else "light"
