"""Rules on learning rate, momentum, decay, gradients and initialization."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from convlens.core.buckets import Floats
from convlens.core.records import Finding
from convlens.doctor.evidence import Evidence

LARGE_UPDATE = 0.1
"""A usual step changes weights by about a thousandth of their size; a tenth is a hundred times
that, and a network that is changed so each step forgets what it learned."""

TINY_MOVEMENT = 0.02
"""Weights that have moved by 2 % of their size in a whole run are still those they were
initialized with."""


TINY_TRIAL = 0.001
"""The few steps of a trial move weights by a thousandth at least."""

REPLACED = 0.5
"""After a first step half as large as the weights little is left of their initialization."""


def early_ratio(e: Evidence) -> float:
    """The median of the weights' update ratios over the first steps after the third, by layer.

    Vectors (biases, norms) begin at 0 or 1 and say little: matrices and kernels count.
    """
    found = [np.nanmedian(r[2:22]) for r in _matrices(e).values() if np.isfinite(r[2:22]).any()]
    return _upper(found)


def first_ratio(e: Evidence) -> float:
    """The largest update ratio of the first three steps, of the weights."""
    found = [float(np.nanmax(r[:3])) for r in _matrices(e).values() if np.isfinite(r[:3]).any()]
    return _upper(found)


def _upper(ratios: Sequence[float]) -> float:
    """The upper quartile of the layers: a last layer that begins near 0 is large beside nothing."""
    return float(np.quantile(ratios, 0.75, method="lower")) if ratios else math.nan


def movement(e: Evidence) -> float:
    """How far the weights went in all: the sum of update ratios, of the layer that moved most."""
    sums = [float(np.nansum(ratio)) for ratio in _matrices(e).values()]
    return max(sums, default=math.nan)


def _matrices(e: Evidence) -> dict[str, Floats]:
    """The update ratios of matrices and kernels, or of all parameters if there are none."""
    shapes = {h.layer.name: h.layer.kind for h in e.of_parameters("update")}
    ratios = e.update_ratios
    found = {name: ratio for name, (_, ratio) in ratios.items() if "×" in shapes[name]}
    return found or {name: ratio for name, (_, ratio) in ratios.items()}


def find_rate_too_high(e: Evidence) -> Finding | None:
    """Steps that are large beside the weights, in a run that does not learn."""
    ratio, first = early_ratio(e), first_ratio(e)
    if e.chance is not None and _explodes_at_once(e):
        return None
    if not e.is_weak or not (ratio > LARGE_UPDATE or first > REPLACED):
        return None
    rates = e.hyper("lr")[:3] if first > ratio else e.hyper("lr")[2:22]  # of the same steps
    ratio = max(ratio, first)
    lr = float(np.median(rates)) if len(rates) else math.nan
    told = f" at a learning rate of {lr:.3g}" if lr > 0 else ""
    return Finding(
        "learning-rate-too-high",
        e.strict,
        f"Each of the first steps changes weights by {ratio:.2g} of their size{told} (usual is "
        "about 0.001), and the loss does not fall.",
        first_step=int(e.steps.step[0]),
        fix=f"Lower the learning rate to about {_round(lr * 0.003 / ratio)}, or warm it up.",
    )


def find_rate_too_low(e: Evidence) -> Finding | None:
    """Weights that hardly move although there are gradients."""
    if e.count("optimizer_steps") < e.min_steps or e.diverged:
        return None
    went = movement(e)
    if not e.is_weak or not 0 < went < (TINY_MOVEMENT if e.trial is None else TINY_TRIAL):
        return None
    if e.trial is not None and (e.trial.get("scheduled") or not e.adam_learns):
        return None
    lr = e.hyper("lr")
    if len(lr) and np.isfinite(lr).any() and _ended_early(lr):
        return None
    if e.record.meta.get("status") == "running" and len(lr) and not lr[-1] < np.nanmax(lr):
        return None  # a warm-up that may still come to its end
    highest = float(np.nanmax(lr, initial=0.0)) if len(lr) else 0.0
    return Finding(
        "learning-rate-too-low",
        e.severity("note"),
        f"In {len(e.steps)} steps the weights moved by {went:.2g} of their size in all, and the "
        f"loss hardly fell; the learning rate is at most {highest:.3g}.",
        first_step=int(e.steps.step[0]),
        fix=f"Raise the learning rate, to about {_round(highest * 0.3 / went)}; check that a "
        "warm-up is shorter than the run.",
    )


def _ended_early(lr: Floats) -> bool:
    """Whether the rate falls to a hundredth of its highest value in the first half of the run."""
    highest = float(np.nanmax(lr))
    low = np.flatnonzero(lr < highest / 100)
    low = low[low > int(np.nanargmax(lr))]
    return bool(len(low)) and low[0] < len(lr) / 2 and bool((lr[low[0] :] <= highest / 100).all())


def find_schedule_ends_early(e: Evidence) -> Finding | None:
    """A learning rate that is next to nothing for most of the run."""
    lr = e.hyper("lr")
    if len(lr) < e.min_steps or not np.isfinite(lr).all() or not _ended_early(lr):
        return None
    first = int(np.argmax((lr < lr.max() / 100) & (np.arange(len(lr)) > np.argmax(lr))))
    return Finding(
        "learning-rate-schedule-ends-early",
        e.severity("note"),
        f"The learning rate has fallen to a hundredth of its highest value ({lr.max():.3g}) by "
        f"step {e.steps.step[first]}, with {len(lr) - first} of {len(lr)} steps to come.",
        first_step=int(e.steps.step[first]),
        fix="Call scheduler.step() once per epoch if the schedule counts epochs, or give it the "
        "number of batches.",
        confidence="certain",
    )


HIGH_MOMENTUM = 0.995
"""With momentum m a step has the weight of 1 / (1 − m) gradients: 200 at 0.995. Usual are 0.9 to
0.99."""


def find_momentum_too_high(e: Evidence) -> Finding | None:
    """A momentum near 1 in a run whose loss rises or swings."""
    momentum = e.hyper("momentum")
    high = float(np.nanmax(momentum, initial=0.0)) if len(momentum) else 0.0
    if not HIGH_MOMENTUM <= high <= 1 or not e.is_weak:
        return None
    return Finding(
        "momentum-too-high",
        e.strict,
        f"The momentum is {high:g}: each gradient acts for about {1 / max(1 - high, 1e-6):,.0f} "
        "steps, and the loss does not settle.",
        first_step=int(e.steps.step[0]),
        fix="Use a momentum of 0.9 to 0.95.",
    )


STRONG_DECAY = 0.01
"""A decay that takes 1 % of the weights each step halves them in 70 steps."""

DEFAULT_DECAY = 0.01
"""AdamW's default in PyTorch. Where no more than that takes so much, the rate is at fault."""


