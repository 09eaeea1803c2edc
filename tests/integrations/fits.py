"""A problem that is learned in a few steps, and what is to be recorded of it."""

import numpy as np
import torch
from torch import nn

import convlens as cl


def problem(n=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


def check_run(watch, losses, rates, epochs, metric, *, target=True):
    """The run has the losses, rates, metrics and counts of the training, and so has the memory."""
    read = cl.open_run(watch.run_path)
    assert read.meta["status"] == "finished"
    for record in (read.record(), watch.stats.record()):
        np.testing.assert_allclose(record.steps.loss, losses, rtol=1e-5)
        assert record.steps.step.tolist() == list(range(len(losses)))
        np.testing.assert_allclose(record.steps.hypers["lr"][:, 0], rates, rtol=1e-6)
        assert len(record.epochs) == epochs
        for epoch in record.epochs:
            assert epoch.valid_loss is not None
            assert metric in epoch.metrics
        loop = record.loop
        assert loop["training_forwards"] == loop["backwards"] == loop["optimizer_steps"]
        assert loop["optimizer_steps"] == len(losses)
        assert loop["steps_without_reset"] == 0
        assert loop["evaluation_forwards"] + loop["validation_forwards"] > 0
        assert loop["training_mode_without_gradients"] == 0
        assert loop["output_gradient"]["cross_entropy"] == 1
        assert not target or loop["target"]["max"] == 1
    assert watch.stats.notes == ()
    kinds = {f.kind for f in cl.diagnose(watch) if f.severity == "problem"}
    assert kinds == set()


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
