"""The sliding window: patch × kernel = products, whose sum and the bias are a unit's value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import Bytes, FeatureMaps, Kernels
from convlens.core.wording import plural
from convlens.web.formatting import number, short
from convlens.web.panels.convolution import Reals, Window, window_at
from convlens.web.panels.maps import allowance, unit_url
from convlens.web.panels.pictures import VIRIDIS, MarkedImage, box, map_picture, picture, spot
from convlens.web.panels.selection import (
    Selection,
    after,
    kept_at,
    measured,
    module_of,
    rough,
    select,
    within,
)

if TYPE_CHECKING:
    from convlens.web.pages import Page

MOST_NUMBERS = 5
"""Kernels of up to so many rows and columns are shown with numbers."""

MOST_CHANNELS = 3
"""Input channels whose products are shown: those with the largest sums."""

REPORT_BYTES = 60_000
"""A report with less room for a layer has no products."""

ARROWS = (("↑", -1, 0, "up"), ("←", 0, -1, "left"), ("→", 0, 1, "right"), ("↓", 1, 0, "down"))


def products(page: Page) -> dict[str, Any]:
    """The products under the layer's kernel at the chosen unit; nothing without all it needs."""
    module, probes = module_of(page), page.run.probes
    layer = page.view.layer or module
    kernels, found = kept_at(page, Kernels, layer), kept_at(page, FeatureMaps, layer)
    shown = kept_at(page, FeatureMaps, module)
    if kernels is None or probes is None or found is None or shown is None:
        return {"shown": False}
    if not np.isfinite(found.low).any() or allowance(page) < REPORT_BYTES:
        return {"shown": False}
    chosen = select(shown, page.view)  # in the map of its ReLU there is the same unit
    row, col = within(chosen.unit, found.grid)
    view = page.view.but(probe=chosen.probe, channel=chosen.channel, row=row, col=col)
    chosen = select(found, view)
    worked = window_at(page.run, kernels, chosen, probes)
    given = {"shown": True, "unit": chosen.unit, "channel": chosen.channel, "sentence": ""}
    if isinstance(worked, str):
        return {**given, "sentence": worked}
    sums = worked.products.sum(axis=(1, 2))
    largest = np.argsort(-np.abs(sums), kind="stable")[:MOST_CHANNELS]
    if not worked.source.name:
        largest = np.sort(largest)  # red, green, blue
    return {
        **given, "arrows": _arrows(page, chosen), "map": _map(page, chosen),
        "input": _input(worked, int(np.abs(sums).argmax()), kernels, probes.images[chosen.probe]),
        "terms": _terms(worked, kernels, sums, largest), "value": _exact(worked.value),
        "lines": _lines(worked, sums, largest), "compared": _compared(worked, kernels, chosen),
        "reading": _reading(worked, kernels),
    }  # fmt: skip


def _arrows(page: Page, chosen: Selection) -> list[tuple[str, str, str]]:
    """Sign, name and address of each; without an address at the edge."""
    made: list[tuple[str, str, str]] = []
    for sign, down, right, name in ARROWS:
        row, col = within((chosen.unit[0] + down, chosen.unit[1] + right), chosen.maps.grid)
        moves = (row, col) != chosen.unit
        made.append((sign, name, unit_url(page, chosen, row=row, col=col) if moves else ""))
    return made


def _map(page: Page, chosen: Selection) -> dict[str, Any]:
    words = f"channel {chosen.channel}, row {chosen.unit[0]}, column {chosen.unit[1]}"
    levels = chosen.maps.maps[chosen.probe, chosen.kept]
    return {
        "shot": map_picture(levels, words, [spot(chosen.cell)]), "caption": words,
        "to": unit_url(page, chosen), "grid": chosen.maps.grid, "place": chosen.unit,
        "key": "window-map", "label": "Move the window",
    }  # fmt: skip


def _input(worked: Window, largest: int, kernels: Kernels, image: Bytes) -> MarkedImage:
    """What the kernel lies on, with a margin as wide as the padding, in which it is hatched."""
    name = "the image"
    if worked.source.name:
        plane = worked.source.planes[largest]
        shares = (plane - plane.min()) / (np.ptp(plane) or 1.0)
        palette = np.frombuffer(VIRIDIS, np.uint8).reshape(256, 3)
        image = palette[np.round(255 * shares).astype(np.uint8)]
        name = f"channel {worked.source.first + largest} of {short(worked.source.name)}"
    (height, width), rows, columns = image.shape[:2], worked.rows, worked.columns
    ends = (-rows[0], -columns[0], rows[-1] - height + 1, columns[-1] - width + 1)
    edge = max(0, *kernels.padding, *map(int, ends))
    framed = np.zeros((height + 2 * edge, width + 2 * edge, 4), np.uint8)
    inner = framed[edge : edge + height, edge : edge + width]
    inner[..., :3], inner[..., 3] = image if image.ndim == 3 else image[..., None], 255
    down, across = ((int(line[0]) + edge, int(line[-1]) + edge) for line in (rows, columns))
    return picture(framed, f"the kernel on {name}", [box(down, across)])


