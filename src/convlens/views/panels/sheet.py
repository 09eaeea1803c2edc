"""All of a layer's maps at a glance, without a click: rows of strips, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convlens.core.snapshots import Bytes, FeatureMaps, Probes
from convlens.views.markup import text
from convlens.views.panels.choice import on_scale
from convlens.views.panels.elements import caption_of, png_of_levels, spread, thumbnail

SIDE = 24
"""Maps are drawn at least about so large, so that a gap between them is thin."""

SMALL = 48
"""Probe images are this large at most: every layer has them again."""

Row = tuple[str, FeatureMaps, int]
"""A name, maps, and which of their probe images."""


def rows_of(maps: FeatureMaps, probes: Probes | None) -> list[Row]:
    """A row for each probe image."""
    return [(caption_of(probes, i), maps, i) for i in range(len(maps.maps))]


def strips(rows: Sequence[Row], shared: bool, probes: Probes | None = None) -> str:
    """A table of one picture in each row, the channels' numbers above.

    Args:
        rows: all of the same layer.
        shared: one scale for all channels instead of one each.
        probes: to show each row's probe image at its side.
    """
    newest = rows[-1][1]
    alike = all(maps is newest for _, maps, _ in rows)
    corner = "probe" if alike else "epoch"
    image = "" if probes is None else "<td></td>"
    head = "".join(_head(newest, k, alike and not shared) for k in range(len(newest.channels)))
    numbers = f'<td><div class="numbers">{head}</div></td>'
    top = f'<thead><tr><th scope="col">{corner}</th>{image}{numbers}</tr></thead>'
    body = "".join(_row(row, shared, probes) for row in rows)
    n = len(newest.channels)
    table = f'<table class="sheet" style="--n:{n}">{top}<tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _head(maps: FeatureMaps, kept: int, with_ends: bool) -> str:
    ends = ""
    if with_ends:
        ends = f"<small>{spread(float(maps.low[kept]), float(maps.high[kept]))}</small>"
    return f"<span><b>{int(maps.channels[kept])}</b>{ends}</span>"


def _row(row: Row, shared: bool, probes: Probes | None) -> str:
    name, maps, probe = row
    image = f"<td>{thumbnail(probes, probe, SMALL)}</td>" if probes is not None else ""
    alt = f"{name}: channels {', '.join(map(str, maps.channels.tolist()))}"
    shot = png_of_levels(_strip(on_scale(maps, shared)[probe]))
    strip = f'<td><img src="{shot}" alt="{text(alt)}"></td>'
    return f'<tr><th scope="row">{text(name)}</th>{image}{strip}</tr>'


def _strip(maps: Bytes) -> Bytes:
    """(C', h, w) side by side, 0 in the gaps between them."""
    n, height, width = maps.shape
    scale = max(1, SIDE // max(height, width))
    large = np.maximum(maps, 1).repeat(scale, axis=1).repeat(scale, axis=2)
    wide = width * scale
    gap = max(1, round(wide / 14))
    strip = np.zeros((height * scale, n * (wide + gap) - gap), np.uint8)
    for i, one in enumerate(large):
        strip[:, i * (wide + gap) : i * (wide + gap) + wide] = one
    return strip
