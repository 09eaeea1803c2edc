"""Which class was taken for which, how often, and the images that the network was wrong about."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from convlens.core.snapshots import BEFORE, Confusion, Ints, Mistakes, recall_of
from convlens.web import formatting
from convlens.web.panels.mistakes import class_name, mistakes
from convlens.web.run_data import RunData, is_own_loop

if TYPE_CHECKING:
    from convlens.web.pages import Page

MOST_NUMBERS = 20
"""Up to so many classes are shown as numbers, more as a picture."""

MOST_NAMES = 100
"""Up to so many have their names beside the picture."""

MOST_PIXELS = 512
"""Of the picture's side."""

MOST_PAIRS = 10

MOST_ACROSS = 50
"""Letters in a row: names that take more, above columns of five at least, stand upright."""

RIGHT, WRONG = (0, 114, 178), (213, 94, 0)
"""Those of ``--right`` and ``--wrong`` in ``base.css``."""

Pair = tuple[int, int]


def confusion(page: Page) -> dict[str, Any]:
    """The matrix and the mistakes of the chosen epoch, or a sentence if neither was kept."""
    run, wanted = page.run, page.view.epoch
    epochs = run.snapshot_epochs(Confusion) or run.snapshot_epochs(Mistakes)
    if not epochs:
        return {"missing": missing(run), "matrix": None, "mistakes": None, "epochs": ()}
    past = [epoch for epoch in epochs if wanted is None or epoch <= wanted]
    at = past[-1] if past else epochs[0]
    kept, wrong = run.snapshot(Confusion, epoch=at), run.snapshot(Mistakes, epoch=at)
    classes = kept.classes if kept is not None else wrong.classes if wrong is not None else ()
    true, predicted, known = page.view.true, page.view.predicted, range(len(classes))
    chosen = None
    if true is not None and predicted is not None and true in known and predicted in known:
        chosen = true, predicted
    has_counts = kept is not None and (kept.counts > 0).any()
    return {
        "missing": "" if has_counts or kept is None else "This validation held no image.",
        "epochs": [(epoch, _when(epoch), epoch == at) for epoch in epochs],
        "when": _when(at),
        "matrix": _matrix(page, kept, chosen) if kept is not None and has_counts else None,
        "mistakes": None if wrong is None else mistakes(page, wrong, chosen, kept and kept.counts),
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


def frequent_mistakes(counts: Ints) -> list[tuple[int, int, int]]:
    """(true, predicted, how often) of the mistakes, the most frequent first."""
    off = counts.copy()
    np.fill_diagonal(off, 0)
    most: list[int] = np.argpartition(-off, min(MOST_PAIRS, off.size - 1), axis=None).tolist()
    found = [(*divmod(flat, len(off)), int(off.flat[flat])) for flat in most[:MOST_PAIRS]]
    return sorted((one for one in found if one[2] > 0), key=lambda one: (-one[2], *one))


def _matrix(page: Page, kept: Confusion, chosen: Pair | None) -> dict[str, Any]:
    counts = np.maximum(kept.counts, 0)
    names = [class_name(kept.classes, k) for k in range(len(kept.classes))]
    recall, n = recall_of(counts).tolist(), len(names)
    pairs = [
        {"true": names[true], "predicted": names[predicted], "count": count,
         "href": _url(page, (true, predicted), chosen), "chosen": (true, predicted) == chosen}
        for true, predicted, count in frequent_mistakes(counts)
    ]  # fmt: skip
    few = n <= MOST_NUMBERS
    return {
        "n": n,
        "names": names,
        "upright": max(map(len, names)) > 3 and sum(max(len(k), 5) for k in names) > MOST_ACROSS,
        "facts": _facts(counts, names),
        "recall": [(formatting.percent(r) if r >= 0 else formatting.NONE, r) for r in recall],
        "rows": _rows(page, counts, names, chosen) if few else [],
        "picture": "" if few else _picture(counts),
        "named": n <= MOST_NAMES,
        "to": page.url(true="ROW", predicted="COL") + "#mistakes" if page.live else "",
        "chosen": chosen,
        "pairs": pairs,
    }  # fmt: skip


def _rows(
    page: Page, counts: Ints, names: list[str], chosen: Pair | None
) -> list[list[dict[str, Any]]]:
    shares = _shares(counts)
    return [
        [
            {
                "count": count,
                "share": f"{shares[true, predicted]:.2f}",
                "kind": "right" if true == predicted else "wrong",
                "chosen": (true, predicted) == chosen,
                "href": _url(page, (true, predicted), chosen) if count else "",
                "label": f"{count:,} of class {names[true]} taken for {names[predicted]}",
            }
            for predicted, count in enumerate(row)
        ]
        for true, row in enumerate(counts.tolist())
    ]


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


def _picture(counts: Ints) -> str:
    """The matrix as a PNG: a pixel for each cell, or for the strongest of several."""
    side = -(-len(counts) // MOST_PIXELS)
    shares = np.pad(_shares(counts), (0, -len(counts) % side))
    n = len(shares) // side
    shares = shares.reshape(n, side, n, side).max(axis=(1, 3))
    pixels = np.empty((n, n, 4), np.uint8)
    pixels[..., :3] = np.where(np.eye(n, dtype=bool)[..., None], RIGHT, WRONG)
    pixels[..., 3] = np.round(255 * shares)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _when(epoch: int) -> str:
    return "before training" if epoch <= BEFORE else f"after epoch {epoch + 1}"
