from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bokeh.document import Document
from bokeh.io.doc import patch_curdoc
from bokeh.models import CustomJS, Patch
from views_data import (
    LAYOUT,
    META,
    Run,
    create_run,
    epochs_of,
    healthy_layers,
    healthy_loss,
    layer_infos,
    normal_columns,
    open_run,
    step_series,
    write_columns,
)

from convlens.core.columns import level_at
from convlens.core.histories import LayerInfo
from convlens.core.records import Epoch, Finding, Picture
from convlens.core.steps import StepSeries, sum_up
from convlens.errors import RunError
from convlens.views import words, write_report
from convlens.views.canvas import StepAxis
from convlens.views.curves import loss_figure
from convlens.views.tables import NO_SUMMARY

HEADINGS = [
    "Findings",
    "Losses and metrics",
    "Schedule",
    "What it gets wrong",
    "Training images",
    "All layers at a glance",
    "Summary of the model",
    "Every layer",
    "About this run",
]

MATRICES = ["matrix-near_zero", "matrix-mean", "matrix-std", "matrix-dead"]

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(healthy_report) -> str:
    return healthy_report.read_text(encoding="utf-8")


def report(run: Run) -> str:
    """The page without its scripts, which are Bokeh's for the most part."""
    return without_scripts(write_report(run))


def without_scripts(path: Path) -> str:
    html = path.read_text(encoding="utf-8")
    return re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)


def items(html: str) -> dict[str, str]:
    found = re.findall(
        r'<script type="application/json" id="item-([^"]+)">(.*?)</script>', html, re.DOTALL
    )
    return dict(found)


def headings(html: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", html)


def test_everything_stands_in_its_order(page):
    assert headings(page) == HEADINGS
    assert "<h1>mnist-0001</h1>" in page
    for figure in ("99.12 %", "52,768", "21.7 s", "finished", "Nothing looks wrong"):
        assert figure in page
    for fact in ("convlens train mnist --epochs 5 --lr 0.1", "2.15.0", "Linux-6.8-x86_64"):
        assert fact in page
    assert "The worst predictions, after epoch 2" in page
    assert page.count("<img") == 42
    assert "9, predicted 0 (99.9 %), loss 3.10" in page


def test_figures_are_where_they_are_announced(page):
    expected = ["curves", "schedule", *MATRICES, *(f"layer-{i}" for i in range(9))]

    assert sorted(items(page)) == sorted(expected)
    for key, item in items(page).items():
        assert f'data-item="item-{key}"' in page
        assert json.loads(item)["doc"]["roots"]


def test_it_is_small_and_default_name(healthy, healthy_report, page):
    path = healthy.path / "report.html"

    assert healthy_report == path
    assert path.stat().st_size < 3e6
    assert page.startswith("<!DOCTYPE html>")
    assert [entry.name for entry in healthy.path.iterdir() if "report" in entry.name] == [
        "report.html"
    ]


def test_nothing_is_asked_of_the_network(page):
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)

    assert not re.findall(r'(?:src|href)="(?!data:|#)', markup)
    assert "http://" not in markup
    assert "https://" not in markup
    assert "default-src 'none'" in markup
    assert "unsafe-eval" not in markup
    assert "url(" not in markup


def test_it_goes_where_it_is_told(tmp_path):
    create_run(directory=tmp_path / "mine").close()
    out = tmp_path / "a report.html"
    out.write_text("old")

    assert write_report(open_run(tmp_path / "mine"), out) == out
    assert "<h1>mine</h1>" in out.read_text(encoding="utf-8")
    assert not (tmp_path / "mine" / "report.html").exists()


def test_findings_without_layer_and_none_at_all():
    found = Finding("k", "odd", "A <b> finding.", layer="gone", first_step=1200)

    html = words.findings_list([found], ["0.0"])

    assert "A &lt;b&gt; finding." in html
    assert "(layer gone, from step 1,200)" in html
    assert '<li class="note">' in html
    assert words.NO_FINDINGS in words.findings_list([], [])


def test_a_place_that_cannot_be_written_gets_a_sentence(tmp_path):
    create_run(directory=tmp_path / "run").close()
    run = open_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"out='.*missing/r\.html' cannot be written \(No such file"):
        write_report(run, tmp_path / "missing" / "r.html")
    with pytest.raises(RunError, match=r"cannot be written \(Is a directory\); give an HTML file"):
        write_report(run, tmp_path)
    assert list(tmp_path.parent.glob(".report-*")) == []


