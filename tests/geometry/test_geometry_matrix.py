"""The convolution as a matrix, against torch's convolutions with random arguments."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from convlens.errors import ArgumentError
from convlens.geometry import ConvMatrix, conv_matrix, kernels

FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@st.composite
def convolutions(draw):
    """Weight shape, image shape, and the arguments of a convolution whose kernel fits."""
    axes = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    groups = draw(st.integers(1, 3))
    n_in, n_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, sizes = each(1, 3), each(1, 7 if axes < 3 else 4)
    stride, padding, dilation = each(1, 3), each(0, 3), each(1, 2)
    for n, k, p, d in zip(sizes, kernel, padding, dilation, strict=True):
        assume(n + 2 * p >= d * (k - 1) + 1)
    return (n_out, n_in // groups, *kernel), (n_in, *sizes), stride, padding, dilation, groups


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(convolutions(), st.integers(0, 2**32 - 1))
def test_it_is_the_convolution_and_its_transpose_the_transposed_one(case, seed):
    weight_shape, image_shape, *arguments = case
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(weight_shape, dtype=torch.float64, generator=generator)
    image = torch.randn(image_shape, dtype=torch.float64, generator=generator)
    axes = len(image_shape) - 1
    stride, padding, dilation, groups = arguments
    real = FORWARD[axes](image[None], weight, None, stride, padding, dilation, groups)[0]
    m = conv_matrix(weight, image_shape, *arguments)
    assert m.output_shape == tuple(real.shape)
    assert torch.allclose((m @ image.flatten()).reshape(m.output_shape), real)
    y = torch.randn(real.shape, dtype=torch.float64, generator=generator)
    left = [  # what rounding down forgot of the size
        n - ((o - 1) * s - 2 * p + d * (k - 1) + 1)
        for n, o, s, p, d, k in zip(
            image_shape[1:], real.shape[1:], stride, padding, dilation, weight_shape[2:],
            strict=True,
        )
    ]  # fmt: skip
    if all(n < max(s, d) for n, s, d in zip(left, stride, dilation, strict=True)):
        back = TRANSPOSED[axes](y[None], weight, None, stride, padding, left, groups, dilation)[0]
        assert torch.allclose((m.T @ y.flatten()).reshape(image_shape), back)
    check_entries(m, weight)


def check_entries(m: ConvMatrix, weight: torch.Tensor) -> None:
    again = torch.sparse_coo_tensor(
        m.matrix.indices(), m.matrix.values(), m.matrix.shape, check_invariants=True
    ).coalesce()  # sorts, and adds what is there twice
    assert torch.equal(again.indices(), m.matrix.indices())
    assert torch.equal(m.matrix.values(), weight.flatten()[m.tied])
    assert m.weight_shape == tuple(weight.shape)


@pytest.mark.parametrize(("padding", "kernel"), [("same", (3, 4)), ("same", (2, 1)), ("valid", 3)])
def test_torchs_words_for_padding(padding, kernel):
    kernel = (kernel,) * 2 if isinstance(kernel, int) else kernel
    weight, image = torch.randn(2, 1, *kernel), torch.randn(1, 6, 7)
    m = conv_matrix(weight, (1, 6, 7), padding=padding, dilation=(1, 2))
    padded = image[None]
    if padding == "same":  # torch warns of the uneven one: it is done by hand here
        total = [(kernel[1] - 1) * 2, kernel[0] - 1]
        padded = F.pad(padded, [side for t in total for side in (t // 2, t - t // 2)])
    real = F.conv2d(padded, weight, dilation=(1, 2))[0]
    assert torch.allclose((m @ image.flatten()).reshape(m.output_shape), real, atol=1e-5)


def test_gradients_reach_the_tied_weights():
    weight, image = torch.randn(2, 3, 2, 2, requires_grad=True), torch.randn(3, 5, 5)
    (mine,) = torch.autograd.grad((conv_matrix(weight, (3, 5, 5)) @ image.flatten()).sum(), weight)
    (real,) = torch.autograd.grad(F.conv2d(image[None], weight).sum(), weight)
    assert torch.allclose(mine, real, atol=1e-5)


def test_several_images_are_columns_and_a_batch_axis_is_left_out():
    weight, images = torch.randn(2, 1, 3, 3), torch.randn(4, 1, 5, 5)
    m = conv_matrix(weight, images.shape)
    assert m.input_shape == (1, 5, 5)
    real = F.conv2d(images, weight).flatten(1)
    assert torch.allclose((m @ images.flatten(1).T).T, real, atol=1e-5)


def test_a_row_is_the_kernel_at_a_place():
    m = conv_matrix(kernels.top_edge()[None, None], (1, 3, 3), padding=1)
    assert (m.matrix.shape, len(m.tied)) == ((9, 9), 49)
    assert repr(m) == "ConvMatrix(9×9, 49 entries, weight 1×1×3×3)"
    middle = m.matrix.to_dense()[4].reshape(3, 3)
    assert torch.equal(middle, kernels.top_edge())
    corner = m.tied[: int((m.matrix.indices()[0] == 0).sum())]
    assert corner.tolist() == [4, 5, 7, 8]  # the others lie in the padding


def test_its_picture_has_a_colour_for_each_weight():
    ax = conv_matrix(kernels.top_edge()[None, None], (1, 4, 4)).plot()
    (image,) = ax.get_images()
    picture = image.get_array().reshape(-1, 3)
    assert len({tuple(c) for c in picture.tolist()}) == 10  # nine weights, and white
    assert [t.get_text() for t in ax.texts].count("−1") == 4 * 3
    assert "36 entries, 9 weights" in ax.get_title()
    assert ax.get_xlabel() == "pixels of the image, 1×4×4"
    plt.close("all")
    ax = conv_matrix(torch.randn(2, 2, 3, 3), (2, 8, 8)).plot()
    assert not ax.texts  # no room
    plt.close("all")
    with pytest.raises(ArgumentError, match="a picture shows at most 400 rows and columns"):
        conv_matrix(torch.randn(2, 2, 3, 3), (2, 20, 20)).plot()


W = torch.zeros(4, 2, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(3, 3), (1, 5, 5)), "weight has shape (3, 3); expected (C_out, C_in / groups"),
        ((W, (2, 5)), "input_shape must be (C, H, W) in whole numbers of at least 1, for a weight"),
        ((W, (2, 0, 5)), "(4, 2, 3, 3), got (2, 0, 5)."),
        (
            (W, (3, 5, 5)),
            "input_shape (C, H, W) = (3, 5, 5) does not fit: weight (C_out, C_in / groups, …) = "
            "(4, 2, 3, 3) with groups = 1 expects C = 2.",
        ),
        ((W, (6, 5, 5), 1, 0, 1, 3), "groups=3 must divide C_out = 4"),
        ((W, (2, 5, 5), 0), "stride=0 must be a whole number of at least 1, or 2 of them"),
        ((W, (2, 5, 5), (1, 1, 1)), "stride=(1, 1, 1) must be a whole number"),
        ((W, (2, 5, 5), 1, -1), "padding=-1 must be a whole number of at least 0"),
        ((W, (2, 5, 5), 1, "full"), "padding='full' is not known; give pixels, or one of 'valid'"),
        ((W, (2, 5, 5), 2, "same"), "padding='same' with stride=2 is not defined in torch"),
        ((W, (2, 5, 5), 1, 0, 3), "kernel_size=3 with dilation=3 spans 7 pixels, but size=5"),
        ((W, (2, 3000, 3000)), "would give a matrix of 647,136,288 entries; give a smaller image"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(arguments, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        conv_matrix(*arguments)


def test_another_image_is_refused():
    m = conv_matrix(W, (2, 5, 5))
    with pytest.raises(
        ArgumentError, match=r"takes a flattened image \(C, H, W\) = \(2, 5, 5\) of"
    ):
        m @ torch.zeros(1, 2, 5, 5)
