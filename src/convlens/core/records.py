"""Frozen records of plain numbers and NumPy arrays that the packages exchange.

What is shown was measured: training writes these to a `RecordSink`; the report, the page and the
doctor read them back, from memory or from a run's record, and cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convlens.core.background import Background
from convlens.core.buckets import BucketLayout
from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.snapshots import Snapshot
from convlens.core.steps import StepSeries, take_steps
from convlens.core.wording import plural


@dataclass(frozen=True, repr=False)
class Epoch:
    """One finished epoch.

    Attributes:
        epoch: its number, from 0.
        first_step: its first optimizer step.
        last_step: its last optimizer step, ``first_step - 1`` if it has none.
        train_loss: mean of the batch losses, weighted by batch size; None if none was logged.
        valid_loss: mean loss over the validation items, None without validation.
        metrics: each metric of the validation by name.
        wall_s: seconds for training and validation of this epoch.
    """

    epoch: int
    first_step: int
    last_step: int
    train_loss: float | None
    valid_loss: float | None
    metrics: Mapping[str, float]
    wall_s: float

    def __repr__(self) -> str:
        shown = {"train_loss": self.train_loss, "valid_loss": self.valid_loss, **self.metrics}
        numbers = [f"{name}={_rounded(value)}" for name, value in shown.items()]
        steps = f"steps {self.first_step} to {self.last_step}"
        return f"Epoch({self.epoch}, {steps}, {', '.join(numbers)}, wall_s={_rounded(self.wall_s)})"


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        size = "×".join(map(str, self.images.shape[1:3]))
        count = plural(len(self.images), "image")
        return f"Picture({self.name!r}, epoch {self.epoch}, {count} of {size} pixels)"


SEVERITIES = ("problem", "warning", "note", "good")
"""Severities of a `Finding`, worst first."""

CONFIDENCES = ("certain", "likely", "possible")
"""Confidences of a `Finding`, surest first."""


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor found.

    Attributes:
        kind: a stable key such as ``"one-class"`` or ``"dead-relu"``.
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
        >>> Finding("dead-relu", "note", "3 of 8 channels are dead.", fix="Lower the lr.").text
        '3 of 8 channels are dead. Lower the lr.'
        """
        return f"{self.evidence} {self.fix}".strip()

    def __str__(self) -> str:
        return f"{self.severity} ({self.confidence}): {self.text}"


class Findings(list[Finding]):
    """A list of findings that prints as text, a line for each.

    >>> from convlens.core.records import Finding, Findings
    >>> Findings([Finding("dead-relu", "note", "3 of 8 channels are dead.")])
    note (likely): 3 of 8 channels are dead.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    __repr__ = __str__


def _rounded(value: object) -> str:
    """A number with four digits; anything else as it is, in an error message."""
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


HANDOVER_S = 1.0
"""Seconds after which a training hands over to its sink what it has recorded since."""


class RecordSink(Protocol):
    """Where training and watching write to: a run's record implements it.

    An error of the disk, a lock or the folder is never raised; a value that is not plain may be.
    """

    @property
    def background(self) -> Background:
        """The thread that writes: whoever prepares what is written adds tasks to it."""
        ...

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
            sample: the fraction of each batch's images that was watched for them.
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
            payload: the columns, as `convlens.core.columns.encode` writes them.
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
        """Make everything written so far visible to readers soon; does not wait for the disk."""
        ...


LOSS_AT_EVERY_STEP = "loss_at_every_step"
"""The name of the fact of a run that is False if some of its steps have no loss, which is NaN."""


LOOP = "loop"
"""The name of the fact of a run that holds what its loop did with the model: forwards and steps
counted, ranges of inputs and outputs, parameters without optimizer."""


@dataclass(frozen=True)
class RunRecord:
    """A whole run as plain numbers: what the doctor, the plots and the page are given.

    Attributes:
        meta: facts by name: versions, seed, command, data, model, classes, status ….
        steps: every recorded step.
        epochs: every finished epoch.
        layers: the watched layers' histories, in order of their index.
        of_parameters: by quantity (``"gradient"``, ``"parameter"``, ``"update"``) the histories of
            the watched parameters without bucket counts, in order of their index.
    """

    meta: Mapping[str, Any]
    steps: StepSeries
    epochs: Sequence[Epoch]
    layers: Sequence[LayerHistory]
    of_parameters: Mapping[str, Sequence[LayerHistory]] = field(
        default_factory=dict[str, Sequence[LayerHistory]]
    )

    @property
    def loop(self) -> Mapping[str, Any]:
        """What the loop did with the model, see `LOOP`; empty if that was not recorded."""
        found = self.meta.get(LOOP)
        return found if isinstance(found, dict) else {}

    @property
    def loss_steps(self) -> StepSeries:
        """The steps that a loss was recorded of; NaN is one unless some steps have none."""
        if self.meta.get(LOSS_AT_EVERY_STEP, True):
            return self.steps
        return take_steps(self.steps, np.flatnonzero(~np.isnan(self.steps.loss)))
