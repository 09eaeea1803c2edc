"""The images that `predict` is given, in any form, as the network gets them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.data.arrays import as_tensor
from convlens.data.image_files import from_pillow, load_image, scaled
from convlens.data.loaders import DataLoaders
from convlens.data.pixels import PixelScale, center_cut
from convlens.data.preprocessing import Preprocessing
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

    File = str | os.PathLike[str] | Image
    Images = Tensor | NDArray[Any] | File | Sequence[Tensor | NDArray[Any]] | Sequence[File]

GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in a pixel's brightness: ITU-R BT.601, as Pillow has them."""


def network_inputs(
    x: Any,  # noqa: ANN401
    dls: DataLoaders,
    batch_size: int,
    *,
    normalized: bool | None = None,
) -> Iterator[Tensor]:
    """The images as the network gets them, (n, C, H, W), a batch at a time.

    Args:
        x: image files, Pillow images, tensors or arrays; see `convlens.train.Learner.predict`.
        dls: what the network was trained on.
        batch_size: images per batch.
        normalized: whether tensors are as the loaders give them; None if they are pixels.

    Raises:
        ArgumentError: if ``x`` is not images, or their normalization is not known.
    """
    files = [x] if _is_file(x) else x
    if isinstance(files, list | tuple) and files and all(map(_is_file, files)):
        if normalized:
            raise ArgumentError(
                "normalized=True is for tensors, but x is image files; leave it out."
            )
        scale = _scale_of(dls, "image files", in_units=False)
        for start in range(0, len(files), batch_size):
            part = _read(files[start : start + batch_size], start, dls)
            yield scale.from_uint8(part) if part.dtype == torch.uint8 else scale.from_unit(part)
        return
    images = _as_images(x, dls)
    convert = _conversion(images, dls, normalized)
    for part in images.split(batch_size):
        yield convert(part)


def _is_file(x: object) -> TypeGuard[File]:
    from PIL.Image import Image

    return isinstance(x, str | os.PathLike | Image)


def _read(files: Sequence[File], first: int, dls: DataLoaders) -> Tensor:
    """Files and Pillow images in the channels and the size of the training images.

    Returns:
        (n, C, H, W): uint8 as the validation images were read, if that is known, else floats from
        0 to 1.
    """
    shape: list[int] | None = dls.facts()["input_shape"]
    read = _as_floats if dls.preprocessing is None else _as_stored(dls.preprocessing, shape)
    images = [read(file, f"x[{first + i}]", shape) for i, file in enumerate(files)]
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ArgumentError(
            f"x holds images of different shapes (C, H, W), such as {shapes[0]} and {shapes[1]}, "
            "and the size of the training images is not known; give images of one shape."
        )
    return torch.stack(images)


def _as_floats(file: File, name: str, shape: list[int] | None) -> Tensor:
    """From 0 to 1, scaled to the size of the training images whatever its own."""
    is_path = isinstance(file, str | os.PathLike)
    image = load_image(Path(file)) if is_path else from_pillow(file, name)
    if shape is None:
        return image
    return scaled(_in_channels(image, shape[0]), (shape[1], shape[2]))


def _as_stored(
    preprocessing: Preprocessing, shape: list[int] | None
) -> Callable[[File, str, list[int] | None], Tensor]:
    """A function that reads an image as the validation images were: uint8, its middle."""
    if preprocessing.size is None and shape is not None:
        preprocessing = replace(preprocessing, size=(shape[1], shape[2]))

    def read(file: File, name: str, shape: list[int] | None) -> Tensor:
        is_path = isinstance(file, str | os.PathLike)
        pixels = preprocessing.read(Path(file)) if is_path else preprocessing.of(file, name)
        image = torch.from_numpy(pixels)
        size = preprocessing.size if shape is None else (shape[1], shape[2])
        return image if size is None else center_cut(image, size)

    return read


def _in_channels(image: Tensor, n: int) -> Tensor:
    """A grey or RGB image (C, H, W) with one channel or three."""
    if image.shape[0] == n:
        return image
    if n == 1:
        return (image * image.new_tensor(GREY)[:, None, None]).sum(0, keepdim=True)
    if n == 3:
        return image.expand(3, -1, -1)
    raise ArgumentError(
        f"x is image files, which have one channel or three; the model was trained on C = {n}: "
        "give a tensor (N, C, H, W)."
    )


