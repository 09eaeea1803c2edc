"""A layer's feature maps: what each channel makes of a probe image, by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convlens.core.snapshots import BEFORE, Bytes, FeatureMaps, Kernels, Probes
from convlens.core.wording import plural
from convlens.web.formatting import number
from convlens.web.panels import selection
from convlens.web.panels.pictures import picture_of_levels, png, png_of_levels, spot
from convlens.web.panels.selection import Selection, after, caption_of, value_range
from convlens.web.run_data import is_own_loop

if TYPE_CHECKING:
    from convlens.web.pages import Page

OWN_LOOP = "In a training loop of your own, feature maps, kernels and fields are not recorded."
NO_PICTURES = (
    "No feature maps were recorded. Add cl.Pictures() to the callbacks of the Learner to record "
    "what each channel makes of a few images of the validation."
)
NO_MAPS = (
    "No feature maps of this layer were recorded: the Pictures callback keeps those of up to 64 "
    "layers whose output is (N, C, H, W)."
)
ALL_NAN = "Every recorded value of this layer is NaN: the network had diverged by then."

REPORT_BYTES = 2_400_000
"""About so much a report's pictures of all layers may take."""

SIDE = 24
"""Maps in a strip are drawn at least about so large, so that a gap between them is thin."""


def maps(page: Page) -> dict[str, Any]:
    """The maps of the chosen probe image; in a report those of several images and epochs."""
    found = selection.maps_of(page, selection.module_of(page))
    given: dict[str, Any] = {
        "track": track(page), "stages": selection.stages(page), "sentence": "", "maps": found,
    }  # fmt: skip
    if found is None:
        return {**given, "sentence": nothing_kept(page)}
    if not np.isfinite(found.low).any():
        return {**given, "sentence": ALL_NAN}
    shared = page.view.scale == "shared"
    low, high = map(number, selection.limits(found))
    given |= {
        "module": selection.module_of(page), "when": after(found.epoch), "words": _words(found),
        "shared": shared, "ends": (low, high) if shared else ("lowest", "highest"),
    }  # fmt: skip
    probes = selection.probes_of(page.run)
    if not page.live:
        return {**given, "sheets": _sheets(page, found, probes)}
    chosen = selection.select(found, page.view)
    given |= {"probes": _thumbnails(page, probes, chosen.probe), "columns": _columns(found)}
    return {**given, "tiles": _tiles(page, chosen, shared)}


