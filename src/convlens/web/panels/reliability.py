"""How well the probabilities of a validation agree with what was right."""

from __future__ import annotations

from typing import Any

from convlens.core.snapshots import Calibration
from convlens.web import formatting


def reliability(kept: Calibration | None) -> dict[str, Any] | None:
    """The diagram's bins in percent: left end, share of the images, accuracy; None for nothing."""
    total = 0 if kept is None else int(kept.counts.sum())
    if kept is None or not total:
        return None
    n, shares, accuracy = len(kept.counts), kept.counts / total, kept.rates[1]
    too = "surer than it is right" if kept.temperature > 1 else "less sure than it is right"
    return {
        "bins": [
            (100 * i / n, 100 * float(shares[i]), 100 * float(accuracy[i]))
            for i in range(n)
            if kept.counts[i]
        ],
        "width": 100 / n,
        "ece": formatting.percent(kept.ece),
        "temperature": formatting.number(round(kept.temperature, 2)),
        "words": f"On the whole the network is {too}. With its outputs divided by the temperature "
        f"the negative log-likelihood is {kept.nll_scaled:.4f} instead of {kept.nll:.4f}.",
    }
