"""How a unit of a convolution comes about, from what a run keeps; float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import FeatureMaps, Kernels, Probes
from convlens.web.panels import selection
from convlens.web.panels.selection import Place, Selection

if TYPE_CHECKING:
    from convlens.web.run_data import RunData

Reals = NDArray[np.float64]

FLOAT32 = 1e-5
"""The network's own rounding, as a share of the products' size."""

CANDIDATES = 16
"""Modules before a layer that are tried as the one that feeds it."""

NOT_KEPT = (
    "The products need the layer's input, and no module whose feature maps were recorded unit by "
    "unit gives it."
)
OTHER_PADDING = "This unit reads padding that is not zeros; choose one further from the edge."


@dataclass(frozen=True)
class Source:
    """What a convolution reads, for one probe image.

    Attributes:
        name: the module whose output it is, empty for the network's input.
        planes: (C, H, W) those that the channel reads, from ``first`` on.
        errors: (C,) how far a value of each may be from the measured one.
        first: number of the first of them.
    """

    name: str
    planes: Reals
    errors: Reals
    first: int


@dataclass(frozen=True)
class Window:
    """One unit of a convolution. kH × kW places of C input channels.

    Attributes:
        source: what it reads.
        patch: (C, kH, kW) input values under the kernel, 0 in the padding.
        padding: (kH, kW) whether a place lies outside the input.
        weight: (C, kH, kW).
        bias: 0 without one.
        corner: (row, column) of the input's place under the kernel's first entry.
    """

    source: Source
    patch: Reals
    padding: NDArray[np.bool_]
    weight: Reals
    bias: float
    corner: Place

    @property
    def products(self) -> Reals:
        """(C, kH, kW)."""
        return self.patch * self.weight

    @property
    def sums(self) -> Reals:
        """(C,) of each input channel's products."""
        return self.products.sum(axis=(1, 2))

    @property
    def value(self) -> float:
        """Of the unit."""
        return float(self.products.sum()) + self.bias

    @property
    def error(self) -> float:
        """How far ``value`` may be from the measured one."""
        return _error(self.source, self.weight, self.bias)


def window_at(run: RunData, kernels: Kernels, chosen: Selection, probes: Probes) -> Window | str:
    """The products at a unit, or why there are none.

    Args:
        run: where other modules' feature maps are read.
        kernels: the convolution.
        chosen: the unit in the convolution's own feature maps.
        probes: the images as the network gets them.
    """
    channel = chosen.channel
    if channel >= len(kernels.weight):
        kept = len(kernels.weight)
        return f"The kernels of channels 0 to {kept - 1} were recorded; that of {channel} was not."
    n_in, kept_in = kernels.shape[1], kernels.weight.shape[1]
    if kept_in < n_in:
        return (
            f"This layer reads {n_in} channels; the kernels of the first {kept_in} were recorded."
        )
    first = channel // max(kernels.shape[0] // kernels.groups, 1) * n_in
    if kernels.reads_input:
        planes = probes.inputs[chosen.probe, first : first + n_in].astype(np.float64)
        source = Source("", planes, np.zeros(len(planes)), first)
    else:
        source = _output_of_another(run, kernels, chosen, first)
    return source if isinstance(source, str) else _window(kernels, source, channel, chosen.unit)


def _output_of_another(
    run: RunData, kernels: Kernels, chosen: Selection, first: int
) -> Source | str:
    """What a deep layer reads, or why it is not known."""
    if kernels.epoch != chosen.maps.epoch or chosen.maps.maps.shape[2:] != chosen.maps.grid:
        return NOT_KEPT
    n_in, most = kernels.shape[1], 0
    for maps in _before(run, kernels):
        most = max(most, len(maps.channels))
        source = _source(maps, chosen.probe, first, n_in)
        if source is not None and _feeds(source, kernels, chosen):
            return source
    if first + n_in > most > 0:
        return (
            f"The products need all {n_in} channels that this layer reads; the feature maps of the "
            f"first {most} channels of a layer are recorded."
        )
    return NOT_KEPT


