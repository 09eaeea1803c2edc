"""The histories of all watched layers or parameters, by index, name or kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from convlens.core.histories import LayerHistory, LayerInfo, UpdateHistory
from convlens.core.layers import find_layer
from convlens.core.records import Epoch
from convlens.errors import ConvlensError

History = TypeVar("History", LayerHistory, UpdateHistory)


def position_of(layer: int | str, layers: Sequence[LayerInfo]) -> int:
    """The index of a layer given by index, name or kind; see `find_layer`."""
    return find_layer(layer, [info.name for info in layers], [info.kind for info in layers])


class _Histories(ABC, Generic[History]):
    @property
    @abstractmethod
    def layers(self) -> Sequence[LayerInfo]:
        """What was watched, in order of its index."""

    @abstractmethod
    def history(self, index: int) -> History:
        """The history at this index, from 0 to ``len(self) - 1``."""

    @property
    @abstractmethod
    def epochs(self) -> Sequence[Epoch]:
        """The finished epochs, for marking them in plots; may be empty."""

    @property
    def _label(self) -> str:
        """What `repr` calls it."""
        return type(self).__name__

    @property
    def names(self) -> list[str]:
        """The names, in order of the index."""
        return [layer.name for layer in self.layers]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, layer: int | str) -> History:
        """One history: by an index (negative counts from the end), a name or a kind.

        ``stats["last conv"]`` is the last layer whose class name contains "conv", in any case.

        Raises:
            LayerNotFoundError: if nothing has this index, name or kind.
        """
        return self.history(position_of(layer, self.layers))

    def __repr__(self) -> str:
        try:
            names = self.names
        except ConvlensError:  # such as a callback before its first fit
            return f"<{self._label}: nothing recorded yet>"
        shown = names if len(names) <= 6 else [*names[:3], "…", *names[-2:]]
        return f"<{self._label}, {len(names)} series: {', '.join(shown)}>"


class LayerHistories(_Histories[LayerHistory]):
    """The histories of several watched layers.

    ``stats[-2]``, ``stats["0.0"]`` and ``stats["last conv"]`` are `LayerHistory` objects; iterating
    gives the names.
    """


class UpdateHistories(_Histories[UpdateHistory]):
    """What the optimizer did to each of several parameters.

    ``stats[-2]`` and ``stats["0.0.weight"]`` are `UpdateHistory` objects; iterating gives the
    names. ``layers`` are the infos of the updates.
    """
