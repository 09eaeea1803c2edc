"""Watching a training on a CUDA device: no wait, and the columns of the same model on the CPU."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

STEPS = 150  # more than two halves of a ring


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10),
    )  # fmt: skip


def batches(device):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, 16, 1, 14, 14, generator=generator).to(device)
    return x, (torch.arange(16) % 10).to(device)


def train(model, x, y, called=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for images in x:
        F.cross_entropy((called or model)(images), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def check(found, expected):
    """Convolutions round differently: 1 value of 100 in a neighbouring bucket, moments to 1 %."""
    for name in expected:
        a, b = found[name], expected[name]
        np.testing.assert_array_equal(a.first_step, b.first_step)
        np.testing.assert_array_equal(a.columns.calls, b.columns.calls)
        np.testing.assert_array_equal(a.n, b.n)
        np.testing.assert_allclose(a.mean, b.mean, atol=0.01 * b.std.max())
        np.testing.assert_allclose(a.std, b.std, rtol=0.01)
        assert np.abs(a.counts - b.counts).sum() / 2 <= 0.01 * b.counts.sum()


def on_the_cpu(model):
    model = copy.deepcopy(model)
    with cl.watch(model) as stats:
        train(model, *batches("cpu"))
    return stats


@pytest.fixture
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_a_training_never_waits(exact_products):
    model = net()
    expected = on_the_cpu(model)
    model, (x, y) = model.cuda(), batches("cuda")
    with cl.watch(model) as stats:
        torch.cuda.set_sync_debug_mode("error")
        try:
            train(model, x, y)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    check(stats, expected)


def test_captured_graphs_count_in_the_current_row(exact_products):
    model = net()
    expected = on_the_cpu(model)
    model, (x, y) = model.cuda(), batches("cuda")
    with cl.watch(model) as stats:
        train(model, x, y, torch.compile(model, mode="reduce-overhead"))
    check(stats, expected)
