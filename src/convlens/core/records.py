"""Frozen records of plain numbers and NumPy arrays that the rooms hand each other.

What is shown was measured: training writes these to a `RecordSink`; the report, the page and the
doctor read them back, from memory or from a run's record, and cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convlens.core.columns import (
    BucketLayout,
    Floats,
    Ints,
)
from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.snapshots import Snapshot


@dataclass(frozen=True)
class StepSeries:
    """What was recorded at each of S optimizer steps, for G parameter groups.

    Attributes:
        step: (S,) number of the step, from 0.
        epoch: (S,) number of the epoch, from 0.
        loss: (S,) training loss of the batch.
        wall_s: (S,) seconds since the fit began, at the end of the step.
        hypers: each hyperparameter by name (``"lr"``, ``"momentum"``, …), shape (S, G). For Adam
            ``"momentum"`` is β₁.
    """

    step: Ints
    epoch: Ints
    loss: Floats
    wall_s: Floats
    hypers: Mapping[str, Floats] = field(default_factory=dict[str, Floats])

    def __len__(self) -> int:
        return len(self.step)


def empty_steps() -> StepSeries:
    """No steps at all."""
    none, reals = np.zeros(0, np.int64), np.zeros(0)
    return StepSeries(none, none, reals, reals, {})


def join_steps(parts: Sequence[StepSeries]) -> StepSeries:
    """Series one after the other; a hyperparameter or group that a part lacks is NaN there."""
    if len(parts) < 2:
        return parts[0] if parts else empty_steps()
    lengths = [len(part) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part.hypers)
    return StepSeries(
        step=np.concatenate([part.step for part in parts]),
        epoch=np.concatenate([part.epoch for part in parts]),
        loss=np.concatenate([part.loss for part in parts]),
        wall_s=np.concatenate([part.wall_s for part in parts]),
        hypers={
            name: join_groups([part.hypers.get(name) for part in parts], lengths, np.nan)
            for name in names
        },
    )


def join_groups(
    parts: Sequence[NDArray[Any] | None], lengths: Sequence[int], missing: float
) -> NDArray[Any]:
    """Arrays of shape (length, G), one below the other, each filled up to the widest of them."""
    found = [part for part in parts if part is not None]
    width = max(part.shape[1] for part in found)
    joined = np.full((sum(lengths), width), missing, np.result_type(*found))
    start = 0
    for part, length in zip(parts, lengths, strict=True):
        if part is not None:
            joined[start : start + length, : part.shape[1]] = part
        start += length
    return joined


@dataclass(frozen=True)
class Band:
    """The finite values of a series in each of K entries. All arrays are (K,), or (K, G) by group.

    Attributes:
        low: the lowest, NaN where there is none.
        high: the highest.
        mean: their mean.
        finite: how many there are.
    """

    low: Floats
    high: Floats
    mean: Floats
    finite: Ints


@dataclass(frozen=True)
class StepCurves:
    """The series of a training summed up in K entries, for drawing any number of steps.

    Attributes:
        width: an entry covers the recorded steps that share ``step // width``, a power of two; with
            1 the entries are the steps themselves.
        first_step: (K,) the first step in it.
        last_step: (K,) the last one.
        n: (K,) how many steps were recorded of it.
        epoch: (K,) the epoch of its last step.
        wall_s: (K,) seconds since the fit began, at the end of its last step.
        loss: training loss of the batches; (K,) arrays.
        hypers: each hyperparameter by name; (K, G) arrays for G parameter groups.
    """

    width: int
    first_step: Ints
    last_step: Ints
    n: Ints
    epoch: Ints
    wall_s: Floats
    loss: Band
    hypers: Mapping[str, Band] = field(default_factory=dict[str, Band])

    def __len__(self) -> int:
        return len(self.first_step)

    @property
    def middle_step(self) -> Floats:
        """(K,) middle of each entry's steps: where a line is drawn through it."""
        return (self.first_step + self.last_step) / 2


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Attributes:
        epoch: its number, from 0.
        first_step: its first optimizer step.
        last_step: its last optimizer step.
        train_loss: mean of the batch losses, weighted by batch size.
        valid_loss: mean loss over the validation items, None without validation.
        metrics: each metric of the validation by name.
        wall_s: seconds for training and validation of this epoch.
    """

    epoch: int
    first_step: int
    last_step: int
    train_loss: float
    valid_loss: float | None
    metrics: Mapping[str, float]
    wall_s: float


@dataclass(frozen=True)
class Picture:
    """Images that a run keeps, with a word for each.

    Attributes:
        name: what they show: ``"batch"`` or ``"worst"``.
        epoch: the epoch after which they were taken, -1 for before training.
        images: (N, H, W) or (N, H, W, 3), uint8.
        captions: N texts, such as ``"7"`` or ``"4, predicted 9 (99.1 %), loss 4.71"``.
    """

    name: str
    epoch: int
    images: NDArray[np.uint8]
    captions: Sequence[str]


SEVERITIES = ("problem", "warning", "note", "good")
"""What a `Finding` can be, worst first."""

CONFIDENCES = ("certain", "likely", "possible")
"""How sure a `Finding` can be, surest first."""


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor found.

    Attributes:
        kind: a stable key such as ``"one-class"`` or ``"dead-channels"``.
        severity: one of `SEVERITIES`.
        evidence: one or two sentences: what was measured, and what it means.
        layer: the layer it is about, None for the whole run.
        first_step: the step at which it begins, None if that does not apply.
        fix: what to do about it, empty if nothing.
        confidence: one of `CONFIDENCES`: ``"certain"`` for a measured fact, ``"likely"`` and
            ``"possible"`` for its interpretation.
    """

    kind: str
    severity: str
    evidence: str
    layer: str | None = None
    first_step: int | None = None
    fix: str = ""
    confidence: str = "likely"

    @property
    def text(self) -> str:
        """Evidence and fix, for a reader.

        >>> from convlens.core.records import Finding
        >>> Finding("dead-channels", "note", "3 of 8 channels are dead.", fix="Lower the lr.").text
        '3 of 8 channels are dead. Lower the lr.'
        """
        return f"{self.evidence} {self.fix}".strip()


