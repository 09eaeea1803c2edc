"""One open page: which screen it shows, its commands, and what has changed since the last look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

from bokeh.document import Document

from convlens.errors import ConvlensError
from convlens.views.canvas import THEME, dark_theme
from convlens.views.live.commands import Command
from convlens.views.live.compare_screen import CompareScreen
from convlens.views.live.layout import bar, place
from convlens.views.live.list_screen import ListScreen
from convlens.views.live.models import Commands, Panels, Say, State
from convlens.views.live.run_screen import RunScreen
from convlens.views.live.store import RunStore
from convlens.views.markup import text

if TYPE_CHECKING:
    from bokeh.server.contexts import BokehSessionContext


class Screen(Protocol):
    """What a page shows."""

    title: str
    body: str

    def glance(self) -> bool:
        """Have the page's script show what is new, outside the document; false if that is not all.

        Nothing that is in the document may be changed meanwhile.
        """
        ...

    def tick(self) -> bool | None:
        """Show what is new in the record; true if there is more to show once this is sent."""
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

    def glance(self) -> bool:
        """Everything is shown by `tick`."""
        return False

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
        say: sends words to the page's script, past the document.
    """

    def __init__(self, document: Document, store: RunStore, say: Say) -> None:
        self._store, self._document, self._say = store, document, say
        self._panels = Panels(document)
        self._state = State(document)
        self._commands = Commands(document, self._do)
        asked, theme = _asked(document)
        document.theme = dark_theme() if theme == "dark" else THEME
        self._panels.put("trouble", "")
        self._seen, self._called = True, False
        with document.models.freeze():  # else all of them are gone through for each that is added
            self._screen = self._make(asked, theme == "dark")
        document.title = self._screen.title
        document.template_variables.update(body=self._screen.body)
        self._state.put(self._screen.tell())

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
            return RunScreen(store, key, document, panels, asked, dark, self._say)
        except ConvlensError as error:
            return SorryScreen(panels, str(error))

    @property
    def is_over(self) -> bool:
        """Whether the page was closed a while ago."""
        context = cast("BokehSessionContext | None", self._document.session_context)
        return context is None or context.destroyed

    def on_poll(self) -> None:
        """Show what is new. Called every `POLL_S` seconds, without the document's lock.

        Most polls have losses only: what Bokeh would do about those costs more than reading.
        """
        if self._seen and not self._called and not self._glance():
            self._call()

    def _call(self) -> None:
        """Have `_tick` called with the document's lock, once however long that takes."""
        self._called = True
        self._document.add_next_tick_callback(self._tick)

    def _glance(self) -> bool:
        with suppress(ConvlensError):  # the next look meets it too, and says so
            return self._screen.glance()
        return False

    def _tick(self) -> None:
        self._called = False
        if self._seen and self._guarded(self._screen.tick):
            self._call()

    def _do(self, command: dict[str, Any]) -> None:
        if command["do"] == "visible":  # nothing is drawn in a tab that nobody sees
            self._seen = bool(command.get("value"))
            self._tick()
        else:
            self._guarded(lambda: self._screen.do(command))

    def _guarded(self, what: Callable[[], bool | None]) -> bool | None:
        more = None
        try:
            more = what()
        except ConvlensError as error:
            self._panels.put("trouble", f'<p class="state" role="alert">{text(error)}</p>')
        else:
            self._panels.put("trouble", "")
        self._state.put(self._screen.tell())
        return more


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
