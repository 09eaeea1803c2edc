"""The sketch in plain torch operations, for devices without a kernel of their own.

Nothing here waits for the device: every result is added to buffers that lie on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from convlens.watching.backends.buffers import Buffers

INFINITE = 2040  # the raw bucket where infinities and NaN begin


def sketch(
    x: Tensor, channel_axis: int | None, eps: float, low: int, buffers: Buffers, row: Tensor
) -> None:
    """Add the values of ``x`` to one row of ``buffers``; see `dispatch.Sketcher`.

    Args:
        x: values of any shape and any floating dtype.
        channel_axis: the axis of the channels, None if there is none.
        eps: bound of near zero.
        low: raw bucket where the layout's octaves begin.
        buffers: of as many channels as ``x`` has, on its device.
        row: (1,) int64 on the device; with −1 nothing is added.
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
        _put(buffers.moments, row, _joined(x, _get(buffers.moments, row)))
    if channel_axis is not None and x.numel():
        flags = (x > 0).to(torch.uint8) + 2 * (~near).to(torch.uint8)
        by_channel = flags.movedim(channel_axis, 0).reshape(flags.shape[channel_axis], -1)
        # max of the bits one by one is their union
        union = (by_channel & 1).amax(1) | (by_channel & 2).amax(1)
        _put(buffers.flags, row, _get(buffers.flags, row) | union)


def _get(buffer: Tensor, row: Tensor) -> Tensor:
    """One row; indexing with a tensor on a device would wait for it."""
    return buffer.index_select(0, row.clamp(min=0))[0]


def _put(buffer: Tensor, row: Tensor, new: Tensor) -> None:
    kept = torch.where(row >= 0, new, _get(buffer, row))
    buffer.index_copy_(0, row.clamp(min=0), kept[None])


def _bucket_counts(x: Tensor, low: int, n_buckets: int) -> Tensor:
    """Finite values per bucket of the layout, (B,) int64."""
    magnitude = _raw_magnitude(x).flatten()
    middle = n_buckets // 2
    inside = (magnitude - (low - 2)).clamp(1, middle)
    inside = torch.where(x.flatten() == 0, 0, inside)
    bucket = middle + torch.where(x.flatten() < 0, -inside, inside)
    counts = torch.zeros(n_buckets, dtype=torch.int64, device=x.device)
    return counts.scatter_add_(0, bucket, (magnitude < INFINITE).to(torch.int64))


def _raw_magnitude(x: Tensor) -> Tensor:
    """Exponent and top three mantissa bits of |x| as a float32 would have them, int64."""
    if x.dtype == torch.float32:
        return ((x.contiguous().view(torch.int32) >> 20) & 0x7FF).to(torch.int64)
    magnitude = ((x.contiguous().view(torch.int64) >> 49) & 0x3FFF) - ((1023 - 127) << 3)
    return torch.where(x.isfinite(), magnitude.clamp(0, INFINITE - 1), INFINITE)


def _joined(x: Tensor, moments: Tensor) -> Tensor:
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
