"""Rules on the loss of every step and the figures of every epoch."""

from __future__ import annotations

import math

import numpy as np

from convlens.core.records import Epoch, Finding, RunRecord
from convlens.doctor.activations import find_blocked_layer
from convlens.doctor.evidence import BETTER_THAN_CHANCE, MIN_STEPS, PATIENCE, Evidence

LOSS_FALL = 0.01
"""A loss whose end is within 1 % of its beginning, or above it, did not fall."""

VALID_RISE_WARNING, VALID_RISE_PROBLEM = 0.05, 0.2
"""Validation losses move by a few per cent from epoch to epoch by chance, hardly by a fifth."""

RISEN_EPOCHS = 3
"""Epochs in which the loss has stayed above its best by as much: early stopping has a patience of 3
too (Lightning's default), as a single validation may be a bad one by chance."""

SAME_ACCURACY = 0.01
"""Accuracies of a few hundred items differ by a point by chance."""

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


def find_nothing_learned(e: Evidence) -> Finding | None:
    """A loss that ends near that of guessing, or above it, and no cause in the record."""
    accuracy, n = e.accuracy, e.n_classes
    if not e.is_weak or e.diverged or not (e.is_poor or math.isfinite(e.learned)):
        return None
    knows = accuracy is not None and n > 0 and accuracy >= BETTER_THAN_CHANCE / n
    excused = knows or _still_falls(e) or _explains_some_variance(e)
    severity = "problem" if e.is_poor and not excused else "warning"
    level = float(np.median(e.loss[-max(len(e.loss) // 4, 1) :]))
    measured = f"Over the last quarter of the steps the median loss is {level:.3f}"
    if e.chance is not None:
        better = "no" if e.learned <= 0 else "hardly" if e.is_poor else "little"
        measured += f": {better} better than {e.chance.words}"
    if accuracy is not None:
        measured += f", and the accuracy is {accuracy:.2%}"
    blocked = find_blocked_layer(e.record)
    if blocked is None:
        return Finding(
            "nothing-learned",
            severity,
            f"{measured}. The network has learned {'next to nothing' if e.is_poor else 'little'} "
            "from its inputs. The record does not show why: the loop makes its steps, and gradients"
            " and updates are as usual.",
            first_step=int(e.steps.step[0]),
            fix="Run cl.check(model, batch, loss, optimizer): it tries whether the model mixes the "
            "items of a batch, is one affine map, or forgets early inputs, and whether it can "
            "memorize one batch. Then look at a batch with its labels.",
        )
    layer, step, how = blocked
    return Finding(
        "one-class",
        severity,
        f"{measured}. The network can hardly tell one input from another: in layer {layer!r} "
        f"{how}, so next to nothing of the input gets past it.",
        layer=layer,
        first_step=step,
        fix="Try a lower learning rate at the start (a one-cycle schedule warms up), or batch "
        "normalization.",
    )


FALLS, ERRORS = 0.02, 4.0
"""A loss that fell by 2 % from the third quarter to the last, and by four standard errors of the
difference, is still falling: a network on a plateau may leave it (an autoencoder learns the mean
first)."""


def _still_falls(e: Evidence) -> bool:
    n = len(e.loss) // 4
    before, last = e.loss[-2 * n : -n], e.loss[-n:]
    fall = float(before.mean() - last.mean())
    error = math.sqrt((before.var(ddof=1) + last.var(ddof=1)) / n)
    return fall > FALLS * abs(float(before.mean())) and fall > ERRORS * error


def _explains_some_variance(e: Evidence) -> bool:
    """Whether a regression is surely better than the mean: the rest of the targets may be noise."""
    if e.chance is None or e.chance.of != "mean squared error":
        return False
    last = e.loss[len(e.loss) // 2 :]
    error = math.sqrt(last.var(ddof=1) / len(last))
    return e.chance.level - float(last.mean()) > max(ERRORS * error, FALLS * e.chance.level)


def find_loss_not_falling(e: Evidence) -> Finding | None:
    """A training loss that ends no lower than it began.

    No problem by itself: the losses of a GAN or a policy need not fall, and a network that was
    trained before has nothing more to gain.
    """
    if not np.isfinite(e.loss).all() or len(e.loss) < PATIENCE:
        return None
    n, (first, last) = e.n_ends, e.ends
    if first - last > LOSS_FALL * abs(first):
        return None
    good = e.chance is not None and e.learned > 0.5
    return Finding(
        "loss-not-falling",
        "note" if good else "warning",
        f"The training loss did not fall: its mean was {first:.4g} over the first {n} steps and "
        f"{last:.4g} over the last {n}"
        + (f". It is far below {e.chance.words}." if good and e.chance else "."),
        first_step=int(e.steps.step[0]),
        fix="A network that was trained before may simply have nothing more to gain."
        if good
        else "If it is meant to fall (that of a GAN or a policy is not), try a lower learning rate "
        "if it rose and a higher one if it stayed where it was, and run cl.check(…).",
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
    if now < last.train_loss:  # as with label smoothing, which the validation loss is without
        return None
    accuracies = [x.metrics["accuracy"] for x in record.epochs if "accuracy" in x.metrics]
    # A network that is surer of its errors has a higher loss; as long as it makes no more of them,
    # that is no harm.
    harmless = len(accuracies) > 1 and accuracies[-1] >= max(accuracies) - SAME_ACCURACY
    lasting = min(loss for loss, _ in epochs[-RISEN_EPOCHS:]) / least - 1.0
    sure = lasting >= VALID_RISE_PROBLEM and not harmless
    return Finding(
        "overfitting",
        "problem" if sure else "warning",
        f"The validation loss was best after epoch {best.epoch + 1} ({least:.4g}) and is "
        f"{rise:.0%} higher {since} epochs later ({now:.4g}), while the training loss fell from "
        f"{best.train_loss:.4g} to {last.train_loss:.4g}: the network is memorizing its training "
        "data.",
        first_step=best.last_step,
        fix="Try fewer epochs, more or augmented data, or more weight decay.",
        confidence="likely" if sure else "possible",
    )


GAP_WARNING, GAP_PROBLEM = 0.2, 0.3
"""Training and validation accuracy differ by 20 points in good networks too where there are many
classes and few images of each (CIFAR-100); 30 points are the network's knowledge by heart."""


def find_memorized(e: Evidence) -> Finding | None:
    """A training loss near 0 beside a validation accuracy that is far lower.

    A mean cross entropy L means that the right class gets at least exp(−L) on average, in the
    geometric mean; the training accuracy is higher still.
    """
    accuracy = e.accuracy
    if accuracy is None or len(e.epochs) < 2 or e.n_classes < 2 or len(e.loss) < MIN_STEPS:
        return None
    if e.chance is None or e.chance.of == "soft cross entropy" or not e.has_one_label:
        return None
    train = math.exp(-e.ends[1] * math.log(e.n_classes) / e.chance.level)
    gap = train - accuracy
    if not gap > GAP_WARNING or train < 0.9 or accuracy < 0.5 / e.n_classes:
        return None
    return Finding(
        "overfitting",
        "problem" if gap > GAP_PROBLEM else "warning",
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


def _validated(record: RunRecord) -> list[tuple[float, Epoch]]:
    """The epochs with a finite validation loss, after that loss."""
    pairs = [(e.valid_loss, e) for e in record.epochs if e.valid_loss is not None]
    return [(loss, epoch) for loss, epoch in pairs if math.isfinite(loss)]
