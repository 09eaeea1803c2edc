"""All rules on a record together, worst finding first, causes before consequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from convlens.core.records import SEVERITIES, Finding, RunRecord
from convlens.doctor import data, fallback, loop, normalization, optimization, trial
from convlens.doctor.activations import (
    find_activation_cycles,
    find_constant_layer,
    find_dead_channels,
)
from convlens.doctor.causes import without_effects
from convlens.doctor.evidence import MIN_STEPS, Evidence
from convlens.doctor.losses import (
    find_failure,
    find_loss_not_falling,
    find_memorized,
    find_nothing_learned,
    find_overfitting,
    find_still_improving,
)
from convlens.doctor.nonfinite import find_nonfinite
from convlens.doctor.summary import healthy, too_short

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
    normalization.find_stats_never_updated,
    normalization.find_batch_too_small,
    loop.find_parameters_not_in_optimizer,
    loop.find_frozen,
    optimization.find_constant_initialization,
    data.find_dropout,
    data.find_channels_mixed,
    data.find_input_scale,
    data.find_targets_far,
    loop.find_accumulation_not_scaled,
    optimization.find_decay_too_high,
    optimization.find_clipped,
    optimization.find_schedule_ends_early,
    optimization.find_half_precision,
    optimization.find_bad_initialization,
    optimization.find_momentum_too_high,
    optimization.find_rate_too_high,
    optimization.find_exploding,
    optimization.find_rate_too_low,
    optimization.find_vanishing,
    loop.find_train_mode_in_evaluation,
    data.find_duplicates,
    data.find_labels_shifted,
    data.find_first_class_unused,
)
"""The rules on causes, those that explain most first."""


FALLBACKS: Sequence[Rule] = (
    fallback.find_model_too_small,
    fallback.find_labels_shuffled,
    find_nothing_learned,
    find_loss_not_falling,
)
"""The rules on a run that has not learned, asked in turn where no other has found a problem."""


def diagnose(record: RunRecord) -> list[Finding]:
    """What the rules find in a record, worst first.

    Never empty: a run without steps, one that is too short to judge and one with nothing wrong say
    so. Findings of the same severity come in the order of cause and effect, and what an earlier
    problem explains is left out.
    """
    with np.errstate(all="ignore"):
        evidence = Evidence(record)
        findings = [found for rule in CAUSES if (found := rule(evidence)) is not None]
        findings = without_effects([*findings, *_effects(evidence)])
        long = len(evidence.loss) >= MIN_STEPS
        if long and not _has(findings, "problem"):
            last = next(filter(None, (rule(evidence) for rule in FALLBACKS)), None)
            if last is not None:
                if last.kind == "one-class":  # which names the layer
                    findings = [one for one in findings if one.kind != "constant-layer"]
                findings.append(last)
        if all(map(_is_small, findings)):
            kinds = [one.kind for one in findings]
            findings.append(healthy(evidence, kinds) if long else too_short(evidence))
    return worst_first(findings)


def _has(findings: Sequence[Finding], *severities: str) -> bool:
    return any(one.severity in severities for one in findings)


def _is_small(finding: Finding) -> bool:
    """Whether nothing looks wrong all the same."""
    return finding.severity == "note"


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Problems before warnings before notes; the order within each is kept."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


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
        rules += [*TRIALS, find_nonfinite]
        findings = [found for rule in rules if (found := rule(evidence)) is not None]
        findings = without_effects(findings)
    findings = list({finding.kind: finding for finding in reversed(findings)}.values())[::-1]
    if all(map(_is_small, findings)):
        text = "Nothing looks wrong in what was tried."
        findings.append(Finding("healthy", "good", text, confidence="likely"))
    return worst_first(findings)


def judge_batch(record: RunRecord) -> list[Finding]:
    """What one batch shows, before any training step; worst first, empty if nothing is wrong."""
    with np.errstate(all="ignore"):
        evidence = Evidence(record)
        findings = [found for rule in OF_ONE_BATCH if (found := rule(evidence)) is not None]
    return worst_first(findings)


OF_ONE_BATCH: Sequence[Rule] = (
    loop.find_layers_not_registered,
    data.find_nan_in_data,
    data.find_shape_broadcast,
    data.find_output_activation,
    data.find_softmax_axis,
    normalization.find_stats_never_updated,
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


def _effects(e: Evidence) -> list[Finding]:
    """What the losses and activations show, whatever its cause."""
    record = e.record
    judged = replace(record, layers=[h for h in record.layers if len(h) >= MIN_STEPS])
    found = [find_failure(record), find_nonfinite(e)]
    layers = [find_dead_channels(judged), find_activation_cycles(judged)]
    if not any(one is not None and one.severity == "problem" for one in [*found, *layers]):
        layers.append(find_constant_layer(judged))  # else it is what those lead to
    found += [_if_weak(e, one) for one in layers]
    if len(e.loss) >= MIN_STEPS:
        both = [find_overfitting(record), find_memorized(e)]
        found += worst_first([one for one in both if one is not None])[:1]
        found.append(find_still_improving(record))
    return [finding for finding in found if finding is not None]


def _if_weak(e: Evidence, finding: Finding | None) -> Finding | None:
    """Of layers: a problem where the run has not learned, else a step less.

    A network that has learned does without the channels that are dead; a layer of which most are
    costs what it costs, for nothing.
    """
    if finding is None or e.is_poor:
        return finding
    warn = e.is_weak or not len(e.loss) or finding.severity == "problem"
    return replace(finding, severity="warning" if warn else "note")
