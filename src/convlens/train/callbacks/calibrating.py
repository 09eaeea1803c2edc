"""Collects how well the probabilities of a validation agree with what is right, batch by batch.

No output is kept and nothing waits for the device: the temperature is found from sums of the
negative log-likelihood at fixed temperatures.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from convlens.core.snapshots import BINS, Calibration

TEMPERATURES = 2.0 ** np.linspace(-3.0, 4.0, 15)
"""From 1/8 to 16, each √2 times the one before; one of them is 1."""

UNSCALED = 6
"""Position of the temperature 1."""

MOST_VALUES = 1 << 22
"""Outputs divided by several temperatures at once, at most."""


class Calibrating:
    """Sums over a validation: 15 bins of the probability, and the likelihood by temperature."""

    def __init__(self) -> None:
        self._bins: Tensor | None = None  # (3, BINS) float64: images, confidence, correct
        self._nll: Tensor | None = None  # (T,) float64

    def add(self, output: Tensor, y: Tensor) -> None:
        """Add a batch: output (N, K) before the softmax, y (N,); no class is left out.

        So are outputs that are not finite.
        """
        scores = output.detach().float()
        known = (y >= 0) & (y < scores.shape[1]) & scores.isfinite().all(dim=1)
        y = torch.where(known, y, 0)
        confidence, predicted = scores.softmax(dim=1).max(dim=1)
        bins = (confidence.nan_to_num(1.0) * BINS).ceil().long().clamp(1, BINS) - 1
        added = torch.stack([torch.ones_like(confidence), confidence, (predicted == y).float()])
        added = torch.where(known, added, 0.0).to(_exact(scores.device))
        if self._bins is None or self._nll is None:
            self._bins = added.new_zeros(3, BINS)
            self._nll = added.new_zeros(len(TEMPERATURES))
        self._bins.index_add_(1, bins, added)
        self._nll += _likelihoods(torch.where(known[:, None], scores, 0.0), y, known)

    def result(self, epoch: int) -> Calibration | None:
        """What was collected; None without images. This waits for the device."""
        if self._bins is None or self._nll is None:
            return None
        counts, confidence, correct = self._bins.cpu().numpy()
        n = counts.sum()
        if not n:
            return None
        nll = self._nll.cpu().numpy() / n
        temperature, lowest = _minimum(np.log(TEMPERATURES), nll)
        return Calibration(
            epoch, "", counts.astype(np.int64), confidence.astype(np.float32),
            correct.astype(np.int64), float(nll[UNSCALED]), float(np.exp(temperature)), lowest,
        )  # fmt: skip


def _likelihoods(scores: Tensor, y: Tensor, known: Tensor) -> Tensor:
    """(T,) float64: the sum of the negative log-likelihoods at each temperature."""
    inverse = torch.from_numpy(1.0 / TEMPERATURES).to(scores.device, scores.dtype)
    scores = scores - scores.amax(dim=1, keepdim=True)  # the largest is 0: no cancellation
    own = scores.gather(1, y[:, None])
    sums: list[Tensor] = []
    for part in inverse.split(max(1, MOST_VALUES // max(1, scores.numel()))):
        scaled = torch.logsumexp(scores[:, None] * part[:, None], dim=2) - own * part  # (N, T')
        each = torch.where(known[:, None], scaled, 0.0)
        sums.append(each.sum(dim=0, dtype=_exact(scores.device)))
    return torch.cat(sums)


def _exact(device: torch.device) -> torch.dtype:
    """The type of sums: Apple's devices have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _minimum(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Where the polynomial through the five points around the lowest one is lowest."""
    i = int(np.argmin(y))
    if not 0 < i < len(y) - 1:
        return float(x[i]), float(y[i])
    near = slice(max(0, i - 2), i + 3)
    polynomial = np.polynomial.Polynomial.fit(x[near], y[near], len(x[near]) - 1)
    fine = np.linspace(x[i - 1], x[i + 1], 1001)
    values = polynomial(fine)
    return float(fine[np.argmin(values)]), float(values.min())
