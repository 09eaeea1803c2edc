"""Recorded runs of every kind that the page must show: healthy, sick, huge, tiny, hostile, broken.

``python tests/web/sample_runs.py FOLDER [NAME …]`` writes all of them, or those of these names;
``python tests/web/sample_runs.py grow FOLDER STOP_FILE`` trains until that file is there.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from contextlib import suppress
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from broken_runs import small
from sample_trainings import RUNS, Each, digits, learner, loop, photos, sample, train_until
from torch import Tensor, nn
from torch.nn import functional as F

import convlens as cl
from convlens.errors import NonFiniteLossError
from convlens.runs.folder import make_numbered


@sample("demo")
def demo(path: Path) -> None:
    dls = cl.mnist(batch_size=512, device="cpu")
    learner(path, dls, cl.simple_cnn(1, 10, norm="batch")).fit_one_cycle(5, 0.1)


@sample("collapsed")
def collapsed(path: Path) -> None:
    learner(path, digits(10_000, 200, 2_000), cl.simple_cnn(1, 10)).fit(3, 0.3)


@sample("own-loop")
def own_loop(path: Path) -> None:
    """Without any number that was logged."""
    batches = digits(3_000).train
    loop(path, cl.simple_cnn(1, 10), batches, log=False, gradients=True, updates=True)


@sample("own-loop-logged")
def own_loop_logged(path: Path) -> None:
    """Numbers at each fifth step only, and three epochs."""
    dls, model = digits(2_000, n_valid=500), cl.simple_cnn(1, 10, norm="batch")
    optimizer = torch.optim.AdamW(model.parameters(), 0.003)
    assert dls.valid is not None
    x_valid, y_valid = (torch.cat(part) for part in zip(*dls.valid, strict=True))
    with cl.watch(model, run=path) as stats:
        for step, (x, y) in enumerate(chain(*repeat(dls.train, 3)), start=1):
            output = model(x)
            loss = F.cross_entropy(output, y)
            if step % 5 == 1:
                stats.log(loss=loss, batch_accuracy=cl.accuracy(output, y), root=step**0.5)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % len(dls.train) == 0:
                output = model.eval()(x_valid).detach()
                model.train()
                loss, accuracy = F.cross_entropy(output, y_valid), cl.accuracy(output, y_valid)
                stats.log_epoch(valid_loss=loss, accuracy=accuracy)


@sample("resnet50")
def resnet50(path: Path) -> None:
    """All channels of ``layer3.2.bn2`` are dead, and stay so."""
    from torchvision.models import resnet50

    model = resnet50()
    _kill(model.layer3[2].bn2)
    loop(path, model, photos(24), lr=0.003)


@sample("efficientnet-b0")
def efficientnet_b0(path: Path) -> None:
    """``features.4.1.block.1.1`` gives -1 for every image; SiLU follows, so diagnose is silent."""
    from torchvision.models import efficientnet_b0

    model = efficientnet_b0()
    _kill(model.features[4][1].block[1][1])
    loop(path, model, photos(24), lr=0.003, gradients=True, updates=True)


def _kill(layer: nn.Module) -> None:
    nn.init.zeros_(layer.get_parameter("weight").requires_grad_(False))
    nn.init.constant_(layer.get_parameter("bias").requires_grad_(False), -1.0)


def _narrow(path: Path, *widths: int) -> None:
    blocks = list(cl.simple_cnn(1, 10, "batch", widths))[:-1]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    learner(path, digits(600, 30), model).fit_one_cycle(2, 0.02)


@sample("channels-4-6-8")
def channels_4_6_8(path: Path) -> None:
    _narrow(path, 4, 6, 8)


@sample("channels-10-12-14")
def channels_10_12_14(path: Path) -> None:
    _narrow(path, 10, 12, 14)


@sample("one-step")
def one_step(path: Path) -> None:
    learner(path, digits(50), cl.simple_cnn(1, 10, norm="batch")).fit(1, 0.01)


one_epoch = sample("one-epoch")(small)
odd_folder = sample('names "><img src=x onerror=alert(1)> $x$ größe & %2e%2e?a=b#c')(small)


@sample("nan")
def nan(path: Path) -> None:
    """The learning rate rises until the loss is NaN, which ends the training as failed."""

    def rise(learn: cl.Learner) -> None:
        learn.optimizer.param_groups[0]["lr"] *= 1.2**learn.step

    with suppress(NonFiniteLossError):
        learner(path, digits(3_000), cl.simple_cnn(1, 10), Each(rise)).fit(3, 0.003)


@sample("nan-goes-on")
def nan_goes_on(path: Path) -> None:
    """A loop that does not mind: the second half of its steps has NaN everywhere."""
    batches = ((x / (i != 30), y) for i, (x, y) in enumerate(digits(3_000).train))
    loop(path, cl.simple_cnn(1, 10), batches, gradients=True, updates=True)


@sample("frozen")
def frozen(path: Path) -> None:
    """The first two blocks are frozen, and the gradient of ``side`` is exactly 0."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.side = cl.simple_cnn(1, 10, norm="batch"), nn.Linear(784, 10)
            self.body[:2].requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + 0.0 * self.side(x.flatten(1))

    loop(path, Branches(), digits(2_000).train, gradients=True, updates=True)


@sample("150-layers")
def many_layers(path: Path) -> None:
    linear = [nn.Linear(784, 32), *(nn.Linear(32, 32) for _ in range(148)), nn.Linear(32, 10)]
    for layer in linear:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    model = nn.Sequential(nn.Flatten(), *chain(*zip(linear, repeat(nn.ReLU()))))[:-1]
    loop(path, model, islice(digits(1_500).train, 30), lr=1e-3)


@sample("names")
def names(path: Path) -> None:
    """Classes, layers, their kinds, data and metrics have names that are hostile, odd or long."""
    script, image, math = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x$"
    long, odd = "eighty_characters_" * 4 + "long_one", "größe 数字 \u202ertl 🙂 ' &amp; \\ ${x}"
    classes = [script, image, math, long, odd, "", " ", "null", "a\nb\t\x00c", "x" * 5_000]

    def named(name: str, kind: type[nn.Module]) -> type[Any]:
        return type(name, (kind,), {})

    def metric(output: Tensor, y: Tensor) -> Tensor:
        return cl.accuracy(output, y)

    convs = named(script, nn.Conv2d)(1, 4, 3), named(image, nn.Conv2d)(4, 6, 3, 2)
    block = {image: convs[1], "$y_1$": nn.ReLU(), odd: nn.Conv2d(6, 8, 3, 2)}
    model = named(script, nn.Sequential)(OrderedDict({
        script: convs[0], long: nn.BatchNorm2d(4), "relu": nn.ReLU(),
        math: named(math, nn.Sequential)(OrderedDict(block)),
        "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "__proto__": nn.Linear(8, 10),
    }))  # fmt: skip
    learn = learner(path, digits(600, classes=classes, name=f"{script} {image} {odd}"), model)
    metric.__name__, learn.metrics = image, (cl.accuracy, metric)
    learn.fit(2, 0.01)


def growing(base: Path, stop_file: Path) -> Path:
    """Train until the file is there; for a process of its own."""
    path = make_numbered(base, "growing")
    train_until(path, stop_file)
    return path


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1] == "grow":
        growing(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    for name in sys.argv[2:] or RUNS:
        started = time.perf_counter()
        path = RUNS[name](Path(sys.argv[1]))
        print(f"{time.perf_counter() - started:5.1f} s  {path}", flush=True)


if __name__ == "__main__":
    main()
