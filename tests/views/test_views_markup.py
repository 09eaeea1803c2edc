from __future__ import annotations

import base64
import io
import math
import re
from importlib.resources import files

import numpy as np
import pytest
from bokeh.palettes import cividis, viridis
from PIL import Image

from convlens.core.records import Epoch, Picture
from convlens.views import markup, tables
from convlens.views.canvas import CARD, DARK, harmless, short
from convlens.views.gallery import MAX_IMAGES, data_uri, gallery
from convlens.views.timeline import EMPTY


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (52768, "52,768"),
        (-5, "−5"),
        (0.0, "0"),
        (-0.26412, "−0.2641"),
        (12345.6, "12,346"),
        (1e-5, "1e−05"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (2.5e12, "2.5e+12"),
    ],
)
def test_number(value, expected):
    assert markup.number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (True, "yes"),
        (False, "no"),
        ([8, 14, 14], "8 × 14 × 14"),
        ([None, 3], "– × 3"),
        ([], "–"),
        (["a", 1], '["a", 1]'),
        ("Conv2d", "Conv2d"),
    ],
)
def test_plain(value, expected):
    assert markup.plain(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(21.72, "21.7 s"), (303, "5 min 3 s"), (11100, "3 h 5 min"), (math.nan, "–")],
)
def test_duration(seconds, expected):
    assert markup.duration(seconds) == expected


def test_labels_are_words():
    assert markup.label("n_parameters") == "parameters"
    assert markup.label("wall_s") == "wall (s)"
    assert markup.label("input_shape") == "input shape"
    assert markup.label("classes") == "classes"


def test_metrics():
    assert markup.metric("accuracy", 0.9912) == "99.12 %"
    assert markup.metric("accuracy", math.nan) == "NaN"
    assert markup.metric("f1", 0.5) == "0.5"
    assert markup.loss(0.04) == "0.0400"
    assert markup.loss(1e30) == "1e+30"


def test_rich_ends_where_values_lie_too_deep():
    deep: object = "<b>"
    for _ in range(200):
        deep = {"k": deep}

    html = markup.rich(deep)

    assert html.count("<dl>") == markup.MAX_DEPTH
    assert "<b>" not in html
    assert "&lt;b&gt;" in html


def test_rich_cuts_long_lists():
    assert "… and 976 more" in markup.rich([str(i) for i in range(1000)])
    assert "… and 6 more" in markup.rich([{"lr": i} for i in range(30)])
    assert markup.rich("a\n<b>") == "<pre>a\n&lt;b&gt;</pre>"


def test_formulas_are_broken_up():
    for opening in ("$$", r"\[", r"\("):
        assert opening not in harmless(f"a{opening}b{opening}")


def test_figures_stand_on_the_colour_of_the_page():
    css = (files("convlens.views") / "report.css").read_text(encoding="utf-8")

    assert f"--card: {CARD};" in css
    assert f"--card: {DARK[CARD]};" in css


def test_going_dark_leaves_heat_maps_alone():
    maps = {colour.lower() for colour in (*viridis(EMPTY), *cividis(256))}

    assert maps.isdisjoint({colour.lower() for colour in DARK})
    assert set(DARK).isdisjoint(DARK.values())


def test_short_keeps_both_ends():
    name = short("backbone.stage1.block12.conv3.depthwise")

    assert len(name) <= 26
    assert name.startswith("backbone.")
    assert name.endswith("depthwise")


def test_summary_renders_whatever_columns_there_are():
    recorded = {
        "rows": [
            {"layer": "0.0", "weights": 1168, "field": [7, 7], "never": None},
            {"layer": "<i>", "weights": 56448, "new": True},
        ],
        "totals": {"weights": 57616, "extra": {"bytes": 4096}},
        "input_shape": [1, 28, 28],
        "notes": ["a note"],
    }

    html = tables.summary(recorded)

    assert "1,168" in html
    assert "57,616" in html
    assert "4,096" in html
    assert "7 × 7" in html
    assert "1 × 28 × 28" in html
    assert "a note" in html
    assert "never" not in html
    assert "&lt;i&gt;" in html
    assert "<i>" not in html
    assert '<th scope=row class="words">total</th>' in html


