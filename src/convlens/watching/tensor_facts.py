"""`TensorFacts`: shape, type and range of inputs, outputs and targets, over the batches seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LARGEST = 1 << 20
"""Values that are looked at of a batch; of more, the first images."""

CLOSE = 1e-3
"""How far sums of probabilities may be from 1."""

KEPT = 64
"""Batches whose numbers are kept on their device at most."""

NUMBERS = ("min", "max", "mean", "std", "nonfinite")

More = Callable[[Tensor], dict[str, Tensor]]


class TensorFacts:
    """What is known of one kind of tensor; numbers stay on their device until they are read."""

    def __init__(self) -> None:
        self._shape: list[int] = []
        self._dtype = ""
        self._batches: list[dict[str, Tensor]] = []
        self._read: list[dict[str, float]] = []

    def add(self, value: Tensor, *, labels: bool = False, more: More | None = None) -> None:
        """Look at a batch.

        Args:
            value: of any type, the batch's items along the first axis.
            labels: whether it holds classes, whose number is counted.
            more: what else to measure.
        """
        if value.is_complex() or value.is_sparse or value.is_meta or not value.numel():
            return
        if value.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        self._shape, self._dtype = list(value.shape), str(value.dtype).removeprefix("torch.")
        with torch.no_grad():
            x = _part(value.detach())
            measured = _range(x)
            if labels and not value.is_floating_point():
                measured |= _classes(x)
            if more is not None:
                measured |= more(x)
        self._batches.append(measured)
        if not value.is_cuda or len(self._batches) >= KEPT:
            self._fetch()

    def _fetch(self) -> None:
        self._read += [{n: float(v) for n, v in one.items()} for one in self._batches]
        self._batches.clear()

    def read(self) -> dict[str, Any] | None:
        """The range over all batches, the means of the rest; None if there was none."""
        self._fetch()
        if not self._read:
            return None
        names = dict.fromkeys(name for one in self._read for name in one)
        found: dict[str, Any] = {"shape": self._shape, "dtype": self._dtype, "n": len(self._read)}
        found["first"] = {n: v for n, v in self._read[0].items() if math.isfinite(v)}
        for name in names:
            values = [one[name] for one in self._read if name in one]
            known = [value for value in values if math.isfinite(value)]
            if name == "nonfinite":
                found[name] = sum(known)
            elif known:
                found[name] = _join(name, known)
        return found


MAX_ITEMS = 20_000
"""Training items that are remembered by their hash."""

MAX_BATCHES = 64
"""Validation batches that are looked at."""


class ItemFacts:
    """How many items of validation batches were met in training batches. On the CPU only."""

    def __init__(self) -> None:
        self._items: set[int] = set()
        self._batches: list[tuple[int, ...]] = []

    def train(self, batch: Tensor) -> None:
        """Remember a training batch's items."""
        if len(self._items) < MAX_ITEMS:
            self._items.update(_hashes(batch))

    def validate(self, batch: Tensor) -> None:
        """Look at a validation batch."""
        if len(self._batches) < MAX_BATCHES and (hashes := _hashes(batch)):
            self._batches.append(hashes)

    def facts(self) -> dict[str, float]:
        """Items of validation batches, how many were met in training, and the least in a batch."""
        met = [sum(item in self._items for item in batch) / len(batch) for batch in self._batches]
        n = sum(map(len, self._batches))
        common = {"batches": len(met), "items": n}
        return common | (
            {"least_share_met": min(met), "share_met": sum(met) / len(met)} if met else {}
        )


def _hashes(batch: Tensor) -> tuple[int, ...]:
    """A number for each item that differs for items of different values."""
    if batch.is_cuda or batch.is_meta or batch.is_sparse or batch.ndim < 2 or not len(batch):
        return ()
    rows = _part(batch.detach()).reshape(len(batch), -1)
    weights = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64).sin_()
    return tuple(map(hash, (rows.double() @ weights).tolist()))


def _join(name: str, values: list[float]) -> float:
    if name.endswith("min"):
        return min(values)
    return max(values) if name.endswith("max") else sum(values) / len(values)


