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
    parts: list[Pixels] = []
    names: list[str] = []
    sources = [(dls.train, "training image")]
    if dls.valid is not None:
        sources.insert(0, (dls.valid, "validation image"))
    for batches, what in sources:
        x, numbers = _images_of(batches, most - len(names))
        pixels = dls.to_uint8(x)
        parts.append(pixels if pixels.ndim == 4 else pixels[..., None])
        files = dls.valid_files if batches is dls.valid else ()
        names += [str(files[i]) if i < len(files) else f"{what} {i}" for i in numbers]
        if len(names) >= ENOUGH:
            break
    return np.concatenate(parts), names


def _images_of(batches: Batches, most: int) -> tuple[torch.Tensor, list[int]]:
    """Normalized images, as a validation gives them, and their numbers."""
    if isinstance(batches, ItemLoader):
        chosen = _spread(len(batches.labels), most)
        x, _ = batches.pick(torch.tensor(chosen, device=batches.device))
        return x, chosen
    parts: list[torch.Tensor] = []
    with same_random(generators=generators_of(batches)):
        for batch in batches:
            parts.append(images_and_labels(batch, "dls")[0])
            if sum(map(len, parts)) >= most:
                break
    x = torch.cat(parts)[:most]
    return x, list(range(len(x)))


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
        "The images that this run was trained on are not where they were, and an export is "
        "compared with predict on some; give a folder of at least 100 such images with images=…."
    )


def _spread(n: int, most: int) -> list[int]:
    """Positions from all parts of n."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(int).tolist()
