"""Images that a run keeps with a word for each: a training batch, and the worst predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convlens.core.records import Picture
from convlens.core.snapshots import Mistakes
from convlens.web import formatting
from convlens.web.sheets import MAX_SIDE, sheet

if TYPE_CHECKING:
    from convlens.web.pages import Page

MOST_SHOWN = 64

TITLES = {
    "batch": "A training batch, as the network gets it",
    "worst": "The largest losses of the validation",
}


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
    words = [f"The first {MOST_SHOWN} of {len(picture.images):,} images."] * (
        len(picture.images) > MOST_SHOWN
    )
    if max(height, width) > MAX_SIDE:
        words.append(f"Recorded at {height} × {width} pixels, shown smaller.")
    captions = [formatting.short(caption, 60) for caption in picture.captions[: len(shown)]]
    captions += [""] * (len(shown) - len(captions))
    return {"title": title, "style": sheet(shown), "captions": captions, "words": " ".join(words)}
