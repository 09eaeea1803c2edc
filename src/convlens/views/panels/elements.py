"""What all panels are made of: pictures, marks on them, buttons, legends, the slider of epochs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.palettes import viridis
from numpy.typing import NDArray
from PIL import Image

from convlens.core.snapshots import BEFORE, Bytes, Probes
from convlens.views.gallery import png_uri
from convlens.views.markup import number, text

PLUS, MINUS = (214, 57, 64), (48, 122, 196)
"""Positive and negative; 0 is transparent, so that it looks right on a light and a dark card."""

VIRIDIS: Bytes = np.frombuffer(
    bytes.fromhex("".join(code[1:7] for code in viridis(256))), np.uint8
).reshape(256, 3)
"""(256, 3), not writable."""

MAX_PICTURE = 512
"""Pixels of a picture's longer side at most: photographs are made smaller."""


def panel(kind: str, *parts: str) -> str:
    """The frame of a panel."""
    return f'<div class="panel {kind}">{"".join(parts)}</div>'


def nothing(kind: str, sentence: str) -> str:
    """A panel that has only a sentence to show."""
    return panel(kind, f'<p class="note nothing">{text(sentence)}</p>')


def png(pixels: Bytes) -> str:
    """(H, W) grey, (H, W, 3) or (H, W, 4) as a PNG data URI, pixel for pixel."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if max(picture.size) > MAX_PICTURE:
        picture.thumbnail((MAX_PICTURE, MAX_PICTURE), Image.Resampling.LANCZOS)
    return png_uri(picture)


def png_of_levels(levels: Bytes) -> str:
    """(H, W) of 1 to 255 as viridis, 0 as nothing; a third of the bytes of `png`."""
    picture = Image.fromarray(np.ascontiguousarray(levels))
    picture.putpalette(VIRIDIS.tobytes())
    return png_uri(picture, transparency=0)


def picture(pixels: Bytes, alt: str, marks: str = "") -> str:
    """An image as wide as its place, with marks on it; see `marks`."""
    height, width = pixels.shape[:2]
    return (
        f'<span class="shot" style="aspect-ratio:{width}/{height}">'
        f'<img src="{png(pixels)}" alt="{text(alt)}">{marks}</span>'
    )


def thumbnail(probes: Probes, i: int, side: int = 96) -> str:
    """A probe image, at most so large."""
    small = Image.fromarray(probes.images[i])
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    caption = caption_of(probes, i)
    alt = f"probe image {i + 1}: {caption}"
    return f'<img src="{png(np.asarray(small))}" alt="{text(alt)}" title="{text(caption)}">'


def caption_of(probes: Probes | None, i: int) -> str:
    """The class of a probe image, or its number where that is not known."""
    if probes is None or i >= len(probes.captions):
        return f"probe {i + 1}"
    return probes.captions[i]


def marks(height: float, width: float, *shapes: str) -> str:
    """Shapes over a picture, in its pixels; see `rectangle`."""
    drawn = "".join(shapes)
    if not drawn:
        return ""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="none" aria-hidden="true">'
        f"{drawn}</svg>"
    )


def rectangle(rows: tuple[float, float], columns: tuple[float, float], kind: str = "chosen") -> str:
    """The outline of whole rows and columns, both inclusive: a bright line on a dark one."""
    place = (
        f'x="{columns[0]:g}" y="{rows[0]:g}" width="{columns[1] - columns[0] + 1:g}" '
        f'height="{rows[1] - rows[0] + 1:g}"'
    )
    return f'<rect class="halo" {place}/><rect class="{kind}" {place}/>'


def spot(place: tuple[int, int], kind: str = "chosen") -> str:
    """The outline of one cell or pixel."""
    row, column = place
    return rectangle((row, row), (column, column), kind)


def attributes(do: str, data: Mapping[str, object]) -> str:
    """``data-do`` and its values, escaped; those that are None are left out."""
    pairs = {"do": do, **{key: value for key, value in data.items() if value is not None}}
    return " ".join(f'data-{key}="{text(value)}"' for key, value in pairs.items())


def button(
    inner: str,
    do: str,
    data: Mapping[str, object],
    live: bool,
    kind: str = "",
    pressed: bool | None = None,
    label: str = "",
) -> str:
    """HTML that answers to a click if the page is live, and is only shown if not."""
    if not live:
        return f'<span class="{kind}">{inner}</span>' if kind else inner
    state = "" if pressed is None else f' aria-pressed="{str(pressed).lower()}"'
    name = f' aria-label="{text(label)}" title="{text(label)}"' if label else ""
    css = f' class="{kind}"' if kind else ""
    return f'<button type="button"{css}{state}{name} {attributes(do, data)}>{inner}</button>'


def coloured(shares: NDArray[Any]) -> Bytes:
    """(h, w) bytes as viridis, (h, w, 3)."""
    return VIRIDIS[shares]


def signed(values: NDArray[Any], reach: float) -> Bytes:
    """(h, w) as red where positive and blue where negative, (h, w, 4): 0 is transparent."""
    pixels = np.zeros((*values.shape, 4), np.uint8)
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=reach, neginf=-reach)
    pixels[..., :3] = np.where(finite[..., None] > 0, PLUS, MINUS)
    pixels[..., 3] = np.round(255 * np.clip(np.abs(finite) / (reach or 1.0), 0, 1))
    return pixels


def legend(kind: str, ends: Sequence[object], words: str) -> str:
    """A colour bar with the values at its ends (and between), and what it means."""
    labels = "".join(f"<span>{text(end)}</span>" for end in ends)
    return (
        f'<p class="legend"><span class="scale {kind}"><i></i><span class="ends">{labels}</span>'
        f"</span><span>{text(words)}</span></p>"
    )


def tiles(items: Iterable[str], kind: str = "", columns: int = 0) -> str:
    """Figures side by side, in so many columns if that is not 0."""
    fixed = f' style="--columns:{columns}"' if columns else ""
    kind = f"{kind} fixed" if columns else kind
    return f'<div class="tiles {kind}"{fixed}>{"".join(items)}</div>'


def tile(inner: str, caption: str, kind: str = "") -> str:
    """A figure; the caption is HTML."""
    return f'<figure class="tile {kind}">{inner}<figcaption>{caption}</figcaption></figure>'


def measured(value: float, half: float) -> str:
    """A value that is known to half a level, and that half."""
    if not np.isfinite(value) or not half:
        return number(value)
    digits = max(0, 1 - math.floor(math.log10(half)))
    if digits > 6:
        return f"{number(value)} ± {number(half)}"
    return f"{value:.{digits}f} ± {half:.{digits}f}".replace("-", "−")


def figures(
    values: Iterable[tuple[str, str]], kind: str = "", counting: Collection[str] = ()
) -> str:
    """Names and values, large; those that the page's script counts on are marked."""
    marks = {name: f' data-figure="{name}"' for name in counting}
    rows = "".join(
        f"<div><dt>{text(name)}</dt><dd{marks.get(name, '')}>{text(value)}</dd></div>"
        for name, value in values
    )
    return f'<dl class="figures {kind}">{rows}</dl>'