def _as_images(x: Any, dls: DataLoaders) -> Tensor:  # noqa: ANN401
    """Tensors or arrays as one tensor (N, C, H, W) with the channels of the training images."""
    expected = (
        "x must be image files, Pillow images, or a tensor or array of shape (N, C, H, W) or "
        "(C, H, W), or (N, H, W) for a network with one channel"
    )
    try:
        images = as_tensor("x", x)
    except ArgumentError as error:
        raise ArgumentError(f"{expected}: {error}") from error
    if images.ndim not in (3, 4):
        raise ArgumentError(f"{expected}, got shape {tuple(images.shape)}.")
    if 0 in images.shape:
        raise ArgumentError(f"x has shape {tuple(images.shape)}: it is empty; give one image.")
    known = dls.facts()["input_shape"]
    if images.ndim == 3:  # (N, H, W) of grey images, or (C, H, W), but not (H, W, 1)
        is_grey = known is not None and known[0] == 1 and images.shape[-1] != 1
        images = images[:, None] if is_grey else images[None]
    if known is not None and images.shape[1] != known[0]:
        last = images.shape[-1] == known[0]
        hint = " If channels are its last axis, give x.movedim(-1, -3)." if last else ""
        raise ArgumentError(
            f"x has shape (N, C, H, W) = {tuple(images.shape)}; the model was trained on "
            f"C = {known[0]}.{hint}"
        )
    return images


def _conversion(
    images: Tensor, dls: DataLoaders, normalized: bool | None
) -> Callable[[Tensor], Tensor]:
    """The function that makes these images, or a part of them, what the network gets."""
    if normalized:
        if images.dtype == torch.uint8 and dls.scale is not None:
            raise ArgumentError(
                "normalized=True, but x is uint8, which is not normalized; leave normalized out."
            )
        return lambda part: part.float() if part.dtype == torch.float64 else part
    dtype = str(images.dtype).removeprefix("torch.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ArgumentError(f"x must be uint8 pixels from 0 to 255, or floats, got {dtype}.")
    in_units = images.is_floating_point() and normalized is False
    scale = _scale_of(dls, f"{dtype} pixels", in_units=in_units)
    if images.dtype == torch.uint8:
        return scale.from_uint8
    if not scale.is_known:
        return lambda part: scale.normalize_(part.to(torch.float32, copy=True))
    low, high = (float(v) for v in torch.aminmax(images.float()))
    if low >= 0.0 and high <= 1.0:
        return scale.from_unit
    # Between the two, normalized images without a dark pixel could be taken for nearly black ones.
    if low >= 0.0 and high <= 255.0 and (in_units or high > scale.highest):
        return lambda part: scale.from_unit(part / 255)
    raise ArgumentError(
        f"x is floats from {low:.4g} to {high:.4g}; pixels go from 0 to 1, or from 0 to 255. For "
        "images as the loaders give them say normalized=True."
    )


def _scale_of(dls: DataLoaders, what: str, *, in_units: bool) -> PixelScale:
    """How the training images were normalized.

    Args:
        dls: what the network was trained on.
        what: a name for ``x`` in the message.
        in_units: whether the values are in the units of the training images.

    Raises:
        ArgumentError: if that is not known, or not what it means for pixels.
    """
    scale = dls.scale
    if scale is None:
        raise ArgumentError(
            f"x is {what}, but the normalization of the training images is not known: they came "
            "from a loader of your own. Give tensors as that loader gives them and say "
            "normalized=True, or give the scale: cl.DataLoaders(…, scale=PixelScale(…))."
        )
    if not scale.is_known and not in_units:
        raise ArgumentError(
            f"x is {what}, but the training images were floats from {scale.black:.4g} to "
            f"{scale.white:.4g}, so black and white are not known. Give floats in the units of the "
            "training images and say normalized=False, or as the loaders give them and say "
            "normalized=True."
        )
    return scale
