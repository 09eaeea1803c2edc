"""A reader sees each batch before the next one is trained on, in slow loops of either kind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl
from convlens.runs import Run

N_STEPS = 3
PATIENCE_S = 30.0


class Reader:
    """A thread that reads a growing run, and says of each step when all of it is in the record."""

    def __init__(self, last_steps: Callable[[Run], list[int]]) -> None:
        self._last_steps = last_steps
        self.seen = [threading.Event() for _ in range(N_STEPS)]
        self._ended, self._path = threading.Event(), None
        self._thread = threading.Thread(target=self._read)

    def start(self, path: Path) -> None:
        self._path = path
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        run = cl.open_run(self._path)
        while not self._ended.wait(0.01):
            for step in range(min(self._last_steps(run)) + 1):
                self.seen[step].set()


@pytest.fixture
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    reader = Reader(request.param)
    yield reader
    reader.stop()


def last_of(run: Run, quantity: str) -> list[int]:
    """The newest step of each series of a quantity; -1 where there is none yet."""
    histories = [run.history(info.index, quantity) for info in run.layers_of(quantity)]
    return [int(h.last_step[-1]) if len(h.last_step) else -1 for h in histories] or [-1]


def everything(run: Run) -> list[int]:
    last = [int(run.steps.step[-1]) if len(run.steps) else -1]
    for quantity in ("activation", "gradient", "update"):
        last += last_of(run, quantity)
    return last


def watched(run: Run) -> list[int]:
    return [step for q in ("activation", "gradient", "update") for step in last_of(run, q)]


SOON_S = 0.05


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was recorded is handed over after this time instead of a second."""
    for module in ("train.callbacks.recorder", "watching.aggregator"):
        monkeypatch.setattr(f"convlens.{module}.HANDOVER_S", SOON_S)


def slowly() -> None:
    """A step that takes its time: longer than readers have to wait for what it leaves."""
    threading.Event().wait(SOON_S * 1.1)


class Pace(cl.Callback):
    """Slow steps, none of which begins before the one before it was seen in the record."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def before_fit(self, learn) -> None:
        self.reader.start(learn.run_path)

    def before_loss(self, learn) -> None:
        if learn.training:
            slowly()

    def before_batch(self, learn) -> None:
        if learn.training and learn.step:
            assert self.reader.seen[learn.step - 1].wait(PATIENCE_S), learn.step - 1

    def before_validation(self, learn) -> None:
        assert self.reader.seen[N_STEPS - 1].wait(PATIENCE_S)


def batches(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = next(iter(cl.mnist(batch_size=8 * n).train))
    return list(zip(x.split(8), y.split(8), strict=True))


@pytest.mark.parametrize("reader", [everything], indirect=True)
def test_a_learner_shows_each_batch_before_the_next(reader: Reader) -> None:
    model = cl.simple_cnn(1, 10, widths=(4,))
    model.compile(backend="eager")
    data = batches(N_STEPS)
    stats = [cl.ActivationStats(), cl.GradientStats(), cl.UpdateStats(), Pace(reader)]
    learn = cl.Learner(
        cl.DataLoaders(data, data[:1], name="slow"), model, callbacks=stats, progress=False
    )
    learn.fit(1, 0.01)
    assert learn.recorder.steps.step.tolist() == list(range(N_STEPS))
    run = cl.open_run(learn.run_path)
    assert run.steps.loss.tolist() == learn.recorder.steps.loss.tolist()
    for name, history in ((n, learn.activation_stats[n]) for n in learn.activation_stats):
        assert (run.activation_stats[name].counts == history.counts).all()


@pytest.mark.parametrize("reader", [watched], indirect=True)
def test_a_watched_loop_shows_each_batch_before_the_next(reader: Reader, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with cl.watch(model, run=tmp_path / "run", gradients=True, updates=True):
        reader.start(tmp_path / "run")
        for step, (x, y) in enumerate(batches(N_STEPS)):
            slowly()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert reader.seen[step].wait(PATIENCE_S), step


class Spy(cl.Callback):
    """What the recorder writes, in steps, and when it has that committed."""

    def __init__(self) -> None:
        self.seen: list[int | str] = []

    def before_fit(self, learn) -> None:
        write, flush = learn.sink.write_steps, learn.sink.flush
        learn.sink.write_steps = lambda steps: (self.seen.append(len(steps)), write(steps))
        learn.sink.flush = lambda **wait: (self.seen.append("commit"), flush(**wait))


def fast_fit(n_steps: int) -> list[int | str]:
    spy = Spy()
    data = [(torch.randn(2, 4), torch.tensor([0, 1]))] * n_steps
    dls = cl.DataLoaders(data, name="fast")
    cl.Learner(dls, nn.Linear(4, 2), callbacks=[spy], progress=False).fit(1, 0.01)
    return spy.seen


def test_a_fast_loop_commits_nothing_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are read from the device 64 at a time, and wait for the epoch's end."""
    monkeypatch.setattr("convlens.train.callbacks.recorder.HANDOVER_S", 3600.0)
    assert fast_fit(150)[:4] == [64, 64, 22, "commit"]


def test_what_was_recorded_is_committed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.train.callbacks.recorder.HANDOVER_S", 0.0)
    assert fast_fit(3)[:6] == [1, "commit", 1, "commit", 1, "commit"]
