"""Causes and effects: what an earlier finding explains is not said again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from convlens.core.records import Finding

STATES = ("activation-cycles", "constant-layer", "one-class", "nothing-learned", "loss-not-falling")
"""How a run looks that does not learn: said only where no problem is known."""

NONFINITE = ("nonfinite-activations", "nonfinite-loss")

OF_GRADIENTS = ("exploding-gradient", "vanishing-gradient", "dead-relu", *NONFINITE, *STATES)

SYMPTOMS = (
    "bad-initialization",
    "momentum-too-high",
    "learning-rate-too-high",
    "learning-rate-too-low",
    *OF_GRADIENTS,
    "model-too-small",
    "labels-shuffled",
)
"""What follows from a fault of the loop, the data, the loss or the settings; the rest are causes,
and explain all of these."""

OF_VALIDATION = ("overfitting", "still-improving")

EXPLAINED_BY: Mapping[str, Sequence[str]] = {
    "bad-initialization": ("learning-rate-too-low", *OF_GRADIENTS),
    "momentum-too-high": ("learning-rate-too-high", *OF_GRADIENTS),
    "learning-rate-too-high": OF_GRADIENTS,
    "learning-rate-too-low": ("vanishing-gradient", "dead-relu", *STATES),
    "exploding-gradient": (
        "learning-rate-too-low",
        "vanishing-gradient",
        "dead-relu",
        *NONFINITE,
        *STATES,
    ),
    "vanishing-gradient": ("dead-relu", *STATES),
    "dead-relu": STATES,
    "nonfinite-activations": STATES,
    "nonfinite-loss": STATES,
    "model-too-small": STATES,
    "failed": (),
    "overfitting": (),
    "labels-shuffled": (*STATES, *OF_VALIDATION),
    "constant-labels": (*SYMPTOMS, *OF_VALIDATION),
    "labels-shifted": (*SYMPTOMS, *OF_VALIDATION),
    "train-mode-in-evaluation": (*SYMPTOMS, *OF_VALIDATION),
    "train-data-duplicated-in-validation": OF_VALIDATION,
    "batchnorm-stats-never-updated": (*SYMPTOMS, *OF_VALIDATION),
    "batchnorm-batch-too-small": (*SYMPTOMS, *OF_VALIDATION),
    "eval-mode-in-training": (*SYMPTOMS, *OF_VALIDATION),
}
"""What a problem of a kind explains; kinds that are not here explain all `SYMPTOMS`."""


def without_effects(findings: Sequence[Finding]) -> list[Finding]:
    """Leave out what an earlier problem explains, and which step it came to.

    Args:
        findings: causes first.
    """
    kept = list[Finding]()
    for finding in findings:
        cause = next((i for i, one in enumerate(kept) if _explains(one, finding)), None)
        if cause is None:
            kept.append(finding)
        elif finding.kind in NONFINITE and kept[cause].kind != "nan-in-data":
            kept[cause] = _with_end(kept[cause], finding)
    return kept


def _explains(one: Finding, other: Finding) -> bool:
    explained = EXPLAINED_BY.get(one.kind, SYMPTOMS)
    return one.severity == "problem" and other.kind in explained


def _with_end(cause: Finding, end: Finding) -> Finding:
    """The cause with what came of it in the end."""
    where = f" in {end.layer!r}" if end.layer else ""
    what = f"It ended in values that are not finite{where}, from step {end.first_step} on."
    return replace(cause, evidence=f"{cause.evidence} {what}")
