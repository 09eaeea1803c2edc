"""The report and the moving picture: what is in the files, and what Chromium draws of them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from live_server import get, key_of, serving
from PIL import Image

from convlens.cli import main
from convlens.errors import ConvlensError, LayerNotFoundError, RunError
from convlens.runs import create_run, open_run
from convlens.web import report
from convlens.web.gif import write_gif
from convlens.web.report import write_file, write_report

PARTS = ["verdict", "curves", "matrix", "layers", "confusion", "images", "summary", "about"]
LAYERS = 3  # with figures; of ten


@pytest.fixture(autouse=True)
def few_figures(monkeypatch):
    """They take most of the time."""
    monkeypatch.setattr(report, "MOST_FIGURES", 2)


@pytest.fixture(scope="module")
def small(recorded, tmp_path_factory):
    """The report of a run of one epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "MOST_FIGURES", LAYERS)
        out = tmp_path_factory.mktemp("r") / "r.html"
        return write_report(open_run(recorded("one-epoch")), out)


def markup(path: Path) -> str:
    """The page without its scripts and styles, which are Bokeh's for the most part."""
    html = path.read_text(encoding="utf-8")
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)


def items(path: Path) -> dict[str, str]:
    html = path.read_text(encoding="utf-8")
    found = re.findall(
        r'<script type="application/json" id="(item-[^"]+)">(.*?)</script>', html, re.DOTALL
    )
    return dict(found)


def test_it_has_every_part_and_every_figure_where_it_is_announced(small):
    html, found = markup(small), items(small)
    assert re.findall(r'<section[^>]* id="(\w+)" aria-label', html) == PARTS
    assert sorted(found) == sorted(re.findall(r'data-item="([^"]+)"', html))
    assert len(found) == 1 + 6 + LAYERS
    for item in found.values():
        assert json.loads(item)["doc"]["roots"]
    assert re.findall(r'id="(layer-\d+)"', html) == ["layer-0", "layer-4", "layer-8"]
    assert small.stat().st_size < 6e6


def test_nothing_is_asked_of_the_network(small):
    html = markup(small)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html.replace("url(data:", "")
    policy = html.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    assert "unsafe-eval" not in policy
    assert "data-server" not in html


def test_it_goes_where_it_is_told_or_says_why_not(recorded, tmp_path):
    run = open_run(shutil.copytree(recorded("one-step"), tmp_path / "mine"))
    assert write_report(run) == run.path / "report.html"
    assert [e.name for e in run.path.iterdir() if "convlens" in e.name] == []
    with pytest.raises(RunError, match=r"out='.*missing/r\.html' cannot be written \(No such file"):
        write_file(tmp_path / "missing" / "r.html", b"", "an HTML file")
    with pytest.raises(RunError, match=r"cannot be written \(Is a directory\); give an HTML file"):
        write_file(tmp_path, b"", "an HTML file")
    assert list(tmp_path.parent.glob(".convlens-*")) == []


def test_it_needs_no_torch(recorded, tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from convlens.runs import open_run\n"
        "from convlens.web import report\n"
        "report.MOST_FIGURES = 1\n"
        "report.write_report(open_run(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    arguments = [str(recorded("one-step")), str(tmp_path / "r.html")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    python = [sys.executable, "-W", "error", "-c", program]
    subprocess.run([*python, *arguments], check=True, env=environment)
    assert "one-step" in markup(tmp_path / "r.html")


def test_a_run_in_which_nothing_was_recorded_yet(tmp_path):
    writer = create_run("empty", tmp_path)
    path = write_report(open_run(writer.path), tmp_path / "r.html")
    writer.close()
    html = markup(path)
    assert re.findall(r'<section[^>]* id="(\w+)" aria-label', html) == PARTS
    assert "No layer" in html


@pytest.mark.parametrize("name", ["names", pytest.param("wrong-values", marks=pytest.mark.slow)])
def test_whatever_a_record_holds_is_escaped(recorded, tmp_path, name):
    path = write_report(open_run(recorded(name)), tmp_path / "r.html")
    html = markup(path)
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert all("<" not in item for item in items(path).values())


def test_a_damaged_run_is_an_error(recorded, tmp_path):
    with pytest.raises(RunError, match="damaged"):
        write_report(open_run(recorded("damaged-columns")), tmp_path / "r.html")


@pytest.fixture
def offline(page):
    """A tab that may ask for nothing but files."""
    asked = []
    page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or asked.append(r))
    yield page
    assert not asked


def opened(tab, path, when="all"):
    tab.goto(path.absolute().as_uri())
    tab.locator(f"html[data-drawn={when}]").wait_for(state="attached", timeout=60_000)
    return tab


def n_colours(png: bytes) -> int:
    packed = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) @ np.array([65536, 256, 1])
    return len(np.unique(packed))


