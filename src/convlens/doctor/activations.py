"""Rules on what the watched layers gave."""

from __future__ import annotations

import math

import numpy as np

from convlens.core.buckets import Flags, Ints
from convlens.core.histories import LayerHistory
from convlens.core.records import Finding, RunRecord

DEAD_WARNING, DEAD_PROBLEM = 0.1, 0.75
"""A few dead channels are common and cost little, and half of a layer is enough to learn; where
three quarters are dead, the rest will hardly do."""

MIN_BATCHES = 5
"""In one or two batches a living channel may well be without a positive value."""

SWING = 3.0
"""A layer's standard deviation drifts while it learns, and scatters by far less than this factor
from batch to batch: up and down by three is growth and collapse."""

PEAK = 0.1
"""A peak below a tenth of the layer's largest deviation is scatter of what is left after a collapse
(seen on MNIST at a learning rate of 0.3: the last layer's bias moves while all else is dead)."""

MIN_CYCLES = 2
"""Once up and down can be a warm-up; the second time it is a cycle."""

MIN_PERIOD = 10
"""Peaks that are fewer columns apart come from forwards that differ in turn, as on the true and
generated images of a GAN."""


def find_dead_channels(record: RunRecord) -> Finding | None:
    """Channels before a ReLU without one positive value in the last quarter of the steps."""
    layers = [h for h in record.layers if h.layer.feeds_relu and h.channels and _can_judge(h)]
    dead = [(h, ~h.columns.positive[last_quarter(h)].any(axis=0)) for h in layers]
    found = [(h, mask) for h, mask in dead if mask.mean() >= DEAD_WARNING]
    if not found:
        return None
    worst, mask = max(found, key=lambda pair: pair[1].mean())
    listed = ", ".join(f"{int(m.sum())} of {m.size} in {h.layer.name!r}" for h, m in found[:6])
    more = f" and in {len(found) - 6} more layers" if len(found) > 6 else ""
    return Finding(
        "dead-relu",
        "problem" if mask.mean() >= DEAD_PROBLEM else "warning",
        "Channels are dead, with no positive value for any image in the last quarter of the "
        f"steps, so that ReLU makes them zero and no gradient reaches them: {listed}{more}.",
        layer=worst.layer.name,
        first_step=_after_last(worst, np.flatnonzero(worst.columns.positive[:, mask].any(axis=1))),
        fix="Try a lower or slowly rising learning rate, batch normalization, or a leaky ReLU; "
        "narrower layers, if the accuracy is good enough.",
        confidence="certain",
    )


def find_activation_cycles(record: RunRecord) -> Finding | None:
    """Growth and collapse of a layer's standard deviation, again and again.

    Source: the "colorful dimension" of fast.ai's chapter 13 shows bad training as cycles in which
    activations grow, collapse and start again. Here a cycle is a rise of the layer's standard
    deviation by a factor of at least `SWING` and a fall by as much after it.
    """
    found = [(h, peaks) for h in record.layers if len(peaks := _peaks(h)) >= MIN_CYCLES]
    if not found:
        return None
    worst, peaks = max(found, key=lambda pair: len(pair[1]))
    where = f" ({len(found)} of {len(record.layers)} layers do so)" if len(found) > 1 else ""
    steps = ", ".join(str(worst.first_step[p]) for p in peaks[:4])
    return Finding(
        "activation-cycles",
        "warning",
        f"The standard deviation of layer {worst.layer.name!r} grew at least {SWING:g}-fold "
        f"and collapsed again {len(peaks)} times{where}, with peaks at step {steps}"
        f"{' …' if len(peaks) > 4 else ''}: that is how unstable training looks.",
        layer=worst.layer.name,
        first_step=int(worst.first_step[peaks[0]]),
        fix="Try a lower learning rate with a warm-up, or batch normalization.",
    )


NEARLY_ALL_ZERO = 0.99
"""With 99 % of a layer's values near zero, next to nothing of the image gets through it."""

