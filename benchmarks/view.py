"""What it costs to look at a long run: reading it, its page in a browser, and its server.

The run is made up, but written as a training writes it: by `ColumnStore` and `RunWriter`, chunk by
chunk, levels rising, merging in its own thread. Its columns are histograms of normal distributions
whose width and mean drift, with the noise of counting, so that they compress as real ones do.

The server is a process of its own; its processor time is what the kernel counted. The browser, one
Chromium, draws in software on the same cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from convlens.core.buckets import BucketLayout
from convlens.core.columns import CHUNK_BITS, Columns, chunk_of, level_at
from convlens.core.histories import LayerInfo
from convlens.core.records import HANDOVER_S, Epoch
from convlens.core.steps import StepSeries
from convlens.runs import RunWriter, create_run, open_run
from convlens.runs.follower import RunFollower
from convlens.watching.column_store import ColumnStore, Series
from pairs import finish, machine

LAYOUT = BucketLayout()
EPS = 0.05
CHANNELS = 64
PER_CALL = 200_000  # values of a layer in one step
N_SHAPES = 64  # distributions of a layer, from the first step to the last
CHUNK = 1 << CHUNK_BITS
STEPS_A_SECOND = 500

Started = Any
"""Of `multiprocessing`: the second in which a run began to grow."""

Tab = Any
"""Of Playwright, which has no types that a type checker may ask for: a browser, or a page of it."""

Result = dict[str, object]


class MadeUp:
    """A training that never was: what its layers, gradients and updates would have put out.

    Args:
        writer: the run to write to.
        n_steps: how long it is, for the drift.
        n_layers: watched layers; every fifth has gradients and updates too.
    """

    def __init__(self, writer: RunWriter, n_steps: int, n_layers: int) -> None:
        self.writer, self.n_steps = writer, n_steps
        self.store = ColumnStore(LAYOUT, EPS, sink=writer)
        names = [f"stage{i // 10}.conv{i % 10}" for i in range(n_layers)]
        infos = [LayerInfo(i, name, "Conv2d", i % 2 == 0) for i, name in enumerate(names)]
        for quantity in ("gradient", "update", "parameter"):
            infos += [
                LayerInfo(i, f"{name}.weight", "Parameter", False, quantity)
                for i, name in enumerate(names[::5])
            ]
        self.infos = infos
        self.rng = np.random.default_rng(0)
        self.noise = self.rng.standard_normal((1 << 12, LAYOUT.size), np.float32)
        normal = np.sort(np.random.default_rng(1).standard_normal(200_000))
        widths = 2.0 ** np.linspace(-1, 3, N_SHAPES)
        edges = (LAYOUT.edges[None] - 0.1) / widths[:, None]
        shares = np.diff(np.searchsorted(normal, edges) / len(normal), axis=1)
        self.means = (shares * PER_CALL).astype(np.float32)
        self.spread = np.sqrt(self.means)
        self.widths = widths
        self.store.declare(infos)

    def grow(self, first: int, stop: int) -> None:
        """The steps from ``first`` to ``stop``: closed chunks are kept, an open one is shown."""
        step = first
        while step < stop:
            level = level_at(step)
            chunk = chunk_of(step, level)
            begin, end = chunk << (level + CHUNK_BITS), (chunk + 1) << (level + CHUNK_BITS)
            columns = self._columns(begin, min(end, stop), level)
            if end <= stop:
                self.store.add(level, chunk, columns)
            else:
                self.store.show(level, chunk, columns)
            step = end
        self.store.wait()
        self.writer.flush()

    def write_steps(self, first: int, stop: int) -> None:
        """The losses and hyperparameters of these steps."""
        self.writer.write_steps(self._steps(first, stop))
        self.writer.flush()

    def close(self) -> None:
        """What was made up is written, as finished."""
        n = self.n_steps // 10
        for epoch in range(10):
            accuracy = {"accuracy": 1 - 0.5 / (epoch + 1)}
            last = (epoch + 1) * n - 1
            loss = 2.3 / (epoch + 1)
            self.writer.write_epoch(Epoch(epoch, epoch * n, last, loss, loss, accuracy, n * 1e-3))
        self.store.wait()
        self.writer.close()

    def _columns(self, begin: int, stop: int, level: int) -> dict[Series, Columns]:
        first = np.arange(begin, stop, 1 << level)
        last = np.append(first[1:], stop) - 1
        return {(i.quantity, i.index): self._of(i, first, last) for i in self.infos}

    def _of(self, info: LayerInfo, first: np.ndarray, last: np.ndarray) -> Columns:
        time_ = first / max(self.n_steps, 1) * (N_SHAPES - 1)
        shape = (time_.astype(np.int64) + info.index) % N_SHAPES
        calls = last - first + 1
        at = int(self.rng.integers(0, len(self.noise) - CHUNK))
        counts = self.noise[at : at + len(first)] * self.spread[shape]
        counts *= np.sqrt(calls)[:, None].astype(np.float32)
        counts += self.means[shape] * calls[:, None].astype(np.float32)
        counts = np.maximum(counts, 0, out=counts).astype(np.int64)
        n = counts.sum(axis=1)
        none = np.zeros(len(first), np.int64)
        channels = 0 if info.quantity in ("update", "parameter") else CHANNELS
        alive = np.arange(channels)[None] >= (shape // 8)[:, None]
        near = np.searchsorted(LAYOUT.edges, [-EPS, EPS])
        return Columns(
            first, last, calls, counts, none, none, none,
            near_zero=counts[:, near[0] : near[1]].sum(axis=1),
            at_most_eps=counts[:, : near[1]].sum(axis=1),
            mean=0.1 + self.rng.standard_normal(len(first)) * 1e-3,
            m2=n * self.widths[shape] ** 2,
            positive=alive,
            active=alive,
        )  # fmt: skip

    def _steps(self, first: int, stop: int) -> StepSeries:
        step = np.arange(first, stop)
        loss = 2.3 * np.exp(-step / 1e4) + 0.1 * self.rng.random(len(step))
        lr = np.sin(np.pi * (step + 1) / (self.n_steps + 1))[:, None]
        epoch = step // max(self.n_steps // 10, 1)
        return StepSeries(step, epoch, loss, step * 1e-3, {"lr": lr, "momentum": 0.95 - 0.1 * lr})


def begin_run(path: Path, n_steps: int, n_layers: int) -> MadeUp:
    """Write a run that may still grow."""
    made_up = MadeUp(create_run(directory=path), n_steps, n_layers)
    block = 1 << 13
    for first in range(0, n_steps, block):
        stop = min(first + block, n_steps)
        made_up.grow(first, stop)
        made_up.write_steps(first, stop)
    made_up.writer.flush(wait=True)
    return made_up


def train(
    path: Path, n_steps: int, n_layers: int, ready: Event, over: Event, began: Started
) -> None:
    """Write a run, then let it grow as a training does, until told that it is over.

    What there is by then is written each second, as a training hands it over.
    """
    made_up = begin_run(path, n_steps, n_layers)
    began.value = time.time()
    ready.set()
    start, step = time.perf_counter(), n_steps
    while not over.wait(HANDOVER_S):
        now = n_steps + int((time.perf_counter() - start) * STEPS_A_SECOND)
        made_up.write_steps(step, now)
        made_up.grow(step, now)
        step = now
    made_up.close()


# ---- reading ------------------------------------------------------------------------------------


def times_of(action: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each call."""
    found: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        found.append(time.perf_counter() - start)
    return found


