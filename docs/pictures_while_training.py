"""The pictures of docs/while-training.md, from a run of `make demo`; see docs/pictures.py."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from picture_files import save

import convlens as cl
from convlens.runs import Run

FOLDER = "while-training"


def draw_run(run: Run) -> None:
    """Curves and layers of the demo."""
    stats = run.activation_stats
    save(run.recorder.plot_loss(), f"{FOLDER}/loss")
    save(run.recorder.plot_sched(), f"{FOLDER}/sched")
    save(stats.plot_layer_stats(-2), f"{FOLDER}/layer-stats")
    save(stats.color_dim(-2), f"{FOLDER}/color-dim")
    save(stats.plot_layer_stats()[0], f"{FOLDER}/all-layer-stats")
    save(stats.color_dim(), f"{FOLDER}/all-color-dim")
    save(draw_normalization(run, "0.2"), f"{FOLDER}/normalization")
    save(run.plot_confusion_matrix(), f"{FOLDER}/confusion")
    save(run.plot_top_losses(8), f"{FOLDER}/top-losses")


def draw_normalization(run: Run, layer: str) -> Axes:
    """The variance of each batch beside the running one that validation uses."""
    history = run.activation_stats[layer]
    _, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    ax.plot(history.middle_step, history.batch_var, lw=1, label="of the batch (training)")
    ax.plot(history.middle_step, history.running_var, lw=2, label="running (validation)")
    ax.set_title(f"{layer} (BatchNorm2d): variance of its input, mean over channels")
    ax.set_xlabel("batch (optimizer step)")
    ax.legend()
    return ax


def draw_batch() -> None:
    """The next training images."""
    save(cl.mnist().show_batch(16), f"{FOLDER}/batch")


def train_badly(batch_size: int) -> cl.ActivationStats:
    """The chapter's bad training: 0.06 from the start, without batch normalization."""
    torch.manual_seed(0)
    learn = cl.Learner(
        cl.mnist(batch_size=batch_size),
        cl.simple_cnn(1, 10),
        metrics=[cl.accuracy],
        callbacks=[cl.ActivationStats()],
        run=None,
        progress=False,
        seed=0,
    )
    learn.fit(1, lr=0.06)
    accuracy = learn.recorder.epochs[-1].metrics["accuracy"]
    print(f"0.06, batch {batch_size}: {accuracy:.2%}")  # noqa: T201 — what the page quotes
    return learn.activation_stats


def draw(run: Run) -> None:
    """All of them."""
    draw_batch()
    draw_run(run)
    save(train_badly(64).color_dim(), f"{FOLDER}/dead")
    save(train_badly(512).color_dim(layers=[2, 3, 4]), f"{FOLDER}/cycles")
