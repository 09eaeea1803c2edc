"""A unit: where on the image it looks, what it sees there, and which units see a pixel."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import Bytes, EffectiveFieldMap, FeatureMaps, FieldIntervals, Probes
from convlens.views.markup import percent
from convlens.views.panels.choice import (
    Choice,
    Place,
    field_of_units,
    half_level,
    settle,
    units_of_cell,
    units_that_see,
    values,
)
from convlens.views.panels.elements import (
    after,
    button,
    coloured,
    counted,
    figures,
    legend,
    marks,
    measured,
    note,
    nothing,
    panel,
    picture,
    rectangle,
    spot,
    tile,
    tiles,
)

NO_UNIT = (
    "No feature maps and probe images of this layer were kept. A Learner with the Pictures "
    "callback keeps them."
)
NO_FIELDS = "The receptive fields of this layer were not kept, or are not known."
NO_EFFECTIVE = "No effective receptive field of this layer was kept."
PADDING_ONLY = "This unit sees nothing but padding."

HEAT = (240, 100, 20)


def unit(
    maps: FeatureMaps | None,
    probes: Probes | None,
    fields: FieldIntervals | None,
    effective: EffectiveFieldMap | None = None,
    choice: Choice | None = None,
    live: bool = True,
) -> str:
    """The receptive field of a chosen unit on a probe image, and the patch in it.

    The image answers with ``pixel``, the map with ``unit``.

    Args:
        maps: the layer's feature maps.
        probes: the images.
        fields: the field of every unit of the layer, None if not known.
        effective: which pixels really move the layer's centre unit.
        choice: the probe image, the channel, the cell and the pixel; see `settle`.
        live: whether it answers.
    """
    if maps is None or probes is None or not maps.maps.size:
        return nothing("unit", NO_UNIT)
    chosen = settle(choice or Choice(), maps, probes)
    rows, columns = units_of_cell(maps, chosen.cell or (0, 0))
    seen = None if fields is None else field_of_units(fields, rows, columns)
    shown = [
        _map(maps, fields, chosen, live),
        _image(maps, probes, chosen, seen, live),
        _patch(probes, chosen, fields, seen),
        _heat(maps, probes, chosen, fields, effective),
    ]
    facts = figures(_facts(maps, probes, fields, chosen, seen))
    return panel(
        "unit", facts, tiles(shown, "large"), _notes(maps, fields, effective, chosen, live)
    )


def _map(maps: FeatureMaps, fields: FieldIntervals | None, chosen: Choice, live: bool) -> str:
    """The channel's map with the chosen cell, and the units that see the pixel."""
    height, width = maps.maps.shape[2:]
    kept, cell = maps.channels.tolist().index(chosen.channel), chosen.cell or (0, 0)
    shapes = [spot(cell)]
    if chosen.pixel is not None and fields is not None:
        sees = units_that_see(fields, chosen.pixel)
        shapes[:0] = _runs(sees, (height / maps.grid[0], width / maps.grid[1]))
    alt = f"channel {chosen.channel} for probe image {chosen.probe + 1}"
    shot = picture(coloured(maps.maps[chosen.probe, kept]), alt, marks(height, width, *shapes))
    data = {
        "layer": maps.layer,
        "channel": chosen.channel,
        "probe": chosen.probe,
        "grid": f"{height},{width}",
        "row": cell[0],
        "col": cell[1],
    }
    return tile(
        button(shot, "unit", data, live, "map"), f"channel {chosen.channel}, {after(maps.epoch)}"
    )


def _runs(
    sees: tuple[NDArray[np.bool_], NDArray[np.bool_]], scale: tuple[float, float]
) -> list[str]:
    """Rectangles around the units that are marked along both axes, in cells."""
    spans: list[list[tuple[float, float]]] = []
    for marked, per_unit in zip(sees, scale, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]])))
        spans.append([(a * per_unit, b * per_unit - 1) for a, b in edges.reshape(-1, 2).tolist()])
    return [rectangle(rows, columns, "region") for rows in spans[0] for columns in spans[1]]


def _image(
    maps: FeatureMaps,
    probes: Probes,
    chosen: Choice,
    seen: tuple[Place, Place] | None,
    live: bool,
) -> str:
    image = probes.images[chosen.probe]
    height, width = image.shape[:2]
    shapes = [] if seen is None else [rectangle(*seen)]
    if chosen.pixel is not None:
        shapes.append(spot(chosen.pixel, "region"))
    name = probes.captions[chosen.probe] if chosen.probe < len(probes.captions) else ""
    shot = picture(
        image,
        f"probe image {chosen.probe + 1}, {name}, with the unit's receptive field",
        marks(height, width, *shapes),
    )
    data = {
        "layer": maps.layer,
        "channel": chosen.channel,
        "probe": chosen.probe,
        "grid": f"{height},{width}",
    }
    if chosen.pixel is not None:
        data |= {"row": chosen.pixel[0], "col": chosen.pixel[1]}
    return tile(button(shot, "pixel", data, live, "map"), "where it looks")


