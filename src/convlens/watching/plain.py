"""The same sketch in plain torch operations, for devices without a kernel of their own.

Nothing here waits for the device: every result is added to buffers that lie on it. Where a device
has no float64 (Apple's MPS), moments are kept as single-precision numbers in a form that keeps
them: see `SINGLE_MOMENTS`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RAW = 4096  # buckets named by a float32's sign, exponent and top three mantissa bits
INFINITE = 2040  # the raw bucket where infinities and NaN begin

SINGLE_MOMENTS = 4
"""Moments without float64, (K, 4) float32: n, mean, what rounding took from the mean, deviation.

A mean in two parts keeps a small deviation about a large mean, and the square root of M2/n stays in
range where M2 of float32 values would not. `double_moments` reads them.
"""


class Target(Protocol):
    """What a sketch is added to: `convlens.watching.buffers.Buffers`."""

    counts: Tensor  # (K, B) int64
    exact: Tensor  # (K, 6) int64
    moments: Tensor  # (K, 3) float64 or (K, 4) float32
    flags: Tensor  # (K, C) uint8


def moments_kind(device: torch.device) -> tuple[int, torch.dtype]:
    """Width and dtype that the moments of a device have."""
    return (SINGLE_MOMENTS, torch.float32) if device.type == "mps" else (3, torch.float64)


def double_moments(moments: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Moments that were kept without float64 as (n, mean, M2), (K, 3).

    Args:
        moments: (K, 4), see `SINGLE_MOMENTS`.
        counts: (K, B) of the same rows; they know n exactly.
    """
    n = counts.sum(axis=1).astype(np.float64)
    wide = moments.astype(np.float64)
    return np.stack([n, wide[:, 1] + wide[:, 2], n * wide[:, 3] ** 2], axis=1)


def sketch(
    x: Tensor, channel_axis: int | None, eps: float, low: int, buffers: Target, row: int | Tensor
) -> None:
    """Add the values of ``x`` to one row of ``buffers``; see `convlens.watching.kernels.Sketcher`.

    Args:
        x: values of any shape and any floating dtype.
        channel_axis: the axis of the channels, None if there is none.
        eps: bound of near zero.
        low: raw bucket where the layout's octaves begin.
        buffers: of as many channels as ``x`` has, on its device.
        row: which row; a tensor of one int64 on the device may also be −1, then nothing is added.
    """
    x = x.detach()
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    eps = float(torch.tensor(eps, dtype=x.dtype))  # the kernels compare in x's own precision
    near, below = x.abs() <= eps, x <= eps
    nan, neg_inf, pos_inf = x.isnan(), x == -torch.inf, x == torch.inf
    sums = [t.sum() for t in (nan, neg_inf, pos_inf, near, below)]
    found = torch.stack([torch.ones_like(sums[0]), *sums])
    counts = _bucket_counts(x, low, buffers.counts.shape[1])
    _put(buffers.exact, row, _get(buffers.exact, row) + found)
    _put(buffers.counts, row, _get(buffers.counts, row) + counts)
    if x.numel():
        join = _join_double if buffers.moments.dtype == torch.float64 else _join_single
        _put(buffers.moments, row, join(x, _get(buffers.moments, row)))
    if channel_axis is not None and x.numel():
        flags = (x > 0).to(torch.uint8) + 2 * (~near).to(torch.uint8)
        by_channel = flags.movedim(channel_axis, 0).reshape(flags.shape[channel_axis], -1)
        # max of the bits one by one is their union
        union = (by_channel & 1).amax(1) | (by_channel & 2).amax(1)
        _put(buffers.flags, row, _get(buffers.flags, row) | union)


def cannot_tell_channels(buffers: Target, row: int | Tensor) -> None:
    """Say of no channel that it is dead or silent: the values have other channels, or none."""
    _put(buffers.flags, row, torch.full_like(buffers.flags[0], 3))


def _get(buffer: Tensor, row: int | Tensor) -> Tensor:
    """One row; indexing with a tensor on a device would wait for it."""
    if isinstance(row, int):
        return buffer[row]
    return buffer.index_select(0, row.clamp(min=0).view(1))[0]


def _put(buffer: Tensor, row: int | Tensor, new: Tensor) -> None:
    if isinstance(row, int):
        buffer[row] = new
        return
    kept = torch.where(row.view(1) >= 0, new, _get(buffer, row))
    buffer.index_copy_(0, row.clamp(min=0).view(1), kept[None])


