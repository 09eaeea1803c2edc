"""The matrix of layers by steps: which layers are sick, which rows are shown, what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import key_of, serving
from sample_trainings import digits

import convlens as cl
from convlens.core.histories import LayerInfo
from convlens.doctor import diagnose
from convlens.runs import open_run
from convlens.runs.follower import RunFollower
from convlens.web.figures.layer_rows import family, rows_of, short_kind
from convlens.web.figures.matrix import ABOVE, BAD, EXACTLY_0, NO_DATA, limits_of, matrix
from convlens.web.figures.quantities import Cells, condense, layer_health
from convlens.web.pages import Page, draw
from convlens.web.run_data import RunData
from convlens.web.view import View

Recorded = Callable[[str], Path]


def page_of(path: Path, **view: Any) -> Page:
    run = open_run(path)
    follower = RunFollower(run)
    follower.refresh()
    return Page(RunData("key", follower, diagnose(run.record(counts=False))), View(**view))


def levels_of(page: Page) -> dict[str, Any]:
    """The level of each cell that was recorded, by the row's name."""
    source = matrix(page).select_one({"name": "links"})
    n = len(page.run.figures())
    return dict(zip(source.data["name"], (row[0, :n] for row in source.data["image"]), strict=True))


@pytest.mark.parametrize(
    ("name", "worst"),
    [
        pytest.param(
            "resnet50",
            ("layer3.2.bn2", "problem", "all channels dead"),
            marks=pytest.mark.slow,
        ),
        ("frozen", ("side", "warning", "gradient exactly 0")),
        ("nan-goes-on", ("0.0", "problem", "NaN or infinite values from step 30")),
    ],
)
def test_the_sickest_layer_comes_first_with_the_reason(recorded: Recorded, name, worst):
    run = page_of(recorded(name)).run
    health = layer_health(run)
    assert health[0] == worst
    assert sorted(one.layer for one in health) == sorted(run.names)


def test_a_deep_network_is_folded_by_block_around_its_sick_layer(recorded: Recorded):
    page = page_of(recorded("resnet50"))
    rows = {row.name: row for row in rows_of(page.run, page.view)}
    assert 10 < len(rows) <= 32
    assert rows["layer3.2.bn2"].worst.severity == "problem"
    assert len(rows["layer1.1"].layers) == 6
    assert sum(len(row.layers) for row in rows.values()) == 107
    opened = rows_of(page.run, View(block=rows["layer1.1"].block))
    assert [row.name for row in opened][::5] == ["layer1.1.conv1", "layer1.1.bn3"]
    first = rows_of(page.run, View(sort="severity"))[0]
    assert (first.name, first.kind) == ("layer3.2.bn2", "bn")
    norms = rows_of(page.run, View(kinds="normalizations"))
    assert sum(len(row.layers) for row in norms) == 53
    for odd in ({"block": "9-3"}, {"block": "999999-0"}, {"kinds": "'"}, {"sort": "x"}):
        assert sum(len(row.layers) for row in rows_of(page.run, View(**odd))) == 107
    draw(page.at(block="0-2", kinds="linear"), "matrix")  # no row at all


def test_a_block_that_is_itself_watched_and_layers_without_blocks_are_folded_too(recorded):
    page = page_of(recorded("150-layers"))
    rows = rows_of(page.run, page.view)
    assert len(rows) <= 32
    assert sum(len(row.layers) for row in rows) == 150
    names = ["a" + ".b" * (i % 75 + 1) for i in range(150)]  # a module's name may come twice
    page.run.layers = [LayerInfo(i, name, "Conv2d") for i, name in enumerate(names)]
    page.run.names = names
    assert sum(len(row.layers) for row in rows_of(page.run, page.view)) == 150


