"""A unit: where on the image it looks, what it sees there, and which units see a pixel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from convlens.core.snapshots import Bytes, EffectiveFieldMap, FeatureMaps, FieldIntervals, Probes
from convlens.web.formatting import percent
from convlens.web.panels.maps import allowance, unit_url
from convlens.web.panels.pictures import Mark, box, map_picture, picture, spot
from convlens.web.panels.selection import (
    Place,
    Selection,
    after,
    caption_of,
    field_of_units,
    kept_at,
    measured,
    module_of,
    select,
    units_that_see,
    within,
)

if TYPE_CHECKING:
    from convlens.web.pages import Page

NO_FIELDS = "The receptive fields of this layer were not recorded, or are not known."
NO_EFFECTIVE = "No effective receptive field of this layer was recorded."
PADDING_ONLY = "This unit sees nothing but padding."

HEAT = (240, 100, 20)

Fields = FieldIntervals | None
Seen = tuple[Place, Place] | None
"""First and last row of pixels, and of columns."""


def unit(page: Page) -> dict[str, Any]:
    """The receptive field of the chosen unit on a probe image, and the patch in it."""
    module = module_of(page)
    found, probes = kept_at(page, FeatureMaps, module), page.run.probes
    if found is None or probes is None or not np.isfinite(found.low).any():
        return {"shots": []}
    if allowance(page) < 8_000 + 3 * min(probes.images[0].size, 250_000):
        return {"shots": []}
    chosen, view = select(found, page.view), page.view
    fields = page.run.snapshot(FieldIntervals, module)
    effective = page.run.snapshot(EffectiveFieldMap, module, found.epoch)
    pixel = None
    if view.pixel_row is not None and view.pixel_col is not None:
        height, width = probes.images.shape[1:3]
        pixel = within((view.pixel_row, view.pixel_col), (height, width))
    seen = None if fields is None else field_of_units(fields, *chosen.units)
    shots = [
        _map(page, chosen, fields, pixel), _image(page, chosen, probes, pixel, seen),
        _patch(chosen, probes, fields, seen), _moves(chosen, probes, fields, effective),
    ]  # fmt: skip
    facts, notes = _facts(chosen, probes, fields, pixel, seen), _notes(chosen, fields)
    return {"shots": shots, "facts": facts, "notes": notes, "effective": _share(effective)}


def _map(page: Page, chosen: Selection, fields: Fields, pixel: Place | None) -> dict[str, Any]:
    """The channel's map with the chosen cell, and the units that see the pixel."""
    found = chosen.maps
    marks = [] if pixel is None or fields is None else _seeing(found, fields, pixel)
    alt = f"channel {chosen.channel} for probe image {chosen.probe + 1}"
    levels = found.maps[chosen.probe, chosen.kept]
    return {
        "shot": map_picture(levels, alt, [*marks, spot(chosen.cell)]),
        "caption": f"channel {chosen.channel}, {after(found.epoch)}",
        "to": unit_url(page, chosen), "grid": found.grid, "place": chosen.unit, "key": "unit-map",
        "label": "Choose a unit",
    }  # fmt: skip


def _seeing(found: FeatureMaps, fields: FieldIntervals, pixel: Place) -> list[Mark]:
    """Rectangles around the units that see a pixel, in cells."""
    spans: list[list[tuple[float, float]]] = []
    marked = units_that_see(fields, pixel)
    for seen, cells, n in zip(marked, found.maps.shape[2:], found.grid, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], seen, [False]])))
        spans.append([(a * cells / n, b * cells / n - 1) for a, b in edges.reshape(-1, 2).tolist()])
    return [box(rows, columns, "region") for rows in spans[0] for columns in spans[1]]


def _image(
    page: Page, chosen: Selection, probes: Probes, pixel: Place | None, seen: Seen
) -> dict[str, Any]:
    image, (row, column) = probes.images[chosen.probe], chosen.unit
    marks = [] if seen is None else [box(*seen)]
    marks += [] if pixel is None else [spot(pixel, "region")]
    name = f"probe image {chosen.probe + 1}, {caption_of(probes, chosen.probe)}"
    to = unit_url(page, chosen, row=row, col=column, pixel_row="ROW", pixel_col="COL")
    return {
        "shot": picture(image, f"{name}, with the unit's receptive field", marks), "to": to,
        "caption": "where it looks", "grid": image.shape[:2], "place": pixel, "key": "unit-image",
        "label": "Choose a pixel, to mark the units that see it",
    }  # fmt: skip


