"""A layer's feature maps: a probe image and what each channel makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convlens.core.snapshots import Bytes, FeatureMaps, Probes
from convlens.core.wording import plural
from convlens.views.markup import number
from convlens.views.panels.choice import Choice, limits, on_scale, settle, units_of_cell, values
from convlens.views.panels.elements import (
    after,
    attributes,
    button,
    coloured,
    epoch_slider,
    legend,
    marks,
    note,
    nothing,
    panel,
    picture,
    spot,
    spread,
    thumbnail,
    tile,
    tiles,
)
from convlens.views.panels.sheet import rows_of, strips

NO_MAPS = (
    "No feature maps of this layer were kept. A Learner with the Pictures callback keeps them of "
    "layers whose output is (N, C, H, W)."
)
ALL_NAN = "Every value that was kept of this layer is NaN: the network had diverged by then."

FEW = 8
"""Up to so many channels are shown larger."""

SCALES = {"own": "each channel on its own scale", "shared": "all channels on one scale"}


def features(
    maps: FeatureMaps | None,
    probes: Probes | None,
    epochs: Sequence[int] = (),
    choice: Choice | None = None,
    shared: bool = False,
    live: bool = True,
) -> str:
    """What a layer's channels make of a probe image; of every probe image if not live.

    A map answers with ``unit``, a probe image with ``probe``, the slider with ``epoch``, the choice
    of the scale with ``scale`` (value ``own`` or ``shared``).

    Args:
        maps: those to show, None if there are none.
        probes: the images; None shows the maps without them.
        epochs: the epochs of which the layer's maps were kept.
        choice: the probe image, the channel and the cell.
        shared: one scale for all channels instead of one each.
        live: whether it answers.
    """
    if maps is None or not maps.maps.size:
        return nothing("features", NO_MAPS)
    if not np.isfinite(maps.low).any():
        return nothing("features", ALL_NAN)
    chosen = settle(choice or Choice(), maps, probes)
    head = f'<div class="bar">{epoch_slider(epochs, maps.epoch, maps.KIND, live)}'
    head += (_scale_choice(shared) if live else "") + "</div>"
    if live:
        levels = on_scale(maps, shared)[chosen.probe]
        made = (_tile(maps, chosen, k, one) for k, one in enumerate(levels))
        shown = tiles(made, columns=4 if len(maps.channels) <= FEW else 8)
        shown = f'<div class="beside">{_thumbnails(probes, chosen.probe)}{shown}</div>'
    else:
        shown = strips(rows_of(maps, probes), shared, probes)
    return panel("features", head, shown, _legend(maps, shared, live), note(_words(maps)))


def through_time(
    kept: Sequence[FeatureMaps], probes: Probes | None, probe: int = 0, shared: bool = False
) -> str:
    """One probe image in every channel, a row for each epoch that was kept; answers to nothing."""
    kept = [maps for maps in kept if maps.maps.size]
    if not kept:
        return nothing("features", NO_MAPS)
    probe = min(max(probe, 0), kept[0].maps.shape[0] - 1)
    rows = [(after(maps.epoch).removeprefix("after "), maps, probe) for maps in kept]
    image = "" if probes is None else thumbnail(probes, probe)
    shown = f'<div class="beside"><div class="probes one">{image}</div>{strips(rows, shared)}</div>'
    words = f"{_scale_words(shared)} in each epoch: dark is the lowest value, bright the highest."
    return panel("features", shown, note(words), note(_words(kept[-1])))


def _tile(maps: FeatureMaps, chosen: Choice, kept: int, levels: Bytes) -> str:
    channel = int(maps.channels[kept])
    height, width = maps.maps.shape[2:]
    is_chosen = channel == chosen.channel
    row, column = chosen.cell or (0, 0)
    mark = marks(height, width, spot((row, column))) if is_chosen else ""
    low, high = float(maps.low[kept]), float(maps.high[kept])
    values_of = spread(low, high)
    if height == width == 1:
        values_of = number(float(values(maps)[chosen.probe, kept, 0, 0]))
    alt = f"channel {channel} for probe image {chosen.probe + 1}: {values_of}"
    shot = picture(coloured(levels), alt, mark)
    data = {
        "layer": maps.layer,
        "channel": channel,
        "probe": chosen.probe,
        "grid": f"{height},{width}",
        "row": row,
        "col": column,
    }
    caption = f"<b>{channel}</b> <span>{values_of}</span>"
    kind = "chosen" if is_chosen else ""
    return tile(button(shot, "unit", data, live=True, kind="map"), caption, kind)


def _legend(maps: FeatureMaps, shared: bool, live: bool) -> str:
    if shared:
        return legend("viridis", [number(v) for v in limits(maps)], f"{_scale_words(True)}.")
    ends = "the numbers by it are its ends"
    if maps.maps.shape[2:] == (1, 1) and live:
        ends = "the number is the unit's value"
    words = f"{_scale_words(False)}, over all probe images; {ends}."
    return legend("viridis", ["lowest", "highest"], words)


def _scale_words(shared: bool) -> str:
    return SCALES["shared" if shared else "own"].capitalize()


def _words(maps: FeatureMaps) -> str:
    n, rows = len(maps.channels), maps.grid
    of = f" of {maps.n_channels:,}" if n < maps.n_channels else ""
    said = f"{plural(n, 'channel')}{of}, counted from 0"
    if rows == (1, 1):
        return f"{said}, of a single unit each."
    said += f"; {rows[0]} × {rows[1]} units each"
    height, width = maps.maps.shape[2:]
    if (height, width) == rows:
        return f"{said}, every one of them shown."
    return f"{said}, shown as {height} × {width} cells: a cell is the mean of {_per_cell(maps)}."


def _per_cell(maps: FeatureMaps) -> str:
    spans = [units_of_cell(maps, (i, i)) for i in range(min(maps.maps.shape[2:]))]
    sizes = [{b - a + 1 for a, b in (span[axis] for span in spans)} for axis in range(2)]
    rows, columns = ("–".join(map(str, sorted({min(s), max(s)}))) for s in sizes)
    return f"{rows} × {columns} units"


def _scale_choice(shared: bool) -> str:
    now = "shared" if shared else "own"
    options = "".join(
        f'<option value="{key}"{" selected" if key == now else ""}>{words}</option>'
        for key, words in SCALES.items()
    )
    return f'<select aria-label="scale of the colours" {attributes("scale", {})}>{options}</select>'


def _thumbnails(probes: Probes | None, chosen: int) -> str:
    if probes is None:
        return ""
    made = (
        button(
            thumbnail(probes, i),
            "probe",
            {"probe": i},
            live=True,
            kind="probe",
            pressed=i == chosen,
        )
        for i in range(len(probes.images))
    )
    return f'<div class="probes" role="group" aria-label="probe images">{"".join(made)}</div>'
