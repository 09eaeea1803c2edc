"""The HTTP server: an address names what is seen, the answer is HTML, a figure or data."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlencode

from bokeh.settings import settings
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, RequestHandler

from convlens.errors import ArgumentError, ConvlensError
from convlens.web.address import Address
from convlens.web.guard import HEADERS, Guard
from convlens.web.pages import cannot_show
from convlens.web.site import Answer, NoSuchPageError, Site, refusal
from convlens.web.static import served, version
from convlens.web.store import RunStore
from convlens.web.workers import Workers

DRAWING_THREADS = 2

MAX_WAITING = 500
"""Requests that wait for a thread; more are told to come back."""

MAX_CACHED_BYTES = 16 << 20
"""Answers that are kept, as long as their run has nothing new."""

MAX_SENDING_BYTES = 64 << 20
"""Answers on their way; while slow readers take longer, others are told to come back."""

MAX_CONNECTIONS = 400
"""A process may have about a thousand files open."""

PART, SLOW_S, IDLE_S = 1 << 18, 20.0, 30.0
"""Bytes sent at a time; seconds after which a reader is disconnected who takes or asks nothing."""


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
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(RunStore(places), address, ready))


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

    In its ``address`` a port of 0 has become the one that the system chose.

    Raises:
        ArgumentError: if the address cannot be bound to.
    """

    def __init__(self, store: RunStore, address: Address) -> None:
        try:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            place = address.host, address.port
            listening = socket.create_server(place, family=family, backlog=512)
        except OSError as error:
            raise ArgumentError(_not_served(address, error)) from error
        listening.setblocking(False)
        self.address = replace(address, port=listening.getsockname()[1])
        self._drawing = _Drawing(Site(store))
        rest = {"guard": Guard(self.address), "drawing": self._drawing}
        application = Application(
            [(r"/static/(.*)", _Static, rest), (r".*", _Pages, rest)],
            log_function=_silent,
            ancestors=Guard(self.address).ancestors,
        )
        self._http = _BoundedServer(
            application, idle_connection_timeout=IDLE_S, body_timeout=10,
            max_header_size=32 << 10, max_body_size=0,
        )  # fmt: skip
        self._http.add_socket(listening)

    def close(self) -> None:
        """Answer nothing any more."""
        self._http.stop()
        self._drawing.close()


class _BoundedServer(HTTPServer):
    """Takes no more connections than there can be files open."""

    n_open = 0

    def handle_stream(self, stream: IOStream, address: Any) -> None:  # noqa: ANN401 — Tornado's
        """A new connection."""
        if self.n_open >= MAX_CONNECTIONS:
            stream.close()
            return
        self.n_open += 1
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        """One has ended."""
        self.n_open -= 1
        super().on_close(server_conn)


class _Drawing:
    """A bounded pool of threads that make answers, and the answers that are still right."""

    def __init__(self, site: Site) -> None:
        self._site, self._workers = site, Workers(DRAWING_THREADS)
        self._waiting = self._sending = self._bytes = 0
        self._kept: OrderedDict[str, Answer] = OrderedDict()
        self._lock = Lock()

    async def answer(self, path: str, query: dict[str, list[str]]) -> Answer:
        """The answer to a request, drawn anew if its run has changed since the last time."""
        if self._waiting >= MAX_WAITING or self._sending > MAX_SENDING_BYTES:
            return refusal(path, 503, "The server has too many requests to answer; try again soon.")
        self._waiting += 1
        try:
            return await asyncio.wrap_future(self._workers.submit(lambda: self._draw(path, query)))
        finally:
            self._waiting -= 1

    def _draw(self, path: str, query: dict[str, list[str]]) -> Answer:
        try:
            mark = self._site.mark(path, query)
            if mark and query.pop("after", [""])[-1] == mark:
                return Answer(204)
            key = f"{mark} {path}?{urlencode(query, doseq=True)}" if mark else ""
            with self._lock:
                known = self._kept.get(key)
            if known is None:
                known = self._site.answer(path, query, mark)
                if key:
                    self._keep(key, known)
            return known
        except NoSuchPageError as error:
            return refusal(path, 404, str(error))
        except ConvlensError as error:
            return refusal(path, 410, str(error))
        except Exception as error:
            return refusal(path, 422, cannot_show(error))

    def _keep(self, key: str, answer: Answer) -> None:
        with self._lock:
            if key not in self._kept:  # the other thread may have drawn the same
                self._kept[key] = answer
                self._bytes += len(key) + len(answer.body)
            while self._bytes > MAX_CACHED_BYTES:
                old, dropped = self._kept.popitem(last=False)
                self._bytes -= len(old) + len(dropped.body)

    @contextmanager
    def sent(self, answer: Answer) -> Generator[None]:
        """While an answer is on its way."""
        self._sending += len(answer.body)
        try:
            yield
        finally:
            self._sending -= len(answer.body)

    def close(self) -> None:
        """Begin nothing any more."""
        self._workers.close()
        self._site.close()


