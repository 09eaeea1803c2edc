"""Rules on the loss of every step and the figures of every epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from convlens.core.buckets import Floats
from convlens.core.records import Epoch, Finding, RunRecord
from convlens.doctor.activations import find_blocked_layer
from convlens.doctor.evidence import MIN_STEPS, Evidence

CHANCE_MARGIN = 0.03
"""A loss within 3 % of ln(classes) knows nothing of the images: one step of learning on real data
takes it further away, and class frequencies that differ move it by less."""

BETTER_THAN_CHANCE = 1.5
"""An accuracy of 1.5 / classes or more is knowledge, whatever the loss says."""

LOSS_FALL = 0.01
"""A loss whose end is within 1 % of its beginning, or above it, did not fall."""

LOSS_RISE_PROBLEM = 0.1
"""A model that had been trained before may stay where it is; a rise by a tenth is a problem."""

VALID_RISE_WARNING, VALID_RISE_PROBLEM = 0.05, 0.2
"""Validation losses move by a few per cent from epoch to epoch by chance, hardly by a fifth."""

STILL_FALLING = 0.05
"""A fall of the validation loss by 5 % in the last epoch is more than chance moves it."""


def find_failure(record: RunRecord) -> Finding | None:
    """An error that ended the training, in its own words.

    It matters to the other rules too: the step that failed may not have been recorded.
    """
    if record.meta.get("status") != "failed":
        return None
    words = str(record.meta.get("error") or "its text was not recorded").rstrip(".")
    n = len(record.steps)
    return Finding(
        "failed",
        "problem",
        f"Training ended with an error after {n} recorded steps: {words}.",
        first_step=int(record.steps.step[-1]) if n else None,
        fix="Fix this error first.",
        confidence="certain",
    )


def find_nonfinite_loss(record: RunRecord) -> Finding | None:
    """The first step whose loss is NaN or infinite."""
    steps = record.steps
    bad = np.flatnonzero(~np.isfinite(steps.loss))
    if not len(bad):
        return None
    first = int(bad[0])
    lr = steps.hypers.get("lr")
    known = lr is not None and lr.size and np.isfinite(lr[first]).all()
    there = f" (it was {lr[first].max():.3g} there)" if lr is not None and known else ""
    later = len(bad) - 1
    more = f" and at {later} later step{'s' if later > 1 else ''}" if later else ""
    loss = "NaN" if np.isnan(steps.loss[first]) else "infinite"
    return Finding(
        "nonfinite-loss",
        "problem",
        f"The loss is {loss} at step {steps.step[first]}{more}; the weights cannot be trusted from "
        "then on.",
        first_step=int(steps.step[first]),
        fix=f"Try a lower learning rate{there}, a warm-up, or batch normalization; look for wrong "
        "values in the data if it happens at the very start.",
        confidence="certain",
    )


def find_nothing_learned(record: RunRecord) -> Finding | None:
    """A loss that ends where guessing ends: at ln(classes)."""
    classes = _n_classes(record.meta)
    level = float(np.median(record.steps.loss[-(len(record.steps) // 4) :]))
    if classes < 2 or not abs(level / math.log(classes) - 1.0) <= CHANCE_MARGIN:
        return None
    accuracy = record.epochs[-1].metrics.get("accuracy") if record.epochs else None
    if accuracy is not None and accuracy >= BETTER_THAN_CHANCE / classes:
        return None
    scored = f", and the accuracy is {accuracy:.2%}" if accuracy is not None else ""
    measured = (
        f"Over the last quarter of the steps the median loss is {level:.3f}: that is "
        f"ln({classes}) = {math.log(classes):.3f}, the loss of guessing among {classes} "
        f"classes{scored}."
    )
    blocked = find_blocked_layer(record)
    if blocked is None:
        return Finding(
            "nothing-learned",
            "problem",
            f"{measured} The network has not begun to learn.",
            first_step=int(record.steps.step[0]),
            fix="Check that labels and images belong together and that the optimizer has the "
            "model's parameters; then try a learning rate ten times higher or lower.",
        )
    layer, step, how = blocked
    return Finding(
        "one-class",
        "problem",
        f"{measured} The network can hardly tell one image from another: in layer {layer!r} {how}, "
        "so next to nothing of the image gets past it.",
        layer=layer,
        first_step=step,
        fix="Try a lower learning rate at the start (a one-cycle schedule warms up), or batch "
        "normalization.",
    )


def find_loss_not_falling(record: RunRecord) -> Finding | None:
    """A training loss that ends no lower than it began."""
    loss = record.steps.loss
    if not np.isfinite(loss).all():
        return None
    n, first, last = ends(loss)
    if first - last > LOSS_FALL * abs(first):
        return None
    return Finding(
        "loss-not-falling",
        "problem" if last - first > LOSS_RISE_PROBLEM * abs(first) else "warning",
        f"The training loss did not fall: its mean was {first:.4g} over the first {n} steps and "
        f"{last:.4g} over the last {n}.",
        first_step=int(record.steps.step[0]),
        fix="Try a lower learning rate if it rose, a higher one if it stayed where it was, and "
        "check that the optimizer has the model's parameters; a model that was trained before may "
        "simply have nothing more to gain.",
        confidence="certain",
    )


def find_overfitting(record: RunRecord) -> Finding | None:
    """A validation loss that rises from its best epoch on while the training loss falls."""
    epochs = _validated(record)
    if len(epochs) < 3:
        return None
    least, best = min(epochs, key=lambda pair: pair[0])
    now, last = epochs[-1]
    rise = now / least - 1.0 if least > 0 else 0.0
    since = last.epoch - best.epoch
    if since < 2 or rise < VALID_RISE_WARNING:
        return None
    if last.train_loss is None or best.train_loss is None or last.train_loss >= best.train_loss:
        return None
    sure = rise >= VALID_RISE_PROBLEM
    return Finding(
        "overfitting",
        "problem" if sure else "warning",
        f"The validation loss was best after epoch {best.epoch + 1} ({least:.4g}) and is "
        f"{rise:.0%} higher {since} epochs later ({now:.4g}), while the training loss fell from "
        f"{best.train_loss:.4g} to {last.train_loss:.4g}: the network is memorizing its training "
        "images.",
        first_step=best.last_step,
        fix="Try fewer epochs, more or augmented images, or more weight decay.",
        confidence="likely" if sure else "possible",
    )


GAP = 0.2
"""An accuracy that is 20 points lower on images that were not trained on."""


def find_memorized(e: Evidence) -> Finding | None:
    """A training loss near 0 beside a validation accuracy that is far lower.

    A mean cross entropy L means that the right class gets at least exp(−L) on average, in the
    geometric mean; the training accuracy is higher still.
    """
    accuracy = e.accuracy
    if accuracy is None or len(e.epochs) < 2 or not e.takes_scores or len(e.loss) < MIN_STEPS:
        return None
    train = math.exp(-e.ends[1])
    if not train - accuracy > GAP or train < 0.9 or accuracy < 0.5 / max(e.n_classes, 1):
        return None
    return Finding(
        "overfitting",
        "problem",
        f"The training loss fell to {e.ends[1]:.2g}, which is the right answer for nearly every "
        f"training item, and the validation accuracy is {accuracy:.1%}: the network has memorized "
        "its training data.",
        first_step=int(e.steps.step[-1]),
        fix="Use more or augmented data, a smaller network, weight decay or dropout.",
    )


def find_still_improving(record: RunRecord) -> Finding | None:
    """A validation loss that fell clearly in the last epoch."""
    epochs = _validated(record)
    if len(epochs) < 2 or epochs[-2][0] <= 0:
        return None
    (before, _), (now, last) = epochs[-2:]
    fall = 1.0 - now / before
    if fall < STILL_FALLING or now > min(loss for loss, _ in epochs):
        return None
    return Finding(
        "still-improving",
        "note",
        f"The validation loss still fell by {fall:.0%} in the last epoch (from {before:.4g} to "
        f"{now:.4g}), its best so far.",
        first_step=last.first_step,
        fix="More epochs may give a better network; with a schedule that ends at zero, start a "
        "longer one rather than going on.",
        confidence="possible",
    )


def ends(loss: Floats) -> tuple[int, float, float]:
    """A tenth of the steps, at least 5, and the mean loss of so many at the start and the end."""
    n = max(len(loss) // 10, 5)
    return n, float(np.mean(loss[:n])), float(np.mean(loss[-n:]))


def _n_classes(meta: Mapping[str, Any]) -> int:
    data = meta.get("data")
    classes = data.get("classes") if isinstance(data, Mapping) else None
    if isinstance(classes, int):
        return classes
    return len(classes) if isinstance(classes, list) else 0


def _validated(record: RunRecord) -> list[tuple[float, Epoch]]:
    """The epochs with a finite validation loss, after that loss."""
    pairs = [(e.valid_loss, e) for e in record.epochs if e.valid_loss is not None]
    return [(loss, epoch) for loss, epoch in pairs if math.isfinite(loss)]
