"""Takes Grad-CAM of a validation's worst images and of the probe images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from convlens.core.snapshots import ClassActivationMaps
from convlens.inference.grad_cam import explained
from convlens.train.callbacks import snapshot_limits as limits
from convlens.train.callbacks.misclassified import Classified

N_RANDOM = 1
"""Networks with random weights that the maps are compared with."""


def class_maps(
    model: nn.Module, epoch: int, worst: Classified, probes: Tensor | None
) -> ClassActivationMaps:
    """Which places of these images speak for the class that the network predicts.

    Args:
        model: gives scores (N, K).
        epoch: after which this is.
        worst: images of the largest loss, as the network got them.
        probes: (P, C, H, W), if there are any.

    Raises:
        ConvlensError: if the network has no layer with a grid, or its output is not (N, K).
    """
    n = min(len(worst.x), limits.N_EXPLAINED)
    x = worst.x[:n]
    if probes is not None and probes.shape[1:] == x.shape[1:]:
        x = torch.cat([x, probes.to(x)])
    found = explained(model, x, None, None, N_RANDOM)
    maps, like = _steps(found.maps), found.correlation
    item = worst.item[:n].cpu().numpy().astype(np.int64)
    return ClassActivationMaps(epoch, "", maps[:n], item, like[:n], maps[n:], like[n:], found.layer)


def _steps(maps: Tensor) -> NDArray[np.uint8]:
    """The maps in 256 steps up to the highest value of each, in a bounded number of cells."""
    size = limits.cells_of((maps.shape[1], maps.shape[2]), limits.CELLS[0])
    maps = F.adaptive_avg_pool2d(maps[:, None], size)[:, 0].nan_to_num(0.0)
    highest = maps.amax(dim=(1, 2), keepdim=True)
    steps = torch.where(highest > 0, 255 * maps / highest.clamp(min=1e-30), 0.0)
    return steps.clamp(0, 255).round().to(torch.uint8).numpy()
