"""All rules together, worst finding first."""

from __future__ import annotations

from dataclasses import replace

from convlens.core.records import SEVERITIES, Finding, RunRecord
from convlens.doctor.activations import (
    DEAD_WARNING,
    find_activation_cycles,
    find_constant_layer,
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

    Rules on the loss need `MIN_STEPS` steps with a loss; those on activations need layers with as
    many columns. Never empty: a run without steps, one that is too short to judge and one with
    nothing wrong say so. Findings of the same severity come in the order of their usual cause and
    effect.
    """
    of_loss = replace(record, steps=record.loss_steps)
    judged = replace(record, layers=[h for h in record.layers if len(h) >= MIN_STEPS])
    long = len(of_loss.steps) >= MIN_STEPS
    found = [find_failure(record), find_nonfinite_loss(of_loss), find_nonfinite_activations(record)]
    if long:
        found.append(find_nothing_learned(of_loss) or find_loss_not_falling(of_loss))
    found += [find_dead_channels(judged), find_activation_cycles(judged)]
    if not any(finding and finding.severity == "problem" for finding in found):
        found.append(find_constant_layer(judged))  # else it is what those lead to
    if long:
        found += [find_overfitting(record), find_still_improving(record)]
    findings = [finding for finding in found if finding is not None]
    if long and all(finding.kind == "still-improving" for finding in findings):
        findings.append(_healthy(of_loss, judged))
    elif not findings:
        findings.append(_too_short(record, len(of_loss.steps)))
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _too_short(record: RunRecord, n: int) -> Finding:
    begun = len(record.steps) or any(len(history) for history in record.layers)
    if n:
        text = f"Only {n} step{'s' if n > 1 else ''} with a loss so far, {MIN_STEPS} are needed to "
        text += "tell a trend from noise."
        fix = "Let it train longer and look again."
    elif begun or record.meta.get("status", "running") != "running":
        text = "No loss was recorded."
        fix = "In a loop of your own, call stats.log(loss=loss)."
    else:
        text = "No steps have been recorded yet, so there is nothing to judge."
        fix = "Start the training, or look again in a moment."
    return Finding("too-short", "note", text, fix=fix, confidence="certain")


def _healthy(record: RunRecord, judged: RunRecord) -> Finding:
    n, first, last = ends(record.steps.loss)
    fix = ""
    if judged.layers:
        watched = (
            f"No watched layer had {100 * DEAD_WARNING:.0f} % or more dead channels, non-finite "
            "values, or repeated collapses."
        )
    elif record.layers:
        watched = f"No layer was watched for {MIN_STEPS} columns, so little is known of them."
    else:
        watched = "No layers were watched, so nothing is known of the activations."
        fix = "Train with watching on to see them."
    return Finding(
        "healthy",
        "good",
        f"Nothing looks wrong: every loss is finite, and the training loss went from {first:.3g} "
        f"(mean of the first {n} batches) to {last:.3g} (the last {n}). {watched}",
        fix=fix,
    )
