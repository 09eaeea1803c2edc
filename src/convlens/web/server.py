"""The HTTP server: an address names what is seen, the answer is HTML, a figure or data."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from bokeh.settings import settings
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler

from convlens.errors import ArgumentError, ConvlensError
from convlens.web.address import Address
from convlens.web.guard import HEADERS, Guard
from convlens.web.pages import cannot_show, render
from convlens.web.site import Answer, NoSuchPageError, Site, html, refusal
from convlens.web.static import bokeh_js, site_css, site_js
from convlens.web.store import RunStore, lower_priority

DRAWING_THREADS = 2

MAX_WAITING = 500
"""Requests that wait for a thread; more are told to come back."""

MAX_CACHED_BYTES = 24 << 20
"""Answers that are kept, as long as their run has nothing new."""

SLOW_S = 60.0
"""A reader who has not taken an answer after this many seconds is disconnected."""

JAVASCRIPT, CSS = "text/javascript; charset=utf-8", "text/css; charset=utf-8"


def serve(
    places: Sequence[Path], address: Address, ready: Callable[[Address], None] | None = None
) -> None:
    """Show runs in the browser until interrupted.

    Args:
        places: folders that keep runs, and directories of runs. A folder that does not exist yet
            is looked at again with every request.
        address: where to serve, from `make_address`.
        ready: called once requests are answered, with the address: its port is the real one.

    Raises:
        RunError: if a place is no folder.
        ArgumentError: if the address cannot be served on.
    """
    store = RunStore(places)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(store, address, ready))


async def _serve(
    store: RunStore, address: Address, ready: Callable[[Address], None] | None
) -> None:
    server = Server(store, address)
    # Arrays hardly shrink, and most browsers are on this machine.
    settings.compression_level = 1
    try:
        if ready is not None:
            ready(server.address)
        await asyncio.Event().wait()
    finally:
        del settings.compression_level
        server.close()


class Server:
    """Answers requests from its making until `close`, on the running event loop.

    Args:
        store: the runs.
        address: where; a port of 0 becomes the one that the system chose.

    Attributes:
        address: where it is served.

    Raises:
        ArgumentError: if the address cannot be bound to.
    """

    def __init__(self, store: RunStore, address: Address) -> None:
        try:
            listening = _listen(address)
        except OSError as error:
            raise ArgumentError(_not_served(address, error)) from error
        self.address = replace(address, port=listening.getsockname()[1])
        self._drawing = _Drawing()
        rest = {"guard": Guard(self.address), "site": Site(store), "drawing": self._drawing}
        application = Application(
            [(r"/static/(.*)", _Static, rest), (r".*", _Pages, rest)],
            log_function=_silent,
        )
        self._http = HTTPServer(
            application, idle_connection_timeout=120, body_timeout=10,
            max_header_size=32 << 10, max_body_size=0,
        )  # fmt: skip
        self._http.add_socket(listening)

    def close(self) -> None:
        """Answer nothing any more."""
        self._http.stop()
        self._drawing.close()


class _Drawing:
    """A bounded pool of threads that make answers, and the answers that are still right."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(DRAWING_THREADS, "convlens", initializer=lower_priority)
        self._waiting = 0
        self._kept: OrderedDict[str, Answer] = OrderedDict()
        self._bytes = 0

    async def answer(self, site: Site, path: str, query: dict[str, list[str]]) -> Answer:
        """The answer to a request, drawn anew if its run has changed since the last time.

        Raises:
            ConvlensError: if there is nothing under this address.
        """
        if self._waiting >= MAX_WAITING:
            return Answer(503, html(render("message.html", sentence=BUSY)))
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._draw, site, path, query)
        finally:
            self._waiting -= 1

    def _draw(self, site: Site, path: str, query: dict[str, list[str]]) -> Answer:
        mark = site.mark(path, query)
        if query.pop("after", [""])[0] == mark and mark:
            return Answer(204)
        key = f"{mark} {path}?{urlencode(query, doseq=True)}"
        known = self._kept.get(key)
        if known is None:
            known = site.answer(path, query, mark)
            self._keep(key, known)
        return known

    def _keep(self, key: str, answer: Answer) -> None:
        if key not in self._kept:
            self._kept[key] = answer
            self._bytes += len(answer.body)
        while self._bytes > MAX_CACHED_BYTES and self._kept:
            with suppress(KeyError):  # the other thread may have taken it
                self._bytes -= len(self._kept.popitem(last=False)[1].body)

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


