"""What a training loop did with the model, as a few lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convlens.web.formatting import duration, number, percent, plain
from convlens.web.run_data import as_dict

COUNTS = {
    "training_forwards": "forward passes in training", "backwards": "backward passes",
    "optimizer_steps": "optimizer steps", "foreign_steps": "steps of other optimizers",
    "told_steps": "steps told by stats.step()",
    "validation_forwards": "forward passes in validation",
    "validation_in_training_mode": "… of them in training mode",
    "steps_in_evaluation_mode": "steps in evaluation mode",
    "steps_without_reset": "steps whose gradients were not reset before",
    "n_frozen": "frozen parameters", "n_in_no_optimizer": "parameters in no optimizer",
}  # fmt: skip
"""The facts that are counts. One that is 0 or unknown is left out."""

TENSORS = ("input", "output", "target")

MOST = 8
"""Optimizers that are listed at most."""


def loop_facts(loop: Mapping[str, Any]) -> dict[str, Any]:
    """Names and texts; empty where nothing was recorded."""
    found: dict[str, Any] = {}
    for key, words in COUNTS.items():
        n = loop.get(key)
        if isinstance(n, int) and n > 0:
            found[words] = number(n)
    optimizers = loop.get("optimizers")
    if isinstance(optimizers, list) and optimizers:
        found["optimizers"] = ", ".join(plain(as_dict(o).get("class")) for o in optimizers[:MOST])
    for name in TENSORS:
        if text := _tensor(as_dict(loop.get(name))):
            found[name] = text
    waited, computed = loop.get("waited_s"), loop.get("computed_s")
    if isinstance(waited, float) and isinstance(computed, float) and waited + computed > 0:
        share = percent(waited / (waited + computed))
        found["waiting for data"] = f"{duration(waited)}, {share} of the time"
    return found


def _tensor(facts: Mapping[str, Any]) -> str:
    """A shape and, in the batches that were looked at, the range of the values."""
    shape, dtype = facts.get("shape"), facts.get("dtype")
    if not isinstance(shape, list):
        return ""
    text = f"({', '.join(map(plain, shape))}) {plain(dtype)}"
    values = [facts.get(key) for key in ("min", "max", "mean", "std")]
    low, high, mean, std = (v if isinstance(v, int | float) else None for v in values)
    if low is not None and high is not None:
        text += f", from {number(float(low))} to {number(float(high))}"
    if mean is not None and std is not None:
        text += f", mean {number(float(mean))}, standard deviation {number(float(std))}"
    return text
