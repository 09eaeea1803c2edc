"""What is chosen of a layer: module, epoch, probe image, channel and unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import (
    BEFORE,
    Bytes,
    FeatureMaps,
    FieldIntervals,
    Kernels,
    Probes,
)
from convlens.web.formatting import number
from convlens.web.view import View

if TYPE_CHECKING:
    from convlens.web.pages import Page
    from convlens.web.run_data import RunData

Place = tuple[int, int]


@dataclass(frozen=True)
class Selection:
    """What is chosen in feature maps.

    Attributes:
        maps: the feature maps.
        probe: which probe image.
        kept: which of the kept channels.
        unit: (row, column) on the module's own grid.
    """

    maps: FeatureMaps
    probe: int
    kept: int
    unit: Place

    @property
    def channel(self) -> int:
        """The module's own number of the channel."""
        return int(self.maps.channels[self.kept])

    @property
    def cell(self) -> Place:
        """(row, column) of the cell of the map that covers the unit."""
        row, column = (
            min(i * cells // n, cells - 1)
            for i, n, cells in zip(self.unit, self.maps.grid, self.maps.maps.shape[2:], strict=True)
        )
        return row, column

    @property
    def value(self) -> float:
        """The kept value of the cell, to half a level."""
        return float(values(self.maps)[self.probe, self.kept, *self.cell])

    @property
    def half_level(self) -> float:
        """How far it may be from the measured one."""
        return float(half_levels(self.maps)[self.kept])


def select(maps: FeatureMaps, view: View) -> Selection:
    """What a view chooses in these maps; else the first channel and its largest value."""
    channels, probe = maps.channels.tolist(), min(max(view.probe, 0), len(maps.maps) - 1)
    kept = channels.index(view.channel) if view.channel in channels else 0
    if view.row is None or view.col is None:
        cell = divmod(int(maps.maps[probe, kept].argmax()), maps.maps.shape[3])
        (top, bottom), (left, right) = units_of_cell(maps, cell)
        return Selection(maps, probe, kept, ((top + bottom) // 2, (left + right) // 2))
    return Selection(maps, probe, kept, within((view.row, view.col), maps.grid))


def maps_of(page: Page, module: str) -> FeatureMaps | None:
    """A module's feature maps at the chosen epoch, or the first one kept; None without any."""
    epoch = page.view.epoch
    kept = page.run.snapshot_epochs(FeatureMaps, module)
    at = None if epoch is None or not kept else max(epoch, kept[0])
    maps = page.run.snapshot(FeatureMaps, module, at)
    return maps if maps is not None and maps.maps.size else None


def kernels_of(page: Page) -> Kernels | None:
    """The layer's kernels at the chosen epoch, or the first one kept; None without any."""
    epoch, layer = page.view.epoch, layer_of(page)
    kept = page.run.snapshot_epochs(Kernels, layer)
    at = None if epoch is None or not kept else max(epoch, kept[0])
    kernels = page.run.snapshot(Kernels, layer, at)
    return kernels if kernels is not None and kernels.weight.size else None


def layer_of(page: Page) -> str:
    """The layer; where none was watched, the chosen or the first module that has maps."""
    if page.view.layer:
        return page.view.layer
    kept = page.run.snapshot_layers(FeatureMaps)
    return page.view.maps if page.view.maps in kept else next(iter(kept), "")


def module_of(page: Page) -> str:
    """The module whose maps are shown: the layer, or what takes its output."""
    return page.view.maps if page.view.maps in stages(page) else layer_of(page)


def stages(page: Page) -> list[str]:
    """The modules with maps from the layer to the next watched one: convolution, its ReLU."""
    kept, layer = page.run.snapshot_layers(FeatureMaps), page.view.layer
    if not page.run.names:
        return kept
    if layer not in kept:
        return []
    rest = kept[kept.index(layer) + 1 :]
    ends = [i for i, name in enumerate(rest) if name in page.run.names]
    return [layer, *rest[: ends[0] if ends else None]]


def probes_of(run: RunData) -> Probes | None:
    """The probe images, None if there are none."""
    probes = run.snapshot(Probes)
    return probes if probes is not None and probes.images.size else None


def caption_of(probes: Probes | None, i: int) -> str:
    """The class of a probe image, or its number where that is not known."""
    if probes is None or i >= len(probes.captions):
        return f"probe {i + 1}"
    return probes.captions[i]


def within(place: Place, grid: Place) -> Place:
    """The place of a grid that is nearest to this one."""
    return min(max(place[0], 0), grid[0] - 1), min(max(place[1], 0), grid[1] - 1)


def values(maps: FeatureMaps) -> NDArray[np.float64]:
    """(N, C', h, w) what the bytes mean, to half a level."""
    low = maps.low.astype(np.float64)[:, None, None]
    return low + maps.maps / 255 * (maps.high.astype(np.float64)[:, None, None] - low)


def half_levels(maps: FeatureMaps) -> NDArray[np.float64]:
    """(C',) how far a kept value of each channel may be from the measured one."""
    return (maps.high.astype(np.float64) - maps.low.astype(np.float64)) / 510


def limits(maps: FeatureMaps) -> tuple[float, float]:
    """The lowest and the highest value of all channels."""
    return float(np.nanmin(maps.low)), float(np.nanmax(maps.high))


def on_scale(maps: FeatureMaps, shared: bool) -> Bytes:
    """(N, C', h, w) bytes to colour: as kept, or on one scale of all channels."""
    if not shared:
        return maps.maps
    low, high = limits(maps)
    shares = (values(maps) - low) / ((high - low) or 1.0)
    return np.round(255 * np.clip(np.nan_to_num(shares), 0, 1)).astype(np.uint8)


def units_of_cell(maps: FeatureMaps, cell: Place) -> tuple[Place, Place]:
    """First and last row of units, and of columns, whose mean a cell holds."""
    rows, columns = (
        (i * n // cells, -(-(i + 1) * n // cells) - 1)
        for i, n, cells in zip(cell, maps.grid, maps.maps.shape[2:], strict=True)
    )
    return rows, columns


def field_of_units(
    fields: FieldIntervals, rows: Place, columns: Place
) -> tuple[Place, Place] | None:
    """First and last row of pixels that any of these units sees, and of columns; None for none."""
    spans: list[Place] = []
    for (start, stop), first, last in (
        (rows, fields.first_row, fields.last_row),
        (columns, fields.first_column, fields.last_column),
    ):
        a, b = first[start : stop + 1], last[start : stop + 1]
        sees = a <= b
        if not sees.any():
            return None
        spans.append((int(a[sees].min()), int(b[sees].max())))
    return spans[0], spans[1]


def units_that_see(
    fields: FieldIntervals, pixel: Place
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(H,) which rows of units have this pixel in their field, and (W,) which columns."""
    return (
        (fields.first_row <= pixel[0]) & (pixel[0] <= fields.last_row),
        (fields.first_column <= pixel[1]) & (pixel[1] <= fields.last_column),
    )


def after(epoch: int) -> str:
    """When something was kept, in words."""
    return "before training" if epoch <= BEFORE else f"after epoch {epoch + 1}"


def measured(value: float, half: float) -> str:
    """A value that is known to half a level, and that half."""
    if not np.isfinite(value) or not half:
        return number(value)
    digits = max(0, 1 - math.floor(math.log10(half)))
    if digits > 6:
        return f"{number(value)} ± {number(half)}"
    return f"{value:.{digits}f} ± {half:.{digits}f}".replace("-", "−")


def value_range(low: float, high: float) -> str:
    """A range of values with two or three digits, to fit below a small picture."""
    if not low < high:
        return f"constant {number(low)}" if math.isfinite(low) else "not finite"
    return " … ".join(number(float(f"{v:.2g}" if abs(v) >= 1 else f"{v:.1g}")) for v in (low, high))
