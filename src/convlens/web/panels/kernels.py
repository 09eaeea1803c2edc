"""A convolution's kernels: of three input channels in colour, others by sign and size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from convlens.core.snapshots import Kernels
from convlens.core.wording import plural
from convlens.web.formatting import number
from convlens.web.panels.maps import allowance
from convlens.web.panels.pictures import picture, signed
from convlens.web.panels.selection import after, kept_at, module_of

if TYPE_CHECKING:
    from convlens.web.pages import Page

NOT_FINITE = "These kernels hold NaN or infinite values: the network had diverged by then."

MOST_TILES = 64

Tile = dict[str, Any]


def kernels(page: Page) -> dict[str, Any]:
    """The kernels on one scale, which is symmetric around 0."""
    kept = kept_at(page, Kernels, page.view.layer or module_of(page))
    if kept is None or not kept.weight.size:
        return {"kept": None}
    given: dict[str, Any] = {"kept": kept, "when": after(kept.epoch), "sentence": ""}
    if not np.isfinite(kept.weight).all():
        return {**given, "sentence": NOT_FINITE}
    reach, n_in = float(np.abs(kept.weight).max()), kept.weight.shape[1]
    most = min(MOST_TILES, max(allowance(page) // 2_500, 4))
    kind, n = "planes", len(kept.weight) * n_in
    if kept.weight.shape[2:] == (1, 1):
        kind, n, tiles = "pointwise", 1, [_matrix(kept, reach)]
    elif kept.reads_input and kept.shape[1] == n_in == 3:
        kind, n, tiles = "coloured", len(kept.weight), _colour(kept, reach, most)
    else:
        tiles = _planes(kept, reach, most)
    rest = f" The first {len(tiles)} of {n:,} are shown." if len(tiles) < n else ""
    return {
        **given, "tiles": tiles, "many": len(tiles) > 16, "kind": kind,
        "grouped": kind == "planes" and n_in > 1,
        "columns": 8 // n_in * n_in or -(-n_in // 2), "wide": max(16 // n_in, 1) * n_in,
        "ends": (number(-reach), "0", number(reach)), "words": _words(kept) + rest,
    }  # fmt: skip


def _colour(kept: Kernels, reach: float, most: int) -> list[Tile]:
    weight = kept.weight[:most].transpose(0, 2, 3, 1)
    pixels = np.round(255 * (weight / (2 * (reach or 1.0)) + 0.5)).astype(np.uint8)
    return [
        {"shot": picture(one, f"kernel of channel {i}"), "out": i, "reads": None}
        for i, one in enumerate(pixels)
    ]


def _planes(kept: Kernels, reach: float, most: int) -> list[Tile]:
    """A tile for each plane; those of one output channel follow each other."""
    per_group = max(kept.shape[0] // kept.groups, 1)
    made: list[Tile] = []
    for out, plane in [*np.ndindex(kept.weight.shape[:2])][:most]:
        reads = out // per_group * kept.shape[1] + plane
        alt = f"kernel from channel {reads} to channel {out}"
        shot = picture(signed(kept.weight[out, plane], reach), alt)
        made.append({"shot": shot, "out": out, "reads": reads})
    return made


def _matrix(kept: Kernels, reach: float) -> Tile:
    """1 × 1 kernels: one picture, a row for each output channel."""
    n_out, n_in = kept.weight.shape[:2]
    alt = f"weights of {n_out} output channels (rows) and {n_in} input channels (columns)"
    shot = picture(signed(kept.weight[:, :, 0, 0], reach), alt)
    return {"shot": shot, "out": None, "reads": None}


def _words(kept: Kernels) -> str:
    (n_out, n_in, height, width), most = kept.shape, kept.weight.shape
    each = f"{plural(n_in, 'kernel')} of {height} × {width}"
    said = f"{plural(n_out, 'output channel')}, each with {each}, counted from 0."
    if most[0] < n_out or most[1] < n_in:
        said += f" Recorded are the first {most[0]} × {most[1]} of {n_out} × {n_in}."
    return said
