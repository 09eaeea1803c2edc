"""The page's server: Bokeh's, with nothing on it but the page, its files and its socket."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Any, cast

from bokeh.application import Application
from bokeh.application.handlers import FunctionHandler
from bokeh.core.serialization import Serializer
from bokeh.document import Document
from bokeh.document.events import DocumentPatchedEvent
from bokeh.document.json import PatchJson
from bokeh.protocol import Protocol
from bokeh.protocol.messages.patch_doc import patch_doc
from bokeh.server.connection import ServerConnection
from bokeh.server.contexts import ApplicationContext
from bokeh.server.server import BaseServer
from bokeh.server.session import ServerSession
from bokeh.server.tornado import BokehTornado
from bokeh.server.views.doc_handler import DocHandler
from bokeh.server.views.static_handler import StaticHandler
from bokeh.server.views.ws import WSHandler
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.web import RequestHandler

from convlens.errors import ArgumentError
from convlens.views.live.address import Address
from convlens.views.live.frame import head, not_found, rest
from convlens.views.live.guard import Guard, Refused, safe_headers
from convlens.views.live.pace import POLL_S
from convlens.views.live.session import Session, known_theme
from convlens.views.live.store import RunStore

ASSETS = {
    "/assets/live.js": ("live/live.js", "text/javascript; charset=utf-8"),
    "/assets/live.css": ("live/live.css", "text/css; charset=utf-8"),
    "/assets/panels.css": ("panels.css", "text/css; charset=utf-8"),
}

BOKEH = "/static/js/bokeh.min.js"

SAID = "added"
"""What a message to the page's script is called."""

MOST_BYTES = 1 << 20
"""A message from a browser is no larger: it says what was clicked, or how a figure is zoomed."""

PATHS = frozenset({"/", "/ws", "/favicon.ico", BOKEH, *ASSETS})
"""Every path that is answered."""


AHEAD_S = 0.03
"""Between a page's head and the making of its session, which nothing else is answered during."""

LONGEST_AHEAD_S = 10.0
"""A page waits so long at most for a run to be read ahead; then it reads what it needs itself."""


class LiveServer:
    """Serves the page of some runs until it is stopped.

    Args:
        store: the runs.
        address: where; a port of 0 becomes the one that the system chose.

    Attributes:
        address: where it is served.

    Raises:
        ArgumentError: if the address cannot be bound to.
    """

    def __init__(self, store: RunStore, address: Address) -> None:
        loop = IOLoop.current()
        try:
            listening = _listen(address)
        except OSError as error:
            raise ArgumentError(_not_served(address, error)) from error
        self.address = replace(address, port=listening.getsockname()[1])
        # Bokeh logs every connection; what concerns a user is printed by the command.
        logging.getLogger("bokeh").setLevel(logging.WARNING)
        # A tab that is closed while something is on its way to it is nothing to warn of.
        logging.getLogger("bokeh.server.views.ws").setLevel(logging.ERROR)
        self._pages = pages = _Pages(store, self.address)
        http = HTTPServer(pages)
        http.add_socket(listening)
        self._server = BaseServer(loop, pages, http)
        self._server.start()

    def run(self) -> None:
        """Serve until `stop`, or until interrupted."""
        self._server.io_loop.start()

    def stop(self) -> None:
        """Have `run` return; may be called from any thread."""
        loop = self._server.io_loop
        loop.add_callback(loop.stop)

    def close(self) -> None:
        """Answer nothing any more."""
        self._pages.close()
        self._server.stop()