def test_zero_nan_and_no_data_have_levels_of_their_own(recorded: Recorded):
    frozen = levels_of(page_of(recorded("frozen"), quantity="gradient"))
    assert set(frozen["side"]) == {EXACTLY_0}
    assert set(frozen["body.0.0"]) == {NO_DATA}
    assert min(frozen["body.2.0"]) > EXACTLY_0
    last = levels_of(page_of(recorded("nan-goes-on")))["4.0"]
    assert set(last[30:]) == {BAD}
    assert BAD not in last[:30]


def test_colours_have_round_limits_and_long_runs_few_cells():
    values = np.array([[3e-4, 0.02, np.nan, 0.0]], np.float32)
    limits = limits_of("log", values)
    assert (limits.low, limits.high) == (1e-4, 0.1)
    assert list(limits.ticks().values()) == ["1e-4", "0.001", "0.01", "0.1"]
    assert limits_of("signed", np.array([[-0.3, 0.1]], np.float32)).high == 0.5
    step = np.arange(4_096) * 32
    value = np.linspace(0, 1, 4_096, dtype=np.float32)[None]
    bad = np.arange(4_096)[None] == 4_000
    width, cells = condense(Cells(step, step + 31, value, bad), peaks=False)
    assert width == 32 * 8
    assert cells.values.shape == (1, 512)
    assert cells.values.mean() == pytest.approx(0.5)
    assert np.flatnonzero(cells.bad).tolist() == [500]


@pytest.mark.parametrize(
    ("kind", "of", "letters"),
    [("Conv2d", "convolutions", "conv"), ("BatchNorm2d", "normalizations", "bn"),
     ("GELU", "activations", "gelu"), ("NonDynamicallyQuantizableLinear", "linear", "nond…near"),
     ("MaxPool2d", "others", "maxpool")],
)  # fmt: skip
def test_kinds(kind, of, letters):
    assert (family(kind), short_kind(kind)) == (of, letters)


def test_what_is_not_there_is_said_with_what_to_call(recorded: Recorded, tmp_path: Path):
    assert "gradients=True" in page_of(recorded("resnet50"), quantity="gradient").panel("matrix")
    learn = cl.Learner(digits(100), cl.simple_cnn(1, 10), run=tmp_path / "run", progress=False)
    learn.fit(1, 0.01)
    said = page_of(tmp_path / "run").panel("matrix")
    assert "cl.ActivationStats()" in said
    assert "cl.watch(model, run=" in said


def test_hostile_names_are_words(recorded: Recorded):
    page = page_of(recorded("names"), quantity="std", layer="__proto__")
    html = page.panel("matrix")
    assert "<script>" not in html
    assert "<img" not in html
    assert "<script>" not in draw(page, "matrix")


def test_in_the_browser_the_sick_layer_is_seen_at_once(page, recorded: Recorded):
    path = recorded("resnet50")
    with serving([path.parent]) as address:
        page.goto(f"{address.url}run/{key_of(address, path.name)}")
        drawn = page.locator("html[data-drawn=all]")
        drawn.wait_for()
        said = page.locator(".verdict a", has_text="layer3.2.bn2").first
        said.wait_for()
        box = said.bounding_box()
        assert box["y"] + box["height"] < 768
        worst = page.locator(".worst a").first
        assert worst.inner_text() == "layer3.2.bn2"
        worst.click()
        page.wait_for_url("**layer=layer3.2.bn2**")
        drawn.wait_for()
        page.locator("select[data-set=sort]").select_option("severity")
        page.wait_for_url("**sort=severity**")
        drawn.wait_for()
        figure = page.locator("#figure-matrix")
        figure.scroll_into_view_if_needed()
        figure.click(position={"x": 60, "y": ABOVE + 5.5 * 18})  # the third row under the sick ones
        page.wait_for_url("**block=**")
        drawn.wait_for()
        assert page.locator("#matrix h2").inner_text() == "All layers › layer1.0"
        figure.click(position={"x": 400, "y": ABOVE + 1.5 * 24})
        page.wait_for_url("**layer=layer1.0.bn1**")
        drawn.wait_for()
        page.goto("about:blank")  # asks nothing of a server that is being closed
