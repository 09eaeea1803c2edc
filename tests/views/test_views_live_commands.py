"""What comes from a browser may be anything, and never stops the page."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bokeh.document import Document
from bokeh.models import ColumnDataSource

from convlens.views.live.commands import place, share, whole, word
from convlens.views.live.models import Commands

ODD: list[Any] = [
    None,
    True,
    [],
    {},
    "",
    "-",
    "--5",
    "5-",
    " 5",
    "5\n",
    "+5",
    "1_0",
    "٥",
    "1e3",
    "1" * 5_000,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
]


@pytest.mark.parametrize("value", ODD)
def test_what_is_no_whole_number_is_none(value: Any):
    assert whole({"n": value}, "n") is None
    assert place({"row": 1, "col": value}) is None


@pytest.mark.parametrize(
    ("value", "number"), [("-1", -1), ("007", 7), ("999999999", 999_999_999), (5, 5)]
)
def test_whole_numbers(value: Any, number: int):
    assert whole({"n": value}, "n") == number


def test_whole_numbers_that_are_not_there():
    assert whole({}, "n") is None
    assert whole({"n": "1234567890"}, "n") is None
    assert whole({"n": 10**9}, "n") is None


@pytest.mark.parametrize("value", [None, [], {}, "", "nan", "x", -0.1, 1.1, 10**400, "1" * 5_000])
def test_what_is_no_share_is_none(value: Any):
    assert share({"s": value}, "s") is None


def test_shares_and_words():
    assert share({"s": "0.25"}, "s") == 0.25
    assert share({"s": 1}, "s") == 1.0
    assert word({"w": "text"}, "w") == "text"
    assert word({"w": 5}, "w") == word({}, "w") == ""


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"json": []},
        {"json": [None]},
        {"json": ["{"]},
        {"json": ["[]"]},
        {"json": ['{"do": 1}']},
        {"json": ['{"n": ' + "1" * 5_000 + "}"]},
        {"json": ["[" * 200_000]},
        {"json": ['{"do":' * 200_000]},
    ],
)
def test_what_is_no_command_is_not_carried_out(data: dict[str, Any]):
    done: list[dict[str, Any]] = []
    document = Document()
    Commands(document, done.append)
    source = document.get_model_by_name("command")
    assert isinstance(source, ColumnDataSource)
    source.data = data
    assert done == []
    source.data = {"json": [json.dumps({"do": "play"})]}
    assert done == [{"do": "play"}]
