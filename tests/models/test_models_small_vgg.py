"""The network for small images."""

from __future__ import annotations

import pytest
import torch

from convlens.errors import ArgumentError
from convlens.models import small_vgg
from convlens.models.architecture import architecture_of, build


def test_each_stage_halves_height_and_width():
    model, x, sizes = small_vgg(3, 10), torch.zeros(2, 3, 32, 32), []
    for stage in model:
        x = stage(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [
        (24, 32, 32),
        (32, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (256, 1, 1),
        (256,),
        (10,),
    ]
    assert sum(p.numel() for p in model.parameters()) == 1_090_114


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (45, 33)])
def test_images_of_any_size(size):
    assert small_vgg(1, 3, (4, 8, 8), stem=2)(torch.zeros(2, 1, *size)).shape == (2, 3)


def test_it_is_built_again_from_plain_facts():
    model = small_vgg(1, 3, (4, 8), stem=2)
    again = build(architecture_of(model))
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 1, 9, 9)
    assert torch.equal(again.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widths": ()}, "widths must have the channels of at least one stage"),
        ({"widths": (8, 0)}, r"widths\[1\] must be a whole number of at least 1, got 0"),
        ({"stem": 0}, "stem must be a whole number of at least 1, got 0"),
    ],
)
def test_sizes_that_cannot_be(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        small_vgg(1, 3, **arguments)
