"""What batch normalization normalized a batch by, beside its running statistics.

The layer does not hand out the batch's mean and variance, but they follow from how they moved the
running ones: new = (1 − m)·old + m·batch (Ioffe and Szegedy, Batch Normalization, 2015, and torch's
documentation of ``momentum``), without another pass over the values. They are averaged over the
channels.
"""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor, nn

from convlens.watching.backends import numba_kernel
from convlens.watching.layer_selection import BatchNorm

Statistics = tuple[Tensor, Tensor]
"""Running mean and running variance, each (C,)."""


def keeps_statistics(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a module is a batch normalization with running statistics."""
    return isinstance(module, BatchNorm) and module.track_running_stats


def before(module: nn.BatchNorm2d) -> Statistics | None:
    """A copy of the running statistics before a batch; None if they will not move."""
    mean, var = module.running_mean, module.running_var
    if mean is None or var is None or not module.training:
        return None
    return mean.clone(), var.clone()


def add(
    module: nn.Module,
    old: Statistics | None,
    x: Tensor,
    sums: Tensor,
    row: int = 0,
    cursor: Tensor | None = None,
) -> None:
    """Add a batch's statistics to a row of sums.

    Those of the batch are NaN where they do not follow from the running ones: in evaluation, with a
    momentum of 0, and for a batch without values.

    Args:
        module: after the batch.
        old: what `before` gave.
        x: (N, C, …) the module's output.
        sums: (K, 4): mean and biased variance of the batch, running mean and variance.
        row: which row.
        cursor: (1,) int64 that holds the row instead, -1 for none; in compiled graphs.
    """
    assert isinstance(module, BatchNorm)
    mean, var, share = module.running_mean, module.running_var, module.momentum
    assert mean is not None
    assert var is not None
    n = x.numel() // max(x.shape[1], 1)
    if old is None or share == 0 or n == 0:
        old, share, biased = (mean, var), math.nan, math.nan
    else:
        biased = (n - 1) / n
    if share is None:  # a cumulative average
        assert module.num_batches_tracked is not None
        share = 1.0 / module.num_batches_tracked
    if cursor is None and mean.device.type == "cpu" and mean.dtype == torch.float32:
        a, b, c, d = (t.detach().numpy() for t in (*old, mean, var))
        numba_kernel.add_batch_norm(a, b, c, d, float(share), biased, sums.numpy()[row])
        return
    batch_mean = (mean - (1 - share) * old[0]) / share
    batch_var = (var - (1 - share) * old[1]) / share * biased
    means = [t.to(sums.device, sums.dtype).mean() for t in (batch_mean, batch_var, mean, var)]
    values = torch.stack(means)
    if cursor is None:
        sums[row] += values
    else:
        sums.index_add_(0, cursor.clamp(min=0), torch.where(cursor[:, None] < 0, 0, values))