def _bucket_counts(x: Tensor, low: int, n_buckets: int) -> Tensor:
    """Finite values per bucket of the layout, (B,) int64."""
    magnitude = _raw_magnitude(x).flatten()
    middle = n_buckets // 2
    inside = (magnitude - (low - 2)).clamp(1, middle)
    inside = torch.where(x.flatten() == 0, 0, inside)
    bucket = middle + torch.where(x.flatten() < 0, -inside, inside)
    # 64 bits only where they are needed: not every device can scatter them.
    dtype = torch.int32 if x.numel() < 2**31 else torch.int64
    finite = (magnitude < INFINITE).to(dtype)
    counts = torch.zeros(n_buckets, dtype=dtype, device=x.device)
    return counts.scatter_add_(0, bucket, finite).to(torch.int64)


def _raw_magnitude(x: Tensor) -> Tensor:
    """Exponent and top three mantissa bits of |x| as a float32 would have them, int64."""
    if x.dtype == torch.float32:
        return ((x.contiguous().view(torch.int32) >> 20) & 0x7FF).to(torch.int64)
    magnitude = ((x.contiguous().view(torch.int64) >> 49) & 0x3FFF) - ((1023 - 127) << 3)
    return torch.where(x.isfinite(), magnitude.clamp(0, INFINITE - 1), INFINITE)


def _join_double(x: Tensor, moments: Tensor) -> Tensor:
    """(n, mean, M2) with the finite values of ``x`` joined to it by Chan's rule."""
    finite = x.isfinite()
    wide = torch.where(finite, x, 0).to(torch.float64)
    n = finite.sum().to(torch.float64)
    mean = wide.sum() / n.clamp(min=1)
    m2 = ((wide - mean) * finite).square().sum()
    before, mean_before, m2_before = moments.unbind()
    total = before + n
    share = n / total.clamp(min=1)
    delta = mean - mean_before
    joined = m2_before + m2 + delta.square() * before * share
    return torch.stack([total, mean_before + delta * share, joined])


def _join_single(x: Tensor, moments: Tensor) -> Tensor:
    """The same for `SINGLE_MOMENTS`, without any float64."""
    finite = x.isfinite()
    n = finite.sum().to(torch.float32)
    mean, rest, spread = _single_moments(x, finite, n)
    before, mean_before, rest_before, spread_before = moments.unbind()
    total = before + n
    own, others = n / total.clamp(min=1), before / total.clamp(min=1)
    # Halves, because the distance of two float32 numbers may be more than the largest of them.
    apart = (mean / 2 - mean_before / 2) + (rest - rest_before) / 2
    scale = torch.stack([spread / 2, spread_before / 2, apart.abs()]).amax().clamp(min=1e-38)
    square = own * (spread / 2 / scale).square() + others * (spread_before / 2 / scale).square()
    square = square + own * others * (apart / scale).square()
    first = before == 0
    new_mean, new_rest = _two_sum(mean_before, own * apart * 2)
    joined = torch.stack([total, new_mean, new_rest + rest_before, scale * square.sqrt() * 2])
    alone = torch.stack([n, mean, rest, spread])
    return torch.where(n == 0, moments, torch.where(first, alone, joined))


def _single_moments(x: Tensor, finite: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, what rounding took from it, and deviation of the finite float32 values.

    Two passes: the differences from a first mean are exact to their own rounding, so that a large
    mean takes nothing from a small deviation. Everything is scaled by its largest value, so that
    no square leaves the range.
    """
    n = n.clamp(min=1)
    values = torch.where(finite, x, 0)
    scale = values.abs().amax().clamp(min=1e-38)
    first = (values / scale).sum() / n * scale
    half = torch.where(finite, values / 2 - first / 2, 0)
    scale = half.abs().amax().clamp(min=1e-38)
    unit = half / scale
    offset = unit.sum() / n
    deviation = (unit.square().sum() / n - offset.square()).clamp(min=0).sqrt()
    mean, rest = _two_sum(first, offset * scale * 2)
    return mean, rest, deviation * scale * 2


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The sum and what its rounding left out, exactly (Knuth, TAOCP 2, 4.2.2)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
