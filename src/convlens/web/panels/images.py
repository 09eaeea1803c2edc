"""Images that a run keeps: a training batch, and those that the network was most wrong about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convlens.core.records import Picture
from convlens.core.snapshots import ALIKE, Bytes, ClassActivationMaps, Ints, Mistakes, Reals
from convlens.core.wording import plural
from convlens.web import formatting
from convlens.web.panels.pictures import overlay
from convlens.web.sheets import MAX_SIDE, sheet

if TYPE_CHECKING:
    from convlens.web.pages import Page

MOST_SHOWN = 64
"""Images of a training batch."""

TITLES = {
    "batch": "A training batch, as the network gets it",
    "worst": "The largest losses of the validation",
}

OF_EACH = 3
"""Images of one confusion of two classes: of a collapsed network all others look the same."""

MOST_IN_ALL, MOST_OF_PAIR = 30, 48

Pair = tuple[int, int]


def images(page: Page) -> dict[str, Any]:
    """The newest images of each name up to the chosen epoch."""
    # The mistakes say more than the worst predictions, and stand beside the confusion.
    names = ("batch",) if page.run.snapshot_epochs(Mistakes) else ("batch", "worst")
    galleries: list[dict[str, Any]] = []
    for name in names:
        found = [one for one in page.run.pictures(name) if one.images.size]
        epoch = page.view.epoch
        past = [one for one in found if epoch is None or one.epoch <= epoch] or found[:1]
        if past:
            galleries.append(_gallery(past[-1], TITLES[name]))
    return {"galleries": galleries}


def _gallery(picture: Picture, title: str) -> dict[str, Any]:
    shown = picture.images[:MOST_SHOWN]
    height, width = shown.shape[1:3]
    words: list[str] = []
    if len(picture.images) > MOST_SHOWN:
        words.append(f"The first {MOST_SHOWN} of {len(picture.images):,} images.")
    if max(height, width) > MAX_SIDE:
        words.append(f"Recorded at {height} × {width} pixels, shown smaller.")
    captions = [formatting.short(caption, 60) for caption in picture.captions[: len(shown)]]
    captions += [""] * (len(shown) - len(captions))
    return {"title": title, "style": sheet(shown), "captions": captions, "words": " ".join(words)}


def mistakes(
    page: Page,
    kept: Mistakes,
    pair: Pair | None,
    counts: Ints | None,
    cams: ClassActivationMaps | None = None,
) -> dict[str, Any]:
    """The kept images by true and predicted class, the greatest loss first.

    Args:
        page: for the addresses of pairs.
        kept: what was kept of the epoch.
        pair: (true, predicted) to show all of; None for a few of each.
        counts: the confusion matrix, to say how many there were.
        cams: Grad-CAM of some of them.
    """
    explained = {} if cams is None else {item: m for m, item in enumerate(cams.item.tolist())}
    order = np.argsort(-kept.loss, kind="stable").tolist()
    grouped: dict[Pair, list[int]] = {}
    for i in order:
        grouped.setdefault((int(kept.true[i]), int(kept.predicted[i])), []).append(i)
    if pair is not None:
        grouped = {pair: grouped[pair]} if pair in grouped else {}
    groups: list[dict[str, Any]] = []
    shown: list[int] = []
    for (true, predicted), found in grouped.items():
        few = found[: MOST_OF_PAIR if pair else OF_EACH]
        if groups and len(shown) + len(few) > MOST_IN_ALL:
            break
        items = [_item(kept, i, len(shown) + at, explained) for at, i in enumerate(few)]
        shown += few
        href = page.url(true=true, predicted=predicted) if page.live and pair is None else ""
        names = class_name(kept.classes, true), class_name(kept.classes, predicted)
        groups.append({
            "true": names[0], "predicted": names[1], "wrong": true != predicted,
            "items": items, "more": len(found) - len(few), "href": href,
        })  # fmt: skip
    can_be_shown = shown and kept.images[shown].size
    with_map = any(item["cam"] is not None for group in groups for item in group["items"])
    return {
        "cams": explanation(cams, cams.maps, cams.correlation) if cams and with_map else None,
        "groups": groups if can_be_shown else [],
        "style": sheet(kept.images[shown]) if can_be_shown else "",
        "words": _words(kept, pair, counts, len(shown)),
        "others": len(grouped) - len(groups),
    }


def class_name(classes: Sequence[str], k: int) -> str:
    """A class's name, shortened; its number where it has none that can be seen."""
    name = classes[k].strip() if 0 <= k < len(classes) else ""
    return formatting.short(name, 24) or f"class {k}"


def explanation(cams: ClassActivationMaps, maps: Bytes, correlation: Reals) -> dict[str, str]:
    """The style of the element around explained images, and what the maps are worth, in words."""
    known = correlation[np.isfinite(correlation)]
    words = f"Grad-CAM of layer {formatting.short(cams.explained, 40)}: which places speak for the "
    words += "predicted class, each map up to its highest value."
    if len(known):
        mean = round(float(known.mean()), 2)
        words += f" Rank correlation with the maps of random weights: {formatting.number(mean)}"
        words += "; these maps depend little on the weights." if mean > ALIKE else "."
        words += " A map that stays the same when the weights are random explains nothing."
    return {"style": overlay(maps), "words": words}


def _item(kept: Mistakes, i: int, place: int, explained: Mapping[int, int]) -> dict[str, Any]:
    true, predicted = int(kept.true[i]), int(kept.predicted[i])
    sure = formatting.percent(float(kept.probability[i]))
    file = kept.files[i] if i < len(kept.files) else ""
    said = f"taken for {class_name(kept.classes, predicted)}" if true != predicted else "recognized"
    return {
        "place": place,
        "cam": explained.get(int(kept.item[i])),
        "sure": sure,
        "loss": formatting.loss(float(kept.loss[i])),
        "item": int(kept.item[i]),
        "file": file,
        "name": formatting.short(file.rsplit("/", 1)[-1], 18),
        "alt": f"{class_name(kept.classes, true)}, {said}, with a probability of {sure}",
    }


def _words(kept: Mistakes, pair: Pair | None, counts: Ints | None, shown: int) -> str:
    if pair is None or counts is None:
        return "" if shown else "No image with a large loss was kept of this validation."
    a, b = (class_name(kept.classes, k) for k in pair)
    n, said = int(counts[pair]), "recognized" if pair[0] == pair[1] else f"taken for {b}"
    rest = f"{shown or 'none'} of them {'are' if shown > 1 else 'is'} shown"
    return f"{plural(n, 'image')} of class {a} {'was' if n == 1 else 'were'} {said}; {rest}."
