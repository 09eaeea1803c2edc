"""``convlens train`` and ``convlens check``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlens.cli.data_options import (
    FILES_BATCH,
    NAMED_BATCH,
    add_data_options,
    is_named,
    load_data,
)
from convlens.cli.options import RUNS, Commands, add_command, positive_number, whole_number
from convlens.cli.output import interruptible, print_line
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

    from convlens.data import DataLoaders
    from convlens.train import Learner

PROBLEM = 3
"""The exit code where there is a problem."""


def add_commands(commands: Commands) -> None:
    """Add the commands of this module to the parser."""
    add = add_command(commands, "train", train).add_argument
    add_data_options(add)
    add("--epochs", type=whole_number(1), default=5, help="passes over the training images")
    _add_step_options(add)
    add("--norm", choices=["batch", "none"], default="batch", help="normalization")
    add("--schedule", choices=["one-cycle", "constant"], default="one-cycle", help="schedule")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train")
    add("--out", type=Path, default=RUNS, metavar="DIR", help="folder that keeps the runs")
    add("--watch", action=argparse.BooleanOptionalAction, default=True,
        help="watch every layer at every batch")  # fmt: skip
    add("--gradients", action="store_true", help="also record each parameter's gradient")
    add("--updates", action="store_true", help="also record each parameter's update")
    add("--json", action="store_true", help="end with one line of JSON")

    add = add_command(commands, "check", check).add_argument
    add_data_options(add)
    add("--model", default="simple_cnn", help="simple_cnn, resnet, torchvision:NAME, timm:NAME or "
        "file.py:object, which runs that Python file with all that it does")  # fmt: skip
    _add_step_options(add)
    add("--norm", choices=["batch", "none"], default="batch", help="normalization of simple_cnn")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train")
    add("--seconds", type=positive_number, default=5.0, help="how long to try, at least 1")
    add("--json", action="store_true", help="print JSON")


def _add_step_options(add: Callable[..., Any]) -> None:
    add("--lr", type=positive_number,
        help="learning rate; with one-cycle its peak (default: 0.1 for a named data set, 0.01 for "
        "files)")  # fmt: skip
    add("--batch-size", type=whole_number(1),
        help=f"images per step (default: {NAMED_BATCH} for a named data set, {FILES_BATCH} for "
        "files)")  # fmt: skip


def check(arguments: argparse.Namespace) -> None:
    """Say what would go wrong in a training, before it; exits with 3 if there is a problem."""
    import torch

    from convlens.models import model
    from convlens.models.by_name import FILE, model_of_file, resolve
    from convlens.train import Learner

    dls = _data(arguments, quiet=arguments.json)
    torch.manual_seed(arguments.seed)
    if arguments.model == "simple_cnn":
        network = _network(dls, arguments.norm)
    elif resolve(arguments.model)[0] == FILE:  # what is wrong with it is the check's to say
        network = model_of_file(arguments.model)
    else:
        network = model(arguments.model, dls)
    with interruptible():
        learn = Learner(dls, network, run=None, progress=False, seed=arguments.seed)
        result = learn.check(_rate(arguments), seconds=arguments.seconds)
    for line in [json.dumps(result.to_dict())] if arguments.json else str(result).split("\n"):
        print_line(line)
    if result.problems:
        sys.exit(PROBLEM)


def train(arguments: argparse.Namespace) -> None:
    """Train the chapter's network, watch it, and write a report."""
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ArgumentError(f"--out must be a folder, got the file {str(arguments.out)!r}.")
    learn = _learner(arguments)
    with interruptible():
        try:
            if arguments.schedule == "one-cycle":
                learn.fit_one_cycle(arguments.epochs, _rate(arguments))
            else:
                learn.fit(arguments.epochs, _rate(arguments))
            _finish(learn, arguments.json)
        except (Exception, KeyboardInterrupt):
            if learn.run_path is not None:
                print_line(f"What was recorded until then is in {learn.run_path}.", sys.stderr)
            raise


def _learner(arguments: argparse.Namespace) -> Learner:
    import torch

    from convlens import train

    class Announce(train.Callback):
        order = -100  # before callbacks that take long

        def before_fit(self, learn: Learner) -> None:
            print_line(f"Watch it: convlens view {shlex.quote(str(learn.run_path))}")

    dls = _data(arguments)
    torch.manual_seed(arguments.seed)
    return train.Learner(
        dls,
        _network(dls, arguments.norm),
        metrics=[train.accuracy] if dls.kind == "classes" else [],
        callbacks=[
            Announce(),
            train.Pictures(),
            *([train.ActivationStats()] if arguments.watch else []),
            *([train.GradientStats()] if arguments.gradients else []),
            *([train.UpdateStats()] if arguments.updates else []),
        ],
        seed=arguments.seed,
        base=arguments.out,
    )


def _rate(arguments: argparse.Namespace) -> float:
    """The learning rate."""
    return arguments.lr or (0.1 if is_named(arguments) else 0.01)


def _network(dls: DataLoaders, norm: str) -> nn.Module:
    """A `simple_cnn` for this data."""
    from convlens.models import simple_cnn
    from convlens.models.simple import widths_for

    channels, height, width = dls.facts()["input_shape"]
    return simple_cnn(
        channels,
        len(dls.classes) or 1,
        norm="batch" if norm == "batch" else None,
        widths=widths_for(height, width),
    )


def _data(arguments: argparse.Namespace, *, quiet: bool = False) -> DataLoaders:
    """The data to train on."""
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("--device cuda: torch finds no such device here; give cpu, or auto.")
    device = None if arguments.device == "auto" else arguments.device
    return load_data(arguments, batch_size=arguments.batch_size, device=device, quiet=quiet)


def _finish(learn: Learner, as_json: bool) -> None:
    """Write the report and print the results."""
    from convlens._api import diagnose, report
    from convlens.runs import open_run

    assert learn.run_path is not None
    run = open_run(learn.run_path)
    page = report(run)
    for finding in diagnose(run):
        print_line(str(finding))
    epochs = learn.recorder.epochs
    last = epochs[-1]
    accuracy = last.metrics.get("accuracy")
    if accuracy is not None:
        print_line(f"accuracy  {accuracy:.2%}")
    elif last.valid_loss is not None:
        print_line(f"loss      {last.valid_loss:.4g}")
    print_line(f"run       {learn.run_path}")
    print_line(f"report    {page}")
    print_line(f"page      convlens view {shlex.quote(str(learn.run_path))}")
    if as_json:
        facts = [
            {"train_loss": epoch.train_loss, "valid_loss": epoch.valid_loss, **epoch.metrics,
             "wall_s": epoch.wall_s}
            for epoch in epochs
        ]  # fmt: skip
        result = {"accuracy": accuracy, "epochs": facts, "run": str(learn.run_path)}
        print_line(json.dumps({**result, "report": str(page)}))