def find_decay_too_high(e: Evidence) -> Finding | None:
    """Weight decay that takes the weights away faster than gradients can build them."""
    decay, lr = e.hyper("weight_decay"), e.hyper("lr")
    if not len(decay) or not np.isfinite(decay).any() or not e.is_weak:
        return None
    taken = float(np.nanmedian(decay * lr))
    if taken < STRONG_DECAY or np.nanmax(decay) <= DEFAULT_DECAY:
        return None
    return Finding(
        "weight-decay-too-high",
        e.strict,
        f"Weight decay {np.nanmax(decay):g} at learning rate {np.nanmax(lr):.3g} takes "
        f"{taken:.1%} of every weight at each step, and the loss hardly falls.",
        first_step=int(e.steps.step[0]),
        fix="Use a weight decay of 0.0001 to 0.05.",
    )


SAME_NORM = 1e-3
"""Norms of gradients differ from batch to batch by far more than a thousandth, unless clipped."""


def find_clipped(e: Evidence) -> Finding | None:
    """Gradients that are clipped to a norm so small that the weights stay where they are."""
    norms = [norm for norm in e.gradient_norms.values() if len(norm)]
    if not norms or len({len(norm) for norm in norms}) != 1 or not e.is_weak:
        return None
    total = np.sqrt(np.sum(np.square(norms), axis=0))
    if len(total) < e.min_steps or not np.isfinite(total).all() or not total.mean() > 0:
        return None
    if total.std() > SAME_NORM * total.mean() or total.mean() > 0.05 or movement(e) > 0.1:
        return None
    return Finding(
        "gradient-clipped-to-nothing",
        e.strict,
        f"The norm of all gradients is {total.mean():.3g} in every step: it is clipped to that, "
        f"and the weights moved by {movement(e):.2g} of their size in the whole run.",
        first_step=int(e.steps.step[0]),
        fix="Clip to a norm of about 1 (torch.nn.utils.clip_grad_norm_(…, max_norm=1.0)).",
    )


VANISHED = 1e-4
"""Between the first and the last layer gradients differ by a factor of ten or a hundred; one of
10,000 means that the first layers learn nothing."""


def find_vanishing(e: Evidence) -> Finding | None:
    """Gradients that are next to nothing in the first layers."""
    shapes = {h.layer.name: h.layer.kind for h in e.of_parameters("gradient")}
    norms = {n: v for n, v in e.gradient_norms.items() if "×" in shapes.get(n, "")}
    if len(norms) < 2 or not e.is_weak:
        return None
    typical = {name: float(np.nanmedian(norm)) for name, norm in norms.items()}
    first = next(iter(typical))
    largest = max(typical.values())
    if not largest > 0 or typical[first] > VANISHED * largest:
        return None
    return Finding(
        "vanishing-gradient",
        e.severity("note"),
        f"The gradient of {first!r} ({typical[first]:.2g}) is {typical[first] / largest:.1g} of "
        f"that of the layer with the largest ({largest:.2g}): the first layers do not learn.",
        layer=first.rpartition(".")[0],
        fix="Use ReLU instead of sigmoid or tanh, batch normalization, residual connections, or an "
        "initialization for the activation (Kaiming).",
    )


