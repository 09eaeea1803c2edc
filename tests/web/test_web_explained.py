"""Precision, calibration and Grad-CAM on the page and in the report."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from live_server import key_of, serving

import convlens as cl
from convlens.core.snapshots import Calibration, ClassActivationMaps, Confusion, Mistakes, Snapshot
from convlens.runs import create_run, open_run
from convlens.runs.follower import RunFollower
from convlens.web.pages import Page
from convlens.web.run_data import RunData
from convlens.web.view import View

CLASSES = ("cat", "dog", "owl")
COUNTS = Confusion(1, "", np.array([[90, 9, 1], [0, 50, 0], [0, 0, 0]]), CLASSES)
CALIBRATION = Calibration(
    1, "", np.array([0, 50, 100]), np.array([0, 30, 90], np.float32), np.array([0, 40, 100]), 0.5,
    0.8, 0.4,
)  # fmt: skip


def wrong(n: int = 3) -> Mistakes:
    line = np.arange(n)
    reals = np.linspace(3, 1, n, dtype=np.float32)
    images = np.zeros((n, 8, 8), np.uint8)
    return Mistakes(1, "", images, line * 0, line * 0 + 1, reals / 4, reals, line + 7, CLASSES)


def maps(epoch: int = 1, correlation: float = 0.125) -> ClassActivationMaps:
    levels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    like = np.array([correlation, np.nan], np.float32)
    return ClassActivationMaps(
        epoch, "", levels, np.array([8, 7]), like, levels[:0], like[:0], "layer4"
    )


def made(path: Path, *kept: Snapshot) -> Path:
    with create_run("made", path) as run:
        run.write_meta({"n_epochs": 3})
        for one in kept:
            run.write_snapshot(one)
        return run.path


def panel(path: Path) -> str:
    return str(Page(RunData("key", RunFollower(open_run(path))), View()).panel("confusion"))


def test_precision_stands_below_the_matrix(tmp_path):
    foot = panel(made(tmp_path, COUNTS)).partition("<tfoot>")[2].partition("</tfoot>")[0]
    assert re.findall(r"<td>(.*?)</td>", foot) == ["100 %", "85 %", "0 %", ""]
    many = Confusion(1, "", np.eye(30, dtype=np.int64), tuple(f"c{i}" for i in range(30)))
    assert panel(made(tmp_path, many)).count("<em>100 %</em>") == 30


def test_the_calibration_is_drawn_where_it_is_of_this_epoch(tmp_path):
    html = panel(made(tmp_path, COUNTS, CALIBRATION))
    assert "<dd>13.33 %</dd>" in html
    assert "<dt>temperature</dt><dd>0.8</dd>" in html
    assert "less sure than it is right" in html
    assert html.count("<rect") == 2
    assert '<path class="right" d="M67.17 0.0h' in html
    older = Calibration(**vars(CALIBRATION) | {"epoch": 0})
    assert "Calibration" not in panel(made(tmp_path, COUNTS, older))


def test_maps_lie_over_their_images(tmp_path):
    html = panel(made(tmp_path, COUNTS, wrong(), maps()))
    assert re.findall(r'--i:(\d)">(?:<i class="cam" style="--m:(\d)">)?', html) == [
        ("0", "1"), ("1", "0"), ("2", ""),
    ]  # fmt: skip
    assert "--cams:url(data:image/png;base64," in html
    assert "--k:2" in html
    assert "Grad-CAM of layer layer4" in html
    assert "random weights: 0.12. A map" in html
    assert "depend little" in panel(made(tmp_path, COUNTS, wrong(), maps(correlation=0.7)))
    for other in (maps(epoch=0), None):
        kept = [COUNTS, wrong(), *([] if other is None else [other])]
        assert "cam" not in panel(made(tmp_path, *kept)).replace("came", "")


def test_the_switch_shows_the_maps_on_the_page_and_in_the_report(tmp_path, page):
    path = made(tmp_path, COUNTS, CALIBRATION, wrong(), maps())
    page.goto(cl.report(path).as_uri())
    _check(page)
    for width in (390, 1366):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with serving([tmp_path]) as address:
        page.goto(f"{address.url}run/{key_of(address, 'made')}")
        _check(page)
        page.locator("a[aria-label='9 of class cat taken for dog']").click()
        page.locator("text=Show all mistakes").wait_for()
        assert page.locator(".cam").first.is_visible(), "another address leaves it switched on"
        page.goto("about:blank")  # it asks for news until it is left


def _check(page) -> None:
    page.locator("html[data-drawn=all]").wait_for()
    assert page.locator(".cam").count() == 2
    assert not page.locator(".cam").first.is_visible()
    page.locator("input[name=cam]").check()
    assert page.locator(".cam").first.is_visible()
    assert page.locator(".cam-words").is_visible()
