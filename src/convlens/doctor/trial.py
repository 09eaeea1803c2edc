"""Rules on what `convlens.check` has tried on a copy of the model."""

from __future__ import annotations

import re

from convlens.core.records import Finding
from convlens.doctor.evidence import Evidence


def find_warned_broadcast(e: Evidence) -> Finding | None:
    """Outputs and targets of different shapes, of which torch's loss warned."""
    text = e.record.meta.get("broadcast")
    shapes = re.findall(r"torch\.Size\(\[([\d, ]*)\]\)", text) if isinstance(text, str) else []
    if len(shapes) != 2:
        return None
    target, output = (f"({sizes},)" if "," not in sizes else f"({sizes})" for sizes in shapes)
    return Finding(
        "shape-broadcast-in-loss",
        "problem",
        f"The loss compares outputs {output} with targets {target}: they are broadcast to one "
        "shape, so each output is compared with targets of other items too.",
        fix="Give both the same shape: output.squeeze(1), or target.unsqueeze(1).",
        confidence="certain",
    )


def find_mixed_batch(e: Evidence) -> Finding | None:
    """Outputs that depend on other items of the batch."""
    share = (e.trial or {}).get("mixes_batch")
    if not isinstance(share, float) or not share > 0:
        return None
    return Finding(
        "batch-mixed-by-reshape",
        "problem",
        f"In evaluation mode, replacing the first item of a batch changes the outputs of "
        f"{share:.0%} of the other items: a view, reshape or wrong axis mixes items.",
        fix="Look for view, reshape, softmax or a sum over axis 0 in forward; use transpose or "
        "permute to exchange axes, and batch_first=True for recurrent layers.",
        confidence="certain",
    )


def find_affine(e: Evidence) -> Finding | None:
    """Several layers that together are one affine map."""
    if (e.trial or {}).get("is_affine") is not True:
        return None
    return Finding(
        "no-nonlinearity",
        "problem",
        "The output for the mean of two inputs is the mean of their outputs: without an activation "
        "between them, all layers together compute what a single linear layer can.",
        fix="Put an activation, such as nn.ReLU(), between the layers.",
        confidence="certain",
    )


FORGOTTEN = 1e-6
"""A float32 sum loses what is a millionth of it."""


def find_forgotten(e: Evidence) -> Finding | None:
    """A recurrent layer through which the gradient of early inputs vanishes."""
    found = (e.trial or {}).get("forgotten")
    if not isinstance(found, dict):
        return None
    lost = {name: share for name, share in found.items() if share < FORGOTTEN}
    if not lost:
        return None
    name, share = next(iter(lost.items()))
    return Finding(
        "vanishing-gradient",
        "problem" if e.is_poor else "warning",
        f"In {name!r} the gradient at the first step of the sequence is {share:.1g} of the "
        "largest: what lies far back is never learned.",
        layer=name,
        fix="Use nn.LSTM or nn.GRU instead of nn.RNN, an orthogonal initialization of the "
        "recurrent weights, or shorter sequences.",
    )
