"""What is said of a run in which nothing looks wrong, or of which too little is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from convlens.core.records import Finding
from convlens.doctor.activations import DEAD_WARNING
from convlens.doctor.evidence import MIN_STEPS, PATIENCE, WEAK, Evidence


def too_short(e: Evidence) -> Finding:
    """That there are too few losses to say anything."""
    record, n = e.record, len(e.loss)
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


def healthy(e: Evidence, notes: Sequence[str]) -> Finding:
    """That nothing looks wrong, what was looked at, and what could not be.

    Args:
        e: of the run.
        notes: kinds of what was noted all the same.
    """
    noted = {"dead-relu", "activation-cycles"} & set(notes)
    n, (first, last) = e.n_ends, e.ends
    missing = list(_missing(e))
    judged = any(len(history) >= MIN_STEPS for history in e.record.layers)
    if judged:
        dead = f"{100 * DEAD_WARNING:.0f} % or more dead channels, "
        others = "non-finite values, or repeated collapses"
        watched = f"No watched layer had {'' if noted else dead}{others}."
    elif e.record.layers:
        watched = f"No layer was watched for {MIN_STEPS} columns, so little is known of them."
    else:
        watched = "No layers were watched, so nothing is known of the activations."
    way = f", {e.learned:.0%} of the way from {e.chance.words}" if e.chance is not None else ""
    way = way if math.isfinite(e.learned) and e.learned > 0 else ""
    if len(e.loss) < PATIENCE and not e.learned >= WEAK:
        watched = f"It is too early to say whether it learns. {watched}"
    return Finding(
        "healthy",
        "good",
        f"Nothing looks wrong: every loss is finite, and the training loss went from {first:.3g} "
        f"(mean of the first {n} batches) to {last:.3g} (the last {n}){way}. {watched}"
        + (f" Not looked at: {'; '.join(missing)}." if missing else ""),
        fix="" if e.record.layers else "Train with watching on to see them.",
        # Of a loss of an unknown kind a fall is all there is to say that something was learned.
        confidence="possible" if e.is_weak else "likely",
    )


def _missing(e: Evidence) -> Iterator[str]:
    """What the record does not have, and how to have it."""
    if not e.loop:
        yield "what the loop did (train it under cl.watch)"
    elif not e.facts("output_gradient"):
        yield "which loss it is (no gradient was seen at the model's output)"
    elif e.chance is None:
        yield "what guessing would cost (the kind of loss was not recognized)"
    if e.loop and not e.count("optimizer_steps"):
        yield "the optimizer's steps (it is not one of torch's, or has not made one)"
    absent = [q for q in ("gradient", "update") if not e.of_parameters(q)]
    if absent:
        names = " and ".join(f"{name}s" for name in absent)
        yield f"{names} (cl.watch(…, gradients=True, updates=True))"
    if not e.was_validated:
        yield "validation (stats.log_epoch(valid_loss=…, accuracy=…))"
