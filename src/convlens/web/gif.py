"""`write_gif`: what a layer learns, epoch by epoch, as a moving picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bokeh.palettes import viridis
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from convlens.core.buckets import Floats
from convlens.core.histories import LayerHistory
from convlens.core.snapshots import BEFORE, Bytes, FeatureMaps, Kernels, Probes
from convlens.core.terminal import encodable, printable
from convlens.core.wording import without_classes
from convlens.errors import LayerNotFoundError, RunError
from convlens.plots.one_layer import value_range
from convlens.runs import Run
from convlens.runs.follower import RunFollower
from convlens.web import formatting
from convlens.web.report import write_file
from convlens.web.run_data import RunData

WIDTH, MARGIN, GAP = 800, 20, 6
HEAD, LINE, SIDE, KERNEL, HEAT = 92, 24, 230, 84, 150
"""Heights in pixels; the maps beside the probe image are as high together."""
FRAME_MS, LAST_MS = 900, 3_600
MOST_FRAMES = 60
"""Of more kept epochs, so many equally far apart."""

WHITE, INK, SOFT, LINK, BLANK = "#ffffff", "#23292f", "#59636f", "#0068a3", "#eceff2"


def _colours(*codes: str, n: int) -> Bytes:
    """(n, 3) colours from the first to the last."""
    ends = np.array([list(bytes.fromhex(code[1:7])) for code in codes], np.float64)
    at = np.linspace(0, len(ends) - 1, n)
    channels = [np.interp(at, range(len(ends)), channel) for channel in ends.T]
    return np.stack(channels, 1).round().astype(np.uint8)


SIGNED = _colours("#307ac4", WHITE, "#d63940", n=85)
"""From the most negative over 0 to the most positive."""

COUNTS = _colours(*viridis(80), n=80)

GREYS = _colours("#000000", WHITE, n=64)

PALETTE = np.concatenate(
    [SIGNED, COUNTS, GREYS, _colours(WHITE, INK, n=12), _colours(WHITE, SOFT, n=12)]
    + [_colours(code, n=1) for code in (LINK, BLANK)]
)
"""The colours of all frames, so that nothing flickers."""


class _Heat(NamedTuple):
    """The histograms of all batches as an image, and its axes."""

    image: Image.Image
    first: int
    last: int
    low: float
    high: float


def write_gif(run: Run, out: Path, layer: str = "") -> Path:
    """Write how a layer's feature maps, kernels and histogram change from epoch to epoch.

    Args:
        run: an opened run.
        out: the file to write, replaced if it exists.
        layer: the layer's name; empty for the first convolution.

    Returns:
        The file.

    Raises:
        LayerNotFoundError: if no feature maps of this layer were kept.
        RunError: if none were kept at all, or the file cannot be written.
    """
    content = make_gif(RunData("", RunFollower(run)), layer)
    write_file(Path(out), content, "a GIF file")
    return Path(out)


def make_gif(run: RunData, layer: str = "") -> bytes:
    """The file's content; see `write_gif`."""
    name = _layer_of(run, layer)
    heat = _heat(run.history(name)) if name in run.names else None
    every = run.snapshot_epochs(FeatureMaps, name)
    epochs = dict.fromkeys(every[:: -(-len(every) // MOST_FRAMES)] + every[-1:])
    frames = [_frame(run, name, heat, epoch) for epoch in epochs]
    palette = Image.new("P", (1, 1))
    palette.putpalette(PALETTE.tobytes())
    still = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    times = [FRAME_MS] * (len(still) - 1) + [LAST_MS]
    still[0].save(file, "GIF", save_all=True, append_images=still[1:], duration=times, loop=0)
    return file.getvalue()


def _layer_of(run: RunData, layer: str) -> str:
    kept = run.run.snapshot_layers(FeatureMaps)
    if not kept:
        raise RunError(
            f"The run {run.name!r} has no pictures to play. Train with the callback cl.Pictures(): "
            "it keeps feature maps and kernels after each epoch."
        )
    if not layer:
        kernels = run.run.snapshot_layers(Kernels)
        return next((name for name in kept if name in kernels), kept[0])
    if layer not in kept:
        known = ", ".join(map(repr, kept[:20]))
        raise LayerNotFoundError(
            f"layer={layer!r} has no pictures in the run {run.name!r}; give one of {known}."
        )
    return layer


def _heat(history: LayerHistory) -> _Heat | None:
    """`color_dim`, brought down to as many columns as there are pixels."""
    if not len(history):
        return None
    low, high = value_range(history, None)
    counts = history.rebin(np.linspace(low, high, HEAT // 2 + 1))
    first, last = int(history.first_step[0]), int(history.last_step[-1])
    width = WIDTH - 2 * MARGIN
    steps = first + np.arange(width) * (last - first + 1) / width
    column = np.searchsorted(history.first_step, steps, side="right") - 1
    shares = counts / np.maximum(history.columns.n_finite, 1)[:, None]
    levels = np.log1p(100 * 100 * shares) / np.log1p(100 * 100 * max(shares.max(), 1e-9))
    pixels = COUNTS[(levels[column].T[::-1] * (len(COUNTS) - 1)).astype(np.uint8)]
    return _Heat(_scaled(pixels, width, HEAT), first, last, low, high)


def _frame(run: RunData, name: str, heat: _Heat | None, epoch: int) -> Image.Image:
    maps, kernels = run.snapshot(FeatureMaps, name, epoch), run.snapshot(Kernels, name, epoch)
    assert maps is not None
    height = HEAD + LINE + SIDE + MARGIN
    height += 0 if kernels is None else LINE + KERNEL + MARGIN
    height += 0 if heat is None else LINE + HEAT + LINE + GAP
    image = Image.new("RGB", (WIDTH, height), WHITE)
    draw = ImageDraw.Draw(image)
    _draw_head(draw, run, name, epoch)
    left = MARGIN + _draw_probe(image, draw, run)
    _say(draw, left, HEAD, f"{maps.maps.shape[1]} of {maps.n_channels} feature maps")
    _draw_tiles(image, _values(maps), left, SIDE, HEAD + LINE)
    y = HEAD + LINE + SIDE + MARGIN
    if kernels is not None:
        rows, columns = kernels.shape[2:]
        _say(draw, MARGIN, y, f"Kernels of {rows} by {columns}, their first input channel")
        tiles = kernels.weight[:16, 0] / max(np.abs(kernels.weight[:16, 0]).max(), 1e-30)
        _draw_tiles(image, tiles, MARGIN, KERNEL, y + LINE)
        y += LINE + KERNEL + MARGIN
    if heat is not None:
        newest = max((e.last_step for e in run.epochs if e.epoch <= epoch), default=-1)
        _draw_heat(image, draw, heat, y, newest)
    return image


def _draw_head(draw: ImageDraw.ImageDraw, run: RunData, name: str, epoch: int) -> None:
    kind = next((f" ({info.kind})" for info in run.layers if info.name == name), "")
    _say(
        draw, MARGIN, 12, f"{formatting.short(run.name)}: layer {formatting.short(name + kind, 40)}"
    )
    words = "before training" if epoch == BEFORE else f"epoch {epoch + 1} of {len(run.epochs)}"
    for one in run.epochs:
        if one.epoch == epoch:
            named = {"validation loss": formatting.loss(one.valid_loss)}
            named |= {
                n: formatting.metric(n, v)
                for n, v in list(without_classes(one.metrics).items())[:2]
            }
            words += ": " + ", ".join(f"{formatting.short(n, 15)} {v}" for n, v in named.items())
    _say(draw, MARGIN, 40, words[:1].upper() + words[1:], 22, INK)
    done = (epoch + 1) / max(len(run.epochs), 1)
    draw.rectangle((MARGIN, 76, WIDTH - MARGIN, 80), fill=BLANK)
    draw.rectangle((MARGIN, 76, MARGIN + round((WIDTH - 2 * MARGIN) * min(done, 1)), 80), fill=LINK)


def _draw_probe(image: Image.Image, draw: ImageDraw.ImageDraw, run: RunData) -> int:
    """The first probe image; returns the pixels that it takes."""
    probes = run.snapshot(Probes)
    if probes is None or not len(probes.images):
        return 0
    words = f"Image: {formatting.short(probes.captions[0], 16)}" if probes.captions else "Image"
    _say(draw, MARGIN, HEAD, words)
    image.paste(_scaled(probes.images[0], SIDE, SIDE), (MARGIN, HEAD + LINE))
    return SIDE + MARGIN


def _draw_heat(
    image: Image.Image, draw: ImageDraw.ImageDraw, heat: _Heat, y: int, step: int
) -> None:
    """The histograms up to a step; what comes later is blank."""
    _say(
        draw, MARGIN, y, f"Activations, {heat.low:.3g} to {heat.high:.3g}: a column for each batch"
    )
    y += LINE
    width = WIDTH - 2 * MARGIN
    done = min(1.0, max(0.0, (step + 1 - heat.first) / (heat.last - heat.first + 1)))
    draw.rectangle((MARGIN, y, MARGIN + width - 1, y + HEAT - 1), fill=BLANK)
    image.paste(heat.image.crop((0, 0, round(width * done), HEAT)), (MARGIN, y))
    _say(draw, MARGIN, y + HEAT + 4, f"batch {formatting.number(heat.first)}")
    _say(draw, WIDTH - MARGIN, y + HEAT + 4, formatting.number(heat.last), anchor="ra")


def _values(maps: FeatureMaps) -> Floats:
    """(C, h, w) of the first probe image, each channel between −1 and 1."""
    low, high = maps.low[:, None, None].astype(np.float64), maps.high[:, None, None]
    values = low + (high - low) * maps.maps[0] / 255
    return values / np.maximum(np.abs(values).max(axis=(1, 2), keepdims=True), 1e-30)


def _draw_tiles(
    image: Image.Image, tiles: NDArray[np.floating], left: int, height: int, y: int
) -> None:
    """(N, h, w) from −1 to 1 side by side, in the number of rows that makes them largest."""
    n, room = len(tiles), WIDTH - MARGIN - left + GAP

    def side(rows: int) -> int:
        return min((height + GAP) // rows, room // -(-n // rows)) - GAP

    rows = max(range(1, 5), key=side)
    columns, size = -(-n // rows), side(rows)
    for i, tile in enumerate(np.nan_to_num(tiles)):
        levels = np.round((tile.clip(-1, 1) + 1) / 2 * (len(SIGNED) - 1)).astype(np.uint8)
        at = left + i % columns * (size + GAP), y + i // columns * (size + GAP)
        image.paste(_scaled(SIGNED[levels], size, size, BLANK), at)


def _scaled(pixels: Bytes, width: int, height: int, frame: str = "") -> Image.Image:
    """(H, W) or (H, W, 3) as large as its place, its pixels seen."""
    size, there = (width, height), Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    small = there.width <= width and there.height <= height
    large = there.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.BOX)
    if frame:
        ImageDraw.Draw(large).rectangle((0, 0, width - 1, height - 1), outline=frame)
    return large


def _say(
    draw: ImageDraw.ImageDraw, x: int, y: int, words: str, size: int = 16, fill: str = SOFT,
    anchor: str = "la",
) -> None:  # fmt: skip
    plain = encodable(printable(words), "latin-1")  # the font has hardly more
    draw.text((x, y), plain, fill=fill, font=ImageFont.load_default(size), anchor=anchor)
