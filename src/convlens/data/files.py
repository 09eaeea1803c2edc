"""`from_folder`, `from_files`, `from_csv`: image files with labels → `DataLoaders`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convlens.core.argument_checks import check_whole
from convlens.core.terminal import say
from convlens.core.wording import plural
from convlens.data.augmentation import Augmentation, augmentation_of
from convlens.data.description import Origin, least_median_most
from convlens.data.duplicates import Duplicates, find_duplicates
from convlens.data.folders import scan
from convlens.data.image_cache import Decoded, decoded
from convlens.data.image_loader import ImageLoader, measured_scale
from convlens.data.items import CLASSES
from convlens.data.listing import Listing
from convlens.data.loaders import DataLoaders, check_seed
from convlens.data.operations import height_width
from convlens.data.pixels import PixelScale
from convlens.data.preprocessing import RESIZES, Preprocessing
from convlens.data.splitting import Groups, Split, Validation, split, uses_folders
from convlens.data.tables import given_listing, read_listing
from convlens.errors import ArgumentError, warn
from convlens.execution.devices import pick_device

if TYPE_CHECKING:
    from convlens.data.augmentation import Operation

    Augment = str | Operation | Sequence[Operation] | None

Size = int | tuple[int, int] | None
Paths = Sequence[str | os.PathLike[str]]

MARGIN = 1 / 0.875
"""Where an augmentation crops, images are stored so many times larger: 256 for 224."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's training images, as torchvision's weights take them."""

MOST_SHOWN = 3


@dataclass(frozen=True)
class Settings:
    """What `from_folder`, `from_files` and `from_csv` share; see `from_folder`."""

    size: Size
    validation: Validation
    batch_size: int = 64
    seed: int = 0
    augment: Augment = None
    strict: bool = False
    resize: str = "crop"
    balance: str | None = None
    groups: Groups = None
    normalize: str = "data"
    drop_last: bool = False
    device: str | torch.device | None = None
    max_memory: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:  # what needs no file is checked before any is read
        check_whole("batch_size", self.batch_size, 1)
        check_seed(self.seed)
        pick_device(self.device)
        if self.max_memory is not None:
            check_whole("max_memory", self.max_memory, 0)
        for argument, value, known in (
            ("resize", self.resize, RESIZES),
            ("normalize", self.normalize, ("data", "imagenet")),
            ("balance", self.balance, ("sample", "loss", None)),
        ):
            if value not in known:
                said = ", ".join(map(repr, known))
                raise ArgumentError(f"{argument} must be one of {said}, got {value!r}.")


def from_folder(
    path: str | os.PathLike[str],
    *,
    size: Size = None,
    validation: Validation = "auto",
    batch_size: int = 64,
    seed: int = 0,
    augment: Augment = None,
    strict: bool = False,
    resize: str = "crop",
    balance: str | None = None,
    groups: Callable[[Path], Hashable] | None = None,
    normalize: str = "data",
    drop_last: bool = False,
    device: str | torch.device | None = None,
    max_memory: int | None = None,
    name: str | None = None,
) -> DataLoaders:
    """Batches of the images in a folder of class folders.

    The folder holds ``CLASS/FILE``, or ``train/CLASS/FILE`` with ``valid/``, ``val/``,
    ``validation/`` or ``test/`` beside it. Classes are in natural order: 2 before 10. All files are
    decoded once, by threads, into a cache that later epochs and runs read. Files that cannot be
    read are left out and listed. What was found is printed.

        >>> from PIL import Image
        >>> for i in range(20):
        ...     folder = Path("photos", "cat" if i % 2 else "dog")
        ...     folder.mkdir(parents=True, exist_ok=True)
        ...     Image.new("RGB", (40, 30 + i), (9 * i, 99, 200)).save(folder / f"{i}.png")
        >>> dls = cl.from_folder("photos", size=28, batch_size=8, device="cpu")
        photos: 20 images of 2 classes: 16 to train on, 4 to validate on
          classes: 0 cat, 1 dog
          in memory: 37.6 kB of uint8
        >>> dls.valid.items.files[0]
        'photos/cat/...png'

    Args:
        path: the folder.
        size: height and width of the images in a batch, one number or (H, W); None if all files
            have one size.
        validation: what is validated on: a share such as 0.2, held out at random from each class;
            "folders" for the folder beside ``train/``; a function of a path that is True for the
            images to hold out; None for nothing; "auto" for the folder where there is one, else
            0.2.
        batch_size: images per batch. A last training batch of a single image is left out.
        seed: of the training order, the augmentation and the held-out share.
        augment: how training images are changed: a preset ("digits", "small", "photos"), an
            operation of `convlens.data.augmentation`, a list of them, or None.
        strict: refuse if any file cannot be read; otherwise up to 1 % are left out.
        resize: "crop" scales until the image covers ``size`` and cuts the middle out, "squish"
            scales both sides, "pad" scales until all of it is inside and fills the rest with black.
        balance: for classes of different size: "sample" draws training images of all classes as
            often, "loss" weights the classes in the loss; None for neither.
        groups: with a share, a function of a path that gives the image's group (a person, a
            video): images of one group are never on both sides.
        normalize: "data" for mean and deviation of the training images, "imagenet" for those that
            models trained on ImageNet expect.
        drop_last: leave out the last training batch of an epoch if it is smaller.
        device: where the data lies: None for cuda if available, else cpu.
        max_memory: bytes that the images may take there; beyond, they are streamed from the cache.
            None for half of what is free.
        name: of the data; None for the folder's.

    Raises:
        ArgumentError: if an argument has a value that cannot work, or the folder has no such
            images.
        DataError: if more than 1 % of the files cannot be read, or any with ``strict``.
    """
    settings = Settings(
        size, validation, batch_size, seed, augment, strict, resize, balance, groups, normalize,
        drop_last, device, max_memory, name,
    )  # fmt: skip
    if groups is not None and not callable(groups):
        raise ArgumentError(f"groups must be a function of a path, got {groups!r}.")
    return loaders_of(scan(path), settings, Path(path).resolve().name or "images")


