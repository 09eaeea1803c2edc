"""Datasets of torch and Hugging Face, and ready loaders → `DataLoaders`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from convlens.core.argument_checks import check_whole
from convlens.core.wording import type_name
from convlens.data.dataset_items import (
    Columns,
    Pair,
    features_of,
    find_columns,
    pair_of,
    stacked,
)
from convlens.data.loaders import Batches, DataLoaders, check_seed, class_names, shuffled
from convlens.data.pixels import PixelScale, plain_scale
from convlens.errors import ArgumentError
from convlens.execution import same_random
from convlens.execution.devices import pick_device


def from_dataset(
    train: Any,  # noqa: ANN401
    valid: Any = None,  # noqa: ANN401
    *,
    batch_size: int = 64,
    classes: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    name: str | None = None,
    columns: tuple[str, str] | None = None,
) -> DataLoaders:
    """Batches from a dataset of torch or Hugging Face, or from ready loaders.

    Items are pairs (image, label). Images are tensors or arrays (C, H, W), or Pillow images, all of
    one size; uint8 and Pillow images get the range from 0 to 1, floats are taken as they are.
    Labels are numbers, several numbers, or masks. Nothing is resized or normalized.

        >>> data = [(torch.zeros(3, 8, 8, dtype=torch.uint8), i % 2) for i in range(10)]
        >>> cl.from_dataset(data, batch_size=4, classes=["cat", "dog"], device="cpu")
        DataLoaders('data', 2 classes, cpu)
          train: DatasetLoader, 3 batches
          valid: none

    Items are read in this process, one after the other. A torch ``DataLoader`` with ``num_workers``
    reads them in others; give it as ``train``, and it is used as it is, with its own batch size,
    order and collate function.

    Args:
        train: a dataset with ``__len__`` and ``__getitem__``, a Hugging Face dataset, or a torch
            ``DataLoader``, which is also for datasets that can only be iterated.
        valid: the same to validate on, None for no validation.
        batch_size: images per batch. The last one of an epoch may be smaller.
        classes: the name of each label; None for those that the dataset knows, if any.
        device: where the batches are used: None for cuda if available, else cpu.
        seed: of the training order, a new one in each epoch.
        name: the name of the data; None for that of the dataset's class.
        columns: for items that are dictionaries, the keys of the image and of the label. Those of a
            Hugging Face dataset are found if it has one column of images and one of classes.

    Raises:
        ArgumentError: if an argument has a value that cannot work, or items are not such pairs.
    """
    check_whole("batch_size", batch_size, 1)
    check_seed(seed)
    target = pick_device(device)
    title = name or _title(train)
    loaders = [
        _loader(
            argument, dataset, columns, batch_size, title, seed if argument == "train" else None
        )
        for argument, dataset in (("train", train), ("valid", valid))
        if dataset is not None
    ]
    return DataLoaders(
        loaders[0],
        loaders[1] if len(loaders) > 1 else None,
        classes=_classes(classes, train, valid, columns),
        name=title,
        device=target,
        scale=getattr(loaders[0], "scale", None),
    )


class DatasetLoader:
    """Batches of a dataset's items, read when they are needed.

    Iterating gives ``(x, y)``: x (N, C, H, W) float32, y int64 or float32. Iterating again gives
    the next epoch, unless `set_epoch` says which; the order is a function of (seed, epoch) alone.

        >>> from convlens.data.from_dataset import DatasetLoader
        >>> data = [(torch.zeros(1, 4, 4), i) for i in range(10)]
        >>> loader = DatasetLoader(data, batch_size=4, files=[f"data[{i}]" for i in range(10)])
        >>> [y.tolist() for x, y in loader]
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    Args:
        dataset: has ``__len__`` and ``__getitem__``, which gives pairs (image, label).
        batch_size: items per batch.
        files: where each item comes from.
        columns: the keys of items that are dictionaries.
        seed: of a new order in each epoch; None for the stored order.

    Attributes:
        n_items: images of one epoch.
        input_shape: (C, H, W) of the first image.
        scale: 0 is black and 1 white, if the images are such that it is known, else None.
        epoch: the epoch that the next iteration gives.
    """

    def __init__(
        self,
        dataset: Any,  # noqa: ANN401
        *,
        batch_size: int,
        files: Sequence[str],
        columns: Columns | None = None,
        seed: int | None = None,
    ) -> None:
        self._dataset, self._columns, self._seed = dataset, columns, seed
        self.batch_size, self.files, self.n_items = batch_size, files, len(files)
        self.epoch = 0
        with same_random():
            first = dataset[0]
        x, _ = pair_of(first, files[0], columns)
        self.input_shape: tuple[int, int, int] = (x.shape[0], x.shape[1], x.shape[2])
        self.scale = _scale(first, columns, x.shape[0])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration gives, from 0."""
        check_whole("epoch", epoch, 0)
        self.epoch = epoch

    def peek(self, n: int) -> Pair:
        """The first ``n`` items of the next epoch; the next iteration still gives that epoch."""
        with same_random():
            return self._read(self._order(self.epoch)[:n])

    def __len__(self) -> int:
        """Number of batches of one epoch."""
        return math.ceil(self.n_items / self.batch_size)

    def __iter__(self) -> Iterator[Pair]:
        order = self._order(self.epoch)
        self.epoch += 1
        return (self._read(part) for part in order.split(self.batch_size))

    def _order(self, epoch: int) -> Tensor:
        if self._seed is None:
            return torch.arange(self.n_items)
        return shuffled(self.n_items, self._seed, epoch)

    def _read(self, positions: Tensor) -> Pair:
        indices: list[int] = positions.tolist()
        sources = [self.files[i] for i in indices]
        pairs = [pair_of(self._dataset[i], self.files[i], self._columns) for i in indices]
        return stacked(pairs, sources)


