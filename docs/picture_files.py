"""How the pictures of the docs are written: small files, sizes that stay the same, Chromium."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
DPI = 110
LARGEST_ERROR = 24.0  # of 255: what a palette may change of any pixel at most
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def save(drawn: Axes | Sequence[Axes] | Figure | SubFigure, name: str) -> None:
    """Write a picture into ``docs/images``, such as ``while-training/loss``; close its figure."""
    if isinstance(drawn, list | tuple):
        drawn = drawn[0]
    figure = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, bbox_inches="tight", pad_inches=0.08)
    plt.close(figure)
    write_png(buffer.getvalue(), IMAGES / f"{name}.png")


def write_png(data: bytes, path: Path) -> None:
    """A PNG with a palette of 256 colours where that is hardly seen, and without metadata."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    # Median cut would take the rare colours, such as the bright end of a colour bar, for others.
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    pixels = [np.asarray(one.convert("RGB"), np.float64) for one in (image, few)]
    error = float(np.abs(pixels[0] - pixels[1]).max())
    path.parent.mkdir(parents=True, exist_ok=True)
    (few if error <= LARGEST_ERROR else image).save(path, optimize=True)
    print(f"{path.relative_to(IMAGES)}  {path.stat().st_size / 1000:.0f} kB")  # noqa: T201


@contextmanager
def chromium() -> Generator[Browser]:
    """A browser that asks nobody for anything.

    Raises:
        FileNotFoundError: if Chromium is not installed.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise FileNotFoundError("chromium is not on the path; install it (Debian: chromium).")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield browser
        browser.close()


def screenshot(
    browser: Browser,
    address: str,
    name: str,
    *,
    size: tuple[int, int] = (1280, 800),
    dark: bool = False,
    ready: str = "body",
    prepare: Callable[[Page], None] | None = None,
    first: str | None = None,
    last: str | None = None,
) -> None:
    """A picture of a page, as large as the window or from one element to another.

    Args:
        browser: from `chromium`.
        address: of the page; ``file:`` for a report.
        name: as in `save`.
        size: width and height of the window, pixels.
        dark: whether to prefer dark colours.
        ready: a selector of what is there when all is drawn.
        prepare: clicks and waits before the picture is taken.
        first: selector of the element whose top is the picture's; None for the whole window.
        last: selector of the element whose bottom is the picture's; ``first`` if None.

    Raises:
        RuntimeError: if the page reports an error, so that no broken page becomes a picture.
    """
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
    )
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.goto(address)
    page.locator(ready).first.wait_for(state="attached")
    if prepare is not None:
        prepare(page)
    if errors:
        raise RuntimeError(f"{address} says: {errors[0]}")
    if first is None:
        data = page.screenshot()
    else:
        page.evaluate("window.scrollTo({ top: 0, behavior: 'instant' })")
        top, bottom = (page.locator(place).bounding_box() for place in (first, last or first))
        assert top is not None
        assert bottom is not None
        height = bottom["y"] + bottom["height"] - top["y"]
        clip = {"x": top["x"], "y": top["y"], "width": top["width"], "height": height}
        data = page.screenshot(full_page=True, clip=clip)
    write_png(data, IMAGES / f"{name}.png")
    page.close()