def from_files(  # noqa: D417 - the others are those of from_folder
    paths: Paths,
    labels: Sequence[Any],
    *,
    kind: str | None = None,
    size: Size = None,
    validation: Validation = 0.2,
    batch_size: int = 64,
    seed: int = 0,
    augment: Augment = None,
    strict: bool = False,
    resize: str = "crop",
    balance: str | None = None,
    groups: Callable[[Path], Hashable] | Sequence[Hashable] | None = None,
    normalize: str = "data",
    drop_last: bool = False,
    device: str | torch.device | None = None,
    max_memory: int | None = None,
    name: str = "files",
) -> DataLoaders:
    """Batches of image files whose labels are in memory.

        >>> from PIL import Image
        >>> paths = [f"{i}.png" for i in range(10)]
        >>> for path in paths:
        ...     Image.new("L", (8, 8), 25 * int(path[0])).save(path)
        >>> dls = cl.from_files(paths, [i / 10 for i in range(10)], batch_size=4, device="cpu")
        files: 10 images with numbers: 8 to train on, 2 to validate on
          in memory: 512 B of uint8

    Args:
        paths: the files.
        labels: one for each: text or whole numbers for classes, floats for numbers, lists of text
            for several labels of an image.
        kind: "classes" or "numbers" where numbers should be taken for the other.
        groups: a function of a path, or a list with the group of each file.
        size, validation, batch_size, seed, augment, strict: as in `from_folder`.
        resize, balance, normalize, drop_last, device, max_memory, name: the same.

    Raises:
        ArgumentError: if an argument has a value that cannot work, files are not there, or labels
            are missing.
        DataError: if more than 1 % of the files cannot be read, or any with ``strict``.
    """
    settings = Settings(
        size, validation, batch_size, seed, augment, strict, resize, balance, groups, normalize,
        drop_last, device, max_memory, name,
    )  # fmt: skip
    return loaders_of(given_listing(paths, labels, kind, groups), settings, name)


