"""Rules on inputs, outputs, targets and the loss, as the loop showed them."""

from __future__ import annotations

import math

import numpy as np

from convlens.core.records import Finding
from convlens.doctor.evidence import BETTER_THAN_CHANCE, PATIENCE, Evidence

SURE = 0.999
"""A share that is 1 but for rounding."""


def find_nan_in_data(e: Evidence) -> Finding | None:
    """Inputs that are not finite; a network may be made for missing values, and learn."""
    n = e.number("input", "nonfinite", 0)
    if not n:
        return None
    spoilt = not len(e.loss) or not np.isfinite(e.loss).all()
    spoilt = spoilt or any((h.nonfinite > 0).any() for h in e.record.layers)
    return Finding(
        "nan-in-data",
        "problem" if spoilt else "note",
        f"The inputs hold {n:,.0f} values that are NaN or infinite in the "
        f"{e.number('input', 'n'):.0f} batches that were looked at.",
        fix="Drop or fill these values before training, e.g. with torch.nan_to_num or the mean of "
        "the feature.",
        confidence="certain",
    )


LARGE_INPUT = 20.0
"""Layers are initialized for inputs of deviation 1; twenty times that makes the first outputs and
gradients twenty times as large."""

SMALL_INPUT = 1 / 64
"""Inputs this small make the first layer's gradients as small, beside its bias."""


def find_input_scale(e: Evidence) -> Finding | None:
    """Floating-point inputs far from mean 0 and deviation 1, in a run that does not learn."""
    if not str(e.facts("input").get("dtype", "")).startswith(("float", "bfloat")):
        return None
    mean, std = e.number("input", "mean"), e.number("input", "std")
    low, high = e.number("input", "min"), e.number("input", "max")
    size = max(abs(mean), std)
    measured = (
        f"The inputs reach from {low:.4g} to {high:.4g} (mean {mean:.4g}, deviation {std:.4g})"
    )
    severity = e.severity("note")
    if size > LARGE_INPUT:
        return Finding(
            "input-not-normalized",
            severity,
            f"{measured}; layers are initialized for a mean of 0 and a deviation of 1.",
            fix="Subtract the mean and divide by the deviation of the training data (images: "
            "divide by 255 first).",
        )
    if 0 < size < SMALL_INPUT:
        twice = high <= 1.01 / 255 and low >= 0
        return Finding(
            "input-double-scaled" if twice else "input-not-normalized",
            severity,
            f"{measured}"
            + ("; divided by 255 once they would reach to 1." if twice else ", which is tiny."),
            fix="Divide by 255 only once (ToTensor already does); then normalize to mean 0 and "
            "deviation 1.",
        )
    return None


FAR_TARGETS = 4.0
"""Times the variance of the targets: by a mean two deviations away the first loss is five times
that of always giving the mean."""

WIDE_TARGETS = 100.0
"""A deviation that the weights of a network, made for outputs of about 1, take long to reach."""


def find_targets_far(e: Evidence) -> Finding | None:
    """Numbers to predict whose mean or deviation the network has not come near."""
    chance = e.chance
    if chance is None or chance.of != "mean squared error" or not e.is_weak or not len(e.loss):
        return None
    first, variance = float(e.loss[0]), chance.level
    size = e.first("output", "mean") ** 2 + e.first("output", "std") ** 2
    # A network that has come to the mean has another fault; a variance of rounding errors is none.
    far = first > FAR_TARGETS * variance and e.ends[1] > 2 * variance and size < first / 10
    wide = variance > WIDE_TARGETS**2 and size < variance / 100
    if not (far or wide) or variance < 1e-12 * first:
        return None
    return Finding(
        "targets-far-from-outputs",
        e.severity("warning"),
        f"The first outputs are of size {math.sqrt(size):.3g}; the targets lie about "
        f"{math.sqrt(max(first - variance, 0.0)):.3g} from them, and differ by "
        f"{math.sqrt(variance):.3g} within a batch (standard deviation).",
        first_step=int(e.steps.step[0]),
        fix="Subtract the mean of the targets and divide by their standard deviation; or, for one "
        "number of each item and Adam, put a layer after the network that does the reverse: "
        "convlens.models.output_scaled(network, targets).",
    )


MIXED = 1.25
"""In images neighbours are more alike than values some columns apart; where they are clearly less
alike, neighbours are of different channels."""


