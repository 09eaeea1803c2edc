"""The chapter's block and network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convlens.errors import ArgumentError
from convlens.models import conv, simple_cnn


def kinds(block: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in block]


def test_the_block_is_convolution_relu_batchnorm():
    assert kinds(conv(3, 8, norm="batch")) == ["Conv2d", "ReLU", "BatchNorm2d"]
    usual = conv(3, 8, norm="batch", order="conv-norm-act")
    assert kinds(usual) == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds(conv(3, 8)) == ["Conv2d", "ReLU"]
    assert kinds(conv(3, 8, activation=False)) == ["Conv2d"]
    assert kinds(conv(3, 8, activation=False, norm="batch")) == ["Conv2d", "BatchNorm2d"]


def test_the_convolution_halves_and_has_a_bias():
    layer = conv(3, 8, kernel_size=5, norm="batch")[0]
    assert isinstance(layer, nn.Conv2d)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((5, 5), (2, 2), (2, 2))
    assert layer.bias is not None
    assert conv(3, 8)(torch.zeros(2, 3, 9, 8)).shape == (2, 8, 5, 4)
    assert conv(3, 8, stride=1)(torch.zeros(2, 3, 9, 8)).shape == (2, 8, 9, 8)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_simple_cnn_goes_to_one_pixel(norm):
    model = simple_cnn(1, 10, norm=norm)
    sizes = []
    x = torch.rand(2, 1, 28, 28)
    for layer in model:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(8, 14, 14), (16, 7, 7), (32, 4, 4), (64, 2, 2), (10, 1, 1), (10,)]
    assert kinds(model)[-1] == "Flatten"
    assert kinds(model[4]) == (["Conv2d", "BatchNorm2d"] if norm else ["Conv2d"])
    assert [block[0].kernel_size[0] for block in model[:5]] == [5, 3, 3, 3, 3]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == ([8, 16, 32, 64, 10] if norm else [])


def test_widths_and_channels():
    model = simple_cnn(3, 7, widths=[4, 6])
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 7 * 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: conv(0, 8), "n_in must be a whole number of at least 1, got 0"),
        (lambda: conv(1, 8, kernel_size=True), "kernel_size must be a whole number .* got True"),
        (lambda: conv(1, 8, stride=1.5), r"stride must be a whole number .* got 1\.5"),
        (lambda: conv(1, 8, norm="group"), "norm must be one of None, 'batch', got 'group'"),
        (
            lambda: conv(1, 8, order="act-conv"),
            "order must be one of 'conv-act-norm', 'conv-norm-act', got 'act-conv'",
        ),
        (lambda: simple_cnn(1, 0), "n_classes must be a whole number of at least 1, got 0"),
        (lambda: simple_cnn(1, 10, norm="layer"), "norm must be one of"),
        (lambda: simple_cnn(1, 10, widths=()), "widths must have the output channels of at least"),
        (lambda: simple_cnn(1, 10, widths=(8, 0)), r"widths\[1\] must be a whole number"),
    ],
)
def test_arguments_that_cannot_work_get_a_sentence(make, words: str):
    with pytest.raises(ArgumentError, match=words):
        make()
