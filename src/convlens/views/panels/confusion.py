"""The confusion matrix: which class was taken for which, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convlens.core.snapshots import Bytes, Confusion, recall_of
from convlens.views.markup import NONE, percent, text
from convlens.views.panels.elements import (
    button,
    epoch_slider,
    figures,
    legend,
    marks,
    note,
    nothing,
    panel,
    picture,
    spot,
)

NO_CONFUSION = (
    "No confusion matrix was kept. A Learner with the Pictures callback keeps one after each "
    "validation of single classes."
)
EMPTY = "This validation held no image."

MOST_NUMBERS = 20
"""Up to so many classes are shown as numbers."""

MOST_ACROSS = 50
"""Letters in a row: names that take more, above columns of five at least, stand upright."""

MOST_NAMES = 100
"""Up to so many have their names at the side."""

MOST_PAIRS = 10

RIGHT, WRONG = (0, 114, 178), (213, 94, 0)

Pair = tuple[int, int]


def confusion(
    kept: Confusion | None,
    epochs: Sequence[int] = (),
    pair: Pair | None = None,
    live: bool = True,
) -> str:
    """Counts by true and predicted class, each class's recall, and the most frequent mistakes.

    Cells and pairs answer with ``confusion`` (true, predicted; of more than 20 classes the picture
    gives row and column, which are the same), the slider with ``epoch``.

    Args:
        kept: the matrix, None if there is none.
        epochs: the epochs of which one was kept.
        pair: the chosen (true, predicted), if any.
        live: whether it answers.
    """
    if kept is None or not kept.counts.size:
        return nothing("confusion", NO_CONFUSION)
    head = f'<div class="bar">{epoch_slider(epochs, kept.epoch, kept.KIND, live)}</div>'
    if not kept.counts.sum():
        return panel("confusion", head, note(EMPTY))
    few = len(kept.classes) <= MOST_NUMBERS
    grid = (_table if few else _picture)(kept, pair, live)
    shown = (
        f'<div class="beside wide"><div>{grid}{_legend(kept)}</div>{_worst(kept, pair, live)}</div>'
    )
    return panel("confusion", head, figures(_facts(kept)), shown)


def pairs(counts: np.ndarray) -> list[tuple[int, int, int]]:
    """(true, predicted, how often) of the mistakes, the most frequent first."""
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:MOST_PAIRS]
    found = [(*divmod(int(flat), len(off)), int(off.flat[flat])) for flat in order]
    return [one for one in found if one[2]]


def _facts(kept: Confusion) -> list[tuple[str, str]]:
    total, right = int(kept.counts.sum()), int(np.trace(kept.counts))
    recall = kept.recall
    facts = [("right", percent(right / total)), ("mistakes", f"{total - right:,} of {total:,}")]
    if np.isfinite(recall).any():
        worst = int(np.nanargmin(recall))
        facts.append(("weakest class", f"{kept.classes[worst]} ({percent(float(recall[worst]))})"))
    return facts


def _shares(counts: np.ndarray) -> np.ndarray:
    """(K, K) how strong a cell's colour is: mistakes by the logarithm, the diagonal by recall."""
    off = counts.astype(np.float64)
    np.fill_diagonal(off, 0)
    shares = np.log1p(off) / (np.log1p(off.max()) or 1.0)
    np.fill_diagonal(shares, np.nan_to_num(recall_of(counts)))
    return shares


def _table(kept: Confusion, pair: Pair | None, live: bool) -> str:
    shares, recall = _shares(kept.counts), kept.recall
    heads = "".join(f'<th scope="col"><span>{text(name)}</span></th>' for name in kept.classes)
    top = (
        f'<tr><th class="corner" scope="col">true ↓ predicted →</th>{heads}'
        '<th scope="col" class="side">recognized</th></tr>'
    )
    lines: list[str] = []
    for row, name in enumerate(kept.classes):
        cells = "".join(
            _cell(kept, (row, column), float(shares[row, column]), pair, live)
            for column in range(len(kept.classes))
        )
        side = f'<td class="side">{_bar(float(recall[row]))}</td>'
        lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}{side}</tr>')
    inner = f"<thead>{top}</thead><tbody>{''.join(lines)}</tbody>"
    across = sum(max(len(name), 5) for name in kept.classes)
    long = max(map(len, kept.classes)) > 3 and across > MOST_ACROSS
    kind = "matrix upright" if long else "matrix"
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{inner}</table></div>'


