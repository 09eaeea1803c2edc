"""Makes the pictures of the README and the docs from a real run: `python docs/pictures.py RUN`.

Needs Chromium and the package's extra `test`. RUN is a run of `make demo`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import convlens as cl

IMAGES = Path(__file__).parent / "images"
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def shoot(page: Page, first: str, last: str, out: Path) -> None:
    """A picture from the top of one element to the bottom of another."""
    top, bottom = (page.locator(name).bounding_box() for name in (first, last))
    assert top is not None
    assert bottom is not None
    height = bottom["y"] + bottom["height"] - top["y"]
    page.screenshot(
        path=out,
        full_page=True,
        clip={"x": top["x"], "y": top["y"], "width": top["width"], "height": height},
    )


def main() -> None:
    """Draw the report of a run."""
    report = cl.report(sys.argv[1]).resolve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 14000})
        page.goto(report.as_uri())
        for plot in page.locator("#layers .plot, #layer-0 .plot").all():
            plot.locator("canvas").first.wait_for()
        page.wait_for_function("!document.querySelector('#layer-0 .bk-loading')")
        shoot(page, "#layers", "#layer-0", IMAGES / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