def note(sentence: str) -> str:
    """A sentence below a figure."""
    return f'<p class="note">{text(sentence)}</p>' if sentence else ""


def after(epoch: int) -> str:
    """When something was kept, in words."""
    return "before training" if epoch <= BEFORE else f"after epoch {epoch + 1}"


def epoch_slider(epochs: Sequence[int], shown: int, kind: str, live: bool) -> str:
    """The kept epochs to choose from; ``epoch`` with ``value``, an index of ``data-epochs``.

    Args:
        epochs: in which something was kept, ascending.
        shown: the one that is shown.
        kind: the kind of snapshot, for ``data-kind``.
        live: False names them only.
    """
    now = f'<strong class="when">{after(shown)}</strong>'
    if len(epochs) < 2:
        return f'<p class="epochs">{now}</p>'
    if not live:
        kept = ", ".join("before training" if e <= BEFORE else str(e + 1) for e in epochs)
        return f'<p class="epochs">{now} <span class="soft">(kept: {kept})</span></p>'
    at = max((i for i, epoch in enumerate(epochs) if epoch <= shown), default=0)
    data = {"kind": kind, "epochs": ",".join(map(str, epochs))}
    stops = "".join(_stop(i, epoch, i == at, data) for i, epoch in enumerate(epochs))
    slider = (
        f'<input type="range" min="0" max="{len(epochs) - 1}" step="1" value="{at}" '
        f'aria-label="epoch" aria-valuetext="{after(shown)}" {attributes("epoch", data)}>'
    )
    return f'<div class="epochs">{now}<div class="track">{slider}<div>{stops}</div></div></div>'


def _stop(i: int, epoch: int, current: bool, data: Mapping[str, str]) -> str:
    name = "start" if epoch <= BEFORE else str(epoch + 1)
    here = ' aria-current="true"' if current else ""
    return (
        f'<button type="button"{here} title="{after(epoch)}" '
        f"{attributes('epoch', {**data, 'value': i})}>{name}</button>"
    )


def spread(low: float, high: float) -> str:
    """A range of values."""
    if not low < high:
        return f"constant {number(low)}" if math.isfinite(low) else "not finite"
    return f"{short(low)} … {short(high)}"


def short(value: float) -> str:
    """A value with two or three digits, to fit below a small picture."""
    return number(float(f"{value:.2g}" if abs(value) >= 1 else f"{value:.1g}"))


def counted(first: int, last: int, one: str) -> str:
    """Rows or units by number: ``row 4`` or ``rows 4 to 8``."""
    return f"{one} {first}" if first == last else f"{one}s {first} to {last}"
