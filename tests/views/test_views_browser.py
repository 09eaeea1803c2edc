"""The report in a real Chromium: what is drawn, what is asked for, what a click changes.

The screenshots are kept in the tests' temporary folder, to be looked at.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_views_report import EVIL, HEADINGS, write_evil
from views_data import (
    LAYOUT,
    PER_EPOCH,
    create_run,
    healthy_loss,
    layer_infos,
    normal_columns,
    open_run,
    step_series,
    write_columns,
    write_run,
)

from convlens.core.histories import LayerInfo
from convlens.views import write_report

ALL_DRAWN = "html[data-drawn=all]"


class Visit:
    """A page that may ask for nothing, with everything that it said."""

    def __init__(self, browser: Any, file: Path, scheme: str = "light", width: int = 1280) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.said: list[str] = []
        self.address = file.absolute().as_uri()
        self.page.route("**/*", self._judge)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("dialog", self._dismiss)
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.page.goto(self.address)

    def _judge(self, route: Any) -> None:
        url = route.request.url
        if url.partition("#")[0] == self.address or url.startswith(("data:", "blob:")):
            route.continue_()
        else:
            self.asked.append(url)
            route.abort()

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.said.append(message.text)

    def _dismiss(self, dialog: Any) -> None:
        self.said.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def wait(self, selector: str = ALL_DRAWN) -> Any:
        self.page.wait_for_selector(selector, timeout=60_000, state="attached")
        return self.page

    def range(self, place: str) -> tuple[float, float]:
        return tuple(
            self.page.evaluate(
                """place => {
                    for (const doc of Bokeh.documents) {
                        const view = Bokeh.index.find_one(doc.roots()[0]);
                        if (view.el.parentNode.id === place
                            || view.el.getRootNode().host?.id === place) {
                            const range = doc.get_model_by_name("steps");
                            return [range.start, range.end];
                        }
                    }
                    return [];
                }""",
                place,
            )
        )

    def picture(self, name: str, folder: Path) -> np.ndarray:
        png = self.page.screenshot(full_page=True, timeout=180_000)  # a long page
        (folder / f"{name}.png").write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def close(self) -> None:
        self.context.close()
        assert self.asked == []
        assert self.said == []


def part_of(picture: np.ndarray, box: dict[str, float]) -> np.ndarray:
    top, left = int(box["y"]), int(box["x"])
    return picture[top : top + int(box["height"]), left : left + int(box["width"])]


def shot_of(element: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"))


def n_colours(picture: np.ndarray) -> int:
    packed = picture.astype(np.int64) @ np.array([65536, 256, 1])
    return len(np.unique(packed))


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1280), pytest.param("dark", 1440, marks=pytest.mark.slow)]
)
def test_everything_is_drawn(browser, healthy_report, tmp_path, scheme, width):
    visit = Visit(browser, healthy_report, scheme, width)
    page = visit.wait()

    assert page.locator("h2").all_text_contents() == HEADINGS
    # Loss, accuracy, two of the schedule, one matrix, five for each of nine layers.
    assert page.locator(".bk-Figure").count() == 2 + 2 + 1 + 9 * 5
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    picture = visit.picture(f"healthy-{scheme}-{width}", tmp_path)
    # The page behind, and the many colours of nine heat maps upon it.
    assert (picture[2, 2] < 40).all() if scheme == "dark" else (picture[2, 2] > 200).all()
    places = page.locator(".plot:visible").all()
    assert len(places) == 12
    for place in places:
        assert n_colours(part_of(picture, place.bounding_box())) > 20
    visit.close()


@pytest.mark.parametrize(
    ("scheme", "width"), [pytest.param("light", 700, marks=pytest.mark.slow), ("dark", 1280)]
)
def test_a_real_training_is_shown_whole(browser, trained_report, tmp_path, scheme, width):
    visit = Visit(browser, trained_report, scheme, width)
    page = visit.wait()

    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("#layer-0 .kernels img:visible").count() == 8
    assert page.locator("#mistakes .matrix:visible").count() == 1
    # Nothing of a panel lies beyond its section, but for what can be scrolled to.
    beyond = page.evaluate(
        """() => [...document.querySelectorAll('.panel *')].filter(e => {
            if (e.closest('.scroll, .hidden, svg')) return false;
            const [box, its] = [e, e.closest('main > section')].map(x => x.getBoundingClientRect());
            return box.width && box.right > its.right;
        }).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert beyond == []
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    visit.picture(f"demo-{scheme}-{width}", tmp_path)
    visit.close()


