"""Training-like records made from arrays with NumPy, for the tests of the plots."""

from __future__ import annotations

import numpy as np

from convlens.core.buckets import BucketLayout
from convlens.core.columns import Columns, concatenate, empty_columns
from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.records import Epoch
from convlens.core.steps import StepSeries

LAYOUT = BucketLayout()
EPS = 0.05
N_CHANNELS = 4


def sketch(values, step, last_step=None):
    """One column of the sketch of ``values``, which cover the steps to ``last_step``."""
    x = np.asarray(values, np.float32).ravel()
    finite = x[np.isfinite(x)].astype(np.float64)
    # A positive bucket includes its lower edge, a negative one its upper edge.
    edges = LAYOUT.edges
    right = np.searchsorted(edges, finite, side="right") - 1
    left = np.searchsorted(edges, finite, side="left") - 1
    index = np.where(finite > 0, right, np.where(finite < 0, left, LAYOUT.zero))
    counts = np.bincount(index, minlength=LAYOUT.size)
    channels = x.reshape(N_CHANNELS, -1)
    last_step = step if last_step is None else last_step
    one = {
        "first_step": step,
        "last_step": last_step,
        "calls": last_step - step + 1,
        "nan": np.isnan(x).sum(),
        "neg_inf": np.isneginf(x).sum(),
        "pos_inf": np.isposinf(x).sum(),
        "near_zero": (np.abs(x) <= EPS).sum(),
        "at_most_eps": (x <= EPS).sum(),
    }
    return Columns(
        **{name: np.array([value], np.int64) for name, value in one.items()},
        counts=counts[None],
        mean=np.array([finite.mean() if len(finite) else np.nan]),
        m2=np.array([finite.var() * len(finite)]) if len(finite) else np.zeros(1),
        positive=(channels > 0).any(1)[None],
        active=(np.abs(channels) > EPS).any(1)[None],
    )


def history(columns, name="1.0", feeds_relu=True):
    parts = columns or [empty_columns(LAYOUT.size, N_CHANNELS)]
    layer = LayerInfo(1, name, "Conv2d", feeds_relu)
    return LayerHistory(layer, concatenate(parts), LAYOUT, EPS)


def healthy(n_steps, n_values=4000, seed=0):
    """A layer whose values spread and settle."""
    rng = np.random.default_rng(seed)
    columns = []
    for step in range(n_steps):
        t = step / max(n_steps - 1, 1)
        centre, width = -0.6 * t, 0.3 + 1.2 * t**0.5
        columns.append(sketch(rng.normal(centre, width, n_values), step))
    return history(columns)


def cycles(n_steps, n_values=4000, seed=0):
    """The chapter's bad training: growth, collapse, start again."""
    rng = np.random.default_rng(seed)
    width, columns = 0.1, []
    for step in range(n_steps):
        width = 0.08 if width > 9 else width * 1.06
        columns.append(sketch(rng.normal(-0.2 * width, width, n_values), step))
    return history(columns)


def epochs_of(n_epochs, length, valid=True):
    return [
        Epoch(
            epoch=e,
            first_step=e * length,
            last_step=(e + 1) * length - 1,
            train_loss=2.0 * 0.6**e,
            valid_loss=1.8 * 0.55**e if valid else None,
            metrics={"accuracy": 1 - 0.4**e},
            wall_s=4.0,
        )
        for e in range(n_epochs)
    ]


def training(n_steps, length=118, seed=0, groups=1):
    """Loss and 1cycle hyperparameters by step."""
    rng = np.random.default_rng(seed)
    step = np.arange(n_steps, dtype=np.int64)
    t = step / max(n_steps - 1, 1)
    loss = 2.3 * np.exp(-5 * t) + 0.08 + 0.15 * np.exp(-3 * t) * rng.random(n_steps)
    rise = np.clip(t / 0.25, 0, 1)
    fall = np.clip((t - 0.25) / 0.75, 0, 1)
    shape = np.where(t < 0.25, (1 - np.cos(np.pi * rise)) / 2, (1 + np.cos(np.pi * fall)) / 2)
    scale = 0.1 ** np.arange(groups)
    return StepSeries(
        step=step,
        epoch=step // length,
        loss=loss,
        wall_s=step * 0.03,
        hypers={
            "lr": (0.004 + 0.096 * shape)[:, None] * scale,
            "momentum": np.repeat((0.95 - 0.1 * shape)[:, None], groups, axis=1),
        },
    )
