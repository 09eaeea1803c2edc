"""A kernel at one place and everywhere, against torch's convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from convlens.errors import ArgumentError
from convlens.geometry import kernels
from convlens.geometry.kernels import apply, apply_at


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (1, 1), (5, 3)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_one_place_is_what_a_convolution_gives_there(shape, channels):
    image, kernel = torch.randn(channels, 7, 9), torch.randn(channels, *shape)
    out = conv2d(image[None], kernel[None], torch.tensor([0.5]))[0, 0]
    assert torch.allclose(apply(image, kernel, bias=0.5), out, atol=1e-6)
    down, across = shape[0] // 2, shape[1] // 2
    for row in range(out.shape[0]):
        for col in range(out.shape[1]):
            place = apply_at(image, kernel, row + down, col + across, bias=0.5)
            assert place.total == pytest.approx(out[row, col].item(), abs=1e-5)
    assert torch.equal(place.products, place.patch * place.kernel)
    assert torch.allclose(place.channel_sums, place.products.sum((1, 2)))
    assert place.patch.shape == (channels, *shape)


def test_stride_padding_and_one_kernel_for_every_channel():
    image, kernel = torch.randn(3, 8, 8), torch.randn(3, 3)
    out = conv2d(image[None], kernel.expand(1, 3, 3, 3), stride=2, padding=1)[0, 0]
    assert torch.allclose(apply(image, kernel, stride=2, padding=1), out, atol=1e-6)


def test_whole_numbers_and_flat_images_do():
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
    assert apply(image, kernels.top_edge()).tolist() == [[24.0, 24.0]]
    assert apply_at(image, kernels.top_edge(), 1, 2).total == 24


def test_colour_is_written_out_channel_by_channel():
    image = torch.stack([torch.full((1, 2), value) for value in (1.0, 0.5, 0.25)])
    kernel = torch.tensor([[[1.0, -2.0]], [[0.0, 1.0]], [[4.0, 4.0]]])
    text = str(apply_at(image, kernel, 0, 1, bias=-1.0))
    assert text == (
        "red:\n    1·1 + 1·(−2)\n  = −1\n"
        "green:\n    0.5·0 + 0.5·1\n  = 0.5\n"
        "blue:\n    0.25·4 + 0.25·4\n  = 2\n"
        "sum: (−1) + 0.5 + 2 + bias (−1) = 0.5"
    )
    assert repr(apply_at(image, kernel, 0, 1)) == "Products(kernel 3×1×2, total 1.5)"
    two = str(apply_at(image[:2], kernel[:2], 0, 1))
    assert two.startswith("0:\n")
    assert two.endswith("sum: (−1) + 0.5 = −0.5")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: apply_at(torch.zeros(5, 6), torch.zeros(3, 3), 0, 2),
            "row=0 lets the 3×3 kernel leave the 5×6 image; give a row from 1 to 3, or pad",
        ),
        (
            lambda: apply_at(torch.zeros(5, 6), torch.zeros(3, 3), 2, 5),
            "col=5 lets the 3×3 kernel leave the 5×6 image; give a col from 1 to 4, or pad",
        ),
        (
            lambda: apply_at(torch.zeros(2, 2), torch.zeros(3, 3), 1, 1),
            "the kernel is larger than the image; pad the image",
        ),
        (lambda: apply(torch.zeros(2, 2), torch.zeros(3, 3)), "kernel_size=3 with dilation=1"),
        (
            lambda: apply(torch.zeros(1, 2, 2, 2), torch.zeros(1, 1)),
            r"image has shape \(1, 2, 2, 2\); expected \(C, H, W\) or \(H, W\)",
        ),
        (
            lambda: apply(torch.zeros(2, 2), torch.zeros(1)),
            r"kernel has shape \(1,\); expected \(kH, kW\) or",
        ),
        (
            lambda: apply(torch.zeros(3, 4, 4), torch.zeros(2, 3, 3)),
            r"kernel \(C, kH, kW\) = \(2, 3, 3\) does not fit image \(C, H, W\) = \(3, 4, 4\)",
        ),
    ],
)
def test_what_does_not_fit_gets_a_sentence(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()
