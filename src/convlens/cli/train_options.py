"""The options of ``convlens train``, in groups, and the settings that they and a preset give."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlens.cli.data_options import FILES_BATCH, NAMED_BATCH, add_data_options, is_named
from convlens.cli.options import RUNS, Parser, positive_number, whole_number, word_list
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from convlens.train.presets import Preset

DEFAULTS: Mapping[str, Any] = {
    "epochs": 5,
    "model": "simple_cnn",
    "schedule": "one-cycle",
    "fine_tune": False,
}
"""What holds where neither an option nor a preset says otherwise."""

LEARNER = (
    *("loss", "optimizer", "weight_decay", "label_smoothing", "precision", "accumulate", "clip"),
    *("channels_last", "compile"),
)
"""Options that are arguments of a `Learner`, which has the defaults."""

NAMED_RATE, FILES_RATE = 0.1, 0.01
"""Learning rates by default, for named data sets and for a user's own files."""

EMA_DECAY = 0.999

SCHEDULES = "one-cycle, one-cycle-linear, flat-cosine, warmup-cosine, constant, exponential"

MODELS = (
    "simple_cnn, resnet, small_vgg, resnet18 or another name of torchvision, timm:NAME, or "
    "file.py:object, which runs that file"
)


def add_train_options(command: Parser) -> None:
    """Add everything that ``convlens train`` takes."""
    data = command.add_argument_group("data")
    add_data_options(data.add_argument)
    add_batch_size(data.add_argument)
    _add_network(command.add_argument_group("network").add_argument)
    _add_training(command.add_argument_group("training").add_argument)
    _add_results(command.add_argument_group("what is measured and kept").add_argument)
    _add_device(command.add_argument_group("device").add_argument)


def _add_network(add: Callable[..., Any]) -> None:
    add("--model", metavar="NAME", help=_default("model", MODELS))
    add("--norm", choices=["batch", "none"], help="normalization of simple_cnn (default: batch)")
    add("--pretrained", nargs="?", const=True, metavar="FILE",
        help="begin with weights of this .safetensors or .pth file; without a file, with those "
        "that the library publishes")  # fmt: skip
    add("--fine-tune", action=argparse.BooleanOptionalAction,
        help="train the new head for one epoch, then all layers, the first ones at lower "
        "rates")  # fmt: skip


def _add_training(add: Callable[..., Any]) -> None:
    add("--preset", metavar="NAME",
        help="settings that were measured: fast or best for mnist, small for small color images; "
        "other options given count more")  # fmt: skip
    add("--epochs", type=whole_number(1), help=_default("epochs", "passes over the images"))
    add("--lr", type=_rate_or_find, metavar="RATE",
        help="highest learning rate of the schedule, or find, which looks for one first (default: "
        f"{NAMED_RATE} for a named data set, {FILES_RATE} for files, "
        "0.002 to fine-tune)")  # fmt: skip
    add("--schedule", metavar="NAME", help=_default("schedule", SCHEDULES))
    add("--optimizer", metavar="NAME", help="adamw, sgd … (default: adamw)")
    add("--weight-decay", type=_at_least_0, metavar="X",
        help="weight decay, not of biases and norms (default: the optimizer's)")  # fmt: skip
    add("--loss", metavar="NAME", help="cross_entropy or focal for classes, bce or focal for "
        "labels, mse, mae or huber for numbers (default: the first of them)")  # fmt: skip
    add("--label-smoothing", type=float, metavar="SHARE",
        help="share of each label that is spread over all classes, such as 0.1 "
        "(default: 0)")  # fmt: skip
    add("--clip", type=positive_number, metavar="NORM",
        help="largest norm of the gradients (default: no limit)")  # fmt: skip
    add("--accumulate", type=whole_number(1), metavar="N",
        help="batches for each step (default: 1)")  # fmt: skip
    add("--early-stopping", type=whole_number(1), metavar="N",
        help="stop after N epochs without a lower validation loss (default: never)")  # fmt: skip


