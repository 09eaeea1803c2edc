"""A unit: where on the image it looks, what it sees there, and which units see a pixel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from convlens.core.snapshots import Bytes, EffectiveFieldMap, FieldIntervals, Probes
from convlens.web.formatting import percent
from convlens.web.panels import selection
from convlens.web.panels.maps import allowance, unit_url
from convlens.web.panels.pictures import Mark, MarkedImage, box, picture, picture_of_levels, spot
from convlens.web.panels.selection import Place, Selection, caption_of

if TYPE_CHECKING:
    from convlens.web.pages import Page

NO_FIELDS = "The receptive fields of this layer were not recorded, or are not known."
NO_EFFECTIVE = "No effective receptive field of this layer was recorded."
PADDING_ONLY = "This unit sees nothing but padding."

HEAT = (240, 100, 20)


def unit(page: Page) -> dict[str, Any]:
    """The receptive field of the chosen unit on a probe image, and the patch in it."""
    module = selection.module_of(page)
    found, probes = selection.maps_of(page, module), selection.probes_of(page.run)
    if found is None or probes is None or not np.isfinite(found.low).any():
        return {"shots": []}
    if not page.live and allowance(page) < 8_000 + 3 * min(probes.images[0].size, 250_000):
        return {"shots": []}
    chosen = selection.select(found, page.view)
    fields = page.run.snapshot(FieldIntervals, module)
    effective = page.run.snapshot(EffectiveFieldMap, module, found.epoch)
    pixel = _pixel(page, probes)
    rows, columns = selection.units_of_cell(found, chosen.cell)
    seen = None if fields is None else selection.field_of_units(fields, rows, columns)
    return {
        "facts": _facts(chosen, probes, fields, pixel, seen),
        "shots": [
            _map(page, chosen, fields, pixel), _image(page, chosen, probes, pixel, seen),
            _patch(chosen, probes, fields, seen), _moves(chosen, probes, fields, effective),
        ],
        "notes": _notes(chosen, fields),
        "effective": _effective_words(effective),
    }  # fmt: skip


def _pixel(page: Page, probes: Probes) -> Place | None:
    row, column = page.view.pixel_row, page.view.pixel_col
    if row is None or column is None:
        return None
    return selection.within((row, column), (probes.images.shape[1], probes.images.shape[2]))


def _map(
    page: Page, chosen: Selection, fields: FieldIntervals | None, pixel: Place | None
) -> dict[str, Any]:
    """The channel's map with the chosen cell, and the units that see the pixel."""
    found = chosen.maps
    marks = [] if pixel is None or fields is None else _seeing(chosen, fields, pixel)
    alt = f"channel {chosen.channel} for probe image {chosen.probe + 1}"
    levels = found.maps[chosen.probe, chosen.kept]
    return {
        "shot": picture_of_levels(levels, alt, [*marks, spot(chosen.cell)]),
        "caption": f"channel {chosen.channel}, {selection.after(found.epoch)}",
        "to": unit_url(page, chosen), "grid": found.grid, "place": chosen.unit, "key": "unit-map",
        "label": f"Choose a unit of channel {chosen.channel}",
    }  # fmt: skip


def _seeing(chosen: Selection, fields: FieldIntervals, pixel: Place) -> list[Mark]:
    """Rectangles around the units that see a pixel, in cells."""
    found, spans = chosen.maps, list[list[tuple[float, float]]]()
    marked = selection.units_that_see(fields, pixel)
    for seen, cells, n in zip(marked, found.maps.shape[2:], found.grid, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], seen, [False]])))
        ends = edges.reshape(-1, 2).tolist()
        spans.append([(a * cells / n, b * cells / n - 1) for a, b in ends])
    return [box(rows, columns, "region") for rows in spans[0] for columns in spans[1]]


def _image(
    page: Page,
    chosen: Selection,
    probes: Probes,
    pixel: Place | None,
    seen: tuple[Place, Place] | None,
) -> dict[str, Any]:
    image = probes.images[chosen.probe]
    marks = [] if seen is None else [box(*seen)]
    marks += [] if pixel is None else [spot(pixel, "region")]
    caption = caption_of(probes, chosen.probe)
    alt = f"probe image {chosen.probe + 1}, {caption}, with the unit's receptive field"
    to = unit_url(page, chosen, row=chosen.unit[0], col=chosen.unit[1], pixel_row="ROW",
                  pixel_col="COL")  # fmt: skip
    return {
        "shot": picture(image, alt, marks), "caption": "where it looks", "to": to,
        "grid": image.shape[:2], "place": pixel, "key": "unit-image",
        "label": "Choose a pixel, to mark the units that see it",
    }  # fmt: skip


