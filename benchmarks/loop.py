"""The Learner with nothing watched against a loop written by hand: target 1.02.

Both train the chapter's network on the embedded MNIST at batch 512 with the same optimizer and
schedule. They alternate by single steps: the Learner runs in a thread that is let go for one step
at a time, so that its loop is the real one, with all its events, its recorder and its guard.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

import convlens as cl
from convlens.train.optimizers import NamedOptimizer
from pairs import compare, finish, verdict

N_EPOCHS = 1000  # more than will be run


class Gate(cl.Callback):
    """Stops before every batch until it is told to go on."""

    order = -1000

    def __init__(self) -> None:
        self.rare_s, self.n_steps = 0.0, 0
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.over = False
        self.started = False

    def before_fit(self, learn: cl.Learner) -> None:
        """Time the commits, which a median over single steps does not see."""
        if learn.sink is None:
            return
        flush = learn.sink.flush

        def timed() -> None:
            start = time.perf_counter()
            flush()
            self.rare_s += time.perf_counter() - start

        learn.sink.flush = timed

    def per_step(self) -> float:
        """Seconds of committing for each step."""
        return self.rare_s / max(self.n_steps, 1)

    def close(self, thread: threading.Thread) -> None:
        """End the fit."""
        self.over = True
        self.go.release()
        thread.join(30)

    def before_batch(self, learn: cl.Learner) -> None:
        """Wait; in validation go on at once."""
        if not learn.training:
            return
        if self.started:
            self.done.release()
        self.started = True
        self.go.acquire()
        if self.over:
            raise cl.CancelFitError

    def step(self) -> None:
        """Let the Learner do everything from one batch to the next."""
        self.n_steps += 1
        self.go.release()
        self.done.acquire()


def data() -> cl.DataLoaders:
    dls = cl.mnist(batch_size=512, device="cpu")
    return cl.DataLoaders(dls.train, None, classes=dls.classes, name="mnist")


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return cl.simple_cnn(1, 10, norm="batch")


def learner(gate: Gate, run: Path | None) -> tuple[threading.Thread, Callable[[], None]]:
    learn = cl.Learner(data(), model(), callbacks=[gate], run=run, progress=False)
    thread = threading.Thread(target=learn.fit_one_cycle, args=(N_EPOCHS, 0.06), daemon=True)
    return thread, gate.step


def by_hand() -> Callable[[], None]:
    """The same training as a plain loop, one step a call, in a thread that waits likewise."""
    go, done = threading.Semaphore(0), threading.Semaphore(0)

    def steps() -> Iterator[None]:
        dls, net = data(), model()
        optimizer = NamedOptimizer("adamw")(net.parameters(), lr=0.06)
        n_steps = N_EPOCHS * len(dls.train)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.06, total_steps=n_steps, pct_start=0.25
        )
        net.train()
        for epoch in range(N_EPOCHS):
            dls.train.set_epoch(epoch)
            for x, y in dls.train:
                loss = F.cross_entropy(net(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                yield

    def work() -> None:
        for _ in steps():
            done.release()
            go.acquire()

    threading.Thread(target=work, daemon=True).start()
    done.acquire()

    def step() -> None:
        go.release()
        done.acquire()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=600)
    rounds = parser.parse_args().rounds
    gate, recording_gate = Gate(), Gate()
    with tempfile.TemporaryDirectory() as folder:
        thread, step = learner(gate, None)
        recording_thread, recording_step = learner(recording_gate, Path(folder) / "run")
        thread.start()
        recording_thread.start()
        sides = {
            "by hand": by_hand(),
            "A/A": by_hand(),
            "learner": step,
            "learner, recording": recording_step,
        }
        rare = {"learner, recording": recording_gate.per_step}
        title = "The Learner, nothing watched"
        result = compare(title, sides, "by hand", 1.02, rounds, extra=rare)
        print(f"  {verdict(result, 'learner')}")
        gate.close(thread)
        recording_gate.close(recording_thread)
    finish([result])


if __name__ == "__main__":
    main()
