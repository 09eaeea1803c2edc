"""The images that the network was most wrong about."""

from __future__ import annotations

import numpy as np

from convlens.core.snapshots import Confusion, Mistakes
from convlens.core.wording import plural
from convlens.views.gallery import data_uri
from convlens.views.markup import percent, text
from convlens.views.panels.elements import after, note, nothing, panel, tile, tiles

NO_MISTAKES = (
    "No mistakes were kept. A Learner with the Pictures callback keeps them after each validation "
    "of single classes."
)
NONE_AT_ALL = "No image with a large loss was kept of this validation."

MOST_SHOWN = 48

Pair = tuple[int, int]


def mistakes(
    kept: Mistakes | None, pair: Pair | None = None, confusion: Confusion | None = None
) -> str:
    """The kept images of a pair of classes, or of all, the greatest loss first. Answers to nothing.

    Args:
        kept: what was kept of the epoch.
        pair: (true, predicted) to show; None for all.
        confusion: the matrix, to say how many there were in all.
    """
    if kept is None:
        return nothing("mistakes", NO_MISTAKES)
    if pair is not None and not all(0 <= at < len(kept.classes) for at in pair):
        pair = None
    shown = np.argsort(-kept.loss, kind="stable")
    if pair is not None:
        shown = shown[(kept.true[shown] == pair[0]) & (kept.predicted[shown] == pair[1])]
    title = f"<h4>{_title(kept, pair)}</h4>"
    if not len(shown):
        return panel("mistakes", title, note(_missing(kept, pair, confusion)))
    made = (_mistake(kept, int(i)) for i in shown[:MOST_SHOWN])
    return panel("mistakes", title, tiles(made), note(_words(pair, confusion, len(shown))))


def _title(kept: Mistakes, pair: Pair | None) -> str:
    if pair is None:
        return f"Largest losses {after(kept.epoch)}"
    a, b = (text(kept.classes[at]) for at in pair)
    if pair[0] == pair[1]:
        return f"<b>{a}</b>, recognized, with the largest losses, {after(kept.epoch)}"
    return f"<b>{a}</b> taken for <b>{b}</b>, {after(kept.epoch)}"


def _mistake(kept: Mistakes, i: int) -> str:
    true, predicted = kept.classes[int(kept.true[i])], kept.classes[int(kept.predicted[i])]
    sure = percent(float(kept.probability[i]))
    wrong = true != predicted
    said = f"taken for {predicted}" if wrong else "recognized"
    alt = f"{true}, {said}, with a probability of {sure}"
    image = f'<span class="shot"><img src="{data_uri(kept.images[i])}" alt="{text(alt)}"></span>'
    arrow = (
        f'<b>{text(true)}</b> → <b class="wrong">{text(predicted)}</b>'
        if wrong
        else f"<b>{text(true)}</b>, right"
    )
    loss, item = f"loss {float(kept.loss[i]):.2f}", f"no. {int(kept.item[i])}"
    caption = f"{arrow}<br>{sure}<br>{loss}<br>{item}"
    return tile(image, caption)


def _count(pair: Pair | None, confusion: Confusion | None) -> int | None:
    if pair is None or confusion is None:
        return None
    return int(confusion.counts[pair])


def _missing(kept: Mistakes, pair: Pair | None, confusion: Confusion | None) -> str:
    if pair is None:
        return NONE_AT_ALL
    a, b = (kept.classes[at] for at in pair)
    count = _count(pair, confusion)
    if count == 0:
        return f"No image of class {a} was taken for {b} in this validation."
    many = "Images" if count is None else plural(count, "image")
    was = "was" if count == 1 else "were"
    said = "recognized" if pair[0] == pair[1] else f"taken for {b}"
    return f"{many} of class {a} {was} {said} in this validation; none of them was kept."


def _words(pair: Pair | None, confusion: Confusion | None, n: int) -> str:
    shown = min(n, MOST_SHOWN)
    count = _count(pair, confusion)
    if count is not None:
        many = f"{shown} of {plural(count, 'such image')} {'is' if shown == 1 else 'are'} shown"
    else:
        many = f"{shown} of the {n} that were kept are shown" if shown < n else f"{shown} are shown"
    return (
        f"{many}: the true class, what it was taken for and the probability that the network gave "
        "that, the cross-entropy, and its position in the validation."
    )
