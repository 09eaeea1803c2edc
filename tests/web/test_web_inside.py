"""What a layer makes of images: feature maps, a unit, products, kernels."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from live_server import get, key_of, serving

from convlens.core.snapshots import FeatureMaps, FieldIntervals, Kernels
from convlens.runs import open_run
from convlens.runs.follower import RunFollower
from convlens.web.pages import Page
from convlens.web.panels.convolution import window_at
from convlens.web.panels.products import products
from convlens.web.panels.selection import select
from convlens.web.run_data import RunData, is_own_loop
from convlens.web.view import View

Recorded = Callable[[str], Path]

SEEN = """() => {
  window.seen = new Set();
  setInterval(() => seen.add(document.querySelector(".track strong").textContent), 50);
}"""


class Still(Page):
    """As in a report."""

    live = False


def page_of(path: Path, still: bool = False, **view: Any) -> Page:
    follower = RunFollower(open_run(path))
    follower.refresh()
    return (Still if still else Page)(RunData("key", follower, []), View(**view))


def as_number(text: str) -> float:
    return float(text.replace("−", "-"))


@pytest.mark.parametrize(("layer", "source"), [("0.0", ""), ("1.0", "0.2"), ("2.0", "1.2")])
def test_the_products_of_every_unit_add_up_to_its_recorded_value(recorded, layer, source):
    run = page_of(recorded("one-epoch")).run
    maps, kernels = run.snapshot(FeatureMaps, layer), run.snapshot(Kernels, layer)
    for row, col in np.ndindex(maps.grid):
        chosen = select(maps, View(layer=layer, probe=2, channel=5, row=row, col=col))
        window = window_at(run, kernels, chosen, run.probes)
        assert window.source.name == source
        assert abs(window.value - chosen.value) <= 1.001 * chosen.half + window.error
        assert window.error < 0.03 * (float(maps.high[5]) - float(maps.low[5]))


def test_the_terms_shown_add_up_to_the_value_shown(recorded):
    shown = products(page_of(recorded("one-epoch"), layer="2.0", channel=3, row=1, col=2))
    terms = [as_number(term) for term, _ in shown["terms"]]
    assert [name for _, name in shown["terms"]][3:] == ["13 other channels", "bias"]
    assert sum(terms) == pytest.approx(as_number(shown["value"]), abs=1e-3)
    for line, term in zip(shown["lines"], terms, strict=False):
        cells = [cell for row in line["tables"][2]["rows"] for cell in row]
        exact = sum(as_number(c["title"]) for c in cells if c["title"] != "padding")
        assert exact == pytest.approx(term, abs=1e-3)
    assert shown["compared"].endswith("They agree.")


def test_an_input_that_was_not_kept_is_said(recorded):
    body = str(page_of(recorded("one-epoch"), layer="3.0").panel("products"))
    assert "need the kernels of all 32 input channels; 16 were recorded" in body


def test_a_pixel_is_seen_by_the_units_whose_fields_hold_it(recorded):
    page = page_of(recorded("one-epoch"), layer="1.0", pixel_row=9, pixel_col=20)
    fields = page.run.snapshot(FieldIntervals, "1.0")
    n = sum(
        fields.first_row[i] <= 9 <= fields.last_row[i]
        and fields.first_column[j] <= 20 <= fields.last_column[j]
        for i, j in np.ndindex(fields.grid)
    )
    assert f"<dt>units that see pixel 9, 20</dt><dd>{n} of 49</dd>" in page.panel("unit")


def test_what_was_not_recorded_is_said_with_what_to_do(recorded):
    loop, learner = page_of(recorded("own-loop")), page_of(recorded("one-epoch"))
    assert is_own_loop(loop.run)
    assert not is_own_loop(learner.run)
    assert "training loop of your own" in loop.panel("maps")
    assert "Pictures" not in loop.panel("maps")
    assert not any(loop.panel(name).strip() for name in ("unit", "kernels", "products"))
    learner.run.meta = {k: v for k, v in learner.run.meta.items() if k != "pictures"}
    learner.run.snapshot = lambda *_: None  # type: ignore[method-assign]
    assert "Add cl.Pictures() to the callbacks" in learner.panel("maps")


def test_texts_of_a_run_stay_texts_and_any_view_shows_something(recorded):
    page = page_of(recorded("names"))
    wild = {"epoch": -9, "probe": 99, "channel": 99, "row": 999, "col": -5, "maps": "nothing",
            "pixel_row": 9_999, "pixel_col": -1}  # fmt: skip
    for name in page.run.names:
        for view in ({}, wild):
            body = str(page.at(layer=name, **view).panel("inside"))
            assert "<script>alert" not in body
            assert "<img src=x" not in body
            assert "cannot be shown" not in body


def test_a_report_has_no_controls_and_stays_small(recorded):
    page = page_of(recorded("one-epoch"), still=True)
    whole = [str(page.at(layer=name).panel("inside")) for name in page.run.names]
    assert sum(map(len, whole)) < 1_000_000
    assert "through the epochs" in whole[0]
    assert not re.search(r"<(button|select|input|a) ", whole[0])
    page.run.__dict__["names"] = page.run.names * 30  # of 300 layers, each has less
    crowded = str(page.at(layer="0.0").panel("inside"))
    assert len(crowded) < 20_000
    assert "Feature maps of the probe images" in crowded


def test_maps_unit_arrows_and_epochs_answer_to_clicks_and_keys(recorded, page):
    path = recorded("channels-4-6-8")
    with serving([path.parent]) as address:
        page.goto(f"{address.url}run/{key_of(address, path.name)}?layer=0.0&epoch=0")
        page.locator("html[data-drawn=all]").wait_for()
        unit = page.locator("#inside .unit dd").nth(1)
        page.locator("[data-key=map-3]").click(position={"x": 2, "y": 2})
        page.get_by_text("value, channel 3", exact=True).wait_for()
        assert unit.inner_text() == "row 0, column 0"
        page.locator("[data-key=arrow-right]").click()
        page.locator("#inside .equation", has_text="column 1").wait_for()
        page.locator("[data-key=unit-map]").focus()
        page.keyboard.press("ArrowDown")
        page.locator("#inside .equation", has_text="row 1, column 1").wait_for()
        assert page.evaluate("document.activeElement.dataset.key") == "unit-map"
        page.go_back()
        page.locator("#inside .equation", has_text="row 0, column 1").wait_for()
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("ArrowLeft")
        page.locator(".track strong", has_text="before training").wait_for()
        page.evaluate(SEEN)
        page.keyboard.press("Space")
        page.locator(".track strong", has_text="after epoch 2").wait_for()
        page.locator("html[data-playing=false]").wait_for()
        assert page.evaluate("[...seen]") == [
            "before training", "after epoch 1", "after epoch 2"
        ]  # fmt: skip
        assert "epoch=" not in page.url
        page.goto("about:blank")  # asks nothing of a server that is being closed


def test_a_layer_named_like_a_placeholder_is_still_itself(recorded, page):
    path = recorded("names")
    layer = page_of(path).run.names[0]
    with serving([path.parent]) as address:
        key = key_of(address, path.name)
        body = get(address, f"/run/{key}?layer={quote(layer)}&probe=1")[2]
        to = unescape(re.findall(r'data-to="([^"]+ROW[^"]+)"', body)[0])
        assert to.count("ROW") == to.count("COL") == 1
        page.set_viewport_size({"width": 390, "height": 800})
        page.goto(f"{address.url}run/{key}?layer={quote(layer)}&probe=1")
        page.locator("html[data-drawn=all]").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.goto("about:blank")
