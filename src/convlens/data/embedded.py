"""MNIST, which comes with the package: no download, no cache."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from convlens.data.arrays import from_arrays
from convlens.data.idx_files import idx_array
from convlens.data.loaders import DataLoaders
from convlens.errors import ArgumentError, DataError

FOLDER = Path(__file__).parent / "mnist_files"

# Of the decompressed files.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def mnist(
    batch_size: int = 64,
    device: str | torch.device | None = None,
    validation: str | float = "test",
    seed: int = 0,
    drop_last: bool = False,
) -> DataLoaders:
    """The MNIST digits: batches of (N, 1, 28, 28) float32 and (N,) int64, classes "0" to "9".

    Pixels are normalized with the mean and standard deviation of the training images. Reading
    takes about a second, most of it decompression.

        >>> cl.mnist(device="cpu")
        DataLoaders('mnist', 10 classes, cpu)
          train: 60,000 images of 1×28×28, 938 batches of 64
          valid: 10,000 images of 1×28×28, 157 batches of 64

    Args:
        batch_size: images per batch.
        device: where the data lies: None for cuda if available, else cpu.
        validation: ``"test"`` trains on all 60,000 training images and validates on the 10,000
            test images; a number between 0 and 1 holds out that share of the training images
            instead, chosen by ``seed``, and leaves the test images unused.
        seed: of the training order in each epoch, and of the held-out share.
        drop_last: leave out the last training batch of an epoch if it is smaller.

    Raises:
        ArgumentError: if an argument has a value that cannot work.
        DataError: if an embedded file is damaged.
    """
    if isinstance(validation, str) and validation != "test":
        raise ArgumentError(
            "validation must be 'test', for the 10,000 test images, or the share of the training "
            f"images to hold out, such as 0.1, got {validation!r}."
        )
    x, y = read_idx("train-images-idx3-ubyte"), read_idx("train-labels-idx1-ubyte")
    held_out = (
        (read_idx("t10k-images-idx3-ubyte"), read_idx("t10k-labels-idx1-ubyte"))
        if isinstance(validation, str)
        else validation
    )
    return from_arrays(
        x,
        y,
        layout="NHW",
        valid=held_out,
        batch_size=batch_size,
        classes=[str(digit) for digit in range(10)],
        device=device,
        seed=seed,
        name="mnist",
        drop_last=drop_last,
    )


def read_idx(name: str) -> NDArray[np.uint8]:
    """The array in an embedded xz-compressed IDX file, checked by its SHA-256; read-only.

    Raises:
        DataError: if the file is missing, does not decompress, or holds other bytes.
    """
    path, expected = FOLDER / f"{name}.xz", SHA256[name]
    reinstall = "reinstall convlens (pip install --force-reinstall convlens)"
    try:
        raw = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); {reinstall}.") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} is damaged: its contents have the SHA-256 {found}, expected {expected}; "
            f"{reinstall}."
        )
    return idx_array(raw, str(path))