# ---- the page -----------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from convlens.web.address import make_address
from convlens.web.server import serve
serve([Path(sys.argv[1])], make_address(port=0), lambda address: print(address.url, flush=True))
"""

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]

WATCH = """(() => {
  window.drawnAt = {}; window.seen = [];
  const look = () => {
    const state = document.documentElement?.dataset.drawn;
    if (state && !(state in drawnAt)) drawnAt[state] = performance.now();
    if (state !== "all") return;
    const models = Bokeh.documents.flatMap((doc) => [...doc.all_models]);
    const last = models.filter((one) => one.name === "steps").map((range) => range.bounds[1] - 0.5);
    seen.push([Math.max(...last), Date.now()]); // out of sight, figures wait
  };
  const what = { attributes: true, subtree: true, attributeFilter: ["data-drawn"] };
  new MutationObserver(look).observe(document, what);
})()"""
"""Keeps when each state of the drawing came, and the last step that the figures in sight show."""

OPEN = """async (href) => {
  const root = document.documentElement, link = document.createElement("a");
  const frame = () => new Promise(requestAnimationFrame);
  link.href = href;
  document.body.append(link);
  const start = performance.now();
  link.click();
  while (root.dataset.drawn === "all") await frame();
  while (root.dataset.drawn !== "all") await frame();
  await frame(); await frame();
  link.remove();
  return performance.now() - start;
}"""


class Server:
    """A server in a process of its own, for one run.

    Attributes:
        url: the run's page.
        layers: the names of its layers.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        base = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{base}api/runs") as answer:
            self.key = json.load(answer)["runs"][0]["key"]
        self.base, self.url = base, f"{base}run/{self.key}"

    def layers(self) -> list[str]:
        """The names of the run's layers."""
        with urllib.request.urlopen(f"{self.base}api/run/{self.key}") as answer:
            return [layer["name"] for layer in json.load(answer)["layers"]]

    def share(self, seconds: float) -> float:
        """Of a core, that it takes in the next seconds."""
        begin, used = time.perf_counter(), self._cpu_s()
        time.sleep(seconds)
        return (self._cpu_s() - used) / (time.perf_counter() - begin)

    def _cpu_s(self) -> float:
        numbers = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """What it holds."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def serving(path: Path) -> Generator[Server]:
    """Have a run served."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, text=True, env=environment) as process:
        try:
            yield Server(process)
        finally:
            process.terminate()


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
    page.add_init_script(WATCH)
    page.goto(url, wait_until="commit", timeout=120_000)
    page.wait_for_selector("html[data-drawn=all]", state="attached", timeout=120_000)
    return page