def _patch(chosen: Selection, probes: Probes, fields: Fields, seen: Seen) -> dict[str, Any]:
    given: dict[str, Any] = {"shot": None, "to": "", "caption": "what it sees"}
    if seen is None:
        return {**given, "words": NO_FIELDS if fields is None else PADDING_ONLY}
    (top, bottom), (left, right) = seen
    patch = probes.images[chosen.probe][top : bottom + 1, left : right + 1]
    alt = f"the {bottom - top + 1} × {right - left + 1} pixels that the unit sees"
    return {**given, "shot": picture(patch, alt)}


def _moves(
    chosen: Selection, probes: Probes, fields: Fields, effective: EffectiveFieldMap | None
) -> dict[str, Any]:
    """The image, dim, under the effective field of the centre unit."""
    given: dict[str, Any] = {"shot": None, "to": "", "caption": "what moves the centre unit"}
    if effective is None or not effective.share.size or not np.isfinite(effective.share).all():
        return {**given, "words": NO_EFFECTIVE}
    (row, column), marks = effective.unit, list[Mark]()
    if fields is not None:
        theirs = field_of_units(fields, (row, row), (column, column))
        marks += [] if theirs is None else [box(*theirs)]
    for radius in filter(math.isfinite, effective.radius.values()):
        sides = ((c + 0.5 - radius, c - 0.5 + radius) for c in effective.center)
        marks.append(box(*sides, kind="radius"))
    alt = f"effective receptive field of the centre unit, row {row}, column {column}"
    shown = _heated(probes.images[chosen.probe], effective)
    return {**given, "shot": picture(shown, alt, marks)}


def _heated(image: Bytes, effective: EffectiveFieldMap) -> Bytes:
    """The image, dim and grey, under the field in orange: its opacity is the square root."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    weight = np.zeros(grey.shape)
    top, left = effective.corner
    part = weight[top : top + effective.share.shape[0], left : left + effective.share.shape[1]]
    part[:] = effective.share[: part.shape[0], : part.shape[1]]
    opacity = np.sqrt(weight / (float(weight.max()) or 1.0))[..., None]
    dim = 0.35 * grey.astype(np.float64)[..., None]
    return np.round(dim * (1 - opacity) + np.array(HEAT) * opacity).astype(np.uint8)


def _facts(
    chosen: Selection, probes: Probes, fields: Fields, pixel: Place | None, seen: Seen
) -> list[tuple[str, str]]:
    rows, columns = chosen.units
    one = rows[0] == rows[1] and columns[0] == columns[1]
    mean, name = ("value", "unit") if one else ("mean value", "units (their mean)")
    facts = [
        (f"{mean}, channel {chosen.channel}", measured(chosen.value, chosen.half)),
        (name, f"{_counted(*rows, 'row')}, {_counted(*columns, 'column')}"),
    ]
    if seen is not None:
        height, width = (last - first + 1 for first, last in seen)
        share = percent(height * width / math.prod(probes.images.shape[1:3]))
        facts.append(("sees", f"{height} × {width} pixels, {share}"))
    if pixel is not None and fields is not None:
        count = math.prod(int(seeing.sum()) for seeing in units_that_see(fields, pixel))
        total = math.prod(chosen.maps.grid)
        facts.append((f"units that see pixel {pixel[0]}, {pixel[1]}", f"{count:,} of {total:,}"))
    return facts


def _counted(first: int, last: int, one: str) -> str:
    return f"{one} {first}" if first == last else f"{one}s {first} to {last}"


def _notes(chosen: Selection, fields: Fields) -> str:
    said: list[str] = []
    if chosen.maps.maps.shape[2:] != chosen.maps.grid:
        said.append("A cell of this map is the mean of several units; the field is that of all.")
    if fields is not None and all(size is not None for size in fields.size):
        whole = " × ".join(map(str, fields.size))
        said.append(f"Before it is clipped to the image, a receptive field is {whole} pixels.")
    return " ".join(said)


def _share(effective: EffectiveFieldMap | None) -> tuple[str, str] | None:
    """The largest share of a pixel, and what the picture of them shows."""
    if effective is None or not effective.share.size:
        return None
    radii = ", ".join(f"{key} % within {r:.1f}" for key, r in effective.radius.items())
    row, column = effective.unit
    return f"{100 * float(effective.share.max()):.2g} %", (
        f"Each pixel's share in what moves the layer's centre unit (row {row}, column {column}), "
        "whichever unit is chosen, as a mean over the probe images. Distance from the field's "
        f"centre in pixels: {radii} (the thin squares)."
    )
