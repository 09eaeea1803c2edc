"""`Explanation`: which places of images speak for a class, and whether to believe it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from convlens.core.snapshots import ALIKE
from convlens.core.wording import plural
from convlens.errors import ArgumentError
from convlens.inference.grad_cam import ActivationMaps, explained
from convlens.plots import show_overlays

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCH = 32
"""Images at a time."""

N_RANDOM = 3
"""Networks with random weights that the maps are compared with."""


@dataclass(frozen=True)
class Randomization:
    """How like the maps are to those of networks with random weights.

    Adebayo et al., "Sanity Checks for Saliency Maps", 2018, arXiv:1810.03292. Every parameter is
    drawn from a normal distribution with its own mean and standard deviation.

    Attributes:
        correlation: (N,) Spearman's rank correlation of each map with those of three such
            networks, the mean; NaN where a map is constant.
    """

    correlation: NDArray[np.float32]

    @property
    def mean(self) -> float:
        """Mean over the images; NaN if no correlation is known."""
        known = self.correlation[np.isfinite(self.correlation)]
        return float(known.mean()) if len(known) else float("nan")

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return "The maps could not be compared with those of random weights: one is constant."
        verdict = (
            "the maps depend little on the weights: do not rely on them"
            if self.mean > ALIKE
            else "the maps depend on the weights"
        )
        return (
            f"Rank correlation with the maps of random weights: {self.mean:.2f}; {verdict}. "
            "A map that stays the same when the weights are random explains nothing."
        )


@dataclass(frozen=True, repr=False)
class Explanation:
    """Which places of N images speak for a class, by Grad-CAM.

    Attributes:
        maps: (N, H, W) float32 of the size of the network's input, each divided by its highest
            value: from 0 to 1, all 0 where nothing speaks for the class.
        layer: the module whose output was weighted.
        targets: (N,) int64, the classes.
        names: N names of these classes.
        probabilities: (N,) float32, what the network gave them.
        images: (N, H, W) or (N, H, W, 3) uint8, as the network gets them.
        randomization: the comparison with random weights; print it.
    """

    maps: NDArray[np.float32]
    layer: str
    targets: NDArray[np.int64]
    names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    images: NDArray[np.uint8]
    randomization: Randomization

    def __repr__(self) -> str:
        return f"Explanation({plural(len(self.maps), 'image')} by layer {self.layer!r})"

    def __str__(self) -> str:
        rows = [
            f"{name}, probability {share:.1%}"
            for name, share in zip(self.names, self.probabilities.tolist(), strict=True)
        ]
        return "\n".join([f"Grad-CAM of layer {self.layer!r}", *rows, str(self.randomization)])

    def plot(self, columns: int | None = None, ax: Axes | None = None) -> Axes:
        """Draw each image beside itself with its map laid over it; see `plots.show_overlays`.

        Args:
            columns: pairs in a row; None for a grid about twice as wide as high.
            ax: where to draw, a new figure if None.
        """
        captions = [
            f"{name} ({share:.1%})"
            for name, share in zip(self.names, self.probabilities.tolist(), strict=True)
        ]
        return show_overlays(self.images, self.maps, captions, columns, ax)


def explain(
    model: nn.Module,
    batches: Iterable[Tensor],
    to_uint8: Callable[[Tensor], NDArray[np.uint8]],
    classes: Sequence[str] = (),
    layer: str | None = None,
    target: int | str | Sequence[int | str] | None = None,
) -> Explanation:
    """Explain what a classifier says of images; see `convlens.train.Learner.explain`.

    Args:
        model: gives scores (N, K).
        batches: images (n, C, H, W) as the network gets them, on its device, all of one size.
        to_uint8: makes pictures of them.
        classes: K names, or none.
        layer: a module's name; None for the last one that is fine enough.
        target: a class by its number or name, or one for each image; None for the predicted one.
    """
    found: list[ActivationMaps] = []
    maps, images, n = list[Tensor](), list[NDArray[np.uint8]](), 0
    chosen = _numbers(target, classes)
    for x in batches:
        part = chosen[n : n + len(x)] if isinstance(chosen, list) else chosen
        n += len(x)
        found.append(explained(model, x, layer, part, N_RANDOM))
        layer = found[-1].layer
        maps.append(_enlarged(found[-1].maps, (x.shape[2], x.shape[3])))
        images.append(to_uint8(x))
    if not found or (isinstance(chosen, list) and len(chosen) != n):
        many = "" if not isinstance(chosen, list) else f", target has {len(chosen)} classes"
        raise ArgumentError(f"images has {plural(n, 'image')}{many}; give one class for each.")
    targets = torch.cat([one.targets for one in found])
    known = dict[int, str](enumerate(classes))
    return Explanation(
        torch.cat(maps).numpy(),
        found[0].layer,
        targets.numpy(),
        tuple(known.get(k, str(k)) for k in targets.tolist()),
        torch.cat([one.probabilities for one in found]).numpy(),
        np.concatenate(images),
        Randomization(np.concatenate([one.correlation for one in found])),
    )


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W), each from 0 to 1."""
    maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest.clamp(min=1e-30), 0.0).nan_to_num(0.0)


def _numbers(
    target: int | str | Sequence[int | str] | None, classes: Sequence[str]
) -> int | list[int] | None:
    """Classes by their numbers."""
    if target is None:
        return None
    if isinstance(target, str):
        return _number(target, classes)
    if isinstance(target, Sequence | Tensor | np.ndarray):
        many = target.tolist() if isinstance(target, Tensor | np.ndarray) else list(target)
        return [_number(one, classes) if isinstance(one, str) else one for one in many]
    return target


def _number(name: str, classes: Sequence[str]) -> int:
    if name in classes:
        return list(classes).index(name)
    close = difflib.get_close_matches(name, classes, n=3) or list(classes)[:3]
    known = ", ".join(map(repr, close)) or "none, the classes have no names"
    raise ArgumentError(f"target={name!r} is not among the {len(classes)} classes; close: {known}.")
