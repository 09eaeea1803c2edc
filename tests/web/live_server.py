"""The page's server in a thread of its own, on a free port of 127.0.0.1."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from convlens.web.address import Address, make_address
from convlens.web.server import Server
from convlens.web.store import RunStore


@contextmanager
def serving(places: Sequence[Path], token: str | None = None) -> Iterator[Address]:
    started = threading.Event()
    state: dict[str, Any] = {}

    async def work() -> None:
        stop = state["stop"] = asyncio.Event()
        state["loop"] = asyncio.get_running_loop()
        server = Server(RunStore(places), make_address(port=0, token=token))
        state["address"] = server.address
        started.set()
        await stop.wait()
        server.close()
        await server._http.close_all_connections()  # browsers keep theirs open

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            state["error"] = error
            raise
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(30)
    if "address" not in state:
        raise state["error"]
    try:
        yield state["address"]
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(30)
    assert not thread.is_alive()


class Served(Protocol):
    """Something on a port of 127.0.0.1."""

    @property
    def port(self) -> int: ...


def get(
    address: Served, path: str = "/", headers: Mapping[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body; the path goes out exactly as it is given."""
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=30)
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


def key_of(address: Address, name: str) -> str:
    """The key in addresses of the run whose directory begins with this name."""
    found = json.loads(get(address, "/api/runs")[2])["runs"]
    return next(one["key"] for one in found if one["name"].startswith(name))
