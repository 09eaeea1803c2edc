"""`TensorFacts`: shape, type and range of inputs, outputs and targets, over the batches seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST = 1 << 20
"""Values that are looked at of a batch: of more the first items, of a larger item some lines."""

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

    def add(self, value: Tensor, more: More | None = None) -> None:
        """Look at a batch.

        Args:
            value: of any type, the batch's items along the first axis.
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
            if more is not None:
                measured |= more(x)
        self._batches.append(measured)
        if not value.is_cuda or len(self._batches) >= KEPT:
            self._fetch()

    def _fetch(self) -> None:
        for one in self._batches:  # with one copy from the device
            values = torch.stack([_precise(v) for v in one.values()]).tolist()
            self._read.append(dict(zip(one, values, strict=True)))
        self._batches.clear()

    def read(self) -> dict[str, Any] | None:
        """The range over all batches, the means of the rest; None if there was none."""
        self._fetch()
        if not self._read:
            return None
        found: dict[str, Any] = {"shape": self._shape, "dtype": self._dtype, "n": len(self._read)}
        found["first"] = {n: v for n, v in self._read[0].items() if math.isfinite(v)}
        return found | joined(self._read)


def joined(batches: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The facts of several batches as one: ranges and sums over them, the means of the rest."""
    found = dict[str, float]()
    for name in dict.fromkeys(name for one in batches for name in one):
        known = [one[name] for one in batches if math.isfinite(one.get(name, math.nan))]
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
        self._n_trained = self._repeated = 0
        self._batches: list[tuple[int, ...]] = []

    def train(self, batch: Tensor) -> None:
        """Remember a training batch's items."""
        if len(self._items) < MAX_ITEMS:
            hashes = _hashes(batch)
            self._n_trained += len(hashes)
            self._items.update(hashes)

    def validate(self, batch: Tensor) -> None:
        """Look at a validation batch."""
        if len(self._batches) < MAX_BATCHES and (hashes := _hashes(batch)):
            self._repeated += bool(self._batches) and hashes == self._batches[-1]
            self._batches.append(hashes)

    def facts(self) -> dict[str, float]:
        """Items of validation batches, how many were met in training, and the least in a batch."""
        met = [sum(item in self._items for item in batch) / len(batch) for batch in self._batches]
        n = sum(map(len, self._batches))
        common = {"batches": len(met), "items": n, "repeated": self._repeated}
        common["distinct"] = len({item for batch in self._batches for item in batch})
        common |= {"trained": self._n_trained, "distinct_trained": len(self._items)}
        return common | (
            {"least_share_met": min(met), "share_met": sum(met) / len(met)} if met else {}
        )


def _hashes(batch: Tensor) -> tuple[int, ...]:
    """A number for each item that differs for items of different values."""
    if batch.is_cuda or batch.is_meta or batch.is_sparse or batch.ndim < 2 or not len(batch):
        return ()
    rows = _part(batch.detach()).flatten(1)
    weights = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64).sin_()
    # The last bits of a product depend on how many rows there are.
    return tuple(map(hash, (rows.double() @ weights).float().tolist()))


def _join(name: str, values: list[float]) -> float:
    if name.endswith("min"):
        return min(values)
    return max(values) if name.endswith("max") else sum(values) / len(values)


