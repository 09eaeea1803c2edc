"""The panels in a real Chromium, under the page's policy: nothing cut off, marks in their places.

The screenshots are kept in the tests' temporary folder, to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from snapshots_data import digits
from test_views_panels_lists import EPOCHS, INFOS, META, NOW

from convlens.core.snapshots import Confusion
from convlens.views.panels import (
    Choice,
    confusion,
    facts_of_layer,
    features,
    header,
    kernels,
    mistakes,
    runs,
    through_time,
    unit,
    window,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@contextmanager
def opened(browser: Any, body: str, width: int = 1366, scheme: str = "light") -> Iterator[Any]:
    styles = "".join(
        (files("convlens.views") / name).read_text("utf-8") for name in ("report.css", "panels.css")
    )
    context = browser.new_context(viewport={"width": width, "height": 768}, color_scheme=scheme)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.set_content(
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>panels</title>'
        f"<style>{styles}</style></head><body><main><section>{body}</section></main></body></html>"
    )
    yield page
    context.close()
    assert not said


def all_panels(live: bool) -> str:
    kept = digits()
    maps, fields, effective = kept.maps, kept.fields, kept.effective
    choice = Choice(probe=2, channel=3, cell=(2, 4), pixel=(12, 14))
    parts = [
        header("mnist-0001", META, EPOCHS, 200, 4.2, NOW, NOW),
        facts_of_layer(META, "0.0"),
        features(maps["0.0"][-1], kept.probes, [-1, 0, 1], choice, live=live),
        features(maps["1.0"][-1], kept.probes, [-1, 0, 1], choice, shared=True, live=live),
        through_time(maps["1.0"], kept.probes, 2),
        unit(maps["1.0"][-1], kept.probes, fields["1.0"], effective["1.0"], choice, live),
        window(kept.kernels["0.0"][-1], kept.probes, maps["0.0"][-1], choice, live),
        kernels(kept.kernels["1.0"][-1], [-1, 0, 1], 3, live),
        confusion(kept.confusion[-1], [0, 1], (4, 9), live),
        confusion(many_classes(), [0], (3, 60), live),
        mistakes(kept.mistakes[-1], None, kept.confusion[-1]),
        runs(INFOS, lambda info: info.name, compared=["a", "b"], live=live),
        runs([], str),
    ]
    return "".join(parts)


def many_classes(n: int = 100) -> Confusion:
    rng = np.random.default_rng(0)
    counts = np.diag(rng.integers(60, 99, n)) + (rng.random((n, n)) < 0.05)
    names = tuple(f"a rather long name {i}" if i % 9 == 0 else f"class {i}" for i in range(n))
    return Confusion(0, "", counts.astype(np.int64), names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 950, 1366, 1920])
@pytest.mark.parametrize("live", [True, False])
def test_nothing_is_wider_than_the_page(
    browser: Any,
    tmp_path: Path,
    width: int,
    scheme: str,
    live: bool,
):
    with opened(browser, all_panels(live), width, scheme) as page:
        page.screenshot(path=tmp_path / f"panels-{width}-{scheme}-{live}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(SPILLED) == []
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert page.evaluate(broken) == 0
        narrow = "[...document.images].filter(i => i.getBoundingClientRect().width < 12).length"
        assert page.evaluate(narrow) == 0


def test_the_mark_lies_on_the_chosen_cell(browser: Any):
    kept = digits()
    html = features(kept.maps["1.0"][-1], kept.probes, [1], Choice(channel=3, cell=(2, 4)))
    with opened(browser, html) as page:
        image = page.locator(".tile.chosen img").bounding_box()
        mark = page.locator(".tile.chosen rect.chosen").bounding_box()
        cell = image["width"] / 7
        assert mark["x"] + mark["width"] / 2 == pytest.approx(image["x"] + 4.5 * cell, abs=1)
        assert mark["y"] + mark["height"] / 2 == pytest.approx(image["y"] + 2.5 * cell, abs=1)
        assert mark["width"] == pytest.approx(cell, abs=4)


@pytest.mark.parametrize("n", [21, 60, 100])
def test_each_name_stands_beside_its_row(browser: Any, n: int):
    with opened(browser, confusion(many_classes(n))) as page:
        image = page.locator(".many img").bounding_box()
        names = page.locator(".many .names > span")
        for i in (0, n // 2, n - 1):
            box = names.nth(i).bounding_box()
            middle = (box["y"] + box["height"] / 2 - image["y"]) / image["height"]
            assert middle * n == pytest.approx(i + 0.5, abs=0.3)


def test_what_has_the_focus_is_seen(browser: Any):
    with opened(browser, all_panels(live=True)) as page:
        for kind in ("unit", "pixel", "probe", "epoch", "window", "confusion", "sort", "compare"):
            one = page.locator(f"[data-do={kind}]").first
            page.keyboard.press("Tab")
            one.focus()
            outline = one.evaluate(
                "e => getComputedStyle(e).outlineStyle + getComputedStyle(e).outlineWidth"
            )
            assert outline == "solid3px", kind


def test_nothing_that_is_written_is_faint(browser: Any):
    """Contrast of text by WCAG 2.2: at least 4.5, with the colour of the cell that it stands on."""
    for scheme in ("light", "dark"):
        with opened(browser, all_panels(live=True), scheme=scheme) as page:
            faint = page.evaluate(CONTRAST)
            assert not faint, faint[:5]


SPILLED = """[...document.querySelectorAll(".cells td, .matrix td, figcaption, .pair, dd")]
  .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"""

CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const painted = colours => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const faint = [];
  for (const one of document.querySelectorAll(".panel *")) {
    const own = [...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || one.closest(".zero, svg, option")) continue;
    const below = [];
    for (let e = one; e; e = e.parentElement) below.unshift(getComputedStyle(e).backgroundColor);
    const paper = light(painted(below));
    const ink = light(painted([...below, getComputedStyle(one).color]));
    const ratio = Math.max(paper, ink) / Math.min(paper, ink);
    if (ratio < 4.5) faint.push([one.className, one.textContent.slice(0, 30), ratio.toFixed(2)]);
  }
  return faint;
}"""