@pytest.mark.slow
def test_few_layers_are_open_the_others_draw_when_they_are_opened(
    offline, recorded, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, "MOST_OPEN", 2)
    monkeypatch.setattr(report, "MOST_FIGURES", 5)
    path = write_report(open_run(recorded("one-epoch")), tmp_path / "r.html")
    tab = opened(offline, path)
    assert "5 of 10 layers have figures here" in tab.locator("#layers").inner_text()
    assert tab.locator("details.layer").count() == 5
    assert tab.locator("details.layer[open]").count() == 2
    assert tab.locator(".figure:has(.bk-Figure)").count() == 1 + 1 + 2
    for place in tab.locator(".figure:visible").all():
        assert n_colours(place.screenshot()) > 20
    folded = tab.locator("details.layer:not([open])").last
    key = folded.get_attribute("id")
    tab.evaluate("key => { location.hash = key; }", key)  # as a link of the findings does
    tab.locator(f"#{key} .bk-Figure").first.wait_for()
    tab.locator(f"#{key} > summary").click()
    tab.locator(f"#{key} .bk-Figure").first.wait_for(state="detached")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")

    tab.locator("select[data-choice]").select_option("matrix-std")
    tab.locator("#matrix-std .bk-Figure").first.wait_for()
    assert tab.locator("#matrix .figure:has(.bk-Figure)").count() == 1
    assert tab.locator("#matrix-near_zero").is_hidden()

    pdf = tab.pdf(format="A4")
    drawn = [int(w) for w in re.findall(rb"/Width (\d+)", pdf) if int(w) > 600]
    assert len(drawn) >= 4  # curves, matrix and two layers
    assert tab.locator("canvas.still").count() == 0
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print")
    stills = tab.locator("canvas.still:visible")
    assert stills.count() == 4
    assert tab.locator("details.layer:visible").count() == 2
    assert all(n_colours(still.screenshot()) > 20 for still in stills.all())
    tab.evaluate("dispatchEvent(new Event('afterprint'))")


def test_names_that_are_programs_do_not_run(offline, recorded, tmp_path):
    path = write_report(open_run(recorded("names")), tmp_path / "r.html")
    offline.on("dialog", lambda dialog: pytest.fail(dialog.message))
    tab = opened(offline, path, "first")
    assert tab.locator("img[src=x]").count() == 0
    assert "<script>alert(1)</script>" in tab.locator("#layer-0 > summary").inner_text()


@pytest.mark.slow
def test_150_layers_are_small_and_open_at_once(offline, recorded, tmp_path, monkeypatch):
    monkeypatch.undo()
    path = write_report(open_run(recorded("150-layers")), tmp_path / "r.html")
    assert path.stat().st_size < 6e6
    tab = opened(offline, path)
    assert "60 of 150 layers" in tab.locator("#layers").inner_text()
    assert tab.evaluate("document.documentElement.scrollHeight") < 20_000


def frames(path: Path) -> list[np.ndarray]:
    found = []
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            found.append(np.asarray(image.convert("RGB"), np.int64))
    return found


def test_a_moving_picture_shows_every_kept_epoch(recorded, tmp_path, capsys, monkeypatch):
    path = recorded("channels-4-6-8")
    monkeypatch.setattr(
        sys, "argv", ["convlens", "report", str(path), "--gif", str(tmp_path / "play.gif")]
    )
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out == f"{tmp_path / 'play.gif'}\n"
    assert (tmp_path / "play.gif").stat().st_size < 3e6
    shown = frames(tmp_path / "play.gif")
    assert len(shown) == 3  # before training and after each of two epochs
    assert shown[0].shape[1] == 800
    with Image.open(tmp_path / "play.gif") as image:
        first = image.info["duration"]
        assert image.info["loop"] == 0
        image.seek(2)
        assert image.info["duration"] > 2 * first
    for before, after in pairwise(shown):
        assert (before[300:] != after[300:]).any(axis=2).mean() > 0.02  # kernels and histograms
    other = write_gif(open_run(path), tmp_path / "other.gif", "2.0")
    assert (frames(other)[-1][:400] != shown[-1][:400]).any()


@pytest.mark.parametrize("name", ["names", "wrong-values", "nan", "one-step"])
def test_any_run_with_pictures_plays(recorded, tmp_path, name):
    assert len(frames(write_gif(open_run(recorded(name)), tmp_path / "play.gif"))) >= 2


def test_without_pictures_it_says_what_keeps_them(recorded, tmp_path):
    out = tmp_path / "play.gif"
    with pytest.raises(RunError, match=r"no pictures to play. Train with the callback cl.Pictures"):
        write_gif(open_run(recorded("own-loop")), out)
    with pytest.raises(LayerNotFoundError, match=r"layer='x' has no pictures .* give one of '0.0'"):
        write_gif(open_run(recorded("one-step")), out, "x")
    with pytest.raises(ConvlensError, match="a GIF file"):
        write_gif(open_run(recorded("one-step")), tmp_path / "missing" / "play.gif")


def test_the_page_gives_the_moving_picture_of_a_layer(recorded):
    path = recorded("one-step")
    with serving([path.parent]) as address:
        key = key_of(address, path.name)
        status, headers, _ = get(address, f"/run/{key}/play.gif?layer=1.0")
        assert (status, headers["Content-Type"]) == (200, "image/gif")
        assert get(address, f"/run/{key}/play.gif?layer=x")[0] == 200  # as of every page: another
