"""Findings on what cannot be tried: a training step that raises, a model that cannot be copied."""

from __future__ import annotations

import re

from convlens.checking.batches import split
from convlens.core.records import Finding
from convlens.errors import ConvlensError

RANGE = re.compile(r"labels y go from (-?\d+) to (-?\d+), but the model gives (\d+) outputs")


def raised(error: Exception, batch: object) -> Finding:
    """A problem: the error of a training step, with what to do about it."""
    notes: list[str] = getattr(error, "__notes__", [])
    if isinstance(error, ConvlensError):
        evidence, fix = _parts(str(error))
    else:
        words = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        said = f"A training step raises {type(error).__name__}: {words}."
        evidence, fix = " ".join([said, *notes]), _fix(error, batch)
    return Finding(_kind(str(error)), "problem", evidence, fix=fix, confidence="certain")


def not_copied(error: Exception) -> Finding:
    """A note: no step can be made on a copy of the model."""
    words = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return Finding(
        "not-copied",
        "note",
        f"copy.deepcopy cannot copy the model, optimizer or loss ({words}), so no training steps "
        "were tried.",
        fix="Keep locks, files, generators and tensors of the last batch out of their attributes, "
        "or give the class a __deepcopy__.",
        confidence="certain",
    )


def _kind(sentence: str) -> str:
    """The kind of fault that an error's sentence tells of."""
    found = RANGE.search(sentence)
    if found is None:
        return "training-step-raises"
    low, high, n = map(int, found.groups())
    return "labels-shifted" if (low, high) == (1, n) else "too-few-outputs"


def _parts(sentence: str) -> tuple[str, str]:
    """What is wrong, and what to do about it, which follows its last semicolon."""
    wrong, _, fix = sentence.rpartition("; ")
    if not wrong:
        return sentence, "Look at the shapes and types that the sentence names."
    return f"{wrong}.", fix[:1].upper() + fix[1:]


def _fix(error: Exception, batch: object) -> str:
    words = str(error)
    if "second time" in words:
        return "Return the loss from step without calling loss.backward(): the check calls it."
    if "allocate memory" in words or "out of memory" in words:
        return "Use smaller batches or images."
    if split(batch)[1] is None:
        return (
            "The batch has no targets (they are its last entry, or its 'labels'); give batches "
            "(inputs, targets), or step=, a function of model and batch that returns the loss."
        )
    return (
        "Call the model and the loss on one batch yourself and look at shapes and types; where a "
        "batch becomes a loss in another way, give step=, a function of model and batch."
    )
