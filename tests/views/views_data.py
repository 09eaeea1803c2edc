"""Synthetic runs, written through `RunWriter` as training writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convlens.core.buckets import BucketLayout
from convlens.core.columns import CHUNK_BITS, Columns, encode
from convlens.core.histories import LayerInfo
from convlens.core.records import Epoch, Picture
from convlens.core.steps import StepSeries
from convlens.runs import Run, RunWriter, create_run, open_run

LAYOUT = BucketLayout()
NAMES = ("0.0", "0.2", "1.0", "1.2", "2.0", "2.2", "3.0", "3.2", "4.0")
CHANNELS = (8, 8, 16, 16, 32, 32, 64, 64, 10)
SIZES = (196, 196, 49, 49, 16, 16, 4, 4, 1)
PER_EPOCH = 118
SHARPEST = 1e-12


def layer_infos(names: tuple[str, ...] = NAMES) -> list[LayerInfo]:
    kinds = ["BatchNorm2d" if name.endswith(".2") else "Conv2d" for name in names]
    return [
        LayerInfo(i, name, kind, feeds_relu=kind == "Conv2d" and i < len(names) - 1)
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]


def normal_columns(
    mean: np.ndarray,
    std: np.ndarray,
    n: int,
    channels: int,
    dead: np.ndarray | int = 0,
    first_step: int = 0,
    nan: np.ndarray | int = 0,
) -> Columns:
    """Columns of one step each, as normally distributed activations would leave them."""
    deviates = np.sort(np.random.default_rng(0).standard_normal(20_000))
    steps = np.arange(first_step, first_step + len(mean))
    widths = np.maximum(std, SHARPEST)[:, None]
    edges = np.clip((LAYOUT.edges[None] - mean[:, None]) / widths, -1e30, 1e30)
    shares = np.searchsorted(deviates, edges) / len(deviates)
    counts = np.diff(np.round(shares * n).astype(np.int64), axis=1)
    if (std == 0).any():
        counts[std == 0] = 0
        counts[std == 0, LAYOUT.zero] = n
    near = (
        np.searchsorted(deviates, (0.05 - mean) / widths[:, 0])
        - np.searchsorted(deviates, (-0.05 - mean) / widths[:, 0])
    ) / len(deviates)
    near = np.where(std == 0, 1.0, near)
    below = np.searchsorted(deviates, (0.05 - mean) / widths[:, 0]) / len(deviates)
    below = np.where(std == 0, 1.0, below)
    ones, none = np.ones(len(mean), np.int64), np.zeros(len(mean), np.int64)
    total = counts.sum(axis=1)
    alive = np.arange(channels)[None] >= np.broadcast_to(dead, len(mean))[:, None]
    return Columns(
        first_step=steps,
        last_step=steps,
        calls=ones,
        counts=counts,
        nan=none + nan,
        neg_inf=none,
        pos_inf=none,
        near_zero=np.round(near * total).astype(np.int64),
        at_most_eps=np.round(below * total).astype(np.int64),
        mean=np.where(total > 0, mean, np.nan),
        m2=std**2 * total,
        positive=alive,
        active=alive & (std > 0)[:, None],
    )


def write_columns(writer: RunWriter, layer: int, columns: Columns, level: int = 0) -> None:
    chunks = columns.first_step >> (level + CHUNK_BITS)
    for chunk in np.unique(chunks).tolist():
        part = columns[np.flatnonzero(chunks == chunk)]
        writer.write_columns("activation", layer, level, chunk, encode(part))


def one_cycle(n_steps: int, lr: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    up = max(n_steps // 4, 1)
    t = np.arange(n_steps)
    rise = (1 - np.cos(np.pi * t / up)) / 2
    fall = (1 + np.cos(np.pi * (t - up) / max(n_steps - up, 1))) / 2
    height = np.where(t < up, rise, fall)
    return lr / 25 + (lr - lr / 25) * height, 0.95 - 0.1 * height


def step_series(loss: np.ndarray, lr: float = 0.1) -> StepSeries:
    n = len(loss)
    rate, momentum = one_cycle(n, lr)
    hypers = {"lr": rate[:, None], "momentum": momentum[:, None]}
    step = np.arange(n)
    return StepSeries(step, step // PER_EPOCH, loss, 0.035 * (step + 1), hypers)


def epochs_of(steps: StepSeries, accuracy: tuple[float, ...]) -> list[Epoch]:
    found = []
    for number, share in enumerate(accuracy):
        first, last = number * PER_EPOCH, (number + 1) * PER_EPOCH - 1
        train = float(np.nanmean(steps.loss[first : last + 1]))
        found.append(Epoch(number, first, last, train, train * 0.8, {"accuracy": share}, 4.2))
    return found


def digits(n: int, seed: int = 0) -> np.ndarray:
    """(n, 28, 28) strokes that look roughly like something written."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:28, 0:28]
    images = np.zeros((n, 28, 28))
    for image in images:
        t = np.linspace(0, 1, 60)
        a, b, c, d = rng.uniform(0.5, 2, 4) * np.pi
        px, py = 14 + 7 * np.sin(a * t + c), 14 + 8 * np.cos(b * t + d)
        near = ((x[..., None] - px) ** 2 + (y[..., None] - py) ** 2).min(axis=-1)
        image[:] = 255 * np.exp(-near / 2)
    return images.astype(np.uint8)


