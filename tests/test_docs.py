"""The documentation's examples: they run, and give what the page says."""

import doctest
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {  # the chapter's statements that each page shows
    "before-training.md": {*range(1, 10), *range(13, 20), 21, 22},
    "while-training.md": {11, 20, *range(23, 28), 29, 30, *range(33, 41)},
}
FEWEST_LINES = {"before-training.md": 60, "while-training.md": 50}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_gives_what_it_says(page):
    text = (DOCS / page).read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}  # the blocks go on from one another
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    said: list[str] = []
    for i, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, names, f"block {i}", None, None)
        runner.run(test, out=said.append, clear_globs=False)
        names = test.globs
        plt.close("all")
    assert runner.failures == 0, "".join(said)
    assert runner.tries > FEWEST_LINES[page]


@pytest.mark.parametrize("page", PAGES)
def test_every_statement_has_an_example_on_its_page(page):
    text = (DOCS / page).read_text("utf-8")
    parts = re.split(r"<!-- statements ([\d, ]+) -->", text)[1:]
    shown = set()
    for numbers, part in zip(parts[::2], parts[1::2], strict=True):
        assert ">>> " in part
        shown |= {int(number) for number in numbers.split(",")}
    assert shown == PAGES[page]


def test_every_picture_of_the_docs_is_there():
    for page in DOCS.glob("*.md"):
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text("utf-8")):
            assert (page.parent / path).is_file(), path