def nothing_kept(page: Page) -> str:
    """Why there are no maps, and what to do where something can be done."""
    if is_own_loop(page.run):
        return OWN_LOOP
    kept = page.run.meta.get("pictures")
    if not isinstance(kept, dict):
        return NO_PICTURES
    notes = kept.get("notes")
    said = [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []
    return " ".join([NO_MAPS, *said[:3]])


def track(page: Page) -> dict[str, Any]:
    """The kept epochs as links, and those that the keys follow; empty with fewer than two."""
    layer = selection.layer_of(page)
    epochs = sorted(
        {*page.run.snapshot_epochs(FeatureMaps, selection.module_of(page))}
        | {*page.run.snapshot_epochs(Kernels, layer)}
    )
    if len(epochs) < 2:
        return {}
    wanted, newest = page.view.epoch, len(epochs) - 1
    at = newest
    if wanted is not None:
        at = max((i for i, epoch in enumerate(epochs) if epoch <= wanted), default=0)
    links = [page.url(epoch=None if i == newest else epoch) for i, epoch in enumerate(epochs)]
    names = ["start" if epoch <= BEFORE else str(epoch + 1) for epoch in epochs]
    stops = [
        {"name": name, "href": href, "title": after(epoch), "current": i == at}
        for i, (name, href, epoch) in enumerate(zip(names, links, epochs, strict=True))
    ]
    return {
        "stops": stops, "when": after(epochs[at]), "first": links[0], "newest": links[-1],
        "next": links[at + 1] if at < newest else "", "previous": links[at - 1] if at else "",
    }  # fmt: skip


def _thumbnails(page: Page, probes: Probes | None, chosen: int) -> list[dict[str, Any]]:
    if probes is None:
        return []
    return [
        {
            "src": png(image, 72), "caption": caption_of(probes, i), "chosen": i == chosen,
            "href": page.url(probe=i, row=None, col=None, pixel_row=None, pixel_col=None),
        }
        for i, image in enumerate(probes.images)
    ]  # fmt: skip


def _tiles(page: Page, chosen: Selection, shared: bool) -> list[dict[str, Any]]:
    found = chosen.maps
    numbers = selection.values(found)
    made: list[dict[str, Any]] = []
    for kept, levels in enumerate(selection.on_scale(found, shared)[chosen.probe]):
        low, high = float(found.low[kept]), float(found.high[kept])
        said = value_range(low, high)
        if found.maps.shape[2:] == (1, 1):
            said = number(float(numbers[chosen.probe, kept, 0, 0]))
        channel = int(found.channels[kept])
        marks = [spot(chosen.cell)] if kept == chosen.kept else []
        alt = f"channel {channel} for probe image {chosen.probe + 1}: {said}"
        made.append({
            "channel": channel, "values": said, "chosen": kept == chosen.kept,
            "shot": picture_of_levels(levels, alt, marks),
            "to": unit_url(page, chosen, channel=channel),
            "grid": found.grid, "unit": chosen.unit,
        })  # fmt: skip
    return made


def unit_url(page: Page, chosen: Selection, **changes: object) -> str:
    """The address of the unit in ROW and COL."""
    place: dict[str, object] = {"row": "ROW", "col": "COL", "pixel_row": None, "pixel_col": None}
    return page.url(**{"probe": chosen.probe, "channel": chosen.channel, **place, **changes})


def _columns(found: FeatureMaps) -> int:
    """Two rows of equal length; up to four channels are one row."""
    n = len(found.channels)
    return n if n <= 4 else -(-n // 2)


def _words(found: FeatureMaps) -> str:
    n, grid, shape = len(found.channels), found.grid, found.maps.shape[2:]
    of = f" of {found.n_channels:,}" if n < found.n_channels else ""
    said = f"{plural(n, 'channel')}{of}, counted from 0"
    if grid == (1, 1):
        return f"{said}, of a single unit each."
    said += f"; {grid[0]} × {grid[1]} units each"
    if shape == grid:
        return f"{said}."
    cell = " × ".join(f"{math.ceil(n / cells)}" for n, cells in zip(grid, shape, strict=True))
    return f"{said}, shown as {shape[0]} × {shape[1]} cells: the means of up to {cell} units."


def allowance(page: Page) -> int:
    """Bytes that the pictures of one layer of a report may take."""
    kept = {*page.run.snapshot_layers(FeatureMaps), *page.run.snapshot_layers(Kernels)}
    return REPORT_BYTES // max(sum(name in kept for name in page.run.names), 1)


def _sheets(page: Page, newest: FeatureMaps, probes: Probes | None) -> list[dict[str, Any]]:
    """Rows of strips: all probe images at the newest epoch, and the first one through the epochs.

    As many as the layer's allowance has room for.
    """
    strip = 700 + newest.maps[0].size * 4 // 3
    if probes is not None:
        strip += min(probes.images[0].size, 3 * 32 * 32) * 4 // 3
    room = allowance(page) // 2 // strip
    n_probes = min(len(newest.maps), max(room * 2 // 3, 1))
    alike = [(caption_of(probes, i), newest, i) for i in range(n_probes)]
    sheets = [_sheet("probe", "Feature maps of the probe images", alike, probes)]
    module = selection.module_of(page)
    epochs = spread(page.run.snapshot_epochs(FeatureMaps, module), room - n_probes)
    if len(epochs) > 1:
        kept = [page.run.snapshot(FeatureMaps, module, epoch) for epoch in epochs]
        rows = [(after(one.epoch).removeprefix("after "), one, 0) for one in kept if one]
        sheets.append(_sheet("epoch", "The first probe image through the epochs", rows, None))
    return sheets


def _sheet(
    corner: str, title: str, rows: Sequence[tuple[str, FeatureMaps, int]], probes: Probes | None
) -> dict[str, Any]:
    newest = rows[-1][1]
    channels = newest.channels.tolist()
    strips = [
        {
            "name": name, "alt": f"{name}: channels {', '.join(map(str, channels))}",
            "image": "" if probes is None else png(probes.images[probe], 32),
            "src": png_of_levels(_strip(found.maps[probe]), transparency=0),
        }
        for name, found, probe in rows
    ]  # fmt: skip
    ends = [value_range(float(a), float(b)) for a, b in zip(newest.low, newest.high, strict=True)]
    head = [*zip(channels, ends if corner == "probe" else [""] * len(ends), strict=True)]
    return {"corner": corner, "title": title, "rows": strips, "head": head}


def _strip(levels: Bytes) -> Bytes:
    """(C', h, w) side by side, 0 in the gaps between them."""
    n, height, width = levels.shape
    scale = max(1, SIDE // max(height, width))
    large = np.maximum(levels, 1).repeat(scale, axis=1).repeat(scale, axis=2)
    wide, gap = width * scale, max(1, round(width * scale / 14))
    strip = np.zeros((height * scale, n * (wide + gap) - gap), np.uint8)
    for i, one in enumerate(large):
        strip[:, i * (wide + gap) : i * (wide + gap) + wide] = one
    return strip


def spread(items: Sequence[int], n: int) -> list[int]:
    """At most ``n`` of them, the first and the last among them, equally far apart."""
    if len(items) <= n:
        return list(items)
    if n < 2:
        return list(items[len(items) - max(n, 0) :])
    return [items[round(at)] for at in np.linspace(0, len(items) - 1, n).tolist()]