def test_it_needs_no_torch(healthy, tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from convlens.runs import open_run\n"
        "from convlens.views import write_report\n"
        "from pathlib import Path\n"
        "write_report(open_run(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    out = tmp_path / "report.html"
    paths = os.pathsep.join(path for path in sys.path if path)
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(healthy.path), str(out)],
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )

    assert headings(out.read_text(encoding="utf-8")) == HEADINGS


def test_findings_lead_to_their_layer(collapsed_report):
    html = without_scripts(collapsed_report)

    assert '<li class="problem">' in html
    assert '<a href="#layer-0">layer 0.0</a>' in html
    assert 'id="layer-0"' in html
    assert "8 of 8 channels dead" in html


def test_a_run_with_no_step_says_so(tmp_path):
    writer = create_run("empty", tmp_path)

    html = report(open_run(writer.path))

    assert headings(html) == HEADINGS
    assert words.NO_STEPS in html
    assert words.NO_LAYERS in html
    assert NO_SUMMARY in html
    assert "No learning rate and no momentum was recorded." in html
    assert "No training images were kept in this run." in html
    assert "No confusion matrix was kept" in html
    assert "No mistakes were kept" in html
    assert "This run is not closed: it is still being trained." in html
    assert not items(html)
    writer.close()


def test_a_run_with_no_epoch_says_so(tmp_path):
    writer = create_run("young", tmp_path)
    writer.write_meta({"n_epochs": 5})
    writer.write_layers(layer_infos(), LAYOUT, 0.05)
    writer.write_steps(step_series(healthy_loss(50)))
    writer.flush(wait=True)

    html = report(open_run(writer.path))

    assert words.NO_EPOCHS in html
    assert "0 of 5" in html
    assert "9 layers were to be watched, but no batch of them was recorded yet." in html
    assert "curves" in items(html)
    assert "1.8 s" in html
    writer.close()


def test_a_run_with_one_step_says_so(tmp_path):
    writer = create_run("one", tmp_path)
    writer.write_layers(layer_infos(("0.0",)), LAYOUT, 0.05)
    write_columns(writer, 0, healthy_layers(1)[0])
    writer.write_steps(step_series(np.array([2.3])))
    writer.flush(wait=True)

    html = report(open_run(writer.path))

    assert words.ONE_STEP in html
    assert set(items(html)) == {"curves", "schedule", *MATRICES[:3], "layer-0"}
    writer.close()


def test_a_crashed_run_is_shown_up_to_its_end(tmp_path):
    writer = create_run("crashed", tmp_path)
    writer.write_layers(layer_infos(("0.0", "0.2")), LAYOUT, 0.05)
    for i, columns in enumerate(healthy_layers(200)[:2]):
        write_columns(writer, i, columns)
    steps = step_series(healthy_loss(200))
    writer.write_steps(steps)
    writer.write_epoch(epochs_of(steps, (0.97,))[0])
    writer.flush(wait=True)
    shutil.copytree(writer.path, tmp_path / "copy")  # which nobody writes
    run = open_run(tmp_path / "copy")

    html = report(run)

    assert "The process that wrote this run ended without closing it" in html
    assert "<dd>crashed</dd>" in html
    assert f"{run.last_written:%Y-%m-%d at %H:%M:%S} UTC" in html
    assert "layer-1" in items(html)
    assert "97.00 %" in html
    writer.close()


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        ("failed", "the loss became <NaN>", "Training failed: the loss became &lt;NaN&gt;"),
        ("failed", None, "Training failed: no reason was recorded"),
        ("stopped", None, "This run was stopped before its end"),
        ("odd", None, "<dd>odd</dd>"),
    ],
)
def test_how_a_run_ended_is_said(tmp_path, status, error, expected):
    writer = create_run("run", tmp_path)
    writer.close(status, error)

    assert expected in report(open_run(writer.path))


def test_an_epoch_without_steps_or_validation(tmp_path):
    writer = create_run("run", tmp_path)
    writer.write_epoch(Epoch(0, 0, 117, 0.5, None, {}, 3.0))
    writer.close()

    html = report(open_run(writer.path))

    assert "curves" in items(html)
    assert "validation loss" in html
    assert "3.0 s" in html


