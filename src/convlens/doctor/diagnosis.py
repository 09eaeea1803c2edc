"""All rules on a record together, worst finding first, causes before consequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from convlens.core.records import SEVERITIES, Finding, RunRecord
from convlens.doctor import data, loop, optimization
from convlens.doctor.activations import (
    DEAD_WARNING,
    find_activation_cycles,
    find_dead_channels,
    find_nonfinite_activations,
)
from convlens.doctor.evidence import MIN_STEPS, Evidence
from convlens.doctor.losses import (
    ends,
    find_failure,
    find_loss_not_falling,
    find_nonfinite_loss,
    find_nothing_learned,
    find_overfitting,
    find_still_improving,
)

Rule = Callable[[Evidence], Finding | None]

CAUSES: Sequence[Rule] = (
    loop.find_missing_backward,
    loop.find_missing_step,
    loop.find_optimizer_of_other_model,
    loop.find_layers_not_registered,
    loop.find_missing_zero_grad,
    loop.find_eval_mode_in_training,
    data.find_nan_in_data,
    data.find_shape_broadcast,
    data.find_output_activation,
    data.find_softmax_axis,
    data.find_constant_output,
    data.find_labels,
    data.find_normalization,
    loop.find_parameters_not_in_optimizer,
    loop.find_frozen,
    optimization.find_constant_initialization,
    data.find_dropout,
    data.find_channels_mixed,
    data.find_input_scale,
    loop.find_accumulation_not_scaled,
    optimization.find_decay_too_high,
    optimization.find_clipped,
    optimization.find_schedule_ends_early,
    optimization.find_rate_too_low,
    optimization.find_half_precision,
    optimization.find_bad_initialization,
    optimization.find_momentum_too_high,
    optimization.find_rate_too_high,
    optimization.find_exploding,
    optimization.find_vanishing,
    loop.find_train_mode_in_evaluation,
    data.find_duplicates,
)
"""The rules on causes, those that explain most first."""


def diagnose(record: RunRecord) -> list[Finding]:
    """What the rules find in a record, worst first.

    Never empty: a run without steps, one that is too short to judge and one with nothing wrong say
    so. Findings of the same severity come in the order of cause and effect.
    """
    with np.errstate(all="ignore"):
        evidence = Evidence(record)
        causes = [found for rule in CAUSES if (found := rule(evidence)) is not None]
        effects = _effects(record)
    findings = _without_consequences(causes, effects)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _effects(record: RunRecord) -> list[Finding]:
    """What the losses and activations show, whatever its cause."""
    of_loss = replace(record, steps=record.loss_steps)
    judged = replace(record, layers=[h for h in record.layers if len(h) >= MIN_STEPS])
    long = len(of_loss.steps) >= MIN_STEPS
    found = [find_failure(record), find_nonfinite_loss(of_loss), find_nonfinite_activations(record)]
    if long:
        found.append(find_nothing_learned(of_loss) or find_loss_not_falling(of_loss))
    found += [find_dead_channels(judged), find_activation_cycles(judged)]
    if long:
        found += [find_overfitting(record), find_still_improving(record)]
    findings = [finding for finding in found if finding is not None]
    if long and all(finding.kind == "still-improving" for finding in findings):
        findings.append(_healthy(of_loss, judged))
    elif not findings:
        findings.append(_too_short(record, len(of_loss.steps)))
    return findings


EXPLAINED: Mapping[str, Sequence[str]] = {
    "nonfinite-loss": ("nonfinite-activations", "loss-not-falling"),
}


def _without_consequences(causes: Sequence[Finding], effects: Sequence[Finding]) -> list[Finding]:
    """Causes, and those effects that no cause explains."""
    if not any(one.severity == "problem" for one in causes):
        return [*causes, *effects]
    kept = [one for one in effects if one.kind in ("failed", "overfitting")]
    return [*causes, *kept]


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
