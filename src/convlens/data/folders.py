"""Folders of class folders: ``train/CLASS/FILE`` beside ``valid/CLASS/FILE``, or ``CLASS/FILE``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from convlens.core.wording import plural
from convlens.data.items import Items, Skipped
from convlens.data.listing import (
    Listing,
    closest,
    closest_path,
    is_image_name,
    is_junk,
    natural,
    some,
)
from convlens.errors import ArgumentError, DataError

TRAIN = "train"
HELD_OUT = ("valid", "val", "validation", "test")
"""Folders to validate on, in order of preference."""

SPLITS = {TRAIN, *HELD_OUT, "training", "testing", "dev", "eval", "evaluation"}
"""What folders of class folders are called; where all folders are, none of them is a class."""

NO_CLASSES = (
    "put the images of each class into a folder of its own, or give labels with "
    "cl.from_csv(file) or cl.from_files(paths, labels)"
)


def scan(path: str | os.PathLike[str]) -> Listing:
    """The images in a folder of class folders, with their classes in natural order.

    Files in folders below a class folder belong to the class. Links are followed.

    Raises:
        ArgumentError: if there is no such folder, it has no class folders with images, only one
            class, or other classes to train than to validate on.
        DataError: if a folder cannot be read.
    """
    root = _check_folder(path)
    splits, notes = _splits(root)
    skipped: list[Skipped] = []
    train = _classes(splits[0], root, skipped, notes)
    valid = _classes(splits[1], root, skipped, notes) if len(splits) > 1 else {}
    if valid:
        _check_same(train, valid, splits)
    if len(train) < 2:
        raise ArgumentError(_one_class(splits[0], next(iter(train))))
    names = sorted(train, key=natural)
    if SPLITS.issuperset(name.lower() for name in names):
        raise ArgumentError(
            f"path={str(root)!r} has the folders {some(names)}, which look like parts of a data "
            "set and not like classes; name them train and valid, or give the path of one of them."
        )
    files: list[str] = []
    labels: list[int] = []
    held_out: list[bool] = []
    for part, is_held_out in ((train, False), (valid, True)):
        for label, name in enumerate(names):
            found = part.get(name, [])
            files += found
            labels += [label] * len(found)
            held_out += [is_held_out] * len(found)
    items = Items(tuple(files), torch.tensor(labels), tuple(names))
    has_splits = tuple(held_out) if valid else None
    return Listing(items, has_splits, tuple(skipped), tuple(notes), str(root))


def _check_folder(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"path must be a folder of images, got {path!r}.")
    root = Path(path)
    if os.path.isfile(root):  # noqa: PTH113 - Path.is_file raises where a name is too long
        hint = "read it with cl.from_csv(file)" if root.suffix.lower() in (".csv", ".tsv") else (
            "unpack it first" if root.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".xz")
            else "give the folder that holds the class folders"
        )  # fmt: skip
        raise ArgumentError(f"path={str(path)!r} is a file, not a folder; {hint}.")
    if not os.path.isdir(root):  # noqa: PTH112
        raise ArgumentError(f"path={str(path)!r} does not exist.{closest_path(root)}")
    return root


def _splits(root: Path) -> tuple[list[Path], list[str]]:
    """The folder to train on and the one to validate on, or the one folder of both; and notes."""
    folders = {name.lower(): name for name in _folders(root)}
    partners = [name for name in HELD_OUT if name in folders]
    others = sorted(set(folders) - {TRAIN, *HELD_OUT}, key=natural)
    if TRAIN not in folders or (others and not partners):
        return [root], []  # a class may well be called train
    train = root / folders[TRAIN]
    if not partners:
        return [train], []
    if len(partners) - ("test" in partners) > 1:
        raise ArgumentError(
            f"path={str(root)!r} has more than one folder to validate on, {', '.join(partners)}; "
            "keep one of them beside train."
        )
    notes = [f"{folders[name]}/ beside {train.name}/ is left unused."
             for name in [*partners[1:], *others]]  # fmt: skip
    if partners[0] == "test":
        notes.append("There is no valid/, so test/ is what is validated on.")
    return [train, root / folders[partners[0]]], notes


def _classes(
    folder: Path, root: Path, skipped: list[Skipped], notes: list[str]
) -> dict[str, list[str]]:
    """The image files of each class folder, in natural order.

    Raises:
        ArgumentError: if there is none with images.
    """
    classes: dict[str, list[str]] = {}
    empty: list[str] = []
    direct = [name for name in _entries(folder) if not os.path.isdir(folder / name)]  # noqa: PTH112
    for name in _folders(folder):
        found = images_below(folder / name, skipped)
        if found:
            classes[name] = sorted(found, key=natural)
        else:
            empty.append(name)
    images = [name for name in direct if is_image_name(name)]
    if not classes:
        raise ArgumentError(_nothing(folder, images, empty))
    skipped += [
        Skipped(str(folder / name), "beside the class folders, so it has no class")
        if is_image_name(name)
        else Skipped(str(folder / name), "not an image, by its ending")
        for name in direct
    ]
    if empty:
        where = "" if folder == root else f" in {folder.name}/"
        are = "a class: it has" if len(empty) == 1 else "classes: they have"
        verb = "is" if len(empty) == 1 else "are"
        notes.append(f"{some(empty)}{where} {verb} not {are} no images.")
    return classes


def images_below(folder: Path, skipped: list[Skipped]) -> list[str]:
    """All image files below a folder; each folder is visited once, whatever links to it.

    Args:
        folder: where to look.
        skipped: gets what is found and left out.

    Raises:
        DataError: if a folder cannot be read.
    """
    found: list[str] = []
    # A link to a folder above would bring in the other classes.
    above = {*folder.absolute().parents, *folder.resolve().parents}
    seen = {_identity(parent) for parent in above}
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        if _identity(here) in seen:
            skipped.append(Skipped(here, "a link to a folder above it or one that was read"))
            continue
        seen.add(_identity(here))
        for name in _entries(here):
            path = os.path.join(here, name)  # noqa: PTH118 - pathlib is slow for many files
            if os.path.isdir(path):  # noqa: PTH112
                waiting.append(path)
            elif not is_image_name(name):
                skipped.append(Skipped(path, "not an image, by its ending"))
            elif not os.path.exists(path):  # noqa: PTH110
                skipped.append(Skipped(path, "a link to a file that does not exist"))
            else:
                found.append(path)
    return found


def _identity(folder: str | Path) -> tuple[int, int]:
    about = os.stat(folder)  # noqa: PTH116
    return about.st_dev, about.st_ino


def _entries(folder: str | Path) -> list[str]:
    """Names in a folder without junk, in natural order.

    Raises:
        DataError: if the folder cannot be read.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError as error:
        raise DataError(f"The folder {str(folder)!r} cannot be read ({error.strerror}).") from error
    return sorted((name for name in names if not is_junk(name)), key=natural)