def find_channels_mixed(e: Evidence) -> Finding | None:
    """Images (N, C, H, W) that were reshaped from (N, H, W, C)."""
    near, apart = (e.number("input", n) for n in ("neighbours_apart", "channels_apart"))
    if not near > MIXED * apart:
        return None
    channels = e.facts("input").get("shape", [0, 0])[1]
    return Finding(
        "channels-mixed-by-reshape",
        "problem",
        f"In the input images neighbouring columns differ more ({near:.3g} on average) than "
        f"columns {channels} apart ({apart:.3g}): the channels lie interleaved along the width, as "
        "after view or reshape of (N, H, W, C).",
        fix="Use x.permute(0, 3, 1, 2) to get (N, C, H, W) from (N, H, W, C), not view or reshape.",
    )


def find_shape_broadcast(e: Evidence) -> Finding | None:
    """A loss whose gradient depends on the outputs alone: its targets were averaged away."""
    shape = e.facts("output").get("shape")
    alone = e.number("output_gradient", "gradient_from_output_alone", 0)
    if not isinstance(shape, list) or len(shape) < 2 or alone < SURE or not len(e.loss):
        return None
    # To one same target for all, as in a least squares GAN, the loss is what its gradient says.
    slope, told = (e.first("output_gradient", n) for n in ("gradient_slope", "squared_value"))
    if not 1.99 < slope < 2.01 or not e.loss[0] > 1.01 * told:
        return None
    if e.count("training_forwards") > 1.5 * max(e.count("optimizer_steps"), e.min_steps):
        return None  # the loss may be the sum of several
    return Finding(
        "shape-broadcast-in-loss",
        "problem",
        f"The gradient of each output depends on the outputs alone, not on its own target: outputs "
        f"{_shape(shape)} and targets ({shape[0]},) were broadcast to ({shape[0]}, {shape[0]}) in "
        "the loss.",
        fix="Give both the same shape: output.squeeze(1), or target.unsqueeze(1).",
    )


def find_output_activation(e: Evidence) -> Finding | None:
    """An activation after the last layer that the loss applies itself, or that cuts its scores."""
    entropy = e.takes_scores
    binary = e.number("output_gradient", "binary_cross_entropy", 0) >= SURE
    if e.number("output", "probabilities_over_classes", 0) >= SURE and entropy:
        return Finding(
            "softmax-before-cross-entropy",
            "problem",
            "The outputs are probabilities (each item's sum to 1), and the loss takes them as "
            "scores: the softmax is applied twice, and the gradients are small.",
            fix="Remove the softmax at the end of the model: nn.CrossEntropyLoss applies it.",
            confidence="certain",
        )
    low, high = e.number("output", "min"), e.number("output", "max")
    if binary and low >= 0 and high <= 1 and not entropy and _ends_in_sigmoid(e):
        return Finding(
            "sigmoid-before-bce-with-logits",
            "problem",
            f"The outputs lie between {low:.3g} and {high:.3g}, as after a sigmoid, and the loss "
            "applies a sigmoid to them again.",
            fix="Remove the sigmoid at the end of the model, or use nn.BCELoss.",
            confidence="certain",
        )
    zeros = e.number("output", "zeros", 0)
    if (entropy or binary) and low == 0 and high > 0 and zeros > 0.1:
        return Finding(
            "activation-on-logits",
            "problem",
            f"{zeros:.0%} of the scores that the loss gets are exactly 0 and none is negative: a "
            "ReLU cuts them, and gives no gradient there.",
            fix="Remove the activation after the last layer.",
            confidence="certain",
        )
    return None


def _ends_in_sigmoid(e: Evidence) -> bool:
    """Scores may lie between 0 and 1 in the first steps; not for long, and not about 0.5."""
    if any(str(m.get("kind")) in ("Sigmoid", "Hardsigmoid") for m in e.modules[-3:]):
        return True
    mean, low = e.first("output", "mean"), e.first("output", "min")
    return 0.2 < mean < 0.8 and low > 0.02 and e.number("output", "n", 0) > LATER


LATER = 8
"""The first batches that are looked at follow each other, then come ones that are 64 steps apart;
in a trial they come after the network has memorized a batch."""


def find_softmax_axis(e: Evidence) -> Finding | None:
    """A softmax over the batch instead of the classes."""

    def over(axis: str) -> float:
        names = (f"probabilities_over_{axis}", f"log_probabilities_over_{axis}")
        return max(e.number("output", name, 0) for name in names)

    if over("batch") < SURE or over("classes") >= SURE:
        return None
    return Finding(
        "wrong-axis-softmax",
        "problem",
        "The outputs' probabilities sum to 1 over the batch (axis 0), not over the classes.",
        fix="Use softmax(dim=1), log_softmax(dim=1) or dim=-1; nn.CrossEntropyLoss needs neither.",
        confidence="certain",
    )


