"""The pictures inside a report's layers: as many as a file holds that is to stay small.

A run keeps feature maps, kernels and receptive fields of up to 64 layers and 20 epochs, which would
be tens of megabytes. Here it is decided, from the sizes alone, which of them a report shows; it
says what it left out. `convlens.train.callbacks.snapshot_limits` decides what a run keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from PIL import Image

from convlens.core.snapshots import EffectiveFieldMap, FeatureMaps, FieldIntervals, Kernels, Probes
from convlens.core.wording import plural
from convlens.runs import Run
from convlens.views import panels
from convlens.views.markup import text

MAP_BYTES = 2_400_000
"""Feature maps and kernels of all layers, as they lie in the file."""

FIELD_BYTES = 1_200_000
"""Receptive fields on images, of all layers."""

RUNGS = ((8, 20, True), (8, 8, True), (8, 8, False), (4, 6, False), (2, 4, False))
"""Probe images, epochs, and whether layers without kernels have maps too: the first that fits."""

THUMBNAIL = 32
"""Pixels of a probe image at the side of its maps, which every layer has again."""

T = TypeVar("T")


@dataclass(frozen=True)
class Inside:
    """What is shown of one layer.

    Attributes:
        maps: feature maps by epoch, the newest last; of a layer that only passes on what another
            one found, such as a normalization, the newest alone.
        map_epochs: of which there are any.
        kernels: the newest, if it has any.
        kernel_epochs: of which there are any.
        fields: the receptive field of every unit, None if it is not shown.
        effective: the newest effective field, None if there is none.
        with_field: whether the receptive field is shown.
        finds: whether it has kernels, or not the field of the layer before it; what another layer
            only passes on is folded away.
    """

    maps: Sequence[FeatureMaps]
    map_epochs: Sequence[int] = ()
    kernels: Kernels | None = None
    kernel_epochs: Sequence[int] = ()
    fields: FieldIntervals | None = None
    effective: EffectiveFieldMap | None = None
    with_field: bool = False
    finds: bool = True


@dataclass(frozen=True)
class Album:
    """The pictures of all layers.

    Attributes:
        probes: the probe images that are shown, None if none were kept.
        layers: by name, in the model's order.
        order: the names of all layers of which the run kept anything.
        note: what was left out, empty if nothing was.
    """

    probes: Probes | None = None
    layers: Mapping[str, Inside] = field(default_factory=dict[str, Inside])
    order: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class _Kept:
    """What a run keeps of a layer, the newest of each."""

    maps: FeatureMaps | None
    kernels: Kernels | None
    fields: FieldIntervals | None
    epochs: Sequence[int]
    finds: bool
    """Whether it finds something new: has kernels, or not the field of the layer before it."""


def read_album(run: Run) -> Album:
    """Choose what a report shows of a run, and read it.

    Raises:
        RunError: if the run cannot be read.
    """
    kept = _kept(run)
    if not kept:
        return Album()
    probes = run.snapshot(Probes)
    n_probes, n_epochs, passing = next(
        (rung for rung in RUNGS if _cost(kept, probes, rung) <= MAP_BYTES), RUNGS[-1]
    )
    chosen = [name for name, one in kept.items() if one.finds or passing]
    rung = (n_probes, n_epochs, passing)
    cost = _cost({name: kept[name] for name in chosen}, probes, rung)
    if cost > MAP_BYTES:
        chosen = spread(chosen, max(len(chosen) * MAP_BYTES // cost, 1))
    with_field = [name for name in chosen if kept[name].finds and _has_unit(kept[name], probes)]
    with_field = spread(with_field, max(FIELD_BYTES // _field_cost(probes), 1))
    layers = {name: _inside(run, name, kept[name], rung, name in with_field) for name in chosen}
    note = _left_out(kept, layers, rung, probes)
    return Album(_first(probes, n_probes), layers, list(kept), note)


def spread(items: Sequence[T], n: int) -> list[T]:
    """At most ``n`` of them, the first and the last among them, equally far apart."""
    if len(items) <= n:
        return list(items)
    if n == 1:
        return [items[-1]]
    return [items[round(at)] for at in np.linspace(0, len(items) - 1, n).tolist()]


def inside(album: Album, name: str) -> str:
    """A layer's kernels, feature maps and receptive field as HTML; empty if nothing is shown."""
    one = album.layers.get(name)
    if one is None:
        return ""
    newest = one.maps[-1] if one.maps else None
    first = ""
    if one.kernels is not None:
        shown = panels.kernels(one.kernels, one.kernel_epochs, live=False)
        first = _titled("Kernels", shown)
    if one.with_field:
        shown = panels.unit(newest, album.probes, one.fields, one.effective, live=False)
        first += _titled(_unit_words(newest, album.probes), shown)
    parts = [_pair(first), _maps(one, album.probes)]
    if one.kernels is not None and one.kernels.reads_input and album.probes is not None:
        shown = panels.window(one.kernels, album.probes, newest, live=False)
        parts.append(_titled("The sliding window: how that unit's value comes about", shown))
    return "".join(parts)


def _maps(one: Inside, probes: Probes | None) -> str:
    """All probe images at the newest epoch, and beside them one through all epochs."""
    if not one.maps:
        return ""
    small = None if probes is None else _small(probes)
    shown = panels.features(one.maps[-1], small, one.map_epochs, live=False)
    if not one.finds:
        title = "Feature maps of the probe images"
        return f'<details class="inside"><summary>{title}</summary>{shown}</details>'
    parts = _titled("Feature maps of the probe images", shown)
    if len(one.maps) > 1:
        shown = panels.through_time(one.maps, probes)
        parts += _titled("One probe image through the epochs", shown)
    return _pair(parts)


