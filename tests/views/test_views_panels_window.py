"""The sliding window's sum is what torch's convolution gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from snapshots_data import digits, feature_maps, kernels_of, parsed
from torch import nn

from convlens.core.snapshots import FeatureMaps, Kernels, Probes
from convlens.views.panels import Choice, window
from convlens.views.panels.window import NO_KERNELS, NOT_FIRST, slide

CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "stride": {"kernel_size": 3, "stride": (2, 3)},
    "padding": {"kernel_size": (5, 3), "padding": (2, 1)},
    "dilation": {"kernel_size": 3, "dilation": (2, 3), "padding": 2},
    "groups": {"kernel_size": 3, "groups": 3, "padding": 1},
    "depthwise, no bias": {"kernel_size": 3, "groups": 6, "padding": 1, "bias": False},
    "more padding than kernel": {"kernel_size": 2, "padding": 1, "stride": 2},
    "all": {"kernel_size": (3, 5), "stride": 2, "padding": (3, 2), "dilation": (2, 1), "groups": 2},
}


def made(n_in: int = 6, n_out: int = 12, **options) -> tuple[Kernels, Probes, FeatureMaps]:
    torch.manual_seed(0)
    conv = nn.Conv2d(n_in, n_out, **options)
    x = torch.randn(2, n_in, 11, 13)
    with torch.no_grad():
        output = conv(x)
    images = np.zeros((2, 11, 13, 3) if n_in == 3 else (2, 11, 13), np.uint8)
    probes = Probes(-1, "", images, x.numpy(), ("a", "b"))
    return kernels_of(conv, "c", 0, True), probes, feature_maps(output, "c", 0)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_unit_is_what_torch_gives(name):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 12, **CONVOLUTIONS[name]).double()
    x = torch.randn(1, 6, 11, 13)
    kernels = kernels_of(conv, "c", 0, True)
    with torch.no_grad():
        expected = conv(x.double())[0].numpy()
    found = np.empty_like(expected)
    for place in np.ndindex(expected.shape):
        worked = slide(kernels, x[0].numpy(), place[0], (place[1], place[2]))
        found[place] = worked.value
        assert worked.sums.sum() + worked.bias == pytest.approx(worked.value, abs=1e-12)
        assert (worked.products[:, worked.padding] == 0).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_panel_agrees_with_the_map_at_every_unit():
    kernels, probes, maps = made(3, 4, kernel_size=3, stride=2, padding=1)
    for row, column in np.ndindex(maps.grid):
        html = window(kernels, probes, maps, Choice(1, 2, unit=(row, column)))
        assert ": they agree." in html, (row, column)


def test_a_map_that_differs_is_not_said_to_agree():
    kernels, probes, maps = made(3, 4, kernel_size=3)
    html = window(replace(kernels, weight=kernels.weight * 1.5), probes, maps, Choice(0, 2))
    assert ", which differs by " in html
    assert "agree" not in html


def test_another_epochs_kernel_is_not_compared():
    kernels, probes, maps = made(3, 4, kernel_size=3)
    html = window(replace(kernels, epoch=3), probes, maps)
    assert (
        "The kernel is that of after epoch 4, the map that of after epoch 1: they are not compared"
        in html
    )


def test_digits():
    """Of a real network: the first layer's products, in numbers."""
    kept = digits()
    kernels, maps = kept.kernels["0.0"][-1], kept.maps["0.0"][-1]
    root = parsed(window(kernels, kept.probes, maps, Choice(probe=2, channel=3, unit=(0, 6))))
    tables = root.all("table", class_="cells")
    assert [t.attributes["aria-label"].partition(",")[0] for t in tables] == [
        "input",
        "kernel",
        "products",
    ]
    cells = [[float(td.text.replace("−", "-")) for td in t.all("td")] for t in tables]
    products = np.array(cells[0]) * np.array(cells[1])
    np.testing.assert_allclose(products, cells[2], atol=0.002)
    outside = [td.has(class_="outside") for td in tables[0].all("td")]
    assert outside == [True] * 10 + [False] * 15
    weight = kernels.weight[3].ravel()
    np.testing.assert_allclose(cells[1], weight, atol=0.0006)
    value = root.one("p", class_="equation").one("strong").children[0]
    shown = float(str(value).replace("−", "-"))
    assert shown == pytest.approx(sum(cells[2]) + float(kernels.bias[3]), abs=0.02)
    assert ": they agree." in root.text