def find_constant_output(e: Evidence) -> Finding | None:
    """Outputs that are always the same number."""
    low, high = e.number("output", "min"), e.number("output", "max")
    if not (low == high and math.isfinite(low)) or e.number("output", "n", 0) < 3:
        return None
    if e.count("optimizer_steps") < min(e.min_steps, 10):
        return None  # last layers often begin with zeros
    shape = e.facts("output").get("shape", [])
    one = isinstance(shape, list) and len(shape) > 1 and shape[1] == 1 and low == 1
    return Finding(
        "too-few-outputs" if one else "output-constant",
        "problem",
        f"Every output is {low:g}." + (" A softmax over one output is always 1." if one else ""),
        fix="Use as many outputs as classes, or one output without softmax and "
        "nn.BCEWithLogitsLoss."
        if one
        else "Look at the last layers: no input reaches the output.",
        confidence="certain",
    )


def find_several_labels(e: Evidence) -> Finding | None:
    """The cross entropy of one class, for items with none or several labels."""
    share = e.number("output_gradient", "several_labels", 0)
    if share < 0.3 or e.number("output_gradient", "n", 0) < 3:
        return None
    return Finding(
        "wrong-loss-for-task",
        "problem",
        f"{share:.0%} of the items have no label or more than one, and the loss is the cross "
        "entropy, which wants one class for each item.",
        fix="Use nn.BCEWithLogitsLoss for several labels.",
    )


SHIFTED = 0.5
"""Guessing is right 1 / classes of the time; half of that takes labels that mean something else."""


def find_labels_shifted(e: Evidence) -> Finding | None:
    """A network that fits its training data and is wrong on purpose on the others."""
    accuracy = e.accuracy
    if e.n_classes < 3 or accuracy is None or len(e.loss) < e.min_steps:
        return None
    fitted = e.learned if math.isfinite(e.learned) else e.fall
    if not fitted > 0.5 or not 0 <= accuracy < SHIFTED / e.n_classes:
        return None
    if max(e.accuracies) > BETTER_THAN_CHANCE / e.n_classes:
        return None  # the labels meant the same there in an earlier epoch
    return Finding(
        "labels-shifted",
        "problem",
        f"The training loss fell to {e.ends[1]:.3g}, and the validation accuracy is "
        f"{accuracy:.1%}, far below guessing (1 of {e.n_classes}): labels mean something else "
        "there.",
        fix="Count classes from 0 in both sets, and use one list of classes for both.",
    )


def find_first_class_unused(e: Evidence) -> Finding | None:
    """Labels from 1 on for outputs that count from 0."""
    shape, n = e.facts("output").get("shape"), e.number("target", "n", 0)
    low, high = e.number("target", "min"), e.number("target", "max")
    if not e.takes_scores or not isinstance(shape, list) or len(shape) != 2 or shape[1] < 3:
        return None
    if (low, high) != (1, shape[1] - 1) or n * shape[0] < 20 * shape[1]:
        return None
    return Finding(
        "labels-shifted",
        e.severity("warning"),
        f"The labels run from 1 to {high:.0f}, and the {shape[1]} outputs count from 0: class 0 "
        f"never occurs in {n * shape[0]:.0f} items.",
        fix="Subtract 1 from the labels, and use as many outputs as classes.",
    )


SORTED = 0.2
"""Von Neumann's ratio: the mean square of the steps from a label to the next, by twice the variance
of all labels. It is 1 in random order, whatever the frequencies of the classes, with a deviation of
about 1 / √items; 0.2 is order."""

ENOUGH_ITEMS = 200
"""With 200 items von Neumann's ratio is 1 ± 0.07 in random order."""


ELSEWHERE = 0.25
"""Of a rare class, fewer items than these are met in all parts of a data set."""


def find_labels(e: Evidence) -> Finding | None:
    """Labels that are all the same, or sorted: read off the gradient of the cross entropy."""
    fits = max(e.number("output_gradient", name, 0) for name in ("cross_entropy", "likelihood"))
    shape, n = e.facts("output").get("shape", []), e.number("output_gradient", "n", 0)
    if fits < 0.5 or not isinstance(shape, list) or len(shape) != 2:
        return None
    low, high = (e.number("output_gradient", f"label_{name}") for name in ("min", "max"))
    others = (e.trial or {}).get("other_labels", 0)
    if low == high and others >= ELSEWHERE:
        return _not_shuffled(
            e,
            f"Every label in the first batches is {low:.0f}, and {others:.0%} of some items from "
            "all over the data set have another one",
        )
    if n < 5:
        return None
    if low != high:
        return _sorted_labels(e) if n * shape[0] >= ENOUGH_ITEMS else None
    severity = _of_constant_labels(e, n * shape[0])
    if severity is None:
        return None
    return Finding(
        "constant-labels",
        severity,
        f"Every label in the {n:.0f} batches that were looked at is {low:.0f}.",
        fix="Look at how the labels are read: a wrong column or folder gives one class only.",
    )


