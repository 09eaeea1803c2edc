"""Arrays in memory → `DataLoaders`: everything is checked once, at the door."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number, Real
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.data.loaders import (
    DataLoaders,
    TensorLoader,
    check_batch_size,
    check_seed,
    class_names,
    shuffled,
)
from convlens.data.pixels import PixelScale, measure_scale, plain_scale
from convlens.errors import ArgumentError

Array = NDArray[Any] | Tensor | Sequence[Any]

RANKS = {"NHW": 3, "NHWC": 4, "NCHW": 4}

# Beside the epoch, which is a key of one number: no epoch's order is ever that of the split.
SPLIT_KEY = (0, 0)


def from_arrays(
    x: Array,
    y: Array,
    *,
    layout: str,
    valid: tuple[Array, Array] | float | None = None,
    batch_size: int = 64,
    classes: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    name: str = "arrays",
    normalize: bool = True,
    drop_last: bool = False,
) -> DataLoaders:
    """Batches from images and labels in memory; the arrays are copied, not changed.

    The images are kept on the device as float32 and normalized once: 4 bytes a pixel.

    Args:
        x: images, uint8 (0 to 255) or float: a NumPy array, a tensor, or a list of either, of one
            size. Floats within 0 and 1 are taken to go from black to white.
        y: (N,) integer labels from 0.
        layout: what the axes of ``x`` are: "NHW", "NHWC" or "NCHW". It is never guessed.
        valid: images and labels to validate on (same layout, dtype and image size as ``x``), or
            the share of ``x`` to hold out at random, or None for no validation.
        batch_size: images per batch. The last one of an epoch may be smaller.
        classes: the name of each label; None for the labels themselves, which must then leave no
            gap from 0 on.
        device: where the data lies: None for cuda if available, else cpu.
        seed: of the training order in each epoch, and of the held-out share.
        name: what the data is called.
        normalize: subtract the training images' mean and divide by their standard deviation, per
            channel. Without it uint8 pixels are divided by 255 and floats are left as they are.
        drop_last: leave out the last training batch of an epoch where it is smaller.

    Raises:
        ArgumentError: if an argument has a value that cannot work, which the message names.
    """
    check_batch_size(batch_size)
    check_seed(seed)
    target = pick_device(device)
    images, labels = _images("x", x, layout), _labels("y", y)
    _check_lengths("x", images, "y", labels)
    train, held_out = _split(images, labels, valid, layout, seed)
    classes = None if classes is None else class_names(classes)
    names = _class_names(classes, train[1], None if held_out is None else held_out[1])
    raw, black, white = _raw_pixels("x", train[0], target)
    scale = _scale(images, raw, black, white, normalize)
    loader = TensorLoader(
        scale.normalize_(raw),
        train[1].to(target),
        batch_size=batch_size,
        shuffle=True,
        seed=seed,
        drop_last=drop_last,
    )
    valid_loader = None
    if held_out is not None:
        raw_valid, _, _ = _raw_pixels("valid[0]", held_out[0], target)
        valid_loader = TensorLoader(
            scale.normalize_(raw_valid), held_out[1].to(target), batch_size=batch_size
        )
    return DataLoaders(loader, valid_loader, classes=names, name=name, scale=scale)


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device of this name, or cuda if available, else cpu.

    Raises:
        ArgumentError: if there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()  # a device of a known kind may still not be there
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"device={str(device)!r} cannot be used here ({reason}); give 'cpu', 'cuda' or another "
            "device that torch has, or None for cuda if available, else cpu."
        ) from error
    return chosen


def _tensor(argument: str, value: Any) -> Tensor:  # noqa: ANN401  # it checks what came
    if isinstance(value, list | tuple):
        value = _stacked(argument, cast("Sequence[Any]", value))
    if isinstance(value, Tensor):
        return value.detach()
    if not isinstance(value, np.ndarray):
        raise ArgumentError(
            f"{argument} is a {type(value).__name__}; give a NumPy array or a torch tensor."
        )
    array: NDArray[Any] = value
    try:
        # torch takes neither foreign byte orders nor negative strides, and warns of read-only ones
        native = array.dtype.newbyteorder("=")
        return torch.from_numpy(np.require(array, native, ["C_CONTIGUOUS", "WRITEABLE"]))
    except TypeError as error:
        raise ArgumentError(
            f"{argument} has dtype {array.dtype}, which torch does not know; convert it first."
        ) from error


def _stacked(argument: str, values: Sequence[Any]) -> Array:
    """A list of arrays, tensors or numbers as one of them."""
    kinds = (np.ndarray, Tensor, Number, list, tuple)
    odd = next((i for i, one in enumerate(values) if not isinstance(one, kinds)), None)
    if odd is not None:
        raise ArgumentError(
            f"{argument}[{odd}] is a {type(values[odd]).__name__}; give arrays or tensors of "
            "numbers (cl.load_image reads an image file)."
        )
    try:
        if values and all(isinstance(one, Tensor) for one in values):
            return torch.stack(list(values))
        return np.asarray(values)
    except (RuntimeError, ValueError) as error:
        sizes = sorted({str(tuple(one.shape)) for one in values if hasattr(one, "shape")})
        raise ArgumentError(
            f"{argument} is a list whose parts do not fit together "
            f"({' and '.join(sizes[:2]) or str(error).partition('. ')[0]}); give all of them in "
            "one shape and dtype."
        ) from error


def _images(argument: str, value: Array, layout: str) -> Tensor:
    """The images as (N, C, H, W), still in their own dtype."""
    if layout not in RANKS:
        raise ArgumentError(
            f"layout={layout!r} is not known; say what the axes of {argument} are: "
            "'NHW', 'NHWC' or 'NCHW'."
        )
    images = _tensor(argument, value)
    shape = tuple(images.shape)
    if len(shape) != RANKS[layout]:
        raise ArgumentError(
            f"{argument} has shape {shape}, which is {len(shape)} axes, but layout={layout!r} "
            f"has {RANKS[layout]}; reshape {argument} or give another layout."
        )
    if 0 in shape:
        raise ArgumentError(f"{argument} has shape {shape}: it is empty; give at least one image.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ArgumentError(
            f"{argument} has dtype {_dtype(images)}; expected uint8 pixels from 0 to 255, or "
            "floats; convert it first."
        )
    if layout == "NHW":
        return images.unsqueeze(1)
    return images.movedim(3, 1) if layout == "NHWC" else images


def _labels(argument: str, value: Array) -> Tensor:
    """The labels as (N,) int64 on the CPU, where they are checked and split."""
    labels = _tensor(argument, value)
    if labels.ndim != 1:
        raise ArgumentError(
            f"{argument} has shape {tuple(labels.shape)}; expected one axis (N,) with a label for "
            f"each image; of one-hot rows take {argument}.argmax(1)."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ArgumentError(
            f"{argument} has dtype {_dtype(labels)}; labels are integers from 0; "
            "convert them first."
        )
    return labels.to("cpu", torch.int64, copy=True)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_lengths(x_name: str, images: Tensor, y_name: str, labels: Tensor) -> None:
    if len(images) != len(labels):
        raise ArgumentError(
            f"{x_name} has {len(images)} images and {y_name} {len(labels)} labels; "
            "give one label for each image."
        )


def _split(
    images: Tensor,
    labels: Tensor,
    valid: tuple[Array, Array] | float | None,
    layout: str,
    seed: int,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """Images and labels to train on, and those to validate on."""
    if valid is None:
        return (images, labels), None
    if isinstance(valid, tuple):
        return (images, labels), _given_validation(images, valid, layout)
    if not isinstance(valid, Real):
        raise ArgumentError(
            f"valid is a {type(valid).__name__}; give a tuple (x_valid, y_valid), the share of the "
            "images to hold out, or None."
        )
    n_valid = round(len(images) * valid) if 0.0 < valid < 1.0 else 0
    if not 0 < n_valid < len(images):
        raise ArgumentError(
            f"The share {valid} of {len(images)} images cannot be held out for validation; give a "
            "number between 0 and 1 that leaves at least one image on both sides."
        )
    order = shuffled(len(images), seed, *SPLIT_KEY)
    out, kept = order[:n_valid].sort().values, order[n_valid:].sort().values
    x_out, x_kept = (images[part.to(images.device)] for part in (out, kept))
    return (x_kept, labels[kept]), (x_out, labels[out])


def _given_validation(
    images: Tensor, valid: tuple[Array, Array], layout: str
) -> tuple[Tensor, Tensor]:
    if len(valid) != 2:
        raise ArgumentError(
            f"valid is a tuple of {len(valid)}; give two things, (x_valid, y_valid)."
        )
    x_valid, y_valid = _images("valid[0]", valid[0], layout), _labels("valid[1]", valid[1])
    _check_lengths("valid[0]", x_valid, "valid[1]", y_valid)
    if x_valid.shape[1:] != images.shape[1:]:
        raise ArgumentError(
            f"valid[0] has images of (C, H, W) = {tuple(x_valid.shape[1:])}, but x has "
            f"{tuple(images.shape[1:])}; give both in one size."
        )
    if x_valid.is_floating_point() != images.is_floating_point():
        raise ArgumentError(
            f"valid[0] has dtype {_dtype(x_valid)}, but x has {_dtype(images)}; uint8 and float "
            "pixels have different ranges, so give both in one dtype."
        )
    return x_valid, y_valid


def _class_names(
    classes: Sequence[str] | None, y_train: Tensor, y_valid: Tensor | None
) -> list[str]:
    present = torch.unique(y_train if y_valid is None else torch.cat([y_train, y_valid]))
    lowest, highest = int(present[0]), int(present[-1])
    n_classes = len(present) if classes is None else len(classes)
    if lowest < 0 or highest >= n_classes:
        known = (
            f"{n_classes} different labels, so they must be 0 to {n_classes - 1} without a gap; "
            "renumber them, or name all classes with classes=[…]"
            if classes is None
            else f"{n_classes} classes are named, so labels go from 0 to {n_classes - 1}"
        )
        raise ArgumentError(f"y has labels from {lowest} to {highest}, but {known}.")
    if len(torch.unique(y_train)) < 2:
        raise ArgumentError(
            f"y has only the label {int(y_train[0])} among the {len(y_train)} training images; "
            "telling images apart needs at least two classes."
        )
    return [str(label) for label in range(n_classes)] if classes is None else list(classes)


def _raw_pixels(argument: str, images: Tensor, device: torch.device) -> tuple[Tensor, float, float]:
    """A float32 copy (N, C, H, W) on the device, and the values that are black and white."""
    raw = torch.empty(images.shape, dtype=torch.float32, device=device).copy_(images)
    if not images.is_floating_point():
        return raw, 0.0, 255.0
    low, high = (float(v) for v in torch.aminmax(raw))
    if not np.isfinite([low, high]).all():
        n_bad = int((~torch.isfinite(raw)).sum())
        raise ArgumentError(
            f"{argument} has {n_bad} pixels of {raw.numel()} that are NaN or infinite as float32; "
            "remove or replace them."
        )
    if low >= 0.0 and high <= 1.0:
        return raw, 0.0, 1.0
    return raw, low, high if high > low else low + 1.0


def _scale(images: Tensor, raw: Tensor, black: float, white: float, normalize: bool) -> PixelScale:
    if normalize:
        return measure_scale(raw, black, white)
    unit = 1.0 if images.is_floating_point() else 255.0
    return plain_scale(raw.shape[1], black, white, unit)
