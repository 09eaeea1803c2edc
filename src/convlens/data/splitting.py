"""Which images are trained on and which are validated on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convlens.core.wording import plural
from convlens.data.arrays import SPLIT_KEY
from convlens.data.items import CLASSES, Items
from convlens.data.listing import Listing, some
from convlens.data.loaders import shuffled
from convlens.errors import ArgumentError

FOLDERS, AUTO = "folders", "auto"
SHARE = 0.2
"""What is held out unless something else is said."""

Validation = str | float | Callable[[Path], bool] | None
Groups = Callable[[Path], Hashable] | str | Sequence[Hashable] | None


@dataclass(frozen=True)
class Split:
    """Positions of the images to train on and of those to validate on, in their stored order.

    Attributes:
        train: positions.
        valid: positions; None for no validation.
        notes: sentences to print.
    """

    train: list[int]
    valid: list[int] | None
    notes: tuple[str, ...] = ()


def check_split(validation: object, groups: object) -> None:
    """Raises ArgumentError if one of the two has a type or a value that cannot work."""
    is_share = isinstance(validation, Real) and validation not in (True, False)
    if is_share and not 0.0 < float(validation) < 1.0:  # pyright: ignore[reportArgumentType]
        raise ArgumentError(
            f"validation must be a share between 0 and 1, such as 0.2, got {validation!r}."
        )
    if not (is_share or callable(validation) or validation in (None, AUTO, FOLDERS)):
        raise ArgumentError(
            "validation must be a share such as 0.2, 'folders', a function of a path that is True "
            f"for the images to hold out, or None, got {validation!r}."
        )
    if groups is not None and not (is_share or validation == AUTO):
        raise ArgumentError(
            "groups is for validation as a share, such as 0.2; leave one of the two out."
        )


def uses_folders(validation: Validation, groups: Groups, listing: Listing) -> bool:
    """Whether the folders of a tree say what is validated on.

    Raises:
        ArgumentError: if they are asked for and there are none, or groups are given besides.
    """
    check_split(validation, groups)
    if validation == FOLDERS and listing.held_out is None:
        raise ArgumentError(
            "validation='folders', but there is no train/ with a valid/, val/, validation/ or "
            "test/ beside it; give a share such as 0.2."
        )
    uses = validation == FOLDERS or (validation == AUTO and listing.held_out is not None)
    if uses and groups is not None:
        raise ArgumentError(
            "groups is for a share that is held out, but there are folders to validate on; say "
            "validation=0.2 to leave them unused."
        )
    return uses


def split(
    listing: Listing, validation: Validation, *, groups: Groups = None, seed: int = 0
) -> Split:
    """Split images for training and validation.

    Args:
        listing: all images; those that are ``held_out`` are validated on.
        validation: see `convlens.data.files.from_folder`; of no account where folders say it.
        groups: a function of an image's path that gives its group; images of one group are never
            on both sides. The listing's own groups come first.
        seed: of the images that are held out at random.

    Raises:
        ArgumentError: if no such split is possible.
    """
    items, notes = listing.items, ()
    if listing.held_out is not None:
        chosen = np.array(listing.held_out, bool)
    elif validation is None:
        return Split(list(range(len(items))), None)
    elif callable(validation):
        chosen = _asked(validation, items.files)
    else:
        share = SHARE if isinstance(validation, str) else float(validation)
        keys = listing.groups or (_keys(groups, items.files) if callable(groups) else None)
        if keys is None:
            chosen, notes = _stratified(_strata(items), share, seed)
        else:
            chosen, notes = _grouped(_strata(items), keys, share, seed)
    return _checked(items, np.flatnonzero(~chosen), np.flatnonzero(chosen), notes)


def _strata(items: Items) -> NDArray[np.int64]:
    """(N,) the class of each image; one for all where images have several labels or numbers."""
    if items.kind != CLASSES:
        return np.zeros(len(items), np.int64)
    return items.targets.numpy()


def _stratified(
    labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """A share of each class, at least one image on both sides where it has two."""
    chosen = np.zeros(len(labels), bool)
    single = 0
    by_class = np.argsort(labels, kind="stable")
    names, starts = np.unique(labels[by_class], return_index=True)
    for name, members in zip(names, np.split(by_class, starts[1:]), strict=True):
        n = len(members)
        single += n == 1
        order = shuffled(n, seed, *SPLIT_KEY, int(name)).numpy()
        chosen[members[order[: min(max(1, round(n * share)), n - 1)]]] = True
    if not single:
        return chosen, ()
    have = "1 class has" if single == 1 else f"{single:,} classes have"
    return chosen, (f"{have} a single image, which is trained on and not validated on.",)


def _asked(validation: Callable[[Path], Any], files: Sequence[str]) -> NDArray[np.bool_]:
    answers = [validation(Path(file)) for file in files]
    for file, answer in zip(files, answers, strict=True):
        if not isinstance(answer, bool | np.bool_):
            raise ArgumentError(
                f"validation gave {answer!r} for {file!r}; it must be True for the images to hold "
                "out and False for those to train on."
            )
    return np.array(answers, bool)


def _keys(groups: Callable[[Path], Hashable], files: Sequence[str]) -> tuple[Hashable, ...]:
    keys = [groups(Path(file)) for file in files]
    check_keys(keys, lambda i: repr(files[i]))
    return tuple(keys)


def check_keys(keys: Sequence[Any], place: Callable[[int], str]) -> None:
    """Raises ArgumentError if a group's key is missing or cannot be compared."""
    for i, key in enumerate(keys):
        is_nan = isinstance(key, float) and math.isnan(key)  # an empty cell, as pandas reads it
        if not isinstance(key, Hashable) or key is None or key == "" or is_nan:
            raise ArgumentError(
                f"groups gives {key!r} for {place(i)}; give a text or a number for each image."
            )


