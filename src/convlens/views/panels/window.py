"""The sliding window: patch × kernel = products, whose sum and the bias are a unit's value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convlens.core.snapshots import FeatureMaps, Kernels, Probes
from convlens.core.wording import plural
from convlens.views.markup import number, text
from convlens.views.panels.choice import Choice, Place, half_level, settle, values, within
from convlens.views.panels.elements import (
    after,
    button,
    coloured,
    marks,
    measured,
    note,
    nothing,
    panel,
    picture,
    rectangle,
    short,
    spot,
    tile,
)

Reals = NDArray[np.float64]

MOST_NUMBERS = 5
"""Kernels of up to so many rows and columns are shown with numbers."""

MOST_CHANNELS = 3

FLOAT32 = 1e-5
"""The network's own rounding, as a share of the products' size."""

NO_KERNELS = (
    "The sliding window needs a convolution's kernels, its feature maps and the probe images, and "
    "not all of them were kept of this layer."
)
NOT_FIRST = (
    "The sliding window is shown where a convolution reads the network's own input; this layer "
    "reads the output of another one."
)
PLANES = ("red", "green", "blue")


@dataclass(frozen=True)
class Window:
    """How one unit of a convolution comes about; float64, exact to its rounding.

    Attributes:
        patch: (C, kH, kW) input values under the kernel, 0 in the padding.
        padding: (kH, kW) whether a place lies outside the image.
        weight: (C, kH, kW).
        products: (C, kH, kW).
        sums: (C,) of each input channel's products.
        bias: 0 without one.
        value: of the unit.
        first_input: number of the first input channel that it reads.
        corner: (row, column) of the input's pixel under the kernel's first entry.
    """

    patch: Reals
    padding: NDArray[np.bool_]
    weight: Reals
    products: Reals
    sums: Reals
    bias: float
    value: float
    first_input: int
    corner: Place


def slide(
    kernels: Kernels, inputs: NDArray[np.floating], channel: int, unit: Place
) -> Window | str:
    """Work out a unit's value from the network's input, or say in a sentence why it cannot be.

    Args:
        kernels: the convolution.
        inputs: (C, H, W) one image as the network gets it.
        channel: which output channel.
        unit: (row, column) on the layer's grid.
    """
    n_out, n_in = kernels.shape[:2]
    if not 0 <= channel < len(kernels.weight):
        kept = len(kernels.weight)
        return f"The kernels of channels 0 to {kept - 1} were kept; that of {channel} was not."
    weight = kernels.weight[channel].astype(np.float64)
    first = channel // max(n_out // kernels.groups, 1) * n_in
    planes = inputs[first : first + n_in].astype(np.float64)
    if weight.shape[0] < n_in or planes.shape[0] < n_in:
        return f"Of the {n_in} channels that this layer reads, not all were kept."
    patch, padding, corner = _under_kernel(kernels, planes, weight.shape[1:], unit)
    if padding.any() and not kernels.zero_padding:
        return "This unit reads padding that is not zeros; choose one further from the edge."
    products = patch * weight
    bias = float(kernels.bias[channel]) if len(kernels.bias) > channel else 0.0
    value = float(products.sum()) + bias
    sums = products.sum(axis=(1, 2))
    return Window(patch, padding, weight, products, sums, bias, value, first, corner)


def _under_kernel(
    kernels: Kernels, planes: Reals, size: tuple[int, ...], unit: Place
) -> tuple[Reals, NDArray[np.bool_], Place]:
    rows, columns = (
        at * stride - pad + dilation * np.arange(n)
        for at, stride, pad, dilation, n in zip(
            unit, kernels.stride, kernels.padding, kernels.dilation, size, strict=True
        )
    )
    height, width = planes.shape[1:]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    patch = planes[:, rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
    return np.where(inside, patch, 0.0), ~inside, (int(rows[0]), int(columns[0]))


def window(
    kernels: Kernels | None,
    probes: Probes | None,
    maps: FeatureMaps | None,
    choice: Choice | None = None,
    live: bool = True,
) -> str:
    """The products under a first layer's kernel at the chosen unit, in numbers up to 5 × 5.

    The map answers with ``window`` (row and column on the layer's grid), and so do four arrows.

    Args:
        kernels: the layer's kernels.
        probes: the images, as people see them and as the network gets them.
        maps: the layer's feature maps, to choose from and to compare with.
        choice: the probe image, the channel and the unit.
        live: whether it answers.
    """
    if kernels is None or probes is None or maps is None or not maps.maps.size:
        return nothing("window", NO_KERNELS)
    if not kernels.reads_input:
        return nothing("window", NOT_FIRST)
    chosen = settle(choice or Choice(), maps, probes)
    channel, unit = chosen.channel or 0, chosen.unit or (0, 0)
    worked = slide(kernels, probes.inputs[chosen.probe], channel, unit)
    if isinstance(worked, str):
        shown = _pictures(kernels, probes, maps, chosen, None, live)
        return panel("window", f'<div class="beside">{shown}{note(worked)}</div>')
    shown = _pictures(kernels, probes, maps, chosen, worked, live)
    steps = _equation(worked, kernels) + _tables(worked)
    words = note(_compared(worked, kernels, maps, chosen) + " " + _how(kernels, live))
    return panel("window", f'<div class="beside">{shown}<div>{steps}{words}</div></div>')


def _pictures(
    kernels: Kernels,
    probes: Probes,
    maps: FeatureMaps,
    chosen: Choice,
    worked: Window | None,
    live: bool,
) -> str:
    """The image with the kernel on it, the map with the unit, and arrows."""
    unit, channel = chosen.unit or (0, 0), chosen.channel or 0
    image = tile(_image(kernels, probes, chosen, worked), "the kernel on the image")
    height, width = maps.grid
    mark = marks(height, width, spot(unit))
    kept = maps.channels.tolist().index(channel)
    alt = f"channel {channel}, unit in row {unit[0]}, column {unit[1]}"
    shot = picture(coloured(maps.maps[chosen.probe, kept]), alt, mark)
    data = {"grid": f"{height},{width}", "row": unit[0], "col": unit[1]}
    caption = f"channel {channel}, row {unit[0]}, column {unit[1]}"
    grid = tile(button(shot, "window", data, live, "map"), caption)
    return f'<div class="stack">{image}{grid}{_arrows(unit, maps.grid) if live else ""}</div>'


def _image(kernels: Kernels, probes: Probes, chosen: Choice, worked: Window | None) -> str:
    """The image with a margin as wide as the padding, in which it is hatched."""
    image = probes.images[chosen.probe]
    height, width = image.shape[:2]
    alt = f"probe image {chosen.probe + 1} with the kernel's place"
    if worked is None:
        return picture(image, alt)
    size = worked.weight.shape[1:]
    rows, columns = (
        (at, at + dilation * (n - 1))
        for at, dilation, n in zip(worked.corner, kernels.dilation, size, strict=True)
    )
    ends = (rows[1] - height + 1, columns[1] - width + 1)
    top = left = max(0, *kernels.padding, *(-at for at in worked.corner), *ends)
    framed = np.zeros((height + 2 * top, width + 2 * left, 4), np.uint8)
    framed[top : top + height, left : left + width, :3] = (
        image if image.ndim == 3 else image[..., None]
    )
    framed[top : top + height, left : left + width, 3] = 255
    shapes = rectangle((rows[0] + top, rows[1] + top), (columns[0] + left, columns[1] + left))
    drawn = picture(framed, alt, marks(*framed.shape[:2], shapes))
    return drawn.replace('class="shot"', 'class="shot padded"', 1)


def _arrows(unit: Place, grid: Place) -> str:
    moves = (("↑", -1, 0, "up"), ("←", 0, -1, "left"), ("→", 0, 1, "right"), ("↓", 1, 0, "down"))
    made: list[str] = []
    for sign, down, right, name in moves:
        to = within((unit[0] + down, unit[1] + right), grid)
        data = {"row": to[0], "col": to[1]}
        made.append(button(sign, "window", data, live=True, kind=name, label=f"one unit {name}"))
    return f'<div class="arrows">{"".join(made)}</div>'


def _equation(worked: Window, kernels: Kernels) -> str:
    """Sum + bias = value, large."""
    names = _names(worked)
    terms = [
        f"{_exact(s)}<small>{name}</small>" for s, name in zip(worked.sums, names, strict=True)
    ]
    if len(terms) > MOST_CHANNELS:
        terms = [f"{_exact(float(worked.sums.sum()))}<small>sum of the products</small>"]
    if len(kernels.bias):
        terms.append(f"{_exact(worked.bias)}<small>bias</small>")
    joined = " <i>+</i> ".join(f"<span>{term}</span>" for term in terms)
    value = f"<strong>{_exact(worked.value)}<small>the unit's value</small></strong>"
    return f'<p class="equation">{joined} <i>=</i> {value}</p>'


def _names(worked: Window) -> list[str]:
    n = len(worked.sums)
    if n == 1:
        return ["sum of the products"]
    if n == 3 and worked.first_input == 0:
        return list(PLANES)
    return [f"input {worked.first_input + i}" for i in range(n)]


def _tables(worked: Window) -> str:
    """For each input channel the three tables side by side."""
    n = min(len(worked.sums), MOST_CHANNELS)
    reach = [float(np.abs(part).max()) for part in (worked.patch, worked.weight, worked.products)]
    size = worked.weight.shape[2]
    kind = "written" if max(worked.weight.shape[1:]) <= MOST_NUMBERS else ""
    rows: list[str] = []
    for i, name in enumerate(_names(worked)[:n]):
        title = f"<h4>{text(name) if len(worked.sums) > 1 else ''}</h4>"
        parts = (
            _grid(worked.patch[i], reach[0], f"input, {name}", "input", worked.padding),
            _grid(worked.weight[i], reach[1], f"kernel, {name}", "kernel"),
            _grid(worked.products[i], reach[2], f"products, {name}", "products", worked.padding),
        )
        inner = f"{title}{parts[0]}<i>×</i>{parts[1]}<i>=</i>{parts[2]}"
        rows.append(f'<div class="product {kind}" style="--k:{size}">{inner}</div>')
    more = len(worked.sums) - n
    left = (
        note(f"{more} further input channels take part; their sums are in the value.")
        if more
        else ""
    )
    return f'<div class="products">{"".join(rows)}</div>{left}'


def _grid(
    part: Reals, reach: float, name: str, caption: str, padding: NDArray[np.bool_] | None = None
) -> str:
    """A table of numbers on their colours; of larger kernels the colours alone."""
    with_numbers = max(part.shape) <= MOST_NUMBERS
    digits = max(0, min(3, 2 - math.floor(math.log10(reach)))) if reach > 0 else 2
    lines: list[str] = []
    for r, line in enumerate(part.tolist()):
        cells = (
            _cell(
                v,
                reach,
                digits if with_numbers else None,
                bool(padding[r, c]) if padding is not None else False,
            )
            for c, v in enumerate(line)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    kind = "numbers" if with_numbers else "colours"
    caption += "" if with_numbers else f", ± {short(reach)}"
    return (
        f'<table class="cells {kind}" aria-label="{text(name)}"><caption>{caption}</caption>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _cell(value: float, reach: float, digits: int | None, is_padding: bool) -> str:
    sign = "plus" if value > 0 else "minus"
    share = min(abs(value) / reach, 1.0) if reach and np.isfinite(value) else 0.0
    shown = "" if digits is None else _rounded(value, digits)
    if is_padding:
        return f'<td class="outside" title="padding">{"" if digits is None else "0"}</td>'
    return f'<td class="{sign}" style="--a:{share:.2f}" title="{number(value)}">{shown}</td>'


def _rounded(value: float, digits: int) -> str:
    shown = f"{value:.{digits}f}"
    return shown.lstrip("-") if float(shown) == 0 else shown.replace("-", "−")


def _exact(value: float) -> str:
    return f"{value:.5g}".replace("-", "−")


def _compared(worked: Window, kernels: Kernels, maps: FeatureMaps, chosen: Choice) -> str:
    """What the kept map says of the same unit."""
    if kernels.epoch != maps.epoch:
        return (
            f"The kernel is that of {after(kernels.epoch)}, the map that of {after(maps.epoch)}: "
            "they are not compared."
        )
    if maps.maps.shape[2:] != maps.grid:
        return (
            "A cell of the map is the mean of several units, so there is no value to compare with."
        )
    kept = maps.channels.tolist().index(chosen.channel)
    row, column = chosen.unit or (0, 0)
    shown = float(values(maps)[chosen.probe, kept, row, column])
    half = half_level(maps, kept)
    off = abs(shown - worked.value)
    size = float(np.abs(worked.products).sum()) + abs(worked.bias)
    agree = off <= 1.001 * half + FLOAT32 * size
    said = f"The map, kept in 256 levels, has {measured(shown, half)} there"
    return f"{said}: they agree." if agree else f"{said}, which differs by {number(off)}."


def _how(kernels: Kernels, live: bool) -> str:
    rows, columns = kernels.stride
    stride = plural(rows, "pixel") if rows == columns else f"{rows} × {columns} pixels"
    dilated = max(kernels.dilation) > 1
    spread = f", its entries {kernels.dilation[0]} × {kernels.dilation[1]} apart" if dilated else ""
    moves = " The arrow keys move it." if live else ""
    return (
        "Input values are those that the network gets, normalized; all numbers here are rounded "
        f"for show, the sum is not. The kernel moves by {stride}{spread}; hatched is "
        f"padding, which counts as 0.{moves}"
    )
