"""Feature maps, units and kernels as HTML: what is drawn, what answers, what is said."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from snapshots_data import (
    Element,
    digits,
    feature_maps,
    field_intervals,
    kernels_of,
    parsed,
)
from torch import nn

from convlens.core.snapshots import FeatureMaps, Kernels, Probes
from convlens.views.panels import Choice, features, kernels, settle, through_time, unit
from convlens.views.panels.choice import field_of_units, units_of_cell, units_that_see
from convlens.views.panels.elements import VIRIDIS, coloured, signed
from convlens.views.panels.features import ALL_NAN, NO_MAPS
from convlens.views.panels.kernels import NO_KERNELS, NOT_FINITE
from convlens.views.panels.unit import NO_EFFECTIVE, NO_UNIT, PADDING_ONLY


def pixels(image: Element, mode: str = "RGB") -> np.ndarray:
    assert image.attributes["alt"]
    data = image.attributes["src"].removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert(mode))


def wide_maps(n: int = 40, channels: int = 20) -> FeatureMaps:
    torch.manual_seed(0)
    return feature_maps(torch.randn(2, channels, n, n), "wide", 0)


def rects(of: Element, kind: str) -> list[tuple[float, ...]]:
    return [
        tuple(float(r.attributes[key]) for key in ("y", "x", "height", "width"))
        for r in of.all("rect", class_=kind)
    ]


def test_every_channel_of_the_chosen_probe_is_drawn():
    kept = digits()
    maps = kept.maps["0.0"][-1]
    root = parsed(features(maps, kept.probes, [-1, 0, 1], Choice(probe=2, channel=3, cell=(4, 5))))
    buttons = root.all("button", data_do="unit")
    assert [b.attributes["data-channel"] for b in buttons] == [str(c) for c in range(8)]
    for k, one in enumerate(buttons):
        assert one.attributes["data-layer"] == "0.0"
        assert (one.attributes["data-probe"], one.attributes["data-grid"]) == ("2", "14,14")
        np.testing.assert_array_equal(pixels(one.one("img")), coloured(maps.maps[2, k]))
    assert [rects(b, "chosen") for b in buttons] == [[], [], [], [(4, 5, 1, 1)], [], [], [], []]
    assert "8 channels, counted from 0; 14 × 14 units each, every one of them shown." in root.text


def test_probe_images_are_buttons_and_the_chosen_one_is_pressed():
    kept = digits()
    root = parsed(features(kept.maps["1.0"][-1], kept.probes, choice=Choice(probe=5)))
    pressed = [b.attributes["aria-pressed"] for b in root.all("button", data_do="probe")]
    assert pressed == ["false"] * 5 + ["true"] + ["false"] * 2
    shown = pixels(root.all("button", data_do="probe")[5].one("img"), "L")
    np.testing.assert_array_equal(shown, kept.probes.images[5])


def test_the_slider_stops_at_the_kept_epochs():
    kept = digits()
    root = parsed(features(kept.maps["0.0"][1], kept.probes, [-1, 0, 1]))
    slider = root.one("input", type="range", data_do="epoch")
    assert (slider.attributes["value"], slider.attributes["max"]) == ("1", "2")
    assert slider.attributes["data-epochs"] == "-1,0,1"
    assert slider.attributes["data-kind"] == "maps"
    assert slider.attributes["aria-valuetext"] == "after epoch 1"
    stops = root.all("button", data_do="epoch")
    assert [(s.text, s.attributes["title"], s.attributes["data-value"]) for s in stops] == [
        ("start", "before training", "0"),
        ("1", "after epoch 1", "1"),
        ("2", "after epoch 2", "2"),
    ]
    assert [s.attributes.get("aria-current") for s in stops] == [None, "true", None]
    assert not parsed(features(kept.maps["0.0"][1], kept.probes, [0])).all("input")


def test_own_scale_has_numbers_and_a_shared_one_a_legend():
    maps = FeatureMaps(
        0,
        "a",
        maps=np.array([[[[0, 255]], [[0, 255]]]], np.uint8),
        low=np.array([-1, 0], np.float32),
        high=np.array([1, 3], np.float32),
        channels=np.array([4, 9]),
        n_channels=64,
        grid=(1, 2),
    )
    own = parsed(features(maps, None))
    assert [c.text for c in own.all("figcaption")] == ["4 −1 … 1", "9 0 … 3"]
    assert (
        own.one("select", data_do="scale").one("option", selected="").attributes["value"] == "own"
    )
    assert "2 channels of 64" in own.text
    shared = parsed(features(maps, None, shared=True))
    levels = [pixels(b.one("img")) for b in shared.all("button", data_do="unit")]
    np.testing.assert_array_equal(levels[0], coloured(np.array([[0, 128]], np.uint8)))
    np.testing.assert_array_equal(levels[1], coloured(np.array([[64, 255]], np.uint8)))
    ends = [span.text for span in shared.one("span", class_="ends").all("span")]
    assert ends == ["−1", "3"]


def test_a_large_grid_says_what_a_cell_is():
    words = parsed(features(wide_maps(), None)).text
    assert "16 channels of 20, counted from 0; 40 × 40 units each, shown as 32 × 32 cells" in words
    assert "a cell is the mean of 2 × 2 units." in words


def test_a_sheet_shows_every_probe_image_without_a_click():
    kept = digits()
    maps = kept.maps["0.0"][-1]
    root = parsed(features(maps, kept.probes, [-1, 0, 1], live=False))
    assert not any("data-do" in one.attributes for one in root.walk())
    assert not root.all("button")
    assert not root.all("input")
    rows = root.one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == list(kept.probes.captions)
    strip = pixels(rows[3].all("img")[1], "RGBA")
    seen = np.maximum(maps.maps[3, 7], 1)
    np.testing.assert_array_equal(strip[:14, -14:, :3], VIRIDIS[seen])
    gaps = strip[0, :, 3] == 0
    assert gaps.sum() == 7
    assert "(kept: before training, 1, 2)" in root.text
    assert len(root.one("div", class_="numbers").all("small")) == 8


def test_through_time_is_a_row_for_each_epoch():
    kept = digits()
    root = parsed(through_time(kept.maps["1.0"], kept.probes, probe=1))
    rows = root.one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == ["before training", "epoch 1", "epoch 2"]
    drawn = [pixels(row.one("img")).tobytes() for row in rows]
    assert len(set(drawn)) == 3
    assert not root.all("small")


@pytest.mark.parametrize("live", [True, False])
def test_a_blank_is_a_sentence(live):
    maps = wide_maps(4, 3)
    nan = np.full(3, np.nan, np.float32)
    assert NO_MAPS in features(None, None, live=live)
    assert NO_MAPS in features(replace(maps, maps=maps.maps[:, :0]), None, live=live)
    assert ALL_NAN in features(replace(maps, low=nan, high=nan), None, live=live)
    assert NO_UNIT in unit(None, None, None, live=live)
    assert NO_KERNELS in kernels(None, live=live)


def test_a_channel_of_nan_among_others():
    maps = wide_maps(4, 3)
    low, high = maps.low.copy(), maps.high.copy()
    low[1] = high[1] = np.nan
    broken = replace(maps, low=low, high=high)
    captions = [c.text for c in parsed(features(broken, None, shared=True)).all("figcaption")]
    assert captions[1] == "1 not finite"


def test_a_constant_channel():
    maps = replace(wide_maps(4, 1), low=np.zeros(1, np.float32), high=np.zeros(1, np.float32))
    assert parsed(features(maps, None)).one("figcaption").text == "0 constant 0"


@pytest.mark.parametrize(
    "choice",
    [
        Choice(probe=99, channel=77, cell=(99, 99), pixel=(99, 99), unit=(999, 999)),
        Choice(probe=-5, channel=-1, cell=(-3, -3), pixel=(-1, 0), unit=(-1, -1)),
        Choice(),
    ],
)
def test_any_choice_is_settled(choice):
    kept = digits()
    maps = kept.maps["0.0"][-1]
    one = settle(choice, maps, kept.probes)
    assert one.probe in range(8)
    assert one.channel in maps.channels
    assert all(0 <= at < 14 for at in (*one.cell, *one.unit))
    assert one.pixel is None or all(0 <= at < 28 for at in one.pixel)
    assert settle(one, maps, kept.probes) == one
    html = features(maps, kept.probes, [1], choice)
    html += unit(maps, kept.probes, kept.fields["0.0"], kept.effective["0.0"], choice)
    parsed(html)


def test_without_a_cell_the_largest_value_is_chosen():
    maps = digits().maps["1.0"][-1]
    row, column = settle(Choice(probe=4, channel=6), maps).cell
    assert maps.maps[4, 6, row, column] == maps.maps[4, 6].max()


def test_cells_cover_all_units():
    maps = wide_maps()
    spans = [units_of_cell(maps, (i, i))[0] for i in range(32)]
    assert spans[0][0] == 0
    assert spans[-1][1] == 39
    assert all(b[0] <= a[1] + 1 for a, b in pairwise(spans))
    assert all(first <= last for first, last in spans)


def test_a_unit_on_the_image():
    """3 × 3 after 5 × 5, both of stride 2, padded: 9 × 9, clipped at the edge."""
    kept = digits()
    maps, fields = kept.maps["1.0"][-1], kept.fields["1.0"]
    choice = Choice(probe=2, channel=3, cell=(0, 4), pixel=(2, 17))
    root = parsed(unit(maps, kept.probes, fields, kept.effective["1.0"], choice))
    image = root.one("button", data_do="pixel")
    assert image.attributes["data-grid"] == "28,28"
    assert (image.attributes["data-row"], image.attributes["data-col"]) == ("2", "17")
    top, bottom = int(fields.first_row[0]), int(fields.last_row[0])
    left, right = int(fields.first_column[4]), int(fields.last_column[4])
    assert (top, bottom - top + 1, right - left + 1) == (0, 5, 9)
    assert rects(image, "chosen") == [(top, left, bottom - top + 1, right - left + 1)]
    assert rects(image, "region") == [(2, 17, 1, 1)]
    patch = pixels(root.all("figure")[2].one("img"), "L")
    np.testing.assert_array_equal(patch, kept.probes.images[2][top : bottom + 1, left : right + 1])
    facts = dict(
        zip([d.text for d in root.all("dt")], [d.text for d in root.all("dd")], strict=True)
    )
    assert facts["unit"] == "row 0, column 4"
    assert facts["sees (pixels)"] == "5 × 9"
    assert (
        "Before it is clipped to the image, a unit's receptive field is 9 × 9 pixels." in root.text
    )


def test_a_units_value_is_within_what_is_said():
    """The kept value against the network's own."""
    torch.manual_seed(1)
    output = torch.randn(1, 2, 6, 6)
    maps = feature_maps(output, "a", 0)
    probes = Probes(
        -1, "", np.zeros((1, 6, 6), np.uint8), np.zeros((1, 1, 6, 6), np.float32), ("a",)
    )
    for row, column in np.ndindex(6, 6):
        root = parsed(unit(maps, probes, None, None, Choice(0, 1, (row, column))))
        value, half = (float(v.replace("−", "-")) for v in root.all("dd")[0].text.split(" ± "))
        assert abs(value - float(output[0, 1, row, column])) <= half * 1.06


