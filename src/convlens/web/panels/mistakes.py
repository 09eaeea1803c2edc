"""The images that the network was most wrong about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convlens.core.snapshots import Ints, Mistakes
from convlens.core.wording import plural
from convlens.web import formatting
from convlens.web.sheets import sheet

if TYPE_CHECKING:
    from convlens.web.pages import Page

OF_EACH = 3
"""Images of one confusion of two classes: of a collapsed network all others look the same."""

MOST_SHOWN, MOST_OF_PAIR = 30, 48

Pair = tuple[int, int]


def mistakes(page: Page, kept: Mistakes, pair: Pair | None, counts: Ints | None) -> dict[str, Any]:
    """The kept images by true and predicted class, the greatest loss first.

    Args:
        page: for the addresses of pairs.
        kept: what was kept of the epoch.
        pair: (true, predicted) to show all of; None for a few of each.
        counts: the confusion matrix, to say how many there were.
    """
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
        if groups and len(shown) + len(few) > MOST_SHOWN:
            break
        items = [_item(kept, i, len(shown) + at) for at, i in enumerate(few)]
        shown += few
        href = page.url(true=true, predicted=predicted) if page.live and pair is None else ""
        names = class_name(kept.classes, true), class_name(kept.classes, predicted)
        groups.append({
            "true": names[0], "predicted": names[1], "wrong": true != predicted,
            "items": items, "more": len(found) - len(few), "href": href,
        })  # fmt: skip
    can_be_shown = shown and kept.images[shown].size
    return {
        "groups": groups if can_be_shown else [],
        "style": sheet(kept.images[shown]) if can_be_shown else "",
        "words": _words(kept, pair, counts, len(shown)),
        "others": len(grouped) - len(groups),
    }


def class_name(classes: Sequence[str], k: int) -> str:
    """A class's name, shortened; its number where it has none that can be seen."""
    name = classes[k].strip() if 0 <= k < len(classes) else ""
    return formatting.short(name, 24) or f"class {k}"


def _item(kept: Mistakes, i: int, place: int) -> dict[str, Any]:
    true, predicted = int(kept.true[i]), int(kept.predicted[i])
    sure = formatting.percent(float(kept.probability[i]))
    said = f"taken for {class_name(kept.classes, predicted)}" if true != predicted else "recognized"
    return {
        "place": place,
        "sure": sure,
        "loss": formatting.loss(float(kept.loss[i])),
        "item": int(kept.item[i]),
        "alt": f"{class_name(kept.classes, true)}, {said}, with a probability of {sure}",
    }


def _words(kept: Mistakes, pair: Pair | None, counts: Ints | None, shown: int) -> str:
    if pair is None or counts is None:
        return "" if shown else "No image with a large loss was kept of this validation."
    a, b = (class_name(kept.classes, k) for k in pair)
    n, said = int(counts[pair]), "recognized" if pair[0] == pair[1] else f"taken for {b}"
    rest = f"{shown or 'none'} of them {'are' if shown > 1 else 'is'} shown"
    return f"{plural(n, 'image')} of class {a} {'was' if n == 1 else 'were'} {said}; {rest}."
