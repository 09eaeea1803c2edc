"""What batch normalization normalized a batch by, beside its running statistics.

The batch's own mean and variance are never handed out by the layer, but follow from how they moved
the running ones: new = (1 − m)·old + m·batch (Ioffe and Szegedy, Batch Normalization, 2015, and
torch's documentation of ``momentum``), without another pass over the values. Both are averaged over
the channels, and since this is linear, only averages need to be kept of what was before.
"""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from convlens.watching.probes import BatchNorm

Average = float | Tensor
"""A number on the CPU; a scalar tensor on other devices, which need not be waited for, and in
compiled graphs."""

Statistics = tuple[Average, Average]
"""Running mean and running variance, each averaged over the channels."""


def keeps_statistics(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a module is a batch normalization with running statistics."""
    return isinstance(module, BatchNorm) and module.track_running_stats


def before(module: nn.BatchNorm2d) -> Statistics | None:
    """The running statistics before a batch; None if they will not move."""
    return _averages(module.running_mean, module.running_var) if module.training else None


def add(
    module: nn.Module,
    old: Statistics,
    x: Tensor,
    sums: Tensor,
    row: int = 0,
    cursor: Tensor | None = None,
) -> None:
    """Add a batch's statistics to a row of sums.

    Args:
        module: after the batch.
        old: what `before` gave.
        x: (N, C, …) what the module put out.
        sums: (K, 4): mean and biased variance of the batch, running mean and variance.
        row: which row.
        cursor: (1,) int64 that holds the row instead, -1 for none; in compiled graphs.
    """
    assert isinstance(module, BatchNorm)
    new, share = _averages(module.running_mean, module.running_var), module.momentum
    assert new is not None
    if share is None:  # a cumulative average
        assert module.num_batches_tracked is not None
        tracked = module.num_batches_tracked
        share = 1.0 / (tracked if isinstance(new[0], Tensor) else float(tracked))
    n = x.numel() // x.shape[1]
    batch_mean = (new[0] - (1 - share) * old[0]) / share
    batch_var = (new[1] - (1 - share) * old[1]) / share * ((n - 1) / n)
    figures = batch_mean, batch_var, *new
    if not isinstance(new[0], Tensor):
        here = sums.numpy()[row]
        here += figures
        return
    values = torch.stack([torch.as_tensor(figure).to(sums.dtype) for figure in figures])
    if cursor is None:
        sums[row] += values
    else:
        sums.index_add_(0, cursor.clamp(min=0), torch.where(cursor[:, None] < 0, 0, values))


def _averages(mean: Tensor | None, var: Tensor | None) -> Statistics | None:
    """Both averaged over the channels, None if there are none."""
    if mean is None or var is None:
        return None
    plain = mean.device.type == "cpu" and mean.dtype == torch.float32
    if torch.compiler.is_compiling() or not plain:
        return mean.mean(), var.mean()
    # A ufunc's reduction takes a microsecond; a method of an array or a tensor several.
    wide = np.float64
    return (
        float(np.add.reduce(mean.detach().numpy(), dtype=wide)) / len(mean),
        float(np.add.reduce(var.detach().numpy(), dtype=wide)) / len(var),
    )
