"""What two runs were set up with."""

from __future__ import annotations

from snapshots_data import parsed

from convlens.views.panels import differences

META = {
    "status": "finished",
    "wall_s": 12.5,
    "n_epochs": 5,
    "seed": 0,
    "model": {"class": "Sequential", "text": "a\nb", "n_parameters": 30_542},
    "optimizer": {"class": "AdamW", "groups": [{"lr": 0.1, "momentum": 0.9}]},
}


def cells(html: str) -> list[list[str]]:
    rows = parsed(html).all("tr")
    return [[cell.text for cell in (*row.all("th"), *row.all("td"))] for row in rows]


def test_only_what_differs_is_told() -> None:
    other = {**META, "n_epochs": 2, "status": "failed", "wall_s": 1.0, "seed": None}
    other["optimizer"] = {"class": "AdamW", "groups": [{"lr": 0.06, "momentum": 0.9}]}
    head, *rows = cells(differences(META, other, ("one", "two")))
    assert head == ["set up with", "one", "two"]
    assert rows == [
        ["optimizer groups lr", "0.1", "0.06"],
        ["epochs", "5", "2"],
        ["seed", "0", "–"],
    ]


def test_runs_that_were_set_up_alike_say_so() -> None:
    assert "in the same way" in differences(META, {**META, "wall_s": 3.0}, ("one", "two"))


def test_names_and_values_are_never_code() -> None:
    evil = "<script>alert(1)</script>"
    html = differences(META, {**META, "loss": evil}, (evil, "two"))
    assert "<script" not in html
    assert evil in cells(html)[1][2]


def test_many_and_long_differences_are_bounded() -> None:
    other = {"data": {f"key {i}": "x" * 200 for i in range(40)}}
    html = differences({}, other, ("one", "two"))
    assert len(cells(html)) == 13
    assert "And 28 more." in html
    assert max(len(cell) for row in cells(html) for cell in row) <= 80
