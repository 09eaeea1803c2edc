"""A server in a process of its own, under load: it answers within seconds, and its memory stays."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from live_server import Served, get, serving

from convlens.web.server import MAX_CONNECTIONS

PROGRAM = """
import sys
from pathlib import Path
from convlens.web.address import make_address
from convlens.web.server import serve
serve([Path(place) for place in sys.argv[1:]], make_address(port=0),
      lambda address: print(address.url, flush=True))
"""
FIGURES = ("curves", "matrix", "layer", "confusion", "updates")
QUANTITIES = ("near_zero", "mean", "std", "dead", "gradient", "update", "<b>")
GARBAGE = (
    b"\x00\xff\xfe garbage\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: 99999999999\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /?\xff\xfe=\xc3\x28&layer=%ff%fe%00 HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
    b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nCookie: \xff=;;=\x01\r\n\r\n",
    b"GET",
)


class Process:
    """A server of its own process.

    Attributes:
        port: where it is.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.port = urlsplit(process.stdout.readline()).port or 0
        assert self.port

    @property
    def rss(self) -> float:
        """MB of memory."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def interrupt(self) -> float:
        """Seconds from Ctrl-C until it has ended, without a word."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGINT)
        _, errors = self._process.communicate(timeout=30)
        took = time.monotonic() - began
        assert self._process.returncode in (0, 130)
        assert errors == ""
        return took

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request_for(self, path, close=True))
            answer = await reader.read()
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()


def request_for(process: Process, path: str, *, close: bool = False) -> bytes:
    more = "Connection: close\r\n" if close else ""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{process.port}\r\n{more}\r\n".encode()