NEARLY_CONSTANT = 1e-3
"""With a standard deviation of a thousandth of the mean, all values look the same to the next
layer."""


def find_blocked_layer(record: RunRecord) -> tuple[str, int, str] | None:
    """The first layer that lets next to nothing through: name, since which step, and how."""
    for history in record.layers:
        after_relu = history.near_zero_after_relu if history.layer.feeds_relu else history.near_zero
        blocked = (after_relu > NEARLY_ALL_ZERO) | _constant(history)
        tail = last_quarter(history)
        if not len(history) or not blocked[tail].all():
            continue
        share, std, mean = (
            float(np.mean(values[tail])) for values in (after_relu, history.std, history.mean)
        )
        how = f"the values are all the same (standard deviation {std:.2g} about {mean:.3g})"
        if share > NEARLY_ALL_ZERO:
            relu = " after its ReLU" if history.layer.feeds_relu else ""
            how = f"{share:.1%} of the values are near zero{relu}"
        return history.layer.name, _after_last(history, np.flatnonzero(~blocked)), how
    return None


def find_constant_layer(record: RunRecord) -> Finding | None:
    """The first layer that gives the same value for every image and place, ReLU or not."""
    judged = [h for h in record.layers if _can_judge(h)]
    found = [h for h in judged if _constant(h)[last_quarter(h)].all()]
    if not found:
        return None
    first, others = found[0], len(found) - 1
    more = f", and {others} later layer{'s' if others > 1 else ''} too" if others else ""
    return Finding(
        "constant-layer",
        "warning",
        f"Layer {first.layer.name!r} gives the same value, {first.mean[-1]:.3g}, for every image "
        f"in the last quarter of the steps{more}: nothing of the image gets through it.",
        layer=first.layer.name,
        first_step=_after_last(first, np.flatnonzero(~_constant(first))),
        fix="Look at its weights and at what they began as; try a lower learning rate or batch "
        "normalization.",
        confidence="certain",
    )


def _constant(history: LayerHistory) -> Flags:
    scale = np.maximum(np.abs(history.mean), history.eps)
    return history.std <= NEARLY_CONSTANT * scale


def last_quarter(history: LayerHistory) -> slice:
    """The columns that begin in the last quarter of the recorded steps, at least the last one."""
    if not len(history):
        return slice(0, 0)
    first, last = int(history.first_step[0]), int(history.last_step[-1])
    start = int(np.searchsorted(history.first_step, last - (last - first) / 4))
    return slice(min(start, len(history) - 1), len(history))


def _can_judge(history: LayerHistory) -> bool:
    """Whether the last quarter has batches enough, of finite values: NaN is not positive either."""
    tail = last_quarter(history)
    finite = not (history.nonfinite[tail] > 0).any()
    return finite and int(history.calls[tail].sum()) >= MIN_BATCHES


def _after_last(history: LayerHistory, good: Ints) -> int:
    """The step of the column after the last good one, by position; there is one after it."""
    return int(history.first_step[good[-1] + 1 if len(good) else 0])


def _peaks(history: LayerHistory) -> list[int]:
    """Positions of the peaks that a rise by `SWING` leads to and a fall by `SWING` follows."""
    std = history.std
    usable = np.flatnonzero(np.isfinite(std))
    if not len(usable) or std[usable].max() <= 0:
        return []
    floor = std[usable].max() * 1e-6  # a collapse to nothing is a fall like any other
    level = np.log(np.maximum(std[usable], floor)).tolist()
    threshold, peak, peaks = math.log(SWING), max(level) + math.log(PEAK), list[int]()
    rising, low, high, at, last = False, level[0], level[0], 0, -MIN_PERIOD
    for i, value in enumerate(level):
        if rising and value > high:
            high, at = value, i
        elif rising and value < high - threshold:
            if high >= peak:
                if at - last >= MIN_PERIOD:
                    peaks.append(int(usable[at]))
                last = at
            rising, low = False, value
        elif not rising:
            low = min(low, value)
            if value > low + threshold:
                rising, high, at = True, value, i
    return peaks