def _before(run: RunData, kernels: Kernels) -> Iterator[FeatureMaps]:
    """The feature maps that may be the layer's input, those of the nearest module first."""
    names = run.snapshot_layers(FeatureMaps)
    at = names.index(kernels.layer) if kernels.layer in names else len(names)
    for name in names[max(0, at - CANDIDATES) : at][::-1]:
        maps = run.snapshot(FeatureMaps, name, kernels.epoch)
        reads = kernels.shape[1] * kernels.groups
        if maps is not None and maps.epoch == kernels.epoch and maps.n_channels == reads:
            yield maps


def _source(maps: FeatureMaps, probe: int, first: int, n_in: int) -> Source | None:
    """The channels that are read, if each of their units was kept."""
    part = slice(first, first + n_in)
    if maps.maps.shape[2:] != maps.grid or maps.channels[part].tolist() != [
        *range(first, first + n_in)
    ]:
        return None
    planes = selection.values(maps)[probe, part]
    return Source(maps.layer, planes, selection.half_levels(maps)[part], first)


def _feeds(source: Source, kernels: Kernels, chosen: Selection) -> bool:
    """Whether every unit of the channel's map is the sum of its products, within the rounding.

    A run does not record which module feeds which; this decides it by the numbers.
    """
    weight = kernels.weight[chosen.channel].astype(np.float64)
    rows, columns = _places(kernels, chosen.maps.grid, weight.shape[1:])
    _, height, width = source.planes.shape
    inside = [(r >= 0) & (r < n) for r, n in ((rows, height), (columns, width))]
    found = np.full(chosen.maps.grid, _bias(kernels, chosen.channel))
    known = np.ones(chosen.maps.grid, bool)
    for i, j in np.ndindex(weight.shape[1:]):
        there = inside[0][:, i, None] & inside[1][None, :, j]
        read = source.planes[
            :, rows[:, i].clip(0, height - 1)[:, None], columns[:, j].clip(0, width - 1)
        ]
        found += np.where(there, np.einsum("chw,c->hw", read, weight[:, i, j]), 0.0)
        known &= there | kernels.zero_padding
    kept = selection.values(chosen.maps)[chosen.probe, chosen.kept]
    bound = 1.001 * chosen.half_level + _error(source, weight, _bias(kernels, chosen.channel))
    return bool(known.any() and (np.abs(found - kept)[known] <= bound).all())


def _window(kernels: Kernels, source: Source, channel: int, unit: Place) -> Window | str:
    weight = kernels.weight[channel].astype(np.float64)
    _, height, width = source.planes.shape
    if len(source.planes) < len(weight):
        return NOT_KEPT
    by_row, by_column = _places(kernels, (unit[0] + 1, unit[1] + 1), weight.shape[1:])
    rows, columns = by_row[-1], by_column[-1]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    if not (inside.all() or kernels.zero_padding):
        return OTHER_PADDING
    read = source.planes[:, rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
    patch, corner = np.where(inside, read, 0.0), (int(rows[0]), int(columns[0]))
    return Window(source, patch, ~inside, weight, _bias(kernels, channel), corner)


def _places(
    kernels: Kernels, grid: Place, size: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(H, kH) rows of the input that the units of each row read, and (W, kW) columns."""
    rows, columns = (
        np.arange(n)[:, None] * stride - pad + dilation * np.arange(k)
        for n, stride, pad, dilation, k in zip(
            grid, kernels.stride, kernels.padding, kernels.dilation, size, strict=True
        )
    )
    return rows, columns


def _bias(kernels: Kernels, channel: int) -> float:
    return float(kernels.bias[channel]) if len(kernels.bias) > channel else 0.0


def _error(source: Source, weight: Reals, bias: float) -> float:
    """How far a sum of products may be from the measured one."""
    sizes = np.abs(weight).sum(axis=(1, 2))
    most = np.abs(source.planes).max(axis=(1, 2), initial=0.0)
    return float((source.errors * sizes).sum() + FLOAT32 * ((most * sizes).sum() + abs(bias)))
