"""Pictures of the live page: its server is the command itself, its runs are real."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import picture_files as files
from playwright.sync_api import Page

DRAWN = "html[data-drawn=all]"
LAPTOP = (1366, 768)


@contextmanager
def served(run: Path) -> Generator[str]:
    """The address of the page of one run, while it is served."""
    command = [sys.executable, "-m", "convlens", "view", str(run), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found is not None
            yield found[0]
        finally:
            server.terminate()


def to_layer(name: str, more: str = "") -> str:
    """The address's end that opens a layer."""
    return f"&layer={name}{more}"


def choose_unit(page: Page) -> None:
    """A unit in the middle of the third channel, and a pixel."""
    page.locator('#panel-features [data-do="unit"]').nth(2).click()
    page.locator('#panel-unit [data-do="pixel"]').first.click(position={"x": 50, "y": 45})
    page.wait_for_function(
        "() => document.getElementById('panel-unit').innerText.includes('see pixel')"
    )


def draw(run: Path) -> None:
    """The run, a unit of its first layer, and its mistakes; light and dark."""
    with served(run) as address, files.chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector(DRAWN, state="attached")
        page.wait_for_function("() => location.search.includes('run=')")
        start = page.url.partition("&")[0]
        page.close()
        for name, end, dark in (("page", "1.0", False), ("page/dark", "0.0", True)):
            files.screenshot(
                browser, start + to_layer(end), name, size=LAPTOP, dark=dark, ready=DRAWN
            )
        files.screenshot(
            browser, start + to_layer("0.0"), "page/unit", size=LAPTOP, ready=DRAWN,
            prepare=choose_unit, first=".card:has(> #panel-unit)",
        )  # fmt: skip
        files.screenshot(
            browser, start + to_layer("0.0", "&side=confusion"), "page/mistakes", size=LAPTOP,
            ready=DRAWN, first=".below",
        )  # fmt: skip