def _grouped(
    labels: NDArray[np.int64], keys: Sequence[Hashable], share: float, seed: int
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Whole groups, so that about a share of each class is held out.

    In random order, a group is taken where that brings the counts of the classes closer to their
    shares. A class never loses its last training image.
    """
    members: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        members[key].append(i)
    groups = list(members.values())
    if len(groups) < 2:
        raise ArgumentError(f"groups puts all images in one group, {keys[0]!r}; it needs two.")
    n_classes = int(labels.max()) + 1
    total = np.bincount(labels, minlength=n_classes)
    wanted, taken = total * share, np.zeros(n_classes)
    chosen = np.zeros(len(labels), bool)
    order = [groups[i] for i in shuffled(len(groups), seed, *SPLIT_KEY).tolist()]
    possible = [g for g in order if _keeps(total, np.bincount(labels[g], minlength=n_classes))]
    if not possible:
        raise ArgumentError(
            "groups leaves nothing to validate on: each group has all images of some class, which "
            "has to be trained on; give smaller groups."
        )
    for group in possible:
        more = taken + np.bincount(labels[group], minlength=n_classes)
        if _keeps(total, more) and _distance(wanted, more) < _distance(wanted, taken):
            chosen[group], taken = True, more
    if not chosen.any():  # each is larger than twice its share
        chosen[min(possible, key=len)] = True
    n_valid = int(chosen.sum())
    return chosen, (
        f"{plural(len(groups), 'group')} of images, each on one side only: {n_valid:,} images "
        f"({n_valid / len(labels):.0%}) are held out.",
    )


def _keeps(total: NDArray[np.int64], taken: NDArray[Any]) -> bool:
    """Whether every class keeps an image to train on."""
    return bool(((total - taken > 0) | (total == 0)).all())


def _distance(wanted: NDArray[Any], taken: NDArray[Any]) -> float:
    return float(np.square(wanted - taken).sum())


def _of_single_images(items: Items) -> str:
    """A hint where nothing can be validated on, since what are numbers was taken for classes."""
    whole = all(name.removeprefix("-").isdecimal() for name in items.classes)
    if items.kind != CLASSES or not whole or len(items.targets.unique()) < len(items.targets):
        return ""
    return (
        f" Each of the {len(items.classes):,} classes has a single image; if they are "
        "numbers, give kind='numbers'."
    )


def _checked(
    items: Items, train: NDArray[np.int64], valid: NDArray[np.int64], notes: tuple[str, ...]
) -> Split:
    """The split.

    Raises:
        ArgumentError: if one side is empty, or a class has no image to train on.
    """
    if not len(train) or not len(valid):
        empty = "train" if not len(train) else "validate"
        raise ArgumentError(
            f"validation leaves none of {plural(len(train) + len(valid), 'image')} to {empty} on; "
            f"give another share or function, or None.{_of_single_images(items)}"
        )
    if items.kind == CLASSES:
        sides = [set(items.targets[torch.from_numpy(side)].tolist()) for side in (train, valid)]
        names = [[items.classes[i] for i in range(len(items.classes)) if i not in side]
                 for side in sides]  # fmt: skip
        if names[0]:
            raise ArgumentError(
                f"{plural(len(names[0]), 'class').replace('classs', 'classes')} would have no "
                f"image to train on: {some(names[0])}; give another validation."
            )
        if names[1]:
            notes += (f"Not validated on, for want of images: {some(names[1], 5)}.",)
    return Split(train.tolist(), valid.tolist(), notes)
