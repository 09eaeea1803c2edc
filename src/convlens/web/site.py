"""What each address answers: pages, figures, data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from convlens.errors import ConvlensError, RunError
from convlens.runs import Run
from convlens.web import data
from convlens.web.distances import Distances
from convlens.web.figures.registry import COMPARED, FIGURES
from convlens.web.gif import make_gif
from convlens.web.pages import ComparePage, Page, draw, render
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


def _html(template: str, status: int = 200, **context: Any) -> Answer:  # noqa: ANN401
    """A template; a lone surrogate, which a file's name may hold, becomes a question mark."""
    return Answer(status, render(template, **context).encode("utf-8", "replace"))


class Site:
    """The addresses of the runs in a store."""

    def __init__(self, store: RunStore) -> None:
        self.store, self._distances = store, Distances()

    def close(self) -> None:
        """Work out nothing any more."""
        self.store.close()
        self._distances.close()

    def mark(self, path: str, query: Query) -> str:
        """The version of what is under an address, decided before anything of it is drawn."""
        keys = self._keys(path, query)
        if path in LISTS:
            return self._list_mark()
        if _of_several(path):
            mark, runs, _ = self._look_at(keys)
            return f"{mark}.{self._distances.of(list(runs.values()))[0]}"
        if keys:
            return ".".join(self.store.open(key).mark for key in keys)
        return ""

    def answer(self, path: str, query: Query, mark: str) -> Answer:
        """The answer to a request; a `RunError` if there is none, or a run cannot be read."""
        view = View.of({name: values[-1] for name, values in query.items()})
        keys = self._keys(path, query)
        first, _, rest = path[1:].partition("/")
        if path == "/":
            shown = runs(self.store.listed(), self.store.places, view)
            return _html("list.html", view=view, mark=mark, **shown)
        if first == "api":
            return self._data(rest, keys, view)
        if _of_several(path):
            return self._compare(keys, view, partial(_answer_compared, path=path, mark=mark))
        if len(keys) == 1:
            run = self.store.open(keys[0])
            return run.ask(lambda run: _answer_run(Page(run, view), first, rest, mark))
        raise NoSuchPageError(NOTHING)

    def _keys(self, path: str, query: Query) -> list[str]:
        """The runs that an address names: in its path or as ``run=``."""
        for begin in ("/run/", "/api/run/"):
            if path.startswith(begin):
                return [path[len(begin) :].partition("/")[0]]
        return list(dict.fromkeys(query.get("run", [])))[:8]

    def _list_mark(self) -> str:
        listed = [(one.key, one.mark, one.problem, count(f)) for one, f in self.store.listed()]
        return hashlib.blake2b(repr(listed).encode("utf-8", "replace"), digest_size=8).hexdigest()

    def _look_at(
        self, keys: Sequence[str], *, whole: bool = False
    ) -> tuple[str, dict[str, tuple[Run, str]], dict[str, str]]:
        """The mark of several runs; those that can be read, each with its state; and why not.

        If ``whole``, a run whose layers cannot be read counts as one that cannot.
        """

        def look(run: RunData) -> tuple[Run, str]:
            if whole:
                _ = run.span
            return run.run, run.follower.mark

        marks, runs, problems = list[str](), dict[str, tuple[Run, str]](), dict[str, str]()
        for key in keys:
            try:
                opened = self.store.open(key)
                marks.append(opened.mark)
                runs[key] = opened.ask(look)
            except ConvlensError as error:
                problems[key] = str(error)
        return ".".join([*marks, *problems]), runs, problems

    def _compare(
        self, keys: Sequence[str], view: View, question: Callable[[ComparePage], Answer]
    ) -> Answer:
        if len(keys) < 2:
            raise NoSuchPageError("Choose at least two runs to compare in the list of runs.")
        _, readable, problems = self._look_at(keys, whole=True)
        if not readable:
            raise RunError(" ".join(problems.values()))
        comparison = self._distances.of(list(readable.values()))[1]
        runs: dict[str, RunData] = {}

        def ask(rest: Sequence[str]) -> Answer:
            """Ask one run within the other, always in the same order: two pages cannot block."""
            if not rest:
                asked = [runs[key] for key in readable]
                return question(ComparePage(asked, view, comparison, problems))

            def within(run: RunData) -> Answer:
                runs[rest[0]] = run
                return ask(rest[1:])

            return self.store.open(rest[0]).ask(within)

        return ask(sorted(readable))

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
    return _html("message.html", status, sentence=sentence)


def _of_several(path: str) -> bool:
    return path == "/compare" or path.removeprefix("/figure/") in COMPARED


NOTHING = "There is nothing under this address; the list of runs is at /."


def _answer_run(page: Page, first: str, rest: str, mark: str) -> Answer:
    """The page of a run, one of its figures, or its moving picture."""
    if (first, rest) == ("run", page.run.key):
        return _page(page, "run.html", mark)
    if first == "figure" and rest in FIGURES:
        return Answer(body=draw(page, rest).encode(), kind=JSON)
    if first == "run" and rest.endswith("/play.gif"):
        return Answer(body=make_gif(page.run, page.view.layer), kind="image/gif")
    raise NoSuchPageError(NOTHING)


def _answer_compared(page: ComparePage, path: str, mark: str) -> Answer:
    if path == "/compare":
        return _page(page, "compare.html", mark)
    return Answer(body=draw(page, path.removeprefix("/figure/")).encode(), kind=JSON)


def _page(page: Page, template: str, mark: str) -> Answer:
    return _html(template, page=page, run=page.run, view=page.view, mark=mark)


def _json(value: Mapping[str, Any], status: int = 200) -> Answer:
    return Answer(status, json.dumps(value, ensure_ascii=True, allow_nan=False).encode(), JSON)