class _Pages(BokehTornado):
    """Bokeh's application behind the guard."""

    def __init__(self, store: RunStore, address: Address) -> None:
        self.store, self.guard = store, Guard(address, PATHS)
        self._sessions: list[Session] = []
        self.ahead = asyncio.ensure_future(store.read_ahead())  # while the browser starts
        origins = [f"{host}:{address.port}" for host in ("127.0.0.1", "localhost", "[::1]", "*")]
        super().__init__(
            Application(FunctionHandler(self._make_session)),
            extra_websocket_origins=origins,  # the guard has looked at the origin before
            extra_patterns=[(path, _Asset) for path in ASSETS],
            sign_sessions=True,  # what a session was asked for comes from this server alone
            secret_key=secrets.token_bytes(32),
            websocket_max_message_size_bytes=MOST_BYTES,
            use_index=False,
            ico_path="none",
            log_function=_silent,
            include_headers=[],
            include_cookies=["convlens-theme"],
        )
        self.add_handlers(".*", [("/", _Page, self._page_arguments())])
        self.add_transform(safe_headers(address))
        self._wait()

    def _wait(self) -> None:
        # One timer for all pages: setting one of Bokeh's takes 0.14 ms beside a training, for each.
        self._timer = IOLoop.current().call_later(POLL_S, self._on_poll)

    def _on_poll(self) -> None:
        self._wait()
        self._sessions = [session for session in self._sessions if not session.is_over]
        for session in self._sessions:
            IOLoop.current().add_callback(_look, session)  # what one raises concerns no other

    def close(self) -> None:
        """Begin nothing any more."""
        self.ahead.cancel()
        IOLoop.current().remove_timeout(self._timer)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:  # noqa: ANN401 — Tornado's delegate
        refusal = self.guard.refusal(request)
        if refusal is not None:
            status, sentence = refusal
            about = {"status": status, "sentence": sentence}
            return self.get_handler_delegate(request, Refused, about)
        return super().find_handler(request, **kwargs)

    def new_connection(
        self,
        protocol: Protocol,
        socket: WSHandler,
        application_context: ApplicationContext,
        session: ServerSession,
    ) -> ServerConnection:
        """A page's socket was opened."""
        connection = _Connection(protocol, socket, application_context, session)
        self._clients.add(connection)
        return connection

    def _make_session(self, document: Document) -> None:
        # A session that comes back is another one, with models of its own: the page's script loads
        # the page anew instead, and says so.
        document.config.update(reconnect_session=False, notify_connection_status=False)
        self._sessions.append(Session(document, self.store, partial(self._say, document)))

    def _say(self, document: Document, words: dict[str, Any]) -> bool:
        """Send words to the script of a document's page, unless it is not there yet, or behind."""
        clients = cast("set[_Connection]", self._clients)
        there = [one for one in clients if one.session.document is document]
        if not there or any(one.behind for one in there):
            return False
        for connection in there:
            connection.say(words)
        return True

    def _page_arguments(self) -> dict[str, Any]:
        return {
            "application_context": self._applications["/"],
            "bokeh_websocket_path": "/ws",
        }


def _look(session: Session) -> None:
    if not session.is_over:  # it may have ended since the poll
        session.on_poll()


class _Connection(ServerConnection):
    """Sends all that one callback changed in one message, with its arrays inside.

    Bokeh makes a message of every change, each of which lists all models anew, and after each of
    which the browser draws; and it sends every array in two messages more.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 — Bokeh's
        super().__init__(*args, **kwargs)
        self._changes: list[DocumentPatchedEvent] = []
        self._saying: asyncio.Future[None] | None = None  # a task that nobody holds may be lost

    def send_patch_document(self, event: DocumentPatchedEvent) -> Awaitable[None]:
        """The session waits for what this returns once its callback is over."""
        self._changes.append(event)
        return _Sent(self._send_changes)

    @property
    def behind(self) -> bool:
        """Whether the last words are not sent yet."""
        stream = self._stream()
        waits = self._saying is not None and not self._saying.done()
        return waits or stream is None or stream.writing()

    def say(self, words: dict[str, Any]) -> None:
        """Send words to the page's script."""
        self._saying = asyncio.ensure_future(self._send_words(_message(words)))

    async def _send_words(self, message: patch_doc) -> None:
        """What `WSHandler.send_message` does, but the three parts in one write."""
        parts = message.header_json, message.metadata_json, message.content_json
        with await self._socket.write_lock.acquire():
            stream = self._stream()
            if stream is not None:
                stream.write(b"".join(_frame(part.encode()) for part in parts))

    def _stream(self) -> IOStream | None:
        """What the socket's frames go through, None once it is closed."""
        there = self._socket.ws_connection
        return None if there is None or there.is_closing() else there.stream

    async def _send_changes(self) -> None:
        changes, self._changes = self._changes, []
        if changes:
            await self._socket.send_message(_in_one_piece(changes))