def _terms(
    worked: Window, kernels: Kernels, sums: Reals, largest: NDArray[np.intp]
) -> list[tuple[str, str]]:
    """What is added up: the sums of the largest channels, of the others, the bias."""
    terms = [(_exact(float(sums[i])), _name(worked, i)) for i in largest.tolist()]
    others = len(sums) - len(largest)
    if others:
        rest = float(sums.sum() - sums[largest].sum())
        terms.append((_exact(rest), plural(others, "other channel")))
    return [*terms, (_exact(worked.bias), "bias")] if len(kernels.bias) else terms


def _name(worked: Window, i: int) -> str:
    if worked.source.name or len(worked.products) != 3:
        alone = len(worked.products) == 1
        return "sum of the products" if alone else f"input {worked.source.first + i}"
    return ("red", "green", "blue")[i]


def _lines(worked: Window, sums: Reals, largest: NDArray[np.intp]) -> list[dict[str, Any]]:
    """For each of the largest channels its three tables."""
    parts = [part[largest] for part in (worked.patch, worked.weight, worked.products)]
    reach = [float(np.abs(part).max(initial=0.0)) for part in parts]
    lines: list[dict[str, Any]] = []
    for at, i in enumerate(largest.tolist()):
        name, tables = _name(worked, i), list[dict[str, Any]]()
        for part, most, what in zip(parts, reach, ("input", "kernel", "products"), strict=True):
            outside = worked.padding & (what != "kernel")
            tables.append({"name": f"{what}, {name}", **_table(part[at], most, what, outside)})
        title = name if len(sums) > 1 else ""
        lines.append({"title": title, "tables": tables, "sum": _exact(float(sums[i]))})
    return lines


def _table(part: Reals, reach: float, what: str, outside: NDArray[np.bool_]) -> dict[str, Any]:
    """Numbers on their colours; of larger kernels the colours alone."""
    written = max(part.shape) <= MOST_NUMBERS
    digits = max(0, min(3, 2 - math.floor(math.log10(reach)))) if reach > 0 else 2
    rows = [
        [_cell(v, reach, digits if written else None, out) for v, out in zip(*line, strict=True)]
        for line in zip(part.tolist(), outside.tolist(), strict=True)
    ]
    caption = what if written else f"{what}, ± {rough(reach)}"
    return {"rows": rows, "caption": caption, "written": written}


def _cell(value: float, reach: float, digits: int | None, outside: bool) -> dict[str, Any]:
    share = round(abs(value) / reach, 2) if reach and math.isfinite(value) else 0.0
    text = "" if digits is None else f"{value:.{digits}f}"
    text = text.lstrip("-") if text and float(text) == 0 else text.replace("-", "−")
    kind = "outside" if outside else "plus" if value > 0 else "minus"
    return {"text": text, "kind": kind, "share": share,
            "title": "padding" if outside else number(value)}  # fmt: skip


def _exact(value: float) -> str:
    return f"{value:.5g}".replace("-", "−")


def _compared(worked: Window, kernels: Kernels, chosen: Selection) -> str:
    """What the recorded map says of the same unit."""
    maps = chosen.maps
    if kernels.epoch != maps.epoch:
        return f"The kernel is that of {after(kernels.epoch)}, the map of {after(maps.epoch)}."
    if maps.maps.shape[2:] != maps.grid:
        return "A cell of the map is the mean of several units: it is not compared."
    said = f"Recorded, in 256 levels: {measured(chosen.value, chosen.half)}"
    if worked.source.name:
        said += f"; the sum is known to ± {rough(worked.error)}, as its input is in levels too"
    off = number(abs(chosen.value - worked.value))
    return f"{said}. They {'agree' if worked.agrees(chosen) else f'differ by {off}'}."


def _reading(worked: Window, kernels: Kernels) -> str:
    what, source = "pixel", "those that the network gets, normalized"
    if worked.source.name:
        what, source = "unit", f"the recorded output of {short(worked.source.name)}"
    down, right = kernels.stride
    stride = plural(down, what) if down == right else f"{down} × {right} {what}s"
    wide = " × ".join(map(str, kernels.dilation))
    apart = f", its entries {wide} apart" if max(kernels.dilation) > 1 else ""
    return (
        f"Input values are {source}. The kernel moves by {stride}{apart}; hatched is padding, "
        "which counts as 0. Numbers are rounded for show, the sum is not."
    )
