"""What the live page takes in a real browser, and what following a run costs who trains it.

The server is the real one, `convlens view` in a process of its own; its processor time is what the
kernel counted. The browser draws in software on the same cores, and is not the server.
"""

from __future__ import annotations

import base64
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

import convlens as cl
from convlens.core.records import HANDOVER_S

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SETTLED_S = 8.0
SELDOM_S = 1.0
LET_GO = (True, True, True, True, False)
"""In which of the blocks of a round the server is let go, in random order."""

DRAWN = "html[data-drawn=all]"

Tab = Any
"""Of Playwright, which has no types that a type checker may ask for: a browser, or a page of it."""

OPEN_LAYER = """async () => {
  const root = document.documentElement, before = root.dataset.layer, doc = Bokeh.documents.at(-1);
  const frame = () => new Promise(requestAnimationFrame);
  const start = performance.now();
  document.querySelector('[data-do="next-layer"]').click();
  while (root.dataset.layer === before) await new Promise((go) => setTimeout(go, 0));
  const told = performance.now();
  while (!doc.is_idle) await frame();
  await frame(); await frame();
  return [told - start, performance.now() - start];
}"""

WATCH_STEPS = """() => {
  const root = document.documentElement;
  window.seen = [[Number(root.dataset.steps), Date.now()]];
  new MutationObserver(() => window.seen.push([Number(root.dataset.steps), Date.now()]))
    .observe(root, { attributes: true, attributeFilter: ["data-steps"] });
}"""


class Server:
    """A page server in a process of its own.

    Attributes:
        url: where it is.
        pid: its process.
    """

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url, self.pid = process, url, process.pid

    def cpu_s(self) -> float:
        """Processor time that it has taken, in user and system mode."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(place: Path) -> Iterator[Server]:
    """Have a run, or a folder of runs, served."""
    command = [sys.executable, "-m", "convlens", "view", str(place), "--port", "0", "--no-browser"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        found = (re.search(r"http://[\w.:]+/?\S*", line) for line in process.stdout)
        url = next(match.group() for match in found if match)
        yield Server(process, url.rstrip(".,"))
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait()


@contextmanager
def browsing() -> Generator[Tab]:
    """A Chromium."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


def opened(browser: Tab, url: str) -> Tab:
    """A page that is drawn, in a context of its own: nothing is cached."""
    page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
    return visit(page, url)


def visit(page: Tab, url: str) -> Tab:
    """Go there, and wait until all is drawn."""
    page.goto(url)
    page.wait_for_selector(DRAWN, state="attached", timeout=60_000)
    return page


def drawn_s(page: Tab) -> float:
    """Seconds from the request of the page until everything in it was drawn."""
    return page.evaluate("Number(document.documentElement.dataset.drawnMs)") / 1e3


