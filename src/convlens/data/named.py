"""Data sets by name: ``cl.dataset("cifar10")``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from convlens.core.argument_checks import check_path
from convlens.core.wording import closest
from convlens.data.arrays import from_arrays, held_out
from convlens.data.augmentation import augmentation_of
from convlens.data.embedded import read_idx
from convlens.data.files import Settings, loaders_of
from convlens.data.folders import scan
from convlens.data.image_loader import ImageLoader, measured_scale
from convlens.data.items import Items
from convlens.data.loaders import DataLoaders
from convlens.data.named_files import Files, Images, photograph_folder, read_arrays
from convlens.data.named_sources import SOURCES
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from convlens.data.files import Augment

NAMES = ("mnist", *SOURCES)
"""The names of all data sets."""

SIZE = 128
"""The height and width that photographs get unless another is given."""


def dataset(
    name: str,
    folder: str | Path | None = None,
    *,
    validation: str | float = "test",
    batch_size: int = 64,
    size: int | None = None,
    augment: Augment = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    drop_last: bool = False,
) -> DataLoaders:
    """A well-known data set, downloaded when it is first asked for.

    "mnist" comes with the package. The others are downloaded to ``~/.cache/convlens/data``, or to
    the folder that the environment variable ``CONVLENS_DATA`` names, and checked by their MD5:
    "fashion-mnist" (31 MB), "cifar10" and "cifar100" (170 MB) and "imagenette" (100 MB, photographs
    of 10 classes, the shorter side 160 pixels).

        >>> cl.dataset("mnist", batch_size=512, device="cpu")
        DataLoaders('mnist', 10 classes, cpu)
          train: 60,000 images of 1×28×28, 118 batches of 512
          valid: 10,000 images of 1×28×28, 20 batches of 512

    Args:
        name: one of the names above.
        folder: where the files are: as they are downloaded, or extracted. Nothing is downloaded
            then.
        validation: ``"test"`` validates on the images that are meant for tests; a number between 0
            and 1 holds out that share of the training images instead, chosen by ``seed``, and
            leaves the test images unused.
        batch_size: images per batch.
        size: for photographs, the height and width of the images, 128 by default. The other data
            sets have one size.
        augment: how training images are changed, as in `from_folder`.
        device: where the data lies: None for cuda if available, else cpu.
        seed: of the training order in each epoch, and of the held-out share.
        drop_last: leave out the last training batch of an epoch if it is smaller.

    Raises:
        ArgumentError: if an argument has a value that cannot work.
        DataError: if a file cannot be downloaded, is missing or damaged. The message says which
            file to put where.
    """
    _check_name(name)
    if isinstance(validation, str) and validation != "test":
        raise ArgumentError(
            "validation must be 'test', for the test images, or the share of the training images "
            f"to hold out, such as 0.1, got {validation!r}."
        )
    options: dict[str, Any] = {"batch_size": batch_size, "augment": augment, "device": device}
    options |= {"seed": seed, "drop_last": drop_last}
    given = None if folder is None else _check_folder(name, folder)
    files = None if name == "mnist" else Files(name, SOURCES[name], given)
    if files is not None and files.source.kind == "photographs":
        return _photograph_loaders(files, validation, size, options)
    if size is not None:
        raise ArgumentError(
            f"size={size!r} is for photographs, and {name} has images of one size; leave it out."
        )
    train, test = _mnist() if files is None else read_arrays(files)
    classes = tuple("0123456789") if files is None else files.source.classes
    valid = test if isinstance(validation, str) else validation
    return _array_loaders(name, train, valid, classes, options)


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise ArgumentError(
            f"name must be one of {', '.join(map(repr, NAMES))}, got {name!r}."
            f"{closest(str(name), NAMES)}"
        )


def _check_folder(name: str, folder: str | Path) -> Path:
    path = check_path("folder", folder)
    if name == "mnist":
        raise ArgumentError("folder is not for mnist, which comes with the package; leave it out.")
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise ArgumentError(f"folder={str(folder)!r} {what}; give the folder with {name}'s files.")
    return path


def _mnist() -> tuple[Images, Images]:
    train, test = (
        (read_idx(f"{part}-images-idx3-ubyte")[:, None], read_idx(f"{part}-labels-idx1-ubyte"))
        for part in ("train", "t10k")
    )
    return train, test


def _array_loaders(
    name: str,
    train: Images,
    validation: Images | float,
    classes: Sequence[str],
    options: dict[str, Any],
) -> DataLoaders:
    """The arrays of a data set, uint8 (N, C, H, W), as loaders."""
    augment = options.pop("augment")
    if augment is None:
        return from_arrays(
            *train, layout="NCHW", valid=validation, classes=classes, name=name, **options
        )
    x, y = train[0], torch.from_numpy(train[1].astype(np.int64))
    items = Items(tuple(f"{name} train[{i}]" for i in range(len(y))), y, tuple(classes))
    if isinstance(validation, tuple):
        rows, held = np.arange(len(x)), None
        x_valid, y_valid = validation[0], torch.from_numpy(validation[1].astype(np.int64))
        valid = Items(
            tuple(f"{name} test[{i}]" for i in range(len(y_valid))), y_valid, items.classes
        )
    else:
        rows, held = held_out(len(x), validation, options["seed"])
        x_valid, valid = x, items.take(held.tolist())
    scale, size = measured_scale(x, rows), (int(x.shape[2]), int(x.shape[3]))
    operations = augmentation_of(augment, size, n_classes=len(classes))
    common: dict[str, Any] = {
        "batch_size": options["batch_size"],
        "scale": scale,
        "device": options["device"],
    }
    loader = ImageLoader(
        x, items.take(rows.tolist()), rows=rows, augment=operations, shuffle=True,
        seed=options["seed"], drop_last=options["drop_last"], **common,
    )  # fmt: skip
    valid_loader = ImageLoader(x_valid, valid, rows=held, **common)
    return DataLoaders(loader, valid_loader, classes=classes, name=name, scale=scale)


def _photograph_loaders(
    files: Files,
    validation: str | float,
    size: int | None,
    options: dict[str, Any],
) -> DataLoaders:
    """Photographs in train/CLASS/FILE and val/CLASS/FILE, whose folders are WordNet ids."""
    listing = scan(photograph_folder(files))
    names = dict(zip(files.source.folders, files.source.classes, strict=True))
    classes = tuple(names.get(folder, folder) for folder in listing.items.classes)
    listing = replace(listing, items=replace(listing.items, classes=classes))
    settings = Settings(
        size=SIZE if size is None else size,
        validation="folders" if isinstance(validation, str) else validation,
        name=files.name,
        **options,
    )
    return loaders_of(listing, settings, files.name)
