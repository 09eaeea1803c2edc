"""What is chosen of a layer, and what the bytes of its feature maps mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import BEFORE, FeatureMaps, FieldIntervals, Probes, S
from convlens.web.formatting import number
from convlens.web.view import View

if TYPE_CHECKING:
    from convlens.web.pages import Page

Place = tuple[int, int]
"""A row and a column, or the first and the last of one of them."""


@dataclass(frozen=True)
class Selection:
    """A unit in feature maps: (row, column) on the module's grid, of a kept channel and a probe."""

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
        sides = zip(self.unit, self.maps.grid, self.maps.maps.shape[2:], strict=True)
        row, column = (min(i * cells // n, cells - 1) for i, n, cells in sides)
        return row, column

    @property
    def units(self) -> tuple[Place, Place]:
        """First and last row of units, and of columns, whose mean the cell holds."""
        return units_of_cell(self.maps, self.cell)

    @property
    def value(self) -> float:
        """The kept value of the cell."""
        low, high = float(self.maps.low[self.kept]), float(self.maps.high[self.kept])
        return low + int(self.maps.maps[self.probe, self.kept, *self.cell]) / 255 * (high - low)

    @property
    def half(self) -> float:
        """How far it may be from the measured one: half a level."""
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


def kept_at(page: Page, kind: type[S], layer: str) -> S | None:
    """The newest snapshot up to the chosen epoch; if that is before the first, the first."""
    kept, epoch = page.run.snapshot_epochs(kind, layer), page.view.epoch
    at = None if epoch is None or not kept else max(epoch, kept[0])
    return page.run.snapshot(kind, layer, at)


def stages(page: Page) -> list[str]:
    """The modules with maps from the layer to the next watched one, such as its ReLU."""
    kept, layer = page.run.snapshot_layers(FeatureMaps), page.view.layer
    if not layer:  # none was watched
        return kept
    if layer not in kept:
        return []
    rest = kept[kept.index(layer) + 1 :]
    ends = [i for i, name in enumerate(rest) if name in page.run.names]
    return [layer, *rest[: ends[0] if ends else None]]


def module_of(page: Page) -> str:
    """The module whose maps are shown: the layer, or what takes its output."""
    among = stages(page)
    if page.view.maps in among:
        return page.view.maps
    return page.view.layer or next(iter(among), "")


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
    low, high = (end.astype(np.float64)[:, None, None] for end in (maps.low, maps.high))
    return low + maps.maps / 255 * (high - low)


def half_levels(maps: FeatureMaps) -> NDArray[np.float64]:
    """(C',) how far a kept value of each channel may be from the measured one."""
    return (maps.high.astype(np.float64) - maps.low.astype(np.float64)) / 510


def units_of_cell(maps: FeatureMaps, cell: Place) -> tuple[Place, Place]:
    """First and last row of units, and of columns, whose mean a cell holds."""
    sides = zip(cell, maps.grid, maps.maps.shape[2:], strict=True)
    rows, columns = ((i * n // cells, -(-(i + 1) * n // cells) - 1) for i, n, cells in sides)
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
    """A value with how far it may be from the true one."""
    digits = max(0, 1 - math.floor(math.log10(half))) if half and math.isfinite(half) else 9
    if digits > 6:
        return f"{number(value)} ± {number(half)}" if half else number(value)
    return f"{value:.{digits}f} ± {half:.{digits}f}".replace("-", "−")


def rough(value: float) -> str:
    """A number with one or two digits."""
    return number(float(f"{value:.2g}" if abs(value) >= 1 else f"{value:.1g}"))


def value_range(low: float, high: float) -> str:
    """A range of values, to fit below a small picture."""
    if not low < high:
        return f"constant {number(low)}" if math.isfinite(low) else "not finite"
    return f"{rough(low)} … {rough(high)}"
