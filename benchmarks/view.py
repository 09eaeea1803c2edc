"""What it costs to look at a run: reading it, keeping up with it, its page (`page.py`).

The run is made up, but written as a training writes it: by `ColumnStore` and `RunWriter`, chunk by
chunk, levels rising, merging in its own thread. Its columns are histograms of normal distributions
whose width and mean drift, with the noise of counting, so that they compress as real ones do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

import page
from convlens.core.buckets import BucketLayout
from convlens.core.columns import CHUNK_BITS, Columns, chunk_of, level_at
from convlens.core.histories import LayerInfo
from convlens.core.records import HANDOVER_S, Epoch
from convlens.core.steps import StepSeries
from convlens.runs import RunWriter, create_run, open_run
from convlens.runs.follower import RunFollower
from convlens.views.timeline import condense, grid_of, heat_of
from convlens.watching.column_store import ColumnStore, Series
from pairs import finish, machine

LAYOUT = BucketLayout()
EPS = 0.05
CHANNELS = 64
PER_CALL = 200_000  # values of a layer in one step
N_SHAPES = 64  # distributions of a layer, from the first step to the last
CHUNK = 1 << CHUNK_BITS
STEPS_A_SECOND = 500
POLLS_A_SECOND = 2

Started = Any
"""Of `multiprocessing`: the second in which a run began to grow."""

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


def make_run(path: Path, n_steps: int = 100_000, n_layers: int = 50) -> Path:
    """Write a finished run; its folder."""
    made_up = begin_run(path, n_steps, n_layers)
    made_up.close()
    return path


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


def first_figures(path: Path, rounds: int) -> list[float]:
    """The figures of all layers, by a follower that has read nothing yet."""
    return times_of(lambda: RunFollower(open_run(path)).figures(), rounds)


def first_history(path: Path, rounds: int) -> list[float]:
    """One layer with its bucket counts, by a follower that has read nothing yet."""
    return times_of(lambda: RunFollower(open_run(path)).history(-2), rounds)


def first_curves(path: Path, rounds: int) -> list[float]:
    """The losses of all steps, by a follower that has read nothing yet."""
    return times_of(lambda: RunFollower(open_run(path)).curves(), rounds)


def heat_map(path: Path, rounds: int) -> list[float]:
    """What is drawn of a layer that has been read."""
    history = RunFollower(open_run(path)).history(-2)

    def draw() -> None:
        grid = grid_of([history])
        assert grid is not None
        heat_of(condense(history, grid), grid)

    return times_of(draw, rounds)


def keep_up(path: Path, seconds: float) -> tuple[list[float], list[float], float]:
    """Follow a run that grows, as a page that shows the matrix, one layer and the curves.

    Returns:
        Processor seconds of each refresh that found something new, seconds of asking for everything
        afterwards, and the share of a core that it took.
    """
    follower = RunFollower(open_run(path))

    def ask() -> None:
        follower.figures()
        follower.history(-2)
        follower.curves()

    ask()
    follower.refresh()
    refreshes: list[float] = []
    answers: list[float] = []
    start, used = time.perf_counter(), time.process_time()
    for turn in range(1, int(seconds * POLLS_A_SECOND) + 1):
        time.sleep(max(0.0, start + turn / POLLS_A_SECOND - time.perf_counter()))
        began = time.process_time()
        if follower.refresh():
            refreshes.append(time.process_time() - began)
            answers += times_of(ask, 1)
    share = (time.process_time() - used) / (time.perf_counter() - start)
    return refreshes, answers, share


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
    """What a page waits for when it is opened."""
    return [
        say("first figures of all layers", first_figures(path, rounds), 0.4),
        say("first history of one layer", first_history(path, rounds), 0.1),
        say("first curves", first_curves(path, rounds)),
        say("heat map of a layer that was read", heat_map(path, rounds), 0.03),
    ]


def measure_following(path: Path, seconds: float) -> list[Result]:
    """What a page costs while it is open."""
    refreshes, answers, share = keep_up(path, seconds)
    print(f"  polled {POLLS_A_SECOND} times a second for {seconds:g} s: {share:.2%} of a core")
    return [
        say("refresh with news, processor time", refreshes, 0.015),
        say("figures, a history and curves after it", answers),
        {"title": "share of a core", "share": share, "target": 0.05},
    ]


def measure_page(path: Path, rounds: int) -> list[Result]:
    """What a person waits for."""
    results = [
        say(f"first complete drawing, {kind}", times, 1.5)
        for kind, times in page.first_drawings(path, rounds).items()
    ]
    told, drawn = page.layers_opened(path, 3 * rounds)
    say("a layer opened, until the page has it", told)
    return [*results, say("a layer opened, until it is drawn", drawn, 0.3)]


def measure_live(path: Path, seconds: float, n_steps: int, began: float) -> list[Result]:
    """What a page costs its server, and how far it is behind."""
    shares = page.followed(path, seconds, began, n_steps, STEPS_A_SECOND)
    print(f"  the server with a page open: {shares[0]:.2%} of a core, with none: {shares[1]:.2%}")
    result = say("from a batch until the page shows it", shares[2].tolist(), 1.0)
    late = float((shares[2] > 1.0).mean())
    print(f"    ({late:.2%} of the batches were shown after more than a second)")
    cost: Result = {"title": "server", "share": shares[0], "without": shares[1], "target": 0.05}
    return [cost, result | {"late": late}]


def measure_slowing(base: Path, rounds: int, threads: int, *, drawn: bool) -> Result:
    """What being looked at costs a training: all blocks against those in which nobody looked.

    Beside it, all but those against another block of each round, which should be the same.
    """
    sums, step_s, share = page.slowed(base, rounds, threads, drawn=drawn)
    where = "drawn by a browser on these cores" if drawn else "drawn elsewhere"
    title = f"training with {threads} thread{'s' if threads > 1 else ''}, its page {where}"
    everything, alone, other = np.moveaxis(sums, 2, 0)
    print(f"  {title}: {rounds} rounds, {1e3 * step_s:.2f} ms a step")
    print(f"    the server took {share:.2%} of a core")
    result: Result = {"title": title, "rounds": rounds, "target": 1.01, "server": share}
    some = np.random.default_rng(0).integers(rounds, size=(4000, rounds))
    for name, new, old in (("followed", everything, alone), ("A/A", everything - alone, other)):
        (t, n), (t_old, n_old) = new[:, some].sum(axis=2), old[:, some].sum(axis=2)
        low, high = np.percentile((t / n) / (t_old / n_old), [2.5, 97.5])
        (t, n), (t_old, n_old) = new.sum(axis=1), old.sum(axis=1)
        middle = float((t / n) / (t_old / n_old))
        print(f"    {name:<10} ratio {middle:.4f} (95 % interval {low:.4f} to {high:.4f})")
        result[name] = {"ratio": middle, "low": float(low), "high": float(high)}
    return result


PARTS = ("reading", "page", "live", "slowing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slowing-rounds", type=int, default=120, help="of five seconds each")
    parser.add_argument("--seconds", type=float, default=20.0, help="of following a growing run")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--run", type=Path, help="a run made before, for reading and page")
    arguments = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as base:
        path = arguments.run or Path(base) / "run"
        if arguments.run is None and {"reading", "page", "live"} & set(arguments.parts):
            results += measure_growing(arguments, path)
        print(machine())
        if "reading" in arguments.parts:
            results += measure_reading(path, arguments.rounds)
        if "page" in arguments.parts:
            results += measure_page(path, max(arguments.rounds // 3, 3))
        if "slowing" in arguments.parts:
            rounds = arguments.slowing_rounds
            results.append(measure_slowing(Path(base) / "a", rounds, 1, drawn=False))
            results.append(measure_slowing(Path(base) / "b", rounds, 2, drawn=False))
            results.append(measure_slowing(Path(base) / "c", max(rounds // 4, 1), 1, drawn=True))
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
        found: list[Result] = []
        if "reading" in arguments.parts:
            found += measure_following(path, arguments.seconds)
        if "live" in arguments.parts:
            found += measure_live(path, arguments.seconds, steps, began.value)
        return found
    finally:
        over.set()
        training.join()


if __name__ == "__main__":
    main()
