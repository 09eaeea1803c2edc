"""All checks together, worst finding first."""

from __future__ import annotations

import numpy as np

from convlens.core.records import Finding, RunRecord
from convlens.doctor.activations import (
    DEAD_NOTE,
    find_activation_cycles,
    find_dead_channels,
    find_nonfinite_activations,
)
from convlens.doctor.losses import (
    find_failure,
    find_loss_not_falling,
    find_nonfinite_loss,
    find_nothing_learned,
    find_overfitting,
    find_still_improving,
)

MIN_STEPS = 20
"""Below this many steps nothing but what is not finite can be told from noise."""

_SEVERITIES = ("problem", "note", "good")


def diagnose(record: RunRecord) -> list[Finding]:
    """What a careful look at the record sees, worst first.

    Never empty: a run without steps, one that is too short to judge and one with nothing wrong say
    so. Findings of the same severity come in the order of their usual cause and effect.
    """
    found = [
        *find_failure(record),
        *find_nonfinite_loss(record),
        *find_nonfinite_activations(record),
    ]
    if len(record.steps) >= MIN_STEPS:
        found += find_nothing_learned(record) or find_loss_not_falling(record)
        found += find_dead_channels(record)
        found += find_activation_cycles(record)
        found += find_overfitting(record)
        found += find_still_improving(record)
        if all(finding.kind == "still-improving" for finding in found):
            found.append(_healthy(record))
    elif not found:
        found.append(_too_short(record))
    return sorted(found, key=lambda finding: _SEVERITIES.index(finding.severity))


def _too_short(record: RunRecord) -> Finding:
    n = len(record.steps)
    text = (
        f"Only {n} step{'s' if n > 1 else ''} so far, {MIN_STEPS} are needed to tell a trend "
        "from noise. Let it train longer and look again."
        if n
        else "No steps have been recorded yet, so there is nothing to judge. Start the training, "
        "or look again in a moment."
    )
    return Finding("too-short", "note", text)


def _healthy(record: RunRecord) -> Finding:
    loss = record.steps.loss
    tenth = max(len(loss) // 10, 5)
    watched = (
        f"none of the {len(record.layers)} watched layers had {DEAD_NOTE:.0%} of its channels "
        "dead, a value that was not finite, or activations that grew and collapsed again and again."
        if record.layers
        else "no layers were watched, so nothing is known of the activations; train with "
        "watching on to see them."
    )
    return Finding(
        "healthy",
        "good",
        f"Nothing looks wrong: every loss is finite, the training loss went from "
        f"{np.mean(loss[:tenth]):.3g} (mean of the first {tenth} batches) to "
        f"{np.mean(loss[-tenth:]):.3g} (the last {tenth}), and {watched}",
    )