def test_colour_has_a_row_of_tables_for_each_plane():
    kernels, probes, maps = made(3, 4, kernel_size=3)
    root = parsed(window(kernels, probes, maps))
    assert [h.text for h in root.one("div", class_="products").all("h4")] == [
        "red",
        "green",
        "blue",
    ]
    assert len(root.all("table", class_="numbers")) == 9
    terms = root.one("p", class_="equation").all("small")
    assert [t.text for t in terms] == ["red", "green", "blue", "bias", "the unit's value"]


def test_a_large_kernel_is_shown_in_colours():
    kernels, probes, maps = made(1, 4, kernel_size=7, padding=3)
    root = parsed(window(kernels, probes, maps, Choice(unit=(0, 0))))
    tables = root.all("table", class_="colours")
    assert len(tables) == 3
    assert not any(td.text for table in tables for td in table.all("td"))
    assert tables[1].one("caption").text.startswith("kernel, ± 0.")


def test_arrows_and_map_move_the_unit_within_the_grid():
    kernels, probes, maps = made(1, 4, kernel_size=3, stride=2)
    root = parsed(window(kernels, probes, maps, Choice(unit=(0, 5))))
    height, width = maps.grid
    (grid,) = root.all("button", data_do="window", data_grid=f"{height},{width}")
    assert (grid.attributes["data-row"], grid.attributes["data-col"]) == ("0", "5")
    to = {
        b.attributes["class"]: (b.attributes["data-row"], b.attributes["data-col"])
        for b in root.one("div", class_="arrows").all("button", data_do="window")
    }
    assert to == {"up": ("0", "5"), "left": ("0", "4"), "right": ("0", "5"), "down": ("1", "5")}


def test_without_a_click_it_shows_the_strongest_unit_and_asks_for_nothing():
    kernels, probes, maps = made(1, 4, kernel_size=3)
    root = parsed(window(kernels, probes, maps, live=False))
    assert not root.all("button")
    assert not any("data-do" in one.attributes for one in root.walk())
    row, column = divmod(int(maps.maps[0, 0].argmax()), maps.maps.shape[3])
    assert f"channel 0, row {row}, column {column}" in root.text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"reads_input": False}, NOT_FIRST),
        ({"zero_padding": False}, "This unit reads padding that is not zeros; choose one further"),
        ({"shape": (4, 20, 3, 3)}, "Of the 20 channels that this layer reads, not all were kept."),
    ],
)
def test_what_cannot_be_worked_out_is_said(change, sentence):
    kernels, probes, maps = made(1, 4, kernel_size=3, padding=1)
    html = window(replace(kernels, **change), probes, maps, Choice(unit=(0, 0)))
    assert sentence in parsed(html).text


def test_a_channel_whose_kernel_was_not_kept():
    kernels, probes, maps = made(1, 4, kernel_size=3)
    few = replace(kernels, weight=kernels.weight[:2], bias=kernels.bias[:2])
    html = window(few, probes, maps, Choice(channel=3))
    assert "The kernels of channels 0 to 1 were kept; that of 3 was not." in html


def test_nothing_kept():
    kernels, probes, maps = made(1, 4, kernel_size=3)
    for lacking in ((None, probes, maps), (kernels, None, maps), (kernels, probes, None)):
        assert parsed(window(*lacking)).text == NO_KERNELS


def test_a_cell_of_several_units_is_not_compared():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 3, padding=1)
    x = torch.randn(1, 1, 40, 40)
    with torch.no_grad():
        maps = feature_maps(conv(x), "c", 0)
    probes = Probes(-1, "", np.zeros((1, 40, 40), np.uint8), x.numpy(), ("a",))
    html = window(kernels_of(conv, "c", 0, True), probes, maps, Choice(unit=(39, 39)))
    assert "A cell of the map is the mean of several units" in html
    assert "row 39, column 39" in html
