"""The run itself: its curves, its header, and the verdict; as HTML, as figures, in a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from live_server import key_of, serving

from convlens.core.records import Epoch, Finding
from convlens.core.steps import StepSeries
from convlens.doctor import diagnose
from convlens.runs import create_run, open_run
from convlens.runs.follower import RunFollower
from convlens.web.figures.curves import overlaid, overlaid_height
from convlens.web.figures.style import embed
from convlens.web.pages import Page, draw
from convlens.web.panels.verdict import SHOWN, badge, headline
from convlens.web.run_data import RunData
from convlens.web.view import View


def page_of(path, findings=None, **view):
    return Page(RunData("key", RunFollower(open_run(path)), findings), View(**view))


def judged(path):
    return page_of(path, diagnose(open_run(path).record(counts=False)))


def words_of(html):
    return " ".join(re.sub("<[^>]+>", " ", html).split())


def models(page, name=None, figure="curves"):
    """The Bokeh models of a figure, of one kind if it is named."""
    found = []

    def walk(value):
        if isinstance(value, dict):
            if value.get("type") == "object" and name in (None, value["name"]):
                found.append(value.get("attributes", {}))
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(json.loads(draw(page, figure) if isinstance(figure, str) else embed(figure)))
    return found


def made(path, loss, epochs=0, hypers=None, **meta):
    """A run with these losses, and epochs of equal length."""
    n = len(loss)
    step, width = np.arange(n), n // max(epochs, 1)
    with create_run("made", directory=path) as writer:
        writer.write_meta(meta)
        writer.write_steps(
            StepSeries(step, step // width, loss, step / 10, hypers or {"lr": np.full((n, 1), 0.1)})
        )
        for epoch in range(epochs):
            first = epoch * width
            writer.write_epoch(
                Epoch(epoch, first, first + width - 1, 1.0, 1.5, {"accuracy": 0.5}, 3)
            )
    return path


PROBLEM = Finding("dead-channels", "problem", "2 of 4 in 'a' are dead. So it is.", fix="Try less.")


def test_a_collapsed_run_says_first_what_is_wrong_and_what_to_try(recorded):
    page = judged(recorded("collapsed"))
    words = words_of(page.panel("verdict"))
    assert words.startswith("1 problem found: learning rate too high")
    assert "at a learning rate of 0.3" in words
    assert "What to do: Lower the learning rate" in words
    header = page.panel("header")
    assert '<span class="status ">finished</span>' in header
    assert '<span class="status problem">1 problem</span>' in header
    assert "accuracy 11.70 % validation loss 2.30" in words_of(header)


def test_layers_in_a_finding_are_links(recorded):
    finding = replace(PROBLEM, evidence="Channels are dead: 16 of 16 in '1.0', 3 of 9 in 'else'.")
    html = page_of(recorded("collapsed"), [finding]).panel("verdict")
    assert '<a href="/run/key?layer=1.0#layer">1.0</a>' in html
    assert "16 of 16 in 1.0 , 3 of 9 in &#39;else&#39;." in words_of(html)


@pytest.mark.parametrize(
    ("findings", "word", "kind", "line"),
    [
        (None, "no verdict yet", "", "Looking for problems …"),
        ([], "not judged", "", "Not judged"),
        ([PROBLEM], "1 problem", "problem", "1 problem found: dead channels"),
        ([replace(PROBLEM, severity="warning")] * 2, "2 warnings", "warning",
         "2 warnings found: dead channels"),
        ([Finding("healthy", "good", "Nothing looks wrong: fine.")], "looks healthy", "good",
         "Nothing looks wrong"),
    ],
)  # fmt: skip
def test_the_verdict_in_a_few_words(findings, word, kind, line):
    assert badge(findings) == (word, kind)
    assert headline(findings) == line


def test_many_findings_are_folded_and_texts_of_a_record_are_escaped(recorded):
    hostile = replace(PROBLEM, evidence="<script>alert(1)</script> " * 900, layer="<b>", fix="<i>")
    html = page_of(recorded("one-epoch"), [hostile] * (SHOWN + 3)).panel("verdict")
    assert "<script" not in html
    assert "<b>" not in html.replace("<b>What to do:</b>", "")
    seen, _, folded = html.partition('<details class="more"')
    assert (seen.count("<li"), folded.count("<li")) == (SHOWN, 3)
    assert "3 more" in folded


def test_header_and_notes_say_how_a_run_ended_and_what_is_lost(recorded, tmp_path):
    page = judged(recorded("nan"))
    assert '<span class="status problem">failed</span>' in page.panel("header")
    assert "1 of 3" in page.panel("header")
    assert words_of(page.panel("verdict")).count("NonFiniteLossError") == 1
    assert words_of(page_of(recorded("nan")).panel("verdict")).count("NonFiniteLossError") == 1
    path = made(tmp_path / "x", np.ones(30), lost="3 blocks", model=7, n_epochs="many", wall_s=[1])
    page = page_of(path)
    assert "could not be written: 3 blocks." in page.panel("verdict")
    assert words_of(page.panel("header")).endswith("training loss 1.0000 steps 30 time 2.9 s")


def test_a_loop_of_ones_own_shows_what_there_is(recorded):
    page = page_of(recorded("own-loop"))
    html = page.panel("curves")
    assert "stats.log(loss=loss)" in html
    titles = [one["text"] for one in models(page, "Title") if "text" in one]
    assert titles == ["Learning rate and momentum"]  # those are seen without being logged
    assert re.search(r"steps 60 time \S+ s parameters 30,282$", words_of(page.panel("header")))
    page = page_of(recorded("own-loop-logged"), logged="root")
    titles = [one["text"] for one in models(page, "Title") if "text" in one]
    assert titles[-3:] == ["accuracy", "root", "Learning rate and momentum"]
    assert '<option value="root" selected>' in page.panel("curves")
    assert not any("NaN" in str(one.get("label")) for one in models(page, "LegendItem"))


def test_losses_of_every_kind_are_drawn(tmp_path):
    n = np.arange(4_000)
    cases = {
        "falling": 3.0 * np.exp(-n / 400) + 0.01, "nan": n * np.nan, "negative": 1.0 - n,
        "huge": 10.0 ** (n / 100), "one": np.ones(1), "none": np.ones(0),
    }  # fmt: skip
    for name, loss in cases.items():
        page = page_of(
            made(tmp_path / name, loss, epochs=4 * (name != "nan" and len(loss) > 3)), log="on"
        )
        kinds = [len(models(page, kind)) for kind in ("LogScale", "VStrip")]
        assert kinds == ([1, 3] if len(loss) else [0, 0]), name  # a glyph, unselected, muted
        assert bool(models(page_of(tmp_path / name), "LogScale")) == (name in ("falling", "huge"))
    page = page_of(tmp_path / "nan")
    assert any(
        one.get("text") == "Every loss was NaN or infinite." for one in models(page, "Label")
    )
    assert "No step was recorded." in page_of(tmp_path / "none").panel("curves")
    assert max(len(draw(page_of(tmp_path / name), "curves")) for name in cases) < 300_000


def test_up_to_eight_runs_lie_over_one_another(recorded, tmp_path):
    paths = [made(tmp_path / f"mnist-lr-{i}-batch-size-64", np.ones(20 + i), 2) for i in range(8)]
    for chosen in (paths[:2], paths, [recorded("own-loop"), recorded("names"), paths[0]]):
        pages = [page_of(path) for path in chosen]
        lines = models(None, "Line", overlaid(pages, "abcdefgh"))
        colours = {str(one["line_color"]) for one in lines if "line_color" in one}
        assert len(colours) == len(chosen)
        assert overlaid_height(pages) > 400


def test_in_a_browser_the_loss_fits_what_is_zoomed_and_the_key_l_changes_its_axis(page, tmp_path):
    made(tmp_path / "falling", 3.0 * np.exp(-np.arange(400) / 50) + 0.01, epochs=4)
    ends = """() => { const plot = Bokeh.documents[0].roots()[0].children[0];
        return [plot.y_scale.type, plot.y_range.start, plot.y_range.end]; }"""
    with serving([tmp_path]) as address:
        page.goto(f"{address.url}run/{key_of(address, 'falling')}?zoom=100_110")
        page.locator("html[data-drawn=all]").wait_for()
        kind, low, high = page.evaluate(ends)
        assert kind == "LogScale"
        assert 0.3 < low < high < 1.7  # the validation's line is at 1.5
        page.keyboard.press("l")
        page.locator(
            "html[data-drawn=all] #curves:has(input[data-set=log]:not(:checked))"
        ).wait_for()
        page.locator("html[data-drawn=all]").wait_for()
        kind, low, high = page.evaluate(ends)
        assert kind == "LinearScale"
        assert 0.2 < low < high < 1.7
        page.locator("[data-show-all]").click()
        assert page.evaluate(ends)[2] > 3.0
        page.goto("about:blank")  # asks nothing of a server that is being closed


def test_in_a_browser_a_collapsed_run_is_understood_on_the_first_screen(page, recorded):
    with serving([recorded("collapsed").parent]) as address:
        page.goto(f"{address.url}run/{key_of(address, 'collapsed')}")
        page.get_by_text("1 problem found").wait_for()
        for text in ("Each of the first steps", "Lower the learning rate", "1 problem found"):
            box = page.locator("#verdict").get_by_text(text).first.bounding_box()
            assert box["y"] + box["height"] < 300
        page.goto("about:blank")


def test_in_a_browser_a_finding_leads_to_its_layer(page, recorded):
    with serving([recorded("nan").parent]) as address:
        page.goto(f"{address.url}run/{key_of(address, 'nan')}")
        link = page.locator("#verdict").get_by_role("link", name="4.0", exact=True).first
        link.click()
        page.locator("html[data-drawn=all]").wait_for()
        assert page.url.endswith("layer=4.0")
        page.goto("about:blank")
