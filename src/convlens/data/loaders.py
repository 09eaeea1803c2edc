"""Batches from tensors that lie on the device, and the pair of loaders that a training needs."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.data.batches import first_batch
from convlens.data.pixels import PixelScale, range_scale
from convlens.errors import ArgumentError
from convlens.plots import show_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Batches = Iterable[tuple[Tensor, Tensor]]


class TensorLoader:
    """Batches of images and labels that lie on one device, each by one index operation.

    Iterating gives ``(x, y)``: x (N, C, H, W) float32, y (N,) int64, copies that may be changed.
    With ``shuffle`` the order is a function of (seed, epoch) alone, the same on every device.
    Iterating again goes to the next epoch, unless `set_epoch` says which.

    The last batch of an epoch is smaller where the batch size does not divide the number of
    items. A batch of one image cannot be trained on with batch normalization after a 1×1 feature
    map; ``drop_last`` leaves a smaller last batch out.

    Args:
        x: (N, C, H, W) float32.
        y: (N,) int64, on the same device.
        batch_size: items per batch, at least 1.
        shuffle: a new order each epoch; otherwise the items come as they lie.
        seed: of the order, at least 0.
        drop_last: leave out a last batch that is smaller than the others.

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
        check_batch_size(batch_size)
        check_seed(seed)
        check_batch_shape(x)
        if len(x) != len(y) or len(x) == 0:
            raise ArgumentError(
                f"x has {len(x)} images and y {len(y)} labels; give one label for each image, and "
                "at least one."
            )
        if drop_last and len(x) < batch_size:
            raise ArgumentError(
                f"drop_last=True leaves no batch: there are {len(x)} images and batch_size is "
                f"{batch_size}; give a batch_size of at most {len(x)}."
            )
        self._x, self._y = x, y
        self._batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        self._n_used = len(x) - len(x) % batch_size if drop_last else len(x)
        self._epoch = 0

    @property
    def n_items(self) -> int:
        """Number of images of one epoch."""
        return self._n_used

    @property
    def batch_size(self) -> int:
        """Images per batch; the last one may be smaller."""
        return self._batch_size

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self._x.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""
        return self._x.device

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration gives, from 0."""
        check_whole("epoch", epoch, 0, "the epoch to give next")
        self._epoch = epoch

    @property
    def labels(self) -> Tensor:
        """(N,) labels of all items, as they lie; not to be changed."""
        return self._y

    def pick(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The items at these positions, as they lie; the order of the epochs stays as it is.

        Args:
            positions: (n,) int64, on the loader's device.
        """
        return self._take(positions)

    def peek(self, n: int) -> tuple[Tensor, Tensor]:
        """The first ``n`` items of the next epoch, without going on to it."""
        return self._take(self._order(self._epoch)[:n])

    def __len__(self) -> int:
        """Number of batches of one epoch."""
        return math.ceil(self._n_used / self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(self._epoch)
        self._epoch += 1
        return (self._take(indices) for indices in order.split(self._batch_size))

    def _take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._x.index_select(0, indices), self._y.index_select(0, indices)

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(self._n_used, device=self.device)
        order = shuffled(len(self._x), self._seed, epoch)[: self._n_used]
        # From pageable memory, non_blocking only spares the wait for the device.
        return order.to(self.device, non_blocking=True)


class DataLoaders:
    """The batches to train on and those to validate on.

    Args:
        train: batches ``(x, y)`` to train on: a `TensorLoader`, a torch ``DataLoader``, a list of
            batches, or anything else that can be iterated again and again.
        valid: batches to validate on, None for no validation.
        classes: the name of each label, in order of the labels; empty if not known.
        name: what the data is called, in run names and reports.
        device: where the batches are to be used; None for where ``train`` says they lie, else the
            CPU. Whoever trains moves the batches of foreign iterables there.
        scale: how the pixels were normalized, None if not known.

    Raises:
        ArgumentError: if ``train`` or ``valid`` can be iterated only once or not at all, or
            ``classes`` is one text.
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
    ) -> None:
        _check_batches("train", train)
        if valid is not None:
            _check_batches("valid", valid)
        self.train = train
        self.valid = valid
        self.classes = class_names(classes)
        self.name = name
        self.scale = scale
        resident = train.device if isinstance(train, TensorLoader) else "cpu"
        self.device = torch.device(resident if device is None else device)

    def __repr__(self) -> str:
        return (
            f"DataLoaders({self.name!r}: {_count(self.train)} to train on, "
            f"{_count(self.valid)} to validate on, {len(self.classes)} classes, on {self.device})"
        )

    def facts(self) -> dict[str, Any]:
        """What a run's record says of the data, as plain JSON; None for what is not known."""
        train = self.train if isinstance(self.train, TensorLoader) else None
        valid = self.valid if isinstance(self.valid, TensorLoader) else None
        return {
            "name": self.name,
            "n_train": train.n_items if train else None,
            "n_valid": 0 if self.valid is None else valid.n_items if valid else None,
            "input_shape": list(train.input_shape) if train else None,
            "classes": list(self.classes),
            "batch_size": train.batch_size if train else None,
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

    def label(self, y: int) -> str:
        """The name of a label, or its number where no name is known."""
        return self.classes[y] if 0 <= y < len(self.classes) else str(y)

    def captions(self, y: Tensor) -> list[str]:
        """What to write above images: the names of N labels, or nothing where they are no numbers.

        Args:
            y: (N,) labels or values; masks (N, H, W) and other targets get empty captions.
        """
        if y.ndim != 1:
            return [""] * len(y)
        return [self.label(v) if isinstance(v, int) else str(v) for v in y.tolist()]

    def show_batch(self, n: int = 32, ax: Axes | None = None) -> Axes:
        """Draw the first ``n`` images of the next training batches with their labels.

        The loader gives the same batches afterwards. Of anything but a `TensorLoader` the first
        batch is shown at most.

        Raises:
            ArgumentError: if ``n`` is below 1, there are no batches, or they are no pairs of
                tensors (x, y).
        """
        check_whole("n", n, 1, "the number of images to show")
        x, y = self.train.peek(n) if isinstance(self.train, TensorLoader) else self._first(n)
        return show_images(self.to_uint8(x), self.captions(y), ax=ax)

    def _first(self, n: int) -> tuple[Tensor, Tensor]:
        x, y = first_batch(self.train, "train")
        return x[:n], y[:n]


def shuffled(n: int, seed: int, *key: int) -> Tensor:
    """A permutation of n items, (n,) int64: a function of the seed and the key alone.

    NumPy's `SeedSequence` hashes seed and key into 64 bits, so that (seed 0, epoch 1) and
    (seed 1, epoch 0) are unrelated, which a sum of the two would not give.
    """
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(state[0])))