def test_the_matrix_shows_what_is_chosen(browser, trained_report):
    visit = Visit(browser, trained_report)
    page = visit.wait()
    page.locator("#layers").scroll_into_view_if_needed()
    before = shot_of(page.locator("#layers .plot:visible"))
    whole = visit.range("plot-matrix-near_zero")

    for key, label in (("update", "update ratio"), ("dead", "share of channels dead")):
        page.locator("#quantity").select_option(value=f"choice-{key}")
        page.locator(f"#plot-matrix-{key} .bk-Figure").wait_for(timeout=20_000)
        assert page.locator("#layers .plot:visible").count() == 1
        assert label in page.locator("#quantity option:checked").text_content()
        assert visit.range(f"plot-matrix-{key}") == whole
        after = shot_of(page.locator("#layers .plot:visible"))
        assert after.shape == before.shape
        assert (after != before).any(axis=2).mean() > 0.2
    page.locator("#quantity").select_option(value="choice-near_zero")
    page.locator("#plot-matrix-near_zero .bk-Figure").wait_for(timeout=20_000)
    assert page.locator("#plot-matrix-dead .bk-Figure").count() == 0
    visit.close()


@pytest.mark.slow
def test_on_paper_nothing_is_cut_or_left_out(browser, trained_report, tmp_path):
    visit = Visit(browser, trained_report, width=1280)
    page = visit.wait()
    n_figures = page.locator(".plot:visible").count()
    folded = page.locator("details:not([open])").count()
    pdf = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert pdf.startswith(b"%PDF")
    assert page.locator("canvas.still").count() == 0
    assert page.locator("details:not([open])").count() == folded > 0

    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 between its margins
    stills = page.locator("canvas.still:visible")
    assert stills.count() == n_figures
    assert page.locator(".plot:visible, nav:visible, details:not([open])").count() == 0
    assert all(n_colours(shot_of(still)) > 20 for still in stills.all()[:3])
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for box in page.locator("table:visible").evaluate_all(
        "all => all.map(t => [t.getBoundingClientRect().right, t.parentNode.scrollHeight - "
        "t.parentNode.clientHeight])"
    ):
        assert box[0] <= 703
        assert box[1] <= 1
    visit.picture("print", tmp_path)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("canvas.still").count() == 0
    visit.close()


def test_a_collapse_is_seen(browser, collapsed_report, tmp_path):
    visit = Visit(browser, collapsed_report)
    page = visit.wait()

    picture = np.asarray(
        Image.open(io.BytesIO(page.locator("#plot-matrix-near_zero").screenshot())).convert("RGB"),
        np.int64,
    )
    # Cividis: dark blue is alive, yellow is all near zero; the last third of the matrix is that.
    yellow = (picture[..., 0] > 230) & (picture[..., 1] > 200) & (picture[..., 2] < 120)
    left, right = picture.shape[1] // 4, picture.shape[1] * 3 // 4
    assert yellow[:, right].mean() > 0.5
    assert yellow[:, left].mean() < 0.2
    visit.picture("collapsed", tmp_path)
    visit.close()


def test_zooming_one_zooms_all_and_goes_back(browser, healthy_report):
    visit = Visit(browser, healthy_report)
    page = visit.wait()
    whole = (-0.5, 5 * PER_EPOCH - 0.5)
    assert visit.range("plot-curves") == whole
    assert not page.locator("#show-all").is_visible()

    box = page.locator("#plot-curves").bounding_box()
    page.mouse.move(box["x"] + 400, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 160, steps=4)
    page.mouse.move(box["x"] + 600, box["y"] + 160, steps=4)
    page.mouse.up()
    page.wait_for_selector("#show-all", state="visible")
    zoomed = visit.range("plot-curves")

    assert 90 < zoomed[1] - zoomed[0] < 200
    assert visit.range("plot-matrix-near_zero") == zoomed
    assert visit.range("plot-layer-8") == zoomed
    page.click("#show-all")
    assert visit.range("plot-layer-8") == whole
    assert visit.range("plot-curves") == whole
    visit.close()


