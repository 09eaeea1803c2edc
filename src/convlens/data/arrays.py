"""Arrays in memory → `DataLoaders`; all arguments are checked here."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number, Real
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.core.argument_checks import check_whole
from convlens.core.wording import type_name
from convlens.data.loaders import DataLoaders, TensorLoader, check_seed, class_names, shuffled
from convlens.data.pixels import measure_scale, plain_scale
from convlens.errors import ArgumentError
from convlens.execution.devices import pick_device

Array = NDArray[Any] | Tensor | Sequence[Any]

RANKS = {"NHW": 3, "NHWC": 4, "NCHW": 4}

SPLIT_KEY = (0, 0)
"""Key of the held-out share's order; an epoch's key is one number, so the two never agree."""


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

        >>> x = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)
        >>> cl.from_arrays(x, [0, 1] * 10, layout="NHWC", valid=0.2, batch_size=4, device="cpu")
        DataLoaders('arrays', 2 classes, cpu)
          train: 16 images of 3×8×8, 4 batches of 4
          valid: 4 images of 3×8×8, 1 batch of 4

    Args:
        x: images, uint8 (0 to 255) or float: a NumPy array, a tensor, or a list of either, of one
            size. Floats within 0 and 1 are taken to go from black to white.
        y: (N,) integer labels from 0.
        layout: the axes of ``x``: "NHW", "NHWC" or "NCHW". It is never guessed.
        valid: images and labels to validate on (same layout, dtype and image size as ``x``), or
            the share of ``x`` to hold out at random, or None for no validation.
        batch_size: images per batch. The last one of an epoch may be smaller.
        classes: the name of each label; None for the labels themselves, which must then leave no
            gap from 0 on.
        device: where the data lies: None for cuda if available, else cpu.
        seed: of the training order in each epoch, and of the held-out share.
        name: the name of the data.
        normalize: subtract the training images' mean and divide by their standard deviation, per
            channel. Without it uint8 pixels are divided by 255 and floats are left as they are.
        drop_last: leave out the last training batch of an epoch if it is smaller.

    Raises:
        ArgumentError: if an argument has a value that cannot work, which the message names.
    """
    check_whole("batch_size", batch_size, 1)
    check_seed(seed)
    target = pick_device(device)
    images, labels = _images("x", x, layout), _labels("y", y, x)
    train, held_out = _split(images, labels, valid, layout, seed)
    names = _class_names(classes, train[1], None if held_out is None else held_out[1])
    raw, black, white = _raw_pixels("x", train[0], target)
    if normalize:
        scale = measure_scale(raw, black, white)
    else:
        unit = 1.0 if images.is_floating_point() else 255.0
        scale = plain_scale(raw.shape[1], black, white, unit)
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


def as_tensor(argument: str, value: Any) -> Tensor:  # noqa: ANN401
    """An array, a tensor, or a list of arrays, tensors or numbers of one shape, as one tensor.

    Raises:
        ArgumentError: if it is anything else.
    """
    if isinstance(value, list | tuple):
        value = _stacked(argument, cast("Sequence[Any]", value))
    if isinstance(value, Tensor):
        return value.detach()
    if not isinstance(value, np.ndarray):
        raise ArgumentError(
            f"{argument} must be a NumPy array or a torch tensor, got {type_name(value)}."
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
    kinds = (np.ndarray, Tensor, Number, list, tuple)
    odd = next((i for i, one in enumerate(values) if not isinstance(one, kinds)), None)
    if odd is not None:
        raise ArgumentError(
            f"{argument}[{odd}] is of type {type_name(values[odd])}; give arrays or tensors of "
            "numbers (cl.load_image reads an image file)."
        )
    arrays = [one for one in values if isinstance(one, np.ndarray | Tensor)]
    found = sorted({f"{tuple(one.shape)}, {_dtype(one)}" for one in arrays})
    if len(found) > 1:
        raise ArgumentError(
            f"{argument} is a list of arrays of different shape or dtype, such as {found[0]} and "
            f"{found[1]}; give all of them in one."
        )
    try:
        if values and len(arrays) == len(values):
            return torch.stack([as_tensor(argument, one) for one in arrays])
        return np.asarray(values)
    except ValueError as error:
        raise ArgumentError(
            f"{argument} is a list whose parts do not fit together ({error})."
        ) from error


def _images(argument: str, value: Array, layout: str) -> Tensor:
    """The images as (N, C, H, W), still in their own dtype."""
    if layout not in RANKS:
        raise ArgumentError(
            f"layout must name the axes of {argument}, 'NHW', 'NHWC' or 'NCHW', got {layout!r}."
        )
    images = as_tensor(argument, value)
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
            f"{argument} must be uint8 pixels from 0 to 255, or floats, got {_dtype(images)}."
        )
    if layout == "NHW":
        return images.unsqueeze(1)
    return images.movedim(3, 1) if layout == "NHWC" else images


