"""Checks on what flowed through the watched layers."""

from __future__ import annotations

import math

import numpy as np

from convlens.core.buckets import Flags, Floats
from convlens.core.histories import LayerHistory
from convlens.core.records import Finding, RunRecord

DEAD_NOTE, DEAD_PROBLEM = 0.1, 0.25
"""A few dead channels are common and cost little; a quarter of a layer is capacity thrown away."""

MIN_BATCHES = 5
"""In one or two batches a living channel may well be without a positive value."""

SWING = 3.0
"""The standard deviation of a layer drifts while it learns, and scatters by far less than this
factor from batch to batch: up and down by three is growth and collapse."""

PEAK = 0.1
"""A peak below a tenth of the layer's largest deviation is scatter of what is left after a collapse
(seen on MNIST at a learning rate of 0.3: the last layer's bias moves while all else is dead)."""

MIN_CYCLES = 2
"""Once up and down can be a warm-up; the second time it is a cycle."""


def find_nonfinite_activations(record: RunRecord) -> list[Finding]:
    """The first layer whose output held NaN or infinite values, and when."""
    hit = [(int(h.first_step[np.argmax(h.nonfinite > 0)]), h) for h in record.layers if _broken(h)]
    if not hit:
        return []
    step, first = min(hit, key=lambda pair: (pair[0], pair[1].layer.index))
    share = float(first.nonfinite[np.argmax(first.nonfinite > 0)])
    others = f", later in {len(hit)} layers in all" if len(hit) > 1 else ""
    return [
        Finding(
            "nonfinite-activations",
            "problem",
            f"Layer {first.layer.name!r} gave values that are NaN or infinite from step {step} on "
            f"({share:.2%} of its values in that column{others}). Try a lower learning rate, "
            "gradient clipping or batch normalization; if it begins at step 0, look for such "
            "values in the images or in loaded weights.",
            first.layer.name,
            step,
        )
    ]


def find_dead_channels(record: RunRecord) -> list[Finding]:
    """Channels before a ReLU without one positive value in the last quarter of the steps."""
    layers = [h for h in record.layers if h.layer.feeds_relu and h.channels and _judgeable(h)]
    dead = [(h, _dead(h)) for h in layers]
    hit = [(h, mask) for h, mask in dead if mask.mean() >= DEAD_NOTE]
    if not hit:
        return []
    worst, mask = max(hit, key=lambda pair: pair[1].mean())
    listed = ", ".join(f"{int(m.sum())} of {m.size} in {h.layer.name!r}" for h, m in hit[:6])
    more = f" and in {len(hit) - 6} more layers" if len(hit) > 6 else ""
    return [
        Finding(
            "dead-channels",
            "problem" if mask.mean() >= DEAD_PROBLEM else "note",
            f"Channels are dead, with no positive value for any image in the last quarter of the "
            f"steps, so that ReLU makes them zero and no gradient reaches them: {listed}{more}. "
            "Try a lower or slowly rising learning rate, batch normalization, or a ReLU that "
            "leaks; narrower layers, if the accuracy is good enough.",
            worst.layer.name,
            _dead_since(worst, mask),
        )
    ]


def find_activation_cycles(record: RunRecord) -> list[Finding]:
    """Growth and collapse of a layer's standard deviation, again and again.

    Source: the "colorful dimension" of fast.ai's chapter 13 shows bad training as cycles in which
    activations grow, collapse and start again. Here a cycle is a rise of the layer's standard
    deviation by a factor of at least `SWING` and a fall by as much after it.
    """
    cycles = [(len(peaks), h, peaks) for h in record.layers if (peaks := _peaks(h))]
    hit = [entry for entry in cycles if entry[0] >= MIN_CYCLES]
    if not hit:
        return []
    n, worst, peaks = max(hit, key=lambda entry: entry[0])
    where = f" ({len(hit)} of {len(record.layers)} layers do so)" if len(hit) > 1 else ""
    steps = ", ".join(str(int(worst.first_step[p])) for p in peaks[:4])
    return [
        Finding(
            "activation-cycles",
            "problem",
            f"The standard deviation of layer {worst.layer.name!r} grew at least {SWING:g}-fold "
            f"and collapsed again {n} times{where}, with peaks at step {steps}"
            f"{' …' if n > 4 else ''}: that is how unstable training looks. Try a lower learning "
            "rate with a warm-up, or batch normalization.",
            worst.layer.name,
            int(worst.first_step[peaks[0]]),
        )
    ]


def last_quarter(history: LayerHistory) -> slice:
    """The columns that begin in the last quarter of the recorded steps, at least the last one."""
    if not len(history):
        return slice(0, 0)
    first, last = int(history.first_step[0]), int(history.last_step[-1])
    start = int(np.searchsorted(history.first_step, last - (last - first) / 4))
    return slice(min(start, len(history) - 1), len(history))


def after_relu(history: LayerHistory) -> Floats:
    """(K,) share of values near zero, as the next layer sees them."""
    return history.near_zero_after_relu if history.layer.feeds_relu else history.near_zero


def _broken(history: LayerHistory) -> bool:
    return bool((history.nonfinite > 0).any())


def _judgeable(history: LayerHistory) -> bool:
    """Whether the last quarter has batches enough, of finite values: NaN is not positive either."""
    tail = last_quarter(history)
    finite = not (history.nonfinite[tail] > 0).any()
    return finite and int(history.calls[tail].sum()) >= MIN_BATCHES


def _dead(history: LayerHistory) -> Flags:
    return np.logical_not(history.columns.positive[last_quarter(history)].any(axis=0))


def _dead_since(history: LayerHistory, dead: Flags) -> int:
    """The step from which on none of these channels was ever positive again."""
    alive = np.flatnonzero(history.columns.positive[:, dead].any(axis=1))
    return int(history.first_step[alive[-1] + 1] if len(alive) else history.first_step[0])


def _peaks(history: LayerHistory) -> list[int]:
    """Positions of the peaks that a rise by `SWING` leads to and a fall by `SWING` follows."""
    std = history.std
    usable = np.flatnonzero(np.isfinite(std))
    if not len(usable) or std[usable].max() <= 0:
        return []
    floor = std[usable].max() * 1e-6  # a collapse to nothing is a fall like any other
    level = np.log(np.maximum(std[usable], floor)).tolist()
    threshold, peak, peaks = math.log(SWING), max(level) + math.log(PEAK), list[int]()
    rising, low, high, at = False, level[0], level[0], 0
    for i, value in enumerate(level):
        if rising and value > high:
            high, at = value, i
        elif rising and value < high - threshold:
            if high >= peak:
                peaks.append(int(usable[at]))
            rising, low = False, value
        elif not rising:
            low = min(low, value)
            if value > low + threshold:
                rising, high, at = True, value, i
    return peaks
