"""Sizes, padding, positions and kernels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import conv1d, conv2d, pad

from convlens.errors import ArgumentError
from convlens.geometry import kernels, output_size, positions, same_padding, uncovered


def test_output_size_is_torchs():
    cases = itertools.product((1, 5, 28), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2))
    for size, kernel, stride, padding, dilation in cases:
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            continue
        x, w = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel)
        real = conv1d(x, w, stride=stride, padding=padding, dilation=dilation).shape[2]
        assert output_size(size, kernel, stride, padding, dilation) == real
    assert [output_size(n, 3, 2, 1) for n in (28, 14, 7, 4, 2)] == [14, 7, 4, 2, 1]
    assert output_size(5, 4, padding=(1, 2)) == 5


def test_same_padding_gives_size_over_stride():
    for size, kernel, stride, dilation in itertools.product(
        range(1, 12), range(1, 6), (1, 2, 3), (1, 2)
    ):
        before, after = same_padding(size, kernel, stride, dilation)
        assert output_size(size, kernel, stride, (before, after), dilation) == -(-size // stride)
        assert after - before in (0, 1)
    assert same_padding(28, 5) == (2, 2)
    assert same_padding(28, 4) == (1, 2)
    assert same_padding(28, 3, stride=2) == (0, 1)


def test_positions_are_what_a_convolution_reads():
    x = torch.arange(1.0, 10).reshape(1, 1, -1)
    read = positions(9, 3, stride=2, padding=(1, 2), dilation=2)
    padded = pad(x, (1, 2))
    real = conv1d(padded, torch.ones(1, 1, 3), stride=2, dilation=2).flatten()
    mine = [sum(pixel + 1 for pixel in pixels if 0 <= pixel < 9) for pixels in read]
    assert real.tolist() == mine


def test_uncovered_pixels():
    assert uncovered(8, 3, stride=2) == [7]
    assert uncovered(7, 3, stride=2) == []
    assert uncovered(6, 1, stride=3) == [1, 2, 4, 5]
    assert uncovered(28, 3, stride=2, padding=1) == []
    assert uncovered(5, 2, dilation=3) == [2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 0, "kernel_size": 3}, "size=0 must be a whole number of at least 1"),
        ({"size": 5, "kernel_size": 1.5}, r"kernel_size=1\.5 must be"),
        ({"size": 5, "kernel_size": 3, "stride": 0}, "stride=0 must be"),
        ({"size": 5, "kernel_size": 3, "dilation": True}, "dilation=True must be"),
        ({"size": 5, "kernel_size": 3, "padding": -1}, "padding=-1 must be a whole number from 0"),
        ({"size": 5, "kernel_size": 3, "padding": (1, 2, 3)}, r"padding=\(1, 2, 3\) must be"),
        (
            {"size": 2, "kernel_size": 3, "dilation": 2},
            "kernel_size=3 with dilation=2 spans 5 pixels, but size=2 with padding=0 has 2",
        ),
    ],
)
def test_arguments_that_cannot_work_get_a_sentence(arguments: dict, words: str):
    with pytest.raises(ArgumentError, match=words):
        output_size(**arguments)


def test_the_chapters_kernels():
    assert kernels.top_edge().tolist() == [[-1, -1, -1], [0, 0, 0], [1, 1, 1]]
    assert torch.equal(kernels.bottom_edge(), -kernels.top_edge())
    assert torch.equal(kernels.left_edge(), kernels.top_edge().T)
    assert torch.equal(kernels.right_edge(), -kernels.left_edge())
    assert torch.equal(kernels.sobel_columns(), kernels.sobel_rows().T)
    assert torch.equal(kernels.antidiagonal_edge(), kernels.diagonal_edge().flip(1))


def test_edges_give_zero_on_even_areas_and_the_most_on_their_edge():
    even, step = torch.ones(3, 3), torch.tensor([[0.0] * 3, [0] * 3, [1] * 3])
    stay = {"blur", "sharpen"}
    for name, kernel in kernels.classic().items():
        assert kernel.dtype == torch.float32
        assert kernel.shape == (3, 3)
        out = conv2d(even[None, None], kernel[None, None]).item()
        assert out == pytest.approx(1.0 if name in stay else 0.0, abs=1e-6), name
    edges = [kernels.top_edge(), kernels.bottom_edge(), kernels.left_edge(), kernels.right_edge()]
    assert [(step * kernel).sum().item() for kernel in edges] == [3, -3, 0, 0]
    lower = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 1]])
    assert (lower * kernels.diagonal_edge()).sum() == 3
    assert (lower * kernels.antidiagonal_edge()).sum() == 0


def test_classic_kernels_cannot_be_changed_for_others():
    every = kernels.classic()
    every["blur"].zero_()
    assert kernels.blur().sum().item() == pytest.approx(1)
    with pytest.raises(TypeError):
        every["blur"] = torch.zeros(3, 3)  # type: ignore[index]
    assert len(every) == 11