class _Handler(RequestHandler):
    """Refuses whom the guard refuses, and puts the safe headers on every answer."""

    def initialize(self, guard: Guard, drawing: _Drawing) -> None:
        """What it answers with."""
        self._guard, self._drawing = guard, drawing

    def set_default_headers(self) -> None:
        """Also of errors."""
        for name, value in HEADERS.items():
            self.set_header(name, value.replace("{ancestors}", self.settings["ancestors"]))
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")

    def prepare(self) -> None:
        """Refuse at once."""
        refusal = self._guard.refusal(self.request)
        if refusal is not None:
            self._say(*refusal)

    def write_error(self, status_code: int, **_more: Any) -> None:  # noqa: ANN401
        """A plain sentence; Tornado's own shows its paths."""
        self._say(status_code, f"This request cannot be answered ({status_code}).")

    def _say(self, status: int, sentence: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(sentence + "\n")

    async def send(self, answer: Answer) -> None:
        """Send an answer, part by part; whoever does not take one is disconnected."""
        self.set_status(answer.status)
        if answer.status != 204:
            self.set_header("Content-Type", answer.kind)
            self.set_header("Content-Length", str(len(answer.body)))
        body = b"" if self.request.method == "HEAD" else answer.body
        try:
            for at in range(0, len(body), PART):
                self.write(body[at : at + PART])
                await asyncio.wait_for(self.flush(), SLOW_S)
            await self.finish()
        except TimeoutError:
            self.detach().close()
        except StreamClosedError:
            pass


class _Pages(_Handler):
    """Everything that is made of runs."""

    _asked: asyncio.Task[Answer] | None = None

    async def get(self) -> None:
        """Answer with a page, a figure or data."""
        query = {
            name: [value.decode("utf-8", "replace") for value in values]
            for name, values in self.request.query_arguments.items()
        }
        if query.pop("token", None) and self.request.path == "/":
            self._keep_token(query)
            return
        self._asked = asyncio.ensure_future(self._drawing.answer(self.request.path, query))
        with suppress(asyncio.CancelledError):
            answer = await self._asked
            with self._drawing.sent(answer):
                await self.send(answer)

    head = get

    def on_connection_close(self) -> None:
        """Nobody waits any more: what is not begun need not be drawn."""
        if self._asked is not None:
            self._asked.cancel()

    def _keep_token(self, query: dict[str, list[str]]) -> None:
        """Take the token out of the address, where it would be seen and kept, into a cookie.

        Lax, not strict: the address may be clicked on a page of another site, such as a terminal
        in the browser, and a strict cookie would not go with the redirect. Requests that other
        sites' pages make by themselves carry neither, and nothing here changes anything.
        """
        token = self._guard.address.token
        if token:
            self.set_cookie(self._guard.cookie, token, httponly=True, samesite="Lax", path="/")
        self.redirect("/?" + urlencode(query, doseq=True) if query else "/")


class _Static(_Handler):
    """The page's own files, and Bokeh's script."""

    async def get(self, name: str) -> None:
        """One of the few files that there are; browsers keep what its version is part of."""
        if name not in served():
            self.send_error(404)
            return
        if self.get_query_argument("v", "") == version():
            self.set_header("Cache-Control", "private, max-age=31536000, immutable")
        await self.send(Answer(200, *served()[name]))

    head = get


def _not_served(address: Address, error: OSError) -> str:
    taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
    advice = "give another --port, or 0 for a free one" if taken else "give another --address"
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    place = f"address={address.host!r} with port={address.port}"
    return f"{place} cannot be served on ({reason}); {advice}."


def _silent(_handler: RequestHandler) -> None:
    """Requests are not logged: addresses hold names of runs, and the first one a token."""
