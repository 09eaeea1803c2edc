"""`facts_of`: a run and its findings as small, plain JSON, for programs and language models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from convlens.core.buckets import Floats
from convlens.core.records import Epoch, Finding, RunRecord
from convlens.core.wording import without_classes

LARGEST = 20_000
"""Bytes of the JSON text at most: what a language model can be given beside other things."""

ITEMS, LETTERS, DIGITS = 10, 400, 6
"""Items of a list, letters of a text and digits of a number that are kept."""

NEWEST = 5
"""Epochs that are shown, the newest ones."""

LEFT_OUT = ("modules",)
"""Facts of the loop that are long and say nothing of its own."""


def facts_of(record: RunRecord, findings: Sequence[Finding], run: str = "") -> dict[str, Any]:
    """What is known of a run: status, losses, newest epochs, findings, what the loop did.

    Args:
        record: the run.
        findings: what `diagnose` has found in it.
        run: its path.

    Returns:
        Plain values whose JSON text has at most `LARGEST` bytes; a number that is not finite is
        None.
    """
    meta, losses = record.meta, record.loss_steps.loss
    model = meta.get("model")
    found: dict[str, Any] = {
        "run": run,
        "status": meta.get("status"),
        "error": meta.get("error"),
        "findings": [asdict(finding) for finding in findings],
        "steps": _steps(losses, record),
        "epochs": len(record.epochs),
        "newest_epochs": [_epoch(epoch) for epoch in record.epochs[-NEWEST:]],
        "model": {k: v for k, v in model.items() if k != "text"} if isinstance(model, dict) else {},
        "loop": {name: v for name, v in record.loop.items() if name not in LEFT_OUT},
        "notes": meta.get("notes", []),
    }
    found = _short(found, longer=("findings",))
    for name in ("notes", "loop", "newest_epochs", "model"):  # what can be done without first
        if _size(found) > LARGEST:
            found[name] = "left out: too long"
    while _size(found) > LARGEST and found["findings"]:
        found["findings"].pop()
    return found


def _steps(losses: Floats, record: RunRecord) -> dict[str, Any]:
    n = max(len(losses) // 10, 1)
    newest = {name: list(v[-1]) for name, v in record.steps.hypers.items() if len(v)}
    if not len(losses):
        return {"n": len(record.steps), "with_loss": 0, "newest": newest}
    return {
        "n": len(record.steps),
        "with_loss": len(losses),
        "mean_loss_of_first_tenth": float(np.mean(losses[:n])),
        "mean_loss_of_last_tenth": float(np.mean(losses[-n:])),
        "newest": newest,
    }


def _epoch(epoch: Epoch) -> dict[str, Any]:
    return {
        "epoch": epoch.epoch,
        "last_step": epoch.last_step,
        "train_loss": epoch.train_loss,
        "valid_loss": epoch.valid_loss,
        **dict(list(without_classes(epoch.metrics).items())[:ITEMS]),
    }


def _short(value: Any, longer: Iterable[str] = ()) -> Any:  # noqa: ANN401 — of JSON
    """A value with few items, short texts and rounded numbers."""
    if isinstance(value, Mapping):
        return {str(k): _short(v) if k not in longer else _short_all(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return _short_all(value[:ITEMS])
    if isinstance(value, str):
        return value if len(value) <= LETTERS else value[: LETTERS - 1] + "…"
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else str(value)


def _short_all(values: Iterable[Any]) -> list[Any]:
    return [_short(value) for value in values]


def _size(found: Mapping[str, Any]) -> int:
    return len(json.dumps(found, ensure_ascii=False).encode())