def _folders(folder: Path) -> list[str]:
    return [name for name in _entries(folder) if os.path.isdir(folder / name)]  # noqa: PTH112


def _nothing(folder: Path, images: Sequence[str], empty: Sequence[str]) -> str:
    """Why a folder has no classes, and what to do."""
    if images:
        return (
            f"path={str(folder)!r} has {plural(len(images), 'image')} ({some(images, 3)}) but no "
            f"class folders with images; {NO_CLASSES}."
        )
    if empty:
        return f"path={str(folder)!r} has only folders without images ({some(empty, 5)})."
    return f"path={str(folder)!r} has no images: it is empty; {NO_CLASSES}."


def _one_class(folder: Path, name: str) -> str:
    below = [inner for inner in _folders(folder / name) if inner != name]
    hint = f"; did you mean {str(folder / name)!r}?" if len(below) > 1 else "."
    return (
        f"path={str(folder)!r} has images of one class only, {name!r}; classification needs at "
        f"least two class folders{hint}"
    )


def _check_same(
    train: dict[str, list[str]], valid: dict[str, list[str]], splits: Sequence[Path]
) -> None:
    """Raises ArgumentError if the classes are not the same ones, by name."""
    only_train, only_valid = (
        sorted(set(a) - set(b), key=natural) for a, b in ((train, valid), (valid, train))
    )
    if not only_train and not only_valid:
        return
    hints = [
        f" Is {name!r} the same as one of {splits[0].name}/?{hint}"
        for name in only_valid
        if (hint := closest(name, only_train))
    ]
    raise ArgumentError(
        f"{splits[0].name}/ and {splits[1].name}/ in {str(splits[0].parent)!r} must have the same "
        f"class folders with images. Only in {splits[0].name}/: {some(only_train) or 'none'}; only "
        f"in {splits[1].name}/: {some(only_valid) or 'none'}.{''.join(hints[:3])}"
    )
