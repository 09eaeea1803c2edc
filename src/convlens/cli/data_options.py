"""The options that say what data a command works on, and the data that they name."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlens.cli.options import LARGEST_SIDE, whole_number
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from convlens.data import DataLoaders

NAMED_BATCH, FILES_BATCH = 512, 64
"""Images per step by default, for named data sets and for a user's own files."""


def add_data_options(add: Callable[..., Any]) -> None:
    """Add the data and the options that belong to it to a command."""
    add("data", metavar="DATA", help="a folder of class folders, a .csv file, or one of mnist, "
        "fashion-mnist, cifar10, cifar100, imagenette")  # fmt: skip
    add("--data", dest="folder", type=Path, metavar="FOLDER",
        help="where the files of a named data set, or of a .csv file, lie")  # fmt: skip
    add("--size", type=whole_number(1, LARGEST_SIDE), help="height and width of the images")
    add("--augment", metavar="PRESET", help="digits, small or photos")
    add("--validation", type=_validation, metavar="SHARE",
        help="share to hold out, such as 0.2, or folders")  # fmt: skip
    add("--balance", choices=["sample", "loss"], help="make up for classes of different size")
    add("--resize", choices=["crop", "squish", "pad"], help="how images get their size; crop "
        "unless said")  # fmt: skip
    add("--image", metavar="COLUMN", help="column of the file names in a .csv file")
    add("--label", metavar="COLUMN", help="column of the labels in a .csv file")
    add("--separator", metavar="TEXT", help="separates several labels in a cell of a .csv file")
    add("--kind", choices=["classes", "numbers"], help="what whole numbers in a .csv file are; "
        "classes unless said")  # fmt: skip
    add("--seed", type=whole_number(0, 2**64 - 1), default=0,
        help="seed of the order of the images, their augmentation, and the weights")  # fmt: skip


def _validation(text: str) -> str | float:
    if text == "folders":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a share such as 0.2, or folders, got {text!r}"
        ) from None


def is_named(arguments: argparse.Namespace) -> bool:
    """Whether the data is one of those that are known by name."""
    from convlens.data.named import NAMES

    return arguments.data in NAMES


def load_data(
    arguments: argparse.Namespace,
    *,
    batch_size: int | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> DataLoaders:
    """The data that the arguments name.

    Args:
        arguments: the parsed ones.
        batch_size: images per batch; None for a default.
        device: where the data lies; None for cuda if available, else cpu.
        quiet: print what was found to the error output, where the output is JSON.

    Raises:
        ArgumentError: if there is no such data, or an option does not belong to it.
        DataError: if it cannot be read.
    """
    default = NAMED_BATCH if is_named(arguments) else FILES_BATCH
    options = {"batch_size": batch_size or default, "device": device, "seed": arguments.seed}
    with redirect_stdout(sys.stderr) if quiet else nullcontext():
        if is_named(arguments):
            return _named(arguments, options)
        return _own(arguments, options)


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _refuse(arguments: argparse.Namespace, what: str, *names: str) -> None:
    given = _given(arguments, *names)
    if given:
        option = "data" if "folder" in given else next(iter(given))
        raise ArgumentError(f"--{option} is not for {what}; leave it out.")


def _named(arguments: argparse.Namespace, options: dict[str, Any]) -> DataLoaders:
    from convlens import data
    from convlens.data.named import dataset

    _refuse(arguments, arguments.data, "balance", "resize", "image", "label", "separator", "kind")
    options |= _given(arguments, "validation")
    if arguments.data == "mnist":
        _refuse(arguments, "mnist", "size", "folder")
        if arguments.augment is None:
            return data.mnist(**options)
    options |= _given(arguments, "size", "augment", "folder")
    return dataset(arguments.data, **options)


def _own(arguments: argparse.Namespace, options: dict[str, Any]) -> DataLoaders:
    from convlens import data
    from convlens.core.wording import closest
    from convlens.data.listing import closest_path
    from convlens.data.named import NAMES

    options |= _given(arguments, "size", "augment", "validation", "balance", "resize")
    path = Path(arguments.data)
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where a name is too long
        raise ArgumentError(
            f"DATA {arguments.data!r} is no folder, no .csv file and none of {', '.join(NAMES)}."
            f"{closest(arguments.data, NAMES) or closest_path(path)}"
        )
    if path.suffix.lower() in (".csv", ".tsv") and not path.is_dir():
        options |= _given(arguments, "image", "label", "separator", "folder", "kind")
        return data.from_csv(path, **options)
    _refuse(arguments, "a folder", "folder", "image", "label", "separator", "kind")
    return data.from_folder(path, **options)