def _cell(kept: Confusion, at: Pair, share: float, pair: Pair | None, live: bool) -> str:
    count = int(kept.counts[at])
    kind = ("right" if at[0] == at[1] else "wrong") + (" chosen" if at == pair else "")
    shown = f"{count:,}" if count else '<span class="zero">·</span>'
    if count:
        label = f"{count:,} of class {kept.classes[at[0]]} taken for {kept.classes[at[1]]}"
        data = {"true": at[0], "predicted": at[1]}
        shown = button(shown, "confusion", data, live, label=label)
    return f'<td class="{kind}" style="--a:{share:.2f}">{shown}</td>'


def _bar(share: float) -> str:
    if not np.isfinite(share):
        return NONE
    return f'<span class="share"><i style="width:{100 * share:.1f}%"></i></span>{percent(share)}'


def _picture(kept: Confusion, pair: Pair | None, live: bool) -> str:
    """Many classes: a picture of colours, with the names and the recall at its side."""
    n = len(kept.classes)
    mark = "" if pair is None else marks(n, n, spot(pair))
    alt = f"confusion matrix of {n} classes: rows are the true class, columns the predicted one"
    data: dict[str, object] = {"grid": f"{n},{n}"}
    if pair is not None:
        data |= {"row": pair[0], "col": pair[1]}
    shot = button(picture(_pixels(kept.counts), alt, mark), "confusion", data, live, "map")
    grid = f'<div class="shotframe">{shot}</div>'
    words = '<p class="soft">rows: true class, columns: predicted, in the same order</p>'
    if n > MOST_NAMES:
        return f'<div class="many plain">{grid}</div>{words}'
    recall = kept.recall
    names = "".join(f"<span>{text(name)}</span>" for name in kept.classes)
    sides = "".join(f"<span>{_bar(float(r))}</span>" for r in recall)
    return (
        f'<div class="scroll" tabindex="0"><div class="many" style="--n:{n}">'
        f'<div class="names">{names}</div>{grid}<div class="sides">{sides}</div></div></div>{words}'
    )


def _pixels(counts: np.ndarray) -> Bytes:
    shares = _shares(counts)
    pixels = np.empty((*counts.shape, 4), np.uint8)
    right = np.eye(len(counts), dtype=bool)
    pixels[..., :3] = np.where(right[..., None], RIGHT, WRONG)
    pixels[..., 3] = np.round(255 * shares)
    return pixels


def _legend(kept: Confusion) -> str:
    off = kept.counts.copy()
    np.fill_diagonal(off, 0)
    top = int(off.max())
    full = "" if len(kept.classes) <= MOST_NUMBERS else " full"
    words = "Diagonal: share of the class that was recognized."
    right = legend(f"right{full}", ["0 %", "100 %"], words)
    if not top:
        return right + note("Nothing was mistaken for anything else.")
    middle = round(np.expm1(np.log1p(top) / 2))
    ends = [f"{end:,}" for end in sorted({0, middle, top})]
    return right + legend(f"wrong{full}", ends, "Mistakes, logarithmic, in images.")


def _worst(kept: Confusion, pair: Pair | None, live: bool) -> str:
    items: list[str] = []
    for true, predicted, count in pairs(kept.counts):
        a, b = kept.classes[true], kept.classes[predicted]
        words = f"<span><b>{text(a)}</b> taken for <b>{text(b)}</b></span><em>{count:,}</em>"
        data = {"true": true, "predicted": predicted}
        chosen = (true, predicted) == pair
        items.append(f"<li>{button(words, 'confusion', data, live, 'pair', chosen)}</li>")
    if not items:
        return ""
    every = ""
    if live and pair is not None:
        none = {"true": "", "predicted": ""}
        every = button("Show all mistakes", "confusion", none, live, "pair all")
    title = "Most frequent mistakes"
    return f'<div class="worst"><h4>{title}</h4><ol>{"".join(items)}</ol>{every}</div>'
