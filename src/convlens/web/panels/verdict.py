"""The verdict in a few words, and what the doctor found, in one line each, worst first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convlens.core.records import Finding
from convlens.core.wording import plural
from convlens.web.formatting import short

if TYPE_CHECKING:
    from convlens.web.pages import Page

SHOWN = 5
"""Findings that are seen without unfolding."""

MAX_TEXT = 420
"""Characters of a finding that are shown; errors of a training may be as long as they like."""

WORDS = {
    "accumulation-not-scaled": "loss not divided",
    "activation-cycles": "activations grow and collapse",
    "activation-on-logits": "activation on the scores",
    "batch-mixed-by-reshape": "items of a batch mixed",
    "batchnorm-batch-too-small": "batches too small for batch norm",
    "batchnorm-stats-never-updated": "statistics never updated",
    "channels-mixed-by-reshape": "channels mixed",
    "constant-labels": "one label only",
    "constant-layer": "a layer that gives one value",
    "dead-relu": "dead channels",
    "eval-mode-in-training": "trained in evaluation mode",
    "exploding-gradient": "gradients explode",
    "failed": "the training failed",
    "fp16-overflow-or-underflow": "weights in float16",
    "frozen-by-mistake": "layers frozen",
    "gradient-clipped-to-nothing": "gradients clipped to nothing",
    "input-double-scaled": "inputs scaled twice",
    "input-not-normalized": "inputs not normalized",
    "labels-shuffled": "labels do not match",
    "learning-rate-schedule-ends-early": "schedule ends too early",
    "loss-not-falling": "the loss did not fall",
    "missing-backward": "no gradient reaches the model",
    "missing-step": "no optimizer step",
    "missing-zero-grad": "gradients not reset",
    "nan-in-data": "NaN in the inputs",
    "no-nonlinearity": "no activation",
    "nonfinite-activations": "activations are NaN or infinite",
    "nonfinite-loss": "the loss is NaN or infinite",
    "nothing-learned": "nothing was learned",
    "one-class": "images cannot be told apart",
    "output-constant": "constant output",
    "parameters-not-in-optimizer": "parameters in no optimizer",
    "shape-broadcast-in-loss": "shapes broadcast in the loss",
    "sigmoid-before-bce-with-logits": "sigmoid applied twice",
    "softmax-before-cross-entropy": "softmax applied twice",
    "targets-far-from-outputs": "targets far from the outputs",
    "train-data-duplicated-in-validation": "validated on training data",
    "train-mode-in-evaluation": "validated in training mode",
    "vanishing-gradient": "gradients vanish",
    "weight-decay-too-high": "weight decay too strong",
    "wrong-axis-softmax": "softmax over the wrong axis",
    "wrong-loss-for-task": "wrong loss",
}
"""Each kind of finding that is wrong, in a few words."""

_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_QUOTED = re.compile(r"""(?<!\w)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")


def in_words(kind: str) -> str:
    """A kind of finding in a few words."""
    return WORDS.get(kind, kind.replace("-", " "))


def badge(findings: Sequence[Finding] | None) -> tuple[str, str]:
    """The verdict on a run in one or two words, and its class in style sheets.

    Args:
        findings: of the doctor, None if it has not looked yet.
    """
    if findings is None:
        return "no verdict yet", ""
    for severity in ("problem", "warning"):
        found = [one for one in findings if one.severity == severity]
        if found:
            return plural(len(found), severity), severity
    healthy = any(one.kind == "healthy" for one in findings)
    return ("looks healthy", "good") if healthy else ("not judged", "")


def verdict(page: Page) -> dict[str, Any]:
    """How the run ended, the verdict and the findings."""
    found = page.run.findings
    lines = [_line(page, one) for one in found or ()]
    return {
        "headline": headline(found, running=page.run.status == "running"),
        "state": badge(found)[1],
        "notes": _notes(page),
        "lines": lines[:SHOWN],
        "more": lines[SHOWN:],
    }


def headline(findings: Sequence[Finding] | None, *, running: bool = False) -> str:
    """The verdict in one line."""
    if findings is None:
        return "Looking for problems …"
    wrong = [one for one in findings if one.severity in ("problem", "warning")]
    if not wrong and any(one.kind == "healthy" for one in findings):
        return "Nothing looks wrong" + " so far" * running
    if not wrong:
        return "Nothing to judge yet" if running else "Not judged"
    counts = [(s, sum(one.severity == s for one in wrong)) for s in ("problem", "warning")]
    count = " and ".join(plural(n, severity) for severity, n in counts if n)
    words = dict.fromkeys(in_words(one.kind) for one in wrong)
    return f"{count} found: {', '.join(words)}"


def _line(page: Page, finding: Finding) -> dict[str, Any]:
    evidence = finding.evidence.strip()
    if finding.kind == "healthy":
        evidence = evidence.removeprefix("Nothing looks wrong: ")
        evidence = evidence[:1].upper() + evidence[1:]
    shown = evidence if len(evidence) <= MAX_TEXT else evidence[:MAX_TEXT] + " …"
    first, *rest = _END.split(shown, maxsplit=1)
    layers = {repr(name): name for name in page.run.names}
    named = any(f"{finding.layer!r}" in text for text in (first, *rest))
    return {
        "severity": finding.severity,
        "layer": finding.layer if finding.layer in page.run.names and not named else None,
        "first": _pieces(page, first, layers),
        "rest": _pieces(page, " ".join(rest), layers),
        "whole": evidence if shown != evidence else "",
        "fix": finding.fix,
    }


def _pieces(page: Page, text: str, layers: Mapping[str, str]) -> list[tuple[str, str]]:
    """A text in pieces with an address each: names of layers in quotes lead to the layer."""
    pieces = [piece for piece in _QUOTED.split(text) if piece]
    return [
        (short(layers[piece], 34), page.layer_url(layers[piece]))
        if piece in layers
        else (piece, "")
        for piece in pieces
    ]


def _notes(page: Page) -> list[str]:
    """Sentences on whatever about the run's end is not as in a finished one."""
    run, notes = page.run, list[str]()
    error = str(run.meta.get("error") or "")
    if run.status == "crashed":
        notes.append(f"{error} Everything recorded until then is shown.".strip())
    elif run.status == "stopped":
        notes.append("This run was stopped before its end; everything until then is shown.")
    elif run.status == "failed" and not any(one.kind == "failed" for one in run.findings or ()):
        notes.append(f"Training failed: {error or 'no reason was recorded'}")
    if run.meta.get("lost"):
        notes.append(f"This record is incomplete; could not be written: {run.meta['lost']}.")
    return notes