def _labels(argument: str, value: Array, images: Array) -> Tensor:
    """The labels as (N,) int64 on the CPU, one for each image."""
    labels = as_tensor(argument, value)
    if labels.ndim != 1:
        raise ArgumentError(
            f"{argument} must have one axis (N,), a label for each image, got shape "
            f"{tuple(labels.shape)}; of one-hot rows take {argument}.argmax(1)."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ArgumentError(f"{argument} must be integer labels from 0, got {_dtype(labels)}.")
    if len(images) != len(labels):
        x = {"y": "x", "valid[1]": "valid[0]"}[argument]
        raise ArgumentError(
            f"{x} has {len(images)} images and {argument} {len(labels)} labels; give one label "
            "for each image."
        )
    return labels.to("cpu", torch.int64, copy=True)


def _dtype(array: Tensor | NDArray[Any]) -> str:
    return str(array.dtype).removeprefix("torch.")


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
            "valid must be a tuple (x_valid, y_valid), the share of the images to hold out, or "
            f"None, got {type_name(valid)}."
        )
    kept, out = (torch.from_numpy(part) for part in held_out(len(images), float(valid), seed))
    x_out, x_kept = (images[part.to(images.device)] for part in (out, kept))
    return (x_kept, labels[kept]), (x_out, labels[out])


def held_out(n: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positions of n images to train on, and of a share of them to validate on, in order.

    Raises:
        ArgumentError: if one of them would be empty.
    """
    n_valid = round(n * share) if 0.0 < share < 1.0 else 0
    if not 0 < n_valid < n:
        raise ArgumentError(
            f"valid must be a share between 0 and 1 that leaves at least one of {n} images on both "
            f"sides, got {share}."
        )
    order = shuffled(n, seed, *SPLIT_KEY)
    return order[n_valid:].sort().values.numpy(), order[:n_valid].sort().values.numpy()


def _given_validation(
    images: Tensor, valid: tuple[Array, Array], layout: str
) -> tuple[Tensor, Tensor]:
    if len(valid) != 2:
        raise ArgumentError(f"valid must be two things, (x_valid, y_valid), got {len(valid)}.")
    x_valid = _images("valid[0]", valid[0], layout)
    y_valid = _labels("valid[1]", valid[1], valid[0])
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
) -> Sequence[str]:
    present = torch.unique(y_train if y_valid is None else torch.cat([y_train, y_valid]))
    lowest, highest = int(present[0]), int(present[-1])
    names = class_names(classes) if classes is not None else range(len(present))
    if lowest < 0 or highest >= len(names):
        known = (
            f"{len(names)} different labels, so they must be 0 to {len(names) - 1} without a gap; "
            "renumber them, or name all classes with classes=[…]"
            if classes is None
            else f"{len(names)} classes are named, so labels go from 0 to {len(names) - 1}"
        )
        raise ArgumentError(f"y has labels from {lowest} to {highest}, but {known}.")
    if len(torch.unique(y_train)) < 2:
        raise ArgumentError(
            f"y has only the label {int(y_train[0])} among the {len(y_train)} training images; "
            "classification needs at least two classes."
        )
    return list(map(str, names))


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