def _add_results(add: Callable[..., Any]) -> None:
    add("--metrics", type=word_list, metavar="A,B",
        help="what to measure: accuracy, top5, f1, precision, recall, auroc, map, "
        "recall_per_class …; mae, mse, rmse, r2 for numbers (default: accuracy; f1,map for labels; "
        "mae for numbers)")  # fmt: skip
    add("--ema", nargs="?", type=_decay, const=EMA_DECAY, metavar="DECAY",
        help=f"keep a moving average of the weights, with {EMA_DECAY} unless a decay is given, "
        "and validate it")  # fmt: skip
    add("--best", metavar="METRIC", help="keep the weights of the epoch in which this was best")
    add(
        "--tta", metavar="NAME", help="flip: validate at the end on each image and its mirror image"
    )
    add("--out", type=Path, default=RUNS, metavar="DIR", help="folder that keeps the runs")
    add("--watch", action=argparse.BooleanOptionalAction, default=True,
        help="watch every layer at every batch")  # fmt: skip
    add("--gradients", action="store_true", help="also record each parameter's gradient")
    add("--updates", action="store_true", help="also record each parameter's update")
    add("--json", action="store_true", help="end with one line of JSON")


def _add_device(add: Callable[..., Any]) -> None:
    add_device(add)
    add("--precision", metavar="NAME", help="fp32, bf16 or fp16 (default: fp32)")
    add("--channels-last", action=argparse.BooleanOptionalAction,
        help="lay images and weights out with the channels last")  # fmt: skip
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="run the model through torch.compile",
    )


def add_device(add: Callable[..., Any]) -> None:
    """Add ``--device``."""
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train")


def add_batch_size(add: Callable[..., Any]) -> None:
    """Add ``--batch-size``."""
    add("--batch-size", type=whole_number(1),
        help=f"images per batch (default: {NAMED_BATCH} for a named data set, {FILES_BATCH} for "
        "files)")  # fmt: skip


def default_rate(arguments: argparse.Namespace) -> float:
    """The learning rate where none is given."""
    return NAMED_RATE if is_named(arguments) else FILES_RATE


def complete(arguments: argparse.Namespace) -> Preset | None:
    """Fill in what was not given: from the preset, then from the defaults.

    Returns:
        The preset if the network is its own, None if it is that of ``--model``.

    Raises:
        ArgumentError: if there is no such preset, schedule or augmentation, or options exclude
            each other.
    """
    from convlens.inference.augmentation import check_tta
    from convlens.train.presets import preset_of
    from convlens.train.schedules import schedule_of

    if arguments.fine_tune and arguments.schedule is not None:
        raise ArgumentError("--fine-tune has a schedule of its own; leave --schedule out.")
    preset = None if arguments.preset is None else preset_of(arguments.preset, arguments.data)
    whose = preset if arguments.model is None and arguments.norm is None else None
    values = {} if preset is None else vars(preset)
    for name, value in {**DEFAULTS, **values}.items():
        if getattr(arguments, name, value) is None:
            setattr(arguments, name, value)
    schedule_of(str(arguments.schedule), 1.0)
    check_tta(arguments.tta)
    if arguments.norm == "none" and arguments.pretrained is not None:
        raise ArgumentError("--norm none has no pretrained weights; leave one of them out.")
    if arguments.norm is not None and arguments.model != "simple_cnn":
        raise ArgumentError(f"--norm is for simple_cnn, not for {arguments.model}; leave it out.")
    return whose


def learner_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of the arguments of a `Learner` that are given."""
    values = {name: getattr(arguments, name) for name in LEARNER}
    return {name: value for name, value in values.items() if value is not None}


def _default(name: str, words: str) -> str:
    return f"{words} (default: {DEFAULTS[name]})"


def _rate_or_find(text: str) -> float | str:
    if text == "find":
        return text
    try:
        return positive_number(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be a positive number such as 0.01, or find, got {text!r}"
        ) from None


def _at_least_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text!r}")
    return value


def _decay(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, such as 0.999, got {text!r}")
    return value
