"""All rules together, worst finding first."""

from __future__ import annotations

from convlens.core.records import SEVERITIES, Finding, RunRecord
from convlens.doctor.activations import (
    DEAD_WARNING,
    find_activation_cycles,
    find_dead_channels,
    find_nonfinite_activations,
)
from convlens.doctor.losses import (
    ends,
    find_failure,
    find_loss_not_falling,
    find_nonfinite_loss,
    find_nothing_learned,
    find_overfitting,
    find_still_improving,
)

MIN_STEPS = 20
"""In fewer steps only values that are not finite can be told from noise."""


def diagnose(record: RunRecord) -> list[Finding]:
    """What the rules find in a record, worst first.

    Never empty: a run without steps, one that is too short to judge and one with nothing wrong say
    so. Findings of the same severity come in the order of their usual cause and effect.
    """
    found = [find_failure(record), find_nonfinite_loss(record), find_nonfinite_activations(record)]
    long = len(record.steps) >= MIN_STEPS
    if long:
        found += [
            find_nothing_learned(record) or find_loss_not_falling(record),
            find_dead_channels(record),
            find_activation_cycles(record),
            find_overfitting(record),
            find_still_improving(record),
        ]
    findings = [finding for finding in found if finding is not None]
    if long and all(finding.kind == "still-improving" for finding in findings):
        findings.append(_healthy(record))
    elif not findings:
        findings.append(_too_short(len(record.steps)))
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _too_short(n: int) -> Finding:
    if not n:
        text = "No steps have been recorded yet, so there is nothing to judge."
        fix = "Start the training, or look again in a moment."
    else:
        text = f"Only {n} step{'s' if n > 1 else ''} so far, {MIN_STEPS} are needed to tell a "
        text += "trend from noise."
        fix = "Let it train longer and look again."
    return Finding("too-short", "note", text, fix=fix, confidence="certain")


def _healthy(record: RunRecord) -> Finding:
    n, first, last = ends(record.steps.loss)
    watched, fix = "no layers were watched, so nothing is known of the activations.", ""
    if record.layers:
        watched = (
            f"none of the {len(record.layers)} watched layers had {DEAD_WARNING:.0%} of its "
            "channels dead, a value that was not finite, or activations that grew and collapsed "
            "again and again."
        )
    else:
        fix = "Train with watching on to see them."
    return Finding(
        "healthy",
        "good",
        f"Nothing looks wrong: every loss is finite, the training loss went from {first:.3g} (mean "
        f"of the first {n} batches) to {last:.3g} (the last {n}), and {watched}",
        fix=fix,
    )