def from_csv(  # noqa: D417 - the others are those of from_folder
    file: str | os.PathLike[str],
    *,
    image: str | None = None,
    label: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    separator: str | None = None,
    kind: str | None = None,
    size: Size = None,
    validation: Validation = 0.2,
    batch_size: int = 64,
    seed: int = 0,
    augment: Augment = None,
    strict: bool = False,
    resize: str = "crop",
    balance: str | None = None,
    groups: Callable[[Path], Hashable] | str | Sequence[Hashable] | None = None,
    normalize: str = "data",
    drop_last: bool = False,
    device: str | torch.device | None = None,
    max_memory: int | None = None,
    name: str | None = None,
) -> DataLoaders:
    r"""Batches of the image files that a CSV file names, with its labels.

        >>> from PIL import Image
        >>> for i in range(10):
        ...     Image.new("L", (8, 8), 25 * i).save(f"{i}.png")
        >>> rows = [f"{i}.png,{'even' if i % 2 == 0 else 'odd'}" for i in range(10)]
        >>> _ = Path("labels.csv").write_text("file,label\n" + "\n".join(rows))
        >>> dls = cl.from_csv("labels.csv", batch_size=4, device="cpu")
        labels: 10 images of 2 classes: 8 to train on, 2 to validate on
          classes: 0 even, 1 odd
          in memory: 512 B of uint8

    Args:
        file: the CSV file in UTF-8, with a header; commas, semicolons or tabs.
        image: the column of the files' names; None for the only one that can be meant.
        label: the column of the labels; None for the only one that can be meant.
        folder: where the files lie; None for the folder of the CSV file.
        separator: of several labels in one cell, such as " "; None for one label of each image.
        kind: "classes" or "numbers" where numbers should be taken for the other. Whole numbers
            are taken for classes, others for numbers.
        groups: a column's name, a function of a path, or a list with the group of each row.
        size, validation, batch_size, seed, augment, strict: as in `from_folder`.
        resize, balance, normalize, drop_last, device, max_memory, name: the same.

    Raises:
        ArgumentError: if an argument has a value that cannot work, files are not there, or labels
            are missing.
        DataError: if the file is no such table, or more than 1 % of the images cannot be read, or
            any with ``strict``.
    """
    settings = Settings(
        size, validation, batch_size, seed, augment, strict, resize, balance, groups, normalize,
        drop_last, device, max_memory, name,
    )  # fmt: skip
    listing = read_listing(file, image, label, folder, separator, kind, groups)
    return loaders_of(listing, settings, Path(file).stem)


def loaders_of(listing: Listing, settings: Settings, name: str) -> DataLoaders:
    """Decode what is listed, split it, and print what was found.

    Args:
        listing: the files with their targets.
        settings: how they become batches.
        name: of the data, unless the settings have one.
    """
    if not uses_folders(settings.validation, settings.groups, listing):
        listing = _without_held_out(listing)
    if settings.balance is not None and listing.items.kind != CLASSES:
        raise ArgumentError(
            f"balance={settings.balance!r} is for images of one class each; leave it out."
        )
    size = None if settings.size is None else height_width(settings.size)
    augmentation = _augmentation(listing, settings, size)
    found = decoded(
        listing.items.files, _preprocessing(settings, size, augmentation), strict=settings.strict
    )
    listing = listing.take(found.good.tolist())
    parts = split(listing, settings.validation, groups=settings.groups, seed=settings.seed)
    duplicates = find_duplicates(listing.items.files, found.hashes, parts.train, parts.valid or ())
    if size is None:  # all files have one, which is known now
        augmentation = _augmentation(listing, settings, found.pixels.shape[2:])
    scale = _scale(settings, found, parts)
    train, valid, notes = _both_loaders(listing, settings, found, parts, scale, augmentation)
    notes = (*listing.notes, *parts.notes, *notes)
    items = listing.items
    dls = DataLoaders(
        train,
        valid,
        classes=items.classes,
        name=settings.name or _printable(name),
        scale=scale,
        preprocessing=found.preprocessing,
        kind=items.kind,
        class_weights=_class_weights(train.labels, settings),
        origin=_origin(listing, settings, found, duplicates, augmentation, notes),
    )
    _say(dls, duplicates)
    return dls


def _without_held_out(listing: Listing) -> Listing:
    """The listing without a folder to validate on, which is not used."""
    if listing.held_out is None:
        return listing
    kept = listing.take([i for i, held_out in enumerate(listing.held_out) if not held_out])
    notes = [note for note in listing.notes if not note.startswith("There is no valid/")]
    return replace(kept, held_out=None, notes=(*notes, "The folder to validate on is left unused."))


def _augmentation(
    listing: Listing, settings: Settings, size: tuple[int, int] | None
) -> Augmentation | None:
    """The augmentation; None without one, or while the size of the images is not known."""
    if settings.augment is None or size is None:
        return None
    items = listing.items
    return augmentation_of(settings.augment, size, kind=items.kind, n_classes=len(items.classes))


def _preprocessing(
    settings: Settings, size: tuple[int, int] | None, augmentation: Augmentation | None
) -> Preprocessing:
    crops = augmentation is not None and augmentation.crops
    channels = 3 if settings.normalize == "imagenet" else None
    return Preprocessing(size, settings.resize, channels, MARGIN if crops else 1.0)


def _scale(settings: Settings, found: Decoded, parts: Split) -> PixelScale:
    if settings.normalize == "imagenet":
        mean, std = IMAGENET
        return PixelScale(torch.tensor(mean), torch.tensor(std), black=0.0, white=1.0)
    return measured_scale(found.pixels, found.good[parts.train])