def _patch(
    probes: Probes, chosen: Choice, fields: FieldIntervals | None, seen: tuple[Place, Place] | None
) -> str:
    if seen is None:
        words = NO_FIELDS if fields is None else PADDING_ONLY
        return tile(f'<span class="shot none">{words}</span>', "what it sees")
    (top, bottom), (left, right) = seen
    patch = probes.images[chosen.probe][top : bottom + 1, left : right + 1]
    size = f"{bottom - top + 1} × {right - left + 1} pixels"
    return tile(picture(patch, f"the {size} that the unit sees"), "what it sees")


def _heat(
    maps: FeatureMaps,
    probes: Probes,
    chosen: Choice,
    fields: FieldIntervals | None,
    effective: EffectiveFieldMap | None,
) -> str:
    if effective is None or not effective.share.size or not np.isfinite(effective.share).all():
        return tile(f'<span class="shot none">{NO_EFFECTIVE}</span>', "what moves it")
    image = probes.images[chosen.probe]
    height, width = image.shape[:2]
    shapes: list[str] = []
    if fields is not None:
        at_row, at_column = effective.unit
        theirs = field_of_units(fields, (at_row, at_row), (at_column, at_column))
        shapes += [] if theirs is None else [rectangle(*theirs)]
    squares = (_square(effective.center, radius) for radius in effective.radius.values())
    shapes += [square for square in squares if square]
    alt = f"effective receptive field of the centre unit {effective.unit} of {maps.layer}"
    shot = picture(_heated(image, effective), alt, marks(height, width, *shapes))
    caption = "what really moves the <em>centre</em> unit"
    return tile(shot, caption)


def _heated(image: Bytes, effective: EffectiveFieldMap) -> Bytes:
    """The image, dim and grey, under the field in orange: its opacity is the square root."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    base = np.repeat(0.35 * grey.astype(np.float64)[..., None], 3, axis=2)
    weight = np.zeros(grey.shape)
    top, left = effective.corner
    part = weight[top : top + effective.share.shape[0], left : left + effective.share.shape[1]]
    part[:] = effective.share[: part.shape[0], : part.shape[1]]
    opacity = np.sqrt(weight / (float(weight.max()) or 1.0))[..., None]
    return np.round(base * (1 - opacity) + np.array(HEAT) * opacity).astype(np.uint8)


def _square(center: tuple[float, float], radius: float) -> str:
    if not math.isfinite(radius):
        return ""
    rows, columns = ((c + 0.5 - radius, c - 0.5 + radius) for c in center)
    return rectangle(rows, columns, "radius")


def _facts(
    maps: FeatureMaps,
    probes: Probes,
    fields: FieldIntervals | None,
    chosen: Choice,
    seen: tuple[Place, Place] | None,
) -> list[tuple[str, str]]:
    kept, cell = maps.channels.tolist().index(chosen.channel), chosen.cell or (0, 0)
    value = float(values(maps)[chosen.probe, kept, cell[0], cell[1]])
    rows, columns = units_of_cell(maps, cell)
    one = rows[0] == rows[1] and columns[0] == columns[1]
    place = f"{counted(*rows, 'row')}, {counted(*columns, 'column')}"
    facts = [
        (
            f"{'value' if one else 'mean value'}, channel {chosen.channel}",
            measured(value, half_level(maps, kept)),
        ),
        ("unit" if one else "units (their mean)", place),
    ]
    if seen is not None:
        (top, bottom), (left, right) = seen
        height, width = bottom - top + 1, right - left + 1
        facts.append(("sees (pixels)", f"{height} × {width}"))
        share = height * width / (probes.images.shape[1] * probes.images.shape[2])
        facts.append(("of the image", percent(share)))
    if chosen.pixel is not None and fields is not None:
        sees = units_that_see(fields, chosen.pixel)
        count, total = int(sees[0].sum() * sees[1].sum()), maps.grid[0] * maps.grid[1]
        name = f"units that see pixel {chosen.pixel[0]}, {chosen.pixel[1]}"
        facts.append((name, f"{count:,} of {total:,}"))
    return facts


def _notes(
    maps: FeatureMaps,
    fields: FieldIntervals | None,
    effective: EffectiveFieldMap | None,
    chosen: Choice,
    live: bool,
) -> str:
    said: list[str] = []
    rows, columns = units_of_cell(maps, chosen.cell or (0, 0))
    if rows[0] < rows[1] or columns[0] < columns[1]:
        n = (rows[1] - rows[0] + 1) * (columns[1] - columns[0] + 1)
        said.append(
            f"A cell of this map is the mean of {n} units; the field is that of all of them."
        )
    if fields is not None and all(size is not None for size in fields.size):
        whole = " × ".join(str(size) for size in fields.size)
        said.append(
            f"Before it is clipped to the image, a unit's receptive field is {whole} pixels."
        )
    if live:
        said.append("Click the map for another unit, the image for the units that see a pixel.")
    return note(" ".join(said)) + _effective_words(effective)


def _effective_words(effective: EffectiveFieldMap | None) -> str:
    if effective is None or not effective.share.size:
        return ""
    radii = ", ".join(f"{key} % within {r:.1f}" for key, r in effective.radius.items())
    row, column = effective.unit
    top = float(effective.share.max())
    words = (
        f"Share of each pixel in what moves the layer's centre unit (row {row}, column {column}), "
        "whichever unit is chosen, as a mean over the probe images; the opacity is the share's "
        f"square root. Distance from the field's centre, in pixels: {radii} (the thin squares)."
    )
    return legend("heat", ["0", f"{100 * top:.2g} %"], words)
