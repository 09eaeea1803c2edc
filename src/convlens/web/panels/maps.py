"""A layer's feature maps: what each channel makes of a probe image, by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from convlens.core.snapshots import (
    BEFORE,
    Bytes,
    ClassActivationMaps,
    FeatureMaps,
    Kernels,
    Probes,
)
from convlens.core.wording import plural
from convlens.web.formatting import number
from convlens.web.panels import selection
from convlens.web.panels.images import explanation
from convlens.web.panels.pictures import MarkedImage, map_picture, map_png, png, spot
from convlens.web.panels.selection import Selection
from convlens.web.run_data import as_dict, as_list, is_own_loop

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
"""About so much the pictures of all layers of a report may take."""

SIDE = 24
"""Maps in a strip are drawn at least about so large, so that a gap between them is thin."""


def maps(page: Page) -> dict[str, Any]:
    """The maps of the chosen probe image; in a report those of several images and epochs."""
    module = selection.module_of(page)
    found = selection.kept_at(page, FeatureMaps, module)
    given: dict[str, Any] = {
        "track": _track(page, module),
        "maps": found,
        "sentence": "",
        "cams": None,
    }
    if found is None:
        return {**given, "sentence": _nothing(page)}
    if not np.isfinite(found.low).any():
        return {**given, "sentence": ALL_NAN, "stages": selection.stages(page)}
    shared, probes = page.view.scale == "shared" and page.live, page.run.probes
    low, high = float(np.nanmin(found.low)), float(np.nanmax(found.high))
    given |= {"stages": selection.stages(page), "words": _words(found), "shared": shared}
    given["ends"] = (number(low), number(high)) if shared else ("lowest", "highest")
    if not page.live:
        return {**given, "sheets": _sheets(page, found, probes)}
    chosen, levels = selection.select(found, page.view), found.maps
    if shared:
        shares = np.nan_to_num((selection.values(found) - low) / ((high - low) or 1.0))
        levels = np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8)
    images = () if probes is None else probes.images
    return {
        **given,
        "cams": _cams(page, found.epoch, len(images)),
        "probe": chosen.probe,
        "probes": [(png(x, 72), selection.caption_of(probes, i)) for i, x in enumerate(images)],
        "tiles": [_tile(page, chosen, k, one) for k, one in enumerate(levels[chosen.probe])],
    }


def _cams(page: Page, epoch: int, n_probes: int) -> dict[str, str] | None:
    """Grad-CAM of the probe images after this epoch, if it was kept."""
    cams = page.run.snapshot_of(ClassActivationMaps, epoch)
    if cams is None or len(cams.probe_maps) != n_probes or not n_probes:
        return None
    return explanation(cams, cams.probe_maps, cams.probe_correlation)


def _nothing(page: Page) -> str:
    """Why there are no maps, and what to do where something can be done."""
    if is_own_loop(page.run):
        return OWN_LOOP
    kept = page.run.meta.get("pictures")
    if not isinstance(kept, dict):
        return NO_PICTURES
    notes = [note for note in as_list(as_dict(kept).get("notes")) if isinstance(note, str)]
    return " ".join([NO_MAPS, *notes[:3]])


def _track(page: Page, module: str) -> dict[str, Any]:
    """The kept epochs as links, and the place of the chosen one; empty with fewer than two."""
    kinds = ((FeatureMaps, module), (Kernels, page.view.layer or module))
    epochs = sorted({epoch for kind in kinds for epoch in page.run.snapshot_epochs(*kind)})
    if len(epochs) < 2:
        return {}
    wanted, last = page.view.epoch, len(epochs) - 1
    at = max((i for i, e in enumerate(epochs) if wanted is None or e <= wanted), default=0)
    links = [page.url(epoch=None if i == last else epoch) for i, epoch in enumerate(epochs)]
    names = ["start" if epoch <= BEFORE else str(epoch + 1) for epoch in epochs]
    stops = zip(names, links, map(selection.after, epochs), strict=True)
    return {"stops": [*stops], "at": at}


def _tile(page: Page, chosen: Selection, kept: int, levels: Bytes) -> dict[str, Any]:
    found, channel = chosen.maps, int(chosen.maps.channels[kept])
    said = selection.value_range(float(found.low[kept]), float(found.high[kept]))
    if found.maps.shape[2:] == (1, 1):
        said = number(float(selection.values(found)[chosen.probe, kept, 0, 0]))
    alt = f"channel {channel} for probe image {chosen.probe + 1}: {said}"
    marks = [spot(chosen.cell)] if kept == chosen.kept else []
    tile = replace(chosen, kept=kept)
    return {
        **unit_map(page, tile, f"map-{channel}", map_picture(levels, alt, marks)),
        "channel": channel, "range": said, "chosen": kept == chosen.kept,
    }  # fmt: skip


def unit_map(
    page: Page, chosen: Selection, key: str, shot: MarkedImage, label: str = "Choose a unit"
) -> dict[str, Any]:
    """A channel's map, of whose units one can be chosen; for the macro ``grid``."""
    return {
        "shot": shot, "to": unit_url(page, chosen), "grid": chosen.maps.grid, "place": chosen.unit,
        "key": key, "label": label,
    }  # fmt: skip


