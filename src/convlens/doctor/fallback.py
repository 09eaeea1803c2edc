"""Rules for runs that have not learned and in which no other rule found a cause."""

from __future__ import annotations

import math

from convlens.core.records import Finding
from convlens.doctor.evidence import Evidence


def find_model_too_small(e: Evidence) -> Finding | None:
    """A hidden layer with one unit or channel: all that follows sees one number for each place."""
    narrow = [h.layer for h in e.record.layers if h.channels == 1]
    last = e.record.layers[-1].layer if e.record.layers else None
    hidden = [layer for layer in narrow if last is None or layer.index != last.index]
    if not hidden or e.fall >= 0.5:
        return None
    return Finding(
        "model-too-small",
        "problem",
        f"Layer {hidden[0].name!r} has one channel only, and the loss fell by "
        f"{max(e.fall, 0):.0%} only.",
        layer=hidden[0].name,
        fix="Give the layer more channels.",
        confidence="possible",
    )


def find_labels_shuffled(e: Evidence) -> Finding | None:
    """Losses below guessing in training only, or nowhere, with gradients and steps as usual."""
    if e.n_classes < 2 or e.accuracy is None or not e.count("backwards"):
        return None
    if e.accuracy > 1.5 / e.n_classes + 0.03 or not math.isfinite(e.fall):
        return None
    return Finding(
        "labels-shuffled",
        "problem",
        f"The validation accuracy is {e.accuracy:.1%}, that of guessing among {e.n_classes} "
        "classes, and gradients, steps and activations are as usual: inputs and labels may not "
        "belong together.",
        fix="Look at a batch with its labels (dls.show_batch()); shuffle and augment inputs and "
        "labels together.",
        confidence="possible",
    )
