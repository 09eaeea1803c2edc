"""The sliding window: patch × kernel = products, whose sum and the bias are a unit's value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import Kernels, Probes
from convlens.core.wording import plural
from convlens.web.formatting import number, short
from convlens.web.panels import selection
from convlens.web.panels.convolution import Reals, Window, window_at
from convlens.web.panels.maps import allowance, unit_url
from convlens.web.panels.pictures import VIRIDIS, MarkedImage, box, picture, picture_of_levels, spot
from convlens.web.panels.selection import Selection, after, measured

if TYPE_CHECKING:
    from convlens.web.pages import Page

MOST_NUMBERS = 5
"""Kernels of up to so many rows and columns are shown with numbers."""

MOST_CHANNELS = 3
"""Input channels whose products are shown: those with the largest sums."""

PLANES = ("red", "green", "blue")

ARROWS = (("↑", -1, 0, "up"), ("←", 0, -1, "left"), ("→", 0, 1, "right"), ("↓", 1, 0, "down"))


@dataclass(frozen=True)
class Cell:
    """One number of a table: its text, class, opacity and exact value."""

    text: str
    kind: str
    share: float
    title: str


@dataclass(frozen=True)
class Table:
    """A table of numbers on their colours; of larger kernels the colours alone."""

    name: str
    caption: str
    rows: list[list[Cell]]


def products(page: Page) -> dict[str, Any]:
    """The products under the layer's kernel at the chosen unit; nothing without all it needs."""
    kernels, probes = selection.kernels_of(page), selection.probes_of(page.run)
    found = selection.maps_of(page, selection.layer_of(page))
    shown = selection.maps_of(page, selection.module_of(page))
    if kernels is None or probes is None or found is None or shown is None:
        return {"shown": False}
    if not np.isfinite(found.low).any() or (not page.live and allowance(page) < 60_000):
        return {"shown": False}
    chosen = selection.select(shown, page.view)  # the map of a ReLU leads to the same unit
    row, column = selection.within(chosen.unit, found.grid)
    chosen = selection.select(
        found, page.view.but(probe=chosen.probe, channel=chosen.channel, row=row, col=column)
    )
    worked = window_at(page.run, kernels, chosen, probes)
    given = {"shown": True, "unit": chosen.unit, "channel": chosen.channel}
    if isinstance(worked, str):
        return {**given, "sentence": worked}
    largest = np.argsort(-np.abs(worked.sums), kind="stable")[:MOST_CHANNELS]
    if worked.source.name == "":
        largest = np.sort(largest)
    return {
        **given, "sentence": "", "arrows": _arrows(page, chosen),
        "input": _input(worked, kernels, probes, chosen), "map": _map(page, chosen),
        "terms": _terms(worked, kernels, largest), "value": _exact(worked.value),
        "lines": _lines(worked, largest), "compared": _compared(worked, kernels, chosen),
        "reading": _reading(worked, kernels),
    }  # fmt: skip


def _arrows(page: Page, chosen: Selection) -> list[dict[str, str]]:
    made: list[dict[str, str]] = []
    for sign, down, right, name in ARROWS:
        to = selection.within((chosen.unit[0] + down, chosen.unit[1] + right), chosen.maps.grid)
        href = unit_url(page, chosen, row=to[0], col=to[1])
        made.append({"sign": sign, "name": name, "href": href if to != chosen.unit else ""})
    return made


def _map(page: Page, chosen: Selection) -> dict[str, Any]:
    row, column = chosen.unit
    words = f"channel {chosen.channel}, row {row}, column {column}"
    levels = chosen.maps.maps[chosen.probe, chosen.kept]
    return {
        "shot": picture_of_levels(levels, words, [spot(chosen.cell)]), "caption": words,
        "to": unit_url(page, chosen), "grid": chosen.maps.grid, "place": chosen.unit,
        "key": "window-map", "label": f"Move the window over channel {chosen.channel}",
    }  # fmt: skip


def _input(
    worked: Window, kernels: Kernels, probes: Probes, chosen: Selection
) -> tuple[MarkedImage, str]:
    """What the kernel lies on, with a margin as wide as the padding, in which it is hatched."""
    name = short(worked.source.name)
    if worked.source.name:
        largest = int(np.abs(worked.sums).argmax())
        plane = worked.source.planes[largest]
        low, high = float(plane.min()), float(plane.max())
        levels = np.round(255 * (plane - low) / ((high - low) or 1.0)).astype(np.uint8)
        image = np.frombuffer(VIRIDIS, np.uint8).reshape(256, 3)[levels]
        words = f"channel {worked.source.first + largest} of {name} with the kernel's place"
        caption = f"the kernel on channel {worked.source.first + largest} of {name}"
    else:
        image = probes.images[chosen.probe]
        words = f"probe image {chosen.probe + 1} with the kernel's place"
        caption = "the kernel on the image"
    height, width = image.shape[:2]
    rows, columns = (
        (at, at + dilation * (n - 1))
        for at, dilation, n in zip(
            worked.corner, kernels.dilation, worked.weight.shape[1:], strict=True
        )
    )
    edge = max(
        0, *kernels.padding, -rows[0], -columns[0], rows[1] - height + 1, columns[1] - width + 1
    )
    framed = np.zeros((height + 2 * edge, width + 2 * edge, 4), np.uint8)
    inner = framed[edge : edge + height, edge : edge + width]
    inner[..., :3] = image if image.ndim == 3 else image[..., None]
    inner[..., 3] = 255
    mark = box((rows[0] + edge, rows[1] + edge), (columns[0] + edge, columns[1] + edge))
    return picture(framed, words, [mark]), caption


