"""Comparing runs: the page over HTTP, its figures, and the distances."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from live_server import get, key_of, serving
from sample_trainings import Each, digits, learner

import convlens as cl
from convlens.core.buckets import BucketLayout
from convlens.core.columns import Columns, coarsen, empty_columns
from convlens.core.histories import LayerHistory, LayerInfo
from convlens.errors import ArgumentError
from convlens.web.distances import compare, layer_distance, names_of, parting, total_variation

LAYOUT = BucketLayout()


def columns(n: int = 20, first: int = 0) -> Columns:
    """One column a step, 1,000 values each, in three buckets."""
    steps, ones = np.arange(first, first + n), np.ones(n, np.int64)
    counts = np.zeros((n, LAYOUT.size), np.uint16)
    counts[:, [300, 400, 500]] = 200, 500, 300
    none = dict.fromkeys(("nan", "neg_inf", "pos_inf", "near_zero", "at_most_eps"), 0 * ones)
    flags = np.ones((n, 4), np.bool_)
    return replace(
        empty_columns(LAYOUT.size, 4), first_step=steps, last_step=steps, calls=ones,
        counts=counts, mean=0.0 * ones, m2=1.0 * ones, positive=flags, active=flags, **none,
    )  # fmt: skip


def moved(of: Columns, column: int, n: int) -> Columns:
    """The same but for ``n`` values, which become NaN in one column."""
    counts, nan = of.counts.copy(), of.nan.copy()
    counts[column, 400] -= n
    nan[column] += n
    return replace(of, counts=counts, nan=nan)


def layer(of: Columns, name: str = "0.0", layout: BucketLayout = LAYOUT) -> LayerHistory:
    return LayerHistory(LayerInfo(0, name, "Conv2d"), of, layout)


def test_the_distance_is_the_share_of_values_that_would_have_to_move():
    a = columns(3)
    b, elsewhere = moved(a, 1, 30), replace(a, counts=np.roll(a.counts, 7, axis=1))

    for pair in ((a, b), (b, a)):
        np.testing.assert_allclose(total_variation(*pair), [0, 0.03, 0], atol=1e-12)
    np.testing.assert_allclose(total_variation(a, elsewhere), 1.0)
    np.testing.assert_allclose(total_variation(a, replace(a, counts=2 * a.counts)), 0.0, atol=1e-12)
    assert np.isnan(total_variation(a, replace(a, counts=0 * a.counts))).all()


def test_wider_columns_are_met_by_adding_up_and_only_equal_steps_are_compared():
    fine, wide = layer(columns(64)), layer(coarsen(columns(64), 3))

    met = layer_distance(fine, wide)
    apart = layer_distance(layer(columns(20)), layer(columns(20, first=15)))
    unfinished = layer_distance(wide, layer(columns(60)))

    np.testing.assert_array_equal(met.last_step, 8 * np.arange(8) + 7)
    assert met.parted is None
    assert apart.first_step.tolist() == [15, 16, 17, 18, 19]
    assert unfinished.first_step.tolist() == [0, 8, 16, 24, 32, 40, 48]


def test_a_long_run_is_on_few_cells_but_parts_at_a_step():
    a, b = columns(4_000), moved(columns(4_000), 1_234, 1)

    found = layer_distance(layer(a), layer(b))

    assert len(found.values) == 500
    assert found.parted == (1_234, 1_234)


def test_other_buckets_are_refused_in_words():
    other = layer(columns(), layout=BucketLayout(mantissa_bits=2))
    with pytest.raises(ArgumentError, match=r"'0\.0' was counted in 773 buckets in one run and in"):
        layer_distance(layer(columns()), other)


@pytest.mark.parametrize(
    ("later", "sooner", "sentence"),
    [
        (0, 0, "The runs never part: every count of 2 layers is equal from step 0 to 19."),
        (300, 1, "The runs part at step 7, in layer 1.0: every count before was the same. The "
                 "first with a distance above 10 % is layer 0.0, at step 12."),
        (0, 1, "The runs part at step 7, in layer 1.0: every count before was the same. No layer "
               "ever has a distance above 10 %."),
    ],
)  # fmt: skip
def test_where_runs_part_is_said(later, sooner, sentence):
    pairs = (("0.0", 12, later), ("1.0", 7, sooner))
    found = [
        layer_distance(layer(columns(), name), layer(moved(columns(), at, n), name))
        for name, at, n in pairs
    ]
    assert parting(found) == sentence


def test_runs_without_a_common_layer_are_compared_in_words(recorded):
    a, b = (cl.open_run(recorded(name)) for name in ("one-epoch", "names"))
    found = compare(a, b)
    assert "no layer and step in common" in found.parting
    assert found.remarks[0].startswith(f"Only in {a.name}: 10 layers (0.0, ")


# ---- the page -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(recorded) -> tuple[Path, Path]:
    return recorded("channels-4-6-8"), recorded("channels-10-12-14")


def query(address, *paths: Path, **more: str) -> str:
    keys = [f"run={key_of(address, path.name)}" for path in paths]
    return "?" + "&".join([*keys, *(f"{name}={value}" for name, value in more.items())])


def compared(address, *paths: Path) -> str:
    """The page once its distances are known."""
    while "being worked out" in (body := get(address, f"/compare{query(address, *paths)}")[2]):
        pass
    return body


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_outcome_settings_and_distances_of_two_runs(pair):
    with serving([path.parent for path in pair]) as address:
        asked = query(address, *pair)
        body = compared(address, *pair)
        text = text_of(body)

        assert text.index("Outcome") < text.index("set up differently") < text.index("Losses")
        assert body.count(">best<") == 3
        assert re.search(r"parameters 1,552 4,240", text)
        assert "n_parameters" not in text
        assert "− (0): Conv2d(1, 4, kernel_size=(5, 5)" in text
        assert "+ (0): Conv2d(1, 10, kernel_size=(5, 5)" in text
        assert "The runs part at step 0, in layer 0.0" in text
        for name in ("losses", "distances", "layer-of-both"):
            status, _, item = get(address, f"/figure/{name}{asked}&layer=1.0")
            assert status == 200
            assert "doc" in json.loads(item)


def test_more_than_two_runs_are_overlaid_and_one_that_is_damaged_is_a_sentence(recorded, pair):
    others = [recorded(name) for name in ("own-loop", "one-step", "damaged", "damaged-columns")]
    with serving([path.parent for path in (*pair, *others)]) as address:
        asked = query(address, *pair, *others)
        status, _, body = get(address, f"/compare{asked}")
        text = text_of(body)

        assert status == 200
        assert "4 runs compared" in text
        assert text.count("A run cannot be compared:") == 2
        assert "exactly two runs; here are 4" in text
        assert get(address, f"/figure/losses{asked}")[0] == 200
        assert get(address, f"/compare{query(address, pair[0])}")[0] == 404
        assert get(address, f"/compare{query(address, *others[2:])}")[0] == 410


@pytest.mark.parametrize("name", ["wrong-values", "wrong-inner-values", "names", "nan-goes-on"])
def test_whatever_a_record_holds_every_part_is_shown(recorded, pair, name):
    other = recorded(name)
    with serving([pair[0].parent, other.parent]) as address:
        asked = query(address, pair[0], other)
        body = compared(address, pair[0], other)

        assert "Layer by layer" in body
        assert "values that cannot be shown" not in body
        assert "<script>alert" not in body
        assert "<img src=x" not in body
        for figure in ("losses", "distances", "layer-of-both"):
            assert get(address, f"/figure/{figure}{asked}")[0] == 200


def test_runs_named_alike_have_their_folder(recorded, pair):
    class Named:
        def __init__(self, path: str) -> None:
            self.path = Path(path)

    runs = [Named("/x/old/a-1"), Named("/x/new/a-1"), Named("/y/new/a-1"), Named("/x/b-1")]
    assert names_of(runs) == ["old/a-1", "x/new/a-1", "y/new/a-1", "b-1"]


def test_a_click_on_a_row_shows_the_layer_and_nothing_overflows_a_phone(pair, page):
    with serving([path.parent for path in pair]) as address:
        page.goto(f"{address.url}compare{query(address, *pair)}")
        page.locator("html[data-drawn=all]").wait_for()
        plot = page.locator("#figure-distances")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.click(box["x"] + 300, box["y"] + 0.5 * box["height"])
        page.wait_for_url(re.compile("layer="))
        page.locator("html[data-drawn=all]").wait_for()
        chosen = page.locator("select[data-set=layer]").input_value()
        assert chosen in ("1.0", "1.2", "2.0", "2.2")
        page.keyboard.press("j")
        page.wait_for_url(lambda url: f"layer={chosen}" not in url)

        page.set_viewport_size({"width": 390, "height": 844})
        for _ in range(100):  # until the figures have the new width too
            width = page.evaluate("document.documentElement.scrollWidth")
            if width == 390:
                break
            page.wait_for_timeout(100)
        assert width == 390
        page.goto("about:blank")


@pytest.mark.slow  # test_web_screens has a growing run
def test_the_page_follows_a_run_until_it_ends(tmp_path, recorded, page):
    fixed, grown = recorded("channels-4-6-8"), tmp_path / "grown-0001"
    with serving([fixed.parent, tmp_path]) as address:

        def look(learn: cl.Learner) -> None:
            if learn.step == 30:
                page.goto(f"{address.url}compare{query(address, fixed, grown)}")
                page.locator("#outcome td >> text=running").wait_for()

        model = cl.simple_cnn(1, 10, norm="batch")
        learner(grown, digits(600, 30), model, Each(look)).fit(2, 0.01)
        page.locator("#outcome tr:nth-child(2) >> text=finished").wait_for()
        page.goto("about:blank")  # a request that is under way while the server ends is an error
