"""The first value that is NaN or infinite: where and when, and what was so before it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from convlens.core.histories import LayerHistory
from convlens.core.records import Finding
from convlens.doctor.evidence import Evidence

AT_ONCE = 2
"""In the first steps the weights are still nearly as they were initialized: the cause is in the
data or in an operation, not in the learning rate."""


@dataclass(frozen=True)
class _Event:
    """What first held values that are not finite, in the order of a step's own events."""

    step: int
    order: int
    index: int
    what: str
    history: LayerHistory | None = None
    column: int = 0

    @property
    def key(self) -> tuple[int, int, int]:
        """Where it lies in time: a backward pass goes from the last layer to the first."""
        return self.step, self.order, -self.index if self.what == "gradient" else self.index


def find_nonfinite(e: Evidence) -> Finding | None:
    """The first weights, activations, loss or gradients that are not finite.

    Gradients alone are none: a loss scale that is too large makes them infinite, and its scaler
    leaves such steps out.
    """
    events = sorted(_events(e), key=lambda event: event.key)
    spoilt = [event for event in events if event.what != "gradient"]
    skipped = "skipped_steps" in e.record.meta and len(e.loss) and math.isfinite(e.loss[-1])
    if not spoilt or skipped:  # no step was made with what overflowed in half precision
        return None
    first = events[0]
    if first.what == "gradient" and spoilt[0].step > first.step + 1:
        first = spoilt[0]  # such a gradient was left out, and is another matter
    loss = next((event for event in events if event.what == "loss"), None)
    return Finding(
        "nonfinite-loss" if first.what == "loss" else "nonfinite-activations",
        "problem",
        " ".join([_said(e, first), *_after(e, first, events, loss)]),
        layer=_layer(first),
        first_step=first.step,
        fix=_fix(e, first),
        confidence="certain",
    )


def _events(e: Evidence) -> Iterator[_Event]:
    """The first bad column of each series, and the first bad loss."""
    series = {"parameter": e.of_parameters("parameter"), "activation": e.record.layers}
    series["gradient"] = e.of_parameters("gradient")
    for order, what in ((0, "parameter"), (1, "activation"), (3, "gradient")):
        for history in series[what]:
            bad = np.flatnonzero(history.nonfinite > 0)
            if len(bad):
                at = int(bad[0])
                step = int(history.first_step[at])
                yield _Event(step, order, history.layer.index, what, history, at)
    bad = np.flatnonzero(~np.isfinite(e.loss))
    if len(bad):
        yield _Event(int(e.steps.step[bad[0]]), 2, int(bad[0]), "loss")


def _said(e: Evidence, first: _Event) -> str:
    if first.history is None:
        value = "NaN" if np.isnan(e.loss[first.index]) else "infinite"
        later = int((~np.isfinite(e.loss)).sum()) - 1
        more = f" and at {later} later step{'s' if later > 1 else ''}" if later else ""
        whole = " The activations of that step are finite." if e.record.layers else ""
        return (
            f"The loss is {value} at step {first.step}{more}; the weights cannot be trusted from "
            f"then on.{whole}"
        )
    history, at = first.history, first.column
    columns = history.columns
    value = "NaN" if columns.nan[at] else "infinite"
    name, share = history.layer.name, float(history.nonfinite[at])
    last = int(history.last_step[at])
    when = f"step {first.step}" if last == first.step else f"steps {first.step} to {last}"
    if first.what == "parameter":
        return f"The weights {name!r} are {value} at {when}, before any activation is."
    if first.what == "gradient":
        return (
            f"The gradient of {name!r} is {value} at {when}, while activations and loss are "
            "finite: an operation has no finite derivative there."
        )
    finite = " The weights were finite then." if e.of_parameters("parameter") else ""
    return (
        f"Layer {name!r} was the first to give values that are {value}: {share:.2%} of its values "
        f"at {when}.{finite}"
    )


def _after(e: Evidence, first: _Event, events: list[_Event], loss: _Event | None) -> Iterator[str]:
    layers = [event for event in events if event.what == "activation"]
    if first.what == "activation" and len(layers) > 1:
        yield f"Later in {len(layers)} layers in all."
    if loss is not None and first.what != "loss":
        yield f"The loss is not finite from step {loss.step} on."
    rate = _rate(e, first.step)
    if rate is not None:
        yield f"The learning rate was {rate:.3g} there."


def _rate(e: Evidence, step: int) -> float | None:
    lr = e.hyper("lr")
    at = int(np.searchsorted(e.steps.step, step))
    return float(lr[at]) if at < len(lr) and math.isfinite(lr[at]) else None


def _layer(first: _Event) -> str | None:
    if first.history is None:
        return None
    name = first.history.layer.name
    return name if first.what == "activation" else name.rpartition(".")[0] or None


def _fix(e: Evidence, first: _Event) -> str:
    begin = int(e.record.steps.step[0]) if len(e.record.steps) else 0
    if first.what == "gradient":
        return (
            "Add a small number inside sqrt, log, norm and divisions (torch.sqrt(x + 1e-8)); "
            "torch.autograd.set_detect_anomaly(True) names the operation."
        )
    if first.what == "loss":
        return (
            "Look at the loss: take logarithms of log_softmax or clamp(min=1e-8), divide by counts "
            "that are not 0. If it was rising before, try a lower learning rate or a warm-up."
        )
    if first.step <= begin + AT_ONCE and first.what == "activation":
        return (
            "Look at this layer's input: log, sqrt or a division by 0, float16 above 65,504, or "
            "such values in the data or in loaded weights."
        )
    return (
        "Go back to weights from before this step. Try a lower learning rate, a warm-up, or "
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)."
    )
