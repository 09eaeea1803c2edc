"""What a person has chosen, and what of a layer that means: cells, units, pixels, values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import FeatureMaps, FieldIntervals, Probes

Place = tuple[int, int]


@dataclass(frozen=True)
class Choice:
    """What is looked at in a layer. `settle` makes any choice one that the layer has.

    Attributes:
        probe: which probe image, from 0.
        channel: the layer's own number of the channel; None for the first that was kept.
        cell: (row, column) of the map that is shown; None for the largest value of the channel.
        pixel: (row, column) of the image; None if none was chosen.
        unit: (row, column) on the layer's own grid, for the sliding window; None for the middle
            one of the cell.
    """

    probe: int = 0
    channel: int | None = None
    cell: Place | None = None
    pixel: Place | None = None
    unit: Place | None = None


def settle(choice: Choice, maps: FeatureMaps, probes: Probes | None = None) -> Choice:
    """The nearest choice to this one that exists in these maps; nothing but ``pixel`` is None."""
    n, _, height, width = maps.maps.shape
    channels = maps.channels.tolist()
    channel = choice.channel if choice.channel in channels else channels[0]
    probe = min(max(choice.probe, 0), n - 1)
    cell = choice.cell or strongest(maps, probe, channels.index(channel))
    cell = within(cell, (height, width))
    pixel = choice.pixel
    if pixel is not None and probes is not None:
        pixel = within(pixel, (probes.images.shape[1], probes.images.shape[2]))
    spans = units_of_cell(maps, cell)
    middle = tuple((first + last) // 2 for first, last in spans)
    unit = within(choice.unit or (middle[0], middle[1]), maps.grid)
    return replace(choice, probe=probe, channel=channel, cell=cell, pixel=pixel, unit=unit)


def within(place: Place, grid: Place) -> Place:
    """The place of a grid that is nearest to this one."""
    return min(max(place[0], 0), grid[0] - 1), min(max(place[1], 0), grid[1] - 1)


def strongest(maps: FeatureMaps, probe: int, kept: int) -> Place:
    """(row, column) of a map's largest value; ``kept`` counts the channels that were kept."""
    flat = int(maps.maps[probe, kept].argmax())
    row, column = divmod(flat, maps.maps.shape[3])
    return row, column


def values(maps: FeatureMaps) -> NDArray[np.float64]:
    """(N, C', h, w) what the bytes mean, to half a level."""
    low = maps.low.astype(np.float64)[:, None, None]
    return low + maps.maps / 255 * (maps.high.astype(np.float64)[:, None, None] - low)


def limits(maps: FeatureMaps) -> tuple[float, float]:
    """The lowest and the highest value of all channels."""
    return float(np.nanmin(maps.low)), float(np.nanmax(maps.high))


def on_scale(maps: FeatureMaps, shared: bool) -> NDArray[np.uint8]:
    """(N, C', h, w) bytes to colour: as kept, or on one scale of all channels."""
    if not shared:
        return maps.maps
    low, high = limits(maps)
    shares = (values(maps) - low) / ((high - low) or 1.0)
    return np.round(255 * np.clip(np.nan_to_num(shares), 0, 1)).astype(np.uint8)


def half_level(maps: FeatureMaps, kept: int) -> float:
    """How far a kept value may be from the measured one."""
    return (float(maps.high[kept]) - float(maps.low[kept])) / 510


def units_of_cell(maps: FeatureMaps, cell: Place) -> tuple[Place, Place]:
    """First and last row of units, and of columns, whose mean a cell holds."""
    shape = maps.maps.shape[2:]
    rows, columns = (
        (i * n // cells, -(-(i + 1) * n // cells) - 1)
        for i, n, cells in zip(cell, maps.grid, shape, strict=True)
    )
    return rows, columns


def cell_of_unit(maps: FeatureMaps, unit: Place) -> Place:
    """A cell that covers a unit; for a unit that there is not, one that there is not either."""
    rows, columns = (
        min(i * cells // n, cells - 1)
        for i, n, cells in zip(unit, maps.grid, maps.maps.shape[2:], strict=True)
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
