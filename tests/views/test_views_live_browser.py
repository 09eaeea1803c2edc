"""The live page in a real Chromium: every screen on a recorded run and on one that is trained.

Screenshots are kept in the tests' temporary folder, to be looked at.
"""

from __future__ import annotations

import io
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mnist_runs
import numpy as np
import pytest
from live_server import serving
from PIL import Image
from views_data import losses_until, write_healthy, write_run

import convlens as cl
from convlens.runs import create_run
from convlens.views.live import pace
from convlens.views.live.address import Address
from convlens.views.live.pace import CROWDED_S
from convlens.views.live.store import key_of

EVIL = "<script>alert(1)</script>"
DRAWN = "html[data-drawn=all]"


class Visit:
    """A tab that may ask nobody but the page's own server, with everything that it said."""

    def __init__(
        self, browser: Any, address: Address, at: str = "", scheme: str = "light", width: int = 1366
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 768}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.foreign: list[str] = []
        self.said: list[str] = []
        self.origin = address.url
        self.page.on("request", self._judge)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("dialog", self._dismiss)
        self.page.on("websocket", lambda s: self._own(s.url, address.url.replace("http", "ws")))
        self.page.goto(address.url + at)
        self.page.wait_for_selector(DRAWN, state="attached")

    def _judge(self, request: Any) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self._own(request.url, self.origin)

    def _own(self, url: str, start: str) -> None:
        if not url.startswith(start):
            self.foreign.append(url)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.said.append(message.text)

    def _dismiss(self, dialog: Any) -> None:
        self.said.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def wait(self, name: str, value: str) -> None:
        """Until the page's root says so."""
        self.page.wait_for_selector(f'html[data-{name}="{value}"]', state="attached")

    def says(self, name: str) -> str:
        return self.page.evaluate("name => document.documentElement.dataset[name]", name)

    def text(self, panel: str) -> str:
        return self.page.inner_text(f"#panel-{panel}")

    def changes(self, panel: str, act: Any) -> str:
        """What a panel says once it is another than before."""
        before = self.page.inner_html(f"#panel-{panel}")
        act()
        self.page.wait_for_function(
            "([id, before]) => document.getElementById(id).innerHTML !== before",
            arg=[f"panel-{panel}", before],
        )
        return self.text(panel)

    def pixels(self, place: str) -> bytes:
        return self.page.locator(f"#root-{place}").screenshot()

    def redraws(self, place: str, act: Any) -> None:
        """A figure's picture is another after this."""
        before = self.pixels(place)
        act()
        for _ in range(100):
            if self.pixels(place) != before:
                return
            self.page.evaluate("() => new Promise(requestAnimationFrame)")
        pytest.fail(f"the figure {place} did not change")

    def click_in(self, place: str, right: float, down: float) -> None:
        """Click a figure at these shares of its width and height."""
        figure = self.page.locator(f"#root-{place}")
        box = figure.bounding_box()
        figure.click(position={"x": box["width"] * right, "y": box["height"] * down})

    def keep(self, name: str, folder: Path) -> None:
        self.page.screenshot(path=folder / f"{name}.png", full_page=True)

    def close(self) -> None:
        self.context.close()
        assert self.foreign == []
        assert self.said == []


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recorded trainings of the same network; the second with another order of images."""
    base = tmp_path_factory.mktemp("runs")
    mnist_runs.train(base, mnist_runs.part(), 3)
    mnist_runs.train(base, mnist_runs.part(batch_size=90), 3)
    return base


@pytest.fixture(scope="module")
def served(base: Path) -> Iterator[Address]:
    with serving([base]) as address:
        yield address


@pytest.fixture
def key(base: Path) -> str:
    return key_of(base / "mnist-0001")


def visit_run(browser: Any, served: Address, key: str, more: str = "", **how: Any) -> Visit:
    return Visit(browser, served, f"?run={key}{more}", **how)


def test_the_list_leads_to_a_run_and_back(browser: Any, served: Address, shots: Path) -> None:
    visit = Visit(browser, served)
    rows = visit.page.locator("#panel-runs tbody tr")
    assert rows.count() == 2
    first = rows.first.inner_text()
    visit.changes("runs", visit.page.locator('[data-do="sort"][data-column="name"]').click)
    visit.changes("runs", visit.page.locator('[data-do="sort"][data-column="name"]').click)
    assert rows.first.inner_text() != first or rows.last.inner_text() == first
    visit.keep("list", shots)
    visit.page.get_by_role("link", name="mnist-0001").click()
    visit.page.wait_for_selector("#root-matrix canvas", state="attached")
    visit.wait("drawn", "all")
    assert "mnist-0001" in visit.text("header")
    assert "finished" in visit.text("header")
    visit.page.click("a.home")
    visit.page.wait_for_selector("#panel-runs tbody tr")
    visit.close()


def test_a_row_of_the_matrix_opens_its_layer(
    browser: Any, served: Address, key: str, shots: Path
) -> None:
    visit = visit_run(browser, served, key)
    assert visit.says("layer") == "0.0"
    visit.keep("run", shots)
    before = visit.pixels("layer")
    visit.click_in("matrix", 0.5, 0.6)
    visit.page.wait_for_selector('html:not([data-layer="0.0"])', state="attached")
    chosen = visit.says("layer")
    assert visit.pixels("layer") != before
    assert visit.text("layer").startswith(chosen)
    assert f"layer={chosen}" in visit.page.url
    visit.close()


def test_keys_go_through_the_layers(browser: Any, served: Address, key: str) -> None:
    visit = visit_run(browser, served, key)
    for press, layer in (("j", "0.2"), ("ArrowDown", "1.0"), ("k", "0.2"), ("ArrowUp", "0.0")):
        visit.page.keyboard.press(press)
        visit.wait("layer", layer)
    visit.page.click('[data-do="next-layer"]')
    visit.wait("layer", "0.2")
    visit.close()


def test_the_list_of_keys_goes_away_again(browser: Any, served: Address, key: str) -> None:
    visit = visit_run(browser, served, key, "&epoch=0")
    opened = visit.page.locator("#keys[open]")
    away = (
        lambda: visit.page.keyboard.press("Escape"),
        lambda: visit.page.keyboard.press("?"),
        visit.page.locator("h2").first.click,
        visit.page.locator("#keys summary").click,
    )
    for put_away in away:
        visit.page.keyboard.press("?")
        opened.wait_for()
        put_away()
        opened.wait_for(state="detached")
    assert visit.says("epoch") == "0"  # that Escape was for the list
    visit.close()


def test_a_line_says_what_it_is(browser: Any, served: Address, key: str) -> None:
    visit = visit_run(browser, served, key)
    box = visit.page.locator("#root-curves").bounding_box()
    visit.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 90)
    told = visit.page.get_by_text("training loss: ")
    told.wait_for()
    assert "@" not in told.inner_text()
    visit.close()


def test_the_matrix_is_coloured_by_what_is_chosen(
    browser: Any, served: Address, key: str, shots: Path
) -> None:
    visit = visit_run(browser, served, key)
    for quantity in ("mean", "std", "dead", "gradient", "update", "near_zero"):
        select = visit.page.locator('[data-control="quantity"]')
        visit.redraws("matrix", lambda: select.select_option(quantity))  # noqa: B023 - called at once
        visit.keep(f"matrix-{quantity}", shots)
    visit.close()


def test_the_pointer_tells_batch_and_value_of_every_line(
    browser: Any, served: Address, key: str, shots: Path
) -> None:
    visit = visit_run(browser, served, key)
    told = {"curves": ("training loss: ", "validation loss: "), "layer": ("mean: ",)}
    for place, names in told.items():
        figure = visit.page.locator(f"#root-{place}")
        figure.scroll_into_view_if_needed()
        box = figure.bounding_box()
        right, down = (0.6, 90) if place == "curves" else (0.25, 360)
        visit.page.mouse.move(box["x"] + right * box["width"], box["y"] + down)
        for name in names:
            visit.page.get_by_text(re.compile(rf"^{name}[-−]?\d")).first.wait_for()
        assert visit.page.get_by_text("@").count() == 0
        visit.keep(f"pointer-{place}", shots)
    visit.close()


def test_the_loss_has_a_logarithmic_axis_and_smoothing(
    browser: Any, served: Address, key: str
) -> None:
    visit = visit_run(browser, served, key)
    visit.redraws("curves", visit.page.locator('[data-control="log"]').check)
    slider = visit.page.locator('[data-control="smooth"]')
    visit.redraws("curves", lambda: slider.fill("0"))
    visit.page.locator("h2").first.click()
    visit.redraws("curves", lambda: visit.page.keyboard.press("l"))
    visit.close()


def test_time_axes_are_linked(browser: Any, served: Address, key: str) -> None:
    visit = visit_run(browser, served, key)
    layer = visit.pixels("layer")
    curves, mouse = visit.page.locator("#root-curves"), visit.page.mouse

    def drag() -> None:
        curves.scroll_into_view_if_needed()
        box = curves.bounding_box()
        mouse.move(box["x"] + box["width"] * 0.35, box["y"] + 90)
        mouse.down()
        mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 90, steps=5)
        mouse.up()

    visit.redraws("matrix", drag)
    assert visit.pixels("layer") != layer
    visit.close()


def test_a_unit_a_pixel_and_the_window(
    browser: Any, served: Address, key: str, shots: Path
) -> None:
    visit = visit_run(browser, served, key)
    unit = visit.says("unit")
    maps = visit.page.locator('#panel-features [data-do="unit"]')
    assert maps.count() == 8
    before = visit.text("window")
    shown = visit.changes("unit", lambda: maps.nth(3).click(position={"x": 40, "y": 20}))
    assert visit.says("unit") != unit
    assert visit.says("unit").startswith("3:")
    assert "channel 3" in shown
    assert visit.text("window") != before
    image = visit.page.locator('#panel-unit [data-do="pixel"]').first
    assert "see" in visit.changes("unit", lambda: image.click(position={"x": 30, "y": 30}))
    visit.changes("window", visit.page.locator('#panel-window [data-do="window"]').last.click)
    visit.changes("features", visit.page.locator('#panel-features [data-do="probe"]').nth(4).click)
    assert visit.says("unit").endswith(":4")
    visit.keep("unit", shots)
    visit.close()


def test_maps_after_the_relu(browser: Any, served: Address, key: str) -> None:
    visit = visit_run(browser, served, key)
    stages = visit.page.locator('[data-do="maps"]')
    assert stages.locator("option").all_inner_texts() == ["0.0", "0.1"]
    before = visit.text("window")
    visit.changes("features", lambda: stages.select_option("0.1"))
    assert visit.page.locator('#panel-features [data-layer="0.1"]').count() >= 8
    assert visit.text("window") == before  # it is the convolution's
    visit.page.keyboard.press("j")
    visit.wait("layer", "0.2")
    assert visit.page.locator('[data-do="maps"]').count() == 0
    visit.close()


EPOCHS = """() => {
  const root = document.documentElement;
  window.epochs = [];
  new MutationObserver(() => {
    if (root.dataset.epoch !== window.epochs.at(-1)) window.epochs.push(root.dataset.epoch);
  }).observe(root, { attributes: true, attributeFilter: ["data-epoch"] });
}"""
"""Keeps every epoch that is shown: where both cores work, waiting for one may miss it."""


def test_going_through_time(browser: Any, served: Address, key: str) -> None:
    visit = visit_run(browser, served, key)
    slider = visit.page.locator('#panel-features input[data-do="epoch"]')
    newest = visit.text("features")
    assert "after epoch 3" in newest
    visit.redraws("matrix", lambda: slider.fill("0"))
    visit.wait("epoch", "-1")
    assert "before training" in visit.text("features")
    assert "before training" in visit.text("kernels")
    visit.page.locator("h2").first.click()
    visit.page.keyboard.press("ArrowRight")
    visit.wait("epoch", "0")
    visit.page.evaluate(EPOCHS)
    visit.page.keyboard.press(" ")
    visit.wait("epoch", "newest")
    visit.wait("playing", "false")
    assert visit.page.evaluate("window.epochs") == ["0", "1", "newest"]
    assert visit.text("features") == newest
    visit.close()


def test_what_lies_beside(browser: Any, served: Address, key: str, shots: Path) -> None:
    visit = visit_run(browser, served, key)
    assert visit.page.locator("#panel-beside .gallery img").count() == 32
    side = '[data-do="side"][data-side="{}"]'
    visit.changes("beside", visit.page.locator(side.format("confusion")).click)
    cell = visit.page.locator('#panel-beside td.wrong [data-do="confusion"]').first
    true, predicted = cell.get_attribute("data-true"), cell.get_attribute("data-predicted")
    told = visit.changes("beside", cell.click)
    assert f"{true}" in told
    assert f"{predicted}" in told
    assert visit.page.locator("#panel-beside .mistakes img").count() >= 1
    visit.keep("confusion", shots)
    visit.changes("beside", visit.page.locator(side.format("findings")).click)
    visit.page.wait_for_selector("#panel-beside .findings, #panel-beside .found")
    visit.keep("findings", shots)
    assert "Conv2d" in visit.changes("beside", visit.page.locator(side.format("summary")).click)
    assert "torch" in visit.changes("beside", visit.page.locator(side.format("about")).click)
    visit.close()


def test_an_address_leads_to_the_same_place(browser: Any, served: Address, key: str) -> None:
    visit = visit_run(browser, served, key, "&layer=1.0&quantity=std&side=summary&epoch=0")
    assert visit.says("layer") == "1.0"
    assert visit.says("epoch") == "0"
    assert visit.page.locator('[data-control="quantity"]').input_value() == "std"
    visit.page.reload()
    visit.wait("drawn", "all")
    assert visit.says("layer") == "1.0"
    visit.close()


def test_dark_follows_the_system_and_the_choice(
    browser: Any, served: Address, key: str, shots: Path
) -> None:
    visit = visit_run(browser, served, key, scheme="dark")
    assert visit.says("theme") == "dark"
    visit.keep("dark", shots)
    visit.page.locator("#root-matrix").hover(position={"x": 300, "y": 80})
    tip = visit.page.locator(".bk-Tooltip")
    card = "rgb(22, 27, 32)"
    assert tip.first.evaluate("e => getComputedStyle(e).backgroundColor") == card
    visit.page.select_option("#theme", "light")
    visit.page.wait_for_selector("html[data-theme=light][data-drawn=all]", state="attached")
    visit.close()


def test_two_runs_side_by_side(browser: Any, served: Address, base: Path, shots: Path) -> None:
    visit = Visit(browser, served)
    for box in (0, 1):
        visit.changes("runs", visit.page.locator('[data-do="compare"]').nth(box).click)
    visit.page.locator("#panel-runs a.go").click()
    visit.wait("compared", "true")
    assert re.search(r"mnist-000[12] beside mnist-000[12]", visit.text("header"))
    assert re.search(r"part at step \d+", visit.text("parting"))
    assert "batch size" in visit.text("differences")
    visit.keep("compare", shots)
    visit.redraws("layer", lambda: visit.click_in("overview", 0.5, 0.7))
    visit.close()


BETWEEN = [pytest.param(width, marks=pytest.mark.slow) for width in (1366, 1920)]


@pytest.mark.parametrize("width", [700, *BETWEEN, 2560])
def test_it_fits_a_narrow_and_a_wide_window(
    browser: Any, served: Address, key: str, shots: Path, width: int
) -> None:
    visit = visit_run(browser, served, key, width=width)
    over = visit.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert over <= 0
    visit.keep(f"run-{width}", shots)
    visit.close()


def brightness(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(int)


@pytest.mark.parametrize(
    ("at", "key_pressed", "to"),
    [("0.2", "j", "1.0"), pytest.param("1.0", "k", "0.2", marks=pytest.mark.slow)],
)
def test_a_layer_looks_the_same_however_one_came_there(
    browser: Any, served: Address, key: str, shots: Path, at: str, key_pressed: str, to: str
) -> None:
    there = visit_run(browser, served, key, f"&layer={to}")
    expected = brightness(there.pixels("layer"))
    there.close()
    visit = visit_run(browser, served, key, f"&layer={at}")
    visit.page.keyboard.press(key_pressed)
    visit.wait("layer", to)
    for _ in range(100):
        now = brightness(visit.pixels("layer"))
        # The edges of letters and lines differ by some levels of 255.
        if now.shape == expected.shape and np.abs(now - expected).max() < 64:
            break
        visit.page.evaluate("() => new Promise(requestAnimationFrame)")
    else:
        pytest.fail("a page that was opened at the layer looks otherwise")
    visit.keep(f"layer-{to}-from-{at}", shots)
    visit.close()


# ---- a run that grows --------------------------------------------------------------------------


def test_a_training_is_seen_while_it_goes_on(browser: Any, tmp_path: Path, shots: Path) -> None:
    script = Path(mnist_runs.__file__)
    with serving([tmp_path]) as address:
        visit = Visit(browser, address, "?list=1")
        assert "convlens train" in visit.text("runs")  # how to make one
        stop = tmp_path / "stop"
        with subprocess.Popen([sys.executable, script, str(tmp_path), "400", stop]) as training:
            visit.page.get_by_role("link", name="mnist-0001").click()
            visit.wait("drawn", "all")
            seen = [int(visit.says("steps"))]
            for _ in range(4):
                visit.page.wait_for_function(
                    "s => Number(document.documentElement.dataset.steps) > s", arg=seen[-1]
                )
                seen.append(int(visit.says("steps")))
            layer = visit.pixels("layer")
            visit.redraws(
                "curves",
                lambda: visit.page.wait_for_function(
                    "s => Number(document.documentElement.dataset.steps) > s + 10", arg=seen[-1]
                ),
            )
            latest = time.monotonic() + 2 * CROWDED_S
            while visit.pixels("layer") == layer:  # it follows when it is due
                assert time.monotonic() < latest
                visit.page.wait_for_function(
                    "s => Number(document.documentElement.dataset.steps) > s",
                    arg=int(visit.says("steps")),
                )
            visit.keep("growing", shots)
            stop.touch()
            assert training.wait(120) == 0
        visit.page.wait_for_function(
            "() => document.getElementById('panel-header').innerText.includes('stopped')"
        )
        visit.wait("steps", str(cl.open_run(tmp_path / "mnist-0001").steps.step[-1]))
        visit.close()


LINE = """() => {
  const { data } = Bokeh.documents.at(-1).get_model_by_name("newest-losses");
  return [...(data instanceof Map ? data.get("xs") : data.xs)[0] ?? []];
}"""


def test_the_script_makes_the_line_of_losses_longer(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace.Pace, "due", lambda self, age_s: False)  # nothing else would show it
    with serving([tmp_path]) as address, create_run(directory=tmp_path / "run") as writer:
        losses_until(writer, 1000)
        visit = Visit(browser, address)
        visit.page.evaluate(
            """() => {
            window.heard = 0;
            Bokeh.documents.at(-1).on_message("added", () => { window.heard += 1; });
        }"""
        )
        # A line is begun by the figures; what follows is added, also to one that is cut short.
        for n in (1001, 1003, 1005):
            losses_until(writer, n)
            visit.wait("steps", str(n - 1))
            visit.page.wait_for_function(f"n => ({LINE})().length === n", arg=n)
            assert visit.page.evaluate(LINE) == list(range(n))
            assert f"{n:,} steps" in visit.text("header")
            if n == 1003:
                visit.page.evaluate(
                    """() => {
                    const line = Bokeh.documents.at(-1).get_model_by_name("newest-losses");
                    const data = { xs: [Float32Array.of(0)], ys: [Float32Array.of(1)], name: [""] };
                    line.setv({ data }, { sync: false });
                }"""
                )
        assert visit.page.evaluate("window.heard") == 2
        visit.close()


# ---- runs that have little to show -------------------------------------------------------------


def little(base: Path) -> dict[str, str]:
    """Runs in odd states, and what the page has to say of each."""
    create_run("empty", base).flush(wait=True)  # begun, then cut off
    bare = create_run("bare", base)
    bare.close("failed", "CUDA out of memory")
    cl.Learner(
        mnist_runs.part(100, 50), cl.simple_cnn(1, 10), run=base / "one", progress=False
    ).fit(1)
    healthy = write_healthy(base)
    newer = base / "newer"
    write_healthy(base).path.rename(newer)
    with sqlite3.connect(newer / "run.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    return {
        "empty-0001": "steps",
        "bare-0001": "CUDA out of memory",
        "one": "No layer was watched",
        healthy.name: "layer 1 of",
        "newer": "written by another convlens",
    }


def test_there_is_always_something_to_read(browser: Any, tmp_path: Path, shots: Path) -> None:
    told = little(tmp_path)
    with serving([tmp_path]) as address:
        for name, words in told.items():
            visit = Visit(browser, address, f"?run={key_of(tmp_path / name)}")
            assert words in visit.page.inner_text("body")
            visit.keep(f"state-{name}", shots)
            visit.close()


def test_a_run_with_pictures_alone_shows_them(browser: Any, tmp_path: Path) -> None:
    learn = cl.Learner(
        mnist_runs.part(300, 100), cl.simple_cnn(1, 10), callbacks=[cl.Pictures()],
        run=tmp_path / "pictures", progress=False,
    )  # fmt: skip
    learn.fit(2)
    with serving([tmp_path]) as address:
        visit = Visit(browser, address)
        assert "No layer was watched" in visit.text("layer")
        first = visit.page.locator('[data-do="maps"] option').first.inner_text()
        maps = f'#panel-features [data-do="unit"][data-layer="{first}"]'
        assert visit.page.locator(maps).count() == 8
        assert "out" in visit.text("kernels")
        visit.page.locator("h2").first.click()
        visit.changes("kernels", lambda: visit.page.keyboard.press("ArrowLeft"))
        visit.wait("epoch", "0")
        visit.close()


def test_texts_of_a_run_are_never_code(browser: Any, tmp_path: Path) -> None:
    classes = [EVIL, '"><img src=x onerror=alert(1)>', *"23456789"]
    path = mnist_runs.train(tmp_path, mnist_runs.part(300, 100, classes=classes), 1)
    path = path.rename(tmp_path / EVIL.replace("/", "∕"))
    with serving([tmp_path]) as address:
        visit = Visit(browser, address, "?list=1")
        visit.close()
        visit = Visit(browser, address, f"?run={key_of(path)}&side=findings")
        for side in ("images", "confusion", "summary", "about", "findings"):
            chosen = visit.page.locator(f'[data-do="side"][data-side="{side}"]')
            visit.changes("beside", chosen.click)
            assert visit.page.locator("img[src=x]").count() == 0
            assert "alert(1)" in visit.page.inner_text("body")
        visit.close()


def test_the_page_goes_on_when_a_run_is_deleted(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path, "gone", [], np.ones(3), ())
    write_healthy(tmp_path)
    with serving([tmp_path]) as address:
        visit = Visit(browser, address, f"?run={key_of(run.path)}")
        shutil.rmtree(run.path)
        visit.page.wait_for_selector("#panel-trouble .state")
        visit.page.click("a.home")
        visit.page.wait_for_selector("#panel-runs tbody tr")
        visit.close()


@contextmanager
def command(base: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """The command itself, and where it says that the page is; it ends with the test."""
    words = [sys.executable, "-m", "convlens", "view", str(base), "--no-browser"]
    with subprocess.Popen(
        [*words, "--port", str(port)], stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
            assert found is not None
            yield process, Address(port=int(found[1]))
        finally:
            process.kill()


def test_a_server_that_ends_is_told_and_found_again(
    browser: Any, tmp_path: Path, shots: Path
) -> None:
    run = write_healthy(tmp_path)
    with command(tmp_path) as (first, address):
        visit = Visit(browser, address, f"?run={key_of(run.path)}")
        visit.page.keyboard.press("j")
        visit.wait("layer", "0.2")
        first.kill()
    visit.wait("drawn", "lost")
    assert "connection to the server is lost" in visit.text("trouble")
    visit.keep("lost", shots)
    visit.page.keyboard.press("j")  # nobody is there to hear it
    with command(tmp_path, address.port):
        visit.wait("drawn", "all")
        assert visit.says("layer") == "0.2"
        assert visit.text("trouble") == ""
        visit.page.keyboard.press("j")
        visit.wait("layer", "1.0")
        # Chromium itself reports every request that finds no server.
        visit.said = [said for said in visit.said if "ERR_CONNECTION_REFUSED" not in said]
        visit.close()
