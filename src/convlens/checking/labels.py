"""The labels of all items that a check has read, also of those that it did not train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from convlens.checking.batches import split
from convlens.checking.failures import raised
from convlens.checking.loaders import spread_batch
from convlens.checking.mismatch_errors import out_of_range as why_out_of_range
from convlens.core.records import LOOP, Finding, RunRecord
from convlens.errors import TrainingError
from convlens.watching.tensor_facts import facts_of_labels, joined

PLACES = 16
"""Items from all over a data set whose labels are looked at."""


def out_of_range(record: RunRecord, batches: Sequence[Any]) -> list[Finding]:
    """A problem with labels that have no output, in items that were not trained on."""
    shape: object = (record.loop.get("output") or {}).get("shape")
    gradient: dict[str, float] = record.loop.get("output_gradient") or {}
    targets = _labels(batches)
    if not targets or gradient.get("cross_entropy", 0) < 1 or not isinstance(shape, list):
        return []
    y = torch.cat(targets)
    sentence = why_out_of_range(y[y != -100], int(shape[1]))
    return [] if sentence is None else [raised(TrainingError(sentence), batches[0])]


def with_all_labels(record: RunRecord, batches: Sequence[Any]) -> RunRecord:
    """The record with the labels of all items, where fewer were trained on."""
    facts: Any = record.loop.get("output_gradient")
    if not isinstance(facts, dict) or "label_min" not in facts:
        return record
    targets = [y[y >= 0] for y in _labels(batches)]  # others are ignored by the loss
    each = [facts_of_labels(y, torch.ones_like(y) > 0) for y in targets if len(y)]
    labels = joined([{name: float(v) for name, v in one.items()} for one in each])
    loop = {**record.loop, "output_gradient": {**facts, **labels}}
    return replace(record, meta={**record.meta, LOOP: loop})


def other_labels(data: object, batches: Sequence[Any], seconds: float) -> float:
    """How many items further on have other labels than the first batches, if those have only one.

    Returns:
        The share of a few items from all over the data set of a `DataLoader` that is not shuffled;
        0 of any other data.
    """
    targets = _labels(batches)
    if not targets or len(torch.cat(targets).unique()) > 1:
        return 0.0
    more = _labels([spread_batch(data, PLACES, seconds)])
    return float((more[0] != targets[0][0]).float().mean()) if more else 0.0


def _labels(batches: Sequence[Any]) -> list[Tensor]:
    """The targets of the batches if each is (N,) whole numbers, else none."""
    targets = [split(batch)[1] for batch in batches]
    plain = [y for y in targets if isinstance(y, Tensor) and y.ndim == 1 and len(y) > 1]
    whole = [y for y in plain if not (y.is_floating_point() or y.dtype == torch.bool)]
    return whole if len(whole) == len(targets) else []
