"""`Evidence`: a record with what several rules work out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from convlens.core.buckets import Floats, Ints
from convlens.core.histories import LayerHistory
from convlens.core.records import Epoch, RunRecord
from convlens.core.steps import StepSeries
from convlens.doctor.chance import Chance, chance_by_name, chance_of

MIN_STEPS = 20
"""In fewer steps only values that are not finite can be told from noise."""


PATIENCE = 50
"""A network has had its chance after so many steps: at the usual thousandth of their size for each
step its weights have moved by 5 %. Earlier, and in a warm-up, nothing learned is no fault."""

LEARNED = 0.1
"""A loss that has gone less than a tenth of the way from guessing to the least possible knows
next to nothing. Networks that were trained before, or have converged, are far beyond it from the
first step on."""

WEAK = 0.2
"""The same for what has evidence of its own: a fifth of the way. Of a loss whose chance level is
not known, such as a GAN's, the fall by a fifth of itself is asked instead; that alone is never a
problem, as such a loss need not fall."""

BETTER_THAN_CHANCE = 1.5
"""An accuracy of 1.5 / classes or more is knowledge, whatever the loss says."""


class Evidence:
    """What a run's record says, in the terms of the rules.

    Args:
        record: the run.

    Attributes:
        record: the run.
        loop: what the loop did with the model, see `convlens.core.records.LOOP`.
        steps: the steps with a loss.
        epochs: the finished epochs.
        trial: what `convlens.check` has tried, None for the record of a training.
        min_steps: fewer steps say nothing.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.loop: Mapping[str, Any] = record.loop
        self.steps: StepSeries = record.loss_steps
        self.epochs: Sequence[Epoch] = record.epochs
        trial = record.meta.get("trial")
        self.trial: Mapping[str, Any] | None = trial if isinstance(trial, dict) else None
        self.min_steps = MIN_STEPS if self.trial is None else 3

    # ---- what the loop did ----------------------------------------------------------------------

    def count(self, name: str) -> int:
        """A count of the loop's facts, 0 if it is not known."""
        value = self.loop.get(name)
        return value if isinstance(value, int) else 0

    def names(self, name: str) -> list[str]:
        """A list of names of the loop's facts."""
        value = self.loop.get(name)
        return [str(item) for item in value] if isinstance(value, list) else []

    def facts(self, name: str) -> Mapping[str, Any]:
        """What is known of ``input``, ``output``, ``output_gradient``, ``target`` …."""
        value = self.loop.get(name)
        return value if isinstance(value, dict) else {}

    def number(self, of: str, name: str, default: float = math.nan) -> float:
        """A number of `facts`."""
        value = self.facts(of).get(name, default)
        return float(value) if isinstance(value, int | float) else default

    def first(self, of: str, name: str, default: float = math.nan) -> float:
        """The same of the first batch that was looked at."""
        value = self.facts(of).get("first")
        value = value.get(name, default) if isinstance(value, dict) else default
        return float(value) if isinstance(value, int | float) else default

    @property
    def optimizers(self) -> list[Mapping[str, Any]]:
        """The optimizers that made steps: ``class``, ``steps`` and what was seen of each."""
        value = self.loop.get("optimizers")
        return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []

    @property
    def modules(self) -> list[Mapping[str, Any]]:
        """The modules without children: ``name``, ``kind`` and numbers of theirs."""
        value = self.loop.get("modules")
        return [m for m in value if isinstance(m, dict)] if isinstance(value, list) else []

    # ---- losses ---------------------------------------------------------------------------------

    @cached_property
    def loss(self) -> Floats:
        """(S,) the losses that were logged."""
        return self.steps.loss

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The mean loss of the first and of the last `n_ends` steps."""
        n = self.n_ends
        return float(np.mean(self.loss[:n])), float(np.mean(self.loss[-n:]))

    @property
    def n_ends(self) -> int:
        """A tenth of the steps, at least 5."""
        return max(len(self.loss) // 10, 5)

    @cached_property
    def fall(self) -> float:
        """By which share of itself the training loss fell; negative if it rose, NaN if unknown."""
        if self.trial is not None:
            return _fall(self.trial.get("losses_given") or self.trial.get("losses_adam"))
        if len(self.loss) < MIN_STEPS or not np.isfinite(self.loss).all():
            return math.nan
        first, last = self.ends
        return (first - last) / abs(first) if first else math.nan

    @property
    def was_validated(self) -> bool:
        """Whether an epoch has figures of a validation."""
        return any(epoch.valid_loss is not None or epoch.metrics for epoch in self.epochs)

    @property
    def accuracy(self) -> float | None:
        """The validation accuracy of the last epoch that has one."""
        return self.accuracies[-1] if self.accuracies else None

    @cached_property
    def accuracies(self) -> list[float]:
        """The validation accuracies of the epochs that have one."""
        found = [_accuracy(epoch.metrics) for epoch in self.epochs]
        return [value for value in found if value is not None]

    @property
    def knows_half(self) -> bool:
        """Whether the validation accuracy is half way from guessing to 1 or more.

        A network that is shown one class for long forgets the others, and is right for one only.
        """
        accuracy, n = self.accuracy, self.n_classes
        return accuracy is not None and n > 1 and accuracy >= (1 + 1 / n) / 2

    @property
    def takes_scores(self) -> bool:
        """Whether the loss is the cross entropy of the model's outputs, taken as scores."""
        return self.number("output_gradient", "cross_entropy", 0) > 0.5 or (
            self.chance is not None
            and self.chance.of.endswith("cross entropy")
            and self.chance.of != "binary cross entropy"
            and self.number("output_gradient", "soft_labels", 0) > 0.5
        )

    @cached_property
    def chance(self) -> Chance | None:
        """What the loss of guessing is; None if the kind of loss is not known."""
        first = float(self.steps.loss[0]) if len(self.steps) else math.nan
        found = chance_of(self.facts("output_gradient"), first)
        return (
            found
            or chance_by_name(self.record.meta, self._classes_of_data)
            or (self._chance_by_classes())
        )

    def _chance_by_classes(self) -> Chance | None:
        """Of a loader with classes, whose loss was not seen: most likely a cross entropy."""
        n = self._classes_of_data
        if self.facts("output_gradient") or n < 2:
            return None
        if (self.loss < 0).any():
            return None
        level = math.log(n)
        return Chance("cross entropy", level, 0.0, f"ln({n}) = {level:.3f}, that of guessing", n)

    @cached_property
    def n_classes(self) -> int:
        """Scores of an item that the cross entropy judges, else classes of the data; or 0.

        Of another loss, those among which the targets are positions.
        """
        if self.chance is not None and self.chance.classes:
            return self.chance.classes
        if self.takes_scores:
            return int(self.number("output_gradient", "classes", 0))
        return self._classes_of_data

    @property
    def _classes_of_data(self) -> int:
        """How many classes the loader has, 0 if it is not known."""
        data = self.record.meta.get("data")
        classes = data.get("classes") if isinstance(data, dict) else None
        if isinstance(classes, int):
            return classes
        return len(classes) if isinstance(classes, list) else self._classes_of_targets()

    def _classes_of_targets(self) -> int:
        """Scores (N, C, …) of an item, where the targets are whole numbers (N, …) below C; or 0."""
        scores, places = (self.facts(name).get("shape") for name in ("output", "target"))
        if not isinstance(scores, list) or len(scores) < 2:
            return 0
        n, whole = int(scores[1]), "int" in str(self.facts("target").get("dtype"))
        if not whole or places != [scores[0], *scores[2:]]:
            return 0
        low, high = self.number("target", "min"), self.number("target", "max")
        return n if low >= 0 and 1 <= high < n else 0

    @property
    def has_one_label(self) -> bool:
        """Whether each item has one class, so that an accuracy compares with 1 / classes."""
        shape = self.facts("output").get("shape")
        if self.chance is None or not self.chance.classes:
            return False
        binary = self.chance.of == "binary cross entropy"
        return not binary or (isinstance(shape, list) and (len(shape) < 2 or shape[1:] == [1]))

    @cached_property
    def learned(self) -> float:
        """How far the loss has gone from guessing (0) to the least possible (1); NaN if unknown."""
        if self.chance is None or len(self.loss) < self.min_steps:
            return math.nan
        return self.chance.learned(self.ends[1])

    @cached_property
    def diverged(self) -> bool:
        """Whether most of the last losses are NaN or infinite."""
        tail = self.loss[-max(len(self.loss) // 10, 5) :]
        return len(tail) > 0 and bool(np.mean(~np.isfinite(tail)) > 0.5)

    @cached_property
    def is_poor(self) -> bool:
        """Whether the run has clearly not learned.

        Its loss is that of guessing, or not finite; of a loss of an unknown kind, the validation
        accuracy is that of guessing. A GAN, a policy, a network that has converged or is fine-tuned
        is none: a loss that does not fall is no evidence by itself.
        """
        if self.trial is not None:
            return self._is_poor_trial
        if self.diverged:
            return True
        if len(self.loss) < PATIENCE:
            return False
        if math.isfinite(self.learned):
            return self.learned < LEARNED
        accuracy, n = self.accuracy, self.n_classes
        return accuracy is not None and n > 1 and accuracy < 1.2 / n and not self.fall >= WEAK

    @cached_property
    def is_weak(self) -> bool:
        """Whether it has learned little, or a loss of an unknown kind has not fallen."""
        if self.is_poor or self.trial is not None:
            return self.is_poor
        if len(self.loss) < PATIENCE:
            return False
        return self.learned < WEAK if math.isfinite(self.learned) else not self.fall >= WEAK

    def severity(self, otherwise: str) -> str:
        """Of what is a fault only where the run has not learned: problem, warning, or otherwise."""
        if self.is_poor:
            return "problem"
        return "warning" if self.is_weak and otherwise != "problem" else otherwise

    @property
    def strict(self) -> str:
        """The severity of what no healthy run has, where the run is at least weak."""
        return "problem" if self.is_weak else "note"

    @property
    def _is_poor_trial(self) -> bool:
        """Whether a single batch could not be memorized, which any network can."""
        losses = (self.trial or {}).get("losses_given") or (self.trial or {}).get("losses_adam")
        if not isinstance(losses, list) or len(losses) < self.min_steps or not losses[0]:
            return False
        if self.chance is not None and self.chance.learned(float(losses[0])) > 1 - WEAK:
            return False  # it was trained before, and has nothing more to gain
        return not self.fall >= WEAK

    @property
    def adam_learns(self) -> bool:
        """Whether Adam memorized a batch at its usual rate."""
        losses = (self.trial or {}).get("losses_adam")
        return isinstance(losses, list) and _fall(losses) >= WEAK

    # ---- parameters -----------------------------------------------------------------------------

    def of_parameters(self, quantity: str) -> Sequence[LayerHistory]:
        """The histories of gradients, parameters or updates."""
        return self.record.of_parameters.get(quantity, ())

    @cached_property
    def update_ratios(self) -> Mapping[str, tuple[Ints, Floats]]:
        """By parameter: steps, and ‖Δw‖ / ‖w‖ at them."""
        before = {h.layer.name: h for h in self.of_parameters("parameter")}
        found = dict[str, tuple[Ints, Floats]]()
        for update in self.of_parameters("update"):
            weights = before.get(update.layer.name)
            if weights is None or len(weights) != len(update) or not len(update):
                continue
            norm = weights.norm
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(norm > 0, update.norm / norm, np.nan)
            found[update.layer.name] = update.first_step, ratio
        return found

    @cached_property
    def gradient_norms(self) -> Mapping[str, Floats]:
        """By parameter: the norm of its gradient in each column."""
        return {h.layer.name: h.norm for h in self.of_parameters("gradient") if len(h)}

    def hyper(self, name: str) -> Floats:
        """(S,) the largest value over the parameter groups, NaN where it is not known."""
        values = self.steps.hypers.get(name)
        if values is None or not values.size:
            return np.full(len(self.steps), np.nan)
        return np.fmax.reduce(values, axis=1)


def _accuracy(metrics: Mapping[str, float]) -> float | None:
    names = ("accuracy", "acc", "valid_accuracy", "val_accuracy", "val_acc")
    return next((value for name, value in metrics.items() if name.lower() in names), None)


def _fall(losses: object) -> float:
    """By which share of itself the loss of one batch fell; NaN if it is not finite."""
    values = np.array(losses if isinstance(losses, list) else [], np.float64)
    if len(values) < 3 or not np.isfinite(values).all() or not values[0]:
        return math.nan
    return float((values[0] - np.median(values[-3:])) / abs(values[0]))
