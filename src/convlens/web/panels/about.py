"""Everything that a run knows of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convlens.web.formatting import duration, label, plain
from convlens.web.panels.loop import loop_facts
from convlens.web.run_data import as_dict

if TYPE_CHECKING:
    from convlens.web.pages import Page

RUN = ("created", "status", "error", "wall_s", "seed", "command", "data", "model")
MACHINE = ("convlens", "python", "torch", "numpy", "platform", "device", "threads")
ELSEWHERE = ("summary", "cells", "planes", "effective_epochs")
"""What says nothing to a reader here."""

MOST_KEYS, MOST_LISTED, MOST_DEPTH, MOST_TEXT = 40, 24, 4, 2_000

MOST_MODEL = 100_000
"""Characters of the model's text."""

WORDS = {
    "created": "started (UTC)", "wall_s": "time taken", "lr": "learning rate",
    "lr_max": "largest learning rate", "div": "largest learning rate / first",
    "div_final": "largest learning rate / last", "pct_start": "share of steps with a rising rate",
    "moms": "momentum: first, middle, last", "eps": "ε", "beta2": "β₂",
    "n_train": "training images", "n_valid": "validation images", "counted": "a step is counted by",
    "n_epochs": "epochs planned", "n_steps": "steps planned", "threads": "threads of PyTorch",
    "n_layers": "layers with pictures", "n_layers_in_all": "layers in all",
    "effective_layers": "layers with effective receptive fields",
    "kept_epochs": "kept after epochs",
}  # fmt: skip
"""What the keys of a record mean, where they do not say it."""


def about(page: Page) -> dict[str, Any]:
    """Names and values in groups, and the model's text, which is long, by itself."""
    values = dict(page.run.meta)
    model = dict(as_dict(values.get("model")))
    if isinstance(text := model.pop("text", ""), str) and text:
        values["model"] = model
    groups = {
        "Run": {key: values[key] for key in RUN if key in values},
        "Training": {k: v for k, v in values.items() if k not in (*RUN, *MACHINE, "loop")},
        "Versions and machine": {key: values[key] for key in MACHINE if key in values},
    }
    worded = {name: _worded(facts) for name, facts in groups.items() if facts}
    if loop := loop_facts(as_dict(values.get("loop"))):
        worded["Training loop"] = loop
    return {
        "groups": list(worded.items()),
        "model": text[:MOST_MODEL] if isinstance(text, str) else "",
    }


def _worded(value: object, key: str = "", depth: int = 0) -> Any:  # noqa: ANN401 — text, or such again
    """A value of the record as text, in bounded dictionaries and lists."""
    if isinstance(value, Mapping) and value and depth < MOST_DEPTH:
        pairs = [pair for pair in value.items() if pair[0] not in ELSEWHERE][:MOST_KEYS]
        found = {WORDS.get(str(k), label(str(k))): _worded(v, str(k), depth + 1) for k, v in pairs}
        return found | ({"…": f"{len(value) - MOST_KEYS:,} more"} if len(value) > MOST_KEYS else {})
    if isinstance(value, list) and value and depth < MOST_DEPTH:
        shown = [_worded(item, key, depth + 1) for item in value[:MOST_LISTED]]
        more = [f"… and {len(value) - MOST_LISTED:,} more"] if len(value) > MOST_LISTED else []
        if all(isinstance(item, str) for item in shown):
            shape = all(type(item) is int for item in value) and "shape" in key
            return plain(value) if shape and not more else ", ".join([*shown, *more])
        return [*shown, *more]
    if key == "wall_s" and isinstance(value, float):
        return duration(value)
    if key.endswith("epochs") and type(value) is int and depth > 1:
        return "before training" if value < 0 else str(value + 1)
    return plain(value)[:MOST_TEXT]
