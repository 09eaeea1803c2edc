"""Pictures of kernels, features, planes and fields: what they hold, and their sentences."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from convlens.errors import ArgumentError, LayerNotFoundError
from convlens.geometry import (
    receptive_field,
    show_features,
    show_field,
    show_kernels,
    show_planes,
    show_positions,
)
from convlens.models import simple_cnn
from convlens.plots import show_rectangle, show_tiles


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def pictures(axes):
    return [np.asarray(ax.get_images()[0].get_array()) for ax in axes]


def test_grey_kernels_are_drawn_as_they_are():
    model = simple_cnn(1, 10)
    axes = show_kernels(model)
    for drawn, kernel in zip(pictures(axes), model[0][0].weight, strict=True):
        assert np.array_equal(drawn, kernel[0].detach().numpy())
    limits = {ax.get_images()[0].get_clim() for ax in axes}
    most = model[0][0].weight.abs().max().item()
    assert limits == {(-most, most)}  # one scale, and 0 is white
    assert not axes[0].texts  # 25 numbers have no room
    assert [len(ax.texts) for ax in show_kernels(torch.ones(3, 3))] == [9]


def test_colour_kernels_are_patches_around_mid_grey():
    weight = torch.randn(5, 3, 4, 4)
    weight[0] = 0
    drawn = pictures(show_kernels(weight))
    assert len(drawn) == 5
    assert (drawn[0] == 0.5).all()
    expected = weight.permute(0, 2, 3, 1).numpy() / (2 * weight.abs().max().item()) + 0.5
    assert np.allclose(np.stack(drawn), expected)


def test_deeper_kernels_have_a_tile_for_each_channel():
    model = simple_cnn(1, 10)
    axes = show_kernels(model, "1.0", most=20)
    assert [ax.get_title() for ax in axes[:10]] == [f"{i // 8}, {i % 8}" for i in range(10)]
    assert len(axes) == 20
    drawn = pictures(axes)[9]
    assert np.array_equal(drawn, model[1][0].weight[1, 1].detach().numpy())


def test_features_are_what_the_layer_gives():
    model = simple_cnn(1, 10, norm="batch").train()
    image = torch.randn(1, 28, 28)
    axes = show_features(model, image, "1.1", most=5)
    assert model.training
    model.eval()
    expected = model[1][1](model[1][0](model[0](image[None])))[0, :5].detach().numpy()
    assert np.allclose(np.stack(pictures(axes)), expected, atol=1e-6)
    assert axes[0].figure.get_suptitle() == "layer 1.1, 16×7×7"
    assert not any(m._forward_hooks for m in model.modules())
    show_features(torch.compile(model), image, "1.1")  # shows the model that was compiled


def test_features_before_something_changes_them_in_place():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
    image = torch.randn(1, 6, 6)
    expected = model[0](image[None])[0].detach().numpy()
    assert np.allclose(np.stack(pictures(show_features(model, image, 0))), expected)


def test_planes():
    grey, colour = torch.rand(1, 4, 5), torch.rand(3, 4, 5)
    (ax,) = show_planes(grey)
    assert np.array_equal(pictures([ax])[0], grey[0].numpy())
    axes = show_planes(colour)
    assert [ax.get_title() for ax in axes] == ["all three", "red", "green", "blue"]
    whole, red, *_ = pictures(axes)
    assert np.array_equal(whole, colour.permute(1, 2, 0).numpy())
    assert np.array_equal(red[..., 2], colour[0].numpy())


def test_a_field_is_the_rectangle_that_the_unit_sees():
    model = simple_cnn(1, 10)
    ax = show_field(model, torch.rand(3, 28, 28), "1.0", (2, 3))  # a colour image will do
    (top, bottom), (left, right) = receptive_field(model, (1, 1, 28, 28)).rectangle("1.0", 2, 3)
    box = ax.patches[-1]
    assert (box.get_xy(), box.get_height(), box.get_width()) == (
        (left - 0.5, top - 0.5), bottom - top + 1, right - left + 1
    )  # fmt: skip
    assert ax.get_title() == ("1.0, unit 2, 3 of 7×7\nsees rows 4–12, columns 8–16: 9×9")
    corner = show_field(model, torch.rand(1, 28, 28), "1.0", (0, 0)).get_title()
    assert corner.endswith("sees rows 0–4, columns 0–4: 5×5 of 9×9")
    model = nn.Sequential(nn.Conv2d(1, 1, 1, padding=3))
    padding = show_field(model, torch.rand(1, 5, 5), "0", (0, 0))
    assert padding.get_title().endswith("sees padding only")
    assert not padding.patches


def test_a_long_title_fits_into_the_picture():
    for name, usual in (("conv1", True), (".".join(["layers", "0"] * 11), False)):
        figure = plt.figure(figsize=(6, 6.6), layout="constrained")
        ax = show_rectangle(np.zeros((9, 9)), None, f"{name}, unit 0, 0\nsees", figure.subplots())
        figure.canvas.draw()
        drawn = ax.title.get_window_extent()
        assert drawn.x0 >= 0
        assert drawn.x1 <= figure.bbox.x1
        assert (ax.title.get_fontsize() == 12) is usual


def test_positions_are_drawn_with_what_is_not_read():
    ax = show_positions((8, 7), 3, stride=2)
    dots = ax.lines[0].get_xydata().tolist()
    assert dots == [[c, r] for r in (1, 3, 5) for c in (1, 3, 5)]
    hatched = {p.get_xy() for p in ax.patches if p.get_hatch()}
    assert hatched == {(c - 0.5, 6.5) for c in range(7)}
    padded = show_positions((4, 4), 3, padding=1)
    assert len([p for p in padded.patches if p.get_fill()]) == 36
    outlined = [p.get_xy() for p in padded.patches if not p.get_fill()]
    assert outlined == [(-1.5, -1.5), (-0.5, -1.5)]


def test_tiles_have_one_scale_or_say_that_there_are_none():
    values = np.stack([np.eye(6), np.eye(6) * 9])
    axes = show_tiles(values, signed=False)
    assert [ax.get_images()[0].get_clim() for ax in axes] == [(0, 9), (0, 9)]
    (ax,) = show_tiles(np.zeros((0, 3, 3)))
    assert ax.texts[0].get_text() == "nothing to show"
    (ax,) = show_tiles(np.full((1, 2, 2), np.nan))
    assert ax.get_images()[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: show_tiles(np.zeros((2, 2))), ArgumentError, "values has shape (2, 2); expected"),
        (
            lambda: show_tiles(np.zeros((2, 2, 2)), ["a"]),
            ArgumentError,
            "captions has 1 texts for 2 tiles",
        ),
        (
            lambda: show_tiles(np.zeros((2, 2, 2)), columns=0),
            ArgumentError,
            "columns must be at least 1, got 0",
        ),
        (
            lambda: show_kernels(nn.Linear(2, 2)),
            ArgumentError,
            "model=Linear has no two-dimensional convolution, so no kernels to show",
        ),
        (
            lambda: show_kernels(torch.zeros(2, 2, 3)),
            ArgumentError,
            "model must be a module, or the weight (C_out, C_in / groups, kH, kW)",
        ),
        (
            lambda: show_kernels(simple_cnn(1, 10), "0.1"),
            LayerNotFoundError,
            "layer='0.1' is not among the 5 layers; closest: '0.0'",
        ),
        (
            lambda: show_features(simple_cnn(1, 10), torch.zeros(28, 28), 0),
            ArgumentError,
            "image has shape (28, 28); expected one image (C, H, W)",
        ),
        (
            lambda: show_features(simple_cnn(1, 10), torch.zeros(3, 28, 28), 0),
            ArgumentError,
            "image (N, C, H, W) = (1, 3, 28, 28) does not fit the model: ",
        ),
        (
            lambda: show_features(simple_cnn(1, 10), torch.zeros(1, 28, 28), "5"),
            ArgumentError,
            "layer='5' must give feature maps (N, C, H, W), but gives (N, F) = (1, 10)",
        ),
        (
            lambda: show_planes(torch.zeros(2, 4, 4)),
            ArgumentError,
            "image has shape (2, 4, 4); expected (1, H, W) grey or (3, H, W) colour",
        ),
        (
            lambda: show_field(simple_cnn(1, 10), torch.zeros(1, 28, 28), "1.0", (7, 0)),
            ArgumentError,
            "unit must be inside the 7×7 grid of layer '1.0', got (7, 0)",
        ),
        (
            lambda: show_field(simple_cnn(1, 10), torch.zeros(1, 28, 28), "conv", (0, 0)),
            LayerNotFoundError,
            "layer='conv' is not among the ",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_gets_a_sentence(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_features_without_a_layer_are_those_of_all_layers():
    model = simple_cnn(1, 10, norm="batch").eval()
    image = torch.randn(1, 28, 28)
    axes = show_features(model, image, most=4)
    titles = [ax.get_title() for ax in axes]
    assert titles[:4] == ["0.0, 8×14×14", "0.1, 8×14×14", "0.2, 8×14×14", "1.0, 16×7×7"]
    assert len(titles) == 14, "nn.Flatten gives no maps, and blocks are not drawn twice"
    first = model[0][0](image[None])[0, :4].detach().numpy()
    drawn = pictures(axes)[0]
    assert drawn.shape == (29, 29)  # two rows of two maps, a line between them
    assert np.array_equal(drawn[:14, 15:], first[1])
    assert np.array_equal(drawn[15:, :14], first[2])
    assert np.isnan(drawn[14]).all()
    limits = axes[0].get_images()[0].get_clim()
    assert limits == (-np.abs(first).max(), np.abs(first).max())
    figure = plt.figure()
    assert show_features(model, image, figure=figure)[0].figure is figure
    with pytest.raises(LayerNotFoundError, match="model has no layer that gives feature maps"):
        show_features(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), torch.zeros(1, 3, 3))


def test_small_maps_are_enlarged_so_that_the_lines_between_them_stay_thin():
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    (ax,) = show_features(model, torch.randn(1, 3, 3))
    assert pictures([ax])[0].shape == (12, 25)


def test_more_layers_than_a_figure_holds_are_said():
    model = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(62)])
    for axes in (
        show_features(model, torch.randn(1, 5, 5)),
        show_field(model, torch.rand(1, 5, 5)),
    ):
        assert len(axes) == 60
        said = axes[0].figure.get_suptitle()
        assert said == "the first 60 of 62 layers; name a layer to see it"


def test_fields_without_a_layer_are_those_of_the_middle_units_where_they_grow():
    model = simple_cnn(1, 10, norm="batch")
    axes = show_field(model, torch.rand(1, 28, 28))
    assert [ax.get_title() for ax in axes] == [
        "0.0\n5×5", "1.0\n9×9", "2.0\n17×17", "3.0\n28×28 of 33×33", "4.0\n28×28 of 65×65"
    ]  # fmt: skip
    (top, _), (left, _) = receptive_field(model, (1, 1, 28, 28)).rectangle("1.0", 3, 3)
    assert axes[1].patches[-1].get_xy() == (left - 0.5, top - 0.5)
    middle = show_field(model, torch.rand(1, 28, 28), "1.0")
    assert middle.get_title().startswith("1.0, unit 3, 3 of 7×7")
    with pytest.raises(ArgumentError, match="unit and ax are for one layer; name it, or give figu"):
        show_field(model, torch.rand(1, 28, 28), unit=(0, 0))
