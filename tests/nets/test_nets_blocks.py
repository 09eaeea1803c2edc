"""The chapter's block and network."""

import pytest
import torch
from torch import nn

import convlens as cl
from convlens import nets


def kinds(module):
    return [type(m).__name__ for m in module]


def test_the_block_in_the_chapters_order_and_the_usual_one():
    assert kinds(nets.conv(1, 8)) == ["Conv2d", "ReLU"]
    assert kinds(nets.conv(1, 8, activation=False)) == ["Conv2d"]
    assert kinds(nets.conv(1, 8, norm="batch")) == ["Conv2d", "ReLU", "BatchNorm2d"]
    usual = nets.conv(1, 8, norm="batch", order="conv-norm-act")
    assert kinds(usual) == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds(nets.conv(1, 8, norm="batch", activation=False)) == ["Conv2d", "BatchNorm2d"]


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 28])
def test_the_grid_shrinks_by_the_stride_rounded_up(kernel_size, stride, size):
    out = nets.conv(3, 4, kernel_size, stride)(torch.zeros(2, 3, size, size))
    expected = -(-size // stride)
    assert out.shape == (2, 4, expected, expected)


def test_the_chapters_network_step_by_step():
    model = cl.simple_cnn(1, 10, norm="batch")
    shapes = []
    for module in model:
        module.register_forward_hook(lambda m, a, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(64, 1, 28, 28)).shape == (64, 10)
    assert shapes == [(8, 14, 14), (16, 7, 7), (32, 4, 4), (64, 2, 2), (10, 1, 1), (10,)]
    assert [kinds(block) for block in model[:-1]] == [
        *[["Conv2d", "ReLU", "BatchNorm2d"]] * 4, ["Conv2d"]
    ]  # fmt: skip
    assert [block[0].kernel_size[0] for block in model[:-1]] == [5, 3, 3, 3, 3]
    assert isinstance(model[-1], nn.Flatten)
    assert sum(p.numel() for p in model[1][0].parameters()) == 1168


def test_a_batch_of_one_keeps_its_batch_axis():
    assert cl.simple_cnn(1, 10)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_other_widths_and_channels():
    model = cl.simple_cnn(3, 4, widths=(6, 12))
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nets.conv(0, 8), r"n_in=0 cannot be a size; give a whole number of at least 1"),
        (lambda: nets.conv(1, 8, 2.5), r"kernel_size=2.5 cannot be a size"),
        (lambda: nets.conv(1, 8, stride=0), r"stride=0 cannot be a size"),
        (lambda: nets.conv(1, 8, norm="layer"), r"norm='layer' is not known; use one of None, 'ba"),
        (lambda: nets.conv(1, 8, order="act"), r"order='act' is not known; use one of 'conv-act-n"),
        (lambda: cl.simple_cnn(1, 0), r"n_classes=0 cannot be a size"),
        (lambda: cl.simple_cnn(1, 10, widths=()), r"widths=\(\)"),
        (lambda: cl.simple_cnn(1, 10, widths=(8, 0)), r"widths"),
        (lambda: cl.simple_cnn(1, 10, norm="none"), r"norm='none' is not known"),
    ],
)
def test_arguments_that_cannot_work(make, sentence):
    with pytest.raises(cl.ArgumentError, match=sentence):
        make()
