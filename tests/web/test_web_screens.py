"""Every screen once in Chromium: nothing on the console, nothing from elsewhere, nothing cut."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import key_of, serving
from sample_trainings import train_until

from convlens.runs import open_run
from convlens.web.report import write_report

Recorded = Callable[[str], Path]

SMALL = (
    "own-loop", "own-loop-logged", "one-step", "one-epoch", "channels-4-6-8", "channels-10-12-14",
    "crashed", "wrong-values", "wrong-inner-values", "nan", "frozen", "names",
)  # fmt: skip
LARGE = ("demo", "collapsed", "resnet50", "efficientnet-b0", "150-layers")
DAMAGED = {"damaged": "is damaged or incomplete", "damaged-columns": "is damaged or incomplete"}

WIDTHS = (390, 1366, 1920, 2560)

CUT = """() => {
  const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  const shown = [...document.querySelectorAll("main *")].filter((e) => e.checkVisibility());
  const cut = shown.filter((e) => !e.closest(".figure, .scroll, pre, .unseen, table, h2, p")
    && getComputedStyle(e).overflowX === "hidden" && e.scrollWidth > e.clientWidth + 1);
  return [...(wide ? ["the page"] : []), ...cut.map((e) => e.outerHTML.slice(0, 120))];
}"""


@pytest.fixture
def screen(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address; whatever is on the console or asked of another origin fails the test."""
    bad, tabs = list[str](), list[Any]()

    def show(url: str, width: int = 1366, scheme: str = "light", console: bool = True) -> Any:
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        tabs.append(tab)
        own = url.split("/run/", maxsplit=1)[0].split("/compare", maxsplit=1)[0]
        if console:
            tab.on("console", lambda m: m.type in ("error", "warning") and bad.append(m.text))
        tab.on("pageerror", lambda error: bad.append(str(error)))
        local = (own, "data:", "blob:", "file:")
        tab.on("request", lambda r: r.url.startswith(local) or bad.append(r.url))
        tab.goto(url)
        # Findings that come later are something new to show, and figures are asked for anew.
        tab.get_by_text("Looking for problems …").wait_for(state="hidden")
        drawn(tab)
        return tab

    yield show
    for tab in tabs:
        tab.close()
    assert not bad


def drawn(tab: Any) -> None:
    tab.locator("html[data-drawn=all]").wait_for(timeout=120_000)


def look(screen: Callable[..., Any], url: str) -> None:
    for i, width in enumerate(WIDTHS):
        tab = screen(url, width, ("light", "dark")[i % 2])
        assert tab.evaluate(CUT) == [], width
        tab.close()


@pytest.mark.parametrize("name", [SMALL[0], *(pytest.param(n, marks=pytest.mark.slow)
                                             for n in (*SMALL[1:], *LARGE))])  # fmt: skip
def test_every_run_at_every_width(recorded: Recorded, screen: Callable[..., Any], name: str):
    with serving([recorded(name)]) as at:
        look(screen, f"{at.url}run/{key_of(at, name)}")


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_run_says_so_in_one_sentence(recorded: Recorded, screen: Any, name: str):
    with serving([recorded(name).parent]) as at:
        tab = screen(
            f"{at.url}run/{key_of(at, name)}", console=False
        )  # Chromium logs every status 410
        said = tab.locator("main p:visible, .figure.failed").all_inner_texts()
        assert any(DAMAGED[name] in one for one in said)
        assert "#fefefe" not in tab.locator("main").inner_text()


@pytest.mark.slow  # test_web_lists and test_web_compare have the same pages
def test_the_list_and_several_runs(recorded: Recorded, screen: Any):
    names = ("one-epoch", "nan", "own-loop", "one-step", "channels-4-6-8")
    with serving([recorded(name) for name in names]) as at:
        look(screen, at.url)
        tab = screen(at.url)
        for n in (2, 5):
            boxes = tab.locator("input[name=run]")
            for i in range(n):
                boxes.nth(i).check()
            tab.get_by_role("button", name="Compare").click()
            drawn(tab)
            assert tab.locator("h1").inner_text() == f"{n} runs compared"
            if n == 2:
                look(screen, tab.url)
            tab.go_back()
            drawn(tab)
        tab.close()