def _both_loaders(
    listing: Listing,
    settings: Settings,
    found: Decoded,
    parts: Split,
    scale: PixelScale,
    augmentation: Augmentation | None,
) -> tuple[ImageLoader, ImageLoader | None, tuple[str, ...]]:
    """The loaders to train and to validate with, and what there is to say of their batches."""
    drop_last, notes = _last_batch(len(parts.train), settings)

    def loader(positions: list[int], max_memory: int | None, **options: Any) -> ImageLoader:  # noqa: ANN401
        return ImageLoader(
            found.pixels,
            listing.items.take(positions),
            rows=found.good[positions],
            batch_size=settings.batch_size,
            scale=scale,
            size=found.preprocessing.size,
            device=settings.device,
            max_memory=max_memory,
            **options,
        )

    train = loader(
        parts.train,
        settings.max_memory,
        augment=augmentation,
        shuffle=True,
        seed=settings.seed,
        drop_last=drop_last,
        weights=_item_weights(listing, parts, settings),
    )
    if parts.valid is None:
        return train, None, notes
    left = settings.max_memory
    if left is not None and not train.streamed:
        left = max(0, left - len(parts.train) * found.pixels[0].nbytes)
    return train, loader(parts.valid, left), notes


def _last_batch(n: int, settings: Settings) -> tuple[bool, tuple[str, ...]]:
    """Whether the last training batch is left out, and what there is to say of it."""
    size = settings.batch_size
    if size > n and not settings.drop_last:
        return False, (
            f"batch_size={size} is more than there are images to train on: all {n:,} are one "
            "batch.",
        )
    if n % size == 1 and n > size > 1 and not settings.drop_last:
        return True, (
            "The last training batch of an epoch would be a single image, which batch "
            "normalization cannot be trained on: it is left out.",
        )
    return settings.drop_last, ()


def _item_weights(listing: Listing, parts: Split, settings: Settings) -> Tensor | None:
    """(N,) how often each training image is drawn, so that all classes are as often."""
    if settings.balance != "sample":
        return None
    labels = listing.items.targets[parts.train]
    return 1.0 / torch.bincount(labels)[labels]


def _class_weights(labels: Tensor, settings: Settings) -> Tensor | None:
    """(K,) weights of the classes; their mean over the training images is 1."""
    if settings.balance != "loss":
        return None
    counts = torch.bincount(labels.cpu())
    return len(labels) / (len(counts) * counts)


def _origin(
    listing: Listing,
    settings: Settings,
    found: Decoded,
    duplicates: Duplicates,
    augmentation: Augmentation | None,
    notes: tuple[str, ...],
) -> Origin:
    sizes = found.sizes
    stored = "×".join(map(str, found.pixels.shape[1:]))
    ways = {
        "crop": "scaled to cover it, the middle cut out",
        "squish": "scaled to it, whatever their shape",
        "pad": "scaled to fit inside, padded with black",
    }
    way = f", {ways[settings.resize]}" if settings.size is not None else ", as they are"
    return Origin(
        source=listing.source,
        skipped=(*listing.skipped, *found.skipped),
        duplicates=duplicates,
        widths=least_median_most(sizes[:, 0].tolist()),
        heights=least_median_most(sizes[:, 1].tolist()),
        formats=dict(Counter(found.formats).most_common()),
        preprocessing=f"stored as {stored}{way}",
        normalization={
            "data": "mean and deviation of the training images",
            "imagenet": "mean and deviation of ImageNet",
        }[settings.normalize],
        augmentation=() if augmentation is None else tuple(augmentation.facts()),
        balance=settings.balance,
        notes=notes,
    )


def _printable(name: str) -> str:
    """A name that can be part of a run folder's."""
    return "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name)[:60]


def _say(dls: DataLoaders, duplicates: Duplicates) -> None:
    """Print what was found, and warn of images that are on both sides."""
    assert dls.origin is not None
    say("\n".join(dls.describe().brief()))
    if duplicates.across:
        pairs = [f"{dls.origin.short(a)} = {dls.origin.short(b)}"
                 for a, b in duplicates.across[:MOST_SHOWN]]  # fmt: skip
        one = len(duplicates.across) == 1
        warn(
            f"{plural(len(duplicates.across), 'validation image')} {'is' if one else 'are'} also "
            f"among the training images, so validation looks better than it is: {', '.join(pairs)}"
            f"{' …' if len(duplicates.across) > MOST_SHOWN else ''} (dls.describe() lists more)."
        )
