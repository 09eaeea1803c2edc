"""One layer over time: its figure as JSON, its words, and both in a real browser."""

from __future__ import annotations

import base64
import gzip
import json

import numpy as np
import pytest
from live_server import key_of, serving

from convlens.runs import open_run
from convlens.runs.follower import RunFollower
from convlens.web.pages import Page, draw
from convlens.web.panels import layer as panel
from convlens.web.run_data import RunData
from convlens.web.view import View


@pytest.fixture(scope="module")
def run_of(recorded):
    return lambda name: RunData("key", RunFollower(open_run(recorded(name))))


def models(item: str, kind: str) -> list[dict]:
    """The models of a kind in a figure, in order."""
    found = []

    def walk(value):
        if isinstance(value, dict):
            if value.get("type") == "object" and value["name"] == kind:
                found.append(value["attributes"])
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                walk(one)

    walk(json.loads(item)["doc"]["roots"])
    return found


def columns(source: dict) -> dict:
    def decoded(value):
        if isinstance(value, list):
            return [decoded(one) for one in value]
        if not isinstance(value, dict):
            return value
        array = np.frombuffer(
            gzip.decompress(base64.b64decode(value["array"]["data"])), value["dtype"]
        )
        return array.reshape(value["shape"])

    return {name: decoded(column) for name, column in source["data"]["entries"]}


def test_the_figure_shows_what_the_run_recorded(run_of):
    run = run_of("channels-4-6-8")
    history = run.run.history("0.0")
    item = draw(Page(run, View(layer="0.0", epoch=1)), "layer")
    sources = [columns(one) for one in models(item, "ColumnDataSource")]
    image = next(one["image"][0] for one in sources if "image" in one)
    inside = np.nansum(image, axis=0)
    assert image.shape == (100, len(history))
    assert inside == pytest.approx(history.columns.n_finite, rel=0.05)
    (median, *_), stats = (
        [one["y"] for one in sources if "y" in one and "image" not in one],
        [one for one in sources if "y0" in one],
    )
    assert median[: len(history)] == pytest.approx(history.quantile(0.5), rel=1e-5)
    expected = [history.mean, history.std, 100 * history.near_zero, history.dead_channels]
    for stat, values in zip(stats, expected, strict=False):
        assert stat["y0"] == pytest.approx(values, rel=1e-5, abs=1e-12)
    norms = run.run.history("0.0.weight", quantity="gradient").norm
    assert stats[4]["y0"] == pytest.approx(norms, rel=1e-5)
    marked = {one["location"] for one in models(item, "Span") if one.get("location")}
    assert marked == {run.epochs[1].last_step}
    assert "ReLU cuts here" in item
    assert "ReLU cuts here" not in draw(Page(run, View(layer="0.2")), "layer")


def test_in_a_report_it_is_small(run_of):
    class Still(Page):
        live = False

    item = draw(Still(run_of("channels-4-6-8"), View(layer="0.0")), "layer")
    (image,) = (columns(one)["image"][0] for one in models(item, "ColumnDataSource")
                if "image" in columns(one))  # fmt: skip
    assert image.shape[1] <= 120
    assert len(item) < 100_000


def test_an_exact_zero_is_marked_and_said(run_of):
    item = draw(Page(run_of("frozen"), View(layer="side")), "layer")
    marks = [one for one in models(item, "Scatter") if one.get("marker") == {
        "type": "value", "value": "inverted_triangle"}]  # fmt: skip
    assert len(marks) == 2
    said = [columns(one).get("said0") for one in models(item, "ColumnDataSource")]
    assert ["exactly 0: no gradient"] * 40 in said
    assert "inverted_triangle" not in draw(Page(run_of("frozen"), View(layer="body.3.0")), "layer")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"parameters": 208, "trainable": 0}, panel.FROZEN),
        ({"parameters": 0, "trainable": 0}, panel.NO_PARAMETERS),
        ({"parameters": "many"}, panel.UNKNOWN),
        (None, panel.UNKNOWN),
    ],
)
def test_why_there_is_no_gradient(run_of, row, sentence):
    run = run_of("frozen")
    rows = [3, None, {"name": []}, {"name": "body.0.0", **row}] if row else 7
    run.meta = {**run.meta, "summary": {"rows": rows}}
    assert panel.layer(Page(run, View(layer="body.0.0")))["missing"] == [sentence]
    assert panel.layer(Page(run, View(layer="body.3.0")))["missing"] == []


def test_words_for_runs_without_gradients_layers_or_columns(run_of):
    run = run_of("own-loop-logged")
    page = Page(run, View())
    missing = panel.layer(page)["missing"]
    assert "cl.GradientStats()" in missing[0]
    assert "updates=True" in missing[1]
    run = run_of("own-loop-logged")
    run.layers, run.names = [], []
    assert panel.layer(Page(run, View()))["sentence"] == panel.NO_LAYERS
    draw(Page(run, View()), "layer")
    run = run_of("own-loop-logged")
    run.meta = {**run.meta, "status": "running"}
    history = run.history(run.names[0])
    assert "in this batch" in panel.newest(history)
    run.history = lambda name: type(history)(history.layer, history.columns[:0], history.layout)
    assert panel.layer(Page(run, View()))["sentence"] == "Waiting for the first columns."
    draw(Page(run, View()), "layer")


def test_a_hostile_name_is_text(run_of):
    run = run_of("names")
    html = str(Page(run, View(layer="<script>alert(1)</script>")).panel("layer"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script" not in html


def test_a_layer_in_the_browser(recorded, page):
    with serving([recorded("channels-4-6-8"), recorded("frozen")]) as address:
        page.goto(f"{address.url}run/{key_of(address, 'channels')}?layer=0.0")
        figure = page.locator("#figure-layer")
        figure.locator("canvas").first.wait_for()
        page.locator("html[data-drawn=all]").wait_for()
        page.keyboard.press("j")
        page.locator("#layer h2", has_text="0.2").wait_for()
        page.goto(f"{address.url}run/{key_of(address, 'frozen')}?layer=side")
        page.locator("html[data-drawn=all]").wait_for()
        figure.evaluate("element => element.scrollIntoView({block: 'end', behavior: 'instant'})")
        box = figure.bounding_box()
        for shift in (0, 3):
            page.mouse.move(box["x"] + 0.3 * box["width"] + shift, box["y"] + box["height"] - 70)
        tooltip = page.locator(".bk-Tooltip", has_text="exactly 0: no gradient")
        tooltip.wait_for()
        assert page.locator(".bk-Tooltip:visible").count() == 1