def test_a_row_of_the_matrix_leads_to_its_layer(browser, healthy_report):
    visit = Visit(browser, healthy_report)
    page = visit.wait()

    matrix = page.locator("#plot-matrix-near_zero")
    matrix.scroll_into_view_if_needed()
    # Between title and axis lie nine rows of 26 pixels or so; the fifth is in the middle.
    matrix.click(position={"x": 400, "y": 55 + 4.5 * 26})
    page.wait_for_url("**#layer-*")

    assert page.url.rpartition("#")[2] in {"layer-3", "layer-4", "layer-5"}
    visit.close()


def test_the_list_of_layers_leads_to_them(browser, healthy_report):
    visit = Visit(browser, healthy_report)
    page = visit.wait()

    select = page.locator("nav select")
    assert select.locator("option").count() == 1 + 9
    select.select_option(label="2.2 BatchNorm2d")
    page.wait_for_url("**#layer-5")
    visit.close()


def test_a_change_to_dark_is_followed(browser, healthy_report):
    visit = Visit(browser, healthy_report)
    page = visit.wait()
    before = page.locator("#plot-schedule").screenshot()

    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-scheme=dark]")
    after = page.locator("#plot-schedule").screenshot()

    light, dark = (np.asarray(Image.open(io.BytesIO(png)).convert("L")) for png in (before, after))
    assert light.mean() > 200
    assert dark.mean() < 60
    assert dark.max() > 150
    visit.close()


def test_names_that_are_programs_do_not_run(browser, tmp_path):
    visit = Visit(browser, write_report(write_evil(tmp_path)))
    page = visit.wait()

    assert EVIL.replace("/", "⁄") in page.locator("h1").text_content()
    assert EVIL in page.locator("#layer-0 h3").text_content()
    matrix = page.locator("#plot-matrix-near_zero")
    matrix.scroll_into_view_if_needed()
    matrix.hover(position={"x": 500, "y": 75})
    tip = page.locator(".bk-tooltip-row-value").first
    tip.wait_for(state="attached")
    assert EVIL in " ".join(page.locator(".bk-tooltip-row-value").all_text_contents())
    assert page.locator("img[src=x]").count() == 0
    visit.picture("evil", tmp_path)
    visit.close()


@pytest.mark.parametrize("n_steps", [0, 1, 2])
def test_a_run_that_has_hardly_begun_is_no_blank(browser, tmp_path, n_steps):
    writer = create_run("young", tmp_path)
    writer.write_layers(layer_infos(("0.0", "0.2")), LAYOUT, 0.05)
    if n_steps:
        for i in range(2):
            one = normal_columns(np.zeros(n_steps), np.ones(n_steps), 1000, 4)
            write_columns(writer, i, one)
        writer.write_steps(step_series(np.full(n_steps, 2.3)))
    writer.flush(wait=True)
    visit = Visit(browser, write_report(open_run(writer.path)))
    page = visit.wait()

    assert page.locator("h2").all_text_contents() == HEADINGS
    for section in page.locator("main > section").all():
        assert section.locator(".plot").count() or len(section.inner_text()) > 50
    picture = visit.picture(f"steps-{n_steps}", tmp_path)
    for place in page.locator(".plot:visible").all():
        assert n_colours(part_of(picture, place.bounding_box())) > 20
    visit.close()
    writer.close()


@pytest.mark.slow
def test_many_layers_are_drawn_only_where_one_looks(browser, tmp_path):
    n_layers, n_steps = 27, PER_EPOCH
    one = normal_columns(np.zeros(n_steps), np.ones(n_steps), 10_000, 8)
    infos = [LayerInfo(i, f"backbone.stage.block{i}.conv", "Conv2d") for i in range(n_layers)]
    run = write_run(tmp_path, "deep", [one] * n_layers, healthy_loss(n_steps), (0.9,), infos)
    visit = Visit(browser, write_report(run))
    page = visit.wait()

    assert page.locator(".bk-Figure").count() < 30
    for i in range(0, n_layers, 3):
        page.evaluate("i => document.getElementById(`layer-${i}`).scrollIntoView()", i)
        page.locator(f"#plot-layer-{i} .bk-Figure").first.wait_for(timeout=20_000)
    assert page.locator(".bk-Figure").count() <= 24 * 5 + 1
    page.evaluate("document.getElementById('layer-0').scrollIntoView()")
    page.locator("#plot-layer-0 .bk-Figure").first.wait_for(timeout=20_000)
    page.screenshot(path=tmp_path / "deep.png")  # of the window: a whole page has all of them drawn
    visit.close()
