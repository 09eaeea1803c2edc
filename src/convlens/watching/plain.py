"""The same sketch in plain torch operations, for devices without a kernel of their own.

Nothing here waits for the device: every result is added to buffers that lie on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convlens.watching.buffers import Buffers

RAW = 4096  # buckets named by a float32's sign, exponent and top three mantissa bits
INFINITE = 2040  # the raw bucket where infinities and NaN begin


def sketch(
    x: Tensor, channel_axis: int | None, eps: float, low: int, buffers: Buffers, row: int
) -> None:
    """Add the values of ``x`` to one row of ``buffers``; see `convlens.watching.kernels.Sketcher`.

    Args:
        x: values of any shape and any floating dtype.
        channel_axis: the axis of the channels, None if there is none.
        eps: bound of near zero.
        low: raw bucket where the layout's octaves begin.
        buffers: of as many channels as ``x`` has, on its device.
        row: which row.
    """
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    eps = float(torch.tensor(eps, dtype=x.dtype))  # the kernels compare in x's own precision
    near, below = x.abs() <= eps, x <= eps
    nan, neg_inf, pos_inf = x.isnan(), x == -torch.inf, x == torch.inf
    sums = [t.sum() for t in (nan, neg_inf, pos_inf, near, below)]
    buffers.exact[row] += torch.stack([torch.ones_like(sums[0]), *sums])
    buffers.counts[row] += _bucket_counts(x, low, buffers.counts.shape[1])
    _add_moments(x, buffers.moments[row])
    if channel_axis is not None and x.numel():
        flags = (x > 0).to(torch.uint8) + 2 * (~near).to(torch.uint8)
        by_channel = flags.movedim(channel_axis, 0).flatten(1)
        # max of the bits one by one is their union
        union = (by_channel & 1).amax(1) | (by_channel & 2).amax(1)
        buffers.flags[row] |= union


def _bucket_counts(x: Tensor, low: int, n_buckets: int) -> Tensor:
    """Finite values per bucket of the layout, (B,) int64."""
    magnitude = _raw_magnitude(x).flatten()
    middle = n_buckets // 2
    inside = (magnitude - (low - 2)).clamp(1, middle)
    inside = torch.where(x.flatten() == 0, 0, inside)
    bucket = middle + torch.where(x.flatten() < 0, -inside, inside)
    finite = (magnitude < INFINITE).to(torch.int64)
    counts = torch.zeros(n_buckets, dtype=torch.int64, device=x.device)
    return counts.scatter_add_(0, bucket, finite)


def _raw_magnitude(x: Tensor) -> Tensor:
    """Exponent and top three mantissa bits of |x| as a float32 would have them, int64."""
    if x.dtype == torch.float32:
        return ((x.contiguous().view(torch.int32) >> 20) & 0x7FF).to(torch.int64)
    magnitude = ((x.contiguous().view(torch.int64) >> 49) & 0x3FFF) - ((1023 - 127) << 3)
    return torch.where(x.isfinite(), magnitude.clamp(0, INFINITE - 1), INFINITE)


def _add_moments(x: Tensor, moments: Tensor) -> None:
    """Chan's rule on the finite values; ``moments`` is (n, mean, M2)."""
    finite = x.isfinite()
    wide = torch.where(finite, x, 0).to(torch.float64)
    n = finite.sum().to(torch.float64)
    mean = wide.sum() / n.clamp(min=1)
    m2 = ((wide - mean) * finite).square().sum()
    total = moments[0] + n
    share = n / total.clamp(min=1)
    delta = mean - moments[1]
    moments[2] += m2 + delta.square() * moments[0] * share
    moments[1] += delta * share
    moments[0] = total
