"""Confusion, mistakes, runs and a run's facts as HTML; and names that try to be more than names."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from snapshots_data import digits, parsed

from convlens.core.records import Epoch, Finding
from convlens.core.snapshots import Confusion, Mistakes
from convlens.runs.folder import RunInfo
from convlens.views.panels import (
    Choice,
    confusion,
    facts_of_layer,
    features,
    findings,
    header,
    kernels,
    mistakes,
    runs,
    sorted_runs,
    through_time,
    unit,
    window,
)
from convlens.views.panels.confusion import EMPTY, NO_CONFUSION, pairs
from convlens.views.panels.facts import NO_ROW, state_of
from convlens.views.panels.mistakes import NO_MISTAKES, NONE_AT_ALL
from convlens.views.panels.runs import NO_RUNS
from convlens.views.words import NO_FINDINGS

NOW = datetime(2026, 11, 25, 12)


def three(counts: list[list[int]]) -> Confusion:
    return Confusion(1, "", np.array(counts), ("cat", "dog", "owl"))


COUNTS = [[90, 9, 1], [0, 50, 0], [0, 0, 0]]


def test_every_count_is_in_its_place():
    kept = digits().confusion[-1]
    root = parsed(confusion(kept, [0, 1]))
    rows = root.one("tbody").all("tr")
    shown = [[td.text.replace(",", "") for td in row.all("td")[:-1]] for row in rows]
    found = np.array([[0 if cell == "·" else int(cell) for cell in row] for row in shown])
    np.testing.assert_array_equal(found, kept.counts)
    right = np.trace(kept.counts) / kept.counts.sum()
    assert root.all("dd")[0].text == f"{100 * right:.2f} %"
    for cell in root.one("tbody").all("button", data_do="confusion"):
        at = int(cell.attributes["data-true"]), int(cell.attributes["data-predicted"])
        assert int(cell.text) == kept.counts[at]


@pytest.mark.parametrize(
    ("classes", "kind"),
    [
        ("0123456789", "matrix"),
        (("shirt", "dress", "boots"), "matrix"),
        (
            [
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ],
            "matrix upright",
        ),
        ([f"class {i}" for i in range(12)], "matrix upright"),
        ([str(i) for i in range(20)], "matrix"),
    ],
)
def test_names_that_are_wide_together_stand_upright(classes, kind):
    kept = Confusion(1, "", np.eye(len(classes), dtype=np.int64), tuple(classes))
    assert parsed(confusion(kept)).one("table").attributes["class"] == kind


def test_recall_stands_beside_each_class():
    root = parsed(confusion(three(COUNTS)))
    sides = [row.all("td")[-1].text for row in root.one("tbody").all("tr")]
    assert sides == ["90.00 %", "100.00 %", "–"]
    assert root.all("dd")[2].text == "cat (90.00 %)"


def test_mistakes_are_coloured_by_the_logarithm_and_the_diagonal_by_recall():
    root = parsed(confusion(three([[9800, 99, 9], [0, 500, 0], [0, 1, 999]])))
    shares = [
        float(td.attributes["style"].partition(":")[2])
        for td in root.all("td")
        if "style" in td.attributes
    ]
    assert shares[:3] == [0.99, 1.0, 0.5]
    assert shares[3:6] == [0, 1, 0]
    kinds = [td.attributes["class"] for td in root.all("td") if "style" in td.attributes]
    assert kinds[:5] == ["right", "wrong", "wrong", "wrong", "right"]
    ends = root.all("span", class_="ends")[1]
    assert [span.text for span in ends.all("span")] == ["0", "9", "99"]


def test_the_most_frequent_mistakes_come_first():
    counts = digits().confusion[-1].counts
    found = pairs(counts)
    assert len(found) == 10
    assert [n for *_, n in found] == sorted((n for *_, n in found), reverse=True)
    assert all(counts[t, p] == n and t != p for t, p, n in found)
    off = counts - np.diag(np.diag(counts))
    assert found[0][2] == off.max()


def test_a_pair_is_chosen_and_can_be_left():
    root = parsed(confusion(three(COUNTS), pair=(0, 1)))
    assert root.one("td", class_="chosen").text == "9"
    pressed = {b.text: b.attributes.get("aria-pressed") for b in root.all("button", class_="pair")}
    assert pressed == {
        "cat taken for dog9": "true",
        "cat taken for owl1": "false",
        "Show all mistakes": None,
    }
    leave = root.one("button", class_="all")
    assert (leave.attributes["data-true"], leave.attributes["data-predicted"]) == ("", "")


@pytest.mark.parametrize("n", [21, 100, 101])
def test_many_classes_are_a_picture(n):
    counts = np.eye(n, dtype=np.int64) * 5
    counts[3, n - 1] = 2
    kept = Confusion(0, "", counts, tuple(f"class {i}" for i in range(n)))
    root = parsed(confusion(kept, pair=(3, n - 1)))
    (grid,) = root.all("button", data_do="confusion", data_grid=f"{n},{n}")
    mark = grid.one("rect", class_="chosen")
    assert (mark.attributes["y"], mark.attributes["x"]) == ("3", str(n - 1))
    names = [span.text for one in root.all("div", class_="names") for span in one.all("span")]
    assert names == (list(kept.classes) if n <= 100 else [])
    assert not root.all("table")
    static = parsed(confusion(kept, live=False))
    assert not any("data-do" in one.attributes for one in static.walk())


def test_confusion_without_anything_to_show():
    assert NO_CONFUSION in confusion(None)
    assert EMPTY in confusion(three([[0] * 3] * 3))
    html = confusion(three([[5, 0, 0], [0, 5, 0], [0, 0, 5]]))
    assert "Nothing was mistaken for anything else." in html


def kept_mistakes() -> Mistakes:
    return Mistakes(
        1,
        "",
        images=np.zeros((3, 8, 8), np.uint8),
        true=np.array([0, 0, 1]),
        predicted=np.array([1, 1, 1]),
        probability=np.array([0.8, 0.95, 0.3], np.float32),
        loss=np.array([1.5, 3.0, 1.2], np.float32),
        item=np.array([17, 4, 99]),
        classes=("cat", "dog", "owl"),
    )


def test_mistakes_come_by_their_loss():
    root = parsed(mistakes(kept_mistakes()))
    alts = [image.attributes["alt"] for image in root.all("img")]
    assert alts == [
        "cat, taken for dog, with a probability of 95.00 %",
        "cat, taken for dog, with a probability of 80.00 %",
        "dog, recognized, with a probability of 30.00 %",
    ]
    assert root.all("figcaption")[0].text == "cat → dog95.00 %loss 3.00no. 4"
    assert root.all("figcaption")[2].text == "dog, right30.00 %loss 1.20no. 99"


def test_mistakes_of_a_pair_are_counted_among_all():
    root = parsed(mistakes(kept_mistakes(), (0, 1), three(COUNTS)))
    assert len(root.all("img")) == 2
    assert root.one("h4").text == "cat taken for dog, after epoch 2"
    assert "2 of 9 such images are shown" in root.text


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ((0, 2), "1 image of class cat was taken for owl in this validation; none of them was"),
        ((2, 0), "No image of class owl was taken for cat in this validation."),
        ((0, 0), "90 images of class cat were recognized in this validation; none of them was"),
    ],
)
def test_a_pair_without_images_says_how_many_there_were(pair, sentence):
    root = parsed(mistakes(kept_mistakes(), pair, three(COUNTS)))
    assert not root.all("img")
    assert sentence in root.text


def test_mistakes_without_anything_to_show():
    none = replace(
        kept_mistakes(), true=np.zeros(0, int), loss=np.zeros(0), images=np.zeros((0, 8, 8))
    )
    assert NO_MISTAKES in mistakes(None)
    assert NONE_AT_ALL in mistakes(none)
    assert len(parsed(mistakes(kept_mistakes(), (7, 9))).all("img")) == 3


def info(
    name: str, created: str = "", status: str = "finished", n_epochs: int = 1, **metrics: float
) -> RunInfo:
    return RunInfo(Path(name), name, created, status, n_epochs, metrics)


INFOS = [
    info("b", "2026-11-24T10:00:00+00:00", n_epochs=3, accuracy=0.9, f1=0.5),
    info("a", "2026-11-25T10:00:00+00:00", "running", n_epochs=10, accuracy=0.7),
    info("c", "2026-11-23T10:00:00+00:00", "failed", n_epochs=0),
    RunInfo(Path("d"), "d", "", "unreadable", 0, problem="d cannot be read & that is why."),
]


@pytest.mark.parametrize(
    ("column", "descending", "names"),
    [
        ("created", True, "abcd"),
        ("created", False, "cbad"),
        ("name", False, "abcd"),
        ("epochs", True, "abcd"),
        ("epochs", False, "cbad"),
        ("accuracy", True, "bacd"),
        ("accuracy", False, "abcd"),
        ("f1", False, "bacd"),
        ("status", False, "cbad"),
    ],
)
def test_runs_are_sorted_and_those_without_a_value_come_last(column, descending, names):
    assert "".join(one.name for one in sorted_runs(INFOS, column, descending)) == names


def test_a_list_of_runs():
    root = parsed(runs(INFOS, lambda one: f"id-{one.name}", "accuracy", True, ["id-a"]))
    heads = root.one("thead").all("th")
    assert [h.attributes.get("aria-sort") for h in heads[1:]] == [
        "none", "none", "none", "none", "descending", "none",
    ]  # fmt: skip
    assert heads[3].text.strip() == "created (UTC)"
    columns = [b.attributes["data-column"] for b in root.all("button", data_do="sort")]
    assert columns == ["name", "status", "created", "epochs", "accuracy", "f1"]
    rows = root.one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == list("bacd")
    links = [a.attributes["href"] for row in rows for a in row.all("a")]
    assert links == ["?run=id-b", "?run=id-a", "?run=id-c"]
    assert [td.text for td in rows[0].all("td")] == [
        "",
        "finished",
        "2026-11-24 10:00",
        "3",
        "90.00 %",
        "0.5",
    ]
    assert "d cannot be read & that is why." in rows[3].text
    ticks = {t.attributes["data-id"]: "checked" in t.attributes for t in root.all("input")}
    assert ticks == {"id-b": False, "id-a": True, "id-c": False}
    assert "a is ticked: tick another run" in root.one("p", class_="compare").text


@pytest.mark.parametrize(
    ("created", "shown"),
    [
        ("2026-11-24T10:00:00+00:00", "2026-11-24 10:00"),
        ("2026-11-24T10:00:00+02:00", "2026-11-24 08:00"),
        ("2026-11-24T10:00:00", "2026-11-24 10:00"),
        ("yesterday", "yesterday"),
    ],
)
def test_when_a_run_began_is_in_utc(created, shown):
    row = parsed(runs([info("a", created)], lambda one: one.name)).one("tbody").one("tr")
    assert row.all("td")[2].text == shown


def test_two_ticked_runs_lead_to_their_comparison():
    root = parsed(runs(INFOS, lambda one: one.name, compared=["c", "a"]))
    go = root.one("a", class_="go")
    assert (go.attributes["href"], go.text) == ("?run=c&compare=a", "Compare c with a")


def test_a_static_list_has_nothing_to_click():
    root = parsed(runs(INFOS, lambda one: one.name, live=False))
    assert not [*root.all("a"), *root.all("button"), *root.all("input")]
    assert len(root.one("tbody").all("tr")) == 4


def test_no_runs_say_how_to_make_one():
    assert NO_RUNS in runs([], str)


META = {
    "status": "running",
    "n_epochs": 5,
    "model": {"n_parameters": 52_768},
    "summary": {
        "rows": [
            {
                "name": "0.0",
                "kind": "Conv2d",
                "output_shape": [8, 14, 14],
                "depth": 2,
                "stride": None,
            },
            {"name": "1.0", "kind": "Conv2d"},
        ]
    },
}
EPOCHS = [Epoch(0, 0, 117, 0.4, 0.1, {"accuracy": 0.976}, 4.0)]


@pytest.mark.parametrize(
    ("meta", "seconds", "kind", "sentence"),
    [
        ({}, 2, "busy", "Training: 1 of 5 epochs finished, 200 steps; last written to 2.0 s ago."),
        ({}, 7200, "bad", "Nothing was written to this run for 2 h 0 min: a step takes"),
        ({}, 9 * 86_400, "bad", "Nothing was written to this run for 9 days"),
        ({"status": "finished"}, 90, "good", "Finished on 2026-11-25 at 11:58:30 UTC"),
        ({"status": "stopped"}, 90, "still", "Stopped before its end, on 2026-11-25"),
        ({"status": "failed", "error": "CUDA <oops>"}, 90, "bad", "UTC: CUDA <oops>"),
        ({"status": "failed"}, 90, "bad", "no reason was recorded"),
        ({"status": "crashed", "error": "It was killed."}, 90, "bad", "It was killed. 1 of 5 ep"),
        ({"status": "new"}, 90, "still", "No state was recorded"),
    ],
)
def test_the_state_of_a_run_in_words(meta, seconds, kind, sentence):
    written = NOW - timedelta(seconds=seconds)
    found = state_of({**META, **meta}, EPOCHS, 200, written, NOW)
    assert found[0] == kind
    assert sentence in found[1]


def test_a_header():
    root = parsed(header("mnist-0001", META, EPOCHS, 200, 4.2, NOW, NOW))
    assert root.one("h1").text == "mnist-0001 training"
    shown = dict(
        zip([d.text for d in root.all("dt")], [d.text for d in root.all("dd")], strict=True)
    )
    assert shown == {
        "accuracy": "97.60 %",
        "validation loss": "0.1000",
        "epochs": "1 of 5",
        "steps": "200",
        "wall time": "4.2 s",
        "parameters": "52,768",
    }


def test_a_header_of_a_run_without_anything():
    root = parsed(header("new", {"status": "running"}, [], 0, None, NOW, NOW))
    assert "Training: no step yet; last written to 0.0 s ago." in root.text


def test_the_chosen_layers_facts():
    root = parsed(facts_of_layer(META, "0.0"))
    assert [d.text for d in root.all("dt")] == ["name", "kind", "output shape"]
    assert [d.text for d in root.all("dd")] == ["0.0", "Conv2d", "8 × 14 × 14"]
    assert parsed(facts_of_layer(META, "9")).text == NO_ROW
    assert parsed(facts_of_layer({}, "9")).text == NO_ROW


def test_findings_lead_to_their_layer():
    found = [Finding("a", "problem", "dead", "0.0", 12), Finding("b", "good", "fine", "gone")]
    root = parsed(findings(found, ["0.0"]))
    (link,) = root.all("button", data_do="layer")
    assert link.attributes["data-name"] == "0.0"
    assert [li.attributes["class"] for li in root.all("li")] == ["problem", "good"]
    static = parsed(findings(found, ["0.0"], live=False))
    assert static.one("a").attributes["href"] == "#layer-0"
    assert NO_FINDINGS in findings([], [])


EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;</td>"


ATTRIBUTES = """
class style src alt title type href tabindex role scope colspan min max step value selected checked
viewbox preserveaspectratio x y width height
aria-label aria-pressed aria-hidden aria-sort aria-current aria-valuetext
data-do data-layer data-channel data-probe data-grid data-row data-col data-value data-kind
data-epochs data-true data-predicted data-column data-id data-name data-figure
"""


def evil_panels(live: bool) -> str:
    kept = digits()
    probes = replace(kept.probes, captions=(EVIL,) * 8)
    maps, fields = (replace(one, layer=EVIL) for one in (kept.maps["0.0"][-1], kept.fields["0.0"]))
    matrix = replace(kept.confusion[-1], classes=(EVIL,) * 10)
    wrong = replace(kept.mistakes[-1], classes=(EVIL,) * 10)
    first = replace(kept.kernels["0.0"][-1], layer=EVIL)
    effective = replace(kept.effective["0.0"], layer=EVIL, radius={EVIL: 2.0})
    many = Confusion(0, "", np.ones((30, 30), np.int64), (EVIL,) * 30)
    infos = [
        info(EVIL, EVIL, EVIL, 2, **{EVIL: 0.5}),
        RunInfo(Path("x"), EVIL, "", "unreadable", 0, problem=EVIL),
    ]
    meta = {
        "status": EVIL,
        "error": EVIL,
        "summary": {"rows": [{"name": EVIL, "kind": EVIL, EVIL: EVIL}]},
    }
    epochs = [Epoch(0, 0, 1, 0.1, 0.1, {EVIL: 0.5}, 1.0)]
    finding = Finding(EVIL, EVIL, EVIL, EVIL, 3)
    return "".join(
        [
            features(maps, probes, [-1, 1], live=live),
            through_time([maps], probes),
            unit(maps, probes, fields, effective, Choice(pixel=(3, 3)), live=live),
            window(first, probes, maps, live=live),
            kernels(first, [0, 1], live=live),
            confusion(matrix, [0, 1], (1, 2), live=live),
            confusion(many, live=live),
            mistakes(wrong, None, matrix),
            mistakes(wrong, (3, 5), matrix),
            mistakes(replace(wrong, true=wrong.true * 0 - 1), (3, 5), matrix),
            runs(infos, lambda one: one.name, EVIL, live=live),
            runs(infos[:1] * 2, lambda _: EVIL, compared=[EVIL, EVIL], live=live),
            header(EVIL, meta, epochs, 3, 1.0, NOW, NOW),
            header("x", {**meta, "status": "failed"}, epochs, 3, 1.0, NOW, NOW),
            facts_of_layer(meta, EVIL),
            findings([finding], [EVIL], live),
        ]
    )


@pytest.mark.parametrize("live", [True, False])
def test_names_stay_names(live):
    root = parsed(evil_panels(live))
    tags = {one.tag for one in root.walk()}
    assert not tags & {"script", "style", "iframe", "object", "form", "link"}
    for one in root.walk():
        assert not any(name.startswith("on") for name in one.attributes)
        if one.tag == "img":
            assert one.attributes["src"].startswith("data:image/png;base64,")
        assert one.attributes.get("href", "?").startswith(("?", "#"))
    assert EVIL in root.text
    used = {name for one in root.walk() for name in one.attributes}
    assert used <= set(ATTRIBUTES.split())


def test_what_answers_can_be_reached_by_keyboard_and_has_a_name():
    for one in parsed(evil_panels(live=True)).walk():
        if "data-do" in one.attributes:
            assert one.tag in ("button", "input", "select"), one.tag
            named = one.text.strip() or one.attributes.get("aria-label")
            assert named or all(image.attributes["alt"] for image in one.all("img"))


def test_what_answers_uses_known_commands_only():
    used = {one.attributes.get("data-do") for one in parsed(evil_panels(live=True)).walk()}
    known = "unit pixel probe epoch scale window confusion sort compare layer"
    assert used - {None} == set(known.split())


def test_without_a_page_nothing_answers():
    static = parsed(evil_panels(live=False))
    assert not any("data-do" in one.attributes for one in static.walk())
    assert not static.all("button")
    assert not static.all("input")
