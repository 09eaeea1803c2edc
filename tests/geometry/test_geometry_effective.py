"""The effective receptive field: where gradients really go, before and after training."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convlens as cl
from convlens.errors import ArgumentError, LayerNotFoundError
from convlens.geometry import effective_receptive_field


def convolutions(n: int, width: int = 8) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(1 if i == 0 else width, width, 3) for i in range(n)))


def test_one_convolution_by_hand():
    conv = nn.Conv2d(2, 1, 3)
    found = effective_receptive_field(conv, torch.randn(5, 2, 9, 9), "", unit=(3, 2))
    expected = conv.weight.detach().abs().sum((0, 1)).double().numpy()
    at = found.share[3:6, 2:5]
    assert np.allclose(at, expected / expected.sum())
    assert found.share.sum() == pytest.approx(1)
    assert np.count_nonzero(found.share) == 9
    assert (found.center, found.units, found.theoretical) == ((4.0, 3.0), ((3, 2),), 1.5)
    ring = 1 - expected[1, 1] / expected.sum()
    half = 0.5 + (0.5 - (1 - ring)) / ring  # the ring's share lies evenly over its width
    assert found.radius[50] == pytest.approx(half)
    assert 0.5 < found.radius[50] < found.radius[90] < found.radius[99] < 1.5


def test_units_are_laid_with_their_centres_upon_each_other():
    conv = nn.Conv2d(1, 3, 3, stride=2, padding=1)
    images = torch.randn(2, 1, 12, 12)
    one = effective_receptive_field(conv, images, "", unit=(3, 3))
    many = effective_receptive_field(conv, images, "")
    assert len(many.units) == 9
    assert {row for row, _ in many.units} == {2, 3, 4}

    def around(found):
        row, col = (int(c) for c in found.center)
        return found.share[row - 1 : row + 2, col - 1 : col + 2]

    assert np.allclose(around(one), around(many))  # the gradient of a convolution is everywhere one
    assert one.radius == pytest.approx(many.radius)


def test_images_are_averaged_over():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
    images = torch.randn(6, 1, 5, 5)
    total = np.zeros((5, 5))
    for image in images:
        x = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).sum(), x)
        total += gradient[0, 0].abs().double().numpy()
    found = effective_receptive_field(model, images, "2", unit=(0, 0))
    assert np.allclose(found.share, total / total.sum())


def test_a_random_networks_field_is_inside_the_theoretical_and_smaller():
    torch.manual_seed(0)
    model = convolutions(8)
    found = effective_receptive_field(model, torch.randn(4, 1, 40, 40), "7")
    assert found.theoretical == 8.5
    lines = [np.abs(np.arange(n) - c) for n, c in zip(found.share.shape, found.center, strict=True)]
    distance = np.maximum.outer(*lines)
    assert (found.share[distance > found.theoretical] == 0).all()
    assert (found.share[distance < found.theoretical] > 0).all()
    assert found.radius[50] < 0.5 * found.theoretical
    assert found.radius[90] < 0.85 * found.theoretical
    assert found.radius[99] < found.theoretical


def test_it_grows_more_slowly_than_the_theoretical_field():
    """Luo et al., 2016: with random weights as the root of the depth."""
    torch.manual_seed(0)
    model = convolutions(12)
    images = torch.randn(4, 1, 48, 48)
    shares = []
    for depth in (3, 6, 12):
        found = effective_receptive_field(model, images, str(depth - 1))
        shares.append(found.radius[90] / found.theoretical)
    assert shares[0] > shares[1] > shares[2]


def test_training_on_mnist_makes_it_grow():
    dls = cl.mnist(batch_size=256)
    images = next(iter(dls.valid))[0][:32]
    torch.manual_seed(0)
    blocks = [cl.models.conv(1, 8, 3, norm="batch")]
    blocks += [cl.models.conv(8, 8, 3, stride=1, norm="batch") for _ in range(5)]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    before = effective_receptive_field(model, images, "5.0")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step, (x, y) in enumerate(dls.train):
        if step == 60:
            break
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.6  # it learns
    after = effective_receptive_field(model, images, "5.0")
    assert after.theoretical == before.theoretical == 11.5
    for share in (50, 90):
        assert before.radius[share] < after.radius[share] < after.theoretical


def test_lines_and_volumes_too():
    line = effective_receptive_field(nn.Conv1d(1, 2, 5), torch.randn(2, 1, 20), "")
    assert (line.share.ndim, line.theoretical, len(line.units)) == (1, 2.5, 3)
    volume = effective_receptive_field(nn.Conv3d(1, 2, 3), torch.randn(2, 1, 7, 7, 7), "")
    assert (volume.share.ndim, volume.theoretical, len(volume.units)) == (3, 1.5, 27)
    with pytest.raises(ArgumentError, match="share has 1 axes; only two can be drawn"):
        line.plot()


def test_its_words_and_its_picture():
    found = effective_receptive_field(convolutions(3), torch.randn(2, 1, 20, 20), "2")
    assert re.fullmatch(
        r"effective field of layer '2', in pixels from its centre: 50 % within \d\.\d, 90 % within "
        r"\d\.\d, 99 % within \d\.\d, all within 3\.5",
        str(found),
    )
    assert repr(found) == str(found)
    for log in (False, True):
        ax = found.plot(log=log)
        assert [text.get_text() for text in ax.texts] == ["50 %", "90 %", "99 %", "whole"]
        widths = [patch.get_width() for patch in ax.patches]
        assert widths == [2 * r for r in (*found.radius.values(), found.theoretical)]
        plt.close("all")


class Away(nn.Module):
    """Its output has the image's axes, and does not depend on it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda m, x: effective_receptive_field(m, x, "convs"),
            LayerNotFoundError,
            "layer='convs' is not among the 4 layers; closest: ",
        ),
        (
            lambda m, x: effective_receptive_field(m, x, "0", (6, 2)),
            ArgumentError,
            "unit must be inside the 6×6 grid of layer '0', got (6, 2).",
        ),
        (
            lambda m, x: effective_receptive_field(m, x, "1"),
            ArgumentError,
            "layer='1' gives (N, F) = (1, 72), which has no grid like that of images (N, C, H, W)",
        ),
        (
            lambda m, x: effective_receptive_field(m, x.long(), "0"),
            ArgumentError,
            "must be a floating tensor (N, C, H, W), as the model gets it, got (2, 1, 8, 8)",
        ),
        (
            lambda m, x: effective_receptive_field(m, [x], "0"),
            ArgumentError,
            "images must be a floating tensor",
        ),
        (
            lambda m, x: effective_receptive_field(Away(), x, ""),
            ArgumentError,
            "layer='' has no finite gradient with respect to images: no pixel moves unit (3, 3)",
        ),
    ],
)
def test_what_cannot_work_gets_a_sentence(call, error, words):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    with pytest.raises(error, match=re.escape(words)):
        call(model, torch.randn(2, 1, 8, 8))
