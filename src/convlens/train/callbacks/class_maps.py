"""Takes Grad-CAM of a validation's worst images and of the probe images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from convlens.core.snapshots import ClassActivationMaps
from convlens.inference.grad_cam import ActivationMaps, explained
from convlens.train.callbacks import snapshot_limits as limits
from convlens.train.callbacks.misclassified import Classified

N_RANDOM = 1
"""Networks with random weights that the maps are compared with."""


class _Taken(NamedTuple):
    maps: NDArray[np.uint8]
    correlation: NDArray[np.float32]


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
    images = worst.x[: limits.N_EXPLAINED]
    found = explained(model, images, None, worst.predicted[: limits.N_EXPLAINED], N_RANDOM)
    taken = _taken(found)
    of_probes = _Taken(np.zeros((0, *taken.maps.shape[1:]), np.uint8), np.zeros(0, np.float32))
    if probes is not None and probes.shape[1:] == images.shape[1:]:
        of_probes = _taken(explained(model, probes, found.layer, None, N_RANDOM))
    item = worst.item[: limits.N_EXPLAINED].cpu().numpy().astype(np.int64)
    return ClassActivationMaps(
        epoch, "", taken.maps, item, taken.correlation, *of_probes, found.layer
    )


def _taken(found: ActivationMaps) -> _Taken:
    """The maps in 256 steps up to the highest value of each, in a bounded number of cells."""
    size = limits.cells_of((found.maps.shape[1], found.maps.shape[2]), limits.CELLS[0])
    maps = F.adaptive_avg_pool2d(found.maps[:, None], size)[:, 0].nan_to_num(0.0)
    highest = maps.amax(dim=(1, 2), keepdim=True)
    steps = torch.where(highest > 0, 255 * maps / highest.clamp(min=1e-30), 0.0)
    return _Taken(steps.clamp(0, 255).round().to(torch.uint8).numpy(), found.correlation)