def _sorted_labels(e: Evidence) -> Finding | None:
    mean, square, step, constant = (
        e.number("output_gradient", f"label_{name}")
        for name in ("mean", "square", "step", "constant")
    )
    variance = square - mean**2
    if not variance > 0 or not step < SORTED * 2 * variance:
        return None
    return _not_shuffled(
        e,
        f"{constant:.0%} of the batches hold one class only, and labels differ from the one before "
        f"by {step / (2 * variance):.0%} of what they would in random order (von Neumann's ratio)",
    )


def _not_shuffled(e: Evidence, measured: str) -> Finding:
    return Finding(
        "data-not-shuffled",
        "warning" if e.knows_half else "problem",
        f"{measured}: the data are sorted by class.",
        fix="Use DataLoader(…, shuffle=True) for the training data.",
    )


RARE = 500
"""Of a class with a frequency of 1 %, 500 items have none with a probability of 0.7 %."""


def _of_constant_labels(e: Evidence, items: float) -> str | None:
    """How bad one label in all items is; None if there is another reason.

    A contrastive loss has its positive at index 0, and stays far from 0. Where another class is
    rare, the batches with it have a loss, however well the rest is known.
    """
    if e.trial is not None:
        return "problem" if items >= RARE or e.n_classes > 2 else "warning"
    if len(e.loss) > PATIENCE and e.learned < 0.5:
        return None
    worst = float(e.loss[-max(len(e.loss) // 4, 1) :].max()) if len(e.loss) else math.inf
    trivial = e.chance is not None and e.chance.learned(worst) > 0.9
    return "problem" if items >= RARE or trivial else None


DUPLICATES = 0.3
"""The least share of met items in any validation batch: a third of each is no chance."""


FEW_NUMBERS = 3
"""Items of so few numbers, such as the coordinates of a pixel, come again by themselves."""


def find_duplicates(e: Evidence) -> Finding | None:
    """Validation batches that were training data.

    Not of inputs of a few numbers, or a few whole ones, of which there are no more different ones;
    and not without figures of a validation.
    """
    share, n = e.number("validation_items", "share_met"), e.number("validation_items", "batches", 0)
    least = e.number("validation_items", "least_share_met", 0)
    if n < 2 or least < DUPLICATES:
        return None
    if not e.count("validation_forwards") and not e.was_validated:
        return None
    shape = e.facts("input").get("shape")
    if isinstance(shape, list) and math.prod(shape[1:]) <= FEW_NUMBERS:
        return None
    items, distinct = (e.number("validation_items", name, 0) for name in ("items", "distinct"))
    rounds = max(len(e.epochs), 1)  # a validation set is looked at in every epoch
    if e.number("input", "whole", 0) >= SURE and distinct * rounds < 0.5 * items:
        return None
    return Finding(
        "train-data-duplicated-in-validation",
        "problem" if share < SURE else "warning",
        f"{share:.0%} of the items in validation batches were met in training batches: the "
        "validation does not measure how well the network generalizes.",
        fix="Split before augmenting or oversampling, by group where one source gives several "
        "items, and validate on the other part.",
    )


HIGH_DROPOUT = 0.9
"""With p=0.9 one value in ten is left; usual are 0.1 to 0.5 (Srivastava et al., 2014)."""


def find_dropout(e: Evidence) -> Finding | None:
    """Dropout that leaves next to nothing."""
    found = [
        m for m in e.modules if "Dropout" in str(m.get("kind")) and m.get("p", 0) >= HIGH_DROPOUT
    ]
    if not found:
        return None
    return Finding(
        "dropout-too-high",
        e.severity("note"),
        f"{len(found)} dropout layers have p={found[0]['p']:g} and zero that share of the values.",
        layer=str(found[0]["name"]),
        fix="Use p between 0.1 and 0.5; p is the share that is dropped.",
    )


def _shape(shape: list[int]) -> str:
    return f"({', '.join(map(str, shape))})"