def _terms(worked: Window, kernels: Kernels, largest: NDArray[np.intp]) -> list[tuple[str, str]]:
    """What is added up: the sums of the largest channels, of the others, the bias."""
    terms = [(_exact(float(worked.sums[i])), _name(worked, i)) for i in largest.tolist()]
    if len(worked.sums) == 1:
        terms = [(terms[0][0], "sum of the products")]
    others = len(worked.sums) - len(terms)
    if others:
        rest = float(worked.sums.sum() - worked.sums[largest].sum())
        terms.append((_exact(rest), f"{plural(others, 'other channel')}"))
    if len(kernels.bias):
        terms.append((_exact(worked.bias), "bias"))
    return terms


def _name(worked: Window, i: int) -> str:
    if not worked.source.name and len(worked.sums) == 3 and worked.source.first == 0:
        return PLANES[i]
    return f"input {worked.source.first + i}"


def _lines(worked: Window, largest: NDArray[np.intp]) -> list[dict[str, Any]]:
    """For each of the largest channels its three tables."""
    shown = [part[largest] for part in (worked.patch, worked.weight, worked.products)]
    reach = [float(np.abs(part).max(initial=0.0)) for part in shown]
    lines: list[dict[str, Any]] = []
    for at, i in enumerate(largest.tolist()):
        name, tables = _name(worked, i), list[Table]()
        for part, most, caption in zip(shown, reach, ("input", "kernel", "products"), strict=True):
            padding = None if caption == "kernel" else worked.padding
            tables.append(_table(part[at], most, caption, name, padding))
        title = name if len(worked.sums) > 1 else ""
        lines.append({"title": title, "tables": tables, "sum": _exact(float(worked.sums[i]))})
    return lines


def _table(part: Reals, reach: float, caption: str, name: str, padding: Any) -> Table:  # noqa: ANN401
    written = max(part.shape) <= MOST_NUMBERS
    digits = max(0, min(3, 2 - math.floor(math.log10(reach)))) if reach > 0 else 2
    rows = [
        [
            _cell(value, reach, digits if written else None,
                  padding is not None and bool(padding[r, c]))
            for c, value in enumerate(line)
        ]
        for r, line in enumerate(part.tolist())
    ]  # fmt: skip
    said = caption if written else f"{caption}, ± {number(float(f'{reach:.2g}'))}"
    return Table(f"{caption}, {name}", said, rows)


def _cell(value: float, reach: float, digits: int | None, is_padding: bool) -> Cell:
    if is_padding:
        return Cell("" if digits is None else "0", "outside", 0.0, "padding")
    share = min(abs(value) / reach, 1.0) if reach and math.isfinite(value) else 0.0
    text = "" if digits is None else f"{value:.{digits}f}"
    if text and float(text) == 0:
        text = text.lstrip("-")
    kind = "plus" if value > 0 else "minus"
    return Cell(text.replace("-", "−"), kind, round(share, 2), number(value))


def _exact(value: float) -> str:
    return f"{value:.5g}".replace("-", "−")


def _compared(worked: Window, kernels: Kernels, chosen: Selection) -> str:
    """What the recorded map says of the same unit."""
    maps = chosen.maps
    if kernels.epoch != maps.epoch:
        return (
            f"The kernel is that of {after(kernels.epoch)}, the map that of {after(maps.epoch)}: "
            "they are not compared."
        )
    if maps.maps.shape[2:] != maps.grid:
        return "A cell of the map is the mean of several units: it is not compared."
    off = abs(chosen.value - worked.value)
    agree = off <= 1.001 * chosen.half_level + worked.error
    said = f"Recorded, in 256 levels: {measured(chosen.value, chosen.half_level)}"
    if worked.source.name:
        said += f"; the sum is known to ± {number(float(f'{worked.error:.2g}'))}, as its input is"
    return f"{said}. They agree." if agree else f"{said}. They differ by {number(off)}."


def _reading(worked: Window, kernels: Kernels) -> str:
    rows, columns = kernels.stride
    what = "pixel" if not worked.source.name else "unit"
    stride = plural(rows, what) if rows == columns else f"{rows} × {columns} {what}s"
    wide = " × ".join(map(str, kernels.dilation))
    spread = f", its entries {wide} apart" if max(kernels.dilation) > 1 else ""
    source = "those that the network gets, normalized"
    if worked.source.name:
        source = f"the recorded output of {worked.source.name}, which gives these sums"
    return (
        f"Input values are {source}. The kernel moves by {stride}{spread}; hatched is padding, "
        "which counts as 0. Numbers are rounded for show, the sum is not."
    )