class RecordSink(Protocol):
    """Where training and watching write to: a run's record implements it.

    No disk, lock or folder makes any of this raise; what is no plain value may.
    """

    def write_meta(self, values: Mapping[str, Any]) -> None:
        """Add or replace facts of the run by name; values are plain JSON."""
        ...

    def write_layers(
        self, layers: Sequence[LayerInfo], layout: BucketLayout, eps: float, sample: float = 1.0
    ) -> None:
        """Say which series are watched, before their first columns; the same again replaces.

        Args:
            layers: series of one or several quantities.
            layout: the buckets that all of the run's columns have.
            eps: bound of near zero for these quantities.
            sample: the fraction of each batch's images that was looked at for them.
        """
        ...

    def write_columns(
        self, quantity: str, layer: int, level: int, chunk: int, payload: bytes
    ) -> None:
        """Write one chunk of columns: those whose steps share ``step >> (level + CHUNK_BITS)``.

        It replaces what was written of the same span of steps of this series: an earlier state of
        the same chunk, and the finer chunks that it was merged from.

        Args:
            quantity: the ``quantity`` of its `LayerInfo`.
            layer: the index of its `LayerInfo`.
            level: a column's steps share ``step >> level``.
            chunk: the ``step >> (level + CHUNK_BITS)`` of its steps.
            payload: the columns, as `convlens.core.columns.encode` writes them: encoded once, by
                whoever keeps them too.
        """
        ...

    def write_steps(self, steps: StepSeries) -> None:
        """Append finished steps."""
        ...

    def write_epoch(self, epoch: Epoch) -> None:
        """Append a finished epoch."""
        ...

    def write_picture(self, picture: Picture) -> None:
        """Add images; the same name and epoch replaces."""
        ...

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Add a snapshot; the same kind, layer and epoch replaces.

        Layers are read back in the order in which they were first written: write the model's.
        """
        ...

    def flush(self) -> None:
        """Make everything written so far visible to readers soon, in one transaction.

        It does not wait for the disk.
        """
        ...


@dataclass(frozen=True)
class RunRecord:
    """A whole run as plain numbers: what the doctor, the plots and the views are given.

    Attributes:
        meta: facts by name: versions, seed, command, data, model, classes, status ….
        steps: every recorded step.
        epochs: every finished epoch.
        layers: the watched layers' histories, in order of their index.
    """

    meta: Mapping[str, Any]
    steps: StepSeries
    epochs: Sequence[Epoch]
    layers: Sequence[LayerHistory]
