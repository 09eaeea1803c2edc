"""``convlens train`` and ``convlens check``."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlens.cli.data_options import add_data_options, load_data
from convlens.cli.options import Commands, add_command, positive_number
from convlens.cli.output import interruptible, print_line
from convlens.cli.train_options import (
    MODELS,
    add_batch_size,
    add_device,
    add_train_options,
    complete,
    default_rate,
    learner_options,
)
from convlens.core.wording import metric_value, without_classes
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

    from convlens.data import DataLoaders
    from convlens.train import Learner
    from convlens.train.presets import Preset

PROBLEM = 3
"""The exit code where there is a problem."""

MOST_OF_CLASSES = 30
"""Of more numbers of single classes the results show only the mean."""


def add_commands(commands: Commands) -> None:
    """Add the commands of this module to the parser."""
    add_train_options(add_command(commands, "train", train))

    add = add_command(commands, "check", check).add_argument
    add_data_options(add)
    add("--model", default="simple_cnn", help=MODELS)
    add("--lr", type=positive_number, help="learning rate (default: 0.1 for a named data set, "
        "0.01 for files)")  # fmt: skip
    add_batch_size(add)
    add("--norm", choices=["batch", "none"], default="batch", help="normalization of simple_cnn")
    add_device(add)
    add("--seconds", type=positive_number, default=5.0, help="how long to try, at least 1")
    add("--json", action="store_true", help="print JSON")


def check(arguments: argparse.Namespace) -> None:
    """Say what would go wrong in a training, before it; exits with 3 if there is a problem."""
    import torch

    from convlens.models.by_name import FILE, model_of_file, resolve
    from convlens.train import Learner

    dls = _data(arguments, quiet=arguments.json)
    torch.manual_seed(arguments.seed)
    if resolve(arguments.model)[0] == FILE:  # what is wrong with it is the check's to say
        network = model_of_file(arguments.model)
    else:
        network = _network(dls, arguments.model, None, arguments.norm)
    with interruptible():
        learn = Learner(dls, network, run=None, progress=False, seed=arguments.seed)
        rate = arguments.lr or default_rate(arguments)
        result = learn.check(rate, seconds=arguments.seconds)
    for line in [json.dumps(result.to_dict())] if arguments.json else str(result).split("\n"):
        print_line(line)
    if result.problems:
        sys.exit(PROBLEM)


def train(arguments: argparse.Namespace) -> None:
    """Train a network, watch it, and write a report."""
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ArgumentError(f"--out must be a folder, got the file {str(arguments.out)!r}.")
    learn = _learner(arguments, complete(arguments))
    with interruptible():
        try:
            _fit(learn, arguments)
            _finish(learn, arguments)
        except (Exception, KeyboardInterrupt):
            if learn.run_path is not None:
                print_line(f"What was recorded until then is in {learn.run_path}.", sys.stderr)
            raise


def _learner(arguments: argparse.Namespace, preset: Preset | None) -> Learner:
    import torch

    from convlens import train
    from convlens.train.named_metrics import usual_metrics

    dls = _data(arguments)
    torch.manual_seed(arguments.seed)
    network = arguments.model if preset is None else preset.network(dls)
    network = _network(dls, network, arguments.pretrained, arguments.norm)
    return train.Learner(
        dls,
        network,
        metrics=usual_metrics(dls) if arguments.metrics is None else arguments.metrics,
        callbacks=_callbacks(arguments),
        seed=arguments.seed,
        base=arguments.out,
        **learner_options(arguments),
    )


def _callbacks(arguments: argparse.Namespace) -> list[Any]:
    from convlens import train

    class Announce(train.Callback):
        order = -100  # before callbacks that take long

        def before_fit(self, learn: Learner) -> None:
            print_line(f"Watch it: convlens view {shlex.quote(str(learn.run_path))}")

    patience, decay, best = arguments.early_stopping, arguments.ema, arguments.best
    return [
        Announce(),
        train.Pictures(),
        *([train.ActivationStats()] if arguments.watch else []),
        *([train.GradientStats()] if arguments.gradients else []),
        *([train.UpdateStats()] if arguments.updates else []),
        *([train.EMA(decay)] if decay is not None else []),
        *([train.EarlyStopping("valid_loss", patience=patience)] if patience is not None else []),
        *([train.BestCheckpoint(best)] if best is not None else []),
    ]


def _fit(learn: Learner, arguments: argparse.Namespace) -> None:
    from convlens.train.schedules import schedule_of

    if arguments.fine_tune and arguments.pretrained is None and ".py:" not in arguments.model:
        print_line(
            f"convlens: --fine-tune without --pretrained: the weights of {arguments.model} are "
            "random, and only its head is trained in the first epoch.",
            sys.stderr,
        )
    rate = default_rate(arguments) if arguments.lr is None else arguments.lr
    if rate == "find":
        rate = _found_rate(learn)
    if arguments.fine_tune and arguments.lr is None:
        learn.fine_tune(arguments.epochs)
    elif arguments.fine_tune:
        learn.fine_tune(arguments.epochs, rate)
    else:
        learn.fit(arguments.epochs, schedule_of(arguments.schedule, rate))


def _found_rate(learn: Learner) -> float:
    """The rate that a sweep suggests."""
    found = learn.lr_find()
    for line in str(found).split("\n"):
        print_line(line)
    if found.suggestion is None:
        raise ArgumentError("--lr find has found no learning rate; give one, such as --lr 0.01.")
    return found.suggestion


def _network(
    dls: DataLoaders, spec: str | nn.Module, pretrained: str | bool | None, norm: str | None
) -> nn.Module:
    """The network that a name stands for, made for this data, or the given one."""
    from convlens.models import model, simple_cnn
    from convlens.models.for_data import in_units_of
    from convlens.models.simple import widths_for

    if spec != "simple_cnn" or norm != "none":
        return model(spec, dls, pretrained=pretrained)
    channels, height, width = dls.facts()["input_shape"]
    widths = widths_for(height, width)
    return in_units_of(dls, simple_cnn(channels, len(dls.classes) or 1, widths=widths))


def _data(arguments: argparse.Namespace, *, quiet: bool = False) -> DataLoaders:
    """The data to train on."""
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("--device cuda: torch finds no such device here; give cpu, or auto.")
    device = None if arguments.device == "auto" else arguments.device
    return load_data(arguments, batch_size=arguments.batch_size, device=device, quiet=quiet)


# ---- the results ---------------------------------------------------------------------------------


def _finish(learn: Learner, arguments: argparse.Namespace) -> None:
    """Write the report and print the results."""
    from convlens._api import diagnose, report
    from convlens.runs import open_run
    from convlens.runs.checkpoints import best_checkpoint

    assert learn.run_path is not None
    run = open_run(learn.run_path)
    page = report(run)
    for finding in diagnose(run):
        print_line(str(finding))
    epochs = learn.recorder.epochs
    shown = epochs[-1]
    if arguments.best is not None:  # its weights are in the model again
        best = learn.best_checkpoint.epoch
        shown = next((epoch for epoch in epochs if epoch.epoch == best), shown)
        print_line(f"best by {arguments.best}: epoch {shown.epoch + 1} of {len(epochs)}")
    found = {"loss": shown.valid_loss, **shown.metrics}
    if arguments.tta is not None and learn.dls.valid is not None:
        found = learn.validate(tta=arguments.tta)
        print_line(f"with --tta {arguments.tta}, which the epochs above are without:")
    files = {"run": learn.run_path, "report": page, "weights": best_checkpoint(learn.run_path)}
    _print_results(found, files)
    if arguments.json:
        facts = [
            {"train_loss": epoch.train_loss, "valid_loss": epoch.valid_loss, **epoch.metrics,
             "wall_s": epoch.wall_s}
            for epoch in epochs
        ]  # fmt: skip
        result: dict[str, Any] = {"accuracy": found.get("accuracy"), "metrics": found}
        result |= {"epoch": shown.epoch, "epochs": facts}
        result |= {name: str(path) for name, path in files.items()}
        print_line(json.dumps(_finite(result)))


def _print_results(found: Mapping[str, float | None], files: Mapping[str, Path]) -> None:
    """The numbers of the last validation, and where the files are."""
    known = {name: value for name, value in found.items() if value is not None}
    shown = without_classes(known)
    if len(shown) > 1:  # the loss is for those without another number
        shown.pop("loss", None)
        known.pop("loss", None)
    of_classes = {name: value for name, value in known.items() if name not in shown}
    if len(of_classes) <= MOST_OF_CLASSES:
        shown |= of_classes
    lines = {name: metric_value(name, value) for name, value in shown.items()}
    lines |= {name: str(path) for name, path in files.items()}
    lines["page"] = f"convlens view {shlex.quote(str(files['run']))}"
    width = max(map(len, lines))
    for name, text in lines.items():
        print_line(f"{name:<{width}}  {text}")


def _finite(value: Any) -> Any:  # noqa: ANN401
    """Plain JSON with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
