"""Checks on the curves: the loss of every step, the figures of every epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from convlens.core.columns import Flags
from convlens.core.histories import LayerHistory
from convlens.core.records import Epoch, Finding, RunRecord, StepSeries
from convlens.doctor.activations import after_relu, last_quarter

CHANCE_MARGIN = 0.03
"""A loss within 3 % of ln(classes) knows nothing of the images: one step of learning on real data
takes it further away, and class frequencies that differ move it by less."""

BETTER_THAN_CHANCE = 1.5
"""An accuracy of 1.5 / classes or more is knowledge, whatever the loss says."""

NEARLY_ALL_ZERO = 0.99
"""With 99 % of a layer's values near zero, next to nothing of the image gets through it."""

NEARLY_CONSTANT = 1e-3
"""A standard deviation of a thousandth of the mean: every value is the same for all that the next
layer can make of it."""

LOSS_FALL = 0.01
"""A loss whose end is within 1 % of its beginning, or above it, went nowhere."""

LOSS_RISE_PROBLEM = 1.1
"""A model that had been trained before may stay where it is; a rise by a tenth is another thing."""

VALID_RISE_NOTE, VALID_RISE_PROBLEM = 1.05, 1.2
"""Validation losses move by a few per cent from epoch to epoch by chance, hardly by a fifth."""

STILL_FALLING = 0.05
"""A fall of the validation loss by 5 % in the last epoch is more than chance moves it."""


def find_failure(record: RunRecord) -> list[Finding]:
    """An error that ended the training, in its own words.

    It matters to the other checks too: the step that failed may not have been recorded.
    """
    if record.meta.get("status") != "failed":
        return []
    words = str(record.meta.get("error") or "its text was not recorded").rstrip(".")
    n = len(record.steps)
    text = f"Training ended with an error after {n} recorded steps: {words}. Mend that first."
    return [Finding("failed", "problem", text)]