def test_losses_that_are_not_finite_are_said(tmp_path):
    writer = create_run("run", tmp_path)
    loss = healthy_loss(100)
    loss[70:] = np.nan
    writer.write_steps(step_series(loss))
    writer.close()

    assert "NaN or infinite at 30 steps, first at step 70." in report(open_run(writer.path))


def test_nothing_but_losses_that_are_not_finite(tmp_path):
    writer = create_run("run", tmp_path)
    writer.write_steps(step_series(np.full(5, np.inf)))
    writer.close()

    assert "NaN or infinite at 5 steps, first at step 0." in report(open_run(writer.path))


def test_losses_over_many_decades_get_a_logarithmic_axis(tmp_path):
    writer = create_run("run", tmp_path)
    loss = healthy_loss(100)
    loss[30] = 1e9
    writer.write_steps(step_series(loss))
    writer.close()

    assert "loss (log scale)" in items(report(open_run(writer.path)))["curves"]


def test_layers_with_values_that_are_not_finite(tmp_path):
    writer = create_run("run", tmp_path)
    writer.write_layers(layer_infos(("0", "1", "2")), LAYOUT, 0.05)
    good = normal_columns(np.zeros(20), np.ones(20), 1000, 4)
    nan = np.where(np.arange(20) >= 15, 7, 0)
    some = normal_columns(np.zeros(20), np.ones(20), 1000, 4, nan=nan)
    none = np.zeros_like(good.counts)
    gone = {"counts": none, "nan": good.n, "mean": np.full(20, np.nan), "m2": np.zeros(20)}
    write_columns(writer, 0, some)
    write_columns(writer, 1, type(good)(**{**vars(good), **gone}))
    writer.close()

    html = report(open_run(writer.path))

    assert "NaN or infinite values in 5 of 20 columns of this layer, first at step 15." in html
    assert "Every value is NaN or infinite." in items(html)["layer-1"]
    assert "Nothing of this layer was recorded: it took part in no batch." in html
    assert "layer-2" not in items(html)


def test_a_layer_without_channels_or_name(tmp_path):
    writer = create_run("run", tmp_path)
    writer.write_layers([LayerInfo(0, "", "Linear")], LAYOUT, 0.05)
    write_columns(writer, 0, normal_columns(np.zeros(20), np.ones(20), 1000, 0))
    writer.close()

    html = report(open_run(writer.path))

    assert "<h3>Linear</h3>" in html
    assert "channel" not in html


def test_a_long_run_stays_small(tmp_path):
    writer = create_run("long", tmp_path)
    writer.write_layers(layer_infos(("0.0",)), LAYOUT, 0.05)
    write_columns(writer, 0, normal_columns(np.zeros(4000), np.ones(4000), 100, 4))
    writer.write_steps(step_series(np.exp(np.random.default_rng(0).normal(0, 1, 100_000))))
    writer.close()
    run = open_run(writer.path)

    html = report(run)

    assert "One column of colour is 7 batches" in html
    assert len(items(html)["curves"]) < 300_000
    assert len(items(html)["layer-0"]) < 300_000


def test_a_million_steps_make_a_small_report_of_bands(tmp_path):
    n, level = 1_000_000, level_at(999_999)
    writer = create_run("long", tmp_path)
    names = tuple(f"layer{i}" for i in range(10))
    writer.write_layers(layer_infos(names), LAYOUT, 0.05)
    columns = normal_columns(np.zeros(n >> level), np.ones(n >> level), 1000, 8)
    first = np.arange(n >> level) << level
    columns = replace(columns, first_step=first, last_step=first + (1 << level) - 1)
    for i in range(len(names)):
        write_columns(writer, i, columns, level)
    loss = np.exp(np.random.default_rng(0).normal(0, 0.3, n))
    loss[123_456] = 40.0
    writer.write_steps(step_series(loss))
    writer.close()

    html = report(open_run(writer.path))

    assert len(html) < 6_000_000
    assert "1,000,000" in html
    drawn = items(html)["curves"]
    assert "training, lowest to highest of 256 batches" in drawn
    assert "training, each batch" not in drawn
    assert set(items(html)) == {"curves", "schedule", *MATRICES, *(f"layer-{i}" for i in range(10))}