def _loader(
    argument: str,
    dataset: Any,  # noqa: ANN401
    columns: tuple[str, str] | None,
    batch_size: int,
    name: str,
    seed: int | None,
) -> Batches:
    if isinstance(dataset, DataLoader):
        return dataset
    if isinstance(dataset, Mapping):
        raise ArgumentError(
            f"{argument} is a dictionary with the keys {', '.join(map(repr, dataset))}; give one "
            f"of its datasets, such as {argument}=data[{next(iter(dataset), 'train')!r}]."
        )
    whole = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, str | bytes | IterableDataset) or not whole:
        streams = isinstance(dataset, IterableDataset) or hasattr(dataset, "__iter__")
        hint = ": one that can only be iterated goes into a DataLoader" if streams else ""
        raise ArgumentError(
            f"{argument} must be a dataset with __len__ and __getitem__, or a torch DataLoader"
            f"{hint}, got {type_name(dataset)}."
        )
    found = find_columns(argument, dataset, columns)
    files = _sources(argument, dataset, name)
    if not files:
        raise ArgumentError(f"{argument} is empty; give at least one item.")
    return DatasetLoader(dataset, batch_size=batch_size, files=files, columns=found, seed=seed)


def _sources(argument: str, dataset: Any, name: str) -> list[str]:  # noqa: ANN401
    """Where each item comes from; of a part of a dataset, the index in the whole."""
    if not isinstance(dataset, Subset):
        return [f"{name} {argument}[{i}]" for i in range(len(dataset))]
    indices: Sequence[int] = range(len(dataset))
    while isinstance(dataset, Subset):
        indices = [int(dataset.indices[i]) for i in indices]
        dataset = dataset.dataset
    return [f"{name}[{i}]" for i in indices]


def _whole(dataset: Any) -> Any:  # noqa: ANN401
    """The dataset behind a loader and behind parts of it."""
    while isinstance(dataset, DataLoader | Subset):
        dataset = dataset.dataset
    return dataset


def _title(dataset: Any) -> str:  # noqa: ANN401
    whole = _whole(dataset)
    if features_of(whole):
        return str(getattr(whole, "builder_name", None) or "data")
    return "data" if isinstance(whole, list | tuple) else type(whole).__name__


def _classes(
    given: Sequence[str] | None,
    train: Any,  # noqa: ANN401
    valid: Any,  # noqa: ANN401
    columns: tuple[str, str] | None,
) -> Sequence[str]:
    """The names of the labels.

    Raises:
        ArgumentError: if the datasets number their classes differently.
    """
    if given is not None:
        return class_names(given)
    known, of_valid = (_known_classes(dataset, columns) for dataset in (train, valid))
    if known and of_valid and known != of_valid:
        raise ArgumentError(
            f"train has the classes {', '.join(known)}, but valid {', '.join(of_valid)}; give both "
            "the same in one order, since a label is a number of that list."
        )
    return known


def _known_classes(dataset: Any, columns: tuple[str, str] | None) -> tuple[str, ...]:  # noqa: ANN401
    whole = _whole(dataset)
    if features := features_of(whole):
        found = find_columns("train", whole, columns)
        names: Any = getattr(features.get(found.label), "names", None) if found else None
    else:
        names = getattr(whole, "classes", None)
    if isinstance(names, list | tuple) and all(isinstance(one, str) for one in names):
        return tuple(names)
    return ()


def _scale(item: Any, columns: Columns | None, channels: int) -> PixelScale | None:  # noqa: ANN401
    """Pillow images and uint8 go from 0 to 1; what floats mean is not known."""
    image = item[columns.image] if columns and isinstance(item, Mapping) else item[0]
    floats = str(getattr(image, "dtype", "uint8")).removeprefix("torch.") != "uint8"
    return None if floats else plain_scale(channels, 0.0, 1.0)