def test_clicks_of_a_learner(recorded: Recorded, screen: Any):
    with serving([recorded("channels-4-6-8")]) as at:
        tab = screen(f"{at.url}run/{key_of(at, 'channels')}")
        first = tab.url
        asked = list[str]()
        tab.on("request", lambda r: "/figure/" in r.url and asked.append(r.url))
        tab.locator(".maps-of button.map").nth(1).click()
        tab.wait_for_url("**channel=1**")
        drawn(tab)
        assert not asked  # another unit draws no figure anew
        tab.go_back()
        tab.wait_for_url(first)
        drawn(tab)
        tab.locator("[data-play]").click()
        tab.locator("html[data-playing=true]").wait_for()
        tab.locator("html[data-playing=false]").wait_for(timeout=60_000)
        assert tab.locator("[data-next-epoch]").count() == 0
        tab.locator(".matrix td.wrong a").first.click()
        tab.wait_for_url("**predicted=**")
        drawn(tab)
        tab.wait_for_timeout(1000)  # it scrolls there smoothly
        assert tab.evaluate("mistakes.getBoundingClientRect().top < innerHeight")
        tab.close()


def test_a_dragged_zoom_fits_the_loss_and_stays(recorded: Recorded, screen: Any):
    with serving([recorded("own-loop-logged")]) as at:
        tab = screen(f"{at.url}run/{key_of(at, 'own-loop')}")
        ends = """() => {
          const roots = Bokeh.documents.flatMap((one) => one.roots());
          const plots = roots.flatMap((one) => one.children ?? []);
          const { start, end } = plots.find((one) => one.tags.includes("fit")).y_range;
          return [start, end];
        }"""
        whole = tab.evaluate(ends)
        box = tab.locator("#figure-curves").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + 150
        tab.mouse.move(x, y)
        tab.mouse.down()
        tab.mouse.move(x + 100, y + 10, steps=5)
        tab.mouse.up()
        tab.wait_for_url("**zoom=**")
        tab.wait_for_timeout(200)
        assert tab.evaluate(ends)[1] < whole[1] / 2
        zoomed = tab.url
        tab.keyboard.press("j")
        tab.wait_for_url("**layer=**")
        drawn(tab)
        assert zoomed.split("zoom=")[1] in tab.url
        tab.close()  # before the server


def test_a_growing_run_is_drawn_in_place(tmp_path: Path, screen: Any):
    stop = tmp_path / "stop"
    training = threading.Thread(target=train_until, args=(tmp_path / "growing", stop))
    training.start()
    try:
        with serving([tmp_path]) as at:
            while not at_least_one_epoch(tmp_path / "growing"):
                training.join(0.2)
            tab = screen(f"{at.url}run/{key_of(at, 'growing')}")
            before = tab.locator("html").get_attribute("data-mark")
            tab.evaluate("document.querySelector('#figure-curves').firstElementChild.id = 'kept'")
            tab.locator(f'html:not([data-mark="{before}"])').wait_for(timeout=60_000)
            drawn(tab)
            assert tab.locator("#kept").count() == 1  # not erased and drawn anew
            stop.touch()
            tab.locator(".status", has_text="running").wait_for(state="detached", timeout=60_000)
            drawn(tab)
            tab.close()
    finally:
        stop.touch()
        training.join()


def at_least_one_epoch(path: Path) -> bool:
    return (path / "run.db").exists() and bool(open_run(path).epochs)


@pytest.mark.slow  # Chromium draws every figure on two cores: test_web_report has one report
@pytest.mark.parametrize("name", ["one-epoch", *LARGE])
def test_reports(recorded: Recorded, screen: Any, tmp_path: Path, name: str):
    path = write_report(open_run(recorded(name)), tmp_path / "report.html")
    assert path.stat().st_size < 6_000_000
    tab = screen(path.as_uri())
    tab.emulate_media(media="print")
    assert tab.pdf()[:4] == b"%PDF"