def unit_url(page: Page, chosen: Selection, **changes: object) -> str:
    """The address of the unit in ROW and COL, which ``site.js`` replaces."""
    place: dict[str, object] = {"row": "ROW", "col": "COL", "pixel_row": None, "pixel_col": None}
    return page.url(**{"probe": chosen.probe, "channel": chosen.channel, **place, **changes})


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


# ---- in a report ----


def allowance(page: Page) -> int:
    """Bytes that the pictures of one layer of a report may take; of a page, any number."""
    kept = {*page.run.snapshot_layers(FeatureMaps), *page.run.snapshot_layers(Kernels)}
    n = sum(name in kept for name in page.run.names)
    return 1 << 30 if page.live else REPORT_BYTES // max(n, 1)


def _sheets(page: Page, newest: FeatureMaps, probes: Probes | None) -> list[dict[str, Any]]:
    """Strips of all probe images at the newest epoch, and of the first through the epochs.

    As many as the layer's allowance has room for.
    """
    pixels = 0 if probes is None else min(probes.images[0].size, 3 * 32 * 32)
    room = allowance(page) // 2 // (700 + (newest.maps[0].size + pixels) * 4 // 3)
    n_probes = min(len(newest.maps), max(room * 2 // 3, 1))
    rows = [(selection.caption_of(probes, i), newest, i) for i in range(n_probes)]
    sheets = [_sheet("probe", "Feature maps of the probe images", rows, probes)]
    epochs = spread(page.run.snapshot_epochs(FeatureMaps, newest.layer), room - n_probes)
    if len(epochs) > 1:
        kept = [page.run.snapshot(FeatureMaps, newest.layer, epoch) for epoch in epochs]
        rows = [(selection.after(one.epoch).removeprefix("after "), one, 0) for one in kept if one]
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
            "src": map_png(_strip(found.maps[probe]), transparency=0),
        }
        for name, found, probe in rows
    ]  # fmt: skip
    ends = [selection.value_range(*pair) for pair in zip(newest.low.tolist(), newest.high.tolist())]  # noqa: B905
    head = [(c, end if corner == "probe" else "") for c, end in zip(channels, ends, strict=True)]
    return {"corner": corner, "title": title, "rows": strips, "head": head}


def _strip(levels: Bytes) -> Bytes:
    """(C', h, w) side by side, 0 in the gaps between them."""
    n, height, width = levels.shape
    scale = max(1, SIDE // max(height, width))
    large = np.maximum(levels, 1).repeat(scale, axis=1).repeat(scale, axis=2)
    gap = max(1, round(width * scale / 14))
    padded = np.pad(large, ((0, 0), (0, 0), (0, gap)))
    return padded.transpose(1, 0, 2).reshape(height * scale, -1)[:, : n * padded.shape[2] - gap]


def spread(items: Sequence[int], n: int) -> list[int]:
    """At most ``n`` of them, the first and the last among them, equally far apart."""
    if len(items) <= n:
        return list(items)
    return [items[round(at)] for at in np.linspace(0, len(items) - 1, n).tolist()] if n > 1 else []
