"""All rules on a record together, worst finding first, causes before consequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from convlens.core.records import SEVERITIES, Finding, RunRecord
from convlens.doctor import data, fallback, loop, optimization, trial
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
    find_memorized,
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
    data.find_several_labels,
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
    data.find_labels_shifted,
    data.find_first_class_unused,
)
"""The rules on causes, those that explain most first."""


FALLBACKS: Sequence[Rule] = (fallback.find_model_too_small, fallback.find_labels_shuffled)
"""The rules on a run that has not learned, asked where no other rule has found a problem."""


def diagnose(record: RunRecord) -> list[Finding]:
    """What the rules find in a record, worst first.

    Never empty: a run without steps, one that is too short to judge and one with nothing wrong say
    so. Findings of the same severity come in the order of cause and effect.
    """
    with np.errstate(all="ignore"):
        evidence = Evidence(record)
        findings = [found for rule in CAUSES if (found := rule(evidence)) is not None]
        if not any(one.severity == "problem" for one in findings):
            findings += _effects(evidence)
        else:
            findings += [one for one in _effects(evidence) if one.kind in BESIDE_A_CAUSE]
    order = [SEVERITIES.index(one.severity) for one in findings]
    return [findings[i] for i in sorted(range(len(findings)), key=order.__getitem__)]


TRIALS: Sequence[Rule] = (
    trial.find_warned_broadcast,
    trial.find_mixed_batch,
    trial.find_affine,
    trial.find_forgotten,
)
"""The rules on what only a check tries."""


def judge_trial(record: RunRecord) -> list[Finding]:
    """What the rules find in the record of a check, worst first; never empty."""
    with np.errstate(all="ignore"):
        evidence = Evidence(record)
        rules = [rule for rule in CAUSES if rule not in OF_WHOLE_RUNS]
        findings = [found for rule in (*rules, *TRIALS) if (found := rule(evidence)) is not None]
        if not any(one.severity == "problem" for one in findings):
            findings += [found for rule in OF_SHORT_RUNS if (found := rule(record)) is not None]
    findings = list({finding.kind: finding for finding in reversed(findings)}.values())[::-1]
    if all(finding.severity == "note" for finding in findings):
        text = "Nothing looks wrong in what was tried."
        findings.append(Finding("healthy", "good", text, confidence="likely"))
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def judge_batch(record: RunRecord) -> list[Finding]:
    """What one batch shows, before any training step; worst first, empty if nothing is wrong."""
    with np.errstate(all="ignore"):
        evidence = Evidence(record)
        findings = [found for rule in OF_ONE_BATCH if (found := rule(evidence)) is not None]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


OF_ONE_BATCH: Sequence[Rule] = (
    loop.find_layers_not_registered,
    data.find_nan_in_data,
    data.find_shape_broadcast,
    data.find_output_activation,
    data.find_softmax_axis,
    data.find_normalization,
    data.find_dropout,
    data.find_input_scale,
    data.find_first_class_unused,
)
"""The rules that need a forward pass and the loss's gradient at the output only."""

OF_WHOLE_RUNS = (
    loop.find_train_mode_in_evaluation,
    optimization.find_schedule_ends_early,
    loop.find_missing_zero_grad,
    loop.find_accumulation_not_scaled,
    data.find_duplicates,
)
"""The rules that a check's own loop gives no occasion to."""

OF_SHORT_RUNS = (find_nonfinite_loss, find_nonfinite_activations)
"""The rules on effects that a few steps can show."""

BESIDE_A_CAUSE = ("failed", "overfitting", "nonfinite-loss", "nonfinite-activations")
"""Effects that are said beside the cause of a problem."""


def _effects(e: Evidence) -> list[Finding]:
    """What the losses and activations show, whatever its cause."""
    record = e.record
    of_loss = replace(record, steps=record.loss_steps)
    judged = replace(record, layers=[h for h in record.layers if len(h) >= MIN_STEPS])
    long = len(of_loss.steps) >= MIN_STEPS
    found = [find_failure(record), find_nonfinite_loss(of_loss), find_nonfinite_activations(record)]
    found += [_if_poor(e, find_dead_channels(judged)), _if_poor(e, find_activation_cycles(judged))]
    if long:
        found += [find_overfitting(record) or find_memorized(e)]
        if e.is_poor and not any(one and one.severity == "problem" for one in found):
            found += [rule(e) for rule in FALLBACKS]
        if not any(one and one.severity == "problem" for one in found):
            found.append(find_nothing_learned(of_loss) or find_loss_not_falling(of_loss))
        found.append(find_still_improving(record))
    findings = [finding for finding in found if finding is not None]
    if long and all(finding.kind == "still-improving" for finding in findings):
        findings.append(_healthy(of_loss, judged))
    elif not findings:
        findings.append(_too_short(record, len(of_loss.steps)))
    return findings


def _if_poor(e: Evidence, finding: Finding | None) -> Finding | None:
    """A problem is one where the run has not learned; else it is a warning."""
    if finding is None or finding.severity != "problem" or e.is_poor or not len(e.loss):
        return finding
    return replace(finding, severity="warning")


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
