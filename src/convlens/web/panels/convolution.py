"""How a unit of a convolution comes about, from what a run keeps; float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import FeatureMaps, Kernels, Probes
from convlens.web.panels.selection import Place, Selection, half_levels, values

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
    """What one channel of a convolution reads of one probe image.

    Attributes:
        name: the module whose output it is, empty for the network's input.
        planes: (C, H, W) the channels that are read.
        errors: (C,) how far a value of each may be from the measured one.
        first: number of the first of them.
    """

    name: str
    planes: Reals
    errors: Reals
    first: int


@dataclass(frozen=True)
class Window:
    """One unit of a convolution: kH × kW places of C input channels.

    Attributes:
        source: what it reads.
        patch: (C, kH, kW) input values under the kernel, 0 in the padding.
        padding: (kH, kW) whether a place lies outside the input.
        weight: (C, kH, kW).
        bias: 0 without one.
        rows: (kH,) of the input, outside of it in the padding.
        columns: (kW,).
    """

    source: Source
    patch: Reals
    padding: NDArray[np.bool_]
    weight: Reals
    bias: float
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @property
    def products(self) -> Reals:
        """(C, kH, kW)."""
        return self.patch * self.weight

    @property
    def value(self) -> float:
        """Of the unit."""
        return float(self.products.sum()) + self.bias

    @property
    def error(self) -> float:
        """How far ``value`` may be from the measured one."""
        sizes = np.abs(self.weight).sum(axis=(1, 2))
        rounding = float(np.abs(self.products).sum()) + abs(self.bias)
        return float((self.source.errors * sizes).sum()) + FLOAT32 * rounding

    def agrees(self, chosen: Selection) -> bool:
        """Whether the recorded value is this one, within the rounding of both."""
        return abs(chosen.value - self.value) <= 1.001 * chosen.half + self.error


def window_at(run: RunData, kernels: Kernels, chosen: Selection, probes: Probes) -> Window | str:
    """The products at a unit of the convolution's feature maps, or why there are none."""
    (n_kept, kept_in), n_in = kernels.weight.shape[:2], kernels.shape[1]
    if chosen.channel >= n_kept:
        return f"The kernels of the first {n_kept} channels were recorded, not {chosen.channel}."
    if kept_in < n_in:
        return (
            f"The products need the kernels of all {n_in} input channels; {kept_in} were recorded."
        )
    first = chosen.channel // max(kernels.shape[0] // kernels.groups, 1) * n_in
    if kernels.reads_input:
        planes = probes.inputs[chosen.probe, first : first + n_in].astype(np.float64)
        return slide(kernels, Source("", planes, np.zeros(n_in), first), chosen) or OTHER_PADDING
    source = _source(run, kernels, chosen, first)
    return source if isinstance(source, str) else slide(kernels, source, chosen) or OTHER_PADDING


def _source(run: RunData, kernels: Kernels, chosen: Selection, first: int) -> Source | str:
    """What a deep layer reads: the output of another, known by the numbers; or why it is not known.

    A run does not record which module feeds which. It is the nearest one of which every unit of
    the layer's map is the sum of its products, within the rounding.
    """
    if kernels.epoch != chosen.maps.epoch or chosen.maps.maps.shape[2:] != chosen.maps.grid:
        return NOT_KEPT
    read, most = slice(first, first + kernels.shape[1]), 0
    for maps in _before(run, kernels):
        most = max(most, len(maps.channels))
        if len(maps.channels) < read.stop or maps.maps.shape[2:] != maps.grid:
            continue
        planes, errors = values(maps)[chosen.probe, read], half_levels(maps)[read]
        source = Source(maps.layer, planes, errors, first)
        units = (replace(chosen, unit=(row, col)) for row, col in np.ndindex(chosen.maps.grid))
        pairs = ((unit, slide(kernels, source, unit)) for unit in units)
        if all(window is None or window.agrees(unit) for unit, window in pairs):
            return source
    if read.stop > most > 0:
        return (
            f"The products need all {kernels.shape[1]} channels that this layer reads; a run keeps "
            f"the feature maps of the first {most} of a layer."
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


def slide(kernels: Kernels, source: Source, chosen: Selection) -> Window | None:
    """The window at a unit; None if it reads padding that is not zeros."""
    weight = kernels.weight[chosen.channel].astype(np.float64)
    height, width = source.planes.shape[1:]
    rows, columns = _places(kernels, chosen.unit, weight.shape[1:])
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    if not (inside.all() or kernels.zero_padding):
        return None
    read = source.planes[:, rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
    patch = np.where(inside, read, 0.0)
    bias = float(kernels.bias[chosen.channel]) if len(kernels.bias) > chosen.channel else 0.0
    return Window(source, patch, ~inside, weight, bias, rows, columns)


def _places(
    kernels: Kernels, unit: Place, size: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(kH,) rows of the input under the kernel, and (kW,) columns."""
    geometry = zip(unit, kernels.stride, kernels.padding, kernels.dilation, size, strict=True)
    rows, columns = (at * by - pad + wide * np.arange(n) for at, by, pad, wide, n in geometry)
    return rows, columns
