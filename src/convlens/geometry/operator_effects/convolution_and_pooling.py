"""Operators that read neighbours: convolution, pooling, padding, interpolation, unfolding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch

from convlens.geometry import index_maps, spans
from convlens.geometry.index_maps import IndexMap, Ints
from convlens.geometry.operator_effects.calls import Call, each, over, through
from convlens.geometry.periodic import Pattern, window
from convlens.geometry.spans import Field, Known, Shape, Span


def convolution(call: Call) -> Known:
    """Convolution or transposed convolution, (N, C, …) with weight (C_out, C_in / groups, …)."""
    if call.sees("weight", "bias"):
        return call.unknown()
    n_in, kernel = call.shape_of("input"), call.shape_of("weight")[2:]
    axes = len(kernel)
    stride, padding, dilation = (
        each(call[name], axes) for name in ("stride", "padding", "dilation")
    )

    def along(axis: int) -> IndexMap:
        n, n_out = n_in[axis + 2], call.shape[axis + 2]
        k, s, p, d = kernel[axis], stride[axis], padding[axis], dilation[axis]
        if call["transposed"]:
            return index_maps.transposed(n, n_out, k, s, p, d)
        return index_maps.strided(n, n_out, range(-p, k * d - p, d), s)

    seen = through(call.field("input"), n_in, {axis + 2: along(axis) for axis in range(axes)})
    return tuple(mix_channels(r, n_in, call.shape[1], call["groups"]) for r in seen)


def mix_channels(seen: Span, shape: Shape, n_out: int, groups: int) -> Span:
    """Each group of output channels sees all input channels of its group."""
    if groups == 1:
        return spans.reduce_dims(seen, shape, (1,))
    if seen.first.shape[1] == 1:
        return seen
    rule = None if seen.mixed or seen.dim == 1 else seen.rule

    def by_group(array: Ints, least: bool) -> Ints:
        split = array.reshape(array.shape[0], groups, -1, *array.shape[2:])
        joined = split.min(axis=2) if least else split.max(axis=2)
        return joined.repeat(n_out // groups, axis=1)

    first, last = by_group(seen.first, least=True), by_group(seen.last, least=False)
    return Span(first, last, rule, None if seen.dim == 1 else seen.dim, seen.mixed)


def pooling(call: Call) -> Known | list[Known]:
    """Max and average pooling over windows, in one, two or three axes."""
    shape, axes = call.shape_of("self"), call.axes
    kernel = each(call["kernel_size"], axes)
    stride = each(call["stride"], axes) if call["stride"] else kernel
    padding = each(call["padding"], axes)
    dilation = each(call.arguments.get("dilation", 1), axes)

    def along(axis: int, dim: int) -> IndexMap:
        offsets = [i * dilation[axis] - padding[axis] for i in range(kernel[axis])]
        return index_maps.strided(shape[dim], call.shape[dim], offsets, stride[axis])

    lead = len(shape) - axes
    windows = {lead + axis: along(axis, lead + axis) for axis in range(axes)}
    return call.all(through(call.field("self"), shape, windows))


def adaptive_pooling(call: Call) -> Known | list[Known]:
    """Adaptive average and max pooling: as many windows as asked for, of nearly equal size."""
    shape = call.shape_of("self")
    dims = range(len(shape) - call.axes, len(shape))
    field = over(call.field("self"), shape, [dim for dim in dims if call.shape[dim] == 1])
    some = [dim for dim in dims if call.shape[dim] != 1]
    windows = {dim: index_maps.adaptive(shape[dim], call.shape[dim]) for dim in some}
    return call.all(through(field, shape, windows))


def constant_pad(call: Call) -> Known:
    """Padding with a constant, which sees nothing; negative padding crops."""
    shape, pad = call.shape_of("self"), call["pad"]
    sides = {len(shape) - 1 - i: pad[2 * i : 2 * i + 2] for i in range(len(pad) // 2)}
    moved = {d: sides[d] for d in sides if any(sides[d])}
    reads = {d: index_maps.strided(shape[d], call.shape[d], [-moved[d][0]]) for d in moved}
    channels = any(d < 2 for d in moved)
    return tuple(
        replace(seen, mixed=seen.mixed or channels)
        for seen in through(call.field("self"), shape, reads)
    )


def repeating_pad(call: Call) -> Known:
    """Padding that reflects, replicates or continues the input."""
    mode = next(m for m in ("reflect", "replicat", "circular") if m in call.operator)
    shape, pad = call.shape_of("self"), call.arguments.get("padding", call.arguments.get("pad"))
    if pad is None:
        return call.unknown()
    reads = {
        dim: index_maps.padded(shape[dim], pad[2 * i], pad[2 * i + 1], mode)
        for i, dim in enumerate(range(len(shape) - 1, len(shape) - 1 - len(pad) // 2, -1))
    }
    return through(call.field("self"), shape, reads)


def interpolation(call: Call) -> Known:
    """Resizing to the nearest, linearly, or by cubic polynomials; see `F.interpolate`."""
    shape, axes = call.shape_of(call.input), call.axes
    scales = call.arguments.get("scale_factors") or [
        value for name, value in call.arguments.items() if name.startswith("scales")
    ]
    align = bool(call.arguments.get("align_corners"))
    precision = np.float64 if call[call.input].dtype == torch.float64 else np.float32

    def along(dim: int, scale: float | None) -> IndexMap:
        resizing = index_maps.Resizing(shape[dim], call.shape[dim], scale, align, precision)
        if "nearest" in call.operator:
            return resizing.nearest(Fraction(1, 2) if "exact" in call.operator else Fraction(0))
        return resizing.around(range(-1, 3) if "bicubic" in call.operator else range(2))

    reads = {dim: along(dim, scales[dim - 2] if scales else None) for dim in range(2, axes + 2)}
    return through(call.field(call.input), shape, reads)


def pixel_shuffle(call: Call) -> Known:
    """`torch.nn.PixelShuffle`, (N, C·r², H, W) to (N, C, H·r, W·r), where channels see the same."""
    shape, field = call.shape_of("self"), call.field("self")
    if len(shape) != 4 or any(seen.first.shape[1] != 1 for seen in field):
        return call.unknown()
    pattern = Pattern(((0,),) * int(call["upscale_factor"]), 1)
    reads = {
        dim: index_maps.within(np.arange(n)[:, None] // len(pattern.reads), shape[dim], pattern)
        for dim, n in ((2, call.shape[2]), (3, call.shape[3]))
    }
    return through(field, shape, reads)


def channel_shuffle(call: Call) -> Known:
    """Channels (g, C / g) in the order (C / g, g); see `torch.nn.ChannelShuffle`."""
    shape, groups = call.shape_of("self"), int(call["groups"])
    order = np.arange(shape[1]).reshape(groups, -1).T.reshape(-1)
    return through(call.field("self"), shape, {1: index_maps.picked(shape[1], order)})


def unfolded(call: Call) -> Known:
    """`Tensor.unfold`: windows along one axis; what they hold becomes the last axis."""
    shape, dim = call.shape_of("self"), call.dim("dimension")
    size, step = int(call["size"]), int(call["step"])
    places = np.arange(call.shape[dim])[:, None] * step + np.arange(size)[None, :]

    def cut(seen: Span) -> Span:
        rule = seen.rule
        if rule is not None and seen.dim == dim:
            rule = rule.through(window(range(size), step))
        if seen.first.shape[dim] == 1:
            return seen.map(lambda a: a[..., None]).with_rule(rule, seen.dim)
        whole = seen.map(lambda a: np.moveaxis(np.take(a, places, axis=dim), dim + 1, -1))
        return replace(whole, rule=rule, mixed=seen.mixed or seen.dim == dim)

    return tuple(cut(seen) for seen in call.field("self")) if shape else call.unknown()


def im2col(call: Call) -> Known:
    """`torch.nn.Unfold`: (N, C, H, W) to (N, C·kH·kW, windows)."""
    shape = call.shape_of("self")
    if len(shape) != 4:
        return call.unknown()
    reads, sizes = [], []
    for n, places in zip(shape[2:], _places(call, shape[2:]), strict=True):
        reads.append(index_maps.within(places.reshape(-1, 1), n, None))
        sizes += places.shape
    field = through(call.field("self"), shape, dict(enumerate(reads, 2)))
    (k_h, h, k_w, w), lead = sizes, shape[:2]
    field = spans.reshape(field, (*lead, k_h * h, k_w * w), (*lead, k_h, h, k_w, w))
    field = spans.permute(field, (0, 1, 2, 4, 3, 5))
    return _varying(spans.reshape(field, (*lead, k_h, k_w, h, w), call.shape))


def col2im(call: Call) -> Known:
    """`torch.nn.Fold`: (N, C·kH·kW, windows) to (N, C, H, W), overlaps added."""
    shape = call.shape_of("self")
    if len(shape) != 3:
        return call.unknown()
    lead, pixels = call.shape[:2], call.shape[2:]
    rows, columns = _places(call, pixels)
    (k_h, h), (k_w, w) = rows.shape, columns.shape
    field = spans.reshape(call.field("self"), shape, (*lead, k_h, k_w, h, w))
    field = spans.permute(field, (0, 1, 2, 4, 3, 5))
    field = spans.reshape(field, (*lead, k_h, h, k_w, w), (*lead, k_h * h, k_w * w))
    reads = {
        2 + axis: index_maps.listed(
            [np.flatnonzero(places == pixel).tolist() for pixel in range(n)], places.size, None
        )
        for axis, (places, n) in enumerate(zip((rows, columns), pixels, strict=True))
    }
    return _varying(through(field, (*lead, k_h * h, k_w * w), reads))


def _varying(field: Field) -> Field:
    """The field without rules: it differs from position to position."""
    return tuple(replace(seen, rule=None, dim=None, mixed=True) for seen in field)


def _places(call: Call, image: Sequence[int]) -> list[Ints]:
    """For each axis, (kernel, windows): the pixel that each part of each window reads."""
    names = ("kernel_size", "dilation", "padding", "stride")
    settings = zip(image, *(each(call[name], 2) for name in names), strict=True)
    return [
        np.arange(k)[:, None] * d - p + np.arange((n + 2 * p - d * (k - 1) - 1) // s + 1) * s
        for n, k, d, p, s in settings
    ]
