"""`TensorLoader`: batches from tensors on the device. `DataLoaders`: what a training needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from operator import length_hint
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.core.argument_checks import check_whole
from convlens.core.wording import n_bytes, type_name
from convlens.data.batches import first_batch
from convlens.data.description import Description, Origin, Part
from convlens.data.input_transform import InputTransform
from convlens.data.items import CLASSES, LABELS, NUMBERS
from convlens.data.pixels import PixelScale, range_scale
from convlens.data.preprocessing import Preprocessing
from convlens.errors import ArgumentError
from convlens.plots import show_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Batches = Iterable[tuple[Tensor, Tensor]]


class ItemLoader:
    """What loaders of items that are known by their position share: order, epochs, length.

    Iterating again gives the next epoch, unless `set_epoch` says which. With ``shuffle`` the order
    is a function of (seed, epoch) alone, the same on every device.

    Args:
        labels: one for each item, on the device.
        input_shape: (C, H, W) of one image of a batch.
        batch_size: items per batch, at least 1.
        shuffle: a new order each epoch; otherwise the stored order.
        seed: of the order, at least 0.
        drop_last: leave out a last batch that is smaller than the others.

    Attributes:
        labels: of all items in their stored order; not to be changed.
        n_items: images of one epoch.
        input_shape: (C, H, W) of one image.
        device: where the batches lie.
        epoch: the epoch that the next iteration gives.
        storage: where the images lie and how much they take, in words.

    Raises:
        ArgumentError: if ``batch_size`` or ``seed`` is out of its range, or no batch would be left.
    """

    storage = ""

    def __init__(
        self,
        labels: Tensor,
        input_shape: tuple[int, int, int],
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        drop_last: bool,
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        check_seed(seed)
        n = len(labels)
        if drop_last and n < batch_size:
            raise ArgumentError(
                f"drop_last=True leaves no batch of {n} images with batch_size={batch_size}; "
                f"give a batch_size of at most {n}."
            )
        self.labels, self.input_shape, self.device = labels, input_shape, labels.device
        self.batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        self.n_items = n - n % batch_size if drop_last else n
        self.epoch = 0

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.input_shape))
        return (
            f"{type(self).__name__}({self.n_items:,} images of {shape}, batches of "
            f"{self.batch_size}, {self.device})"
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration gives, from 0."""
        check_whole("epoch", epoch, 0)
        self.epoch = epoch

    def pick(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The items at these positions of the stored order, (n,) int64 on the loader's device."""
        raise NotImplementedError

    def peek(self, n: int) -> tuple[Tensor, Tensor]:
        """The first ``n`` items of the next epoch; the next iteration still gives that epoch."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of batches of one epoch."""
        return math.ceil(self.n_items / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch
        self.epoch += 1
        return self._batches(self._order(epoch), epoch)

    def _batches(self, order: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError

    def _order(self, epoch: int) -> Tensor:
        """The positions of an epoch's items, (n_items,) int64 on the CPU."""
        if not self._shuffle:
            return torch.arange(self.n_items)
        return shuffled(len(self.labels), self._seed, epoch)[: self.n_items]


class TensorLoader(ItemLoader):
    """Batches of images and labels that lie on one device, each by one index operation.

    Iterating gives ``(x, y)``: x (N, C, H, W) float32, y (N,) int64, copies that may be changed.
    With ``shuffle`` the order is a function of (seed, epoch) alone, the same on every device.
    Iterating again gives the next epoch, unless `set_epoch` says which.

    The last batch of an epoch is smaller where the batch size does not divide the number of
    items. A batch of one image cannot be trained on with batch normalization after a 1×1 feature
    map; ``drop_last`` leaves a smaller last batch out.

        >>> from convlens.data import TensorLoader
        >>> loader = TensorLoader(torch.zeros(10, 1, 4, 4), torch.arange(10), batch_size=4)
        >>> loader
        TensorLoader(10 images of 1×4×4, batches of 4, cpu)
        >>> [len(x) for x, y in loader]
        [4, 4, 2]

    Args:
        x: (N, C, H, W) float32.
        y: (N,) int64, on the same device.
        batch_size: items per batch, at least 1.
        shuffle: a new order each epoch; otherwise the stored order.
        seed: of the order, at least 0.
        drop_last: leave out a last batch that is smaller than the others.

    Attributes:
        labels: (N,) labels of all items in their stored order; not to be changed.
        n_items: images of one epoch.
        input_shape: (C, H, W) of one image.
        device: where the batches lie.
        epoch: the epoch that the next iteration gives.

    Raises:
        ArgumentError: if ``batch_size`` or ``seed`` is out of its range, ``x`` has other axes, the
            lengths differ, or no batch would be left.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_batch_shape(x)
        if len(x) != len(y) or len(x) == 0:
            raise ArgumentError(
                f"x has {len(x)} images and y {len(y)} labels; give one label for each image, and "
                "at least one."
            )
        super().__init__(
            y,
            (x.shape[1], x.shape[2], x.shape[3]),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self._x = x
        where = "in memory" if x.device.type == "cpu" else f"on {x.device}"
        self.storage = f"{where}: {n_bytes(x.nbytes)} of float32"

    def pick(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The items at these positions of the stored order, (n,) int64 on the loader's device."""
        return self._x.index_select(0, positions), self.labels.index_select(0, positions)

    def peek(self, n: int) -> tuple[Tensor, Tensor]:
        """The first ``n`` items of the next epoch; the next iteration still gives that epoch."""
        return self.pick(self._order(self.epoch)[:n].to(self.device))

    def _batches(self, order: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: ARG002
        # From pageable memory, non_blocking only saves the wait for the device.
        order = order.to(self.device, non_blocking=True)
        return (self.pick(indices) for indices in order.split(self.batch_size))


class DataLoaders:
    """The batches to train on and those to validate on.

        >>> batches = [(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))] * 3
        >>> cl.DataLoaders(batches, batches, classes=["cat", "dog"], name="pets")
        DataLoaders('pets', 2 classes, cpu)
          train: list, 3 batches
          valid: list, 3 batches

    Args:
        train: batches ``(x, y)`` to train on: a `TensorLoader`, an `ImageLoader`, a torch
            ``DataLoader``, a list of batches, or anything else that can be iterated again and
            again.
        valid: batches to validate on, None for no validation.
        classes: the name of each label, in order of the labels; empty if not known.
        name: the name of the data, in run names and reports.
        device: where the batches are used; None for the device of such a loader, else the CPU.
            A `Learner` moves the batches of other iterables there.
        scale: how the pixels were normalized, None if not known.
        preprocessing: how image files became pixels, None if not known; `predict` reads files in
            the same way.
        kind: what the targets are: "classes" (N,) int64, "labels" (N, K) of 0 and 1, several for
            an image, or "numbers" (N,) float32. A `Learner` chooses its loss by it.
        class_weights: (K,) weights of the classes in the default loss, None for equal ones.
        origin: what is known of the files, for `describe`.

    Raises:
        ArgumentError: if ``train`` or ``valid`` can be iterated only once or not at all,
            ``classes`` is one string, or ``kind`` is unknown.
    """

    def __init__(
        self,
        train: Batches,
        valid: Batches | None = None,
        *,
        classes: Sequence[str] = (),
        name: str = "data",
        device: str | torch.device | None = None,
        scale: PixelScale | None = None,
        preprocessing: Preprocessing | None = None,
        kind: str = CLASSES,
        class_weights: Tensor | None = None,
        origin: Origin | None = None,
    ) -> None:
        _check_batches("train", train)
        if valid is not None:
            _check_batches("valid", valid)
        self.train = train
        self.valid = valid
        self.classes = class_names(classes)
        self.name = name
        self.scale = scale
        self.preprocessing = preprocessing
        if kind not in (CLASSES, LABELS, NUMBERS):
            raise ArgumentError(
                f"kind must be {CLASSES!r}, {LABELS!r} or {NUMBERS!r}, got {kind!r}."
            )
        self.kind, self.class_weights, self.origin = kind, class_weights, origin
        resident = train.device if isinstance(train, ItemLoader) else "cpu"
        self.device = torch.device(resident if device is None else device)

    def __repr__(self) -> str:
        return (
            f"DataLoaders({self.name!r}, {self._targets()}, {self.device})\n"
            f"  train: {_described(self.train)}\n  valid: {_described(self.valid)}"
        )

    def _targets(self) -> str:
        if self.kind == NUMBERS:
            return NUMBERS
        n, one = len(self.classes), "class" if self.kind == CLASSES else "label"
        return f"{n} {self.kind if n != 1 else one}"

    def facts(self) -> dict[str, Any]:
        """What a run's record says of the data, as plain JSON; None for what is not known."""
        train = self.train if isinstance(self.train, ItemLoader) else None
        valid = self.valid if isinstance(self.valid, ItemLoader) else None
        return {
            "name": self.name,
            "n_train": train.n_items if train else None,
            "n_valid": 0 if self.valid is None else valid.n_items if valid else None,
            "input_shape": list(train.input_shape) if train else None,
            "classes": list(self.classes),
            "batch_size": train.batch_size if train else None,
            **({} if self.origin is None else self.origin.recorded(self.kind)),
        }

    def to_uint8(self, x: Tensor) -> NDArray[np.uint8]:
        """The pictures of a batch (N, C, H, W): (N, H, W, 3) if C is 3, else (N, H, W).

        Normalization is undone; where it is not known, the smallest value of ``x`` is black and
        the largest white. With another number of channels than 1 or 3, their mean is shown.

        Raises:
            ArgumentError: if ``x`` has other axes.
        """
        check_batch_shape(x)
        return (self.scale or range_scale(x)).to_uint8(x)

    @property
    def input_transform(self) -> InputTransform:
        """How an image becomes what the network gets, as far as it is known; see `predict`."""
        shape: Any = getattr(self.train, "input_shape", None)
        known = isinstance(shape, tuple) and len(shape) == 3  # pyright: ignore[reportUnknownArgumentType]
        return InputTransform.of(shape if known else None, self.scale, self.preprocessing)

    @property
    def valid_files(self) -> Sequence[str]:
        """Where each image to validate on comes from, in order; empty if that is not known."""
        items = getattr(self.valid, "items", self.valid)
        return getattr(items, "files", ())

    def label(self, y: int) -> str:
        """The name of a label, or its number where no name is known."""
        return self.classes[y] if 0 <= y < len(self.classes) else str(y)

    def captions(self, y: Tensor) -> list[str]:
        """The captions of N images: their classes, labels or numbers; empty for masks (N, H, W).

        Of several labels, or of classes that were mixed, (N, K), each is named that has a share.
        """
        if y.ndim == 1 and y.is_floating_point():
            return [f"{value:.3g}" for value in y.tolist()]
        if y.ndim == 1:
            return [self.label(v) if isinstance(v, int) else str(v) for v in y.tolist()]
        if y.ndim == 2 and y.shape[1] == len(self.classes):
            return [self._shares(row) for row in y.tolist()]
        return [""] * len(y)

    def _shares(self, row: list[float]) -> str:
        return ", ".join(
            name if share > 0.995 else f"{name} {share:.0%}"
            for name, share in zip(self.classes, row, strict=True)
            if share > 0.005
        )

    def describe(self) -> Description:
        """What is in the data: images of each class and split, sizes, skipped files, duplicates.

        >>> dls = cl.from_arrays(torch.rand(8, 4, 4), [0, 1] * 4, layout="NHW", device="cpu")
        >>> dls.describe().to_dict()["splits"]["train"]["counts"]
        [4, 4]
        """
        parts = {"train": _part(self.train)}
        if self.valid is not None:
            parts["valid"] = _part(self.valid)
        shape = self.facts()["input_shape"]
        return Description(
            self.name,
            self.kind,
            self.classes,
            None if shape is None else tuple(shape),
            parts,
            self.origin,
        )

    def show_batch(self, n: int = 32, ax: Axes | None = None) -> Axes:
        """Draw the first ``n`` images of the next training batches with their labels.

        The loader gives the same batches afterwards. Of a loader of another kind the first
        batch is shown at most.

        Raises:
            ArgumentError: if ``n`` is below 1, there are no batches, or they are not pairs of
                tensors (x, y).
        """
        check_whole("n", n, 1)
        if isinstance(self.train, ItemLoader):
            x, y = self.train.peek(n)
        else:
            x, y = first_batch(self.train, "train")
        return show_images(self.to_uint8(x[:n]), self.captions(y[:n]), ax=ax)


def shuffled(n: int, seed: int, *key: int) -> Tensor:
    """A permutation of n items, (n,) int64: a function of the seed and the key alone."""
    return torch.randperm(n, generator=seeded(seed, *key))


def seeded(seed: int, *key: int) -> torch.Generator:
    """A generator on the CPU whose numbers are a function of the seed and the key alone.

    NumPy's `SeedSequence` hashes seed and key into 64 bits, so that (seed 0, epoch 1) and
    (seed 1, epoch 0) are unrelated, which a sum of the two would not give.
    """
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def check_seed(seed: int) -> None:
    """Raises ArgumentError if it is not a whole number of 0 to 2**64 - 1."""
    check_whole("seed", seed, 0)
    if seed >= 2**64:
        raise ArgumentError(f"seed must be below 2**64, got {seed}.")


def class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of classes as strings.

    Raises:
        ArgumentError: if it is one string, whose letters would be taken for classes.
    """
    if isinstance(classes, str):
        raise ArgumentError(f"classes must be a list of names, got {classes!r}.")
    return tuple(map(str, classes))


def check_batch_shape(x: Tensor) -> None:
    """Raises ArgumentError if the images have other axes than (N, C, H, W)."""
    if x.ndim != 4:
        raise ArgumentError(
            f"x must have four axes (N, C, H, W): images, channels, height, width; got shape "
            f"{tuple(x.shape)}. Add missing ones with x.unsqueeze(…)."
        )


def _check_batches(argument: str, batches: Any) -> None:  # noqa: ANN401
    if isinstance(batches, Iterator) or not hasattr(batches, "__iter__"):
        raise ArgumentError(
            f"{argument} must be batches (x, y) that can be iterated in every epoch, such as a "
            f"torch DataLoader or a list of batches, got {type_name(batches)}."
        )


def _part(batches: Batches) -> Part:
    if not isinstance(batches, ItemLoader):
        return Part(None, None, "")
    return Part(len(batches.labels), batches.labels.cpu(), batches.storage)


def _described(batches: Batches | None) -> str:
    if batches is None:
        return "none"
    n = length_hint(batches, -1)
    count = f"{n:,} batch{'es' * (n != 1)}" if n >= 0 else "unknown number of batches"
    if isinstance(batches, ItemLoader):
        shape = "×".join(map(str, batches.input_shape))
        return f"{batches.n_items:,} images of {shape}, {count} of {batches.batch_size}"
    return f"{type(batches).__name__}, {count}"
