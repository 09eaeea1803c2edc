"""A page server in a thread of its own, on a free port of 127.0.0.1."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from convlens.views.live.address import Address, make_address
from convlens.views.live.server import LiveServer
from convlens.views.live.store import RunStore


@contextmanager
def serving(places: Sequence[Path], token: str | None = None) -> Iterator[Address]:
    started = threading.Event()
    made: list[LiveServer] = []
    problems: list[BaseException] = []

    def work() -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            store = RunStore(places)
            server = LiveServer(store, make_address(port=0, token=token))
            made.append(server)
            started.set()
            server.run()
            server.close()
            store.close()
        except BaseException as error:
            problems.append(error)
            started.set()
            raise
        finally:
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(30)
    if problems:
        raise problems[0]
    try:
        yield made[0].address
    finally:
        made[0].stop()
        thread.join(30)
    assert not thread.is_alive()


def get(
    address: Address, path: str = "/", headers: Mapping[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body; the path goes out exactly as it is given."""
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
        return answer.status, dict(answer.getheaders()), body
    finally:
        connection.close()