def _patch(
    chosen: Selection,
    probes: Probes,
    fields: FieldIntervals | None,
    seen: tuple[Place, Place] | None,
) -> dict[str, Any]:
    shot: MarkedImage | None = None
    if seen is not None:
        (top, bottom), (left, right) = seen
        patch = probes.images[chosen.probe][top : bottom + 1, left : right + 1]
        alt = f"the {bottom - top + 1} × {right - left + 1} pixels that the unit sees"
        shot = picture(patch, alt)
    words = NO_FIELDS if fields is None else PADDING_ONLY
    return {"shot": shot, "words": words, "caption": "what it sees", "to": ""}


def _moves(
    chosen: Selection,
    probes: Probes,
    fields: FieldIntervals | None,
    effective: EffectiveFieldMap | None,
) -> dict[str, Any]:
    """The image, dim, under the effective field of the centre unit."""
    caption = "what moves the centre unit"
    if effective is None or not np.isfinite(effective.share).all() or not effective.share.size:
        return {"shot": None, "words": NO_EFFECTIVE, "caption": caption, "to": ""}
    (row, column), marks = effective.unit, list[Mark]()
    if fields is not None:
        theirs = selection.field_of_units(fields, (row, row), (column, column))
        marks += [] if theirs is None else [box(*theirs)]
    for radius in effective.radius.values():
        if math.isfinite(radius):
            sides = ((c + 0.5 - radius, c - 0.5 + radius) for c in effective.center)
            marks.append(box(*sides, kind="radius"))
    alt = f"effective receptive field of the centre unit, row {row}, column {column}"
    shot = picture(_heated(probes.images[chosen.probe], effective), alt, marks)
    return {"shot": shot, "caption": caption, "to": ""}


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


def _facts(
    chosen: Selection,
    probes: Probes,
    fields: FieldIntervals | None,
    pixel: Place | None,
    seen: tuple[Place, Place] | None,
) -> list[tuple[str, str]]:
    rows, columns = selection.units_of_cell(chosen.maps, chosen.cell)
    one = rows[0] == rows[1] and columns[0] == columns[1]
    value = selection.measured(chosen.value, chosen.half_level)
    place = f"{_counted(*rows, 'row')}, {_counted(*columns, 'column')}"
    facts = [
        (f"{'value' if one else 'mean value'}, channel {chosen.channel}", value),
        ("unit" if one else "units (their mean)", place),
    ]
    if seen is not None:
        height, width = (last - first + 1 for first, last in seen)
        share = height * width / (probes.images.shape[1] * probes.images.shape[2])
        facts.append(("sees", f"{height} × {width} pixels, {percent(share)}"))
    if pixel is not None and fields is not None:
        by_row, by_column = selection.units_that_see(fields, pixel)
        count, total = int(by_row.sum() * by_column.sum()), math.prod(chosen.maps.grid)
        facts.append((f"units that see pixel {pixel[0]}, {pixel[1]}", f"{count:,} of {total:,}"))
    return facts


def _counted(first: int, last: int, one: str) -> str:
    return f"{one} {first}" if first == last else f"{one}s {first} to {last}"


def _notes(chosen: Selection, fields: FieldIntervals | None) -> str:
    said: list[str] = []
    if chosen.maps.maps.shape[2:] != chosen.maps.grid:
        said.append("A cell of this map is the mean of several units; the field is that of all.")
    if fields is not None and all(size is not None for size in fields.size):
        whole = " × ".join(map(str, fields.size))
        said.append(f"Before it is clipped to the image, a receptive field is {whole} pixels.")
    return " ".join(said)


def _effective_words(effective: EffectiveFieldMap | None) -> tuple[str, str] | None:
    """The largest share, and what the picture shows."""
    if effective is None or not effective.share.size:
        return None
    radii = ", ".join(f"{key} % within {r:.1f}" for key, r in effective.radius.items())
    row, column = effective.unit
    return f"{100 * float(effective.share.max()):.2g} %", (
        f"Each pixel's share in what moves the layer's centre unit (row {row}, column {column}), "
        "whichever unit is chosen, as a mean over the probe images. Distance from the field's "
        f"centre in pixels: {radii} (the thin squares)."
    )