SUMMARY = {
    "rows": [
        {
            "name": name,
            "kind": info.kind,
            "input_shape": [1, 28, 28] if i == 0 else [CHANNELS[i - 1], 14, 14],
            "output_shape": [CHANNELS[i], 14, 14],
            "n_parameters": 208 if i == 0 else 1168 * (i + 1),
            "multiplications": 39_200 if i == 0 else 56_448,
            "receptive_field": [5 + 2 * i, 5 + 2 * i],
            "ratio": 0.5,
            "bias": i % 2 == 0,
            "problem": None,
        }
        for i, (name, info) in enumerate(zip(NAMES, layer_infos(), strict=True))
    ],
    "totals": {"n_parameters": 52_768, "multiplications": 490_784, "memory_mib": 1.25},
    "input_shape": [1, 28, 28],
    "notes": ["Multiplications count output positions; a bias adds none."],
}

META = {
    "convlens": "0.1.0",
    "python": "3.11.9",
    "torch": "2.15.0",
    "numpy": "2.4.6",
    "platform": "Linux-6.8-x86_64",
    "device": "cpu",
    "threads": 2,
    "seed": 0,
    "command": "convlens train mnist --epochs 5 --lr 0.1",
    "data": {
        "name": "mnist",
        "n_train": 60_000,
        "n_valid": 10_000,
        "input_shape": [1, 28, 28],
        "classes": list("0123456789"),
        "batch_size": 512,
    },
    "model": {
        "class": "Sequential",
        "text": "Sequential(\n  (0): Conv2d(1, 8)\n)",
        "n_parameters": 52_768,
    },
    "optimizer": {"class": "AdamW", "groups": [{"lr": 0.004, "momentum": 0.95, "eps": 1e-05}]},
    "schedule": {"class": "OneCycle", "lr_max": 0.1, "moms": [0.95, 0.85, 0.95]},
    "n_epochs": 5,
    "summary": SUMMARY,
}


def healthy_layers(n_steps: int) -> list[Columns]:
    rng = np.random.default_rng(1)
    t = np.arange(n_steps) / n_steps
    found = []
    for i, channels in enumerate(CHANNELS):
        growth = 1 + 1.5 * np.exp(-(((t - 0.25) / 0.2) ** 2)) * (0.5 + i / 9)
        std = growth * (0.6 if i % 2 else 0.9 + 0.1 * i) + rng.normal(0, 0.03, n_steps)
        mean = -0.3 * t * (i % 2 == 0) + rng.normal(0, 0.03, n_steps)
        found.append(normal_columns(mean, np.abs(std), 512 * channels * SIZES[i], channels))
    return found


def collapsed_layers(n_steps: int) -> list[Columns]:
    """Growth, collapse, start again; then nothing but zeros."""
    rng = np.random.default_rng(2)
    found = []
    for i, channels in enumerate(CHANNELS):
        std = np.full(n_steps, 0.05)
        for start, end, peak in ((0, 110, 6.0), (110, 190, 12.0), (190, 300, 20.0)):
            ramp = np.linspace(0, 1, end - start)
            rise = 0.04 + peak * (0.4 + i / 9) * ramp**3
            rise[-6:] *= np.linspace(1, 0.01, 6)
            std[start:end] = rise
        std[:300] *= np.exp(rng.normal(0, 0.08, 300))
        mean = -0.5 * std + rng.normal(0, 0.01, n_steps)
        dead = np.clip((np.arange(n_steps) - 60) // 30, 0, channels)
        std[330 + 5 * i :] = 0.0
        mean[std == 0] = 0.0
        found.append(normal_columns(mean, std, 512 * channels * SIZES[i], channels, dead))
    return found


def write_pictures(writer: RunWriter) -> None:
    labels = [str(i % 10) for i in range(32)]
    writer.write_picture(Picture("batch", -1, digits(32), labels))
    for epoch in range(2):
        captions = [f"{i}, predicted {9 - i} (99.{i} %), loss {6.1 - i / 3:.2f}" for i in range(10)]
        writer.write_picture(Picture("worst", epoch, digits(10, epoch + 1), captions))


def healthy_loss(n_steps: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    decay = 2.3 * np.exp(-np.arange(n_steps) / 40) + 0.04
    return decay * np.exp(rng.normal(0, 0.15, n_steps))


def collapsed_loss(n_steps: int) -> np.ndarray:
    loss = np.full(n_steps, 2.302) + np.random.default_rng(4).normal(0, 0.01, n_steps)
    for peak in (110, 190, 300):
        loss[peak - 12 : peak] += np.linspace(0, 25, 12)
    return loss


def write_run(
    base: Path,
    name: str,
    layers: list[Columns],
    loss: np.ndarray,
    accuracy: tuple[float, ...],
    infos: list[LayerInfo] | None = None,
) -> Run:
    """A finished run with everything in it."""
    writer = create_run(name, base)
    writer.write_meta(META)
    writer.write_layers(infos or layer_infos(), LAYOUT, 0.05)
    for i, columns in enumerate(layers):
        write_columns(writer, i, columns)
    steps = step_series(loss)
    writer.write_steps(steps)
    for epoch in epochs_of(steps, accuracy):
        writer.write_epoch(epoch)
    write_pictures(writer)
    writer.write_meta({"wall_s": 21.7})
    writer.close()
    return open_run(writer.path)


def write_healthy(base: Path) -> Run:
    n, accuracy = 5 * PER_EPOCH, (0.9761, 0.9834, 0.9877, 0.9905, 0.9912)
    return write_run(base, "mnist", healthy_layers(n), healthy_loss(n), accuracy)


def write_collapsed(base: Path) -> Run:
    n = 5 * PER_EPOCH
    return write_run(base, "collapsed", collapsed_layers(n), collapsed_loss(n), (0.1135,) * 5)


def losses_until(writer: RunWriter, n: int, loss: float = 1.0) -> None:
    """Have a run on the disk whose first ``n`` steps have this loss."""
    writer.write_steps(step_series(np.full(n, loss)))
    writer.flush(wait=True)