def test_the_units_that_see_a_pixel_are_those_that_change_with_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.Conv2d(3, 4, 3, padding=1))
    x = torch.randn(1, 1, 17, 17)
    fields = field_intervals(model, x)["1"]
    with torch.no_grad():
        maps = feature_maps(model(x), "1", 0)
        for pixel in [(0, 0), (8, 5), (16, 16), (7, 16)]:
            poked = x.clone()
            poked[0, 0, pixel[0], pixel[1]] = torch.nan
            changed = model(poked)[0].isnan().any(0).numpy()
            rows, columns = units_that_see(fields, pixel)
            np.testing.assert_array_equal(rows[:, None] & columns, changed)
            probes = Probes(-1, "", np.zeros((1, 17, 17), np.uint8), x.numpy(), ("a",))
            root = parsed(unit(maps, probes, fields, None, Choice(pixel=pixel)))
            assert root.all("dd")[-1].text == f"{changed.sum()} of 64"
            ((top, left, height, width),) = rects(root.one("button", data_do="unit"), "region")
            inside = np.zeros_like(changed)
            inside[int(top) : int(top + height), int(left) : int(left + width)] = True
            np.testing.assert_array_equal(inside, changed)


def test_a_cell_of_several_units_has_the_field_of_all_of_them():
    x = torch.zeros(1, 1, 40, 40)
    fields = field_intervals(nn.Sequential(nn.Conv2d(1, 20, 3, padding=1)), x)["0"]
    maps = wide_maps()
    rows, columns = units_of_cell(maps, (10, 10))
    assert field_of_units(fields, rows, columns) == (
        (rows[0] - 1, rows[1] + 1),
        (columns[0] - 1, columns[1] + 1),
    )
    probes = Probes(-1, "", np.zeros((2, 40, 40), np.uint8), x.numpy(), ("a", "b"))
    root = parsed(unit(maps, probes, fields, None, Choice(cell=(10, 10))))
    assert root.all("dt")[0].text.startswith("mean value")
    assert (
        "A cell of this map is the mean of 4 units; the field is that of all of them." in root.text
    )
    assert NO_EFFECTIVE in root.text