def check_batch_size(batch_size: int) -> None:
    """Raises ArgumentError if it is no whole number, or below 1."""
    check_whole("batch_size", batch_size, 1, "the number of images per batch")


def check_seed(seed: int) -> None:
    """Raises ArgumentError if it is no whole number, negative, or more than 64 bits long."""
    check_whole("seed", seed, 0, "where the random order comes from")
    if seed >= 2**64:
        raise ArgumentError(f"seed={seed} is too large; give a whole number below 2**64.")


def check_whole(argument: str, value: object, lowest: int, what: str) -> None:
    """Raises ArgumentError if it is no whole number of at least ``lowest``."""
    try:
        good = operator.index(value) >= lowest  # pyright: ignore[reportArgumentType]
    except TypeError:
        good = False
    if not good:
        raise ArgumentError(
            f"{argument}={value!r} is {what}; give a whole number of at least {lowest}."
        )


def class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of classes as texts.

    Raises:
        ArgumentError: if it is one text, whose letters would be taken for classes.
    """
    if isinstance(classes, str):
        raise ArgumentError(f"classes={classes!r} is one text; give a list of names.")
    return tuple(map(str, classes))


def check_batch_shape(x: Tensor) -> None:
    """Raises ArgumentError if the images have other axes than (N, C, H, W)."""
    if x.ndim != 4:
        raise ArgumentError(
            f"x has shape {tuple(x.shape)}; expected four axes (N, C, H, W): images, channels, "
            "height, width. Add the missing ones with x.unsqueeze(…)."
        )


def _check_batches(argument: str, batches: Any) -> None:  # noqa: ANN401  # it checks what came
    if isinstance(batches, Iterator) or not hasattr(batches, "__iter__"):
        raise ArgumentError(
            f"{argument} is a {type(batches).__name__}; expected batches (x, y) that can be "
            "iterated in every epoch, such as a torch DataLoader or a list of batches."
        )


def _count(batches: Batches | None) -> str:
    if batches is None:
        return "nothing"
    if isinstance(batches, TensorLoader):
        shape = "×".join(str(n) for n in batches.input_shape)
        return f"{batches.n_items:,} images of {shape}"
    return f"batches of a {type(batches).__name__}"
