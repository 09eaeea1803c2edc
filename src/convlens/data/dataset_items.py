"""What a dataset gives for one index, as tensors: an image and its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convlens.core.wording import closest, type_name
from convlens.data.arrays import as_tensor
from convlens.data.image_files import from_pillow
from convlens.errors import ArgumentError

MASK_MODES = ("1", "L", "P", "I", "I;16")
"""Pillow's modes whose values can be the classes of pixels."""

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Columns:
    """Where items that are dictionaries have their image and their label."""

    image: str
    label: str


def find_columns(argument: str, dataset: object, columns: tuple[str, str] | None) -> Columns | None:
    """The columns, as given or by the features of a Hugging Face dataset; None without either.

    Raises:
        ArgumentError: if ``columns`` is no pair of names, or the features leave it open.
    """
    if columns is not None:
        if len(columns) != 2 or not all(isinstance(name, str) for name in columns):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(f"columns must be two names, (image, label), got {columns!r}.")
        return Columns(*columns)
    features = features_of(dataset)
    if not features:
        return None
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(images) == len(labels) == 1:
        return Columns(images[0], labels[0])
    known = ", ".join(f"{name!r} ({kind})" for name, kind in kinds.items())
    raise ArgumentError(
        f"{argument} has the columns {known}; which are the image and the label is not certain, "
        "so name them: columns=('image', 'label')."
    )


def features_of(dataset: object) -> Mapping[str, Any]:
    """The features of a Hugging Face dataset, by column; empty for anything else."""
    features: Any = getattr(dataset, "features", None)
    return features if isinstance(features, Mapping) else {}


def pair_of(item: Any, source: str, columns: Columns | None) -> Pair:  # noqa: ANN401
    """An item's image, float32 (C, H, W), and its label.

    Raises:
        ArgumentError: if the item is not such a pair.
    """
    if isinstance(item, Mapping):
        image, label = _of_columns(item, source, columns)
    elif isinstance(item, tuple | list) and len(item) == 2:
        image, label = item
    else:
        what = f"a {type_name(item)}"
        if isinstance(item, tuple | list):
            what += f" of length {len(item)}"
        raise ArgumentError(
            f"{source} is {what}; expected a pair (image, label). Wrap the dataset: class "
            "Pairs(torch.utils.data.Dataset): __len__ = lambda self: len(data); __getitem__ = "
            "lambda self, i: data[i][:2]"
        )
    return _image(image, source), _label(label, source)


def _of_columns(item: Mapping[str, Any], source: str, columns: Columns | None) -> tuple[Any, Any]:
    if columns is None:
        raise ArgumentError(
            f"{source} is a dictionary with the keys {', '.join(map(repr, item))}; say which are "
            "the image and the label: columns=('image', 'label')."
        )
    for name in (columns.image, columns.label):
        if name not in item:
            raise ArgumentError(
                f"{source} has no column {name!r}, but {', '.join(map(repr, item))}; give "
                f"columns=('image', 'label') with two of them.{closest(name, item)}"
            )
    return item[columns.image], item[columns.label]


def _image(value: Any, source: str) -> Tensor:  # noqa: ANN401
    from PIL.Image import Image

    if isinstance(value, Image):
        return from_pillow(value, source)
    if not isinstance(value, Tensor | np.ndarray):
        raise ArgumentError(
            f"{source} has an image of type {type_name(value)}; expected a tensor or an array "
            "(C, H, W), or a Pillow image."
        )
    image = as_tensor(source, value)
    shape = tuple(image.shape)
    if len(shape) != 3 or (shape[2] in {1, 3, 4} and shape[0] > 4):
        raise ArgumentError(
            f"{source} has an image of shape {shape}; expected (C, H, W): of (H, W) make x[None], "
            "of (H, W, C) x.transpose(2, 0, 1), or permute for a tensor."
        )
    if image.dtype == torch.uint8:
        return image.to(torch.float32).div_(255)
    if not image.is_floating_point():
        raise ArgumentError(
            f"{source} has an image of {image.dtype}; expected uint8 from 0 to 255, or floats."
        )
    return image.to(torch.float32)


def _label(value: Any, source: str) -> Tensor:  # noqa: ANN401
    from PIL.Image import Image

    if isinstance(value, Image):
        if value.mode not in MASK_MODES:
            raise ArgumentError(
                f"{source} has a mask of mode {value.mode}; expected one number for each pixel, "
                f"the mode {', '.join(MASK_MODES)}."
            )
        value = np.array(value)
    label = as_tensor(source, value) if isinstance(value, np.ndarray) else _number(value, source)
    return label.to(torch.float32 if label.is_floating_point() else torch.int64)


def _number(value: Any, source: str) -> Tensor:  # noqa: ANN401
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        hint = "; of a Hugging Face dataset, class_encode_column makes numbers of texts"
        raise ArgumentError(
            f"{source} has a label of type {type_name(value)}; expected a number, an array of "
            f"them, or a mask{hint if isinstance(value, str) else ''}."
        ) from error


def stacked(pairs: Sequence[Pair], sources: Sequence[str]) -> Pair:
    """A batch of pairs.

    Raises:
        ArgumentError: if their shapes differ.
    """
    for part, what in enumerate(("an image", "a label")):
        shapes = [tuple(pair[part].shape) for pair in pairs]
        odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
        if odd is not None:
            raise ArgumentError(
                f"{sources[odd]} has {what} of shape {shapes[odd]}, but {sources[0]} of "
                f"{shapes[0]}; a batch needs one: resize and convert in the dataset, such as with "
                "image.convert('RGB').resize((64, 64))."
            )
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])
