"""What each address answers: pages, figures, data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from convlens.errors import RunError
from convlens.web import data
from convlens.web.figures.registry import FIGURES
from convlens.web.pages import Page, draw, render
from convlens.web.panels.runs import count, runs
from convlens.web.run_data import RunData
from convlens.web.store import RunStore
from convlens.web.view import View

HTML = "text/html; charset=utf-8"
JSON = "application/json; charset=utf-8"

LISTS = ("/", "/api/runs")

Query = Mapping[str, list[str]]


class NoSuchPageError(RunError):
    """There is nothing under an address."""


@dataclass(frozen=True)
class Answer:
    """What is sent.

    Attributes:
        status: of HTTP.
        body: empty with 204.
        kind: its media type.
    """

    status: int = 200
    body: bytes = b""
    kind: str = HTML


def html(text: str) -> bytes:
    """As it is sent; a lone surrogate, which a file's name may hold, becomes a question mark."""
    return text.encode("utf-8", "replace")


class Site:
    """The addresses of the runs in a store.

    Args:
        store: the runs.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store

    def mark(self, path: str, query: Query) -> str:
        """The version of what is under an address, decided before anything of it is drawn."""
        keys = self._keys(path, query)
        if path in LISTS:
            return self._list_mark()
        if keys:
            return ".".join(self.store.open(key).mark for key in keys)
        return ""

    def answer(self, path: str, query: Query, mark: str) -> Answer:
        """The answer to a request.

        Raises:
            NoSuchPageError: if there is nothing under this address.
            RunError: if a run cannot be read.
        """
        view = View.of({name: values[-1] for name, values in query.items()})
        keys = self._keys(path, query)
        first, _, rest = path[1:].partition("/")
        if path == "/":
            shown = runs(self.store.listed(), self.store.places, view)
            return Answer(body=html(render("list.html", view=view, mark=mark, **shown)))
        if first == "run" and [rest] == keys:
            return self._ask(keys[0], lambda run: _run_page(Page(run, view), mark))
        if first == "figure" and rest in FIGURES and len(keys) == 1:
            return self._ask(keys[0], lambda run: _figure(Page(run, view), rest))
        if first == "api":
            return self._data(rest, keys, view)
        raise NoSuchPageError("There is nothing under this address; the list of runs is at /.")

    def _keys(self, path: str, query: Query) -> list[str]:
        """The runs that an address names: in its path or as ``run=``."""
        for begin in ("/run/", "/api/run/"):
            if path.startswith(begin):
                return [path[len(begin) :].partition("/")[0]]
        return list(dict.fromkeys(query.get("run", [])))[:8]

    def _ask(self, key: str, question: Callable[[RunData], Answer]) -> Answer:
        return self.store.open(key).ask(question)

    def _list_mark(self) -> str:
        listed = [(one.key, one.mark, one.problem, count(f)) for one, f in self.store.listed()]
        return hashlib.blake2b(repr(listed).encode("utf-8", "replace"), digest_size=8).hexdigest()

    def _data(self, rest: str, keys: list[str], view: View) -> Answer:
        if rest == "runs":
            return _json(data.runs(self.store.listed()))
        what = rest.partition("/")[2].partition("/")[2] or "facts"
        question = data.OF_RUN.get(what)
        if not keys or question is None:
            raise NoSuchPageError("There is no such data; see docs/page.md for what there is.")
        opened = self.store.open(keys[0])
        return opened.ask(lambda run: _json(question(run, view)), wait=what == "findings")


def refusal(path: str, status: int, sentence: str) -> Answer:
    """A sentence instead of what was asked for: a page, or JSON for programs."""
    if path.startswith("/api/"):
        return _json({"error": sentence}, status)
    return Answer(status, html(render("message.html", sentence=sentence)))


def _run_page(page: Page, mark: str) -> Answer:
    return Answer(body=html(render("run.html", page=page, run=page.run, view=page.view, mark=mark)))


def _figure(page: Page, name: str) -> Answer:
    return Answer(body=draw(page, name).encode(), kind=JSON)


def _json(value: Mapping[str, Any], status: int = 200) -> Answer:
    return Answer(status, json.dumps(value, ensure_ascii=True, allow_nan=False).encode(), JSON)
