"""The images that `predict` is given, in any form, as the network gets them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.core.terminal import printable
from convlens.core.wording import plural, type_name
from convlens.data.arrays import as_tensor
from convlens.data.decoding import is_shortage
from convlens.data.folders import images_below
from convlens.data.input_transform import InputTransform
from convlens.data.items import Skipped
from convlens.data.listing import natural, some
from convlens.data.pixels import PixelScale
from convlens.errors import ArgumentError, ConvlensError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    File = str | os.PathLike[str] | Image
    Array = Tensor | NDArray[Any]
    Images = Array | File | Iterable[Array] | Iterable[File]

FORMS = (
    "x must be image files, folders, Pillow images, or a tensor or array of shape (N, C, H, W) or "
    "(C, H, W), or (N, H, W) for a network with one channel"
)


class PredictionInputs:
    """Images in any form as batches for the network; see `convlens.train.Learner.predict`.

    Args:
        x: the images.
        transform: how the training images were read and normalized.
        batch_size: images per batch.
        normalized: whether tensors are as the loaders give them; None if they are pixels.
        strict: whether a file that cannot be read is an error; None for those that are named.

    Attributes:
        files: where the images of the batches so far come from, "" for those of no file.
        skipped: files that were left out so far.
    """

    def __init__(
        self,
        x: Any,  # noqa: ANN401
        transform: InputTransform,
        batch_size: int,
        *,
        normalized: bool | None = None,
        strict: bool | None = None,
    ) -> None:
        self._x, self._transform, self._batch_size = x, transform, batch_size
        self._normalized, self._strict = normalized, strict
        self.files: list[str] = []
        self.skipped: list[Skipped] = []

    def __iter__(self) -> Iterator[Tensor]:
        """Batches (n, C, H, W), float32.

        Raises:
            ArgumentError: if ``x`` is not images, or their normalization is not known.
            DataError: if an image cannot be read.
        """
        x: Any = [self._x] if _is_file(self._x) else self._x
        if isinstance(x, Iterator):
            first = list(islice(x, 1))
            if not first:
                raise ArgumentError(f"{FORMS}; x gives nothing.")
            items = chain(first, x)
            if _is_file(first[0]):
                return self._of_files(items)
            return self._of_arrays(_chunks(map(_one_image, items), self._batch_size))
        if isinstance(x, list | tuple) and x and all(map(_is_file, x)):
            return self._of_files(x)
        return self._of_arrays([x])

    # ---- files and Pillow images -----------------------------------------------------------------

    def _of_files(self, x: Iterable[Any]) -> Iterator[Tensor]:
        if self._normalized:
            raise ArgumentError(
                "normalized=True is for tensors, but x is image files; leave it out."
            )
        _scale_of(self._transform, "image files", in_units=False)
        with ThreadPoolExecutor(os.cpu_count() or 1, "convlens-decoding") as pool:
            for chunk in _chunks(self._found(x), self._batch_size):
                threads = all(isinstance(file, str | os.PathLike) for file, _, _ in chunk)
                read = list(pool.map(self._read, chunk) if threads else map(self._read, chunk))
                images = [one for one in read if isinstance(one, Tensor)]
                self.skipped += [one for one in read if isinstance(one, Skipped)]
                if images:
                    self.files += [
                        _path_of(file)
                        for (file, _, _), one in zip(chunk, read, strict=True)
                        if isinstance(one, Tensor)
                    ]
                    yield self._transform.from_uint8(_stacked(images))
        if not self.files:
            raise DataError(_nothing(self.skipped))

    def _found(self, x: Iterable[Any]) -> Iterator[tuple[File, str, bool]]:
        """The files, folders replaced by those in them; their names, and whether they are needed.

        Raises:
            ArgumentError: if a folder has no images, or an item is not a file.
        """
        for i, file in enumerate(x):
            if not _is_file(file):
                raise ArgumentError(
                    f"x[{i}] is of type {type_name(file)}, but x[0] is an image file; give either "
                    "files or arrays."
                )
            if isinstance(file, str | os.PathLike) and os.path.isdir(file):  # noqa: PTH112
                found = sorted(images_below(Path(file), self.skipped), key=natural)
                if not found:
                    raise ArgumentError(f"x={str(file)!r} is a folder without images.")
                yield from ((one, one, bool(self._strict)) for one in found)
            else:
                yield file, f"x[{i}]", self._strict is not False

    def _read(self, found: tuple[File, str, bool]) -> Tensor | Skipped:
        file, name, is_needed = found
        try:
            return self._transform.read(file, name)
        except (ArgumentError, DataError) as error:
            unreadable = isinstance(error, DataError) or not Path(_path_of(file)).is_file()
            if is_needed or is_shortage(error) or not unreadable:
                raise
            return Skipped(_path_of(file) or name, _reason(error, _path_of(file)))

    # ---- tensors and arrays ----------------------------------------------------------------------

    def _of_arrays(self, chunks: Iterable[Any]) -> Iterator[Tensor]:
        meaning: _Meaning | None = None
        for chunk in chunks:
            images = _as_images(chunk, self._transform)
            found = _meaning(images, self._transform, self._normalized)
            if meaning not in (None, found):
                raise ArgumentError(
                    "x gives images of different dtype or range from one to the other, so what "
                    "their numbers mean is not known; give all of them as uint8 pixels."
                )
            meaning = found
            for part in self._fitted(images, meaning):
                self.files += [""] * len(part)
                yield part

    def _fitted(self, images: list[Tensor], meaning: _Meaning) -> Iterator[Tensor]:
        """Batches of images, as the network gets them and in the size that it takes."""
        shape = self._transform.input_shape
        if meaning.as_given or shape is None or all(x.shape[2:] == shape[1:] for x in images):
            if len({x.shape[2:] for x in images}) > 1:
                raise ArgumentError(_several_shapes(x[0] for x in images))
            for part in torch.cat(images).split(self._batch_size):
                yield meaning.convert(part)
            return
        if meaning.white is None or shape[0] not in (1, 3):
            other = next(x for x in images if x.shape[2:] != shape[1:])
            raise ArgumentError(
                f"x has images of (H, W) = {tuple(other.shape[2:])}; the model was trained on "
                f"{shape[1:]}: give that size."
            )
        scaled = (
            self._transform.fitted(one, "x")
            for x in images
            for one in meaning.to_uint8(x)
        )  # fmt: skip
        for part in _chunks(scaled, self._batch_size):
            yield self._transform.from_uint8(torch.stack(part))


@dataclass(frozen=True)
class _Meaning:
    """What the numbers of tensors mean.

    Attributes:
        dtype: theirs.
        white: the number of white pixels; None if the numbers are no pixels from black to white.
        as_given: whether they are what the network gets.
        scale: how they are normalized.
    """

    dtype: torch.dtype
    white: float | None
    as_given: bool
    scale: PixelScale | None

    def convert(self, part: Tensor) -> Tensor:
        """Images (n, C, H, W) as the network gets them."""
        if self.as_given or self.scale is None:
            return part.float() if part.dtype == torch.float64 else part
        if self.dtype == torch.uint8:
            return self.scale.from_uint8(part)
        if self.white is None:
            return self.scale.normalize_(part.to(torch.float32, copy=True))
        return self.scale.from_unit(part / self.white)

    def to_uint8(self, part: Tensor) -> Tensor:
        """Pixels from 0 to 255."""
        return (part.float() * (255 / (self.white or 1.0))).round_().to(torch.uint8)


def _meaning(
    images: Sequence[Tensor], transform: InputTransform, normalized: bool | None
) -> _Meaning:
    dtype = images[0].dtype
    if normalized:
        if dtype == torch.uint8 and transform.scale is not None:
            raise ArgumentError(
                "normalized=True, but x is uint8, which is not normalized; leave normalized out."
            )
        return _Meaning(dtype, None, True, None)
    name = str(dtype).removeprefix("torch.")
    if dtype != torch.uint8 and not dtype.is_floating_point:
        raise ArgumentError(f"x must be uint8 pixels from 0 to 255, or floats, got {name}.")
    in_units = dtype.is_floating_point and normalized is False
    scale = _scale_of(transform, f"{name} pixels", in_units=in_units)
    if dtype == torch.uint8:
        return _Meaning(dtype, 255.0, False, scale)
    if not scale.is_known:
        return _Meaning(dtype, None, False, scale)
    ranges = [torch.aminmax(part.float()) for part in images]
    low = float(torch.stack([one.min for one in ranges]).min())
    high = float(torch.stack([one.max for one in ranges]).max())
    if low >= 0.0 and high <= 1.0:
        return _Meaning(dtype, 1.0, False, scale)
    # Between the two, normalized images without a dark pixel could be taken for nearly black ones.
    if low >= 0.0 and high <= 255.0 and (in_units or high > scale.highest):
        return _Meaning(dtype, 255.0, False, scale)
    raise ArgumentError(
        f"x is floats from {low:.4g} to {high:.4g}; pixels go from 0 to 1, or from 0 to 255. For "
        "images as the loaders give them say normalized=True."
    )


def _as_images(x: Any, transform: InputTransform) -> list[Tensor]:  # noqa: ANN401
    """Tensors or arrays as tensors (n, C, H, W): one, or one for each size in a list of images."""
    shapes = {_shape_of(one) for one in x} if isinstance(x, list | tuple) else set[None]()
    if len(shapes) > 1 and all(shape is not None and len(shape) == 3 for shape in shapes):
        found = [_checked_images(as_tensor(f"x[{i}]", one), transform) for i, one in enumerate(x)]
        dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in found})
        if len(dtypes) > 1:
            raise ArgumentError(
                f"{FORMS}: x is a list of arrays of {' and '.join(dtypes)}; give one dtype."
            )
        return found
    try:
        images = as_tensor("x", x)
    except ArgumentError as error:
        raise ArgumentError(f"{FORMS}: {error}") from error
    return [_checked_images(images, transform)]


def _checked_images(images: Tensor, transform: InputTransform) -> Tensor:
    """One or several images as (N, C, H, W) with the channels of the training images."""
    if images.ndim not in (3, 4):
        raise ArgumentError(f"{FORMS}, got shape {tuple(images.shape)}.")
    if 0 in images.shape:
        raise ArgumentError(f"x has shape {tuple(images.shape)}: it is empty; give one image.")
    known = transform.input_shape
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


def _scale_of(transform: InputTransform, what: str, *, in_units: bool) -> PixelScale:
    """How the training images were normalized.

    Args:
        transform: how they were read.
        what: a name for ``x`` in the message.
        in_units: whether the values are in the units of the training images.

    Raises:
        ArgumentError: if that is not known, or not what it means for pixels.
    """
    scale = transform.scale
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


def _is_file(x: object) -> TypeGuard[File]:
    from PIL.Image import Image

    return isinstance(x, str | os.PathLike | Image)


def _one_image(x: object) -> object:
    """An item of a generator; raises ArgumentError if it is several images."""
    shape = _shape_of(x)
    if shape is None or len(shape) not in (2, 3):
        what = type_name(x) if shape is None else f"shape {shape}"
        raise ArgumentError(
            f"x is a generator of items of {what}; each must be an image file, a Pillow image, or "
            "one image (C, H, W)."
        )
    return x


def _shape_of(x: object) -> tuple[int, ...] | None:
    shape = getattr(x, "shape", None)
    return None if shape is None else tuple(shape)


def _path_of(file: File) -> str:
    return os.fspath(file) if isinstance(file, str | os.PathLike) else ""


def _stacked(images: Sequence[Tensor]) -> Tensor:
    if len({image.shape for image in images}) > 1:
        raise ArgumentError(_several_shapes(images))
    return torch.stack(list(images))


def _several_shapes(images: Iterable[Tensor]) -> str:
    shapes = sorted({tuple(image.shape) for image in images})
    return (
        f"x holds images of different shapes (C, H, W), such as {shapes[0]} and {shapes[1]}, "
        "and the size of the training images is not known; give images of one shape."
    )


def _reason(error: ConvlensError, path: str) -> str:
    """An error's sentence without the file's name."""
    said = str(error).removeprefix(f"path={path!r}").removeprefix(path).strip()
    return said.removesuffix("; give an image file.").removesuffix(".")


def _nothing(skipped: Sequence[Skipped]) -> str:
    named = [f"{printable(one.file)} ({one.why})" for one in skipped]
    return f"None of {plural(len(skipped), 'file')} could be read: {some(named, 3)}."


def _chunks(items: Iterable[Any], n: int) -> Iterator[list[Any]]:
    """The items in lists of n; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, n)):
        yield chunk
