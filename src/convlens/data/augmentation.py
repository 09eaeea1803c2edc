"""`Augmentation`: random operations on whole batches of stored images, on their device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from convlens.core.wording import closest, type_name
from convlens.data.color import ColorJitter, Cutout, PixelOperation
from convlens.data.geometric import (
    Affine,
    Crop,
    Flip,
    Geometric,
    RandomResizedCrop,
    Rotate,
    Size,
    geometry,
    modes_of,
)
from convlens.data.items import CLASSES, NUMBERS
from convlens.data.mixing import CutMix, Mixing, Mixup
from convlens.data.operations import Draws, Operation, height_width
from convlens.errors import ArgumentError

__all__ = [
    "Affine",
    "Augmentation",
    "ColorJitter",
    "Crop",
    "CutMix",
    "Cutout",
    "Flip",
    "Mixup",
    "Operation",
    "RandomResizedCrop",
    "Rotate",
    "augmentation_of",
    "presets",
]

OPERATIONS = (
    Flip, Crop, RandomResizedCrop, Rotate, Affine, ColorJitter, Cutout, Mixup, CutMix,
)  # fmt: skip


class Augmentation:
    """Random operations on batches of images; each image gets its own random values.

    Those that move pixels are done first, in their order and by a single sampling; then the others,
    in theirs. Without any, the middle of the images is cut out.

        >>> from convlens.data.augmentation import Augmentation, Crop, Flip
        >>> augmentation = Augmentation([Flip(), Crop(4)], 32)
        >>> x = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> x, y = augmentation(x, torch.zeros(8), torch.Generator().manual_seed(0))
        >>> x.shape, x.dtype
        (torch.Size([8, 3, 32, 32]), torch.float32)
        >>> augmentation.facts()
        ['horizontal flip with probability 0.5', 'random crop after padding by 4 pixels (reflect)']

    Args:
        operations: what is done.
        size: (height, width) of the batches, or one number for both.
        kind: what the targets are: "classes", "labels" or "numbers".
        n_classes: how many classes there are; only `Mixup` and `CutMix` of classes ask for it.

    Raises:
        ArgumentError: if one of ``operations`` is none, they cannot be done together, or they
            cannot be done with such targets.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        size: int | Size,
        *,
        kind: str = CLASSES,
        n_classes: int | None = None,
    ) -> None:
        self.operations = tuple(operations)
        self.size = height_width(size)
        self._n_classes = n_classes if kind == CLASSES else None
        self._moving = [o for o in self.operations if isinstance(o, Geometric)]
        self._others = [o for o in self.operations if not isinstance(o, Geometric)]
        self._mixes = any(isinstance(o, Mixing) for o in self._others)
        for operation in self.operations:
            _check_operation(operation, kind, n_classes)
        modes = sorted(modes_of(self.operations))
        if len(modes) > 1:
            raise ArgumentError(
                f"augment has operations with mode={' and mode='.join(map(repr, modes))}, but all "
                "of them are one sampling of the image; give them one mode."
            )

    def __repr__(self) -> str:
        return f"Augmentation({list(self.operations)!r}, size={self.size})"

    @property
    def crops(self) -> bool:
        """Whether images should be stored larger than ``size``, by 1 / 0.875."""
        return any(operation.crops for operation in self._moving)

    def facts(self) -> list[str]:
        """What is done, in words."""
        return [operation.words() for operation in (*self._moving, *self._others)]

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch of stored images as the network gets it, not normalized.

        Args:
            x: (N, C, H, W) uint8, on any device; not changed.
            y: (N,) int64 classes, (N, K) float32 labels or (N,) float32 numbers, on that device.
            generator: all random values come from it, in the same order on every device.

        Returns:
            Images (N, C, height, width) float32 from 0 to 1. Targets as they were; after `Mixup`
            and `CutMix` mixed: of classes the share of each, (N, K) float32, which add up to 1.

        Raises:
            ArgumentError: if ``x`` is no batch of uint8 images of at least ``size``, or ``y`` is
                masks.
        """
        _check_batch(x, y)
        draws = Draws(len(x), generator)
        if self._mixes and self._n_classes is not None:
            y = F.one_hot(y, self._n_classes).to(torch.float32)
        x = geometry(x, self._moving, draws, self.size)
        for operation in self._others:
            if isinstance(operation, PixelOperation):
                x = operation.change(x, draws)
            elif isinstance(operation, Mixing):
                x, y = operation.mix(x, y, draws)
        return x, y


def augmentation_of(
    augment: str | Operation | Sequence[Operation] | None,
    size: int | Size,
    *,
    kind: str = CLASSES,
    n_classes: int | None = None,
) -> Augmentation:
    """What a user's ``augment`` means.

        >>> from convlens.data.augmentation import augmentation_of
        >>> augmentation_of("small", 32).facts()
        ['horizontal flip with probability 0.5', 'random crop after padding by 4 pixels (reflect)']

    Args:
        augment: None for none, the name of a preset, an operation, or a list of them.
        size: (height, width) of the batches, or one number for both.
        kind: what the targets are: "classes", "labels" or "numbers".
        n_classes: how many classes there are, for "classes".

    Raises:
        ArgumentError: if it is none of these, or cannot be done; of an unknown name with the
            closest one.
    """
    if augment is None:
        operations: Sequence[object] = ()
    elif isinstance(augment, str):
        operations = _preset(augment, height_width(size))
    else:
        operations = (augment,) if isinstance(augment, Operation) else augment
    if not isinstance(operations, list | tuple):
        known = _listed(presets(height_width(size)))
        raise ArgumentError(
            f"augment must be None, the name of a preset ({known}), an operation such as Flip() or "
            f"a list of them, got {type_name(augment)}."
        )
    chosen = cast("Sequence[Operation]", operations)
    return Augmentation(chosen, size, kind=kind, n_classes=n_classes)


def presets(size: Size) -> dict[str, tuple[Operation, ...]]:
    """The operations of each preset, for images of this size.

    "digits": turned, shifted and zoomed a little, never mirrored; outside lies the background of
    the edge, as mirrored strokes would look like parts of another digit. "small": mirrored and
    shifted by an eighth, as is usual for CIFAR-10. "photos": an area of the photograph, mirrored,
    in slightly other colours.
    """
    return {
        "digits": (Affine(10, translate=(0.05, 0.05), scale=(0.9, 1.1), shear=5, mode="edge"),),
        "small": (Flip(), Crop(padding=max(1, round(min(size) / 8)))),
        "photos": (
            RandomResizedCrop(),
            Flip(),
            ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02),
        ),
    }


def _preset(name: str, size: Size) -> tuple[Operation, ...]:
    known = presets(size)
    if name in known:
        return known[name]
    raise ArgumentError(
        f"augment={name!r} is no preset; there are {_listed(known)}.{closest(name, known)}"
    )


def _check_operation(operation: object, kind: str, n_classes: int | None) -> None:
    if not isinstance(operation, OPERATIONS):
        names = ", ".join(sorted(one.__name__ for one in OPERATIONS))
        what = f"of type {type_name(operation)}"
        if isinstance(operation, type):
            what = f"the class {operation.__name__} itself (write {operation.__name__}())"
        raise ArgumentError(f"augment has an operation that is {what}; there are {names}.")
    if isinstance(operation, CutMix) and kind == NUMBERS:
        raise ArgumentError(
            "CutMix is not supported for numbers: the number of a part of an image is not known; "
            "use Mixup, or leave it out."
        )
    if isinstance(operation, Mixing) and kind == CLASSES and not n_classes:
        raise ArgumentError(
            f"n_classes must be given for {type(operation).__name__}, whose labels are the shares "
            "of all classes."
        )


def _check_batch(x: Tensor, y: Tensor) -> None:
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise ArgumentError(
            f"x must be uint8 images (N, C, H, W), got {x.dtype} of shape {tuple(x.shape)}."
        )
    if y.ndim > 2:
        raise ArgumentError(
            f"y has shape {tuple(y.shape)}: masks as labels are not supported by augmentation, "
            "which would have to move them alike."
        )


def _listed(names: dict[str, tuple[Operation, ...]]) -> str:
    return ", ".join(map(repr, names))