def test_a_unit_that_sees_padding_only():
    kept = digits()
    fields = kept.fields["1.0"]
    first, last = fields.first_row.copy(), fields.last_row.copy()
    first[0], last[0] = 0, -1
    blind = replace(fields, first_row=first, last_row=last)
    html = unit(kept.maps["1.0"][-1], kept.probes, blind, None, Choice(cell=(0, 0)))
    assert PADDING_ONLY in html


def test_the_effective_field_is_said_to_be_the_centre_units():
    kept = digits()
    field = kept.effective["1.0"]
    args = (
        kept.maps["1.0"][-1],
        kept.probes,
        kept.fields["1.0"],
        field,
        Choice(probe=2, cell=(0, 0)),
    )
    root = parsed(unit(*args))
    heat = root.all("figure")[3]
    ((top, left, height, width),) = rects(heat, "chosen")
    row, column = field.unit
    assert (top, left) == (
        kept.fields["1.0"].first_row[row],
        kept.fields["1.0"].first_column[column],
    )
    squares = rects(heat, "radius")
    assert [s[2] for s in squares] == pytest.approx(
        [2 * r for r in field.radius.values()], rel=1e-4
    )
    middles = {(round(s[0] + s[2] / 2, 2), round(s[1] + s[3] / 2, 2)) for s in squares}
    assert middles == {(4 * row + 0.5, 4 * column + 0.5)}
    drawn = pixels(heat.one("img")).astype(int)
    warm = drawn[..., 0] - drawn[..., 2]
    outside = np.ones((28, 28), bool)
    outside[int(top) : int(top + height), int(left) : int(left + width)] = False
    assert (warm[outside] == 0).all()
    hottest = np.unravel_index(field.share.argmax(), field.share.shape)
    np.testing.assert_array_equal(drawn[hottest], [240, 100, 20])
    assert f"the layer's centre unit (row {row}, column {column}), whichever unit" in root.text
    assert "50 % within" in root.text