def first_drawings(path: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds until all is drawn: by a server just started, without a cache, and with one."""
    found: dict[str, list[float]] = {"just started": [], "nothing cached": [], "cached": []}
    with browsing() as browser:
        for _ in range(rounds):
            with serving(path) as server:
                for kind in ("just started", "nothing cached"):
                    page = opened(browser, server.url)
                    found[kind].append(drawn_s(page))
                    if kind == "nothing cached":
                        found["cached"].append(drawn_s(visit(page, server.url)))
                    page.context.close()
    return found


def layers_opened(path: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from a click until the page was told of the next layer, and until it was drawn."""
    with serving(path) as server, browsing() as browser:
        page = opened(browser, server.url)
        times = [page.evaluate(OPEN_LAYER) for _ in range(rounds)]
    return [told / 1e3 for told, _ in times], [drawn / 1e3 for _, drawn in times]


def followed(
    path: Path, seconds: float, started: float, first: int, steps_a_second: float
) -> tuple[float, float, np.ndarray]:
    """Watch a run that grows.

    Args:
        path: the run.
        seconds: for how long, with a page and again without any.
        started: when it began to grow, in seconds of `time.time`.
        first: the step that it began with.
        steps_a_second: how fast it grows.

    Returns:
        The server's share of a core with a page open, that without, and for each batch the seconds
        from when it was trained on until the page showed it.
    """
    with serving(path) as server, browsing() as browser:
        page = opened(browser, server.url)
        time.sleep(2.0)  # until what came of opening is over
        page.evaluate(WATCH_STEPS)
        with_page = _share(server, seconds)
        seen = np.array(page.evaluate("window.seen"), np.float64)
        page.context.close()
        time.sleep(1.0)
        without = _share(server, seconds / 3)
    step = np.arange(seen[0, 0] + 1, seen[-1, 0] + 1)
    shown_at = seen[np.searchsorted(seen[:, 0], step), 1] / 1e3
    return with_page, without, shown_at - (started + (step - first + 1) / steps_a_second)


def _share(server: Server, seconds: float) -> float:
    begin, used = time.perf_counter(), server.cpu_s()
    time.sleep(seconds)
    return (server.cpu_s() - used) / (time.perf_counter() - begin)


class Blocks(cl.Callback):
    """Times a training's steps in blocks of one second, with the server let go or held in each.

    A server that was held for a block looks as soon as it is let go, so it does all of its work in
    the blocks in which it is: what it costs is the mean of all blocks against that of those in
    which it was held. Blocks are short as the time that a step takes drifts from second to second.

    Args:
        server: who follows the training.
        rounds: of the blocks of `LET_GO`.
        settled: whether what comes of opening the page is over, which is not timed.
    """

    def __init__(self, server: Server, rounds: int, settled: Callable[[], bool]) -> None:
        self._server, self._settled = server, settled
        rng = np.random.default_rng(0)
        self._plan = [bool(go) for _ in range(rounds) for go in rng.permutation(LET_GO)]
        self._blocks: list[list[float]] = []
        self._until = self._last = 0.0
        self._began = self._used = 0.0

    def before_epoch(self, learn: cl.Learner) -> None:
        """The next step comes after something else, and is not timed."""
        del learn
        self._last = 0.0

    def after_step(self, learn: cl.Learner) -> None:
        """A step is over."""
        del learn
        now = time.perf_counter()
        if self._blocks and self._last:
            self._blocks[-1].append(now - self._last)
        if now > self._until and self._settled():
            if len(self._blocks) == len(self._plan):
                raise cl.CancelFitError
            if not self._blocks:
                self._began, self._used = time.perf_counter(), self._server.cpu_s()
            go = self._plan[len(self._blocks)]
            os.kill(self._server.pid, signal.SIGCONT if go else signal.SIGSTOP)
            self._blocks.append([])
            self._until = time.perf_counter() + HANDOVER_S
        self._last = time.perf_counter()

    def share(self) -> float:
        """Of a core, that the server has taken since the first block began."""
        return (self._server.cpu_s() - self._used) / (time.perf_counter() - self._began)

    def sums(self) -> np.ndarray:
        """(2, rounds, 3) sums of steps' times, and how many steps they are of.

        In all blocks, in the one in which the server was held, and in another one of each round.
        Each time is divided by the machine's pace about its block, which drifts.
        """
        if len(self._blocks) < len(self._plan):
            raise SystemExit("The training ended before all blocks were timed; ask for fewer.")
        shape = -1, len(LET_GO)
        total = np.array([sum(block) for block in self._blocks]) / self._paces()
        total = total.reshape(shape)
        n = np.array([len(block) for block in self._blocks]).reshape(shape)
        held = ~np.array(self._plan).reshape(shape)
        other = np.roll(held, 2, axis=1)  # not the next, in which it looks twice
        chosen = np.stack([np.ones_like(held), held, other], axis=-1)
        return np.stack([(part[..., None] * chosen).sum(axis=1) for part in (total, n)])

    def step_s(self) -> float:
        """Median seconds of a step."""
        return float(np.median(np.concatenate(self._blocks)))

    def _paces(self) -> list[float]:
        """Of each block the median time of a step in it and two on either side.

        Not of blocks in which the server was held: about one of those there are more of them than
        about another, so that a part of what is looked for would be divided away.
        """
        paces = list[float]()
        for i in range(len(self._blocks)):
            near = slice(max(i - 2, 0), i + 3)
            going = zip(self._blocks[near], self._plan[near], strict=True)
            paces.append(float(np.median(np.concatenate([times for times, go in going if go]))))
        return paces


def slowed(
    base: Path, rounds: int, threads: int, *, drawn: bool
) -> tuple[np.ndarray, float, float]:
    """The steps of the chapter's network on MNIST, with its page open.

    Returns:
        See `Blocks.sums`; seconds that a step takes; and the server's share of a core meanwhile.

    Args:
        base: where the run is put.
        rounds: see `Blocks`.
        threads: of the training.
        drawn: whether the page is drawn by a browser on this machine, which takes a core or more of
            it; else it is read and dropped, as if the browser were elsewhere.
    """
    import torch

    torch.set_num_threads(threads)
    base.mkdir(exist_ok=True)
    with serving(base) as server, ExitStack() as stack:
        show = partial(opened, stack.enter_context(browsing())) if drawn else _listening(stack)
        opens = _Opens(show, server)
        blocks = Blocks(server, rounds, opens.settled)
        learn = cl.Learner(
            cl.mnist(batch_size=64),
            cl.simple_cnn(1, 10, norm="batch"),
            callbacks=[cl.ActivationStats(), opens, blocks],
            base=base,
            progress=False,
        )
        learn.fit(1000, 0.01)
        opens.check()
        return blocks.sums(), blocks.step_s(), blocks.share()


class _Opens(cl.Callback):
    """Opens the page of the run once it has begun."""

    def __init__(self, show: Callable[[str], object], server: Server) -> None:
        self._show, self._server, self._page = show, server, None
        self._opened = math.inf

    def after_step(self, learn: cl.Learner) -> None:
        """The page shows the run's first steps."""
        if self._page is None and learn.step > 100:  # something of it lies on the disk
            self._page = self._show(self._server.url)
            self._opened = time.perf_counter()

    def settled(self) -> bool:
        """Whether all processes have started, and the page has been there for a while."""
        return time.perf_counter() - self._opened > SETTLED_S

    def check(self) -> None:
        """A page that was not there to the end would cost nothing."""
        if isinstance(self._page, BaseProcess):
            there = self._page.is_alive()
        else:
            there = self._page.evaluate("document.documentElement.dataset.drawn") == "all"
        if not there:
            raise SystemExit("The page ended before the training did; see above.")


def _listening(stack: ExitStack) -> Callable[[str], object]:
    """Opens a page that draws nothing, in a process of its own.

    It takes what is sent now and then, as bytes: another machine would take none of these cores.
    """

    def show(url: str) -> object:
        process = multiprocessing.get_context("spawn").Process(target=listen, args=(url,))
        process.start()
        stack.callback(process.terminate)
        return process

    return show


def listen(url: str) -> None:
    """Ask for a page, then for its document, and drop what its session sends, until that ends.

    Before it was asked for its document, a session sends every model anew that it mentions.
    """
    with urllib.request.urlopen(url) as answer:
        found = re.search(r'id="session">(.*?)</script>', answer.read().decode())
    assert found is not None
    token = json.loads(found[1])["items"][0]["token"]
    address = urllib.parse.urlsplit(url)
    request = (
        f"GET /ws HTTP/1.1\r\nHost: {address.netloc}\r\nOrigin: http://{address.netloc}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
        f"Sec-WebSocket-Protocol: bokeh, {token}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port)) as there:
        there.sendall(request.encode())
        answered = b""
        while b'"ACK"' not in answered:
            more = there.recv(1 << 16)
            answered += more
            assert answered.startswith(b"HTTP/1.1 101"), answered
            assert more, answered
        for part in ({"msgid": "1", "msgtype": "PULL-DOC-REQ"}, {}, {}):
            text = json.dumps(part).encode()
            there.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)  # masked with zeros
        while there.recv(1 << 22):
            time.sleep(SELDOM_S)