def find_constant_initialization(e: Evidence) -> Finding | None:
    """Weights that are all the same number before the first step."""
    found = [
        h
        for h in e.of_parameters("parameter")
        if "×" in h.layer.kind and len(h) and h.std[0] == 0 and h.n[0] > 1
    ]
    if not found:
        return None
    value = float(found[0].mean[0])
    n = sum("×" in h.layer.kind for h in e.of_parameters("parameter"))
    if not e.is_weak and 2 * len(found) <= n:
        return None  # last layers, of branches and adapters too, often begin with zeros
    return Finding(
        "constant-initialization",
        e.severity("note"),
        f"All weights of {len(found)} layers were {value:g} before the first step, so their units "
        f"compute the same and stay the same: {', '.join(repr(h.layer.name) for h in found[:3])}.",
        layer=found[0].layer.name.rpartition(".")[0],
        first_step=0,
        fix="Initialize weights at random (nn.init.kaiming_normal_); only biases may be constant.",
        confidence="certain",
    )


HIGH_FIRST_LOSS = 5.0
"""A network that knows nothing has a loss near ln(classes); five times that is far from nothing."""


FAR_TOO_HIGH = 100.0
"""A network that was trained for other labels is wrong with confidence, at 2 to 5 times the loss of
guessing; a hundred times that is a matter of scale."""


def find_bad_initialization(e: Evidence) -> Finding | None:
    """A first loss far above that of guessing."""
    if e.chance is None or not e.chance.classes or e.record.meta.get("resumed"):
        return None
    first, guess = float(e.loss[0]) if len(e.loss) else math.nan, e.chance.level
    if not first > HIGH_FIRST_LOSS * guess:
        return None
    return Finding(
        "bad-initialization",
        "problem" if first > FAR_TOO_HIGH * guess else e.severity("note"),
        f"The first loss was {first:.4g}; guessing gives {guess:.3g}. The scores "
        f"of the untrained network reach {e.first('output', 'max'):.3g}.",
        first_step=int(e.steps.step[0]),
        fix="Use the layers' own initialization, or nn.init.kaiming_normal_; weights from N(0, 1) "
        "multiply the values by √inputs in each layer.",
    )


EXPLODED, GROWN = 1e4, 100.0
"""Gradients of a mean loss have norms of about 1; a loss scale of mixed precision makes them large
from the start to the end, and then they do not grow a hundredfold."""


def _explodes_at_once(e: Evidence) -> bool:
    """Whether gradients are huge before the first step: no rate has made them so."""
    firsts = [norm[0] for norm in e.gradient_norms.values()]
    return any(math.isfinite(first) and first > _exploded(e) for first in firsts)


def _exploded(e: Evidence) -> float:
    """Of a mean squared error the gradients grow with the variance of the targets."""
    if e.chance is None or e.chance.of != "mean squared error":
        return EXPLODED
    return EXPLODED * max(e.chance.level, 1.0)


def find_exploding(e: Evidence) -> Finding | None:
    """Gradients that are huge, in a run that does not learn."""
    found = {n: v[np.isfinite(v)] for n, v in e.gradient_norms.items() if np.isfinite(v).any()}
    norms = {name: float(v.max()) for name, v in found.items()}
    if not norms or not e.is_weak:
        return None
    worst = max(norms, key=lambda name: norms[name])
    grown = norms[worst] > GROWN * float(np.median(found[worst][:3]))
    unknown = e.chance is None and not e.diverged
    if not norms[worst] > _exploded(e) or (unknown and not grown):
        return None
    return Finding(
        "exploding-gradient",
        e.severity("note"),
        f"The gradient of {worst!r} reached a norm of {norms[worst]:.3g}.",
        layer=worst.rpartition(".")[0],
        fix="Clip gradients (torch.nn.utils.clip_grad_norm_(…, 1.0)), lower the learning rate, or "
        "use a smaller initialization; in a recurrent network an orthogonal one.",
    )


def find_half_precision(e: Evidence) -> Finding | None:
    """Weights in float16, which Adam's eps and small updates do not fit in."""
    if "float16" not in e.names("dtypes") or not e.is_weak:
        return None
    return Finding(
        "fp16-overflow-or-underflow",
        e.strict,
        "The parameters are float16: numbers below 6e-8 are 0 there (Adam's eps of 1e-8 among "
        "them), those above 65,504 infinite, and the loss does not fall.",
        first_step=int(e.steps.step[0]),
        fix="Keep the weights in float32 and use torch.autocast with a GradScaler, or bfloat16.",
    )


def _round(value: float) -> str:
    if not value > 0 or not math.isfinite(value):
        return "a tenth"
    return f"{float(f'{value:.1g}'):g}"