def test_a_static_unit_asks_for_nothing():
    kept = digits()
    args = (kept.maps["1.0"][-1], kept.probes, kept.fields["1.0"], kept.effective["1.0"])
    root = parsed(unit(*args, live=False))
    assert not any("data-do" in one.attributes for one in root.walk())
    assert len(root.all("img")) == 4
    assert "Click" not in root.text


def kernel(weight: np.ndarray, groups: int = 1, reads_input: bool = False) -> Kernels:
    none = np.zeros(0, np.float32)
    return Kernels(
        0, "k", weight.astype(np.float32), none, weight.shape, (1, 1), (0, 0), (1, 1), groups,
        reads_input, True,
    )  # fmt: skip


def test_kernels_are_red_and_blue_on_one_scale():
    weight = np.array([[[[1.0, -2.0]]], [[[0.0, 0.5]]]])
    root = parsed(kernels(kernel(weight)))
    drawn = [pixels(one, "RGBA") for one in root.all("img")]
    np.testing.assert_array_equal(drawn[0], signed(weight[0, 0], 2.0))
    assert drawn[0][0, :, 3].tolist() == [128, 255]
    assert drawn[1][0, :, 3].tolist() == [0, 64]
    assert drawn[0][0, 0, 0] > drawn[0][0, 0, 2]
    assert drawn[0][0, 1, 2] > drawn[0][0, 1, 0]
    assert [span.text for span in root.one("span", class_="ends").all("span")] == ["−2", "0", "2"]
    assert [c.text for c in root.all("figcaption")] == ["out 0, in 0", "out 1, in 0"]


def test_a_first_layers_kernels_are_in_colour():
    weight = np.zeros((2, 3, 1, 2))
    weight[0, 0, 0, 0], weight[1, 2, 0, 1] = 0.5, -0.5
    first = kernel(weight, reads_input=True)
    drawn = [pixels(one) for one in parsed(kernels(first)).all("img")]
    assert drawn[0][0, 0].tolist() == [255, 128, 128]
    assert drawn[1][0, 1].tolist() == [128, 128, 0]
    assert len(parsed(kernels(replace(first, reads_input=False))).all("img")) == 6


def test_groups_name_the_channels_that_they_read():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, groups=2)
    captions = [c.text for c in parsed(kernels(kernels_of(conv, "c", 0, False))).all("figcaption")]
    assert captions[:5] == [
        "out 0, in 0", "out 0, in 1", "out 1, in 0", "out 1, in 1", "out 2, in 2",
    ]  # fmt: skip


def test_the_chosen_channels_kernels_are_pointed_out():
    root = parsed(kernels(kernel(np.ones((3, 2, 3, 3))), channel=1))
    chosen = [f.one("figcaption").text for f in root.all("figure", class_="chosen")]
    assert chosen == ["out 1, in 0", "out 1, in 1"]


def test_kernels_of_one_pixel_are_one_matrix():
    weight = np.arange(6.0).reshape(3, 2, 1, 1)
    (image,) = parsed(kernels(kernel(weight))).all("img")
    assert pixels(image, "RGBA").shape == (3, 2, 4)


def test_more_kernels_than_are_shown():
    words = parsed(kernels(kernel(np.ones((16, 16, 3, 3))))).text
    assert "The first 64 of 256 that were kept are shown." in words


def test_kernels_that_are_not_finite():
    weight = np.ones((2, 1, 3, 3))
    weight[0, 0, 0, 0] = np.nan
    assert NOT_FINITE in kernels(kernel(weight))


def test_kernels_that_are_all_zero():
    root = parsed(kernels(kernel(np.zeros((2, 1, 3, 3)))))
    assert (pixels(root.all("img")[0], "RGBA")[..., 3] == 0).all()