def test_a_band_has_gaps_where_no_loss_is_finite():
    steps = step_series(healthy_loss(10_000))
    steps.loss[4000:5000] = np.nan
    curves = sum_up(steps, 1000)  # entries of 16 steps
    plot = loss_figure(StepAxis((0, 9999), []), curves, [])
    (patch,) = [r for r in plot.renderers if isinstance(r.glyph, Patch)]
    x, y = patch.data_source.data["x"], patch.data_source.data["y"]
    left, right = (np.split(x, np.flatnonzero(np.isnan(x)) + 1)[i][:-1] for i in (0, 1))
    assert (left.min(), left.max()) == (-0.5, 3999.5)
    assert (right.min(), right.max()) == (4991.5, 9999.5)  # 4992 to 5007 has finite losses
    assert np.nanmax(y) == np.nanmax(steps.loss).astype(np.float32)
    assert np.nanmin(y) == np.nanmin(steps.loss).astype(np.float32)


def test_many_parameter_groups_and_metrics(tmp_path):
    writer = create_run("run", tmp_path)
    steps = step_series(healthy_loss(236))
    lr = steps.hypers["lr"] * np.array([[1.0, 1.0, 0.1]])
    writer.write_steps(StepSeries(steps.step, steps.epoch, steps.loss, steps.wall_s, {"lr": lr}))
    for epoch in range(2):
        metrics = {f"metric {i}": i + epoch / 2 for i in range(12)}
        writer.write_epoch(Epoch(epoch, epoch * 118, epoch * 118 + 117, 1.0, 1.1, metrics, 1.0))
    writer.close()

    html = report(open_run(writer.path))

    assert "parameter group 2" in items(html)["schedule"]
    assert "parameter group 1" not in items(html)["schedule"]
    assert "No momentum was recorded." in html
    assert "<th scope=col>metric 11</th>" in html
    assert "metric 7" in items(html)["curves"]
    assert "metric 8" not in items(html)["curves"]


def write_evil(base: Path) -> Run:
    """A run in which every text tries to be something else."""
    writer = create_run(directory=base / EVIL.replace("/", "⁄"))
    attack = f'{EVIL}"><img src=x onerror="alert(2)">$$x$$</script>'
    writer.write_meta({**META, "command": attack, attack: attack, "error": attack})
    writer.write_meta(
        {
            "model": {"class": attack, "text": attack},
            "summary": {
                "rows": [{"name": attack, attack: attack}],
                "totals": {attack: 1},
                "notes": [attack],
            },
        }
    )
    infos = [LayerInfo(0, attack, attack, feeds_relu=True), LayerInfo(1, "b", "Conv2d")]
    writer.write_layers(infos, LAYOUT, 0.05)
    steps = step_series(np.full(2 * 118, 2.302))
    dead = normal_columns(np.zeros(236), np.zeros(236), 1000, 4, 4)
    write_columns(writer, 0, dead)
    write_columns(writer, 1, dead)
    writer.write_steps(steps)
    writer.write_epoch(Epoch(0, 0, 117, 2.3, 2.3, {attack: 0.5}, 1.0))
    writer.write_picture(Picture("batch", -1, np.zeros((1, 8, 8), np.uint8), [attack]))
    writer.write_picture(Picture("worst", 0, np.zeros((1, 8, 8), np.uint8), [attack]))
    writer.close("failed", attack)
    return open_run(writer.path)


def test_a_document_of_somebody_else_does_not_matter(healthy):
    theirs = Document()
    theirs.js_on_event("document_ready", CustomJS(code="alert('theirs')"))
    with patch_curdoc(theirs):
        assert "theirs" not in report(healthy)
        del theirs  # as when a page of a Bokeh server in this process has been closed
        assert "Losses and metrics" in report(healthy)


def test_every_text_is_escaped(tmp_path):
    run = write_evil(tmp_path)
    html = report(run)

    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "onerror=&quot;" in html
    assert "&lt;script&gt;alert(1)" in html
    assert "$$x$$" not in items(html)["curves"]
    assert "$$x$$" not in items(html)["layer-0"]
    assert all("<" not in item for item in items(html).values())


def test_text_that_is_no_unicode_is_replaced(tmp_path):
    writer = create_run("run", tmp_path)
    writer.write_meta({"command": "train \udcff"})
    writer.close()

    assert "train ?" in report(open_run(writer.path))