def _part(value: Tensor) -> Tensor:
    """Its first items, as many as are looked at."""
    if value.ndim and value.numel() > LARGEST:
        per_item = max(value[:1].numel(), 1)
        value = value[: max(LARGEST // per_item, 1)]
    return value


def _range(value: Tensor) -> dict[str, Tensor]:
    x = value.float() if value.dtype != torch.float64 else value
    finite = torch.isfinite(x)
    n = finite.sum().clamp(min=1)
    clean = torch.where(finite, x, torch.zeros_like(x))
    mean = clean.sum() / n
    squares = torch.where(finite, (x - mean) ** 2, torch.zeros_like(x)).sum()
    found = {
        "min": torch.where(finite, x, torch.full_like(x, math.inf)).min(),
        "max": torch.where(finite, x, torch.full_like(x, -math.inf)).max(),
        "mean": mean,
        "std": (squares / n).sqrt(),
        "nonfinite": (~finite).sum(),
    }
    if x.ndim > 1 and len(x) > 1:
        found["spread"] = clean.reshape(len(x), -1).std(0, correction=0).mean()
    return found


def _classes(value: Tensor) -> dict[str, Tensor]:
    """How many classes a batch has, and how often a label is the one before it."""
    flat = value.reshape(len(value), -1)[:, 0] if value.ndim else value.reshape(1)
    same = (flat[1:] == flat[:-1]).float().mean() if len(flat) > 1 else torch.tensor(0.0)
    lowest, highest = flat.min(), flat.max()
    return {"constant": (lowest == highest).float(), "same_as_before": same}


ROWS = 4_096
"""Rows of scores whose gradients are looked at."""


def facts_of_image(x: Tensor) -> dict[str, Tensor]:
    """How far neighbours along the width of (N, C, H, W) are apart, and values C columns apart.

    In an image that was reshaped from (H, W, C), instead of transposed, neighbours are of different
    channels, and values C apart are of one.
    """
    if x.ndim != 4 or not 2 <= x.shape[1] <= 4 or x.shape[-1] <= 2 * x.shape[1]:
        return {}
    x = x.float()
    apart = {1: "neighbours_apart", x.shape[1]: "channels_apart"}
    return {name: (x[..., lag:] - x[..., :-lag]).abs().mean() for lag, name in apart.items()}


def facts_of_gradient(gradient: Tensor, output: Tensor) -> dict[str, Tensor]:
    """What the gradient at a model's output says of the loss. Both are (N, C, …).

    The cross entropy of scores has the gradient s (softmax(o) − onehot(y)), and the binary one
    s (sigmoid(o) − t), with s = 1 / N for a mean over N items. Where the gradient is of that form,
    the loss takes the outputs as scores, and the labels are known. The mean squared error of (N, 1)
    against (N,) broadcasts to (N, N); then the gradient depends on the outputs alone.
    """
    g, o = gradient.float(), output.float()
    found = {"sum_of_sizes": g.abs().sum()}
    if o.ndim >= 2 and o.shape[1] >= 2:
        g, o = (x.movedim(1, -1).reshape(-1, x.shape[1]) for x in (g, o))
        n = len(g)
        g, o = g[:ROWS], o[:ROWS]
        found |= _scores(g, o.softmax(1), g.argmin(1), n, "cross_entropy")
        found["several_labels"] = _several_labels(g * n, o.softmax(1))
        labels = g.argmin(1)
        found["label_min"], found["label_max"] = labels.min(), labels.max()
        found["label_constant"] = (labels == labels[0]).all().float()
        same = (labels[1:] == labels[:-1]).float()
        found["label_same_as_before"] = same.mean() if len(same) else torch.zeros(())
    flat, scores = g.reshape(-1)[:ROWS], o.reshape(-1)[:ROWS]
    target = (flat < 0).float()
    expected = scores.sigmoid() - target
    found |= _proportional(flat, expected, gradient.numel(), "binary_cross_entropy")
    if gradient.numel() == len(gradient) >= 8:
        g, o = flat - flat.mean(), scores - scores.mean()
        parallel = (g @ o) ** 2 / ((g @ g) * (o @ o)).clamp(min=1e-30)
        found["gradient_from_output_alone"] = parallel
    return found


def _several_labels(g: Tensor, p: Tensor) -> Tensor:
    """The share of the items whose gradient is that of a cross entropy with none or several labels.

    With S labels of 1 the gradient is S softmax(o) − t; one label is the usual case.
    """
    sums = torch.arange(p.shape[1] + 1, device=g.device)[:9]
    targets = sums[:, None, None] * p - g
    off = (targets - targets.round()).abs().amax(2)
    fits = (off < CLOSE) & (targets.round().sum(2) == sums[:, None])
    fits &= ((targets > -0.5) & (targets < 1.5)).all(2)
    return (fits.any(0) & ~fits[1]).float().mean()


def _scores(g: Tensor, p: Tensor, labels: Tensor, n: int, name: str) -> dict[str, Tensor]:
    expected = p - torch.nn.functional.one_hot(labels, p.shape[1])
    return _proportional(g.reshape(-1), expected.reshape(-1), n, name)


def _proportional(g: Tensor, expected: Tensor, n: int, name: str) -> dict[str, Tensor]:
    """Whether a gradient is a multiple of what a loss gives; and n times that multiple."""
    size = (expected @ expected).clamp(min=1e-30)
    scale = (g @ expected) / size
    left = (g - scale * expected).abs().max()
    fits = (left <= CLOSE * scale.abs() + 1e-12) & (scale > 0)
    return {name: fits.float(), f"{name}_scale": scale * n}


def facts_of_output(x: Tensor) -> dict[str, Tensor]:
    """Whether an output (N, C, …) is one of probabilities, and of which axis."""
    x = x.float()
    found = {"zeros": (x == 0).float().mean()}
    if x.ndim < 2 or x.shape[1] < 2 or len(x) < 2:
        return found
    for axis, name in ((1, "classes"), (0, "batch")):
        inside = (x >= 0).all() & ((x.sum(axis) - 1).abs() < CLOSE).all()
        logs = (x <= CLOSE).all() & (x.logsumexp(axis).abs() < CLOSE).all()
        found[f"probabilities_over_{name}"] = inside.float()
        found[f"log_probabilities_over_{name}"] = logs.float()
    found["in_unit_interval"] = ((x >= 0) & (x <= 1)).all().float()
    return found
