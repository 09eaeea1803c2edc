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
    if not hidden or not e.is_weak:
        return None
    return Finding(
        "model-too-small",
        "problem" if math.isfinite(e.learned) else "warning",
        f"Layer {hidden[0].name!r} has one channel only, and the loss fell by "
        f"{max(e.fall, 0):.0%} only.",
        layer=hidden[0].name,
        fix="Give the layer more channels.",
        confidence="possible",
    )


BY_HEART, ERRORS = 0.03, 4.0
"""A training loss that is 3 % of the way below guessing, and by four standard errors of its mean,
has learned something, if only by heart."""


GUESSED = 0.05
"""The accuracy of guessing differs from 1 / classes by 3.5 points by chance for 200 items of two
classes."""


def find_labels_shuffled(e: Evidence) -> Finding | None:
    """A network that learns its training data by heart, and nothing that helps with others.

    Where labels do not belong to their inputs there is nothing else to learn: Zhang et al., 2017,
    "Understanding deep learning requires rethinking generalization".
    """
    n, accuracy = e.n_classes, e.accuracy
    if n < 2 or accuracy is None or e.chance is None or not e.learned > BY_HEART:
        return None
    tail = e.loss[-max(len(e.loss) // 10, 5) :]
    if e.chance.level - tail.mean() < ERRORS * tail.std(ddof=1) / math.sqrt(len(tail)):
        return None
    if not e.has_one_label or not 0.5 / n <= accuracy <= 1 / n + GUESSED:
        return None
    return Finding(
        "labels-shuffled",
        "problem",
        f"The training loss fell to {e.ends[1]:.3g}, below that of guessing, while the validation "
        f"accuracy is {accuracy:.1%}, that of guessing among {n} classes: what the network learned "
        "holds for the training items only, as where inputs and labels do not belong together.",
        fix="Look at a batch with its labels (dls.show_batch()); shuffle and augment inputs and "
        "labels together, with one permutation.",
        confidence="possible",
    )
