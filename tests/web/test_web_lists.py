"""The list of runs, data for programs, confusion, mistakes, images, summary and facts of a run."""

from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
from live_server import get, key_of, serving

import convlens as cl
from convlens.core.records import Epoch, Finding, Picture
from convlens.core.snapshots import Confusion, Mistakes
from convlens.core.steps import StepSeries
from convlens.runs import Run, create_run, open_run
from convlens.runs.follower import RunFollower
from convlens.web.pages import Page
from convlens.web.panels.runs import COLUMNS, MOST_SHOWN, runs, spark
from convlens.web.run_data import RunData
from convlens.web.run_summary import SPARK_POINTS, RunSummary
from convlens.web.store import RunStore
from convlens.web.view import View

CLASSES = ("cat", "dog", "owl")
COUNTS = [[90, 9, 1], [0, 50, 0], [0, 0, 0]]
PARTS = ("confusion", "images", "summary", "about")


class Still(Page):
    """A page whose links lead nowhere, as in the report."""

    live = False


class Elements(HTMLParser):
    """The start tags of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def matrix(counts: object, classes: tuple[str, ...] = CLASSES, epoch: int = 1) -> Confusion:
    return Confusion(epoch, "", np.array(counts, np.int64), classes)


def wrong(pairs: list[tuple[int, int]]) -> Mistakes:
    true, predicted = np.array(pairs, np.int64).reshape(-1, 2).T
    n = len(pairs)
    reals = np.linspace(3, 1, n, dtype=np.float32)
    images = np.zeros((n, 8, 8), np.uint8)
    return Mistakes(1, "", images, true, predicted, reals / 4, reals, np.arange(n), CLASSES)


def panel(part: str, *kept: Confusion | Mistakes | Picture, path: Path, still: bool = False,
          meta: dict[str, object] | None = None, **view: object) -> str:  # fmt: skip
    """A part of the page of a run that holds these snapshots."""
    with create_run("made", path) as run:
        run.write_meta({"n_epochs": 3} if meta is None else meta)
        for one in kept:
            run.write_picture(one) if isinstance(one, Picture) else run.write_snapshot(one)
        place = run.path
    kind = Still if still else Page
    return kind(RunData("key", RunFollower(open_run(place))), View(**view)).panel(part)


def cells(html: str) -> list[str]:
    body = html.partition("<tbody>")[2].partition("</tbody>")[0]
    return [Elements(one).text.strip() for one in re.findall(r"<td.*?</td>", body, re.DOTALL)]


def test_every_count_is_in_its_place_and_recall_beside_it(tmp_path):
    html = panel("confusion", matrix(COUNTS), path=tmp_path)
    assert cells(html) == [
        "90", "9", "1", "90.00 %", "·", "50", "·", "100.00 %", "·", "·", "·", "–",
    ]  # fmt: skip
    assert "cat (90.00 %)" in html
    shares = re.findall(r"--a:([\d.]+)", html)
    assert shares[:5] == ["0.90", "1.00", "0.30", "0.00", "1.00"]


def test_a_cell_is_chosen_and_a_click_again_lets_it_go(tmp_path):
    html = panel("confusion", matrix(COUNTS), path=tmp_path, true=0, predicted=1)
    (chosen, _) = [a for a in Elements(html).all("a") if a.get("aria-current")]
    assert parse_qs(urlsplit(chosen["href"]).query) == {}
    assert 'wrong chosen"' in html
    others = [a["href"] for a in Elements(html).all("a")]
    assert any(parse_qs(urlsplit(h).query) == {"true": ["0"], "predicted": ["2"]} for h in others)


@pytest.mark.parametrize("n", [21, 100, 101, 600])
def test_many_classes_are_a_picture(n, tmp_path):
    counts = np.eye(n, dtype=np.int64) * 5
    counts[3, n - 1] = 2
    kept = matrix(counts, tuple(f"class {i}" for i in range(n)))
    html = panel("confusion", kept, path=tmp_path, true=3, predicted=n - 1)
    (grid,) = Elements(html).all("button")
    assert (grid["data-grid"], grid["data-row"], grid["data-col"]) == (f"{n},{n}", "3", str(n - 1))
    assert parse_qs(urlsplit(grid["data-to"]).query) == {"true": ["ROW"], "predicted": ["COL"]}
    assert ("<span>class 7</span>" in html) == (n <= 100)
    assert len(html) < 100_000


def test_a_still_page_has_nothing_to_click(tmp_path):
    parts = matrix(COUNTS), replace(matrix(COUNTS), epoch=0), wrong([(0, 1)] * 9)
    found = Elements(panel("confusion", *parts, path=tmp_path, still=True))
    assert not [*found.all("a"), *found.all("select"), *found.all("button")]
    assert "after epoch 2" in found.text
    assert "and 6 others like these" in found.text


def test_of_mistakes_that_are_alike_a_few_are_shown(tmp_path):
    kept = matrix(COUNTS), wrong([(0, 1)] * 44 + [(0, 2)])
    html = panel("confusion", *kept, path=tmp_path)
    assert html.count('class="shot"') == 4
    assert "and 41 others like these" in html
    html = panel("confusion", *kept, path=tmp_path, true=0, predicted=1)
    assert html.count('class="shot"') == 44
    assert "others like these" not in html


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ((0, 2), "1 image of class cat was taken for owl; none of them is shown."),
        ((2, 0), "0 images of class owl were taken for cat; none of them is shown."),
        ((0, 0), "90 images of class cat were recognized; none of them is shown."),
        ((0, 1), "9 images of class cat were taken for dog; 2 of them are shown."),
    ],
)
def test_a_pair_says_how_many_there_were(pair, sentence, tmp_path):
    kept = matrix(COUNTS), wrong([(0, 1), (0, 1), (1, 1)])
    html = panel("confusion", *kept, path=tmp_path, true=pair[0], predicted=pair[1])
    assert sentence in html


@pytest.mark.parametrize(
    ("meta", "said", "advised"),
    [
        ({"counted": "forward"}, "a loop of its own", False),
        ({"n_epochs": 3}, "keeps one after each", True),
    ],
)
def test_nothing_kept_is_a_sentence_that_can_be_followed(meta, said, advised, tmp_path):
    html = panel("confusion", path=tmp_path, meta=meta)
    assert said in html
    assert ("Pictures callback" in html) == advised
    assert "This validation held no image." in panel(
        "confusion", matrix([[0] * 3] * 3), path=tmp_path
    )


def test_images_are_one_sheet(tmp_path):
    photos = np.random.default_rng(0).integers(0, 255, (70, 200, 100, 3), np.uint8)
    html = panel("images", Picture("batch", -1, photos, ["<b>"] * 69), path=tmp_path)
    assert (html.count("base64,"), html.count('class="shot"')) == (1, 64)
    assert "&lt;b&gt;" in html
    assert "shown smaller" in html
    assert "No training images" in panel("images", path=tmp_path)


@pytest.mark.parametrize("name", ["names", "wrong-values", "wrong-inner-values", "one-step"])
def test_whatever_a_record_holds_stays_text_and_is_bounded(recorded, name):
    run = RunData("key", RunFollower(open_run(recorded(name))))
    for part in PARTS:
        html = Page(run, View(epoch=-1, true=1, predicted=0)).panel(part)
        found = Elements(html)
        assert "cannot be shown" not in html
        assert len(html) < 150_000
        assert not {"script", "iframe", "form", "style"} & {tag for tag, _ in found.tags}
        assert not [a for _, a in found.tags if any(key.startswith("on") for key in a)]
        assert not [image for image in found.all("img") if not image["src"].startswith("data:")]


def test_a_summary_and_facts_with_endless_values(tmp_path):
    rows = [{"name": "x" * 9_000, f"key {i}": [i] * 300, "n": 2} for i in range(1_000)]
    meta = {"summary": {"rows": rows}, "data": {str(i): "y" * 9_000 for i in range(900)}}
    assert len(panel("summary", path=tmp_path, meta=meta)) < 600_000
    assert len(panel("about", path=tmp_path, meta=meta)) < 100_000


def test_facts_are_in_plain_words(recorded):
    run = RunData("key", RunFollower(open_run(recorded("one-epoch"))))
    text = Elements(Page(run, View()).panel("about")).text
    assert "training images" in text
    assert "largest learning rate" in text or "learning rate" in text
    assert not re.search(r"n_train|wall_s|input_shape", text)
    assert text.index("Versions and machine") < text.index("Conv2d(")


def test_what_a_loop_did_is_in_plain_words(tmp_path):
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD([model.weight], 0.1)
    with cl.watch(model, run=tmp_path / "run") as stats:
        for _ in range(3):
            loss = model(torch.ones(6, 4)).square().mean()
            stats.log(loss=loss, target=torch.zeros(6, 2))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with stats.validation():
            model(torch.ones(6, 4))
    text = Elements(
        Page(RunData("key", RunFollower(open_run(tmp_path / "run"))), View()).panel("about")
    ).text
    text = " ".join(text.split())
    for said in (
        "forward passes in training3",
        "optimizer steps3",
        "forward passes in validation1",
        "parameters in no optimizer1",
        "optimizersSGD",
        "input(6, 4) float32, from 1 to 1, mean 1, standard deviation 0",
        "target(6, 2) float32, from 0 to 0",
    ):
        assert said in text
    assert "spread" not in text


@pytest.mark.parametrize(
    "loop",
    [
        5,
        [],
        {"input": 3, "optimizers": [7], "backwards": "many"},
        {"input": {"shape": ["a", None], "min": "x", "max": {}}, "waited_s": "1"},
    ],
)
def test_wrong_facts_of_a_loop_are_no_error(loop, tmp_path):
    assert "cannot be shown" not in panel("about", path=tmp_path, meta={"loop": loop})


# ---- the list ----


def line(name: str, created: str = "", status: str = "finished", **more: object) -> RunSummary:
    return RunSummary(f"key-{name}", "runs", Path(name), created=created, status=status, **more)


PROBLEM, WARNING = Finding("a", "problem", "dead"), Finding("b", "warning", "slow")
LISTED = [
    (line("b", "2026-11-24T10:00:00+00:00", metric="accuracy", last=0.9, best=0.95,
          valid_loss=2.0, rate=0.1, model="ResNet", parameters=5, wall_s=3.0), [PROBLEM, WARNING]),
    (line("a", "2026-11-25T10:00:00+02:00", "running", metric="accuracy", last=0.7,
          rate=0.01, model="simple", wall_s=9.0), None),
    (line("c", "2026-11-23T10:00:00", "failed"), [WARNING]),
    (line("d", problem="d cannot be read & that is why."), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("", "abcd"), ("-started", "abcd"), ("started", "cbad"), ("name", "abcd"),
        ("-name", "dcba"),
        ("-accuracy", "bacd"), ("accuracy", "abcd"), ("loss", "bacd"), ("-rate", "bacd"),
        ("-time", "abcd"), ("model", "bacd"), ("-verdict", "bcad"), ("nonsense", "abcd"),
    ],
)  # fmt: skip
def test_runs_are_sorted_and_those_without_a_value_come_last(order, names):
    shown = runs(LISTED, ["runs"], View(order=order))
    assert "".join(row["run"].path.name for row in shown["groups"][0][1]) == names
    assert [head["sort"] for head in shown["heads"]].count("none") == len(COLUMNS) - 1


@pytest.mark.parametrize(
    ("words", "names"),
    [("RESNET", "b"), ("running", "a"), ("problem", "b"), ("simple run", "a"), ("x", "")],
)
def test_runs_are_filtered(words, names):
    shown = runs(LISTED, ["runs"], View(filter=words))
    assert "".join(row["run"].path.name for _, rows in shown["groups"] for row in rows) == names


def test_a_row_says_best_and_last_and_when_in_utc():
    rows = {
        row["run"].path.name: row for _, rows in runs(LISTED, [], View())["groups"] for row in rows
    }
    assert (rows["b"]["accuracy"], rows["b"]["last"]) == ("95.00 %", "90.00 %")
    assert rows["b"]["badge"] == ("1 problem", "problem")
    assert (rows["a"]["kind"], rows["a"]["badge"]) == ("busy", ("no verdict yet", ""))
    assert rows["a"]["started"] == "2026-11-25 08:00"
    many = [(line(f"{i}"), None) for i in range(MOST_SHOWN + 7)]
    assert runs(many, [], View())["counts"] == (MOST_SHOWN, MOST_SHOWN + 7, MOST_SHOWN + 7)


@pytest.mark.parametrize(
    "values", [[], [1.0], [1.0, 1.0], [1e300, -1e300, 1e300], [1e-300, 1e300], [2.0, 1.0, 0.5]]
)
def test_a_small_curve_stays_in_its_place(values):
    path = spark([(float(i), value) for i, value in enumerate(values)])
    points = [tuple(map(float, one.split(","))) for one in path[1:].split("L") if one]
    assert len(points) == (len(values) if len(values) > 1 else 0)
    assert all(0 <= x <= 120 and 0 <= y <= 28 for x, y in points)


def make(folder: Path, name: str, n: int = 300) -> Path:
    with create_run(name, folder) as run:
        run.write_meta({"model": {"class": "Net", "n_parameters": 1_234}})
        step = np.arange(n)
        lr = np.linspace(0, 0.5, n)[:, None]
        run.write_steps(StepSeries(step, step * 0, 1 / (1 + step), step * 0.1, {"lr": lr}))
        for epoch, accuracy in enumerate([0.5, 0.8, 0.7]):
            run.write_epoch(Epoch(epoch, 0, 1, 1.0, 0.25, {"accuracy": accuracy}, 1.0))
    for file in run.path.iterdir():  # old enough to be known by its stamp
        os.utime(file, (1e9, 1e9))
    return run.path


def test_a_run_is_summed_up_once(tmp_path, monkeypatch):
    for name in ("one", "two"):
        make(tmp_path, name)
    store = RunStore([tmp_path])
    found = store.list()
    one = next(run for run in found.values() if run.path.name == "one-0001")
    assert (one.best, one.metrics, one.valid_loss) == (0.8, {"accuracy": 0.7}, 0.25)
    assert (one.rate, one.model, one.parameters, one.status) == (0.5, "Net", 1_234, "finished")
    assert 2 < len(one.losses) <= SPARK_POINTS

    def refuse(_run: Run) -> None:
        raise AssertionError("a run that did not change was read again")

    monkeypatch.setattr("convlens.web.store.LIST_S", -1.0)
    monkeypatch.setattr(Run, "transactions", refuse)
    assert list(store.list().values()) == list(found.values())


def test_lists_that_are_asked_for_at_once_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("convlens.web.store.LIST_S", -1.0)
    for i in range(8):
        make(tmp_path, f"run{i}", 50)
    store, found = RunStore([tmp_path]), list[list[str]]()
    asked = [threading.Thread(target=lambda: found.append(list(store.list()))) for _ in range(8)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert found == [found[0]] * 8
    assert len(found[0]) == 8


def refuse_constants(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def data(address, path: str) -> tuple[int, dict]:
    status, headers, body = get(address, path)
    assert headers["Content-Type"].startswith("application/json")
    return status, json.loads(body, parse_constant=refuse_constants)


def test_data_for_programs(recorded):
    names = "one-epoch", "wrong-inner-values", "nan", "damaged"
    with serving([recorded(name) for name in names if name != "damaged"]) as address:
        for name in names[:3]:
            key = key_of(address, name)
            found = data(address, f"/api/run/{key}/findings")[1]["findings"]
            assert all(one["severity"] in ("problem", "warning", "note", "good") for one in found)
            facts = data(address, f"/api/run/{key}")[1]
            assert facts["findings"] == found
            curves = data(address, f"/api/run/{key}/curves")[1]
            assert len(curves["loss"]["mean"]) == len(curves["loss"]["first_step"]) > 0
            layer = facts["layers"][0]["name"]
            figures = data(address, f"/api/run/{key}/layer?layer={layer}")[1]
            assert figures["layer"]["name"] == layer
            assert len(figures["mean"]) == len(figures["first_step"]) > 0
        status, answer = data(address, f"/api/run/{key}/layer?layer=nothing")
        assert (status, "nothing" in answer["error"]) == (410, True)
        assert data(address, "/api/run/nothing/curves")[0] == 410
        assert data(address, "/api/nothing")[0] == 404
        (listed,) = [one for one in data(address, "/api/runs")[1]["runs"] if one["key"] == key]
        assert listed["findings"]["problem"] > 0


def test_a_list_is_live_and_names_what_is_damaged(recorded, tmp_path):
    folder = tmp_path / "not yet"
    with serving([folder, recorded("damaged").parent]) as address:
        status, headers, body = get(address, "/")
        assert (status, "form-action 'self'" in headers["Content-Security-Policy"]) == (200, True)
        assert "is damaged or incomplete" in body
        mark = body.partition('data-mark="')[2].partition('"')[0]
        assert get(address, f"/?after={mark}")[0] == 204
        make(folder, "new")
        while "new-0001" not in body:
            body = get(address, f"/?after={mark}")[2]
        assert 'scope="rowgroup"' in body  # two folders
    with serving([tmp_path / "empty"]) as address:
        assert "No runs yet in" in get(address, "/")[2]


def test_runs_are_filtered_ticked_and_compared_in_the_browser(page, tmp_path):
    for name in ("alpha", "beta", "gamma"):
        make(tmp_path, name)
    with serving([tmp_path]) as address:
        page.goto(address.url)
        page.get_by_label("filter").fill("eta")
        page.locator("tbody tr").nth(1).wait_for(state="detached")
        assert page.locator("tbody a").all_inner_texts() == ["beta-0001"]
        page.get_by_label("filter").fill("")
        page.get_by_label("compare alpha-0001").check()
        page.get_by_label("compare gamma-0001").check()
        make(tmp_path, "delta")
        page.get_by_text("delta-0001").wait_for()
        page.get_by_role("link", name="name", exact=True).click()
        page.locator("th[aria-sort=ascending]").wait_for()
        assert page.locator("tbody a").first.inner_text() == "alpha-0001"
        assert page.locator("tbody :checked").count() == 2
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.route("**/compare?*", lambda route: route.fulfill(body="compared"))
        page.get_by_role("button", name="Compare").click()
        page.get_by_text("compared").wait_for()
        assert len(parse_qs(urlsplit(page.url).query)["run"]) == 2


def test_a_cell_of_the_confusion_is_chosen_in_the_browser(page, recorded):
    path = recorded("one-epoch")
    with serving([path]) as address:
        page.goto(f"{address.url}run/{key_of(address, path.name)}")
        cell = page.locator("td.wrong a").first
        words = cell.get_attribute("aria-label")
        cell.click()
        page.get_by_role("link", name="Show all mistakes").wait_for()
        page.locator("td.chosen").get_by_label(words).click()
        page.get_by_role("heading", name="Largest losses").wait_for()
        summary = page.locator("#summary")
        summary.get_by_text("Summary of the model").click()
        assert summary.get_by_role("region").get_attribute("tabindex") == "0"
        page.reload()
        summary.get_by_role("region").wait_for()  # stays unfolded