@contextmanager
def started(places: Sequence[Path]) -> Iterator[Process]:
    # Where the tests themselves run in the background of a script, SIGINT would be ignored.
    command = ["env", "--default-signal=INT", sys.executable, "-c", PROGRAM, *map(str, places)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


def requests_of(process: Process, n: int) -> list[str]:
    """Pages and figures of all runs in many views, the same each time."""
    runs = json.loads(get(process, "/api/runs")[2])["runs"]
    draw = random.Random(0)
    found: list[str] = []
    for i in range(n):
        key = runs[i % len(runs)]["key"]
        view = f"quantity={draw.choice(QUANTITIES)}&epoch={draw.choice((-1, 0, 1, 99999))}"
        view += f"&channel={draw.choice((-5, 0, 3, 999999999))}&smooth=0.{draw.randrange(10)}"
        figure = draw.choice(FIGURES)
        found.append(f"/run/{key}?{view}" if i % 2 else f"/figure/{figure}?run={key}&{view}")
    return found


def together(process: Process, paths: Sequence[str], seconds: float) -> None:
    """Ask for all at once; each must be answered in time, and none with an error of the server."""

    async def one(path: str) -> tuple[int, str, str]:
        status, body = await asyncio.wait_for(process.get(path), seconds)
        return status, path, body

    async def every() -> list[tuple[int, str, str]]:
        return await asyncio.gather(*map(one, paths))

    for status, path, body in asyncio.run(every()):
        assert status in (200, 404, 410, 422), (status, path, body[-500:])


def watched(process: Process, keys: Sequence[str], turns: int, n: int) -> None:
    """Open pages: each asks for what is new, and for its figures."""

    async def page(key: str) -> None:
        mark = ""
        for _ in range(turns):
            status, body = await process.get(f"/run/{key}?after={mark}")
            assert status in (200, 204)
            if status == 200:
                mark = body.partition('data-mark="')[2].partition('"')[0]
            await process.get(f"/figure/curves?run={key}")

    async def every() -> None:
        await asyncio.gather(*(page(keys[i % len(keys)]) for i in range(n)))

    asyncio.run(asyncio.wait_for(every(), 60))


def rounds(process: Process, n: int, n_pages: int, seconds: float) -> list[float]:
    """Memory after each of three rounds of the same requests."""
    paths, found = requests_of(process, n), list[float]()
    runs = json.loads(get(process, "/api/runs")[2])["runs"]
    keys = [run["key"] for run in runs if not run["problem"]]
    for _ in range(3):
        together(process, paths, seconds)
        watched(process, keys, 3, n_pages)
        malformed(process)
        found.append(process.rss)
    return found


def malformed(process: Process) -> None:
    """Bytes that are no request, and requests that never end; others are answered meanwhile."""
    open_ones: list[socket.socket] = []
    for text in GARBAGE * 3:
        there = socket.create_connection(("127.0.0.1", process.port), timeout=5)
        with suppress(ConnectionError):
            there.sendall(text.replace(b"PORT", str(process.port).encode()))
        open_ones.append(there)
    assert get(process, "/")[0] == 200
    for there in open_ones:
        there.close()


def slow_readers(process: Process, path: str, n: int) -> list[socket.socket]:
    """Connections that ask for an answer again and again, and take none."""
    found: list[socket.socket] = []
    for _ in range(n):
        there = socket.socket()
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        there.connect(("127.0.0.1", process.port))
        there.sendall(request_for(process, path) * 50)
        found.append(there)
    return found


WRONG = ("one-epoch", "wrong-values", "wrong-inner-values")


@pytest.fixture(scope="module")
def places(recorded: Callable[[str], Path]) -> list[Path]:
    return [recorded(name) for name in WRONG]


@pytest.fixture(scope="module")
def process(places: list[Path]) -> Iterator[Process]:
    with started(places) as process:
        yield process
        assert process.interrupt() < 2


def test_many_requests_leave_memory_as_it_was(process: Process) -> None:
    memory = rounds(process, 60, 10, seconds=10)
    assert memory[2] < min(1.1 * memory[1], 300)


def test_slow_readers_keep_nobody_waiting(process: Process) -> None:
    together(process, requests_of(process, 10), seconds=10)
    before, readers = process.rss, slow_readers(process, "/static/bokeh.js", 40)
    together(process, requests_of(process, 10), seconds=10)
    assert process.rss < before + 40
    for there in readers:
        there.close()
    together(process, requests_of(process, 10), seconds=10)


def test_too_many_connections_are_closed_and_leave_room_again(process: Process) -> None:
    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", process.port), timeout=10)

    there = [connect() for _ in range(MAX_CONNECTIONS)]
    with connect() as last, suppress(ConnectionError):
        assert last.recv(1) == b""
    for one in there:
        one.close()
    wait_for(process, "/", 200)


def test_it_ends_at_once_with_requests_in_hand(places: list[Path]) -> None:
    with started(places) as process, ExitStack() as stack:
        for path in requests_of(process, 30):
            there = socket.create_connection(("127.0.0.1", process.port))
            stack.enter_context(there).sendall(request_for(process, path))
        assert process.interrupt() < 2


def test_a_deleted_run_is_said_and_one_in_its_place_is_shown(
    recorded: Callable[[str], Path], tmp_path: Path
) -> None:
    place = tmp_path / "it"
    shutil.copytree(recorded("one-epoch"), place)
    with serving([tmp_path]) as address:
        (run,) = json.loads(get(address, "/api/runs")[2])["runs"]
        page, figure = f"/run/{run['key']}", f"/figure/curves?run={run['key']}"
        assert get(address, page)[0] == get(address, figure)[0] == 200
        shutil.rmtree(place)
        wait_for(address, page, 410)
        assert get(address, figure)[0] == 410
        shutil.copytree(recorded("wrong-values"), place)
        wait_for(address, page, 200)
        assert get(address, figure)[0] == 200


def wait_for(process: Served, path: str, status: int) -> None:
    until = time.monotonic() + 10
    while True:
        with suppress(OSError, http.client.HTTPException):
            if get(process, path)[0] == status:
                return
        assert time.monotonic() < until


@pytest.mark.slow
def test_many_requests_for_large_runs(recorded: Callable[[str], Path]) -> None:
    names = (*WRONG, "demo", "resnet50", "efficientnet-b0", "150-layers", "names", "damaged",
             "damaged-columns", "one-step", "nan", "frozen", "own-loop")  # fmt: skip
    with started([recorded(name).parent for name in names]) as process:
        memory = rounds(process, 200, 50, seconds=60)
        assert memory[2] < min(1.1 * memory[1], 300)
        began = time.monotonic()
        together(process, requests_of(process, 200), seconds=10)
        print(f"{memory} MB; the fourth round took {time.monotonic() - began:.1f} s")
        assert process.interrupt() < 2


@pytest.mark.slow
def test_it_ends_at_once_at_any_moment(recorded: Callable[[str], Path]) -> None:
    places = [recorded(name) for name in ("demo", "resnet50", "150-layers")]
    for i in range(40):
        with started(places) as process, ExitStack() as stack:
            for path in requests_of(process, 20):
                there = socket.create_connection(("127.0.0.1", process.port))
                stack.enter_context(there).sendall(request_for(process, path))
            time.sleep(i / 20)
            assert process.interrupt() < 2
