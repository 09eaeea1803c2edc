"""Pictures of the page: its server is the command itself, its runs are real."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import picture_files as files

SAMPLES = Path(__file__).parents[1] / "tests" / "web" / "sample_runs.py"
NAMES = ("collapsed", "resnet50")
DRAWN = "html[data-drawn=all]"
UNIT = "channel=2&row=7&col=9&pixel_row=14&pixel_col=17"
LAPTOP, PHONE = (1366, 768), (390, 844)


def make_samples(folder: Path) -> None:
    """Train a run that collapses, and ResNet-50 with a layer all of whose channels are dead."""
    subprocess.run([sys.executable, str(SAMPLES), str(folder), *NAMES], check=True)


@contextmanager
def served(runs: Mapping[str, Path]) -> Generator[tuple[str, dict[str, str]]]:
    """The address of the page of some runs, and the address of each, while they are served."""
    command = [sys.executable, "-m", "convlens", "view", *map(str, runs.values())]
    command += ["--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+/", server.stdout.readline())
            assert found is not None
            with urlopen(f"{found[0]}api/runs") as answer:
                listed = {one["name"]: one["key"] for one in json.load(answer)["runs"]}
            keys = {name: listed[path.name] for name, path in runs.items()}
            for key in keys.values():  # the doctor looks at each
                urlopen(f"{found[0]}api/run/{key}/findings").close()
            yield found[0], keys
        finally:
            server.terminate()


def draw(run: Path, samples: Path) -> None:
    """Every picture of the page.

    Args:
        run: of ``make demo``.
        samples: the folder of `make_samples`.
    """
    runs = {"demo": run, **{name: samples / f"{name}-0001" for name in NAMES}}
    with served(runs) as (address, keys), files.chromium() as browser:
        demo, collapsed, deep = (f"{address}run/{keys[name]}" for name in runs)
        both = f"{address}compare?run={keys['demo']}&run={keys['collapsed']}"

        def shoot(name: str, place: str, size: tuple[int, int] = LAPTOP, **more: Any) -> None:  # noqa: ANN401
            files.screenshot(browser, place, name, size=size, ready=DRAWN, **more)

        shoot("page", f"{demo}?layer=1.0")
        shoot("page/collapsed", collapsed)
        shoot("page/deep", deep, first="#verdict", last="#matrix")
        shoot("page/unit", f"{demo}?layer=0.0&{UNIT}", first="#inside")
        shoot("page/mistakes", demo, first="#confusion")
        shoot("page/dark", f"{demo}?layer=0.0", dark=True)
        shoot("page/compare", both)
        shoot("page/phone", collapsed, PHONE)


def draw_gif(run: Path) -> None:
    """The first convolution from epoch to epoch."""
    command = [sys.executable, "-m", "convlens", "report", str(run)]
    subprocess.run([*command, "--gif", str(files.IMAGES / "play.gif")], check=True)
