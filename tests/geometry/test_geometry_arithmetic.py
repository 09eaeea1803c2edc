"""Sizes, padding, positions and kernels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn.functional import conv1d, conv2d, pad

from convlens.errors import ArgumentError
from convlens.geometry import (
    explain,
    grid_positions,
    kernels,
    output_size,
    positions,
    same_padding,
    uncovered,
)


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
        ({"size": 0, "kernel_size": 3}, "size must be a whole number of at least 1, got 0"),
        ({"size": 5, "kernel_size": 1.5}, r"kernel_size must be .*, got 1\.5"),
        ({"size": 5, "kernel_size": 3, "stride": 0}, "stride must be .*, got 0"),
        ({"size": 5, "kernel_size": 3, "dilation": True}, "dilation must be .*, got True"),
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


def test_every_result_comes_with_its_formula_and_numbers():
    axis = explain(8, 3, stride=2)
    assert axis.output_size.value == output_size(8, 3, 2) == 3
    assert axis.same_padding.value == same_padding(8, 3, 2) == (0, 1)
    assert axis.positions.value == positions(8, 3, 2)
    assert axis.uncovered.value == uncovered(8, 3, 2) == [7]
    assert axis.output_size.numbers == "floor((8 + 0 + 0 − 1·(3 − 1) − 1) / 2) + 1"
    assert axis.same_padding.numbers == "max(0, (4 − 1)·2 + 1·(3 − 1) + 1 − 8), halved"
    assert axis.same_padding.text == "0 before, 1 after"
    assert axis.positions.numbers == "place·2 − 0 + k·1, place = 0 … 2, k = 0 … 2"
    assert axis.positions.text == "0 … 2; 2 … 4; 4 … 6"
    lines = str(axis).splitlines()
    assert lines[:3] == [
        "output size = "
        "floor((size + before + after − dilation·(kernel_size − 1) − 1) / stride) + 1",
        "  = floor((8 + 0 + 0 − 1·(3 − 1) − 1) / 2) + 1",
        "  = 3",
    ]
    assert lines[-1] == "  = 7"
    assert explain(28, 5, 2, 2).uncovered.text == "none"
    assert explain(28, 3, padding=(1, 0)).positions.text == (
        "-1 … 1; 0 … 2; 1 … 3; 2 … 4; …; 24 … 26; 25 … 27"
    )
    with pytest.raises(ArgumentError, match="size must be"):
        explain(0, 3)


def test_the_formulas_numbers_are_the_results():
    """What stands in the text is evaluated, so that no formula can say something else."""
    for size, kernel, stride, padding, dilation in itertools.product(
        (5, 8, 28), (1, 2, 3), (1, 2, 3), (0, (1, 2)), (1, 2)
    ):
        axis = explain(size, kernel, stride, padding, dilation)
        text = axis.output_size.numbers.replace("−", "-").replace("·", "*")
        assert eval(text, {"floor": math.floor}) == axis.output_size.value
        total = axis.same_padding.numbers.removesuffix(", halved")
        total = eval(total.replace("−", "-").replace("·", "*"), {"max": max})
        assert axis.same_padding.value == (total // 2, total - total // 2)


def test_grid_positions_are_the_nested_loops():
    rows, columns = positions(5, 2, 2, 1), positions(4, 2, 2, 1)
    assert list(grid_positions((5, 4), 2, 2, 1)) == [(r, c) for r in rows for c in columns]
    assert len(list(grid_positions((3, 4, 5), 3))) == 1 * 2 * 3