def first_drawings(path: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds until what is in the window is drawn, and all: the server just started, and not."""
    found: dict[str, list[float]] = {}
    with browsing() as browser:
        for _ in range(rounds):
            with serving(path) as server:
                for kind in ("server just started", "server knows the run"):
                    page = opened(browser, server.url)
                    for state, at in page.evaluate("drawnAt").items():
                        if state in ("first", "all"):
                            found.setdefault(f"{state} drawn, {kind}", []).append(at / 1e3)
                    page.context.close()
    return found


def layers_opened(path: Path, rounds: int) -> tuple[list[float], float]:
    """Seconds from a click on another layer until all figures show it; the server's MB then."""
    with serving(path) as server, browsing() as browser:
        page, layers = opened(browser, server.url), server.layers()
        times = [
            page.evaluate(OPEN, f"{server.url}?layer={layers[(7 * i + 1) % len(layers)]}") / 1e3
            for i in range(rounds)
        ]
        return times, server.memory_mb()


def followed(path: Path, seconds: float, began: float, first: int) -> tuple[float, list[float]]:
    """Watch a run that grows.

    Args:
        path: the run.
        seconds: for how long.
        began: when it began to grow, in seconds of `time.time`.
        first: the step that it began with.

    Returns:
        The server's share of a core, and for each batch the seconds from when it was trained on
        until the figures in sight showed it.
    """
    with serving(path) as server, browsing() as browser:
        page = opened(browser, server.url)
        time.sleep(4.0)  # until what came of opening is over
        page.evaluate("seen.length = 0")
        share = server.share(seconds)
        seen = np.array(page.evaluate("seen"), np.float64)
    if len(seen) < 2 or seen[:, 0].max() <= seen[0, 0]:
        raise SystemExit(f"The page was drawn {len(seen)} times in {seconds} s.")
    # A figure that is drawn late shows an older step, and a band's middle lies between steps.
    newest = np.floor(np.maximum.accumulate(seen[:, 0]))
    step = np.arange(newest[0] + 1, newest[-1] + 1)
    shown_at = seen[np.searchsorted(newest, step), 1] / 1e3
    return share, (shown_at - (began + (step - first + 1) / STEPS_A_SECOND)).tolist()


def alone(path: Path, seconds: float) -> float:
    """The server's share of a core while nobody looks at a run that grows."""
    with serving(path) as server:
        time.sleep(4.0)
        return server.share(seconds)


@contextmanager
def busy() -> Generator[None]:
    """Two processes that compute all the time."""
    with ExitStack() as stack:
        for _ in range(2):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


# ---- the report ---------------------------------------------------------------------------------


def say(title: str, times: list[float], target_s: float | None = None) -> Result:
    """Print the median of some times and their quartiles, and whether a target is met."""
    low, middle, high = np.percentile(times, [25, 50, 75])
    line = f"  {title:<44} {middle * 1e3:8.1f} ms (quartiles {low * 1e3:.1f} to {high * 1e3:.1f}"
    line += f", longest {max(times) * 1e3:.1f}; {len(times)} times)"
    result: Result = {"title": title, "median_s": float(middle), "longest_s": max(times)}
    if target_s is not None:
        line += f", target {target_s * 1e3:g} ms: {'met' if middle <= target_s else 'missed'}"
        result["target_s"] = target_s
    print(line)
    return result


def measure_reading(path: Path, rounds: int) -> list[Result]:
    """What a page waits for when it is opened, by a follower that has read nothing yet."""
    figures = times_of(lambda: RunFollower(open_run(path)).figures(), rounds)
    history = times_of(lambda: RunFollower(open_run(path)).history(-2), rounds)
    return [
        say("first figures of all layers", figures),
        say("first history of one layer", history),
    ]


def measure_page(path: Path, rounds: int) -> list[Result]:
    """What a person waits for."""
    results = [
        say(title, times, 2.0 if title.startswith("first") else None)
        for title, times in first_drawings(path, rounds).items()
    ]
    times, memory = layers_opened(path, 5 * rounds)
    print(f"  the server holds {memory:.0f} MB")
    return [*results, say("a layer opened, until all is drawn", times, 0.5)]


def measure_live(path: Path, seconds: float, first: int, began: float) -> list[Result]:
    """What a page costs its server, and how far it is behind."""
    results: list[Result] = []
    share, late = followed(path, seconds, began, first)
    results += [say_share("the server with a page open", share, 0.05)]
    results += [say("from a batch until the page shows it", late, 4.0)]
    results += [say_share("the server with none", alone(path, seconds / 2), 0.01)]
    with busy():
        share, late = followed(path, seconds, began, first)
    results += [say_share("the server, both cores busy", share)]
    return [*results, say("from a batch until it is shown, both cores busy", late, 4.0)]


def say_share(title: str, share: float, target: float | None = None) -> Result:
    """Print a share of a core."""
    line = f"  {title:<44} {share:8.2%} of a core"
    if target is not None:
        line += f", target {target:.0%}: {'met' if share <= target else 'missed'}"
    print(line)
    return {"title": title, "share": share, "target": target}


PARTS = ("reading", "page", "live")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=40.0, help="of following a growing run")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--run", type=Path, help="a run made before, for reading and page")
    arguments = parser.parse_args()
    results: list[Result] = []
    print(machine())
    with tempfile.TemporaryDirectory() as base:
        path = arguments.run or Path(base) / "run"
        if "live" in arguments.parts:
            results += measure_growing(arguments, Path(base) / "run")
        elif not arguments.run:
            begin_run(path, arguments.steps, arguments.layers).close()
        if "reading" in arguments.parts:
            results += measure_reading(path, arguments.rounds)
        if "page" in arguments.parts:
            results += measure_page(path, arguments.rounds)
    finish(results)


def measure_growing(arguments: argparse.Namespace, path: Path) -> list[Result]:
    """Make a run in another process, and follow it while it grows."""
    context = multiprocessing.get_context("spawn")
    ready, over, began = context.Event(), context.Event(), context.Value("d", 0.0)
    steps, layers = arguments.steps, arguments.layers
    training = context.Process(target=train, args=(path, steps, layers, ready, over, began))
    start = time.perf_counter()
    training.start()
    try:
        while not ready.wait(1.0):
            if not training.is_alive():
                raise SystemExit("The run could not be written; see above.")
        print(
            f"{steps:,} steps of {layers} layers, written in {time.perf_counter() - start:.0f} s, "
            f"growing by {STEPS_A_SECOND} steps a second"
        )
        return measure_live(path, arguments.seconds, steps, began.value)
    finally:
        over.set()
        training.join()


if __name__ == "__main__":
    main()
