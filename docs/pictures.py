"""Makes every picture of the README and the docs from real runs: `python docs/pictures.py [RUN]`.

RUN is the folder of a run of `make demo`; without it the demo is trained first. `--samples` is a
folder with the runs of `tests/web/sample_runs.py` that the page's pictures show; without it they
are trained too. `--only` names what to make. Needs Chromium and the package's extra `test`; takes
about three minutes on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import picture_files as files
import pictures_before_training
import pictures_page
import pictures_while_training
from playwright.sync_api import Page

import convlens as cl

DEMO = "train mnist --epochs 5 --lr 0.1 --batch-size 512 --norm batch --gradients --updates --json"
PARTS = ("before-training", "while-training", "report", "page")


def demo(folder: Path) -> Path:
    """Train what `make demo` trains; the run's folder."""
    command = [sys.executable, "-m", "convlens", *DEMO.split(), "--out", str(folder)]
    subprocess.run(command, check=True)
    return next(folder.iterdir())


def shoot_report(run: Path) -> None:
    """The first layer in the report, for the README."""

    def remove_others(page: Page) -> None:
        others = "main > section:not(#layers), details.layer:not(#layer-0)"
        page.locator(others).evaluate_all("found => found.forEach((one) => one.remove())")

    with tempfile.TemporaryDirectory() as folder, files.chromium() as browser:
        page = cl.report(run, Path(folder) / "report.html")
        files.screenshot(
            browser, page.as_uri(), "report", size=(1280, 2800), ready=pictures_page.DRAWN,
            prepare=remove_others, first="#layer-0", last="#layer-0 .figure",
        )  # fmt: skip


def main() -> None:
    """Draw all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="a run of make demo")
    parser.add_argument("--samples", type=Path, help="a folder of runs of tests/web/sample_runs.py")
    parser.add_argument("--only", choices=PARTS, action="append", help="what to make")
    arguments = parser.parse_args()
    parts = arguments.only or PARTS
    if "before-training" in parts:
        pictures_before_training.draw()
    if set(parts) == {"before-training"}:
        return
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or demo(Path(folder))
        if "while-training" in parts:
            pictures_while_training.draw(cl.open_run(run))
        if "report" in parts:
            shoot_report(run)
        if "page" in parts:
            samples = arguments.samples or Path(folder) / "samples"
            if arguments.samples is None:
                pictures_page.make_samples(samples)
            pictures_page.draw(run, samples)
            pictures_page.draw_gif(run)


if __name__ == "__main__":
    main()
