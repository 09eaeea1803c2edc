"""Which class was taken for which, how often, and the images that the network was wrong about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from convlens.core.snapshots import (
    Calibration,
    ClassActivationMaps,
    Confusion,
    Ints,
    Mistakes,
    frequent_mistakes,
    precision_of,
    recall_of,
)
from convlens.web import formatting
from convlens.web.panels.images import Pair, class_name, mistakes
from convlens.web.panels.pictures import png
from convlens.web.panels.reliability import reliability
from convlens.web.panels.selection import after
from convlens.web.run_data import RunData, is_own_loop

if TYPE_CHECKING:
    from convlens.web.pages import Page

MOST_NUMBERS = 20
"""Up to so many classes are shown as numbers, more as a picture."""

MOST_NAMES = 100
"""Up to so many have their names beside the picture."""

MOST_PIXELS = 512
"""Of the picture's side."""

MOST_ACROSS = 50
"""Letters in a row: names that take more, above columns of five at least, stand upright."""

RIGHT, WRONG = (0, 114, 178), (213, 94, 0)
"""Those of ``--right`` and ``--wrong`` in ``base.css``."""


def confusion(page: Page) -> dict[str, Any]:
    """The matrix and the mistakes of the chosen epoch, or a sentence if neither was kept."""
    run, wanted = page.run, page.view.epoch
    epochs = run.snapshot_epochs(Confusion) or run.snapshot_epochs(Mistakes)
    if not epochs:
        nothing = dict.fromkeys(("matrix", "mistakes", "reliability"))
        return {"missing": missing(run), "epochs": (), **nothing}
    past = [epoch for epoch in epochs if wanted is None or epoch <= wanted]
    at = past[-1] if past else epochs[0]
    kept, wrong = run.snapshot(Confusion, epoch=at), run.snapshot(Mistakes, epoch=at)
    cams = None if wrong is None else run.snapshot_of(ClassActivationMaps, wrong.epoch)
    known = [*range(len(next((one.classes for one in (kept, wrong) if one is not None), ())))]
    true, predicted = page.view.true, page.view.predicted
    chosen = (true, predicted) if true in known and predicted in known else None
    has_counts = kept is not None and (kept.counts > 0).any()
    return {
        "missing": "" if has_counts or kept is None else "This validation held no image.",
        "epochs": [(epoch, after(epoch), epoch == at) for epoch in epochs],
        "when": after(at),
        "matrix": _matrix(page, kept, chosen) if kept is not None and has_counts else None,
        "reliability": reliability(run.snapshot_of(Calibration, at)),
        "mistakes": None
        if wrong is None
        else mistakes(page, wrong, chosen, kept and kept.counts, cams),
        "everything": page.url(true=None, predicted=None) if chosen and page.live else "",
    }


def missing(run: RunData) -> str:
    """Why there is no matrix, and what to do only where it can be done."""
    if is_own_loop(run):
        return (
            "No confusion matrix was kept: it comes from the validation of a Learner, and this run "
            "was recorded in a loop of its own."
        )
    if run.status == "running" and not run.epochs:
        return "The confusion matrix is kept after each validation; the first is still to come."
    return (
        "No confusion matrix was kept. A Learner with the Pictures callback keeps one after each "
        "validation of single classes."
    )


def _matrix(page: Page, kept: Confusion, chosen: Pair | None) -> dict[str, Any]:
    counts = np.maximum(kept.counts, 0)
    names = [class_name(kept.classes, k) for k in range(len(kept.classes))]
    recall, precision = recall_of(counts).tolist(), precision_of(counts).tolist()
    n = len(names)
    shares = _shares(counts)
    pairs = [(*pair, _url(page, pair[:2], chosen)) for pair in frequent_mistakes(counts)]
    few = n <= MOST_NUMBERS
    return {
        "n": n,
        "names": names,
        "upright": max(map(len, names)) > 3 and sum(max(len(k), 5) for k in names) > MOST_ACROSS,
        "facts": _facts(counts, names),
        "recall": [(formatting.percent(r) if r >= 0 else formatting.NONE, r) for r in recall],
        "precision": [f"{100 * p:.0f} %" if p >= 0 else formatting.NONE for p in precision],
        "rows": [
            [
                (count, f"{shares[at]:.2f}", _url(page, at, chosen) if count else "")
                for at, count in zip(((true, k) for k in range(n)), row, strict=True)
            ]
            for true, row in enumerate(counts.tolist() if few else ())
        ],
        "picture": "" if few else _picture(shares),
        "named": n <= MOST_NAMES,
        "to": page.url(true="ROW", predicted="COL") + "#mistakes" if page.live else "",
        "chosen": chosen,
        "pairs": pairs,
    }  # fmt: skip


def _url(page: Page, pair: Pair, chosen: Pair | None) -> str:
    """The address that chooses a pair, or lets it go again; empty where nothing can be clicked."""
    if not page.live:
        return ""
    true, predicted = (None, None) if pair == chosen else pair
    return page.url(true=true, predicted=predicted) + "#mistakes"


def _facts(counts: Ints, names: list[str]) -> list[tuple[str, str]]:
    total, right = int(counts.sum()), int(np.trace(counts))
    recall = recall_of(counts)
    worst = int(np.nanargmin(recall))
    return [
        ("validation images", formatting.number(total)),
        ("right", formatting.percent(right / total)),
        ("mistakes", formatting.number(total - right)),
        ("weakest class", f"{names[worst]} ({formatting.percent(float(recall[worst]))})"),
    ]


def _shares(counts: Ints) -> np.ndarray:
    """(K, K) how strong a cell's colour is: mistakes by the logarithm, the diagonal by recall."""
    off = counts.astype(np.float64)
    np.fill_diagonal(off, 0)
    shares = np.log1p(off) / (np.log1p(off.max()) or 1.0)
    np.fill_diagonal(shares, np.nan_to_num(recall_of(counts)))
    return shares


def _picture(shares: np.ndarray) -> str:
    """The matrix as a PNG: a pixel for each cell, or for the strongest of several."""
    side = -(-len(shares) // MOST_PIXELS)
    shares = np.pad(shares, (0, -len(shares) % side))
    n = len(shares) // side
    shares = shares.reshape(n, side, n, side).max(axis=(1, 3))
    pixels = np.empty((n, n, 4), np.uint8)
    pixels[..., :3] = np.where(np.eye(n, dtype=bool)[..., None], RIGHT, WRONG)
    pixels[..., 3] = np.round(255 * shares)
    return png(pixels, MOST_PIXELS)
