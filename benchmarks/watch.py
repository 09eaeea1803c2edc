"""Everything watched against nothing: exact, every trainable layer, every batch.

All sides do the same step on the same batches with networks of the same weights. Beside convlens
stand hooks as they are usually written, and fastai's ActivationStats where fastai is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl
from pairs import compare, finish, verdict

Step = Callable[[], None]


def chapter_step(batch_size: int) -> tuple[nn.Module, Step]:
    """One training step of the chapter's network on MNIST-sized images."""
    torch.manual_seed(0)
    model = cl.simple_cnn(1, 10, norm="batch")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-5)
    dls = cl.mnist(batch_size=batch_size, device="cpu")
    batches = iter(dls.train)

    def step() -> None:
        nonlocal batches
        pair = next(batches, None)
        if pair is None:
            batches = iter(dls.train)
            pair = next(batches)
        loss = F.cross_entropy(model(pair[0]), pair[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, step


class Watched:
    """A watched step, and the seconds that compressing the columns takes every 64 steps.

    The median over rounds does not see what happens in one round of 64, so it is added to it.
    """

    def __init__(self, model: nn.Module, step: Step) -> None:
        self.step, self.n_steps, self.flush_s = step, 0, 0.0
        stats = cl.watch(model).attach()
        flush = stats.flush

        def timed() -> None:
            start = time.perf_counter()
            flush()
            self.flush_s += time.perf_counter() - start

        stats.flush = timed

    def per_step(self) -> float:
        """Seconds of compressing for each step."""
        return self.flush_s / self.n_steps

    def __call__(self) -> None:
        """One step."""
        self.n_steps += 1
        self.step()


def with_usual_hooks(model: nn.Module, step: Step) -> Step:
    """Mean, deviation and a histogram of each output, fetched into Python at once."""
    kept: list[tuple[float, float, torch.Tensor]] = []

    def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:  # noqa: ARG001
        out = output.detach()
        kept.append((out.mean().item(), out.std().item(), torch.histc(out, 40, -10, 10)))

    for module in model.modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(hook)

    def clearing() -> None:
        kept.clear()
        step()

    return clearing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    rounds = parser.parse_args().rounds
    watched = Watched(*chapter_step(512))
    sides = {
        "nothing": chapter_step(512)[1],
        "A/A": chapter_step(512)[1],
        "watched": watched,
        "usual hooks": with_usual_hooks(*chapter_step(512)),
    }
    title = "The chapter's network, batch 512, every layer at every batch"
    result = compare(title, sides, "nothing", 1.15, rounds, extra={"watched": watched.per_step})
    print(f"  {verdict(result, 'watched')}")
    finish([result])


if __name__ == "__main__":
    main()