def _in_one_piece(changes: list[DocumentPatchedEvent]) -> patch_doc:
    """What `patch_doc.create` makes, but with arrays as base64 in the text."""
    models = changes[0].document.models
    serializer = Serializer(references=models.synced_references, deferred=False)
    content = PatchJson(events=serializer.encode(changes))
    models.flush_synced(lambda model: not serializer.has_ref(model))
    return patch_doc(patch_doc.create_header(), {}, content)


def _message(words: dict[str, Any]) -> patch_doc:
    """What `patch_doc.create` makes of words, which are lists, texts and numbers."""
    event = {"kind": "MessageSent", "msg_type": SAID, "msg_data": words}
    return patch_doc(patch_doc.create_header(), {}, cast("PatchJson", {"events": [event]}))


def _frame(text: bytes) -> bytes:
    """A text as one frame of a server's web socket (RFC 6455, section 5.2)."""
    n = len(text)
    if n < 126:
        return struct.pack("!BB", 0x81, n) + text
    return struct.pack("!BBH" if n < 1 << 16 else "!BBQ", 0x81, 126 + (n >> 16 > 0), n) + text


class _Sent:
    """Begins only when it is waited for; a server that stops need not wait."""

    def __init__(self, send: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._send = send

    def __await__(self) -> Generator[Any, Any, None]:
        return self._send().__await__()


class _Page(DocHandler):
    """The page itself."""

    async def get(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002 — Tornado's signature
        pages = cast("_Pages", self.application)
        given = self.get_query_argument("token", None)
        if given is not None:
            self._keep_token(pages.guard)
            return
        if not all(
            pages.store.knows(key) for name in ("run", "compare") for key in self._keys(name)
        ):
            self.set_status(404)
            self.write(not_found())
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        theme = known_theme(self.get_cookie("convlens-theme"))
        self.write(head(theme, "/static/" + StaticHandler.append_version("js/bokeh.min.js")))
        await self.flush()
        await asyncio.sleep(AHEAD_S)  # the browser asks for the scripts now: answer it first
        await asyncio.wait([pages.ahead], timeout=LONGEST_AHEAD_S)
        # Tornado's decorator hides what it gives.
        session: ServerSession = await cast("Any", self).get_session()
        self.write(rest(session.document, session.token))

    def _keys(self, name: str) -> list[str]:
        return [key for key in self.get_query_arguments(name, strip=False) if key]

    def _keep_token(self, guard: Guard) -> None:
        """Take the token out of the address, where it would be seen and kept, into a cookie.

        Lax, not strict: the address may be clicked on a page of another site, such as a terminal
        in the browser, and a strict cookie would not go with the redirect. Requests that other
        sites' pages make by themselves carry neither, and nothing here changes anything.
        """
        token = guard.address.token
        if token:
            self.set_cookie(guard.cookie, token, httponly=True, samesite="Lax", path="/")
        rest = [
            f"{name}={key}"
            for name in ("run", "compare")
            for key in self._keys(name)
            if key.isalnum()
        ]
        self.redirect("/" + ("?" + "&".join(rest) if rest else ""))


class _Asset(RequestHandler):
    """One of the page's own files."""

    def get(self) -> None:
        name, kind = ASSETS[self.request.path]
        self.set_header("Content-Type", kind)
        self.set_header("Cache-Control", "no-cache")
        self.write((files("convlens.views") / name).read_text(encoding="utf-8"))


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