BUSY = "The server has too many requests to answer; try again in a few seconds."


class _Handler(RequestHandler):
    """Refuses whom the guard refuses, and puts the safe headers on every answer."""

    def initialize(self, guard: Guard, site: Site, drawing: _Drawing) -> None:
        """What it answers with."""
        self._guard, self._site, self._drawing = guard, site, drawing

    def set_default_headers(self) -> None:
        """Also of errors."""
        for name, value in HEADERS.items():
            self.set_header(name, value.replace("{ancestors}", "'self'"))
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")

    def prepare(self) -> None:
        """Refuse at once."""
        refusal = self._guard.refusal(self.request)
        if refusal is not None:
            status, sentence = refusal
            self.set_status(status)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(sentence + "\n")

    def check_xsrf_cookie(self) -> None:
        """Nothing is changed here."""

    def write_error(self, status_code: int, **_more: Any) -> None:  # noqa: ANN401
        """A plain sentence; Tornado's own shows its paths."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"This request cannot be answered ({status_code}).\n")

    async def send(self, answer: Answer) -> None:
        """Send an answer; whoever does not take it is disconnected."""
        self.set_status(answer.status)
        if answer.status != 204:
            self.set_header("Content-Type", answer.kind)
            self.write(answer.body)
        sent = asyncio.ensure_future(self.finish())
        try:
            await asyncio.wait_for(asyncio.shield(sent), SLOW_S)
        except TimeoutError:
            self.request.connection.stream.close()  # pyright: ignore[reportAttributeAccessIssue]
        except StreamClosedError:
            pass


class _Pages(_Handler):
    """Everything that is made of runs."""

    async def get(self) -> None:
        """Answer with a page, a figure or data."""
        query = {
            name: [value.decode("utf-8", "replace") for value in values]
            for name, values in self.request.query_arguments.items()
        }
        if "token" in query:
            self._keep_token(query)
            return
        path = self.request.path
        try:
            answer = await self._drawing.answer(self._site, path, query)
        except NoSuchPageError as error:
            answer = refusal(path, 404, str(error))
        except ConvlensError as error:
            answer = refusal(path, 410, str(error))
        except Exception as error:
            answer = refusal(path, 422, cannot_show(error))
        await self.send(answer)

    head = get

    def _keep_token(self, query: dict[str, list[str]]) -> None:
        """Take the token out of the address, where it would be seen and kept, into a cookie.

        Lax, not strict: the address may be clicked on a page of another site, such as a terminal
        in the browser, and a strict cookie would not go with the redirect. Requests that other
        sites' pages make by themselves carry neither, and nothing here changes anything.
        """
        token = self._guard.address.token
        if token:
            self.set_cookie(self._guard.cookie, token, httponly=True, samesite="Lax", path="/")
        rest = urlencode({k: v for k, v in query.items() if k != "token"}, doseq=True)
        self.redirect(self.request.path + (f"?{rest}" if rest else ""))


class _Static(_Handler):
    """The page's own files, and Bokeh's script."""

    async def get(self, name: str) -> None:
        """One of the few files that there are; browsers keep what its version is part of."""
        found = {
            "bokeh.js": (bokeh_js, JAVASCRIPT), "site.js": (site_js, JAVASCRIPT),
            "site.css": (site_css, CSS),
        }.get(name)  # fmt: skip
        if found is None:
            self.send_error(404)
            return
        if self.get_query_argument("v", ""):
            self.set_header("Cache-Control", "private, max-age=31536000, immutable")
        await self.send(Answer(200, found[0]().encode(), found[1]))

    head = get


def _not_served(address: Address, error: OSError) -> str:
    taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
    advice = "give another --port, or 0 for a free one" if taken else "give another --address"
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    place = f"address={address.host!r} with port={address.port}"
    return f"{place} cannot be served on ({reason}); {advice}."


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.create_server((address.host, address.port), family=family, backlog=128)
    listening.setblocking(False)
    return listening


def _silent(_handler: RequestHandler) -> None:
    """Requests are not logged: addresses hold names of runs, and the first one a token."""