def _pair(parts: str) -> str:
    """Side by side where there is room."""
    return f'<div class="pair">{parts}</div>' if parts else ""


def _titled(title: str, shown: str) -> str:
    return f'<div class="inside"><h4>{text(title)}</h4>{shown}</div>'


def _unit_words(maps: FeatureMaps | None, probes: Probes | None) -> str:
    if maps is None:
        return "A unit and its receptive field"
    chosen = panels.settle(panels.Choice(), maps, probes)
    return (
        f"A unit and its receptive field: where channel {chosen.channel} is largest on the first "
        "probe image"
    )


def _kept(run: Run) -> dict[str, _Kept]:
    """All layers of which there are pictures, in the model's order."""
    found = dict[str, _Kept]()
    with_kernels = {*run.snapshot_layers(Kernels)}
    names = dict.fromkeys([*run.snapshot_layers(FeatureMaps), *run.snapshot_layers(Kernels)])
    before: object = None
    for name in names:
        maps, fields = run.snapshot(FeatureMaps, name), run.snapshot(FieldIntervals, name)
        kernels = run.snapshot(Kernels, name) if name in with_kernels else None
        reach = None if fields is None else (fields.size, fields.grid)
        finds = kernels is not None or reach is None or reach != before
        before = reach
        epochs = run.snapshot_epochs(FeatureMaps, name)
        found[name] = _Kept(maps, kernels, fields, epochs, finds)
    return found


def _cost(kept: Mapping[str, _Kept], probes: Probes | None, rung: tuple[int, int, bool]) -> int:
    """About how many bytes of HTML maps and kernels take."""
    n_probes, n_epochs, passing = rung
    total = 0
    for one in kept.values():
        if not (one.finds or passing):
            continue
        if one.maps is not None and one.maps.maps.size:
            rows = min(n_probes, len(one.maps.maps))
            total += rows * (_strip_cost(one.maps) + _image_cost(probes, THUMBNAIL))
            if one.finds:
                total += min(n_epochs, len(one.epochs)) * _strip_cost(one.maps)
                total += _image_cost(probes, 96)
        if one.kernels is not None:
            total += 1_000 + 400 * min(
                one.kernels.weight.shape[0] * one.kernels.weight.shape[1], 64
            )
    return total


def _strip_cost(maps: FeatureMaps) -> int:
    """A probe image in every channel, as text: four characters for three bytes."""
    return 2_000 + maps.maps[0].size * 4 // 3


def _image_cost(probes: Probes | None, side: int) -> int:
    """One probe image, at most so large, as text; photographs lose little in a PNG."""
    if probes is None:
        return 0
    height, width = probes.images.shape[1:3]
    shrunk = min(side / max(height, width), 1.0)
    planes = 3 if probes.images.ndim == 4 else 1
    return 300 + round(height * width * shrunk**2 * planes * 0.8 * 4 / 3)


def _field_cost(probes: Probes | None) -> int:
    """A receptive field on an image: the image, a patch of it, and the image in orange."""
    grey = 1 if probes is None or probes.images.ndim == 4 else 3
    return 4_000 + (2 + grey) * _image_cost(probes, 512)


def _has_unit(one: _Kept, probes: Probes | None) -> bool:
    return probes is not None and one.maps is not None and bool(one.maps.maps.size)


def _inside(
    run: Run, name: str, kept: _Kept, rung: tuple[int, int, bool], with_field: bool
) -> Inside:
    n_probes, n_epochs, _ = rung
    epochs = spread(kept.epochs, n_epochs) if kept.finds else kept.epochs[-1:]
    maps = [run.snapshot(FeatureMaps, name, epoch) for epoch in epochs]
    return Inside(
        [replace(one, maps=one.maps[:n_probes]) for one in maps if one is not None],
        kept.epochs,
        kept.kernels,
        run.snapshot_epochs(Kernels, name) if kept.kernels is not None else (),
        kept.fields if with_field else None,
        run.snapshot(EffectiveFieldMap, name) if with_field else None,
        with_field,
        kept.finds,
    )


def _first(probes: Probes | None, n: int) -> Probes | None:
    if probes is None:
        return None
    return replace(
        probes, images=probes.images[:n], inputs=probes.inputs[:n], captions=probes.captions[:n]
    )


def _small(probes: Probes) -> Probes:
    """The same with images that are no larger than `THUMBNAIL`."""
    if max(probes.images.shape[1:3]) <= THUMBNAIL:
        return probes
    made = list[Image.Image]()
    for image in probes.images:
        small = Image.fromarray(image)
        small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        made.append(small)
    return replace(probes, images=np.stack([np.asarray(one) for one in made]))


def _left_out(
    kept: Mapping[str, _Kept],
    layers: Mapping[str, Inside],
    rung: tuple[int, int, bool],
    probes: Probes | None,
) -> str:
    """What was left out, in a sentence."""
    n_probes, n_epochs, _ = rung
    images = 0 if probes is None else len(probes.images)
    epochs = max((len(one.epochs) for one in kept.values()), default=0)
    fields = [name for name, one in kept.items() if one.finds and _has_unit(one, probes)]
    counts = [
        (len(layers), len(kept), "layer"),
        (n_probes, images, "probe image"),
        (n_epochs, epochs, "kept epoch"),
    ]
    said = [f"{n} of {plural(of, word)}" for n, of, word in counts if n < of]
    with_field = sum(one.with_field for one in layers.values())
    if with_field < len(fields):
        said.append(f"receptive fields of {with_field} of {plural(len(fields), 'layer')}")
    if not said:
        return ""
    return (
        f"To keep this file small, there are pictures of {', '.join(said)}; "
        "“convlens view” shows all that was kept."
    )
