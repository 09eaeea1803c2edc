"""Several runs beside one another: how they ended, what they were set up with, how they went."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import unified_diff
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from convlens.core.wording import without_classes
from convlens.web import formatting
from convlens.web.figures import comparison as figures
from convlens.web.figures import curves
from convlens.web.panels.verdict import badge
from convlens.web.run_data import RunData, as_dict

if TYPE_CHECKING:
    from convlens.web.pages import ComparePage

SETTINGS = ("model", "data", "loss", "optimizer", "schedule", "n_epochs", "device")
"""The facts of how a run was set up, in the order in which they are listed."""

NOISE = (
    "seed",
    "created",
    "command",
    "threads",
    "convlens",
    "torch",
    "numpy",
    "python",
    "platform",
)
"""Facts in which most runs differ, and which seldom matter."""

WORDS: Mapping[str, str] = {
    "model class": "model", "model n_parameters": "parameters", "data name": "data",
    "data n_train": "training items", "data n_valid": "validation items",
    "data input_shape": "input shape", "data batch_size": "batch size", "data classes": "classes",
    "optimizer class": "optimizer", "optimizer groups lr": "learning rate at the start",
    "optimizer groups momentum": "momentum (β₁ for Adam)", "optimizer groups beta2": "β₂",
    "optimizer groups eps": "ε of the optimizer", "optimizer groups weight_decay": "weight decay",
    "schedule class": "schedule of the learning rate", "schedule lr_max": "highest learning rate",
    "schedule div": "highest rate ÷ first rate", "schedule div_final": "highest rate ÷ last rate",
    "schedule pct_start": "share of steps before the rate falls",
    "schedule anneal": "shape of the schedule", "schedule lr_end": "last learning rate",
    "schedule warmup": "share of steps that warm up", "schedule peak": "highest learning rate",
    "schedule moms": "momentum at start, highest rate and end", "n_epochs": "epochs planned",
    "created": "begun", "convlens": "convlens version", "torch": "PyTorch version",
    "numpy": "NumPy version", "python": "Python version",
}  # fmt: skip
"""Settings in plain words, by their place in the record."""

UNLISTED = ("model text", "schedule lr")
"""Settings that are shown elsewhere: as a diff, and as the optimizer's learning rate."""

MOST, LONGEST = 40, 160
"""Settings that are listed, and characters of one."""

MOST_LINES = 1_500
"""Lines of a model's text that are compared."""

LAST = 50
"""Steps whose mean is the training loss of a run without epochs."""


def outcome(page: ComparePage) -> dict[str, Any]:
    """A row for each run, and which values of a column are the best."""
    runs = [one.run for one in page.pages]
    newest = [run.epochs[-1] if run.epochs else None for run in runs]
    means = [without_classes(e.metrics) if e else {} for e in newest]
    metrics = list(dict.fromkeys(name for one in means for name in one))[:4]
    columns: dict[str, list[float | None]] = {
        **{name: [one.get(name) for one in means] for name in metrics},
        "validation loss": [e.valid_loss if e else None for e in newest],
        "training loss": [_training_loss(run) for run in runs],
    }
    cells: list[list[tuple[str, str, bool]]] = [[] for _ in runs]
    for name, values in columns.items():
        best = _best(name, values)
        for row, value in zip(cells, values, strict=True):
            shown = formatting.metric(name, value) if name in metrics else formatting.loss(value)
            row.append((name, shown, value is not None and value == best))
    return {
        "columns": list(columns),
        "rows": [*zip(page.names, runs, cells, strict=True)],
        "badge": badge,
        "without": [name for name, e in zip(page.names, newest, strict=True) if e is None],
        "last": LAST,
    }


def _training_loss(run: RunData) -> float | None:
    if run.epochs:
        return run.epochs[-1].train_loss
    known = run.steps.loss[~np.isnan(run.steps.loss)][-LAST:]
    return float(known.mean()) if len(known) else None