def _part(value: Tensor, largest: int = LARGEST) -> Tensor:
    """What is looked at: its first items, of one that is too large evenly spaced lines."""
    if not value.ndim or value.numel() <= largest:
        return value
    per_item = value[:1].numel()
    if per_item <= largest:
        return value[: largest // per_item]
    axis = min(2, value.ndim - 1)  # the height of images, the depth of volumes
    return value[:1].movedim(axis, 0)[:: -(-per_item // largest)].movedim(0, axis)


AVERAGED = 1 << 15
"""Values that a mean is taken of: PyTorch computes with as many in one thread."""


def _range(value: Tensor) -> dict[str, Tensor]:
    finite = torch.isfinite(value)
    return {
        "min": torch.where(finite, value, math.inf).min(),
        "max": torch.where(finite, value, -math.inf).max(),
        "nonfinite": (~finite).sum(),
        **_averages(_part(value, AVERAGED)),
    }


def _averages(value: Tensor) -> dict[str, Tensor]:
    x = value.float() if value.dtype != torch.float64 else value
    finite = torch.isfinite(x)
    n = finite.sum().clamp(min=1)
    clean = torch.where(finite, x, torch.zeros_like(x))
    mean = clean.sum() / n
    squares = torch.where(finite, (x - mean) ** 2, torch.zeros_like(x)).sum()
    found = {
        "mean": mean,
        "std": (squares / n).sqrt(),
        "whole": (clean == clean.round()).float().mean(),
    }
    if x.ndim > 1 and len(x) > 1:
        found["spread"] = clean.reshape(len(x), -1).std(0, correction=0).mean()
    return found


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
    """What the gradient at a model's output says of the loss.

    Of a batch alone the gradient tells which loss it is, for which labels, and how large that loss
    was. With s > 0 for each item (1 / N for a mean, weights and ignored items included):

    - the cross entropy of scores o gives s (softmax(o) − onehot(y)), that of log-probabilities
      −s onehot(y), of probabilities p −s onehot(y) / p;
    - the binary one of scores gives s (sigmoid(o) − t), of probabilities s (p − t) / (p (1 − p));
    - the mean squared error 2 (o − t) / n.

    The doctor believes a loss whose value, worked out from this, is the one that was logged. The
    mean squared error of (N, 1) against (N,) broadcasts to (N, N): its gradient depends on the
    outputs alone, and the loss is larger than the gradient says.
    """
    g, o = _precise(gradient), _precise(output)
    close = max(CLOSE, 4 * torch.finfo(gradient.dtype).eps)  # bfloat16 has three digits
    found = {"sum_of_sizes": g.abs().sum()} | _of_squares(g, o) | _of_binary(g, o, close)
    if g.ndim < 2:
        return found
    axes = [axis for axis in ((1, 2) if g.ndim == 3 else (1,)) if g.shape[axis] >= 2]
    parts = [_of_classes(*_rows(g, o, axis), close) for axis in axes]
    if len(parts) == 2:  # (N, C, L) or (N, T, C): the gradient of a cross entropy sums to 0
        other = g.sum(2).abs().amax() < g.sum(1).abs().amax()
        parts = [{name: torch.where(other, parts[1][name], v) for name, v in parts[0].items()}]
    return found | parts[0] if parts else found


def _precise(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "mps" else x.double()


def _rows(g: Tensor, o: Tensor, axis: int) -> tuple[Tensor, Tensor, int]:
    """Rows of classes, (R, C) of at most about `ROWS`, and how many there are in all."""
    n_classes = g.shape[axis]
    g, o = (x.movedim(axis, -1).reshape(-1, n_classes) for x in (g, o))
    every = max(len(g) // ROWS, 1)
    return g[::every], o[::every], len(g)


def _of_classes(g: Tensor, o: Tensor, n: int, close: float) -> dict[str, Tensor]:
    """The cross entropy of rows (R, C), a part of n rows: does it fit, its scale, value, labels.

    Rows without a gradient are ignored by the loss, such as padding.
    """
    used, labels, share = (g != 0).any(1), g.argmin(1), n / len(g)
    logs = (o <= CLOSE).all() & (o.logsumexp(1).abs() < CLOSE).all()
    inside = (o >= 0).all() & ((o.sum(1) - 1).abs() < CLOSE).all()
    log_p = o.log_softmax(1)
    onehot = torch.nn.functional.one_hot(labels, o.shape[1]).to(o.dtype)
    fits, sizes = _fit(g, log_p.exp() - onehot, used, close)
    # The loss may take probabilities, or their logarithms, and no scores.
    of_p = ((g != 0).sum(1) <= 1).all() & (g <= 0).all() & (logs | inside)
    taken = torch.where(logs, o, o.clamp(min=1e-30).log())
    value = torch.where(of_p, taken, log_p).gather(1, labels[:, None])[:, 0]
    of_one = -g.sum(1) * torch.where(logs, torch.ones_like(value), value.exp())
    sizes = torch.where(of_p, of_one, sizes) * used
    size = sizes.sum()
    return {
        "classes": torch.tensor(float(g.shape[1]), device=g.device, dtype=g.dtype),
        "cross_entropy": torch.where(of_p, torch.zeros_like(fits), fits),
        "likelihood": of_p.to(fits.dtype),
        "cross_entropy_scale": size * share,
        "used": used.to(g.dtype).mean(),
        "cross_entropy_value": -(value * sizes).sum() / size,
        "correct": _mean((o.argmax(1) == labels).to(o.dtype), used),
        "several_labels": _several_labels(g * n, log_p.exp(), used),
        **facts_of_labels(labels, used),
        **_of_soft_labels(log_p.exp() - g * n, log_p),
    }


def _mean(values: Tensor, of: Tensor) -> Tensor:
    return (values * of).sum() / of.sum()


def facts_of_labels(labels: Tensor, used: Tensor) -> dict[str, Tensor]:
    """Which labels a batch has, and how far apart neighbours are; means tell their variance."""
    x, far = labels.double() if labels.device.type != "mps" else labels.float(), 1e9
    low, high = (torch.where(used, x, sign * far) for sign in (1, -1))
    found = {"label_min": low.min(), "label_max": high.max()}
    found |= {"label_mean": _mean(x, used), "label_square": _mean(x**2, used)}
    found["label_constant"] = (low.min() == high.max()).to(x.dtype)
    if len(x) > 1:
        found["label_step"] = _mean((x[1:] - x[:-1]) ** 2, used[1:] & used[:-1])
    return found


def _fit(g: Tensor, expected: Tensor, used: Tensor, close: float) -> tuple[Tensor, Tensor]:
    """Whether each row of a gradient is a multiple of what is expected, and the multiples.

    Of two classes any row that sums to 0 is one: there, all rows must have the same multiple.
    """
    expected = expected * used[:, None]
    common = (g * expected).sum() / (expected**2).sum().clamp(min=1e-30)
    largest = g.abs().amax().clamp(min=1e-30)
    of_all = ((g - common * expected).abs().amax() <= close * largest) & (common > 0)
    sizes = (g * expected).sum(1) / (expected**2).sum(1).clamp(min=1e-30)
    left = (g - sizes[:, None] * expected).abs().amax(1)
    each = (left <= close * g.abs().amax(1) + 1e-6 * largest).all() & (sizes >= 0).all()
    if g.shape[1] < 3:
        each = of_all
    return (of_all | each).to(g.dtype), torch.where(of_all, common.expand(len(g)), sizes)


def _of_soft_labels(t: Tensor, log_p: Tensor) -> dict[str, Tensor]:
    """Smoothed or mixed labels: the value of their cross entropy, and the least it can be."""
    fits = (t > -CLOSE).all() & (t < 1 + CLOSE).all() & ((t.sum(1) - 1).abs() < CLOSE).all()
    t = t.clamp(0, 1)
    return {
        "soft_labels": fits.to(t.dtype),
        "soft_value": -(t * log_p).sum(1).mean(),
        "soft_floor": -(t * t.clamp(min=1e-30).log()).sum(1).mean(),
    }


def _of_binary(g: Tensor, o: Tensor, close: float) -> dict[str, Tensor]:
    """The binary cross entropy of scores, or of probabilities."""
    n = g.numel()
    every = max(n // (16 * ROWS), 1)
    g, o = g.reshape(-1)[::every], o.reshape(-1)[::every]
    target = (g < 0).to(g.dtype)
    inside = (o > 0).all() & (o < 1).all()
    p = o.sigmoid()
    found = _proportional(g, p - target, n, "binary_cross_entropy", close)
    of_p = _proportional(g, (o - target) / (o * (1 - o)).clamp(min=1e-30), n, "likelihood", close)
    found["binary_likelihood"] = of_p["likelihood"] * inside
    p = torch.where(found["binary_likelihood"] > 0, o, p).clamp(1e-30, 1 - 1e-16)
    found["binary_value"] = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    share = target.mean()
    found["positives"] = share
    found["positives_constant"] = ((share == 0) | (share == 1)).to(g.dtype)
    return found


def _of_squares(g: Tensor, o: Tensor) -> dict[str, Tensor]:
    """What a mean squared error would be, and the variance of its targets: that of guessing."""
    half = g * (g.numel() / 2)
    found = {"squared_value": (half**2).mean()}
    if g.ndim and len(g) > 1:
        found["squared_guess"] = (o - half).var(0, correction=0).mean()
    if g.ndim and g.numel() == len(g) >= 8:
        # Of the mean squared error it is a line of slope 2 / N, to the last digits.
        a, b = g.reshape(-1) - g.mean(), o.reshape(-1) - o.mean()
        slope = (a @ b) / (b @ b).clamp(min=1e-300)
        left = (a - slope * b).abs().max() / a.abs().max().clamp(min=1e-300)
        found["gradient_from_output_alone"] = (left < LINE).to(g.dtype)
        found["gradient_slope"] = slope * len(g)
    return found


LINE = 1e-3
"""How far a gradient may be from a line in the outputs, of its largest deviation from its mean."""


SEVERAL = 1 << 13
"""Values at most whose gradients are tried for several labels, with nine times as many."""


def _several_labels(g: Tensor, p: Tensor, used: Tensor) -> Tensor:
    """The share of the items whose gradient is that of a cross entropy with several labels.

    With S labels of 1 the gradient is S softmax(o) − t; one label is the usual case. An item whose
    gradient is 0 is one that the loss ignores, such as padding. Nine sums are tried at once, so
    only some of many items are looked at.
    """
    every = max(g.numel() // SEVERAL, 1)
    g, p, used = g[::every], p[::every], used[::every]
    sums = torch.arange(p.shape[1] + 1, device=g.device)[:9]
    targets = sums[:, None, None] * p - g
    off = (targets - targets.round()).abs().amax(2)
    fits = (off < CLOSE) & (targets.round().sum(2) == sums[:, None])
    fits &= ((targets > -0.5) & (targets < 1.5)).all(2)
    return _mean((fits[2:].any(0) & ~fits[1]).to(g.dtype), used)


def _proportional(
    g: Tensor, expected: Tensor, n: int, name: str, close: float
) -> dict[str, Tensor]:
    """Whether a gradient is a multiple of what a loss gives; and n times that multiple."""
    size = (expected @ expected).clamp(min=1e-30)
    scale = (g @ expected) / size
    left = (g - scale * expected).abs().max()
    largest = g.abs().max().clamp(min=scale.abs())
    fits = (left <= close * largest + 1e-12) & (scale > 0)
    return {name: fits.to(g.dtype), f"{name}_scale": scale * n}


def facts_of_output(x: Tensor) -> dict[str, Tensor]:
    """Whether an output (N, C, …) is one of probabilities, and of which axis."""
    x = x.float()
    found = {"zeros": (x == 0).float().mean()}
    if x.ndim < 2 or x.shape[1] < 2 or len(x) < 2:
        return found
    axes = [(1, "classes"), (0, "batch")]
    if x.ndim == 3 and x.shape[-1] >= 2:
        axes.append((-1, "last_axis"))
    for axis, name in axes:
        inside = (x >= 0).all() & ((x.sum(axis) - 1).abs() < CLOSE).all()
        logs = (x <= CLOSE).all() & (x.logsumexp(axis).abs() < CLOSE).all()
        found[f"probabilities_over_{name}"] = inside.float()
        found[f"log_probabilities_over_{name}"] = logs.float()
    found["in_unit_interval"] = ((x >= 0) & (x <= 1)).all().float()
    return found
