"""Rules on batch normalization."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.core.histories import LayerHistory
from convlens.core.records import Finding
from convlens.doctor.evidence import Evidence


def find_stats_never_updated(e: Evidence) -> Finding | None:
    """Batch normalization without running statistics of its own: with momentum=0.

    Not where they come from an earlier training, which is a way to freeze them.
    """
    norms = list(_norms(e))
    still = [
        (name, history)
        for name, momentum, history in norms
        if momentum == 0 and (history is None or _is_untouched(history))
    ]
    if not still:
        return None
    return Finding(
        "batchnorm-stats-never-updated",
        "problem",
        f"{len(still)} of {len(norms)} batch normalizations have momentum=0: their running mean "
        "and variance stay 0 and 1, and evaluation uses those.",
        layer=still[0][0],
        fix="Use momentum=0.1 (in PyTorch the share of the new batch, not of the old value).",
        confidence="certain",
    )


FEWEST_VALUES = 4
"""The variance of n values has a relative error of √(2 / (n − 1)): 141 % for 2, 82 % for 4, 18 %
for 64. A convolution has height × width values of each image, so that pairs of images are enough.
"""


def find_batch_too_small(e: Evidence) -> Finding | None:
    """Batch normalization over so few values that its mean and variance are noise."""
    if not e.count("backwards"):
        return None
    items = _items(e)
    for name, _, history in _norms(e):
        values = _values(e, history)
        if not 1 < values < FEWEST_VALUES:
            continue
        return Finding(
            "batchnorm-batch-too-small",
            "problem",
            f"Batch normalization {name!r} has {values:.3g} values of each channel in a batch of "
            f"{items:.0f}: their mean and variance are mostly noise, and differ from the running "
            "ones that evaluation uses.",
            layer=name,
            fix="Use larger batches, or nn.GroupNorm or nn.LayerNorm instead of batch "
            "normalization.",
        )
    return None


def _norms(e: Evidence) -> Iterator[tuple[str, float, LayerHistory | None]]:
    """The batch normalizations in training mode: name, momentum, history if it was watched."""
    resting = e.facts("evaluation_mode_modules")
    histories = {history.layer.name: history for history in e.record.layers}
    for module in e.modules:
        name, momentum = str(module.get("name")), module.get("momentum")
        if "BatchNorm" in str(module.get("kind")) and name not in resting:
            yield name, -1.0 if momentum is None else float(momentum), histories.get(name)


def _is_untouched(history: LayerHistory) -> bool:
    mean, var = history.running_mean, history.running_var
    return not len(mean) or not (abs(mean[-1]) > 0 or abs(var[-1] - 1) > 0)


def _items(e: Evidence) -> float:
    """Items of a batch; a trial takes only a part of them."""
    shape = e.facts("input").get("shape")
    own = float(shape[0]) if isinstance(shape, list) and shape else 0.0
    return float((e.trial or {}).get("batch_size", own))


def _values(e: Evidence, history: LayerHistory | None) -> float:
    """Values of each channel that one batch is normalized over, 0 if it is not known."""
    shape = e.facts("input").get("shape")
    if not isinstance(shape, list) or not shape or not shape[0]:
        return 0.0
    if history is None or not len(history) or not history.channels:
        return _items(e) if len(shape) == 2 else 0.0
    each = history.n[0] / history.calls[0] / history.channels / history.sample
    return float(each) * _items(e) / shape[0]