def test_a_summary_begins_with_what_matters_and_leaves_out_what_says_nothing():
    row = {
        "name": "1.0",
        "calls": 1,
        "dilation": [1, 1],
        "inputs": 72,
        "frozen": 0,
        "mine": 7,
        "inputs_per_output": 4.5,
        "note": "",
        "parameters": 1168,
    }

    html = tables.summary({"rows": [row, {**row, "name": "2.0"}]})

    heads = re.findall(r"<th scope=col[^>]*>(.*?)</th>", html)
    assert heads == ["name", "parameters", "inputs per output", "mine"]
    assert "<th scope=row" in tables.summary({"rows": [{"calls": 1}]})


@pytest.mark.parametrize("recorded", [None, "text", {}, {"rows": 3}, {"rows": [1], "totals": 4}])
def test_a_missing_summary_is_said(recorded):
    assert tables.NO_SUMMARY in tables.summary(recorded)


def test_a_summary_without_rows_gives_its_notes():
    html = tables.summary({"rows": [], "totals": {}, "notes": ["aten.foo is unknown"]})

    assert tables.NO_SUMMARY in html
    assert "aten.foo is unknown" in html


def test_a_summary_without_totals_has_no_foot():
    assert "tfoot" not in tables.summary({"rows": [{"a": 2}], "totals": None})


def test_epochs_without_validation():
    html = tables.epochs_table([Epoch(0, 0, 9, 1.25, None, {}, 4.2)], ["accuracy"])

    assert html.count("<td>–</td>") == 2
    assert "1.2500" in html


def test_meta_without_anything():
    assert tables.meta({}) == '<div class="meta"></div>'
    assert "Sequential" in tables.meta({"model": "Sequential"})


def test_meta_says_in_words_which_pictures_were_kept():
    facts = {
        "n_layers": 64, "n_layers_in_all": 120, "cells": 32, "planes": [64, 16],
        "effective_layers": 3, "effective_epochs": [-1, 0], "notes": ["No kernels of <b>."],
        "kept_epochs": [0, 1, 3],
    }  # fmt: skip
    html = tables.meta({"pictures": facts})

    assert not any(word in html for word in ("cells", "planes", "effective epochs", "−1"))
    shown = dict(re.findall("<dt>([^<]*)</dt><dd>([^<]*)</dd>", html))
    assert shown == {
        "layers": "64 of 120",
        "layers with effective receptive fields": "3",
        "taken": "before training and after epoch 1, 2, 4",
        "notes": "No kernels of &lt;b&gt;.",
    }
    unfollowed = tables.meta({"pictures": {"kept_epochs": [0, 2], "notes": []}})
    assert "<dd>after epoch 1, 3</dd>" in unfollowed
    assert "layers" not in unfollowed


def test_images_survive_as_they_are():
    image = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    payload = base64.b64decode(data_uri(image).removeprefix("data:image/png;base64,"))

    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(payload))), image)


def test_large_images_are_made_smaller_and_it_is_said():
    images = np.zeros((2, 300, 200, 3), np.uint8)

    html = gallery(Picture("batch", -1, images, ["a", "b"]))
    payload = base64.b64decode(data_uri(images[0]).removeprefix("data:image/png;base64,"))

    assert "Recorded at 300 × 200 pixels, shown smaller." in html
    assert Image.open(io.BytesIO(payload)).size == (64, 96)


def test_too_many_images_are_cut_and_it_is_said():
    html = gallery(Picture("batch", -1, np.zeros((100, 8, 8), np.uint8), ["<x>"]))

    assert f"The first {MAX_IMAGES} of 100 images." in html
    assert html.count("<img") == MAX_IMAGES
    assert "<x>" not in html
    assert 'alt="image without a caption"' in html
