"""Operators that read neighbours: convolution, pooling, padding, interpolation, unfolding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from convlens.geometry import reach, taps
from convlens.geometry.effects.calls import Call, each, over, through
from convlens.geometry.periodic import Pattern, window
from convlens.geometry.reach import NOTHING_FIRST, NOTHING_LAST, Known, Reach, Shape
from convlens.geometry.taps import Ints, Taps


def convolution(call: Call) -> Known:
    """Convolution or transposed convolution, (N, C, …) with weight (C_out, C_in / groups, …)."""
    if call.sees("weight", "bias"):
        return call.unknown()
    n_in, kernel = call.shape_of("input"), call.shape_of("weight")[2:]
    axes = len(kernel)
    stride, padding, dilation = (
        each(call[name], axes) for name in ("stride", "padding", "dilation")
    )

    def along(axis: int) -> Taps:
        n, n_out = n_in[axis + 2], call.shape[axis + 2]
        k, s, p, d = kernel[axis], stride[axis], padding[axis], dilation[axis]
        if call["transposed"]:
            return taps.transposed(n, n_out, k, s, p, d)
        return taps.strided(n, n_out, range(-p, k * d - p, d), s)

    seen = through(call.field("input"), n_in, {axis + 2: along(axis) for axis in range(axes)})
    return tuple(mix_channels(r, n_in, call.shape[1], call["groups"]) for r in seen)


def mix_channels(seen: Reach, shape: Shape, n_out: int, groups: int) -> Reach:
    """Each group of output channels sees all input channels of its group."""
    if groups == 1:
        return reach.reduce_dims(seen, shape, (1,))
    if seen.first.shape[1] == 1:
        return seen
    rule = None if seen.mixed or seen.dim == 1 else seen.rule

    def by_group(array: Ints, least: bool) -> Ints:
        split = array.reshape(array.shape[0], groups, -1, *array.shape[2:])
        joined = split.min(axis=2) if least else split.max(axis=2)
        return joined.repeat(n_out // groups, axis=1)

    first, last = by_group(seen.first, least=True), by_group(seen.last, least=False)
    return Reach(first, last, rule, None if seen.dim == 1 else seen.dim, seen.mixed)


def pooling(call: Call) -> Known | list[Known]:
    """Max and average pooling over windows, in one, two or three axes."""
    shape, axes = call.shape_of("self"), call.axes
    kernel = each(call["kernel_size"], axes)
    stride = each(call["stride"], axes) if call["stride"] else kernel
    padding = each(call["padding"], axes)
    dilation = each(call.arguments.get("dilation", 1), axes)

    def along(axis: int, dim: int) -> Taps:
        offsets = [i * dilation[axis] - padding[axis] for i in range(kernel[axis])]
        return taps.strided(shape[dim], call.shape[dim], offsets, stride[axis])

    lead = len(shape) - axes
    windows = {lead + axis: along(axis, lead + axis) for axis in range(axes)}
    return call.all(through(call.field("self"), shape, windows))


def adaptive_pooling(call: Call) -> Known | list[Known]:
    """Adaptive average and max pooling: as many windows as asked for, of nearly equal size."""
    shape, dims = call.shape_of("self"), _last(call)
    field = over(call.field("self"), shape, [dim for dim in dims if call.shape[dim] == 1])
    some = [dim for dim in dims if call.shape[dim] != 1]
    windows = {dim: taps.adaptive(shape[dim], call.shape[dim]) for dim in some}
    return call.all(through(field, shape, windows))


def fractional_pooling(call: Call) -> Known | list[Known]:
    """Fractional max pooling (Graham, 2014), where the random numbers behind it are constants."""
    shape, dims = call.shape_of("self"), _last(call)
    samples = call.value(call["random_samples"])  # (N, C, axes)
    if samples is None or bool((samples != samples[:1, :1]).any()):
        return call.all(call.unknown())
    kernel = each(call["kernel_size"], len(dims))

    def along(axis: int, dim: int) -> Taps:
        n, n_out, k = shape[dim], call.shape[dim], kernel[axis]
        # torch holds those of images from the last axis to the first
        sample = float(samples[0, 0, 1 - axis if call.axes == 2 else axis])
        alpha = (n - k) / (n_out - 1) if n_out > 1 else 0.0
        starts = [int((o + sample) * alpha) - int(sample * alpha) for o in range(n_out - 1)]
        return taps.listed([range(start, start + k) for start in [*starts, n - k]], n, None)

    windows = {dim: along(axis, dim) for axis, dim in enumerate(dims)}
    return call.all(through(call.field("self"), shape, windows))


def _last(call: Call) -> range:
    """The axes that the operator works on, which are the last ones."""
    rank = len(call.shape_of("self"))
    return range(rank - call.axes, rank)


def constant_pad(call: Call) -> Known:
    """Padding with a constant, which sees nothing; negative padding crops."""
    shape, pad = call.shape_of("self"), call["pad"]
    sides = {len(shape) - 1 - i: pad[2 * i : 2 * i + 2] for i in range(len(pad) // 2)}
    moved = {d: sides[d] for d in sides if any(sides[d])}
    reads = {d: taps.strided(shape[d], call.shape[d], [-moved[d][0]]) for d in moved}
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
        dim: taps.padded(shape[dim], pad[2 * i], pad[2 * i + 1], mode)
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

    def along(dim: int, scale: float | None) -> Taps:
        resizing = taps.Resizing(shape[dim], call.shape[dim], scale, align, precision)
        return _resized(call.operator, resizing)

    reads = {dim: along(dim, scales[dim - 2] if scales else None) for dim in range(2, axes + 2)}
    return through(call.field(call.input), shape, reads)


def _resized(operator: str, resizing: taps.Resizing) -> Taps:
    if "nearest" in operator:
        return resizing.nearest(Fraction(1, 2) if "exact" in operator else Fraction(0))
    cubic = "bicubic" in operator
    if "_aa" in operator:
        return resizing.antialiased(4 if cubic else 2)
    return resizing.around(range(-1, 3) if cubic else range(2))


def pixel_shuffle(call: Call) -> Known:
    """(…, C·r², H, W) to (…, C, H·r, W·r); see `torch.nn.PixelShuffle`."""
    shape, r = call.shape_of("self"), int(call["upscale_factor"])
    *lead, c, h, w = shape
    n = len(lead)
    cut = (*lead, c // r**2, r, r, h, w)
    order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    field = reach.permute(reach.reshape(call.field("self"), shape, cut), order)
    moved = tuple(cut[d] for d in order)
    whole = reach.reshape(field, moved, call.shape)
    spread = Pattern(((0,),) * r, 1)
    return tuple(
        new.with_rule(old.rule and old.rule.through(spread), old.dim)
        if old.dim in (n + 1, n + 2) and not old.mixed
        else new
        for old, new in zip(call.field("self"), whole, strict=True)
    )


def pixel_unshuffle(call: Call) -> Known:
    """(…, C, H·r, W·r) to (…, C·r², H, W); see `torch.nn.PixelUnshuffle`."""
    shape, r = call.shape_of("self"), int(call["downscale_factor"])
    *lead, c, h, w = shape
    n = len(lead)
    cut = (*lead, c, h // r, r, w // r, r)
    order = [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    field = reach.permute(reach.reshape(call.field("self"), shape, cut), order)
    moved = tuple(cut[d] for d in order)
    joined = window(range(r), r)
    return tuple(
        replace(new, rule=old.rule and old.rule.through(joined), dim=old.dim, mixed=True)
        if old.dim in (n + 1, n + 2)
        else new
        for old, new in zip(
            call.field("self"), reach.reshape(field, moved, call.shape), strict=True
        )
    )


def channel_shuffle(call: Call) -> Known:
    """Channels (g, C / g) in the order (C / g, g); see `torch.nn.ChannelShuffle`."""
    shape, groups = call.shape_of("self"), int(call["groups"])
    order = np.arange(shape[1]).reshape(groups, -1).T.reshape(-1)
    return through(call.field("self"), shape, {1: taps.picked(shape[1], order)})


def unfolded(call: Call) -> Known:
    """`Tensor.unfold`: windows along one axis; what they hold becomes the last axis."""
    shape, dim = call.shape_of("self"), call.dim("dimension")
    size, step = int(call["size"]), int(call["step"])
    places = np.arange(call.shape[dim])[:, None] * step + np.arange(size)[None, :]

    def cut(seen: Reach) -> Reach:
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
    _, _, places = _blocks(call, shape[2:])

    def cut(array: Ints, nothing: np.int32) -> Ints:
        whole = np.broadcast_to(array, (*array.shape[:2], *shape[2:]))
        edge = np.full((*array.shape[:2], shape[2] + 1, shape[3] + 1), nothing)
        edge[:, :, :-1, :-1] = whole
        rows = np.take(edge, places[0], axis=2)  # N, C, kH, rows, W
        blocks = np.take(rows, places[1], axis=4)  # N, C, kH, rows, kW, columns
        blocks = np.broadcast_to(blocks, (blocks.shape[0], shape[1], *blocks.shape[2:]))
        return blocks.transpose(0, 1, 2, 4, 3, 5).reshape(blocks.shape[0], -1, call.shape[2])

    return tuple(
        Reach(cut(seen.first, NOTHING_FIRST), cut(seen.last, NOTHING_LAST), None, None, mixed=True)
        for seen in call.field("self")
    )


def col2im(call: Call) -> Known:
    """`torch.nn.Fold`: (N, C·kH·kW, windows) to (N, C, H, W), overlaps added."""
    shape = call.shape_of("self")
    if len(shape) != 3:
        return call.unknown()
    kernel, counts, places = _blocks(call, call.shape[2:])

    def put(array: Ints, least: bool) -> Ints:
        n = array.shape[0]
        blocks = np.broadcast_to(array, (n, *shape[1:]))
        blocks = blocks.reshape(n, call.shape[1], *kernel, *counts)
        edge = np.full(
            (n, call.shape[1], call.shape[2] + 1, call.shape[3] + 1),
            NOTHING_FIRST if least else NOTHING_LAST,
        )
        join = np.minimum if least else np.maximum
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                at = np.ix_(range(n), range(call.shape[1]), places[0][i], places[1][j])
                join.at(edge, at, blocks[:, :, i, j])
        return edge[:, :, :-1, :-1]

    return tuple(
        Reach(put(seen.first, least=True), put(seen.last, least=False), None, None, mixed=True)
        for seen in call.field("self")
    )


def _blocks(call: Call, image: Sequence[int]) -> tuple[list[int], list[int], list[Ints]]:
    """Kernel, number of windows, and the pixels (k, windows) that they read, for each axis.

    Those in the padding are the place after the last pixel.
    """
    names = ("kernel_size", "dilation", "padding", "stride")
    kernel, dilation, padding, stride = (each(call[name], 2) for name in names)
    counts: list[int] = []
    places: list[Any] = []
    for n, k, d, p, s in zip(image, kernel, dilation, padding, stride, strict=True):
        counts.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
        at = np.arange(k)[:, None] * d - p + np.arange(counts[-1])[None, :] * s
        places.append(np.where((at >= 0) & (at < n), at, n))
    return kernel, counts, places
