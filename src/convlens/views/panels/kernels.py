"""A convolution's kernels: the first layer's in colour, others by sign and size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convlens.core.snapshots import Bytes, Kernels
from convlens.core.wording import plural
from convlens.views.markup import number
from convlens.views.panels.elements import (
    epoch_slider,
    legend,
    note,
    nothing,
    panel,
    picture,
    signed,
    tile,
    tiles,
)

NO_KERNELS = (
    "No kernels of this layer were kept: only a convolution has them, and only the Pictures "
    "callback keeps them."
)
NOT_FINITE = "These kernels hold NaN or infinite values: the network had diverged by then."

MOST_TILES = 64

IN_A_ROW = 8
"""So many planes of an output channel are a row; of fewer, all of them."""


def kernels(
    kept: Kernels | None,
    epochs: Sequence[int] = (),
    channel: int | None = None,
    live: bool = True,
) -> str:
    """A layer's kernels on one scale, which is symmetric around 0; the slider answers to ``epoch``.

    Args:
        kept: those to show, None if there are none.
        epochs: the epochs of which the layer's kernels were kept.
        channel: the output channel to point out, if any.
        live: whether it answers.
    """
    if kept is None or not kept.weight.size:
        return nothing("kernels", NO_KERNELS)
    head = f'<div class="bar">{epoch_slider(epochs, kept.epoch, kept.KIND, live)}</div>'
    if not np.isfinite(kept.weight).all():
        return panel("kernels", head, note(NOT_FINITE))
    reach = float(np.abs(kept.weight).max())
    if kept.weight.shape[2:] == (1, 1):
        shown, words = _matrix(kept, reach), ""
    elif _is_colour(kept):
        shown, words = _colour(kept, reach, channel)
    else:
        shown, words = _planes(kept, reach, channel)
    return panel("kernels", head, shown, _legend(kept, reach), note(f"{_words(kept)}{words}"))


def _is_colour(kept: Kernels) -> bool:
    return kept.reads_input and kept.shape[1] == 3 and kept.weight.shape[1] == 3


def _colour(kept: Kernels, reach: float, channel: int | None) -> tuple[str, str]:
    weight = kept.weight[:MOST_TILES].transpose(0, 2, 3, 1)
    pixels = np.round(255 * (weight / (2 * (reach or 1.0)) + 0.5)).astype(np.uint8)
    made = (
        tile(picture(one, f"kernel of channel {i}"), f"out <b>{i}</b>", _chosen(i, channel))
        for i, one in enumerate(pixels)
    )
    return tiles(made, "small"), _rest(len(kept.weight), len(pixels))


def _planes(kept: Kernels, reach: float, channel: int | None) -> tuple[str, str]:
    """A tile for each plane; those of one output channel follow each other."""
    n_out, n_in = kept.weight.shape[:2]
    places = [(o, i) for o in range(n_out) for i in range(n_in)][:MOST_TILES]
    per_group = max(kept.shape[0] // kept.groups, 1)
    made: list[str] = []
    for o, i in places:
        reads = o // per_group * kept.shape[1] + i
        shot = picture(_plane(kept, o, i, reach), f"kernel from channel {reads} to channel {o}")
        made.append(tile(shot, f"out <b>{o}</b>, in <b>{reads}</b>", _chosen(o, channel)))
    columns = n_in if 1 < n_in < IN_A_ROW else 0
    if n_in % IN_A_ROW == 0:
        columns = IN_A_ROW
    return tiles(made, "small", columns), _rest(n_out * n_in, len(places))


def _plane(kept: Kernels, o: int, i: int, reach: float) -> Bytes:
    return signed(kept.weight[o, i], reach)


def _matrix(kept: Kernels, reach: float) -> str:
    """1 × 1 kernels: one picture, a row for each output channel."""
    weight = kept.weight[:, :, 0, 0]
    alt = (
        f"weights of {weight.shape[0]} output channels (rows) and {weight.shape[1]} input channels"
    )
    shot = picture(signed(weight, reach), alt)
    return tiles([tile(shot, "rows: out, columns: in, both from 0")], "matrix")


def _chosen(o: int, channel: int | None) -> str:
    return "chosen" if o == channel else ""


def _rest(n: int, shown: int) -> str:
    return f" The first {shown} of {n:,} that were kept are shown." if shown < n else ""


def _legend(kept: Kernels, reach: float) -> str:
    ends = [number(-reach), "0", number(reach)]
    if _is_colour(kept) and kept.weight.shape[2:] != (1, 1):
        words = "Each of red, green and blue on this scale: mid-grey is 0, all kernels alike."
        return legend("grey", ends, words)
    return legend("signed", ends, "One scale for all: blue is negative, red positive, 0 clear.")


def _words(kept: Kernels) -> str:
    n_out, n_in, height, width = kept.shape
    most = kept.weight.shape
    each = f"{plural(n_in, 'kernel')} of {height} × {width}"
    of = f"{plural(n_out, 'output channel')}, each with {each}"
    cut = ""
    if most[0] < n_out or most[1] < n_in:
        cut = f" Kept are the first {most[0]} × {most[1]} of {n_out} × {n_in}."
    return f"{of}, counted from 0.{cut}"