def find_nonfinite_loss(record: RunRecord) -> list[Finding]:
    """The first step whose loss is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(record.steps.loss))
    if not len(bad):
        return []
    first = int(bad[0])
    step = int(record.steps.step[first])
    lr = _lr_at(record.steps, first)
    return [
        Finding(
            "nonfinite-loss",
            "problem",
            f"The loss became {record.steps.loss[first]} at step {step} ({len(bad)} of "
            f"{len(record.steps)} recorded steps are not finite), and weights updated with it are "
            f"lost. Try a lower learning rate{f' (it was {lr:.3g} there)' if lr else ''}, a "
            "warm-up, or batch normalization; look for wrong values in the data if it happens at "
            "the very start.",
            first_step=step,
        )
    ]


def find_nothing_learned(record: RunRecord) -> list[Finding]:
    """A loss that ends where guessing without looking ends: at ln(classes)."""
    classes = _n_classes(record.meta)
    quarter = record.steps.loss[-(len(record.steps) // 4) :]
    level = float(np.median(quarter))
    if classes < 2 or not abs(level / math.log(classes) - 1.0) <= CHANCE_MARGIN:
        return []
    accuracy = record.epochs[-1].metrics.get("accuracy") if record.epochs else None
    if accuracy is not None and accuracy >= BETTER_THAN_CHANCE / classes:
        return []
    scored = f", and the accuracy is {accuracy:.2%}" if accuracy is not None else ""
    measured = (
        f"Over the last quarter of the steps the median loss is {level:.3f}: that is "
        f"ln({classes}) = {math.log(classes):.3f}, what guessing among {classes} classes without "
        f"looking costs{scored}."
    )
    blocked = next((h for h in record.layers if _blocks(h)), None)
    if blocked is None:
        return [Finding("nothing-learned", "problem", f"{measured} {_ADVICE_LEARN}")]
    text = (
        f"{measured} The network can hardly tell one image from another: in layer "
        f"{blocked.layer.name!r} {_how_blocked(blocked)}, so next to nothing of the "
        f"image gets past it. {_ADVICE_ALIVE}"
    )
    return [Finding("one-class", "problem", text, blocked.layer.name, _blocked_since(blocked))]


_ADVICE_LEARN = (
    "It has not begun to learn. Check that labels and images belong together and that the "
    "optimizer has the model's parameters; then try a learning rate ten times higher or lower."
)
_ADVICE_ALIVE = (
    "Try a lower learning rate at the start (a one-cycle schedule warms up), or batch "
    "normalization."
)


def find_loss_not_falling(record: RunRecord) -> list[Finding]:
    """A training loss that ends no lower than it began."""
    loss = record.steps.loss
    if not np.isfinite(loss).all():
        return []
    tenth = max(len(loss) // 10, 5)
    first, last = float(np.mean(loss[:tenth])), float(np.mean(loss[-tenth:]))
    if first - last > LOSS_FALL * abs(first):
        return []
    return [
        Finding(
            "loss-not-falling",
            "problem" if last - first > (LOSS_RISE_PROBLEM - 1.0) * abs(first) else "note",
            f"The training loss did not fall: its mean was {first:.4g} over the first {tenth} "
            f"steps and {last:.4g} over the last {tenth}. Try a lower learning rate if it rose, a "
            "higher one if it stayed where it was, and check that the optimizer has the model's "
            "parameters; a model that was trained before may simply have nothing more to gain.",
            first_step=int(record.steps.step[0]),
        )
    ]


def find_overfitting(record: RunRecord) -> list[Finding]:
    """A validation loss that rises from its best epoch on while the training loss falls."""
    epochs = [e for e in record.epochs if e.valid_loss is not None and math.isfinite(e.valid_loss)]
    if len(epochs) < 3:
        return []
    best = min(epochs, key=_valid_loss)
    last = epochs[-1]
    rise = _valid_loss(last) / _valid_loss(best) if _valid_loss(best) > 0 else 1.0
    since = last.epoch - best.epoch
    if since < 2 or rise < VALID_RISE_NOTE or last.train_loss >= best.train_loss:
        return []
    return [
        Finding(
            "overfitting",
            "problem" if rise >= VALID_RISE_PROBLEM else "note",
            f"The validation loss was best after epoch {best.epoch + 1} "
            f"({_valid_loss(best):.4g}) and is {rise - 1.0:.0%} higher {since} epochs later "
            f"({_valid_loss(last):.4g}), while the training loss fell from {best.train_loss:.4g} "
            f"to {last.train_loss:.4g}: the network is learning its training images by heart. "
            "Try fewer epochs, more or augmented images, or more weight decay.",
            first_step=best.last_step,
        )
    ]


def find_still_improving(record: RunRecord) -> list[Finding]:
    """A validation loss that fell clearly in the last epoch."""
    epochs = [e for e in record.epochs if e.valid_loss is not None and math.isfinite(e.valid_loss)]
    if len(epochs) < 2 or _valid_loss(epochs[-2]) <= 0:
        return []
    before, last = _valid_loss(epochs[-2]), _valid_loss(epochs[-1])
    fall = 1.0 - last / before
    if fall < STILL_FALLING or last > min(map(_valid_loss, epochs)):
        return []
    return [
        Finding(
            "still-improving",
            "note",
            f"The validation loss still fell by {fall:.0%} in the last epoch (from {before:.4g} "
            f"to {last:.4g}), its best so far. More epochs may give a better network; with a "
            "schedule that ends at zero, start a longer one rather than going on.",
            first_step=epochs[-1].first_step,
        )
    ]


def _blocks(history: LayerHistory) -> bool:
    """Whether next to nothing gets through the layer in the last quarter of the steps."""
    return len(history) > 0 and bool(_closed(history)[last_quarter(history)].all())


def _closed(history: LayerHistory) -> Flags:
    """(K,) whether nearly all values were near zero, or nearly all were the same."""
    scale = np.maximum(np.abs(history.mean), history.eps)
    constant = history.std <= NEARLY_CONSTANT * scale
    return (after_relu(history) > NEARLY_ALL_ZERO) | constant


def _how_blocked(history: LayerHistory) -> str:
    tail = last_quarter(history)
    share = float(np.mean(after_relu(history)[tail]))
    if share > NEARLY_ALL_ZERO:
        relu = " after its ReLU" if history.layer.feeds_relu else ""
        return f"{share:.1%} of the values are near zero{relu}"
    std, mean = float(np.mean(history.std[tail])), float(np.mean(history.mean[tail]))
    return f"the values are all the same (standard deviation {std:.2g} about a mean of {mean:.3g})"


def _blocked_since(history: LayerHistory) -> int:
    """The step from which on the layer never let anything through again."""
    open_columns = np.flatnonzero(~_closed(history))
    first = open_columns[-1] + 1 if len(open_columns) else 0
    return int(history.first_step[first])


def _n_classes(meta: Mapping[str, Any]) -> int:
    data = meta.get("data")
    classes = data.get("classes") if isinstance(data, Mapping) else None
    if isinstance(classes, int):
        return classes
    return len(classes) if isinstance(classes, list) else 0


def _lr_at(steps: StepSeries, position: int) -> float | None:
    lr = steps.hypers.get("lr")
    return float(lr[position].max()) if lr is not None and lr.size else None


def _valid_loss(epoch: Epoch) -> float:
    return math.nan if epoch.valid_loss is None else epoch.valid_loss