def _best(name: str, values: Sequence[float | None]) -> float | None:
    """The best of several different values; None where nobody knows whether more is better."""
    known = {value for value in values if value is not None and math.isfinite(value)}
    if len(known) < 2:
        return None
    if name.endswith("loss"):
        return min(known)
    return max(known) if name.lower().endswith(("accuracy", "f1", "auc")) else None


def differences(page: ComparePage) -> dict[str, Any]:
    """The settings in which the runs differ, and the texts of models that differ from the first."""
    metas = [one.run.meta for one in page.pages]
    settings, noise = _differing(metas, SETTINGS), _differing(metas, NOISE)
    noise.append(("folder", [str(one.run.run.path.resolve()) for one in page.pages]))
    texts = [_model_text(meta) for meta in metas]
    return {
        "settings": settings[:MOST], "more": max(len(settings) - MOST, 0), "noise": noise,
        "diffs": [
            (name, list(_diff(texts[0], text)))
            for name, text in zip(page.names[1:], texts[1:], strict=True)
            if text != texts[0] and text and texts[0]
        ],
        "unknown": [
            name for name, meta in zip(page.names, metas, strict=True) if "optimizer" not in meta
        ],
    }  # fmt: skip


def _differing(
    metas: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[tuple[str, list[str]]]:
    """Names and values of the settings that are not the same in all runs, as texts."""
    flat = [dict(_flat({key: meta[key] for key in keys if key in meta})) for meta in metas]
    found: list[tuple[str, list[str]]] = []
    for key in dict.fromkeys(key for one in flat for key in one):
        values = [one.get(key) for one in flat]
        if all(value == values[0] for value in values):
            continue
        shown = [_text(value) for value in values]
        if len(set(shown)) == 1:  # they differ beyond the digits that are usually shown
            shown = [str(value) for value in values]
        cut = [text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in shown]
        words = WORDS.get(key) or formatting.label(key)
        found.append((words if len(words) <= LONGEST else words[: LONGEST - 1] + "…", cut))
    return found


def _text(value: object) -> str:
    """A setting as text; several numbers, such as three momenta, are parted by commas."""
    if isinstance(value, list) and value and all(isinstance(one, float) for one in value):
        return ", ".join(map(formatting.plain, value))
    return formatting.plain(value)


def _flat(value: object, name: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values by their place, such as ``optimizer groups 2 lr``; without models' texts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if (place := f"{name} {key}".strip()) not in UNLISTED:
                yield from _flat(inner, place)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, name if len(value) == 1 else f"{name} {i + 1}")
    elif isinstance(value, float):
        yield name, float(f"{value:.10g}")
    else:
        yield name, value


def _model_text(meta: Mapping[str, Any]) -> list[str]:
    text = as_dict(meta.get("model")).get("text")
    return text.splitlines()[:MOST_LINES] if isinstance(text, str) else []


def _diff(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Class, sign and text of each line of a diff, with two lines around what differs."""
    kinds = {"-": ("removed", "−"), "+": ("added", "+"), "@": ("gap", "⋮")}
    for line in islice(unified_diff(a, b, lineterm="", n=2), 2, None):
        kind, sign = kinds.get(line[0], ("", " "))
        yield kind, sign, "" if kind == "gap" else line[1:]


def losses(page: ComparePage) -> dict[str, Any]:
    """The state of the controls."""
    return {
        "metrics": curves.metric_names([e for one in page.pages for e in one.run.epochs]),
        "log": curves.is_log(page.pages),
        "height": curves.overlaid_height(page.pages),
    }


def distances(page: ComparePage) -> dict[str, Any]:
    """The distances of two runs in words, and the neighbours of the chosen layer."""
    layers = page.layers
    at = layers.index(page.layer) if layers else 0
    n_rows = len(page.comparison.distances) if page.comparison else 0
    return {
        "comparison": page.comparison,
        "height": figures.matrix_height(n_rows),
        "heats": 2 * figures.HEAT,
        "previous": layers[at - 1] if at > 0 else None,
        "next": layers[at + 1] if at + 1 < len(layers) else None,
    }
