"""Presets: the settings of a whole training."""

from dataclasses import fields

import pytest
import torch

import convlens as cl
from convlens.train.presets import Preset, preset_of


def data(channels: int, side: int) -> cl.DataLoaders:
    return cl.from_arrays(
        torch.rand(20, channels, side, side), [*range(10)] * 2, layout="NCHW", device="cpu"
    )


@pytest.mark.parametrize(
    ("name", "named", "channels", "side"),
    [("fast", "mnist", 1, 28), ("best", "fashion-mnist", 1, 28), ("small", "photos/", 3, 32)],
)
def test_the_network_of_a_preset_fits_its_data(name, named, channels, side):
    dls = data(channels, side)
    network = preset_of(name, named).network(dls)
    assert network(torch.zeros(2, channels, side, side)).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) <= 3_000_000


def test_initial_weights_follow_the_seed():
    preset, dls = preset_of("best", "mnist"), data(1, 28)
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(next(preset.network(dls).parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_preset_is_plain_values_that_cannot_be_changed():
    preset = preset_of("small", "cifar10")
    assert {field.name for field in fields(Preset)} >= {"model", "epochs", "lr", "augment", "ema"}
    with pytest.raises(AttributeError):
        preset.epochs = 1


@pytest.mark.parametrize(
    ("name", "named", "message"),
    [
        ("fats", "mnist", r"preset must be one of fast, best, small, got 'fats'. Closest: 'fast'."),
        ("best", "cifar10", r"preset 'best' is for mnist and fashion-mnist, not for 'cifar10'"),
    ],
)
def test_what_is_no_preset_is_refused(name, named, message):
    with pytest.raises(cl.ArgumentError, match=message):
        preset_of(name, named)


def test_data_without_classes_is_refused():
    batches = [(torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(
        cl.ArgumentError,
        match=r"is for classes with names, .*has classes, 0 names and images of shape None; name",
    ):
        preset_of("fast", "mnist").network(cl.DataLoaders(batches))
