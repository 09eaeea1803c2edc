"""The real images on which an export is compared with `predict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convlens.core.terminal import printable
from convlens.data import Batches, DataLoaders
from convlens.data.batches import generators_of, images_and_labels
from convlens.data.embedded import read_idx
from convlens.data.folders import images_below
from convlens.data.input_transform import InputTransform
from convlens.data.listing import natural
from convlens.data.loaders import ItemLoader
from convlens.errors import ArgumentError, DataError
from convlens.execution import same_random

ENOUGH = 100
"""Images that must agree before "exported" is said; with fewer, "written"."""

MOST = 256

Pixels = NDArray[np.uint8]


def of_loaders(dls: DataLoaders, most: int = MOST) -> tuple[Pixels, list[str]]:
    """Images to validate on, and some to train on where there are few, and their names.

    The loaders give afterwards what they would have given.

    Args:
        dls: the data; its normalization is known.
        most: images at most; they are taken from the whole of the data.

    Returns:
        (N, H, W, C) uint8.
    """
    found = None if dls.valid is None else _images_of(dls, dls.valid, "validation image", most)
    if found is not None and (len(found[1]) >= ENOUGH or dls.train is dls.valid):
        return found
    n = 0 if found is None else len(found[1])
    more = _images_of(dls, dls.train, "training image", most - n)
    if found is None or not n:
        return more
    if found[0].shape[1:] != more[0].shape[1:]:  # the input's size is that of the validation
        return found
    return np.concatenate([found[0], more[0]]), found[1] + more[1]


def _images_of(
    dls: DataLoaders, batches: Batches, what: str, most: int
) -> tuple[Pixels, list[str]]:
    if isinstance(batches, ItemLoader):
        numbers = _spread(len(batches.labels), most)
        x, _ = batches.pick(torch.tensor(numbers, device=batches.device))
    else:
        x = _first(batches, most)
        numbers = list(range(len(x)))
    pixels = dls.to_uint8(x)
    files = dls.valid_files if batches is dls.valid else ()
    names = [str(files[i]) if i < len(files) else f"{what} {i}" for i in numbers]
    return (pixels if pixels.ndim == 4 else pixels[..., None]), names


def _first(batches: Batches, most: int) -> torch.Tensor:
    """The first images that batches give; the loader gives them again afterwards."""
    parts: list[torch.Tensor] = []
    with same_random(generators=generators_of(batches)):
        for batch in batches:
            parts.append(images_and_labels(batch, "dls")[0])
            if sum(map(len, parts)) >= most:
                break
    return torch.cat(parts)[:most] if parts else torch.zeros(0, 1, 1, 1)


def of_folder(
    folder: Path, transform: InputTransform, most: int = MOST
) -> tuple[Pixels, list[str]]:
    """Images of a folder as `predict` reads them, and their names; unreadable ones are left out.

    Raises:
        ArgumentError: if there are none.
    """
    files = sorted(images_below(folder, []), key=natural) if folder.is_dir() else []
    found: list[NDArray[np.uint8]] = []
    names: list[str] = []
    for i in _spread(len(files), most):
        try:
            pixels = transform.read(files[i], "")
        except DataError:
            continue
        found.append(pixels.movedim(0, -1).numpy())
        names.append(files[i])
    if not found:
        raise ArgumentError(
            f"images={printable(str(folder))!r} is no folder with images that can be read."
        )
    return np.stack(found), names


def of_run(data: Mapping[str, Any], transform: InputTransform) -> tuple[Pixels, list[str]]:
    """Images of the data that a run was trained on, if it is still there.

    Args:
        data: what the run's record says of the data.
        transform: how images are read.

    Raises:
        ArgumentError: if it is not there.
    """
    source = data.get("source")
    if isinstance(source, str) and Path(source).is_dir():
        return of_folder(Path(source), transform)
    if data.get("name") == "mnist" and transform.input_shape == (1, 28, 28):
        images = read_idx("t10k-images-idx3-ubyte")
        chosen = _spread(len(images), MOST)
        return np.ascontiguousarray(images[chosen][..., None]), [f"image {i}" for i in chosen]
    raise ArgumentError(
        "An export is compared with predict on images, and those of a run are found again only if "
        "it was trained on a folder that is still there, or on MNIST; give a folder of at least "
        f"{ENOUGH} such images with images=…."
    )


def _spread(n: int, most: int) -> list[int]:
    """Positions from all parts of n."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(int).tolist()
